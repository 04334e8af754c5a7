"""Ties a process's life to its parent's."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Be killed when the parent ends, however it ends. Linux only; elsewhere a closed socket tells.

    Safe between fork and exec: the library was loaded before.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def parent_is(pid: int) -> bool:
    """Whether the parent is still the process it was; asked after :func:`die_with_parent` (Linux)."""
    return sys.platform != "linux" or os.getppid() == pid
