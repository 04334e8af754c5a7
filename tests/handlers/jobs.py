"""Handlers of the tests, as a config names them: each takes a Job and says on stdout what it does."""

from __future__ import annotations

import hashlib
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


def digest(job: Job) -> None:
    """What came, told so that it can be compared."""
    data = job.data if isinstance(job.data, bytes) else repr(job.data).encode()
    kind = type(job.data).__name__
    say("digest", job.id, kind, len(data), hashlib.sha256(data).hexdigest())
