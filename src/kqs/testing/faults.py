"""What goes wrong with a simulated disk, and when."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Final, Literal, NamedTuple

#: Every kind of operation that is counted and can go wrong.
KINDS: Final = (
    "open",
    "create",
    "pwrite",
    "pread",
    "allocate",
    "datasync",
    "listdir",
    "makedirs",
    "rename",
    "link",
    "unlink",
    "sync_dir",
)
#: The kinds that change the disk or make a change durable.
CHANGES: Final = frozenset(
    ("create", "pwrite", "allocate", "datasync", "makedirs", "rename", "link", "unlink", "sync_dir")
)


class PowerLost(Exception):
    """The simulated machine is off, or this file was opened before it was, or by a process that is dead."""


class Operation(NamedTuple):
    """One operation of a simulated disk.

    Attributes:
        number: counted from 1 over the disk's whole life.
        kind: one of :data:`KINDS`.
        path: what it was done to (the source of a rename).
        offset, size: of a read, write or allocation.
        outcome: ``ok``, or the effect of the fault it met; empty while it is not done.
    """

    number: int
    kind: str
    path: str
    offset: int = 0
    size: int = 0
    outcome: str = ""


class Fault(NamedTuple):
    """What goes wrong with one operation.

    Attributes:
        effect: ``error`` the operation fails with ``errno`` (a sync that fails drops what it should have
            written); ``short`` a write takes a part only; ``crash`` the power goes while it is under way;
            ``lie`` a sync says it is done and is not; ``flip`` a read comes back with one bit wrong. An
            effect that cannot happen to an operation of its kind does not happen.
        errno: of an ``error``.
    """

    effect: Literal["error", "short", "crash", "lie", "flip"]
    errno: int = errno.EIO


EIO: Final = Fault("error")
ENOSPC: Final = Fault("error", errno.ENOSPC)
SHORT: Final = Fault("short")
CRASH: Final = Fault("crash")
LIE: Final = Fault("lie")
FLIP: Final = Fault("flip")

Inject = Callable[[Operation], Fault | None]


class FaultAt:
    """A fault at the nth operation that matches, or from that one on.

    Args:
        nth: which one, from 1.
        fault: what happens to it.
        kinds: only operations of these kinds count; all when empty.
        path: only paths that contain this count.
        lasting: whether the later ones meet the fault too.
    """

    def __init__(
        self, nth: int, fault: Fault, *, kinds: Collection[str] = (), path: str = "", lasting: bool = False
    ) -> None:
        self._left = nth
        self._fault = fault
        self._kinds = kinds
        self._path = path
        self._lasting = lasting
        self.met = 0

    def __call__(self, operation: Operation) -> Fault | None:
        if (self._kinds and operation.kind not in self._kinds) or self._path not in operation.path:
            return None
        self._left -= 1
        if self._left == 0 or (self._lasting and self._left < 0):
            self.met += 1
            return self._fault
        return None


class RandomFaults:
    """Faults by chance.

    Args:
        random: draws.
        chances: for each kind of operation, the faults it may meet and how likely each is.
    """

    def __init__(self, random: Random, chances: Mapping[str, Collection[tuple[float, Fault]]]) -> None:
        self._random = random
        self._chances = chances
        self.met = 0

    def __call__(self, operation: Operation) -> Fault | None:
        for chance, fault in self._chances.get(operation.kind, ()):
            if self._random.random() < chance:
                self.met += 1
                return fault
        return None
