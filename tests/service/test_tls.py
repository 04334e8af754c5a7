"""TLS on the qrpc port: who gets in, who does not, and certificates that change while the server runs."""

from __future__ import annotations

import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kqs.client import AsyncClient, Client
from kqs.errors import ConfigError, ConnectionFailed, Unauthorized
from tests.certificates import Authority
from tests.support import PATIENCE, ServerProcess, kqs, until

pytestmark = pytest.mark.service("openssl")
Start = Callable[..., ServerProcess]

#: More than socket buffers and TLS records hold.
LARGE = "\N{SNOWMAN}" * 1_000_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


def config(cert: Path, key: Path, client_ca: Path | None = None) -> str:
    more = f'client_ca = "{client_ca}"\n' if client_ca else ""
    return f'[tls]\ncert = "{cert}"\nkey = "{key}"\n{more}'


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("secure"), config(*authority.issue("server")))
    try:
        yield made.start()
        made.stop()
        assert all(line.startswith("{") for line in made.stderr.lines), "somebody else logged something"
    finally:
        made.discard()


def url(server: ServerProcess, host: str = "localhost", **files: Path) -> str:
    options = "&".join(f"{name}={path}" for name, path in files.items())
    return f"kqss://{host}:{server.port}?{options}"


def handshake(server: ServerProcess, ca: Path, **settings: object) -> ssl.SSLSocket:
    """A bare TLS connection."""
    context = ssl.create_default_context(cafile=str(ca))
    for name, value in settings.items():
        setattr(context, name, value)
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    return context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_the_blocking_client(secure: ServerProcess, authority: Authority, host: str) -> None:
    with Client(url(secure, host, ca=authority.pem), timeout=PATIENCE) as client:
        assert client.call_many([("echo", LARGE)] * 10) == [LARGE] * 10
        assert client.job(client.insert("x", LARGE), data=True)["data"] == LARGE
        assert client.call_many([("echo", number) for number in range(20_000)]) == list(range(20_000))


async def test_the_asyncio_client(secure: ServerProcess, authority: Authority) -> None:
    async with AsyncClient(url(secure, ca=authority.pem), timeout=PATIENCE) as client:
        assert await client.echo(LARGE) == LARGE
        id = await client.insert("x", LARGE)
        assert (await client.job(id, data=True))["data"] == LARGE


def test_the_command(secure: ServerProcess, authority: Authority) -> None:
    done = kqs("call", "ping", KQS_URL=f"kqss://localhost:{secure.port}", KQS_CA=str(authority.pem))
    assert (done.status, done.out) == (0, '"pong"\n')


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_server_with_a_certificate_of_somebody_else(
    secure: ServerProcess, tmp_path: Path, host: str
) -> None:
    other = url(secure, host, ca=Authority(tmp_path).pem)
    with Client(other, timeout=0.5) as client, pytest.raises(ConnectionFailed, match="not trusted") as failed:
        client.ping()
    assert not failed.value.sent
    async with AsyncClient(other, timeout=0.5) as aclient:
        with pytest.raises(ConnectionFailed, match="not trusted"):
            await aclient.ping()


async def test_a_server_with_a_certificate_for_another_name(start: Start, authority: Authority) -> None:
    server = start(config(*authority.issue("elsewhere", "DNS:elsewhere.example")))
    wanted = url(server, ca=authority.pem)
    with Client(wanted, timeout=0.5) as client, pytest.raises(ConnectionFailed, match="not valid for"):
        client.ping()
    async with AsyncClient(wanted, timeout=0.5) as aclient:
        with pytest.raises(ConnectionFailed, match="not valid for"):
            await aclient.ping()


def test_without_ca_the_systems_roots_are_used(secure: ServerProcess) -> None:
    client = Client(f"kqss://localhost:{secure.port}", timeout=0.5)
    with client, pytest.raises(ConnectionFailed, match="not trusted"):
        client.ping()


def test_old_versions_of_tls_are_refused(secure: ServerProcess, authority: Authority) -> None:
    with handshake(secure, authority.pem, maximum_version=ssl.TLSVersion.TLSv1_2) as peer:
        assert peer.version() == "TLSv1.2"
    context = ssl.create_default_context(cafile=str(authority.pem))
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    plain = socket.create_connection(("127.0.0.1", secure.port), timeout=PATIENCE)
    with plain, pytest.raises(OSError):
        context.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    "data",
    [b'{"v":1,"id":"1","n":"ping"}\n', b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 70_000],
    ids=["a call", "HTTP", "half a handshake"],
)
def test_what_is_not_tls_is_closed(secure: ServerProcess, authority: Authority, data: bytes) -> None:
    with secure.connect() as wire:
        wire.send(data)
        answer = b""
        try:
            while part := wire.socket.recv(1000):
                answer += part
        except ConnectionResetError:
            pass
        assert not answer or answer.startswith(b"\x15\x03")  # an alert at most
    with Client(url(secure, ca=authority.pem), timeout=PATIENCE) as client:
        assert client.ping() == "pong"


def test_http_inside_tls_is_closed(secure: ServerProcess, authority: Authority) -> None:
    with handshake(secure, authority.pem) as peer:
        peer.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        try:
            assert peer.recv(1000) == b""
        except OSError:
            pass


def test_tls_on_a_plain_port_is_closed(shared: ServerProcess, authority: Authority) -> None:
    with pytest.raises(OSError):
        handshake(shared, authority.pem)
    with Client(f"kqss://localhost:{shared.port}", timeout=0.5) as client, pytest.raises(ConnectionFailed):
        client.ping()
    with shared.client() as canary:
        assert canary.ping() == "pong"


def test_peers_at_their_handshake_count_as_connections(start: Start, authority: Authority) -> None:
    limits = "[limits]\nconnections = 4\n[pools.default]\nprocesses = 1\n"
    server = start(limits + config(*authority.issue("few")))
    with Client(f"kqs+unix:{server.data}/kqs.sock") as watcher:
        until(lambda: watcher.stats()["connections"]["open"] == 2, "the worker to be connected")
        silent = [server.connect(), server.connect()]
        with server.connect() as late:
            assert late.closed()
        assert watcher.stats()["connections"] == {"open": 2, "refused": 1}
        silent[0].close()
        with Client(url(server, ca=authority.pem), timeout=PATIENCE) as client:
            assert client.ping() == "pong"


async def test_client_certificates(start: Start, authority: Authority, tmp_path: Path) -> None:
    clients = Authority(tmp_path, "clients")
    server = start(config(*authority.issue("mutual"), clients.pem))
    cert, key = clients.issue("me", "DNS:me")
    mine = url(server, ca=authority.pem, cert=cert, key=key)
    with Client(mine, timeout=PATIENCE) as client:
        assert client.ping() == "pong"
    async with AsyncClient(mine, timeout=PATIENCE) as aclient:
        assert await aclient.ping() == "pong"
    done = kqs(
        "call",
        "ping",
        KQS_URL=f"kqss://localhost:{server.port}",
        KQS_CA=str(authority.pem),
        KQS_CERT=str(cert),
        KQS_KEY=str(key),
    )
    assert done.status == 0, done
    cert, key = authority.issue("stranger", "DNS:me")
    for refused in (url(server, ca=authority.pem), url(server, ca=authority.pem, cert=cert, key=key)):
        for token in (None, "some"):
            with Client(refused, token=token, timeout=2) as client, pytest.raises(ConnectionFailed):
                client.ping()
            async with AsyncClient(refused, token=token, timeout=2) as aclient:
                with pytest.raises(ConnectionFailed):
                    await aclient.ping()


def issuer(server: ServerProcess, ca: Path) -> object:
    """Who signed the certificate a new connection is shown; the connection is of use."""
    with handshake(server, ca) as peer:
        peer.sendall(b'{"v":1,"id":"1","n":"ping"}\n')
        assert b'"pong"' in peer.recv(1000)
        certificate = peer.getpeercert()
        assert certificate is not None
        return certificate["issuer"]


def test_certificates_are_replaced_without_closing_anything(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue("changing")
    server = start(config(cert, key))
    with Client(url(server, ca=authority.pem), timeout=PATIENCE) as client:
        client.ping()
        before = client.stats()["connections"]
        key.write_text("not a key")
        server.process.send_signal(signal.SIGHUP)
        server.stderr.wait_for("certificates not replaced")
        assert issuer(server, authority.pem) == ((("commonName", "ca"),),)

        other = Authority(tmp_path, "other")
        for new, old in zip(other.issue("new"), (cert, key), strict=True):
            new.replace(old)
        server.process.send_signal(signal.SIGHUP)
        server.stderr.wait_for("certificates read again")
        assert issuer(server, other.pem) == ((("commonName", "other"),),)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(server, authority.pem)

        assert client.stats()["connections"] == before
    reason = server.logged("certificates not replaced")[0]["reason"]
    assert reason.startswith("tls.cert, tls.key:") and str(key) in reason


def test_an_idle_client_sees_that_the_server_went_and_came_back(start: Start, authority: Authority) -> None:
    server = start(config(*authority.issue("back")))
    with Client(url(server, ca=authority.pem), timeout=PATIENCE) as client:
        assert client.ping() == "pong"
        server.stop()
        again = start(config(*authority.issue("back")), "--listen", f"127.0.0.1:{server.port}")
        assert again.port == server.port
        assert client.ping() == "pong"


def test_a_wrong_token_is_answered_over_tls_too(start: Start, authority: Authority) -> None:
    tokens = f'[[tokens]]\nname = "one"\nrole = "read"\nsha256 = "{"0" * 64}"\n'
    server = start(config(*authority.issue("guarded")) + tokens)
    client = Client(url(server, ca=authority.pem), token="wrong", timeout=PATIENCE)
    with client, pytest.raises(Unauthorized, match="unknown token"):
        client.ping()


@pytest.mark.parametrize("name", ["ca", "cert"])
async def test_a_clients_file_that_cannot_be_used(secure: ServerProcess, tmp_path: Path, name: str) -> None:
    (tmp_path / "text").write_text("text")
    for path in (tmp_path / "missing", tmp_path / "text"):
        broken = url(secure, **{name: path})
        with Client(broken) as client, pytest.raises(ConfigError, match=f"{name}.*{path.name}"):
            client.ping()
        async with AsyncClient(broken) as aclient:
            with pytest.raises(ConfigError, match=f"{name}.*{path.name}"):
                await aclient.ping()
