"""Clients of the simulated server: they insert, work, are a nuisance, and remember what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from .book import Book
from .loop import VirtualLoop
from .network import Network
from .peer import Answer, Lost, Peer, Sent
from .records import Job, Lease

TYPES = ("a", "b")
#: Payloads above this many bytes go to the bulk store.
THRESHOLD = 1500
#: Their id is none that a client counts to.
_BAD_LINES = (
    b'{"v":1,"id":"-","n":"insert","m":{"type":""}}\n',
    b'{"v":1,"id":"-","n":"insert","m":{"type":"a","delay":-1}}\n',
    b'{"v":1,"id":"-","n":"insert","m":[{"type":"a"},{"type":"a","prio":"top"}]}\n',
    b'{"v":1,"id":"-","n":"insert","m":[]}\n',
    b'{"v":1,"id":"-","n":"insert","m":{"type":"a","unheard":1}}\n',
    b'{"v":1,"id":"-","n":"settle","m":[{"receipt":"1-1-1"}]}\n',
    b'{"v":1,"id":"-","n":"nosuch"}\n',
    b'{"v":2,"id":"-","n":"ping"}\n',
)
_ENDING_LINES = (b"no json\n", b'{"v":1,"id":"-","n":"insert"\n', b"\x00\xff\n", b"GET / HTTP/1.1\r\n\r\n")


class World:
    """What a client needs of the simulation.

    Args:
        network: how the server is reached.
        loop: the clients'.
        book: where everything is written down.
        moment: life and time now, or of an earlier life's clock.
        failed: whether a life's journal was made to fail.
        serving: whether a life goes on, and nobody asked it to end.
    """

    def __init__(
        self,
        network: Network,
        loop: VirtualLoop,
        book: Book,
        moment: Callable[..., Sent],
        failed: Callable[[int], bool],
        serving: Callable[[int], bool],
    ) -> None:
        self.network = network
        self.loop = loop
        self.book = book
        self.moment = moment
        self.failed = failed
        self.serving = serving
        #: Whether clients still think of new jobs, and of mischief.
        self.busy = True
        self.calls = 0


class _Client:
    """Somebody who connects and connects again.

    Args:
        world: where it is.
        random: of what it does.
    """

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.random = random
        self.peer: Peer | None = None

    async def connection(self) -> Peer:
        """A connection that stands, as far as one knows."""
        while self.peer is None or self.peer.over.is_set():
            self.peer = Peer.connect(self.world.network, self.world.loop, self.world.moment)
            if self.peer is None or self.peer.over.is_set():
                await asyncio.sleep(0.002 + 0.004 * self.random.random())
        return self.peer

    async def pause(self) -> None:
        await asyncio.sleep(self.random.choice((0.0, 0.001, 0.002, 0.005, 0.02)))


class Inserter(_Client):
    """Inserts singles, bursts and arrays; with a key it inserts again what was not answered, and what was."""

    def __init__(self, world: World, random: Random, name: str) -> None:
        super().__init__(world, random)
        self._name = name
        self._count = 0

    async def run(self) -> None:
        while self.world.busy:
            await self.pause()
            peer = await self.connection()
            draw = self.random.random()
            jobs = self._again() if draw < 0.25 else []
            if not jobs:
                jobs = [self._job() for _ in range(self.random.choice((1, 1, 1, 2, 3, 5)))]
            if self.random.random() < 0.5 or len(jobs) == 1:
                calls = [[job] for job in jobs]
            else:
                calls = [jobs]
            await self._insert(peer, calls)

    def _job(self, key: str | None = None) -> Job:
        random = self.random
        self._count += 1
        name = f"{self._name}{self._count}"
        draw = random.random()
        length = 0 if draw < 0.7 else 400 if draw < 0.97 else THRESHOLD
        if random.random() < 0.3:
            key = f"key {name}"
        return Job(
            name + "." * length,
            random.choice(TYPES),
            random.choice(("urgent", "normal", "normal", "bulk")),
            random.choice((0.0, 0.0, 0.0, 0.02, 0.1)),
            random.choice((0.05, 0.1, 0.3)),
            random.choice((0, 0, 0, 2, 3)),
            key,
            0,
        )

    def _again(self) -> list[Job]:
        """Jobs with a key that somebody sent before."""
        book = self.world.book
        keys = [key for key in book.keys if book.remembers(key)]
        return [book.keys[key] for key in self.random.sample(keys, min(len(keys), 2))]

    async def _insert(self, peer: Peer, calls: list[list[Job]]) -> None:
        book, random = self.world.book, self.random
        sent = self.world.moment(peer.life)
        lines: list[tuple[str, Any]] = []
        for jobs in calls:
            number = book.next_call()
            for job in jobs:
                job.call = job.call or number
                book.inserting(job, sent)
            single = len(jobs) == 1 and random.random() < 0.8
            argument = jobs[0].inserted() if single else [job.inserted() for job in jobs]
            lines.append(("insert", argument))
        futures = peer.make(lines)
        self.world.calls += len(futures)
        draw = random.random()
        halved = 0.05 <= draw < 0.1
        if draw < 0.05:
            peer.drop()
        elif halved:
            peer.half_close()
        for jobs, future in zip(calls, futures, strict=True):
            try:
                answer = await future
            except Lost:
                if halved and not peer.lost and self.world.serving(peer.life):
                    book.fail("a call before a half-close was not answered")
                continue
            large = any(len(job.payload) >= THRESHOLD for job in jobs)
            book.inserted(jobs, answer, large=large, failed=self.world.failed(peer.life))
        if halved:
            await peer.over.wait()


class Worker(_Client):
    """Reserves, and settles, renews, forgets, is late, or says things twice."""

    def __init__(self, world: World, random: Random) -> None:
        super().__init__(world, random)
        self._held: list[Lease] = []
        self._past: list[tuple[Lease, str, float]] = []

    async def run(self) -> None:
        while True:
            await self.pause()
            peer = await self.connection()
            try:
                draw = self.random.random()
                if self._held and draw < 0.5:
                    await self._settle(peer)
                elif self._held and draw < 0.6:
                    await self._renew(peer)
                elif self._past and draw < 0.65 and self.world.busy:
                    await self._repeat(peer)
                elif self._held and draw < 0.7 and self.world.busy:
                    self._held.pop(0)  # its time will run out
                elif draw < 0.73 and self.world.busy:
                    peer.drop()
                else:
                    await self._reserve(peer)
            except Lost:
                continue

    async def _call(self, peer: Peer, name: str, argument: Any) -> Answer:
        self.world.calls += 1
        answer = await peer.call(name, argument)
        if answer.error is not None and not (
            answer.error.code == "internal" and self.world.failed(answer.sent.life)
        ):
            self.world.book.fail(f"{name} was refused: {answer.error.code}: {answer.error.message}")
        return answer

    async def _reserve(self, peer: Peer) -> None:
        random, book = self.random, self.world.book
        argument: dict[str, Any] = {"max": random.choice((1, 1, 2, 5)), "wait": random.choice((0, 0, 0.02))}
        if self.world.busy and random.random() < 0.5:
            argument["types"] = [random.choice(TYPES)]
        answer = await self._call(peer, "reserve", argument)
        if answer.error is not None:
            return
        views = answer.value["jobs"]
        book.ordered(views)
        for view in views:
            lease = book.leased(view, answer)
            if lease is not None:
                self._held.append(lease)

    def _outcome(self) -> tuple[str, float]:
        draw = self.random.random()
        delay = self.random.choice((0.0, 0.01, 0.05))
        if draw < 0.65 or not self.world.busy:
            return "ok", delay
        return ("again" if draw < 0.8 else "release" if draw < 0.93 else "fail"), delay

    async def _settle(self, peer: Peer) -> None:
        count = self.random.randrange(1, 4)
        leases, self._held = self._held[:count], self._held[count:]
        said = [(lease, *self._outcome()) for lease in leases]
        self._past = (self._past + said)[-20:]
        await self._say(peer, said)

    async def _repeat(self, peer: Peer) -> None:
        """Say again what was said before, or something else."""
        lease, outcome, delay = self.random.choice(self._past)
        if self.random.random() < 0.3:
            outcome = self.random.choice(("ok", "again", "fail", "release"))
        await self._say(peer, [(lease, outcome, delay)])

    async def _say(self, peer: Peer, said: list[tuple[Lease, str, float]]) -> None:
        book = self.world.book
        sent = self.world.moment(peer.life)
        stale = [book.settling(lease, outcome, sent) for lease, outcome, _delay in said]
        argument = []
        for lease, outcome, delay in said:
            settlement: dict[str, Any] = {"receipt": lease.receipt, "outcome": outcome}
            if outcome in ("again", "release"):
                settlement["delay"] = delay
            if outcome in ("again", "fail"):
                settlement["reason"] = "so it is"
            argument.append(settlement)
        answer = await self._call(peer, "settle", argument)
        if answer.error is not None:
            return
        codes = {refusal["index"]: refusal["code"] for refusal in answer.value["refused"]}
        for index, (lease, outcome, delay) in enumerate(said):
            book.settled(lease, outcome, delay, answer, codes.get(index), stale=stale[index])

    async def _renew(self, peer: Peer) -> None:
        leases = self.random.sample(self._held, min(len(self._held), 2))
        answer = await self._call(peer, "renew", {"receipts": [lease.receipt for lease in leases]})
        if answer.error is not None:
            return
        for lease in leases:
            self.world.book.renewed(lease, lease.receipt in answer.value["renewed"], answer)


class Nuisance(_Client):
    """Asks for figures, sends what nobody can read, does not read what it is sent."""

    async def run(self) -> None:
        while self.world.busy:
            await self.pause()
            await self.pause()
            peer = await self.connection()
            try:
                await self.random.choice(
                    (self._ping, self._stats, self._burst, self._bad, self._ending, self._stall)
                )(peer)
            except Lost:
                continue

    async def _ping(self, peer: Peer) -> None:
        if (await peer.call("ping")).value != "pong":
            self.world.book.fail("ping was not answered with pong")

    async def _stats(self, peer: Peer) -> None:
        answer = await peer.call("stats")
        if answer.error is not None or min(answer.value["jobs"].values()) < 0:
            self.world.book.fail(f"stats: {answer}")

    async def _burst(self, peer: Peer) -> None:
        """Many calls in one write, and half a call behind them that never ends."""
        count = self.random.randrange(2, 30)
        for future in peer.make([("ping", None)] * count):
            await future
        peer.write(b'{"v":1,"id":"never","n":"ins')
        peer.drop()

    async def _bad(self, peer: Peer) -> None:
        """Lines that are refused; what comes behind them is answered."""
        lines = b"".join(self.random.sample(_BAD_LINES, 2))
        answers = peer.make([("ping", None)], before=lines)
        if (await answers[0]).value != "pong":
            self.world.book.fail("ping behind bad lines was not answered with pong")

    async def _ending(self, peer: Peer) -> None:
        """A line after which the server hangs up; what was asked before is answered."""
        before = peer.make([("ping", None)])
        await before[0]
        peer.write(self.random.choice(_ENDING_LINES))
        await peer.over.wait()

    async def _stall(self, peer: Peer) -> None:
        futures = peer.make([("echo", "e" * 300)] * self.random.randrange(1, 12))
        peer.stall(True)
        await asyncio.sleep(0.05 * self.random.random())
        peer.stall(False)
        for future in futures:
            answer = await future
            if answer.value != "e" * 300:
                self.world.book.fail("echo did not say the same")
