"""What the scheduler of ``fairshare.py`` is made of: types, lanes, their lines, and the heaps they stand in.

The lanes of a type stand in a heap (a :class:`Group`), the types that some workers take in another one (a
:class:`Root`), those of a limited class in one of theirs between. Tags in a heap may be too low: they are put
right when they come to the top. A tag that falls is entered anew, and its old entry is passed over. What a
pause or a limit keeps out leaves its heap when it comes to the top, and comes back when the gate opens.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final, TypeAlias

from .gates import Gate, Limit
from .job import PRIOS
from .numbers import NumberQueue

PRIORITIES: Final = len(PRIOS)
#: What a job of a type nobody has seen run is taken to cost, microseconds.
FIRST_COST: Final = 10_000.0
NO_BOUND: Final = (float("inf"), 0)

Entry: TypeAlias = "tuple[float, int, Node]"


class Lane:
    """A job type and fairness key.

    Attributes:
        id: its number here, reused when it is dropped.
        type, key: whose jobs it has.
        live: jobs of it that are not over.
        running: jobs of it that run.
        estimate: what one of its jobs costs, microseconds.
        charge: the same in virtual time.
        limits: all that hold for its jobs.
        served, since: jobs taken since it became busy, and when that was, microseconds.
    """

    __slots__ = (
        "charge",
        "estimate",
        "id",
        "key",
        "kind",
        "limits",
        "lines",
        "live",
        "resting",
        "running",
        "served",
        "since",
        "type",
        "weight",
    )

    def __init__(self, id: int, kind: Kind, key: str | None) -> None:
        self.id = id
        self.kind = kind
        self.type = kind.name
        self.key = key
        self.live = 0
        self.running = 0
        self.resting = 0
        self.estimate = kind.estimate
        self.charge = 0.0
        self.weight = 1.0
        self.limits: tuple[Limit, ...] = ()
        self.lines: list[Line | None] = [None] * PRIORITIES
        self.served = 0
        self.since = 0


class _Standing:
    """What stands in a heap.

    A job that comes back may find an entry with its tag and number, of a line that is gone: either may be
    first.
    """

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return False


class Line(_Standing):
    """The jobs of a lane that have one priority and are ready.

    Attributes:
        tag: the virtual time at which its next job is to start.
        head: the number of that job, or -1.
        gates: what may keep it out: the limit of its key.
    """

    __slots__ = ("_rest", "gates", "group", "head", "lane", "tag")

    def __init__(self, lane: Lane, group: Group) -> None:
        self.lane = lane
        self.group = group
        self.tag = 0.0
        self.head = -1
        self.gates: tuple[Gate, ...] = tuple(limit for limit in lane.limits if limit.kind == "key")
        self._rest: NumberQueue | None = None  # most lines of many lanes never have a second job

    def push(self, number: int) -> None:
        """Add a number."""
        head = self.head
        if head < 0:
            self.head = number
            return
        if number < head:
            self.head, number = number, head
        if self._rest is None:
            self._rest = NumberQueue()
        self._rest.push(number)

    def extend(self, numbers: list[int]) -> None:
        """Add numbers that are in ascending order."""
        self.push(numbers[0])
        if len(numbers) > 1:
            if self._rest is None:
                self._rest = NumberQueue()
            self._rest.extend(numbers[1:])

    def pop(self) -> int:
        """Take its next number; there must be one."""
        number, rest = self.head, self._rest
        if rest is None:
            self.head = -1
        else:
            self.head = rest.pop()
            if not rest:
                self._rest = None
        return number

    def before(self, number: int) -> int:
        """How many lower numbers it has."""
        count = int(0 <= self.head < number)
        return count if self._rest is None else count + self._rest.before(number)


class Fork(_Standing):
    """A heap of lines, or of forks.

    Attributes:
        gates: what may keep all of it out.
        parents: the forks it stands in.
        known: what :meth:`top` found, as long as it is that; whoever changes a line below empties it.
    """

    __slots__ = ("_entered", "_heap", "gates", "known", "parents")

    def __init__(self, gates: tuple[Gate, ...] = ()) -> None:
        self.gates = gates
        self.parents: list[Fork] = []
        self.known: Entry | None = None
        self._heap: list[Entry] = []
        self._entered: dict[Node, Entry] = {}

    def top(self) -> Entry | None:
        """The lowest tag, its job's number, and whose they are."""
        if self.known is not None:
            return self.known
        heap, entered = self._heap, self._entered
        while heap:
            entry = heap[0]
            node = entry[2]
            if entered.get(node) is not entry:
                heappop(heap)  # entered anew since
                continue
            for gate in node.gates:
                if gate.closed:
                    gate.held[self, node] = None
                    break
            else:
                if isinstance(node, Line):
                    tag, number = node.tag, node.head
                elif (best := node.top()) is not None:
                    tag, number, _node = best
                else:
                    number = -1
                if number >= 0:
                    if tag != entry[0] or number != entry[1]:
                        entered[node] = entry = (tag, number, node)
                        heapreplace(heap, entry)
                        if heap[0] is not entry:
                            continue
                    if isinstance(node, Line) and not node.gates:
                        self.known = entry
                    return entry
            heappop(heap)
            del entered[node]
        return None

    def second(self) -> tuple[float, int]:
        """What comes after :meth:`top`, or something lower."""
        heap = self._heap
        if len(heap) > 2:
            return min(heap[1], heap[2])[:2]
        return heap[1][:2] if len(heap) > 1 else NO_BOUND

    def offer(self, node: Node, tag: float, number: int) -> None:
        """A node has something at this tag; what stands with a higher one is entered anew."""
        self.known = None
        old = self._entered.get(node)
        if old is not None and (old[0], old[1]) <= (tag, number):
            return
        entry = (tag, number, node)
        self._entered[node] = entry
        if len(self._heap) > 2 * len(self._entered) + 64:
            self._heap = list(self._entered.values())
            heapify(self._heap)
        else:
            heappush(self._heap, entry)
        for parent in self.parents:
            parent.offer(self, tag, number)

    def enter(self, node: Node) -> bool:
        """:meth:`offer` what a node has; whether it has something."""
        if isinstance(node, Line):
            tag, number = node.tag, node.head
        elif (best := node.top()) is not None:
            tag, number, _node = best
        else:
            return False
        if number >= 0:
            self.offer(node, tag, number)
        return number >= 0

    def remove(self, node: Node) -> None:
        """A node is gone."""
        self.known = None
        self._entered.pop(node, None)
        for gate in node.gates:
            gate.held.pop((self, node), None)

    def nodes(self) -> Collection[Node]:
        """What stands in line here; what is held back does not."""
        return self._entered.keys()


class Group(Fork):
    """The lines of one job type and priority.

    Attributes:
        kind: the type.
        lines: how many there are.
        waiting: those that have numbers.
        roots: the roots above it.
        start: virtual time when there is no root.
        finish: the highest tag of its lines, ever.
    """

    __slots__ = ("finish", "kind", "lines", "prio", "roots", "start", "waiting")

    def __init__(self, kind: Kind, prio: int) -> None:
        super().__init__(kind.gates)
        self.kind = kind
        self.prio = prio
        self.lines = 0
        self.waiting: dict[Line, None] = {}
        self.roots: list[Root] = []
        self.start = 0.0
        self.finish = 0.0


class Root(Fork):
    """All groups of one priority that some workers take.

    Attributes:
        now: virtual time.
        waiting: how many lines below it have numbers.
        finish: the highest tag of what was empty.
        classes: the forks of limited classes.
    """

    __slots__ = ("classes", "finish", "now", "view", "waiting")

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view = view
        self.now = 0.0
        self.waiting = 0
        self.finish = 0.0
        self.classes: dict[str, Fork] = {}


Node: TypeAlias = Fork | Line


class View:
    """What the workers that take some types see.

    Attributes:
        types: the types; empty for all.
        roots: by priority.
        asked: when they asked last, microseconds.
        tags, now: the virtual times of the priorities, when these are weighted.
    """

    __slots__ = ("asked", "now", "roots", "tags", "types")

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types
        self.roots = [Root(self) for _ in range(PRIORITIES)]
        self.asked = 0
        self.tags = [0.0] * PRIORITIES
        self.now = 0.0


class Kind:
    """A job type.

    Attributes:
        estimate: what one of its jobs costs, microseconds.
        counts: how many jobs it has in each state, for whoever counts them.
        gates: its pause and its limit.
        lanes: by fairness key.
    """

    __slots__ = (
        "class_",
        "counts",
        "estimate",
        "gates",
        "groups",
        "lanes",
        "limit",
        "name",
        "pause",
        "weight",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts: list[int] = []
        self.estimate = FIRST_COST
        self.class_: Limit | None = None
        self.limit: Limit | None = None
        self.pause: Gate | None = None
        self.gates: tuple[Gate, ...] = ()
        self.weight = 1.0
        self.lanes: dict[str | None, Lane] = {}
        self.groups: list[Group | None] = [None] * PRIORITIES

    def regate(self) -> None:
        """Its pause or limit is another one."""
        self.gates = tuple(gate for gate in (self.pause, self.limit) if gate is not None)
        for group in self.groups:
            if group is not None:
                group.gates = self.gates
