"""A server's side of the wire, scripted by a test: one function a connection, in a thread of its own.

It speaks through ``socket`` and ``json`` alone, so that it does not share the mistakes of what it tests.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from base64 import b64encode
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..core import qrpc

#: Seconds after which a test that hangs is given up.
PATIENCE = 10.0
#: A timeout that must pass: short, nothing is measured by it.
SHORT = 0.1


class Gone(Exception):
    """The client went away, or the test is over."""


class Line:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        sock.settimeout(PATIENCE)
        self.socket = sock
        self.number = number
        self._buffer = b""

    def call(self) -> dict[str, Any]:
        """The next call's members; raises Gone when there is none."""
        while b"\n" not in self._buffer:
            data = self._recv()
            if not data:
                raise Gone
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return qrpc.decode(line + b"\n")

    def _recv(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except TimeoutError:
            raise
        except OSError:
            return b""

    def wait_closed(self) -> None:
        """Return when the client has closed its side."""
        while self._recv():
            pass

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise
        except OSError:
            raise Gone from None

    def answer(self, call: dict[str, Any], /, **members: Any) -> None:
        """Any reply: its members after ``v`` and ``id``."""
        head = {"v": 1, **({"id": call["id"]} if "id" in call else {})}
        self.send(json.dumps({**head, **members}).encode() + b"\n")

    def reply(self, call: dict[str, Any], value: Any = None) -> None:
        """The last reply, of any value; bytes as the binary part."""
        if isinstance(value, bytes):
            text = b64encode(value).decode()
            line = f'{{"v":1,"b":{len(text)},"id":"{call["id"]}","e":null,"s":"end","b":"{text}"}}\n'
            self.send(line.encode())
        else:
            self.answer(call, e=None, s="end", m=value)

    def refuse(self, call: dict[str, Any], code: str, message: str = "no", **more: Any) -> None:
        self.answer(call, e={"_isError__": True, "message": message, "code": code, **more}, s="end")

    def reset(self) -> None:
        """End the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def serve(line: Line) -> None:
    """What a server does, as far as these tests need it."""
    accepted = 0
    while True:
        call = line.call()
        name, argument = call["n"], call.get("m")
        if name == "ping":
            line.reply(call, "pong")
        elif name == "echo":
            line.reply(call, call.get("b", argument))
        elif name == "insert":
            count = len(argument) if isinstance(argument, list) else 1
            ids = [f"{line.number}-{accepted + at}" for at in range(count)]
            accepted += len(ids)
            line.reply(call, {"ids": ids} if isinstance(argument, list) else {"id": ids[0]})
        else:
            line.refuse(call, "unsupported", f"{name}: no handler")


def take_and_close(line: Line) -> None:
    """Go away without a reply."""
    line.call()


def take_and_reset(line: Line) -> None:
    line.call()
    line.reset()


class Peer:
    """Listens on a port of loopback, or on a Unix socket.

    Args:
        scripts: what the first connection does, the second ..; the last one also does all that follow.
        path: of a Unix socket, instead of a port.

    Attributes:
        connections: how many were accepted.
    """

    def __init__(self, *scripts: Callable[[Line], None], path: str | None = None) -> None:
        self._scripts = scripts or (serve,)
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.url = f"kqs://127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            self._listener.listen()
            self.url = f"kqs+unix:{path}"
        self.connections = 0
        self._lines: list[Line] = []
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            line = Line(sock, self.connections)
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            thread = threading.Thread(target=self._run, args=(script, line), daemon=True)
            self._lines.append(line)
            self._threads.append(thread)
            self.connections += 1
            thread.start()

    def _run(self, script: Callable[[Line], None], line: Line) -> None:
        try:
            script(line)
        except Gone:
            pass
        except BaseException as error:
            self._errors.append(error)
        finally:
            line.socket.close()

    def close(self) -> None:
        """Stop listening and end every connection; raises what went wrong in a script."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._accepting.join(PATIENCE)
        for line in self._lines:
            try:
                line.socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(PATIENCE)
        if self._errors:
            raise self._errors[0]

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unused_url() -> str:
    """An address where nobody listens: the port was given to us, and given back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"kqs://127.0.0.1:{listener.getsockname()[1]}"


class DeafListener:
    """Takes no connections: its queue is full, so connecting hangs, as it does at a host that is gone."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self._fillers: list[socket.socket] = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            try:
                filler.connect(self._listener.getsockname())
            except BlockingIOError:
                pass
            self._fillers.append(filler)
        self.url = f"kqs://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> DeafListener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in [*self._fillers, self._listener]:
            sock.close()
