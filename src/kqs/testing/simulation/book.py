"""What clients were told, and what that allows: the oracle of the simulation.

Everything here follows from what went over the wire and when. What cannot be known from outside (whether a
call without a reply was done) is allowed both ways; all else is held against the promises of
docs/guarantees.md. Times are the server's own, microseconds since 1970, read when a call was sent, which is
before the server took it, and when its reply came, which is after.
"""

from __future__ import annotations

from typing import Any

from ...core.job import PRIO_NUMBER
from .peer import Answer, Sent
from .records import Job, Lease

#: Answers that say that nothing was done.
NOT_DONE = frozenset({"busy", "disk_full", "shutting_down"})


class Book:
    """All that was attempted and promised.

    Args:
        key_window: seconds the server remembers an idempotency key.

    Attributes:
        wrong: what must not happen and did, in words.
        jobs: all jobs ever sent, by payload.
        tail_cut: whether the server said that it cut an unfinished frame after a bit was flipped; what was
            accepted last may then be gone (docs/guarantees.md, G6).
    """

    def __init__(self, key_window: float) -> None:
        self.wrong: list[str] = []
        self.jobs: dict[str, Job] = {}
        self.keys: dict[str, Job] = {}
        self.leases: dict[str, Lease] = {}
        self.tail_cut = False
        self.latest = 0
        self._window = key_window * 1e6
        self._by_id: dict[str, Job] = {}
        self._unsynced: list[tuple[Sent, Lease, int]] = []
        self._calls = 0
        self._starts: dict[int, int] = {}
        self._ends = {0: 0}
        self._cleanly: dict[int, bool] = {}

    def fail(self, text: str) -> None:
        """Something is wrong."""
        self.wrong.append(text)

    # -- inserts --------------------------------------------------------------------------------

    def next_call(self) -> int:
        """A number for an insert call."""
        self._calls += 1
        return self._calls

    def remembers(self, key: str) -> bool:
        """Whether the server must remember a key, however its clock was set meanwhile."""
        return self.latest - self.keys[key].earliest < self._window

    def inserting(self, job: Job, sent: Sent) -> None:
        """A job goes out."""
        if job.payload not in self.jobs:
            self.jobs[job.payload] = job
            if job.key is not None:
                self.keys[job.key] = job
        job.earliest = min(job.earliest, sent.clock)
        job.doubt += 1
        due = sent.clock + round(job.delay * 1e6)
        if job.delay and (job.due is None or due < job.due):
            job.due, job.due_since = due, job.due_since or sent.life

    def inserted(self, jobs: list[Job], answer: Answer, *, large: bool, failed: bool) -> None:
        """An insert was answered.

        Args:
            jobs: the call's.
            answer: the reply.
            large: whether a payload had to go to the bulk store, which may fail.
            failed: whether this life's journal was made to fail.
        """
        error = answer.error
        if error is not None:
            if error.code in NOT_DONE or (error.code == "internal" and large and "bulk" in error.message):
                for job in jobs:
                    job.doubt -= 1
            elif error.code != "internal" or not failed:
                self.fail(f"insert was refused: {error.code}: {error.message}")
            return
        value = answer.value
        single = "id" in value
        ids = [value["id"]] if single else value["ids"]
        known = set(value.get("duplicates", ())) if not single else ({0} if value.get("duplicate") else set())
        if len(ids) != len(jobs):
            self.fail(f"{len(jobs)} jobs were answered with {len(ids)} ids")
            return
        for position, (job, id) in enumerate(zip(jobs, ids, strict=True)):
            job.answered = True
            self._identify(job, id, answer.came)
            if position not in known:
                job.inserts += 1
                if job.inserts > 1:
                    self.fail(f"key {job.key} inserted {job.payload!r} twice")
            elif job.key is None:
                self.fail(f"{id} is called a duplicate, and had no key")
        if len(known) < len(jobs):
            self.synced(answer.sent)

    def _identify(self, job: Job, id: str, came: Sent) -> None:
        """This id stands for this job."""
        owner = self._by_id.setdefault(id, job)
        if owner is not job:
            self.fail(f"id {id} was given to {owner.payload!r} and to {job.payload!r}")
        if job.id is None:
            job.id = id
        elif job.id != id:
            self.fail(f"{job.payload!r} (key {job.key}) is there twice: {job.id} and {id}")

    # -- leases ---------------------------------------------------------------------------------

    def leased(self, view: dict[str, Any], answer: Answer) -> Lease | None:
        """A job was handed out; returns its lease."""
        sent, came = answer.sent, answer.came
        id, receipt, attempt = view["id"], view["receipt"], view["attempt"]
        job = self.jobs.get(str(view.get("data")))
        if job is None:
            self.fail(f"{id} was handed out with a payload nobody sent: {str(view.get('data'))[:80]!r}")
            return None
        if job.id is None and not job.answered and job.doubt == 0:
            self.fail(f"{id}: every insert of {job.payload!r} was refused, and it is there")
        self._identify(job, id, came)
        if receipt in self.leases:
            self.fail(f"receipt {receipt} was given twice")
        if job.done:
            self.fail(f"{id} came back after its ack was answered")
        if job.buried:
            self.fail(f"{id} came back after it was buried")
        if job.due is not None and (early := job.due - self._latest(job.due_since, came)) > 0:
            self.fail(f"{id} was handed out at least {early} us early")
        if (view["type"], view["ttr"]) != (job.type, job.ttr):
            self.fail(f"{id} has type {view['type']} and ttr {view['ttr']}, not {job.type} and {job.ttr}")
        if job.max_attempts and attempt > job.max_attempts:
            self.fail(f"{id}: attempt {attempt} of {job.max_attempts}")
        if attempt < job.floor:
            self.fail(f"{id}: attempt {attempt}, yet attempt {job.floor - 1} was over")
        lease = Lease(receipt, job, attempt, sent, came, sent.at, sent.clock + round(job.ttr * 1e6))
        self.leases[receipt] = lease
        self._follows(lease, job.last)
        self._not_synced_yet(came, lease, lease.expires)
        job.last = lease
        return lease

    def _follows(self, lease: Lease, before: Lease | None) -> None:
        """Hold a lease against the one of the same job that was seen before."""
        if before is None:
            return
        job = lease.job
        later = (
            lease.came.life > before.came.life
            or lease.sent.at >= before.came.at
            or (lease.attempt > before.attempt and not job.released)
        )
        if not later:
            before.vague = lease.vague = True
            return
        before.over = True
        lease.before = before
        kept = not before.vague and (before.came.life == lease.came.life or before.durable is not None)
        left = self._left(before, lease.came)
        if kept and not before.outcomes and left > 0:
            self.fail(f"{job.id}: {lease.receipt} was given while {before.receipt} had {left} us left")
        if kept and not job.released and lease.attempt <= before.attempt:
            self.fail(f"{job.id}: attempt {lease.attempt} after attempt {before.attempt}")

    def ordered(self, views: list[dict[str, Any]]) -> None:
        """The jobs of one reply go by priority, and in a lane in the order they were inserted."""
        prios = [PRIO_NUMBER[view["prio"]] for view in views]
        lanes: dict[tuple[str, str], list[int]] = {}
        for view in views:
            lanes.setdefault((view["prio"], view["type"]), []).append(int(view["id"].rpartition("-")[2]))
        if prios != sorted(prios) or any(numbers != sorted(numbers) for numbers in lanes.values()):
            self.fail(f"not in order: {prios}, {lanes}")

    def renewed(self, lease: Lease, renewed: bool, answer: Answer) -> None:
        """A renewal was answered."""
        if renewed:
            if lease.over and not lease.vague:
                self.fail(f"{lease.receipt} was renewed, and the job had been handed out again")
            if lease.answered is not None:
                self.fail(f"{lease.receipt} was renewed, and it had been settled")
            lease.since = answer.sent.at
            lease.expires = answer.sent.clock + round(
                lease.job.ttr * 1e6
            )  # earlier, if the clock was set back
            self._not_synced_yet(answer.came, lease, lease.expires)
        elif self._is_current(lease, answer) and not lease.outcomes:
            self.fail(f"{lease.receipt} could not be renewed, and was current")

    def _is_current(self, lease: Lease, answer: Answer) -> bool:
        """Whether a lease was certainly current while a call was made and answered."""
        kept = lease.came.life == answer.came.life or lease.durable is not None
        left = self._left(lease, answer.came)
        return kept and not (lease.over or lease.vague) and left > 0

    def _left(self, lease: Lease, now: Sent) -> int:
        """Microseconds a lease lasts at least; from a start on it is its ttr at most, as the clock may have
        been set back before."""
        ttr = round(lease.job.ttr * 1e6)
        shortened = [start + ttr for life, start in self._starts.items() if life > lease.came.life]
        by_clock = min([lease.expires, *shortened]) - self._latest(lease.came.life, now)
        return min(by_clock, ttr - (now.at - lease.since) // 1000)

    def _latest(self, since: int, now: Sent) -> int:
        """The latest time the server's clock may have shown since a life; it may have been set back after."""
        return max([now.clock, *(end for life, end in self._ends.items() if life >= since)])

    # -- settlements ----------------------------------------------------------------------------

    def settling(self, lease: Lease, outcome: str, sent: Sent) -> bool:
        """A settlement goes out; returns whether it must be refused."""
        job = lease.job
        if outcome not in lease.outcomes and not lease.vague and (lease.over or lease.answered is not None):
            return True
        if lease.answered is None:
            job.acks += outcome == "ok"
            job.fails += outcome == "fail"
        job.released |= outcome == "release"
        first = lease.outcomes.setdefault(outcome, sent)
        if sent.clock < first.clock:
            lease.outcomes[outcome] = first._replace(clock=sent.clock)
        lease.sends += 1
        return False

    def settled(
        self, lease: Lease, outcome: str, delay: float, answer: Answer, code: str | None, *, stale: bool
    ) -> None:
        """A settlement was answered.

        Args:
            lease: what was settled.
            outcome: how.
            delay: seconds, of again and release.
            answer: to the whole call.
            code: why it was refused, or None.
            stale: whether it had to be.
        """
        job = lease.job
        if stale:
            if code != "stale_receipt":
                self.fail(f"{outcome} of {lease.receipt} was answered {code or 'ok'}, and it was stale")
            return
        first = lease.answered is None
        if code is not None:
            if first:
                job.acks -= outcome == "ok"
                job.fails -= outcome == "fail"
            full = code == "disk_full" and outcome == "again"
            if full:
                lease.sends -= 1
                if lease.sends == 0:
                    lease.outcomes.clear()
            elif self._is_current(lease, answer) and lease.sends == 1:
                self.fail(f"{outcome} of {lease.receipt} was refused with {code}, and it was current")
            elif lease.answered == outcome and lease.answered_in == answer.came.life:
                self.fail(f"{outcome} of {lease.receipt} was confirmed, and then refused with {code}")
            return
        self.synced(answer.sent)
        if not first and lease.answered != outcome:
            self.fail(f"{lease.receipt} was settled as {lease.answered} and as {outcome}")
        lease.answered, lease.answered_in = outcome, answer.came.life
        began = lease.outcomes[outcome]
        job.floor = max(job.floor, lease.attempt + (outcome != "release"))
        if outcome == "ok":
            job.done = True
        elif outcome == "fail" or (outcome == "again" and job.max_attempts == lease.attempt):
            job.buried = True
        else:
            job.due, job.due_since = began.clock + round(delay * 1e6), began.life

    # -- lives ----------------------------------------------------------------------------------

    def synced(self, sent: Sent) -> None:
        """What was appended to the journal before this call was made is durable, as the call is."""
        rest = []
        for came, lease, expires in self._unsynced:
            if came.life == sent.life and came.at <= sent.at:
                lease.durable = expires
            else:
                rest.append((came, lease, expires))
        self._unsynced = rest

    def life_begins(self, life: int, clock: int) -> None:
        """A server starts, at this time of its clock."""
        self._starts[life] = clock

    def life_over(self, life: int, clock: int, *, cleanly: bool) -> None:
        """A server has ended, at this time of its clock: what it had not synced may be gone."""
        self._ends[life] = clock
        self._cleanly[life] = cleanly
        unsynced, self._unsynced = self._unsynced, []
        for came, lease, expires in unsynced:
            self._not_synced_yet(came, lease, expires)

    def _not_synced_yet(self, came: Sent, lease: Lease, expires: int) -> None:
        """A crash may take back a lease or its renewal; it may have done so before the reply was read."""
        cleanly = self._cleanly.get(came.life)
        if cleanly is None:
            self._unsynced.append((came, lease, expires))
        elif cleanly:
            lease.durable = expires
        elif lease.durable is not None:
            lease.expires = min(lease.expires, lease.durable)
        else:
            lease.vague = True
            if lease.before is not None:  # if this one is forgotten, that one holds again
                lease.before.over, lease.before.vague = False, True

    # -- the end --------------------------------------------------------------------------------

    def unfinished(self) -> list[Job]:
        """Jobs that are known to be accepted and not known to have ended."""
        return [
            job
            for job in self.jobs.values()
            if (job.answered or job.id is not None) and not (job.done or job.acks or job.may_be_buried)
        ]

    def finish(self, buried: dict[str, str]) -> None:
        """Every job has come to its end.

        Args:
            buried: payload by id of the jobs that are buried at the end.
        """
        for id, payload in buried.items():
            job = self.jobs.get(payload)
            if job is None:
                self.fail(f"{id} is buried with a payload nobody sent")
            elif not job.may_be_buried:
                self.fail(f"{id} is buried, and nobody said so")
            else:
                job.id = job.id or id
        if self.tail_cut:
            return
        for job in self.unfinished():
            self.fail(f"lost: {job.id} {job.payload!r}")
        for job in self.jobs.values():
            if job.buried and job.id not in buried:
                self.fail(f"lost: {job.id} was buried and is not there")
            if job.answered and not (job.done or job.acks) and job.may_be_buried and job.id not in buried:
                self.fail(f"lost: {job.id} is neither done nor buried")
        self._check_calls()

    def _check_calls(self) -> None:
        """An array is accepted whole or not at all; jobs with a key may be another call's."""
        calls: dict[int, set[bool]] = {}
        for job in self.jobs.values():
            if job.key is None:
                calls.setdefault(job.call, set()).add(job.id is not None)
        for call, kinds in calls.items():
            if len(kinds) > 1:
                self.fail(f"insert call {call} was done by half")
