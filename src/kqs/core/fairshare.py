"""Who is next: priority first, then fair share, then first in first out.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng: "Start-time Fair Queueing: A Scheduling Algorithm for
Integrated Services Packet Switching Networks", SIGCOMM 1996), with jobs for packets and worker time for
bytes. Every lane (job type and fairness key) has a tag in virtual time. The lane with the lowest tag is
served; its tag grows by what the job costs, divided by the lane's weight. Virtual time is the tag of what was
served last; a lane that becomes busy starts there and not earlier, so that nobody saves up.

What differs from the paper: a job's cost is known only when it has run. Until then it is what its lane's jobs
took lately (an exponentially weighted average), and the difference is made good when it ends. Many workers
serve at a time, and each may take some types only: each set of types has a virtual time of its own. And lanes
that come with one job and go, all at virtual time, must not be served for ever before one that waits: each
moves virtual time on by its part.

A decision costs O(log lanes); ``lanes.py`` has the heaps. Jobs are plain numbers here. A number that is
queued is a hint, not a promise: the owner says at the time of the pop whether the job is still ready, so that
deleting or burying one costs nothing here.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from operator import itemgetter
from typing import Any, Final, TypeAlias

from .gates import Gate, Limit
from .job import SECOND
from .lanes import FIRST_COST, Entry, Fork, Group, Kind, Lane, Line, Root, View
from .limits import Limits
from .shares import Shares

#: Parts of the priorities, urgent first, when they are weighted.
PRIORITY_WEIGHTS: Final = (16, 8, 4, 2, 1)
#: The least any job costs, microseconds.
LEAST_COST: Final = 10.0
#: How much a job's cost counts in the average of its lane, and of its type.
_LEARN: Final = 1 / 8
_LEARN_TYPE: Final = 1 / 32
#: How far behind virtual time a lane that waits may be: so many of its jobs, and this much virtual time.
_BEHIND_JOBS: Final = 16
_BEHIND: Final = 1.0 * SECOND
#: A set of types nobody asked for in this time (microseconds) says nothing about where new lanes start.
_ALIVE: Final = 60 * SECOND
#: Sets of types that are remembered.
_ROOTS: Final = 64
#: How long, and how many at most, lanes without jobs are remembered that had more than their part.
_REST: Final = 60 * SECOND
_RESTING: Final = 10_000

Ready: TypeAlias = Callable[[int, int], bool]


class Scheduler:
    """Ready jobs of all lanes.

    Args:
        now: the time of the start, microseconds.

    Attributes:
        reopened: types of lanes that a limit let go since somebody looked; whoever looks empties it.
    """

    def __init__(self, now: int = 0) -> None:
        self._shares = Shares()
        self._now = now
        self._limits = Limits(now)
        self._kinds: dict[str, Kind] = {}
        self._lanes: list[Lane | None] = []
        self._free: list[int] = []
        self._views: OrderedDict[frozenset[str], View] = OrderedDict()
        self._running = 0  # lanes of which jobs run
        self._resting: deque[tuple[int, Lane]] = deque()
        self.reopened = self._limits.reopened

    # -- lanes ----------------------------------------------------------------------------------

    def lane(self, type_: str, key: str | None = None) -> Lane:
        """The lane of a type and fairness key; made when there is none."""
        kind = self._kinds.get(type_) or self._new_kind(type_)
        return kind.lanes.get(key) or self._new_lane(kind, key)

    def lane_at(self, id: int) -> Lane:
        """The lane with a number; it must be there."""
        lane = self._lanes[id]
        assert lane is not None
        return lane

    def __len__(self) -> int:
        """How many lanes there are."""
        return len(self._lanes) - len(self._free)

    def _new_kind(self, type_: str) -> Kind:
        kind = self._kinds[type_] = Kind(type_)
        self._limits.settle_kind(kind)
        return kind

    def _new_lane(self, kind: Kind, key: str | None) -> Lane:
        if self._free:
            lane = Lane(self._free.pop(), kind, key)
            self._lanes[lane.id] = lane
        else:
            lane = Lane(len(self._lanes), kind, key)
            self._lanes.append(lane)
        kind.lanes[key] = lane
        self._limits.settle_lane(lane)
        self._price(lane)
        return lane

    def _price(self, lane: Lane) -> None:
        lane.charge = lane.estimate / lane.weight if self._shares.order == "fair" else 0.0

    def leave(self, lane: Lane) -> None:
        """A lane has no live job: it is forgotten now, or later if it had more than its part."""
        if lane.live or lane.running or lane.key is None:
            return  # a type is remembered anyway
        if any(line is not None and line.tag > self._start(line.group) for line in lane.lines):
            lane.resting = self._now + _REST
            self._resting.append((lane.resting, lane))
        else:
            self._drop(lane)
        while self._resting and (self._resting[0][0] <= self._now or len(self._resting) > _RESTING):
            until, rested = self._resting.popleft()
            if rested.resting == until and not rested.live and not rested.running:
                self._drop(rested)

    def _drop(self, lane: Lane) -> None:
        if self._lanes[lane.id] is not lane:
            return  # it was dropped before
        self._lanes[lane.id] = None
        self._free.append(lane.id)
        del lane.kind.lanes[lane.key]
        self._limits.dropped(lane)
        for line in lane.lines:
            if line is None:
                continue
            group = line.group
            group.remove(line)
            group.lines -= 1
            if line in group.waiting:  # with nothing but hints of jobs that are over
                self._emptied(line)
            if not group.lines:
                lane.kind.groups[group.prio] = None
                for parent in group.parents:
                    parent.remove(group)

    # -- jobs come ------------------------------------------------------------------------------

    def push(self, prio: int, lane: Lane, number: int) -> None:
        """A job became ready.

        Args:
            prio: 0 (urgent) .. 4 (bulk).
            lane: its lane.
            number: its number; lower runs first.
        """
        line = lane.lines[prio] or self._new_line(lane, prio)
        head = line.head
        line.push(number)
        if head < 0:
            self._filled(line, number)
        elif number < head:
            line.group.offer(line, line.tag, number)

    def extend(self, prio: int, lane: Lane, numbers: list[int]) -> None:
        """:meth:`push` for many, in ascending order."""
        line = lane.lines[prio] or self._new_line(lane, prio)
        head = line.head
        line.extend(numbers)
        if head < 0:
            self._filled(line, numbers[0])
        elif numbers[0] < head:
            line.group.offer(line, line.tag, numbers[0])

    def _new_line(self, lane: Lane, prio: int) -> Line:
        group = lane.kind.groups[prio]
        if group is None:
            group = lane.kind.groups[prio] = Group(lane.kind, prio)
            for view in self._views.values():
                if not view.types or lane.type in view.types:
                    self._attach(group, view)
        group.lines += 1
        line = lane.lines[prio] = Line(lane, group)
        return line

    def _start(self, group: Group) -> float:
        """Virtual time for a line of a group: the latest of those who serve it."""
        roots = group.roots
        if len(roots) == 1:
            return roots[0].now
        since = self._now - _ALIVE
        alive = [root.now for root in roots if root.view.asked >= since]
        return max(alive) if alive else max((root.now for root in roots), default=group.start)

    def _filled(self, line: Line, number: int) -> None:
        """A line has its first number."""
        group, lane = line.group, line.lane
        start = self._start(group)
        if line.tag < start:
            line.tag = start
        for root in group.roots:
            root.waiting += 1
        group.waiting[line] = None
        lane.served, lane.since = 0, self._now
        group.offer(line, line.tag, number)

    def _emptied(self, line: Line) -> None:
        group = line.group
        del group.waiting[line]
        for root in group.roots:
            root.waiting -= 1
        if not group.waiting:
            self._finished(group)

    def _finished(self, group: Group) -> None:
        """A group is empty: who sees it knows how far it came."""
        for root in group.roots:
            root.finish = max(root.finish, group.finish)

    # -- who sees what --------------------------------------------------------------------------

    def _view(self, types: Collection[str], now: int) -> View:
        key = types if isinstance(types, frozenset) else frozenset(types)
        view = self._views.get(key)
        if view is None:
            view = self._new_view(key)
        elif len(self._views) > 1:
            self._views.move_to_end(key)
        view.asked = now
        return view

    def _new_view(self, types: frozenset[str]) -> View:
        while len(self._views) >= _ROOTS:
            self._drop_view(self._views.popitem(last=False)[1])
        view = self._views[types] = View(types)
        for name in types or self._kinds:
            if (kind := self._kinds.get(name)) is not None:
                for group in kind.groups:
                    if group is not None:
                        root = view.roots[group.prio]
                        root.now = max(root.now, self._start(group))
                        self._attach(group, view)
        return view

    def _attach(self, group: Group, view: View) -> None:
        root = view.roots[group.prio]
        parent: Fork = root
        limit = group.kind.class_
        if limit is not None:
            found = root.classes.get(limit.name)
            if found is None:
                found = root.classes[limit.name] = Fork((limit,))
                found.parents.append(root)
            parent = found
        group.parents.append(parent)
        group.roots.append(root)
        root.waiting += len(group.waiting)
        parent.enter(group)

    def _drop_view(self, view: View) -> None:
        """Nobody asked for these types for long."""
        for name in view.types or self._kinds:
            if (kind := self._kinds.get(name)) is None:
                continue
            for group in kind.groups:
                if group is None:
                    continue
                root = view.roots[group.prio]
                group.start = max(group.start, root.now)
                at = group.roots.index(root)
                group.parents.pop(at).remove(group)
                del group.roots[at]
        for root in view.roots:
            for fork in root.classes.values():
                root.remove(fork)

    # -- jobs go --------------------------------------------------------------------------------

    def take(self, types: Collection[str], limit: int, now: int, still_ready: Ready) -> list[int]:
        """Take up to ``limit`` jobs. Each counts as running until :meth:`ended` or :meth:`untaken`.

        Args:
            types: the job types wanted; empty for all.
            limit: how many at most.
            now: microseconds.
            still_ready: called with (number, prio); a job it denies is dropped.
        """
        self.tick(now)
        view = self._view(types, now)
        taken: list[int] = []
        if self._shares.priority == "weighted":
            self._take_weighted(view, limit, still_ready, taken)
            return taken
        for prio, root in enumerate(view.roots):
            while len(taken) < limit and (entry := self._next(root)) is not None:
                self._burst(root, entry, prio, limit, float("inf"), still_ready, taken)
        return taken

    def _next(self, root: Root) -> Entry | None:
        """Whose turn it is."""
        entry = root.top()
        if entry is None and not root.waiting:  # the end of a busy period: nobody is ahead of anybody
            root.now = max(root.now, root.finish)
        return entry

    def _take_weighted(self, view: View, limit: int, still_ready: Ready, taken: list[int]) -> None:
        """The priorities as lanes: the same algorithm, one level up."""
        tags = view.tags
        while len(taken) < limit:
            there: list[tuple[float, int, Entry]] = []
            for prio, root in enumerate(view.roots):
                if (entry := self._next(root)) is None:
                    tags[prio] = max(tags[prio], view.now)  # it saves up nothing meanwhile
                else:
                    there.append((tags[prio], prio, entry))
            if not there:
                return
            there.sort(key=itemgetter(0, 1))
            tag, prio, entry = there[0]
            weight = PRIORITY_WEIGHTS[prio]
            room = float("inf") if len(there) == 1 else (there[1][0] - tag) * weight
            cost = self._burst(view.roots[prio], entry, prio, limit, room, still_ready, taken)
            view.now = max(view.now, tag)
            tags[prio] += cost / weight

    def _burst(
        self,
        root: Root,
        entry: Entry,
        prio: int,
        limit: int,
        room: float,
        still_ready: Ready,
        taken: list[int],
    ) -> float:
        """Take jobs of the line that is next, while it is; until ``taken`` has ``limit``.

        Args:
            entry: the root's top.
            room: what they may cost together; the last one may cost more.

        Returns:
            What they are taken to cost, microseconds.
        """
        bound = root.second()
        node = entry[2]
        while not isinstance(node, Line):
            bound = min(bound, node.second())  # seen after its top(), which puts right what is below
            inner = node.top()
            assert inner is not None
            node = inner[2]
        line, lane, group = node, node.lane, node.group
        limited, charge = bool(lane.limits), lane.charge
        tag = served = line.tag
        if (behind := root.now - tag) > _BEHIND:
            longest = _BEHIND + (lane.running + _BEHIND_JOBS) * charge
            if behind > longest:
                tag = served = root.now - longest
        count = 0
        while True:
            number = line.pop()
            if still_ready(number, prio):
                taken.append(number)
                count += 1
                served = tag
                tag += charge
                if limited and not self._limits.enter(lane):
                    break
                if len(taken) >= limit or count * lane.estimate >= room:
                    break
            head = line.head
            if head < 0 or (tag, head) > bound:
                break
        line.tag = tag
        group.known = None
        if tag > group.finish:
            group.finish = tag
        if count:
            self._running += not lane.running
            lane.running += count
            lane.served += count
            if served > root.now:
                root.now = served
        if line.head < 0:
            self._emptied(line)
            if count:  # nobody else will carry on what its last job costs
                part = charge / (root.waiting + self._running)
                root.now += min(part, max(bound[0] - root.now, _BEHIND))
        return count * lane.estimate

    def tick(self, now: int) -> None:
        """Let go what a rate kept out and need not any more."""
        self._now = max(now, self._now)
        self._limits.tick(self._now)

    def next_wake(self) -> int | None:
        """When :meth:`tick` has something to do next, microseconds."""
        return self._limits.next_wake()

    # -- jobs end -------------------------------------------------------------------------------

    def resumed(self, lane: Lane) -> None:
        """A job runs that was not taken here: its lease was there at the start."""
        self._running += not lane.running
        lane.running += 1
        self._limits.resumed(lane)

    def untaken(self, lane: Lane, prio: int) -> None:
        """A job that was taken does not run."""
        self._left(lane)
        self._correct(lane, prio, -lane.charge)

    def ended(self, lane: Lane, prio: int, charged: float, cost: int, learn: bool = True) -> None:
        """A job that was taken ran.

        Args:
            prio: as it was taken.
            charged: :attr:`Lane.charge` at that time.
            cost: how long it ran, microseconds; below 0 when nobody knows.
            learn: whether others are like it.
        """
        self._left(lane)
        if cost < 0:
            return
        actual = LEAST_COST if learn and cost < LEAST_COST else float(cost)
        if self._shares.order == "fair":
            self._correct(lane, prio, actual / lane.weight - charged)
        if learn:
            kind = lane.kind
            kind.estimate += (actual - kind.estimate) * (1.0 if kind.estimate == FIRST_COST else _LEARN_TYPE)
            if lane.estimate == FIRST_COST:
                lane.estimate = kind.estimate
            lane.estimate += (actual - lane.estimate) * _LEARN
            self._price(lane)

    def _left(self, lane: Lane) -> None:
        lane.running -= 1
        if not lane.running:
            self._running -= 1
        if lane.limits:
            self._limits.left(lane)

    def _correct(self, lane: Lane, prio: int, by: float) -> None:
        line = lane.lines[prio]
        if line is None:
            if by <= 0:
                return
            line = self._new_line(lane, prio)
            line.tag = self._start(line.group)
        line.tag = tag = max(0.0, line.tag + by)
        if by >= 0:
            group = line.group
            group.known = None
            group.finish = max(group.finish, tag)
            if not group.waiting:
                self._finished(group)
        elif line.head >= 0:
            line.group.offer(line, tag, line.head)

    # -- settings -------------------------------------------------------------------------------

    def arrange(self, shares: Shares, now: int) -> None:
        """Other settings from now on. What runs, runs on, and counts."""
        self._now = max(now, self._now)
        self._shares = shares
        lanes = [lane for lane in self._lanes if lane is not None]
        self._limits.arrange(shares, self._kinds.values(), lanes, self._now)
        for lane in lanes:
            self._price(lane)
        self._rebuild(lanes)

    def _rebuild(self, lanes: list[Lane]) -> None:
        """Build the heaps anew."""
        fifo = self._shares.order == "fifo"
        views = list(self._views.values())
        self._views.clear()
        for kind in self._kinds.values():
            for prio, group in enumerate(kind.groups):
                if group is None:
                    continue
                fresh = kind.groups[prio] = Group(kind, prio)
                fresh.lines, fresh.waiting = group.lines, group.waiting
                if not fifo:
                    fresh.start, fresh.finish = group.start, group.finish
        for lane in lanes:
            for prio, line in enumerate(lane.lines):
                if line is not None:
                    group = lane.kind.groups[prio]
                    assert group is not None
                    line.group = group
                    if fifo:
                        line.tag = 0.0
                    line.gates = tuple(limit for limit in lane.limits if limit.kind == "key")
                    group.enter(line)
        for old in views:
            view = self._new_view(old.types)
            view.asked = old.asked
            for root, before in zip(view.roots, old.roots, strict=True):
                root.now, root.finish = (0.0, 0.0) if fifo else (before.now, before.finish)
        self.reopened.update(dict.fromkeys(self._kinds))

    def pause(self, type_: str) -> None:
        """Hand out no job of a type until :meth:`resume`."""
        kind = self._kinds.get(type_) or self._new_kind(type_)
        if kind.pause is None:
            kind.pause = Gate()
            kind.regate()

    def resume(self, type_: str) -> None:
        """The end of a :meth:`pause`."""
        kind = self._kinds.get(type_)
        if kind is not None and (pause := kind.pause) is not None:
            kind.pause = None
            kind.regate()
            self._limits.let_go(pause)

    # -- asking ---------------------------------------------------------------------------------

    def oldest(self, still_ready: Ready) -> int | None:
        """The lowest number. What would be it, and is denied, is dropped."""
        oldest: int | None = None
        groups = [group for kind in self._kinds.values() for group in kind.groups if group is not None]
        for line in [line for group in groups for line in group.waiting]:
            while (number := line.head) >= 0 and (oldest is None or number < oldest):
                if still_ready(number, line.group.prio):
                    oldest = number
                    break
                line.pop()
                line.group.known = None
                if line.head < 0:
                    self._emptied(line)
        return oldest

    def held_back(self, type_: str) -> bool:
        """Whether limits or a pause keep out all ready jobs of a type."""
        kind = self._kinds.get(type_)
        if kind is None:
            return False
        if any(gate.closed for gate in kind.gates) or (kind.class_ is not None and kind.class_.closed):
            return True
        return all(group is None or group.top() is None for group in kind.groups)

    def closed_limits(self, lane: Lane) -> list[dict[str, Any]]:
        """The limits that keep a lane's jobs waiting now."""
        return self._limits.closed(lane)

    def covers(self, limit: Limit, type_: str, key: str | None) -> bool:
        """Whether jobs of a type and fairness key stand under a limit."""
        return self._limits.covers(limit, type_, key)

    def learn(self, limit: Limit, elsewhere: int, full: int | None = None) -> None:
        """What runs under a limit on other servers. See :meth:`Limits.learn`."""
        self._limits.learn(limit, elsewhere, full)

    def awaited(self) -> list[Limit]:
        """The limits that are closed because of what runs elsewhere."""
        return self._limits.awaited(self._kinds.values())

    def limits(self) -> list[dict[str, Any]]:
        """All limits there are."""
        return self._limits.shown(self._kinds.values())

    def place(self, lane: Lane, prio: int, number: int) -> dict[str, Any]:
        """Where a ready job stands.

        Returns:
            ``ahead``: jobs before it in its lane; ``before``: lanes with ready jobs of its type and priority
            whose turn comes earlier; ``higher``: lanes with ready jobs of a higher priority that the same
            workers take; ``rate``: jobs a second its lane was served lately, or None.
        """
        line = lane.lines[prio]
        ahead = before = higher = 0
        if line is not None:
            views = [root.view for root in line.group.roots]
            higher = max((sum(root.waiting for root in view.roots[:prio]) for view in views), default=0)
            ahead = line.before(number)
            before = sum(other.tag < line.tag for other in line.group.waiting if other is not line)
        spent = (self._now - lane.since) / SECOND
        rate = lane.served / spent if lane.served and spent > 0 else None
        return {"ahead": ahead, "before": before, "higher": higher, "rate": rate}
