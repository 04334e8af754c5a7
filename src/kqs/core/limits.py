"""Whose jobs stand under which limits, and when one that waits for a token is looked at again."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heappop, heappush
from typing import Any

from .gates import Gate, Limit
from .lanes import Group, Kind, Lane, Line, Node
from .shares import NO_SHARE, Share, Shares


class Limits:
    """The limits of classes and keys, those of types (which these hold), and a timer for each rate.

    Args:
        now: the time of the start, microseconds: nobody knows what began just before.

    Attributes:
        reopened: types of lanes that were let go since somebody looked; whoever looks empties it.
    """

    def __init__(self, now: int) -> None:
        self._started = self._now = now
        self._shares = Shares()
        self._classes: dict[str, Limit] = {}
        self._keys: dict[str, Limit] = {}
        self._timers: list[tuple[int, int, Limit]] = []
        self._timer = 0
        self.reopened: dict[str, None] = {}

    # -- who has which --------------------------------------------------------------------------

    def settle_kind(self, kind: Kind) -> None:
        """Give a type the weight and limits that the settings say."""
        class_, share = self._shares.of_type(kind.name)
        kind.weight = share.weight
        kind.class_ = None if class_ is None else self._classes.get(class_)
        if not share.limited:
            kind.limit = None
        elif kind.limit is None:
            kind.limit = self._new("type", kind.name, share)
        else:
            kind.limit.change(share, self._now)
        kind.regate()

    def settle_lane(self, lane: Lane) -> None:
        """Give a lane the weight and limits that the settings say."""
        kind, key = lane.kind, lane.key
        share = NO_SHARE if key is None else self._shares.of_key(key)
        lane.weight = kind.weight * share.weight
        limits = [limit for limit in (kind.limit, kind.class_) if limit is not None]
        if key is not None and share.limited:
            limit = self._keys.get(key)
            if limit is None:
                limit = self._keys[key] = self._new("key", key, share)
            limit.lanes += 1
            limits.append(limit)
        lane.limits = tuple(limits)

    def _new(self, kind: str, name: str, share: Share) -> Limit:
        limit = Limit(kind, name, share, self._started)
        self._shut(limit)
        return limit

    def _shut(self, limit: Limit) -> None:
        """Close a limit that nothing may pass now, and have somebody look when its next token comes."""
        limit.closed = not limit.open_at(self._now)
        if limit.closed and not limit.full_house():
            self._wake_at(limit.next_token(), limit)

    def dropped(self, lane: Lane) -> None:
        """A lane is forgotten.

        With the last one of a key the key's limit is, once its bucket is as full as that of a new limit.
        """
        for limit in lane.limits:
            if limit.kind == "key":
                limit.lanes -= 1
                if not limit.lanes and not limit.running:
                    self._forget(limit)

    def _forget(self, limit: Limit) -> None:
        if limit.rate and limit.full_at() > self._now:
            self._wake_at(limit.full_at(), limit)
        elif self._keys.get(limit.name) is limit:
            del self._keys[limit.name]

    # -- jobs begin and end ---------------------------------------------------------------------

    def enter(self, lane: Lane) -> bool:
        """A job of a lane begins; returns whether another one may."""
        more = True
        for limit in lane.limits:
            if not limit.enter(self._now):
                more = False
                if not limit.full_house():
                    self._wake_at(limit.next_token(), limit)
        return more

    def resumed(self, lane: Lane) -> None:
        """A job of a lane runs that did not :meth:`enter`."""
        for limit in lane.limits:
            limit.running += 1
            limit.closed = limit.closed or limit.full_house()

    def left(self, lane: Lane) -> None:
        """A job of a lane runs no more."""
        for limit in lane.limits:
            limit.running -= 1
            if limit.closed:
                self._open(limit)

    # -- time -----------------------------------------------------------------------------------

    def tick(self, now: int) -> None:
        """Let go what a rate kept out and need not any more."""
        self._now = now
        while self._timers and self._timers[0][0] <= now:
            time, _, limit = heappop(self._timers)
            if time != limit.wake:
                continue
            limit.wake = None
            if limit.kind == "key" and not limit.lanes:
                self._forget(limit)
            else:
                self._open(limit)

    def next_wake(self) -> int | None:
        """When :meth:`tick` has something to do next, microseconds."""
        return self._timers[0][0] if self._timers else None

    def _wake_at(self, time: int, limit: Limit) -> None:
        if limit.wake is None or time < limit.wake:
            limit.wake = time  # one that was to be later is passed over when it comes
            self._timer += 1
            heappush(self._timers, (time, self._timer, limit))

    # -- opening --------------------------------------------------------------------------------

    def _open(self, limit: Limit) -> None:
        """Open a limit if it can be."""
        if not limit.closed:
            return
        if limit.open_at(self._now):
            self.let_go(limit)
        elif not limit.full_house():
            self._wake_at(limit.next_token(), limit)

    def let_go(self, gate: Gate) -> None:
        """Open a gate: what it kept out stands in line again."""
        for fork, node in gate.open():
            if fork.enter(node):
                self._tell(node)

    def _tell(self, node: Node) -> None:
        """Remember the types of what came back."""
        if isinstance(node, Line):
            self.reopened[node.lane.type] = None
        elif isinstance(node, Group):
            self.reopened[node.kind.name] = None
        else:
            for inner in node.nodes():
                self._tell(inner)

    # -- several servers ------------------------------------------------------------------------

    def learn(self, limit: Limit, elsewhere: int, full: int | None = None) -> None:
        """What runs on other servers, and how far the bucket is that all share.

        Args:
            limit: one of these.
            elsewhere: jobs that run under it on other servers.
            full: see :attr:`Limit.full`; None when nobody knows better.
        """
        limit.elsewhere = elsewhere
        if full is not None:
            limit.full = full
        if limit.closed:
            self._open(limit)
        else:
            self._shut(limit)

    def covers(self, limit: Limit, type_: str, key: str | None) -> bool:
        """Whether jobs of a type and fairness key stand under a limit."""
        if limit.kind == "class":
            return self._shares.of_type(type_)[0] == limit.name
        return limit.name == (type_ if limit.kind == "type" else key)

    def awaited(self, kinds: Collection[Kind]) -> list[Limit]:
        """The limits that are closed because of what runs elsewhere."""
        return [limit for limit in self.all(kinds) if limit.elsewhere and limit.closed]

    # -- settings -------------------------------------------------------------------------------

    def arrange(self, shares: Shares, kinds: Collection[Kind], lanes: Collection[Lane], now: int) -> None:
        """Other settings from now on; what runs, runs on, and counts.

        Args:
            shares: the settings.
            kinds, lanes: all there are. Their heaps are to be built anew: nothing is held back after this.
            now: microseconds.
        """
        self._now = now
        self._shares = shares
        for name, share in shares.classes.items():
            if not share.limited:
                self._classes.pop(name, None)
            elif name in self._classes:
                self._classes[name].change(share, now)
            else:
                self._classes[name] = self._new("class", name, share)
        for name in [name for name in self._classes if name not in shares.classes]:
            del self._classes[name]
        for name, limit in list(self._keys.items()):
            limit.lanes = 0
            if (share := shares.of_key(name)).limited:
                limit.change(share, now)
            else:
                del self._keys[name]
        for kind in kinds:
            self.settle_kind(kind)
        for lane in lanes:
            self.settle_lane(lane)
        self._recount(kinds, lanes)

    def _recount(self, kinds: Collection[Kind], lanes: Collection[Lane]) -> None:
        """Count what runs under which limit."""
        limits = self.all(kinds)
        self._timers.clear()  # of limits that are gone too: they must not touch the new heaps
        for limit in limits:
            limit.running, limit.held, limit.wake = 0, {}, None
        for lane in lanes:
            for limit in lane.limits:
                limit.running += lane.running
        for limit in limits:
            self._shut(limit)
            if limit.kind == "key" and not limit.lanes:
                self._forget(limit)
        for kind in kinds:
            if kind.pause is not None:
                kind.pause.held = {}

    # -- asking ---------------------------------------------------------------------------------

    def all(self, kinds: Collection[Kind]) -> list[Limit]:
        """All limits there are, those of these types among them."""
        of_types = [kind.limit for kind in kinds if kind.limit is not None]
        return [*self._classes.values(), *of_types, *self._keys.values()]

    def closed(self, lane: Lane) -> list[dict[str, Any]]:
        """The limits that keep a lane's jobs waiting now, as shown."""
        return [limit.shown(self._now) for limit in lane.limits if not limit.open_at(self._now)]

    def shown(self, kinds: Collection[Kind]) -> list[dict[str, Any]]:
        """:meth:`all`, as shown."""
        return [limit.shown(self._now) for limit in self.all(kinds)]
