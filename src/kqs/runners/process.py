"""Ties the lives of processes together: a worker's to its parent's, an attempt's to the attempt."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Collection, Iterator
from time import monotonic, sleep

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
#: Whether the kernel lists children (Linux with CONFIG_PROC_CHILDREN); psutil reads all processes instead.
_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")
#: How long :func:`kill_descendants` goes on killing what starts new processes, or does not die, seconds.
PERSISTENCE = 5.0


def die_with_parent() -> None:
    """Be killed when the parent ends, however it ends. Linux only; elsewhere a closed socket tells.

    Safe between fork and exec: the library was loaded before.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def parent_is(pid: int) -> bool:
    """Whether the parent is still the process it was; asked after :func:`die_with_parent` (Linux)."""
    return sys.platform != "linux" or os.getppid() == pid


@contextlib.contextmanager
def no_survivors() -> Iterator[None]:
    """What is started in the block, and what that starts, ends with it, also what has left its session.

    On Linux; elsewhere what has lost its parent is not found.
    """
    before = children()
    _adopt_orphans(True)
    try:
        yield
    finally:
        kill_descendants(keep=before)
        _adopt_orphans(False)


def _adopt_orphans(adopt: bool) -> None:
    """Become the parent of descendants whose own parent ends, or not (prctl(2): PR_SET_CHILD_SUBREAPER)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(adopt))


def children(pid: int | None = None) -> set[int]:
    """Process ids of a process's children, dead ones that nobody waited for included.

    Args:
        pid: whose; None for this process.
    """
    pid = os.getpid() if pid is None else pid
    try:
        if not _LISTS_CHILDREN:
            return {child.pid for child in psutil.Process(pid).children()}
        found: set[int] = set()
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found.update(map(int, file.read().split()))
        return found
    except (OSError, psutil.Error):
        return set()  # it has ended; its children are somebody else's now


def kill_descendants(keep: Collection[int] = ()) -> None:
    """Kill and reap all that this process's children started, and the children.

    Args:
        keep: children to spare, with all that is theirs.
    """
    until = monotonic() + PERSISTENCE
    spared = set(keep)
    while (found := _descendants(spared)) and monotonic() < until:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            except PermissionError:
                spared.add(pid)  # it became another user's, by a setuid program
        sleep(0.001)
        for pid in found:
            with contextlib.suppress(ChildProcessError):  # not ours yet: its parent is still dying
                os.waitpid(pid, os.WNOHANG)


def _descendants(keep: Collection[int]) -> set[int]:
    found: set[int] = set()
    parents: list[int | None] = [None]
    while parents:
        new = children(parents.pop()).difference(keep, found)
        found |= new
        parents += new
    return found
