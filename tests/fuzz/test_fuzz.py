"""Hostile byte streams against a real server (T7): each line gets its reply, and nobody else suffers.

``KQS_FUZZ`` sets how many lines (20,000) and ``KQS_SEED`` the seed; ``KQS_FUZZ_ONLY`` runs one session alone,
by the number that a failure names.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import struct
from collections import Counter
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import psutil

from kqs.client import AsyncClient, Client
from tests.support import PATIENCE, ServerProcess

from .lines import Call, call, hostile
from .oracle import ANY, Expected, expected_replies

LINES = int(os.environ.get("KQS_FUZZ", "20000"))
SEED = int(os.environ.get("KQS_SEED", "1"))
ONLY = os.environ.get("KQS_FUZZ_ONLY")
LIMIT = 65536
CONNECTIONS = 16
MIB = 1024 * 1024
#: What the server may use beyond what it used before, jobs aside.
BOUND = 150 * MIB
CONFIG = f"""
[limits]
line = {LIMIT}
in_flight = 50
[bulk]
threshold = 4096
[journal]
segment_size = 4194304
payload_window = 1048576
"""
_JOB_ID = re.compile(r"[0-9a-f]{8}-\d+")
_CODES = frozenset(("bad_request", "unknown_field", "too_large", "not_found", "unsupported"))
RESET = struct.pack("ii", 1, 0)


class Session:
    """One connection's life, a function of the seed and its number."""

    def __init__(self, number: int) -> None:
        self.name = f"seed {SEED}, session {number}"
        self.random = random = Random(f"{SEED}/{number}")
        self.calls: dict[str, Call] = {}
        lines = []
        share = random.choice((0.03, 0.1, 0.3, 1.0))  # a line that is no JSON ends the session
        for position in range(random.choice((1, 2, 5, 20, 40))):
            made = call(random, f"{number}.{position}")
            line = made.line
            if random.random() < share:
                line = hostile(random, line)
            else:
                self.calls[made.id] = made
            lines.append(line)
        self.size = len(lines)
        self.stream = b"\n".join(lines) + random.choice((b"", b"\n", b"\n\r\n"))
        self.end = random.choice(("read", "read", "read", "read", "reset", "leave"))

    def packets(self) -> list[bytes]:
        """The stream cut at random places."""
        stream, random = self.stream, self.random
        few = random.choice((0, 0, 1, 3, 30))
        cuts = sorted(random.randrange(len(stream) + 1) for _ in range(few))
        return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


class Harvest:
    """What all sessions together were told."""

    def __init__(self) -> None:
        self.accepted: set[str] = set()
        self.unknown = 0
        self.counts: Counter[str] = Counter()

    async def run(self, session: Session, port: int) -> None:
        expected = expected_replies(session.stream, LIMIT)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64 * MIB)
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        packets = session.packets()
        stop = session.random.randrange(len(packets) + 1) if session.end == "reset" else len(packets)
        reading = asyncio.ensure_future(_all(reader))
        try:
            for packet in packets[:stop]:
                writer.write(packet)
                await asyncio.sleep(0)
            if session.end == "read":
                writer.write_eof()
                await self._judge(session, expected, await asyncio.wait_for(reading, PATIENCE))
            else:
                self.unknown += sum(reply.jobs for reply in expected)
                if session.end == "reset":
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except OSError:
            # The server closes on a line it cannot read while more is being sent.
            self.unknown += sum(reply.jobs for reply in expected)
            self.counts["cut off"] += 1
        finally:
            reading.cancel()
            writer.transport.abort() if session.end == "reset" else writer.close()
            await asyncio.gather(reading, return_exceptions=True)
        self.counts[session.end] += 1
        self.counts["lines"] += session.size

    async def _judge(self, session: Session, expected: list[Expected], answer: bytes) -> None:
        assert answer.endswith(b"\n") or not answer, f"{session.name}: half a reply"
        replies = [self._read(session, line) for line in answer.split(b"\n")[:-1]]
        for reply in replies:
            self._check_form(session, reply)
        left = list(expected)
        told = Counter(reply.get("id") for reply in replies)
        for reply in sorted(replies, key=lambda reply: reply.get("id") is None):
            match = _match(left, reply.get("id"))
            assert match is not None, f"{session.name}: nobody asked for {reply}"
            left.remove(match)
            made = session.calls.get(reply.get("id"))
            if made is not None and told[made.id] == 1 and match.id == made.id:
                self._check_value(session, made, reply)
            self._note(reply, match)
        missing = [reply for reply in left if reply.must]
        assert not missing, f"{session.name}: no reply for {missing}"
        self.counts["replies"] += len(replies)

    @staticmethod
    def _read(session: Session, line: bytes) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = json.loads(line, parse_int=_integer)
        except (ValueError, RecursionError) as error:
            raise AssertionError(f"{session.name}: {error} in the reply {line[:1000]!r}") from None
        return reply

    def _check_form(self, session: Session, reply: dict[str, Any]) -> None:
        assert reply.keys() <= {"v", "id", "e", "s", "m", "b"}, f"{session.name}: {reply}"
        assert (reply["v"], reply["s"]) == (1, "end"), f"{session.name}: {reply}"
        if reply["e"] is not None:
            assert reply["e"]["_isError__"] is True and reply["e"]["message"]
            assert reply["e"]["code"] in _CODES, f"{session.name}: {reply}"
            self.counts[reply["e"]["code"]] += 1

    @staticmethod
    def _check_value(session: Session, made: Call, reply: dict[str, Any]) -> None:
        """A call that nothing was done to is answered as if it stood alone."""
        code = reply["e"] and reply["e"]["code"]
        assert code in (None, "not_found", "unsupported"), f"{session.name}: {made.line!r} got {reply}"
        if made.value is not ...:
            assert reply["m"] == made.value, f"{session.name}: {made.line!r} got {reply}"

    def _note(self, reply: dict[str, Any], match: Expected) -> None:
        """Jobs that were accepted."""
        value = reply.get("m")
        if match.jobs and isinstance(value, dict):
            ids = value.get("ids", [value.get("id")])
            self.accepted.update(id for id in ids if isinstance(id, str) and _JOB_ID.fullmatch(id))


def _match(expected: list[Expected], id: Any) -> Expected | None:
    """The expected reply this one must be."""
    fitting = [reply for reply in expected if reply.id == id or reply.id is ANY]
    if id is None:  # many may be without an id: those that must come go first
        return max(fitting, key=lambda reply: (reply.must, reply.id is None), default=None)
    return max(fitting, key=lambda reply: (reply.id == id, reply.must), default=None)


def _integer(text: str) -> int | str:
    """Python reads no numbers of more than 4300 digits."""
    return int(text) if len(text) < 4000 else text


async def _all(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while part := await reader.read(MIB):
        data += part
    return bytes(data)


async def _canary(url: str, worst: list[float]) -> None:
    """Ping all the time, and note the longest it took."""
    async with AsyncClient(url) as client:
        while True:
            began = monotonic()
            assert await asyncio.wait_for(client.ping(), PATIENCE) == "pong"
            worst[0] = max(worst[0], monotonic() - began)
            await asyncio.sleep(0.005)


async def _run_all(server: ServerProcess, harvest: Harvest, worst: list[float]) -> None:
    numbers = iter([int(ONLY)] if ONLY else range(1 << 62))

    async def peer() -> None:
        for number in numbers:
            if harvest.counts["lines"] >= LINES:
                return
            await harvest.run(Session(number), server.port)

    canary = asyncio.create_task(_canary(server.url, worst))
    async with asyncio.TaskGroup() as peers:
        for _ in range(CONNECTIONS):
            peers.create_task(peer())
    assert not canary.done(), "the canary was not answered"
    canary.cancel()


def _stored(client: Client) -> set[str]:
    """Ids of all jobs the server has."""
    found: set[str] = set()
    after: dict[str, str] = {}
    while True:
        page = client.call("jobs", {"limit": 1000, **after})
        found |= {job["id"] for job in page["jobs"]}
        if "next" not in page:
            return found
        after = {"after": page["next"]}


def test_every_line_gets_its_reply_and_nobody_suffers(tmp_path: Path) -> None:
    server, harvest, worst = ServerProcess(tmp_path, CONFIG).start(), Harvest(), [0.0]
    try:
        process = psutil.Process(server.pid)
        with server.client() as client:
            client.ping()
            before = process.memory_info().rss
            asyncio.run(_run_all(server, harvest, worst))
            stored = _stored(client)
            jobs = client.stats()["memory"]["bytes"]
            assert process.memory_info().rss - before - jobs < BOUND
        assert harvest.accepted <= stored, "an accepted job is not there"
        assert len(stored) <= len(harvest.accepted) + harvest.unknown, "a job nobody asked for is there"
        server.stop()
        unforeseen = [line for line in server.stderr.lines if not line.startswith("{")]
        assert unforeseen == [], "something was written past the log"
    finally:
        server.discard()
    print(f"seed {SEED}: {dict(harvest.counts)}, {len(stored)} jobs, longest ping {worst[0]:.3f} s")
    if not ONLY:
        assert (
            min(harvest.counts[kind] for kind in ("read", "reset", "leave", "bad_request", "too_large")) > 0
        )
