"""What happens to a server in one seed: its lives, and what goes wrong in each."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from random import Random
from typing import Literal

from ..faults import CHANGES, CRASH, SHORT, Fault, Operation

#: What ends a life: power is cut, the process is killed, it is asked to quit.
End = Literal["power", "kill", "quit"]

_DAY = 86_400.0
_JUMPS = (0.0, 0.0, 0.0, 3.0, -3.0, 3600.0, -3600.0, 2 * _DAY, -2 * _DAY, 3650 * _DAY, -3650 * _DAY)


@dataclass
class Life:
    """One life of the server.

    Attributes:
        seconds: it ends after these at the latest.
        end: how.
        crash_at: it ends at this operation of the disk instead, counted from its start; 0 for none.
        error_at: this operation that changes something fails with ``EIO``; 0 for none.
        read_error_at: this reading operation fails so, if it is one of the start's; 0 for none.
        short: share of writes that take a part only.
        room: bytes the disk has left when it gets full, or None when it does not.
        full_from, full_for: seconds after the start at which it gets full (0: before it), and for how long.
        jump: the wall clock is set by these seconds before it.
        jump_within: and by these while it runs.
        flip: whether a bit of a file is turned over before it.
        bulk_failing: share of payloads the bulk store fails to store.
    """

    seconds: float
    end: End
    crash_at: int = 0
    error_at: int = 0
    read_error_at: int = 0
    short: float = 0.0
    room: int | None = None
    full_from: float = 0.0
    full_for: float = 0.0
    jump: float = 0.0
    jump_within: float = 0.0
    flip: bool = False
    bulk_failing: float = 0.0


@dataclass
class Plan:
    """All of one seed.

    Attributes:
        lives: the troubled ones; a quiet one follows them.
        segment_size, payload_window: of the journal, bytes.
        inserters, workers: how many.
        buffer: bytes a connection holds.
    """

    lives: list[Life]
    segment_size: int
    payload_window: int
    inserters: int
    workers: int
    buffer: int


def make_plan(random: Random) -> Plan:
    """Draw a plan."""
    return Plan(
        [_life(random, number) for number in range(random.randrange(1, 4))],
        random.choice((2048, 4096, 16384)),
        random.choice((0, 1024, 1 << 20)),
        random.randrange(1, 4),
        random.randrange(1, 4),
        random.choice((1024, 1 << 16, 1 << 16)),
    )


def _life(random: Random, number: int) -> Life:
    life = Life(random.choice((0.02, 0.1, 0.2)), random.choice(("power", "power", "kill", "quit")))
    draw = random.random()
    if draw < 0.45:
        life.crash_at = 1 + int(150 * random.random() ** 2)
        life.end = random.choice(("power", "power", "kill"))
    elif draw < 0.6:
        life.error_at = 1 + int(80 * random.random() ** 2)
    elif draw < 0.65:
        life.read_error_at = random.randrange(1, 8)
    if random.random() < 0.2:
        life.short = 0.2
    if random.random() < 0.15:
        life.room = random.choice((0, 100, 1000, 5000, 20_000))
        life.full_from = random.choice((0.0, 0.02)) if number else 0.02
        life.full_for = random.choice((0.02, 0.1, 10.0))
    if random.random() < 0.5:
        life.jump = random.choice(_JUMPS)
    if random.random() < 0.2:
        life.jump_within = random.choice(_JUMPS)
    life.flip = number > 0 and random.random() < 0.1
    life.bulk_failing = 0.3 if random.random() < 0.2 else 0.0
    return life


class Trouble:
    """Decides what the disk does in one life.

    Args:
        life: the plan.
        random: draws.

    Attributes:
        started: whether the server has started: reads fail only before, as a payload that cannot be read is
            another story.
        crashed: whether the life is over, by an operation that never returned.
        full_at: when the disk got full under the server, nanoseconds on the timeline.
        remount: whether the file system could not write its own log: it takes no more writes then, and only a
            start of the machine brings it back.
        went_on: what was written or synced after an operation had failed, which must not be (G5), or ``""``.
        errors, shorts: how many operations failed, or did a part only.
    """

    def __init__(self, life: Life, random: Random) -> None:
        self.life = life
        self._random = random
        self._operations = self._changes = self._reads = 0
        self.started = False
        self.crashed = False
        self.remount = False
        self.full_at = -1_000_000_000
        self.went_on = ""
        self.errors = 0
        self.shorts = 0

    def __call__(self, operation: Operation) -> Fault | None:
        """What goes wrong with an operation."""
        life = self.life
        self._operations += 1
        if self._operations == life.crash_at:
            self.crashed = True
            return CRASH
        if operation.kind in CHANGES:
            if self.errors and operation.kind != "unlink":
                self.went_on = f"{operation.kind} {operation.path}"
            self._changes += 1
            # On a full disk an allocation fails for lack of space instead, and that is no failure.
            full = operation.kind == "allocate" and life.room is not None
            if self._changes >= life.error_at > 0 and not self.errors and not full:
                self.errors += 1
                self.remount = operation.kind == "sync_dir"
                return Fault("error", errno.EIO)
        elif not self.started:
            self._reads += 1
            if self._reads == life.read_error_at:
                self.errors += 1
                return Fault("error", errno.EIO)
        if operation.kind == "pwrite" and life.short and self._random.random() < life.short:
            self.shorts += 1
            return SHORT
        return None
