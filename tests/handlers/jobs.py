"""Handlers for the tests, found by name: the tests' folder is first on the workers' path."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from kqs import Again, Fail, Job


def say(*words: Any) -> None:
    """One line, in one write: workers share the server's stdout."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def _hold_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def note(job: Job) -> None:
    say("note began", job.id, job.attempt)


def hold(job: Job) -> None:
    """Run until a file is there."""
    say("hold began", job.id, job.attempt)
    _hold_for(job.data)
    say("hold ended", job.id, job.attempt)


def stubborn(job: Job) -> None:
    """:func:`hold`, and not to be ended by a mere SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say("stubborn began", job.id, job.attempt)
    _hold_for(job.data)
    say("stubborn ended", job.id, job.attempt)


def again(job: Job) -> None:
    say("again began", job.id, job.attempt)
    raise Again("not yet", delay=job.data)


def fail(job: Job) -> None:
    say("fail began", job.id, job.attempt)
    raise Fail("never")
