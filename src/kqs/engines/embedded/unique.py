"""Unique jobs: of those with the same type and key at most one stands at a time.

No I/O and no clock. What stands follows from the states of jobs, so nothing of it is journaled: the key is in
the job's options, and a job that may not come back to wait has a bury entry like any other (ADR 0010).

A job stands from the moment its entry is appended, before it is durable and in sight, so that two inserts
under way at the same time meet, and so that no job comes back to wait beside one that is on its way in. It
stops to stand when its end is applied, before that is durable: a new job with its key comes later in the
journal, so a crash that takes back the end takes back the new job, too, and never leaves two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ...core.job import Unique
from ...core.lifecycle import State

#: What a unique job is told by: its type and its key.
Name = tuple[str, str]

#: Estimated bytes of memory a unique job takes here beside its key's characters.
UNIQUE_BYTES: Final = 300
_WAITING: Final = (State.READY, State.DELAYED)


class UniqueIndex:
    """The live jobs that are unique, and which of them stand.

    Attributes:
        memory: estimated bytes of all this.
    """

    def __init__(self) -> None:
        self._names: dict[int, Name] = {}
        self._while_queued: set[int] = set()
        self._standing: dict[Name, int] = {}
        self.memory = 0

    def __len__(self) -> int:
        return len(self._names)

    def find(self, name: Name) -> int | None:
        """The number of the job that stands with a type and key, or None."""
        return self._standing.get(name)

    def other(self, number: int) -> int | None:
        """The job that stands in the way of this one, should it wait; None when there is none."""
        name = self._names.get(number)
        standing = None if name is None else self._standing.get(name)
        return None if standing == number else standing

    def clash(self, numbers: Iterable[int]) -> tuple[int, int] | None:
        """The first of these jobs that can't wait together with the others, and the one in its way."""
        first: dict[Name, int] = {}
        for number in numbers:
            if (name := self._names.get(number)) is not None:
                other = self._standing.get(name) or first.setdefault(name, number)
                if other != number:
                    return number, other
        return None

    def add(self, number: int, type_: str, unique: Unique) -> None:
        """A job was accepted."""
        name = (type_, unique.key)
        if number not in self._names:  # one that is carried is there already
            self.memory += _bytes_of(name)
        self._names[number] = name
        if unique.scope == "queued":
            self._while_queued.add(number)
        self._standing[name] = number

    def moved(self, number: int, state: State) -> None:
        """A job is in another state; one that comes to stand is not in another's way."""
        if (name := self._names.get(number)) is None:
            return
        if self._stands(number, state):
            self._standing.setdefault(name, number)
        elif self._standing.get(name) == number:
            del self._standing[name]

    def _stands(self, number: int, state: State) -> bool:
        return state in _WAITING or (state is State.RESERVED and number not in self._while_queued)

    def ended(self, number: int) -> None:
        """A job is done."""
        if (name := self._names.pop(number, None)) is not None:
            self.memory -= _bytes_of(name)
            self._while_queued.discard(number)
            if self._standing.get(name) == number:
                del self._standing[name]

    def rebuild(self, state_of: Callable[[int], State]) -> None:
        """After a replay: what stands, by the states of the jobs.

        Two that stand are of a journal that was repaired and has lost the end of one; the later one counts,
        as the other is likely to end first.
        """
        self._standing = {
            name: number
            for number, name in sorted(self._names.items())
            if self._stands(number, state_of(number))
        }


def _bytes_of(name: Name) -> int:
    """Estimated bytes of memory that a unique job takes here: as many when it ends as when it came."""
    key = name[1]
    return UNIQUE_BYTES + len(key) * (1 if key.isascii() else 8)
