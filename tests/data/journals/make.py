"""Made the golden journals: ``python -m tests.data.journals.make`` writes the cases of the newest format.

What is expected of a case is what the engine that wrote it said of its jobs, and what the promises say a
restart makes of that; it does not come from reading the journal back. The journals are functions of the seeds
here and of the code of that day. They are made once: a folder that is there is refused, and a new format gets
cases beside the old ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import Raw
from tests.journal.golden import JOURNALS, state_of

from kqs.core.job import PRIO_NUMBER, PRIOS, BulkRef, JobOptions, NewJob, Unique, UniqueScope
from kqs.core.outcome import OutcomeName, Reason
from kqs.core.record import FORMAT
from kqs.core.retry import RetryPolicy
from kqs.engines.embedded.show import iso
from kqs.journal.recovery import TORN_SKIP
from kqs.journal.space import BALLAST, is_spare
from kqs.ports import BulkStore, Lease, Selection
from kqs.testing.embedded import SimulatedHarness, come_to_rest, open_embedded
from kqs.testing.engines import Queue, new_job
from kqs.testing.executor import InlineExecutor

#: Small, so that a few jobs fill segments.
SEGMENT_SIZE = 4096
LOCAL = "a worker of this server"


class _Store(BulkStore):
    """A bulk store on the simulated disk; names follow from the content."""

    def __init__(self, harness: _Harness) -> None:
        self._harness = harness

    def path(self, name: str) -> str:
        return f"{self._harness.directory}/bulk/{name}"

    async def put(self, data: bytes) -> BulkRef:
        digest = hashlib.sha256(data).hexdigest()
        self._harness.disk.put(self.path(digest[:32]), data)
        return BulkRef(digest[:32], digest, len(data))

    async def get(self, ref: BulkRef) -> bytes:
        return self._harness.disk.content(self.path(ref.name))

    async def delete(self, refs: Sequence[BulkRef]) -> None:
        for ref in refs:
            self._harness.disk.unlink(self.path(ref.name))

    async def close(self) -> None:
        pass


class _Harness(SimulatedHarness):
    segment_size = SEGMENT_SIZE

    async def make_engine(self) -> Any:
        executor = InlineExecutor(asyncio.get_running_loop())
        place = (self.disk.attach(), executor, self.directory, self.clock, self._random)
        self.engine = open_embedded(*place, segment_size=self.segment_size, bulk=_Store(self))
        return self.engine


class Maker(Queue):
    """A life of an engine, and notes of what a restart must know of it.

    Attributes:
        known_keys: jobs by the key that must still be known.
        settled: receipts with an outcome, and the code with which that is refused, or None.
        stored: payloads in the bulk store by name, as shown.
        torn: where a tail was torn that nobody has cut yet.
        results: JSON texts by job; None where a result was kept and is forgotten.
        paused: types.
        kicked: jobs that have no expiry any more, as they were kicked and then carried.
        standing: the jobs that stand, by "TYPE KEY".
    """

    harness: _Harness

    def __init__(self, harness: _Harness, engine: Any) -> None:
        super().__init__(harness, engine)
        self.known_keys: dict[str, str | None] = {}
        self.settled: list[tuple[str, str, str | None]] = []
        self.stored: dict[str, dict[str, str]] = {}
        self.torn: str | None = None
        self.results: dict[str, str | None] = {}
        self.paused: list[str] = []
        self.kicked: list[str] = []
        self.standing: dict[str, str] = {}

    async def end(self, lease: Lease, outcome: OutcomeName, **rest: Any) -> None:
        assert await self.settle(lease, outcome, **rest) is None
        self.settled.append((lease.receipt, outcome, None))
        other = "ok" if outcome == "fail" else "fail"
        self.settled.append((lease.receipt, other, "stale_receipt"))

    async def end_with(self, lease: Lease, result: str) -> None:
        """An attempt succeeds and returns a JSON text that is kept."""
        assert await self.settle(lease, "ok", result=Raw(result.encode())) is None
        self.results[lease.id] = result

    async def put_keyed(self, key: str, **settings: Any) -> str:
        job = new_job(**settings)
        job.options = JobOptions(key=key)
        [id] = await self.put(job)
        self.known_keys[key] = id
        return id

    def stored_job(self, data: bytes, *, binary: bool = False, **settings: Any) -> NewJob:
        """A job whose payload is in the bulk store."""
        digest = hashlib.sha256(data).hexdigest()
        name = digest[:32]
        self.harness.disk.put(f"{self.harness.directory}/bulk/{name}", data)
        self.stored[name] = {"data64": b64encode(data).decode()} if binary else {"data": data.decode()}
        job = new_job(data=b"", binary=binary, **settings)
        job.options = JobOptions(bulk=BulkRef(name, digest, len(data)))
        return job

    async def compact(self) -> None:
        """Have the engine give up all the segments it can."""
        while True:
            before = (await self.engine.stats())["journal"]
            await self.engine.tick()
            await come_to_rest(200)
            if (await self.engine.stats())["journal"] == before:
                return

    def tear(self, size: int) -> None:
        """Leave the first bytes of a frame behind the last one, as a power cut may."""
        journal = self.engine.journal
        number, end = journal.open_segment, journal._open_end
        path = f"{self.harness.directory}/journal/{number:010d}.seg"
        data = bytearray(self.harness.disk.content(path))
        data[end : end + size] = b"KFRM" + bytes(range(1, size - 3))
        self.harness.disk.put(path, bytes(data))
        self.torn = f"{number:010d}.torn-{end}"

    async def expected(self, state: dict[str, Any]) -> dict[str, Any]:
        """What a restart now must find, given what the engine tells before it."""
        now = self.harness.now()
        released = 0
        for view in state["jobs"]:
            if view["id"] in self.kicked:
                del view["options"]["expires"]
            if (ref := view["options"].get("bulk")) is not None:
                view |= self.stored[ref["name"]]
            if view.get("leased_by") == LOCAL:  # its worker dies with the server
                del view["leased_by"], view["lease_expires_at"]
                if not (await self.engine.stats())["journal"]["carried"]:
                    del view["started_at"]  # stands in the lease, or in a carry entry
                view |= {"state": "ready", "attempt": view["attempt"] - 1, "due_at": iso(now)}
                released += 1
            elif view["state"] == "delayed" and view["due_at"] <= iso(now):
                view["state"] = "ready"
        if self.engine.journal.oldest_segment > 1:
            state["done"] = []  # they went with their segments
        for view in state["done"]:
            if "last_error" not in view:
                view.pop(
                    "started_at", None
                )  # stands in the lease, which an ended job's record does not lead to
        states = [view["state"] for view in state["jobs"]]
        ready = [view for view in state["jobs"] if view["state"] == "ready"]
        ready.sort(key=lambda view: (PRIO_NUMBER[view["prio"]], int(view["id"].rpartition("-")[2])))
        held = [view for view in state["jobs"] if view["state"] == "reserved"]
        receipts = {self.engine._ledger.id_of(job.number): r for r, job in self.engine._index.leases.items()}
        return {
            **state,
            "opened_at": now,
            "epoch": self.engine.journal.epoch + 1,
            "torn": self.torn,
            "next_sequence": state["next_sequence"] + released + (TORN_SKIP if self.torn else 0),
            "counts": {name: states.count(name) for name in ("delayed", "ready", "reserved", "buried")}
            | {"done": len(state["done"])},
            "known_keys": self.known_keys,
            "settled": self.settled,
            "leases": {receipts[view["id"]]: view["leased_by"] for view in held},
            "order": [view["id"] for view in ready if view["type"] not in self.paused],
            "results": self.results,
            "paused": self.paused,
            "standing": self.standing,
            "crons": msgspec.to_builtins(await self.engine.fired()),
        }


# -- the cases ----------------------------------------------------------------------------------


async def empty(m: Maker) -> None:
    """A server that was started and stopped."""


async def singles(m: Maker) -> None:
    """One job a call: every priority, types and payloads at their limits, bytes that are no JSON."""
    for prio in reversed(PRIOS):
        await m.put_one(prio=prio, data=b'{"prio":"%s"}' % prio.encode())
    await m.put_one("x", b"null")
    await m.put_one("\N{SNOWMAN}" * 65 + "ab", '"\N{PILE OF POO}\\u0000"'.encode())
    await m.put_one(data=b' [ 1e999 , {"a":-0.0} ] ')
    await m.put_one(data=bytes(range(256)), binary=True)
    await m.put_one(data=b"", binary=True)
    await m.put_one(data=b"KFRM" * 20, binary=True)
    await m.put_one(ttr=0.001)
    await m.put_one(ttr=2_592_000)


async def batches(m: Maker) -> None:
    """Calls of many jobs, through several segments, one larger than a segment."""
    for number in range(6):
        await m.put(*(new_job(f"type-{n % 3}", b'"%d/%d"' % (number, n)) for n in range(12)))
    await m.put(*(new_job("large", b'"%s"' % (b"%d" % n * 1500)) for n in range(4)))
    await m.put_one("last")


async def delays(m: Maker) -> None:
    """Delays that are over at the start, that are not yet, and that never will be."""
    for delay in (0.000001, 1, 60, 60.5, 3600, 3_153_600_000):
        await m.put_one(delay=delay)
    await m.advance(1)
    lease = await m.take_one()
    await m.end(lease, "again", delay=30, reason="not yet")
    lease = await m.take_one()
    await m.end(lease, "release", delay=3000)
    await m.harness.advance(59.25)


async def ends(m: Maker) -> None:
    """Every way an attempt or a job ends."""
    policy = RetryPolicy("linear", 10, 100, 0)
    await m.put(*(new_job(data=b"%d" % n) for n in range(9)))
    await m.put(new_job("limited", max_attempts=1), new_job("policy", max_attempts=7, retry=policy))
    await m.harness.advance(1)
    leases = await m.take(9)
    await m.harness.advance(1)
    await m.end(leases[0], "ok")
    await m.end(leases[1], "again", delay=5, prio="high", reason="said so")
    await m.end(leases[2], "fail", reason=Reason("no such file: \x00\x1b[31m", "OSError", "Traceback: ..\n"))
    await m.end(leases[3], "release", delay=0)
    await m.engine.rescue([leases[4].receipt], reason="ttr of 30 s exceeded")
    await m.engine.control("delete", Selection([leases[5].id]))
    await m.engine.control("bury", Selection([leases[6].id]))
    await m.engine.control("bury", Selection([leases[7].id]))
    await m.engine.control("kick", Selection([leases[7].id]))
    for _ in range(3):
        await m.engine.rescue([leases[8].receipt], died=True, reason="the worker was killed by signal 9")
        await m.advance(10)
        taken = await m.take(20, ["t"])
        for lease in taken:
            if lease.id == leases[8].id:
                leases[8] = lease
            else:
                await m.end(lease, "release")
    await m.end(await m.take_one(["limited"]), "again", reason="once is enough")
    await m.end(await m.take_one(["policy"]), "again", reason="by its policy")
    await m.engine.control("delete", Selection([(await m.put_one())]))
    assert m.counts() == {"delayed": 1, "ready": 4, "reserved": 0, "buried": 4, "done": 3}


async def leases(m: Maker) -> None:
    """Leases that are out: renewed, over, of an earlier epoch, of a worker that dies with the server."""
    await m.put(*(new_job(data=b"%d" % n, ttr=10 + n) for n in range(6)))
    await m.take_one(holder="remote 1")
    await m.restart()
    renewed, _over = await m.take(2, holder="remote 2")
    await m.take_one(holder=LOCAL, local=True)
    await m.advance(8)
    assert await m.engine.renew([renewed.receipt]) == [True]
    await m.take_one(holder="\N{SNOWMAN} 3")
    await m.harness.advance(8)


async def keys(m: Maker) -> None:
    """Idempotency keys: of a job that waits, one that is done, one that was deleted; and one that is free."""
    for key in ("k", "\N{SNOWMAN}" * 85, "x" * 255):
        await m.put_keyed(key)
    await m.end(await m.take_one(), "ok")
    await m.engine.control("delete", Selection([m.known_keys["x" * 255] or ""]))
    await m.put(*(NewJob("t", b"1", False, 2, 0, 1000, JobOptions(key=f"batch {n}")) for n in range(3)))
    m.known_keys["free"] = None


async def bulk(m: Maker) -> None:
    """Payloads in the bulk store: JSON, bytes, one of a job that is leased, one in a batch with a key."""
    await m.put(m.stored_job(b'"%s"' % (b"0" * 300)), m.stored_job(bytes(range(256)), binary=True))
    await m.put(m.stored_job(b'"%s"' % (b"2" * 300)))
    await m.take_one(holder="remote")
    job = m.stored_job(b"[]" + b" " * 300)
    job.options = JobOptions(3, RetryPolicy("fixed", 1, 1, 0), job.options.bulk, "with a key")
    ids = await m.put(new_job(), job)
    m.known_keys["with a key"] = ids[1]


async def carried(m: Maker) -> None:
    """Jobs of every state, keys and leases that compaction carried forward, some of them twice."""
    await m.put_keyed("of a job that stays", type="stays", prio="bulk")
    await m.put_keyed("of a job that is done", type="ends")
    await m.end(await m.take_one(["ends"]), "ok")
    m.settled.clear()  # its segment will be gone, and what was settled there
    await m.put_one("stays", bytes(range(200, 256)), binary=True, prio="bulk")
    await m.put_one("stays", prio="bulk", delay=5000, ttr=77, max_attempts=9)
    await m.put(m.stored_job(b" [ ] " * 50, type="stays", prio="bulk"))
    await m.put(*(new_job("worked on", b"%d" % n) for n in range(5)))
    await m.harness.advance(1)
    taken = await m.take(5, ["worked on"], holder="remote")
    await m.harness.advance(1)
    await m.settle(taken[0], "again", delay=600, prio="low", reason="carried with its error")
    await m.settle(taken[1], "fail", reason=Reason("gone", "OSError", "Traceback\n"))
    await m.engine.rescue([taken[2].receipt], died=True, reason="signal 9")
    await m.put_one("local")
    await m.take_one(["local"], holder=LOCAL, local=True)
    for _ in range(3):
        for _ in range(30):
            await m.put_one("short", b'"%s"' % (b"s" * 300))
            assert await m.settle(await m.take_one(["short"])) is None
        await m.compact()
        await m.harness.advance(1)
        assert await m.engine.renew([taken[3].receipt]) == [True]
    await m.put(*(new_job("after", b'"%s"' % (b"a" * 600)) for _ in range(12)))
    await m.end(taken[4], "again", delay=60, reason="after it was carried")
    assert (await m.engine.stats())["journal"]["carried"] >= 30
    assert m.engine.journal.oldest_segment > 5


async def torn(m: Maker) -> None:
    """A torn tail that a start has cut: its bytes are kept, a frame without entries holds the jump."""
    await m.put(new_job(), new_job())
    m.tear(100)
    await m.restart("crash")
    m.torn = None
    await m.put_one()
    await m.restart()
    await m.put_one()


async def unfinished(m: Maker) -> None:
    """A power cut a moment ago: a torn frame stands behind the last one."""
    await m.put(new_job(), new_job())
    await m.end(await m.take_one(), "ok")
    m.tear(200)


async def leftovers(m: Maker) -> None:
    """What crashes leave: spares, a manifest not swapped in, segments dropped or not yet listed."""
    ids = await m.put(*(new_job(data=b'"%s"' % (b"d" * 300)) for _ in range(12)))
    await m.put_one("stays")
    disk, folder = m.harness.disk, f"{m.harness.directory}/journal"
    first = disk.content(f"{folder}/{1:010d}.seg")
    await m.engine.control("delete", Selection(ids))
    await m.put(*(new_job("stays", b'"%s"' % (b"s" * 300)) for _ in range(12)))
    await m.compact()
    assert m.engine.journal.oldest_segment > 1
    disk.put(f"{folder}/{1:010d}.seg", first)
    unlisted = m.engine.journal.open_segment + 1
    disk.put(f"{folder}/{unlisted:010d}.seg", bytes(SEGMENT_SIZE))
    disk.put(f"{m.harness.directory}/manifest.new", b'{"format":1,"jour')


# -- what format 2 added -----------------------------------------------------------------------------


async def results(m: Maker) -> None:
    """Results: small, of a job with a key, in the bulk store, and one whose time is over."""
    await m.put(*(new_job(data=b"%d" % n, result_ttl=3600) for n in range(3)))
    await m.end_with(await m.take_one(), '{ "a": [1e999, "\\u0000"] }')
    await m.end_with(await m.take_one(), '"%s"' % ("r" * 70_000))
    await m.end_with(await m.take_one(), "null")
    job = new_job("keyed")
    job.options = JobOptions(key="of a result", result_ttl=3_600_000_000)
    [id] = await m.put(job)
    m.known_keys["of a result"] = id
    await m.end_with(await m.take_one(["keyed"]), "7")
    await m.put_one("short", result_ttl=1)
    short = await m.take_one(["short"])
    await m.end_with(short, '"%s"' % ("s" * 70_000))
    await m.put_one("kept none")
    await m.end(await m.take_one(["kept none"]), "ok", result=Raw(b"1"))
    await m.advance(2)
    m.results[short.id] = None


async def expiry(m: Maker) -> None:
    """Jobs that expired waiting, delayed, released; kicked since; that run on, or have time yet."""
    await m.put(new_job("waits", expires=10), new_job("waits", expires=10, delay=5))
    await m.put(*(new_job("runs", b"%d" % n, expires=10, ttr=1000) for n in range(3)))
    await m.put(new_job("later", expires=3600), new_job("later", expires=3600, delay=1800))
    runs = await m.take(3, ["runs"])
    await m.advance(11)
    await m.end(runs[0], "release")
    await m.end(runs[1], "again", reason="too late for another attempt")
    kicked = await m.put_one("kicked", expires=1)
    again = await m.put_one("kicked", expires=1)
    await m.advance(2)
    await m.engine.control("kick", Selection([kicked, again]))
    await m.advance(100)
    assert m.counts() == {"delayed": 1, "ready": 3, "reserved": 1, "buried": 4, "done": 0}


async def cancels(m: Maker) -> None:
    """Cancelled while it waited, while it ran and still does, and then every way its attempt may end."""
    ids = await m.put(*(new_job(data=b"%d" % n, ttr=1000) for n in range(7)))
    await m.engine.control("cancel", Selection([ids[0]]))
    taken = await m.take(6, holder="remote")
    await m.engine.control("cancel", Selection([lease.id for lease in taken[:5]]))
    await m.end(taken[0], "ok")
    assert await m.settle(taken[1], "again", reason="stopped") is None
    await m.engine.rescue([taken[2].receipt], reason="ttr of 1000 s exceeded")
    await m.restart()
    assert await m.settle(taken[3], "fail", reason="stopped") is None
    assert await m.engine.renew([taken[4].receipt]) == ["cancelled"]
    assert m.counts()["reserved"] == 2


async def pauses(m: Maker) -> None:
    """Types that are paused, one that was and goes on, one without a job."""
    await m.put(*(new_job(type) for type in ("a", "b", "\N{SNOWMAN}", "a")))
    for type in ("a", "b", "\N{SNOWMAN}", "none of these"):
        await m.engine.pause(type, True)
    await m.engine.pause("b", False)
    await m.engine.pause("a", True)
    m.paused = sorted(["a", "\N{SNOWMAN}", "none of these"])
    await m.end(await m.take_one(), "again", delay=0)


async def carried_on(m: Maker) -> None:
    """Results, a kicked expiry, a cancelled lease and pauses that compaction carried forward."""
    await m.put(*(new_job("result", b"%d" % n, result_ttl=100_000) for n in range(2)))
    await m.end_with(await m.take_one(["result"]), "[1, 2]")
    await m.end_with(await m.take_one(["result"]), '"%s"' % ("r" * 70_000))
    stays = await m.put_one("stays", expires=1, result_ttl=5)
    await m.put_one("stays", expires=100_000, delay=50_000)
    await m.advance(2)
    await m.engine.control("kick", Selection([stays]))
    m.kicked.append(stays)
    cancelled, runs = await m.put(*(new_job("runs", ttr=100_000) for _ in range(2)))
    await m.take(2, ["runs"], holder="remote")
    await m.engine.control("cancel", Selection([cancelled]))
    for type in ("paused", "goes on"):
        await m.put_one(type)
        await m.engine.pause(type, True)
    await m.engine.pause("goes on", False)
    m.paused = ["paused"]
    for _ in range(3):
        for _ in range(33):
            await m.put_one("short", b'"%s"' % (b"s" * 300))
            assert await m.settle(await m.take_one(["short"])) is None
        await m.compact()
        await m.harness.advance(1)
    await m.put(*(new_job("after", b'"%s"' % (b"a" * 600)) for _ in range(14)))
    await m.compact()
    assert (await m.engine.job(cancelled))["cancelled"] and "cancelled" not in await m.engine.job(runs)
    assert m.engine.journal.oldest_segment > 5


# -- what format 3 added -----------------------------------------------------------------------------


async def unique(m: Maker) -> None:
    """Unique jobs of both scopes that wait, run, ended, came back beside another; some that were carried."""

    async def put(type: str, key: str, scope: UniqueScope = "queued_or_running", **settings: Any) -> str:
        id = await m.put_one(type, unique=Unique(key, scope), **settings)
        m.standing[f"{type} {key}"] = id
        return id

    for key in ("k", "\N{SNOWMAN}" * 85):
        await put("waits", key)
        await put("delayed", key, "queued", delay=5000)
    for scope in get_args(UniqueScope):
        await put("runs", scope, scope, ttr=100_000)
        await m.take_one(["runs"], holder="remote")
    del m.standing["runs queued"]
    await put("back", "k", "queued")
    lease = await m.take_one(["back"])
    buried = await put("back", "k", "queued")
    await m.engine.control("bury", Selection([buried]))
    await put("back", "k")
    await m.end(lease, "again", reason="too late")
    m.settled.clear()  # its segment will be gone
    for number in range(3):
        for _ in range(30):
            await m.put_one("short", b'"%s"' % (b"s" * 300), unique=Unique("s"))
            assert await m.settle(await m.take_one(["short"])) is None
        await m.compact()
        await put("after", f"{number}", prio="low")
    again = await m.take_one(["after"])
    await m.end(again, "again", delay=60, reason="stands")
    assert (await m.engine.stats())["journal"]["carried"] >= 8
    assert (m.counts()["buried"], m.counts()["reserved"]) == (2, 2)


async def crons(m: Maker) -> None:
    """Marks of crons: with jobs, moved since, ended and begun anew; two of them carried forward."""
    at = m.harness.now()
    for name in ("early", "moved"):
        await m.engine.fire(name, at, [new_job(name, b"%d" % n) for n in range(2)])
    await m.engine.fire("moved", at + 60_000_000, [])
    for _ in range(3):
        for _ in range(33):
            await m.put_one("short", b'"%s"' % (b"s" * 300))
            assert await m.settle(await m.take_one(["short"])) is None
        await m.compact()
        await m.harness.advance(1)
    for name in ("ended", "anew"):
        await m.engine.fire(name, at, [new_job(name)])
        await m.engine.forget_cron(name)
    await m.engine.fire("anew", at - 60_000_000, [])
    assert m.engine.journal.oldest_segment > 5


async def fair(m: Maker) -> None:
    """Jobs with fairness keys: waiting, running, back, parked, carried; a pause that says by whom."""
    for key in ("ann", "\N{SNOWMAN}" * 85):
        await m.put(*(new_job("a", b"%d" % n, fair=key, prio=PRIOS[n]) for n in range(3)))
        await m.put_one("a", fair=key, delay=5000)
    await m.put_one("a")
    for outcome, rest in (("again", {"delay": 0}), ("fail", {})):
        await m.end(await m.take_one(["a"]), outcome, **rest)  # type: ignore[arg-type]
    await m.take(2, ["a"], holder="remote")
    await m.engine.pause("b", True, by="ada")
    m.paused = ["b"]
    await m.put_one("b", fair="ann")
    m.settled.clear()  # their segment will be gone
    for _ in range(3):
        for _ in range(33):
            await m.put_one("short", b'"%s"' % (b"s" * 300), fair="short")
            assert await m.settle(await m.take_one(["short"])) is None
        await m.compact()
    assert (await m.engine.stats())["journal"]["carried"] >= 9


#: By format: what a new one can hold, and the ones before it could not.
CASES: dict[int, tuple[Callable[[Maker], Awaitable[None]], ...]] = {
    1: (
        empty,
        singles,
        batches,
        delays,
        ends,
        leases,
        keys,
        bulk,
        carried,
        torn,
        unfinished,
        leftovers,
    ),
    2: (results, expiry, cancels, pauses, carried_on),
    3: (unique, crons, fair),
}


async def make(folder: Path, case: Callable[[Maker], Awaitable[None]], seed: int) -> None:
    """Write one case."""
    harness = _Harness(seed)
    harness.segment_size = SEGMENT_SIZE if case is not ends else 4 * SEGMENT_SIZE
    maker = Maker(harness, await harness.make_engine())
    await case(maker)
    await come_to_rest()
    expected = {"about": case.__doc__, **await maker.expected(await state_of(maker.engine))}
    for path, data in harness.disk.files().items():
        name = path.rpartition("/")[2]
        if case is leftovers or not (is_spare(name) or name == BALLAST):
            target = folder / "data" / path.removeprefix(f"{harness.directory}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data if name != BALLAST else data[:SEGMENT_SIZE])
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def main() -> None:
    home = JOURNALS / f"format-{FORMAT}"
    for seed, case in enumerate(CASES[FORMAT], 1):
        if (home / case.__name__).exists():
            print(f"{home / case.__name__} is there already, and golden: left alone", file=sys.stderr)
        else:
            asyncio.run(make(home / case.__name__, case, seed))


if __name__ == "__main__":
    main()
