"""One seed: a server with its clients, its disk and its bad luck, from the first start to the last job."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

from ...core.job import DefaultsTable
from ...errors import DamagedJournal, DataDirError, NewerFormat
from ...service.app import Service
from ...service.server import Connection
from ...settings.config import BulkConfig, CallLogConfig, Config, JournalConfig, ServerConfig
from ...settings.handlers import Handlers
from ..clock import EPOCH
from ..disk import SimDisk
from ..faults import Fault, Operation
from .book import Book
from .clients import THRESHOLD, Inserter, Nuisance, Worker, World
from .loop import Stuck, Timeline, VirtualLoop
from .machine import Payloads, ServerLoop, SimHost
from .network import Network
from .peer import Peer, Sent
from .plan import Life, Trouble, make_plan

DATA = "/data"
#: Seconds within which all jobs are done once nothing goes wrong any more.
PATIENCE = 20.0
#: Nanoseconds within which what was admitted on a disk that was not full is written.
_ADMITTED = 60_000_000
#: Nanoseconds between a failure of the journal and the end of the server.
_LAST_WORDS = 100_000_000
_HANDLERS = Handlers([], DefaultsTable(), [], {})
_QUIET = CallLogConfig(slow=float("inf"), failed=False)


class Simulation:
    """A world with one server in it at a time, and its clients.

    Args:
        seed: decides everything.
        story: whether to keep what happens, a line each.

    Attributes:
        book: what was promised, and what was broken of it.
        counts: figures, by name: see :class:`~kqs.testing.simulation.runs.Report`.
        logs: what the server logged since it was last looked at.
        story: what happened.
        trace: hash over everything that happened, in order.
    """

    def __init__(self, seed: int, *, story: bool = False) -> None:
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.story: list[str] = []
        self._keep_story = story
        self.trace = hashlib.blake2b(digest_size=16)
        self._random = Random(f"{seed} world")
        self._plan = make_plan(Random(f"{seed} plan"))
        self._disk = SimDisk(seed)
        self._payloads = Payloads()
        self.book = Book(JournalConfig().key_window)
        self._timeline = Timeline(Random(f"{seed} order"))
        self._network = Network(Random(f"{seed} network"), self._witness, self._plan.buffer)
        self._outside = VirtualLoop(self._timeline, self.book.fail)  # type: ignore[abstract]
        self._world = World(
            self._network, self._outside, self.book, self._moment, self._may_fail, self._serving
        )
        self._set_by = 0.0  # seconds the wall clock was set forward, in all
        self._number = 0
        self._hosts: list[SimHost] = []
        self._troubles: list[Trouble] = []
        self.logs: list[Any] = []
        self._buried = 0
        self._timers: list[asyncio.TimerHandle] = []
        self._inserting: list[asyncio.Task[None]] = []
        journal = JournalConfig(
            segment_size=self._plan.segment_size, payload_window=self._plan.payload_window
        )
        self._config = Config(
            ServerConfig(data=DATA), journal=journal, bulk=BulkConfig(THRESHOLD), call_log=_QUIET
        )

    # -- time and record ------------------------------------------------------------------------

    def _wall(self) -> int:
        return EPOCH * 1000 + round(self._set_by * 1e9) + self._timeline.now

    def _moment(self, life: int = 0) -> Sent:
        """Now, by the clock of a life; of the last one when none is given."""
        life = life or self._number
        clock = self._hosts[life - 1].clock.now()
        self.book.latest = max(self.book.latest, clock)
        return Sent(life, self._timeline.now, clock)

    def _serving(self, life: int) -> bool:
        return life == self._number and self._server.alive and not self._asked

    def _may_fail(self, life: int) -> bool:
        trouble = self._troubles[life - 1]
        return trouble.errors > 0 or self._timeline.now < trouble.full_at + _ADMITTED

    def _witness(self, name: str, data: bytes) -> None:
        self.trace.update(b"%d %b %b" % (self._timeline.now, name.encode(), data))
        if self._keep_story:
            self._tell(f"-> {name}: {data!r}")

    def _inject(self, operation: Operation) -> Fault | None:
        fault = self._troubles[-1](operation)
        if self._troubles[-1].crashed:
            self._server.die()  # now: what an operation that never returned leads to must not be seen
        self.trace.update(
            b"%d %b %b %d %d"
            % (
                self._timeline.now,
                operation.kind.encode(),
                operation.path.encode(),
                operation.offset,
                operation.size,
            )
        )
        if self._keep_story:
            what = f"{operation.kind} {operation.path} {operation.offset} {operation.size}"
            self._tell(f"   {what} {'' if fault is None else fault}")
        return fault

    def _tell(self, text: str) -> None:
        if self._keep_story:
            self.story.append(f"{self._timeline.seconds():9.4f}  {text}")

    # -- lives ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Everything, until the last job is done or something is wrong."""
        plan, seed = self._plan, self.seed
        clients: list[Inserter | Worker | Nuisance] = [Nuisance(self._world, Random(f"{seed} nuisance"))]
        clients += [
            Inserter(self._world, Random(f"{seed} insert {number}"), f"{number}-")
            for number in range(plan.inserters)
        ]
        clients += [Worker(self._world, Random(f"{seed} work {number}")) for number in range(plan.workers)]
        tasks = [self._outside.create_task(client.run()) for client in clients]
        self._inserting = [
            task for client, task in zip(clients, tasks, strict=True) if isinstance(client, Inserter)
        ]
        try:
            for life in plan.lives:
                self._live(life)
                if self.book.wrong or self.book.tail_cut:
                    return
            self._finish()
        except Stuck as stuck:
            self.book.fail(str(stuck))
        finally:
            for task in tasks:
                if task.done() and (error := task.exception()) is not None:
                    self.book.fail(f"a client failed: {error!r}")
            self._outside.die()
            self._outside.clear()
            self.counts["calls"] = self._world.calls
            self.counts["accepted"] = sum(job.answered for job in self.book.jobs.values())
            self.counts["lost"] = sum(text.startswith("lost") for text in self.book.wrong)

    def _started(self) -> None:
        """The server takes calls."""
        life = self._troubles[-1].life
        self._troubles[-1].started = True
        if life.room is not None and life.full_from > 0:
            self._timers.append(self._outside.call_later(life.full_from, self._get_full, life.room))

    def _start(self, life: Life) -> tuple[ServerLoop, asyncio.Task[int]]:
        """A new process on the machine."""
        self._number += 1
        self._asked = False
        self.counts["lives"] += 1
        self._tell(f"== life {self._number}: {life}")
        trouble = Trouble(life, Random(f"{self.seed} trouble {self._number}"))
        self._troubles.append(trouble)
        loop = ServerLoop(self._timeline, self.book.fail, self._network)  # type: ignore[abstract]
        random = Random(f"{self.seed} host {self._number}")
        host = SimHost(
            loop,
            self._disk.attach(),
            self._wall,
            self._payloads,
            random,
            life.bulk_failing,
            self._started,
        )
        self._hosts.append(host)
        self.book.life_begins(self._number, host.clock.now())
        self._server = loop
        self._disk.inject = self._inject
        service = Service(self._config, _HANDLERS, host=host)
        return loop, loop.create_task(service.run())

    def _live(self, life: Life) -> None:
        """One troubled life, and a look at how it ended."""
        if life.flip:  # alone, so that it is known what came of it
            life = replace(life, crash_at=0, error_at=0, read_error_at=0, room=None)
        self._set_by += life.jump
        self.counts["clock jumps"] += bool(life.jump) + bool(life.jump_within)
        flipped = self._flip() if life.flip else None
        before = self._disk.files() if flipped else {}
        if life.room is not None and not life.full_from:
            self._fill(life.room)
        loop, task = self._start(life)
        trouble = self._troubles[-1]
        timers: list[tuple[Any, ...]] = [(life.full_from + life.full_for, self._fill, None)]
        if life.jump_within:
            timers.append((life.seconds / 2, self._set_clock, life.jump_within))
        over = False

        def end() -> None:
            nonlocal over
            over = True

        if life.end == "quit":
            timers += [(life.seconds, self._ask_to_quit), (life.seconds + PATIENCE, end)]
        else:
            timers.append((life.seconds, end))
        self._timers = [self._outside.call_later(seconds, *work) for seconds, *work in timers]
        self._timeline.run(
            lambda: over or trouble.crashed or task.done() or bool(self.book.wrong) or self._cut(life)
        )
        for timer in self._timers:
            timer.cancel()
        self._fill(None)
        self.counts["I/O errors"] += trouble.errors
        self.counts["short writes"] += trouble.shorts
        self._end(loop, task, life, flipped, before)

    def _end(
        self,
        loop: ServerLoop,
        task: asyncio.Task[int],
        life: Life,
        flipped: tuple[str, int, int] | None,
        before: dict[str, bytes],
    ) -> None:
        """See how a life ended, and whether it may have; clear up after it."""
        trouble, log = self._troubles[-1], [entry["event"] for entry in self.logs]
        cleanly = False
        if trouble.crashed or not task.done():
            if life.end == "quit" and not (trouble.crashed or self.book.wrong or self.book.tail_cut):
                self.book.fail("the server was asked to quit and did not")
            how = "kill" if life.end == "kill" else "power cut"
        elif (error := task.exception()) is None:
            how = "quit" if task.result() == 0 else "journal failed"
            cleanly = task.result() == 0
            for connection in self._network.protocols(loop):
                if cleanly and isinstance(connection, Connection) and connection.in_flight:
                    self.book.fail("the server quit with calls taken and not answered")
            failed_at = self._timeline.now - _LAST_WORDS
            if not cleanly and not trouble.errors and failed_at > trouble.full_at + _ADMITTED:
                self.book.fail(f"the journal failed without a fault: {log[-1]}")
        else:
            how = "start refused"
            self._look_at_refusal(error, life, flipped, before)
        if trouble.went_on:
            self.book.fail(f"after an operation of the disk had failed: {trouble.went_on}")
        for entry in self.logs:
            if entry["log_level"] == "error" and not (trouble.errors or trouble.crashed):
                self.book.fail(f"logged: {entry}")
        self.logs.clear()
        self._tell(f"== {how}")
        self.counts[how] += 1
        loop.die()
        self._network.died(loop)
        if how == "power cut" or trouble.remount:
            self._disk.crash()
        else:
            self._disk.revive()
            if how == "journal failed" and self._random.random() < 0.5:
                self._disk.evict()
        loop.clear()
        self.book.life_over(self._number, self._moment().clock, cleanly=cleanly)
        if flipped and how == "start refused":
            self._disk.flip(*flipped)

    def _look_at_refusal(
        self,
        error: BaseException,
        life: Life,
        flipped: tuple[str, int, int] | None,
        before: dict[str, bytes],
    ) -> None:
        """A start was refused: for a reason, and leaving the data alone."""
        if isinstance(error, DamagedJournal | NewerFormat) and flipped:
            self.counts["damage refused"] += 1
            if self._disk.files() != before:
                self.book.fail(f"a start that was refused changed files: {error}")
        elif type(error) is not DataDirError or not (self._troubles[-1].errors or life.room is not None):
            self.book.fail(f"the server did not start: {error!r}")

    def _flip(self) -> tuple[str, int, int] | None:
        """Turn a bit of some file over, most often of one with something in it; returns which."""
        files = {path: data for path, data in self._disk.files().items() if data}
        if not files:
            return None
        named = [path for path in files if path.endswith((".seg", "/manifest"))]
        path = self._random.choice(named or sorted(files))
        end = min(len(files[path]), len(files[path].rstrip(b"\0")) + 20)
        flip = (path, self._random.randrange(end), self._random.randrange(8))
        self._disk.flip(*flip)
        self.counts["bit flips"] += 1
        self._tell(f"== bit {flip[2]} of byte {flip[1]} of {path} is turned over")
        return flip

    def _cut(self, life: Life) -> bool:
        """Whether the server took what a turned bit left for an unfinished frame, cut it, and said so."""
        if life.flip and any("was cut" in entry["event"] for entry in self.logs):
            self.book.tail_cut = True
        return self.book.tail_cut

    def _fill(self, room: int | None) -> None:
        """Let the disk have only so many bytes left, or enough again."""
        self._disk.capacity = None
        if room is not None:
            free, total = self._disk.free(DATA)
            self._disk.capacity = total - free + room
            self.counts["full disks"] += 1

    def _get_full(self, room: int) -> None:
        """The disk gets full under a server that may have just found space for a large call."""
        self._troubles[-1].full_at = self._timeline.now
        self._fill(room)

    def _set_clock(self, seconds: float) -> None:
        self._set_by += seconds

    def _ask_to_quit(self) -> None:
        peer = Peer.connect(self._network, self._outside, self._moment)
        if peer is not None:
            self._asked = True
            peer.make([("quit", {"grace": 1})])
        else:  # it does not listen yet
            self._timers.append(self._outside.call_later(0.01, self._ask_to_quit))

    # -- the last life --------------------------------------------------------------------------

    def _finish(self) -> None:
        """Nothing goes wrong any more: every job comes to its end. Then once more: it stays there."""
        self._world.busy = False
        latest = self.book.latest / 1e6 - self._wall() / 1e9
        self._set_by += max(latest, 0.0)
        quiet = Life(PATIENCE, "quit")
        for look in (self._drain, self._look_again):
            loop, task = self._start(quiet)
            self._tell("== quiet")
            looking = self._outside.create_task(look())
            over = self._outside.call_later(2 * PATIENCE, lambda: None)
            until = self._timeline.now + 2 * PATIENCE * 1e9
            self._timeline.run(
                lambda: task.done() or bool(self.book.wrong) or self._timeline.now >= until  # noqa: B023
            )
            over.cancel()
            if looking.done() and looking.exception() is not None:
                self.book.fail(f"looking failed: {looking.exception()!r}")
            self._end(loop, task, quiet, None, {})
            if self.book.wrong:
                return

    async def _drain(self) -> None:
        """Wait until nothing is left to do, take stock, and end the server."""
        peer = Peer.connect(self._network, self._outside, self._moment)
        while peer is None:
            await asyncio.sleep(0.01)
            peer = Peer.connect(self._network, self._outside, self._moment)
        jobs: dict[str, int] = {}
        await asyncio.wait(self._inserting, timeout=PATIENCE)
        deadline = self._timeline.seconds() + PATIENCE
        while self._timeline.seconds() < deadline:
            jobs = (await peer.call("stats")).value["jobs"]
            if not (jobs["ready"] or jobs["delayed"] or jobs["reserved"]):
                break
            await asyncio.sleep(0.05)
        else:
            self.book.fail(f"no progress: after {PATIENCE:g} s there are {jobs}")
        listed = (await peer.call("jobs", {"state": "buried", "limit": 1000})).value["jobs"]
        buried = {}
        for job in listed:
            buried[job["id"]] = (await peer.call("job", {"id": job["id"], "data": True})).value["data"]
        self.book.finish(buried)
        self._asked = True
        self._buried = len(buried)
        await peer.call("quit")

    async def _look_again(self) -> None:
        """After one more start nothing has come back."""
        peer = None
        while peer is None:
            await asyncio.sleep(0.01)
            peer = Peer.connect(self._network, self._outside, self._moment)
        jobs = (await peer.call("stats")).value["jobs"]
        if (jobs["ready"], jobs["delayed"], jobs["reserved"], jobs["buried"]) != (0, 0, 0, self._buried):
            self.book.fail(f"after all was done and {self._buried} buried, a start finds {jobs}")
        await peer.call("quit")
