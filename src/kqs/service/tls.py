"""TLS on the qrpc port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from ..errors import ConfigError
from ..settings.config import TlsConfig

#: Seconds a peer has to finish its handshake.
HANDSHAKE = 10.0
#: Seconds a peer has to answer the end of a TLS connection.
GOODBYE = 2.0


def server_context(config: TlsConfig) -> ssl.SSLContext:
    """What handshakes need, read from the files.

    Raises:
        ConfigError: a file cannot be used: the setting, the file and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    for name in ("cert", "key", "client_ca"):
        _readable(name, getattr(config, name))
    try:
        # Without a password an encrypted key would ask for one at the terminal.
        context.load_cert_chain(config.cert, config.key or None, password=lambda: b"")
    except OSError as error:
        files = f"{config.cert} and {config.key}" if config.key else config.cert
        raise ConfigError(
            f"tls.cert, tls.key: {files}: not a PEM certificate and its key, unencrypted{_reason(error)}"
        ) from None
    if config.client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(config.client_ca)
        except OSError as error:
            raise ConfigError(
                f"tls.client_ca: {config.client_ca}: not a PEM certificate{_reason(error)}"
            ) from None
    return context


def _readable(name: str, path: str) -> None:
    if not path:
        return
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"tls.{name}: {path} cannot be read: {error.strerror}") from None


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None)  # OpenSSL's, for some of its errors
    return f" ({reason.lower().replace('_', ' ')})" if reason else ""


class TlsListener:
    """Accepts TLS connections on one address.

    asyncio's own servers keep the context they were made with and count a peer only after its handshake; this
    one takes the context of the moment for each handshake, and lets no more peers begin one than may connect.

    Args:
        sockets: bound and listening, not blocking.
        context: gives what the next handshake needs.
        factory: makes a peer's protocol, once its handshake is done.
        full: whether there are too many peers, given how many are at their handshake.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        context: Callable[[], ssl.SSLContext],
        factory: Callable[[], asyncio.Protocol],
        full: Callable[[int], bool],
    ) -> None:
        self.sockets = sockets
        self._context = context
        self._factory = factory
        self._full = full
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = [asyncio.create_task(self._accept(one)) for one in sockets]

    def close(self) -> None:
        """Accept nobody any more; handshakes under way are given up."""
        for task in (*self._accepting, *self._handshakes):
            task.cancel()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listening:
            while True:
                try:
                    peer, _address = await loop.sock_accept(listening)
                except ConnectionError:
                    continue  # it left before it was looked at
                except OSError:  # no descriptor or memory left
                    await asyncio.sleep(1)
                    continue
                if self._full(len(self._handshakes)):
                    peer.close()
                    continue
                task = asyncio.create_task(self._shake_hands(peer))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, peer: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # Whatever is wrong with it (no TLS, no common version, no certificate, too slow): it is gone.
        with contextlib.suppress(OSError):
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(
                self._factory,
                peer,
                ssl=self._context(),
                ssl_handshake_timeout=HANDSHAKE,
                ssl_shutdown_timeout=GOODBYE,
            )


async def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for an address: one for each IP address a host name has.

    Raises:
        OSError: the port is taken, the address is not ours, or the name is not known.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, _type, _protocol, _name, address in found:
            made = socket.create_server(address, family=family, backlog=1024)
            made.setblocking(False)
            sockets.append(made)
    except OSError:
        for made in sockets:
            made.close()
        raise
    return sockets
