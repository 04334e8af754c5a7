"""Random operations on an engine, restarts among them, against a model.

::

    TestMyEngine = engine_machine(MyHarness, examples=300)

The engine's time must be virtual. Operations fall on whole seconds and everything that time brings about on
half ones, so that an engine may be a little late without a difference. An engine's capabilities say which
rules apply to it, and what the model is to expect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from unittest import TestCase

import pytest
from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import UNSET, Raw
from msgspec.structs import replace

from kqs.core.job import PRIOS, JobOptions, NewJob, Unique
from kqs.core.outcome import Settlement
from kqs.core.retry import RetryPolicy
from kqs.errors import Conflict, NotFound
from kqs.ports import Selection

from .engine_model import Model, ModelJob
from .engines.harness import EngineHarness, Queue, new_job

T = TypeVar("T")

TYPES = ("a", "b", "c")
HOLDERS = ("w1", "w2")
WAITS = st.sampled_from([0.5, 2.5, 7.5, 60.5])
PAYLOADS = st.sampled_from(
    [
        (b"null", False),
        (b'{"a": [1, 2.0]}', False),
        (b"", True),
        (bytes(range(256)), True),
        (b"KFRM" * 700, True),
        (b'"%s"' % (b"x" * 5000), False),
    ]
)
PRIO = st.sampled_from(PRIOS)
#: Counts back from the latest of a list; most often one of the last few.
RECENT = st.one_of(st.integers(0, 3), st.integers(0, 60))


def _job(
    type: str,
    payload: tuple[bytes, bool],
    prio: str,
    waits: tuple[float, ...],
    most: int,
    rare: tuple[float, float, Unique | None],
    fair: str | None,
) -> NewJob:
    (data, binary), (delay, ttr, wait), (expires, result_ttl, unique) = payload, waits, rare
    return new_job(
        type,
        data,
        binary=binary,
        prio=prio,
        delay=delay,
        ttr=ttr,
        max_attempts=most,
        retry=RetryPolicy("fixed", base=wait, jitter=0),
        expires=expires,
        result_ttl=result_ttl,
        fair=fair,
        unique=unique,
    )


_jobs = st.builds(
    _job,
    st.sampled_from(TYPES),
    PAYLOADS,
    PRIO,
    st.tuples(st.sampled_from([0.0, 0.0, 2.5, 60.5]), WAITS, WAITS),
    st.sampled_from([0, 0, 1, 2, 4]),
    st.tuples(
        st.sampled_from([0.0, 0.0, 5.5, 61.5]),
        st.sampled_from([0.0, 9.5, 100_000.5]),
        st.sampled_from([None, None, Unique("u"), Unique("u", "queued"), Unique("v", "queued")]),
    ),
    st.sampled_from([None, None, "k1", "k2"]),
)
_settlements = st.tuples(
    RECENT,
    st.sampled_from(["ok", "again", "fail", "release"]),
    st.one_of(st.none(), st.just(0.0), WAITS),
    st.one_of(st.none(), PRIO),
)


class EngineMachine(RuleBasedStateMachine):
    """The rules; :func:`engine_machine` says which engine they are for."""

    make_harness: Callable[[], EngineHarness]

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.ids: list[str] = []
        self.restarted = False
        self.reasons = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return self.loop.run_until_complete(work)
        finally:
            if self.harness.is_gone():
                reject()

    @initialize()
    def open(self) -> None:
        self.harness = type(self).make_harness()
        self.queue = Queue(self.harness, self.run(self.harness.make_engine()))
        self.can = self.queue.engine.capabilities
        self.model.lasting = "leases" in self.can
        self.model.fair = "fair_share" in self.can

    def teardown(self) -> None:
        try:
            if hasattr(self, "queue"):
                self.run(self._compare())
                self.run(self._finish_everything())
        finally:
            if hasattr(self, "harness"):
                self.loop.run_until_complete(self.harness.close())
            self.loop.close()

    # -- rules ----------------------------------------------------------------------------------

    @rule(jobs=st.lists(_jobs, min_size=1, max_size=5))
    def put(self, jobs: list[NewJob]) -> None:
        for job in jobs:
            job.options = self._possible(job.options)
        inserted = self.run(self.queue.engine.put(jobs))
        for position, (id, job) in enumerate(zip(inserted.ids, jobs, strict=True)):
            standing = self.model.standing(job.type, job.options.unique)
            assert (position in inserted.duplicates) == (standing is not None)
            if standing is not None:
                assert id == standing.id
                continue
            assert id not in self.model.jobs, "an id was given twice"
            assert job.options.retry is not None
            self.ids.append(id)
            delay = job.delay / 1e6
            self.model.add(
                ModelJob(
                    id,
                    len(self.ids),
                    job.type,
                    job.data,
                    job.binary,
                    job.prio,
                    job.ttr / 1000,
                    job.options.max_attempts,
                    job.options.retry.base,
                    "delayed" if delay else "ready",
                    self.model.now + delay,
                    fair=job.options.fair,
                    expires=self.model.now + job.options.expires / 1e6 if job.options.expires else None,
                    result_ttl=job.options.result_ttl / 1e6,
                    unique=job.options.unique,
                )
            )

    def _possible(self, options: JobOptions) -> JobOptions:
        """The settings of a job that the engine can take."""
        if "unique" not in self.can:
            options = replace(options, unique=None)
        if "fair_share" not in self.can:
            options = replace(options, fair=None)
        if "expiry" not in self.can:
            options = replace(options, expires=0)
        if "results" not in self.can:
            options = replace(options, result_ttl=0)
        return options

    @rule(
        types=st.frozensets(st.sampled_from((*TYPES, "none")), max_size=2),
        limit=st.integers(1, 6),
        holder=st.sampled_from(HOLDERS),
        local=st.booleans(),
    )
    def reserve(self, types: frozenset[str], limit: int, holder: str, local: bool) -> None:
        expected = min(limit, len(self.model.ready(types)))
        leases = self.run(self.queue.take(limit, types, holder=holder, local=local))
        assert len(leases) == expected
        for lease in leases:
            assert lease.id in self.model.may_be_next(types)
            job = self.model.jobs[lease.id]
            assert lease.receipt not in self.model.receipts, "a receipt was given twice"
            self.model.lease(job, lease.receipt, holder, local)
            got = (lease.type, lease.data, lease.binary, lease.prio, lease.ttr, lease.attempt, lease.deaths)
            assert got == (job.type, job.data, job.binary, job.prio, job.ttr, job.attempt, job.deaths)
            assert lease.wants_result == bool(job.result_ttl)

    def _receipt(self, back: int) -> str:
        receipts = self.model.receipts
        return receipts[-1 - back % len(receipts)] if receipts else "none"

    @rule(choices=st.lists(_settlements, min_size=1, max_size=4))
    def settle(self, choices: list[tuple[int, Any, float | None, Any]]) -> None:
        settlements = []
        for back, outcome, delay, prio in choices:
            self.reasons += 1
            reason = f"reason {self.reasons}"
            result = Raw(b"%d" % self.reasons) if outcome == "ok" and "results" in self.can else UNSET
            settlements.append(
                Settlement(self._receipt(back), outcome, result, delay=delay, prio=prio, reason=reason)
            )
        refused = self.run(self.queue.engine.settle(settlements))
        codes = {refusal.index: refusal.code for refusal in refused}
        for index, settlement in enumerate(settlements):
            assert codes.get(index) in self.model.settle(settlement)

    @rule(backs=st.lists(RECENT, min_size=1, max_size=3))
    def renew(self, backs: list[int]) -> None:
        receipts = [self._receipt(back) for back in backs]
        assert self.run(self.queue.engine.renew(receipts)) == [self.model.renew(r) for r in receipts]

    @rule(backs=st.lists(RECENT, min_size=1, max_size=3), died=st.booleans(), alone=st.booleans())
    def rescue(self, backs: list[int], died: bool, alone: bool) -> None:
        self.reasons += 1
        reason = f"reason {self.reasons}"
        receipts = [self._receipt(back) for back in backs]
        self.run(self.queue.engine.rescue(receipts, died=died, alone=alone, reason=reason))
        for receipt in receipts:
            self.model.rescue(receipt, died, alone, reason)

    @precondition(lambda self: "inspect" in self.can)
    @rule(
        verb=st.sampled_from(["kick", "bury", "delete", "cancel"]),
        backs=st.lists(RECENT, min_size=1, max_size=3),
    )
    def control(self, verb: str, backs: list[int]) -> None:
        ids = [self.ids[-1 - back % len(self.ids)] for back in backs] if self.ids else []
        jobs = [self.model.jobs[id] for id in dict.fromkeys(ids)]
        allowed = all(self.model.allows(verb, job) for job in jobs)
        if allowed and (verb != "kick" or self.model.kickable(jobs) == jobs):
            assert self.run(self.queue.engine.control(verb, Selection(ids))) == len(jobs)
            for job in jobs:
                self.model.control(verb, job)
        else:
            errors = (Conflict, NotFound) if any(job.state == "done" for job in jobs) else (Conflict,)
            with pytest.raises(errors):
                self.run(self.queue.engine.control(verb, Selection(ids)))

    @rule(
        verb=st.sampled_from(["kick", "bury", "delete", "cancel"]),
        type=st.one_of(st.none(), st.sampled_from(TYPES)),
        state=st.sampled_from(["delayed", "ready", "reserved", "buried"]),
        limit=st.one_of(st.none(), st.integers(1, 3)),
    )
    def control_all(self, verb: str, type: str | None, state: str, limit: int | None) -> None:
        if "inspect" not in self.can:  # it cannot tell which jobs are first
            limit = None
        if verb == "cancel" and "cancel" not in self.can:
            return
        jobs = [job for job in self.model.in_state(state) if type in (None, job.type)]
        jobs = self.model.kickable(jobs, limit) if verb == "kick" else jobs[:limit]
        control = self.queue.engine.control(verb, Selection(type=type, state=state, limit=limit))
        barred = (verb == "kick" and state not in ("delayed", "buried")) or (verb, state) == (
            "bury",
            "buried",
        )
        if barred or (state == "reserved" and not self.model.lasting):
            with pytest.raises(Conflict):
                self.run(control)
            return
        assert self.run(control) == len(jobs)
        for job in jobs:
            self.model.control(verb, job)

    @rule(type=st.sampled_from(TYPES), paused=st.booleans())
    def pause(self, type: str, paused: bool) -> None:
        self.run(self.queue.engine.pause(type, paused))
        (self.model.paused.add if paused else self.model.paused.discard)(type)

    @rule(seconds=st.one_of(st.integers(1, 10), st.sampled_from([70, 86400])))
    def advance(self, seconds: int) -> None:
        if self.model.lasting:
            self._pass(seconds)
            return
        for _second in range(min(seconds, 70)):  # a lease that nobody rescues ends by itself a little later
            told = self._pass(1)
            self.run(self.queue.engine.rescue(told, overdue=True, reason="its time was over"))
            for receipt in told:
                self.model.rescue(receipt, False, True, "its time was over")

    def _pass(self, seconds: int) -> list[str]:
        """Let time pass; returns the receipts of the leases that end."""
        told = sorted(expired.receipt for expired in self.run(self.queue.advance(seconds)))
        assert told == sorted(self.model.advance(seconds))
        return told

    @rule(way=st.sampled_from(["restart", "crash"]))
    def restart(self, way: str) -> None:
        self.restarted = True
        self.run(self.queue.restart(way))
        told = self.model.restart()
        expired = self.run(self.queue.advance(0))
        assert sorted(lease.receipt for lease in expired) == sorted(told)
        self.run(self._compare())

    # -- comparing ------------------------------------------------------------------------------

    @invariant()
    def figures_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        counts, engine = self.run(self.queue.counts()), self.queue.engine
        for state in ("delayed", "ready", "reserved", "buried", "done"):
            # What is done may be forgotten by a restart, and what was deleted by one that can't tell of jobs.
            if state != "done" or not (self.restarted or "inspect" not in self.can):
                assert counts[state] == len(self.model.in_state(state)), state
        ready = [job.type for job in self.model.in_state("ready") if job.type not in self.model.paused]
        assert self.run(engine.paused()) == sorted(self.model.paused)
        assert dict(self.run(engine.ready_types())) == {type_: ready.count(type_) for type_ in set(ready)}
        for holder in HOLDERS:
            held = [r for r, job in self.model.leased.items() if job.lease and job.lease.holder == holder]
            found = engine.held_by(holder)
            assert sorted(found) == sorted(held)
            assert self.restarted or found == held
        self._check_wake()

    def _check_wake(self) -> None:
        """The engine wants to be woken in time for what comes next."""
        times = [
            job.due for job in self.model.in_state("delayed") if self.model.lasting or not self.restarted
        ]
        times += [job.lease.expires for job in self.model.leased.values() if job.lease and not job.lease.told]
        if times:
            wake = self.queue.engine.next_wake()
            assert wake is not None
            assert (wake - self.harness.now()) / 1e6 <= min(times) - self.model.now + self.harness.slack

    async def _compare(self) -> None:
        """Every job is as the model says."""
        if "inspect" not in self.can:
            states = await self.queue.states(self.ids)
            assert states == [self.model.jobs[id].state for id in self.ids]
            return
        views = {view["id"]: view for view in await self.queue.everything()}
        assert list(views) == [job.id for job in self.model.jobs.values() if job.state != "done"]
        for id, view in views.items():
            job = self.model.jobs[id]
            got = (view["state"], view["type"], view["attempt"], view["prio"], view.get("deaths", 0))
            assert got == (job.state, job.type, job.attempt, PRIOS[job.prio], job.deaths)
            message = view.get("last_error", {}).get("message")
            assert (message is None) == (job.error is None)
            assert job.error is None or job.error in message
            assert view.get("leased_by") == (job.lease.holder if job.lease else None)
        for job in self.model.jobs.values():
            if job.result is not None and job.kept_until > self.model.now:
                kept = await self.queue.view(job.id)
                assert (kept["state"], kept["outcome"], kept["result"]) == ("done", "ok", job.result)

    async def _finish_everything(self) -> None:
        """Whatever has happened, every job that is not done can be run to its end, in order."""
        engine, model = self.queue.engine, self.model
        for type_ in list(model.paused):
            await engine.pause(type_, False)
            model.paused.discard(type_)
        await engine.rescue(list(model.leased), reason="the end")
        for receipt in list(model.leased):
            model.rescue(receipt, False, True, "the end")
        while left := model.in_state("buried", "delayed", "ready"):  # unique ones go one after the other
            stuck = model.kickable([job for job in left if job.state != "ready"])
            if "inspect" in self.can:
                assert await engine.control("kick", Selection([job.id for job in stuck])) == len(stuck)
            else:
                kicked = [await engine.control("kick", Selection(state=s)) for s in ("buried", "delayed")]
                assert sum(kicked) == len(stuck)
            for job in stuck:
                model.control("kick", job)
            expected = len(model.ready(frozenset()))
            leases = await self.queue.take(len(model.jobs) + 1)
            assert len(leases) == expected
            for lease in leases:
                assert lease.id in model.may_be_next(frozenset())
                assert lease.data == model.jobs[lease.id].data
                model.lease(model.jobs[lease.id], lease.receipt, "worker", False)
            settlements = [Settlement(lease.receipt, "ok") for lease in leases]
            assert await engine.settle(settlements) == []
            for settlement in settlements:
                model.settle(settlement)
        counts = await self.queue.counts()
        assert sum(counts[state] for state in ("delayed", "ready", "reserved", "buried")) == 0


def engine_machine(
    make_harness: Callable[[], EngineHarness], *, examples: int, steps: int = 50
) -> type[TestCase]:
    """The machine for one engine, as a test case.

    Args:
        make_harness: makes a harness with new, empty data.
        examples, steps: how many, of how many operations each.
    """

    class Machine(EngineMachine):
        pass

    Machine.make_harness = staticmethod(make_harness)
    Machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    case: type[TestCase] = Machine.TestCase
    return case
