"""A local HTTP server for tests of HTTP handlers: it answers as told, badly too, and notes what it got."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

PATIENCE = 60.0


class Seen(NamedTuple):
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes


class Exchange(BaseHTTPRequestHandler):
    """One connection; the functions of :attr:`Target.answers` answer its requests with it."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.target.seen.append(Seen(self.path, headers, self.body))
        self.server.target.answers[self.path](self)

    do_GET = do_POST

    def reply(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        """A whole response; ``_`` in the names of headers stands for ``-``."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def raw(self, data: bytes) -> None:
        """Bytes as they are, then the end of the connection."""
        self.wfile.write(data)
        self.close_connection = True

    def reset(self) -> None:
        """End the connection with RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def hang(self, head: bytes = b"") -> None:
        """Say that it has begun, and then nothing more, until the caller goes away."""
        self.wfile.write(head)
        self.server.target.begun.set()
        self.close_connection = True
        self.connection.settimeout(PATIENCE)
        try:
            if self.connection.recv(1):
                return
        except ConnectionError:
            pass
        self.server.target.left.set()

    def trickle(self, head: bytes, part: bytes = b"x") -> None:
        """One part after the other, until the caller goes away."""
        self.close_connection = True
        self.wfile.write(head)
        pause = threading.Event()
        try:
            while not pause.wait(0.01):
                self.wfile.write(part)
        except OSError:
            self.server.target.left.set()

    def log_message(self, *_args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    target: Target

    def handle_error(self, *_args: object) -> None:
        """A caller that went away is part of the tests."""

    def get_request(self) -> tuple[socket.socket, object]:
        self.target.connections += 1
        return super().get_request()


class Target:
    """The server, in threads of its own.

    Attributes:
        answers: what answers a path.
        seen: the requests, in order.
        connections: how many came.
        begun, left: a request hangs; its caller went away.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Callable[[Exchange], None]] = {}
        self.seen: list[Seen] = []
        self.connections = 0
        self.begun = threading.Event()
        self.left = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Exchange)
        self._server.target = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self._scheme = "http" if tls is None else "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()
