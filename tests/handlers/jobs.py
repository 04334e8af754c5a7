"""Handlers of the tests, as a config names them: each takes a Job and says on stdout what it does."""

from __future__ import annotations

import asyncio
import ctypes
import datetime as dt
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
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


def until_cancelled(job: Job) -> None:
    """Run until nobody wants it any more."""
    say("until_cancelled began", job.id, job.attempt)
    while not job.cancelled:
        time.sleep(0.01)
    say("until_cancelled ended", job.id, job.attempt)


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


# -- ways to end, by the payload ----------------------------------------------------------------------


class Odd(Exception):
    pass


def end(job: Job) -> Any:
    """End the way ``data["how"]`` says."""
    say("end began", job.id, job.attempt)
    how, value = job.data["how"], job.data.get("value")
    match how:
        case "return":
            return value
        case "return_object":
            return object()
        case "again":
            raise Again(job.data.get("reason", ""), delay=value)
        case "fail":
            raise Fail(job.data.get("reason", ""))
        case "raise":
            _deeper(value)
        case "system_exit":
            sys.exit(value)
        case "keyboard_interrupt":
            raise KeyboardInterrupt
        case "generator_exit":
            raise GeneratorExit
        case "base_exception":
            raise BaseException("the root")
        case "chain":
            try:
                {}["missing"]
            except KeyError as error:
                raise Odd("wrapped") from error
        case "no_message":
            raise Odd
        case "many_lines":
            raise Odd("first\nsecond\nthird")
        case "huge_message":
            raise Odd("x" * 1_000_000)
        case "bad_str":
            raise Unprintable
        case "surrogate":
            raise Odd("\udcff")
        case "recursion":
            _forever(0)
        case "_exit":
            os._exit(value)
        case "signal":
            os.kill(os.getpid(), value)
            time.sleep(600)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
    raise AssertionError(f"no way {how!r}")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("not even that")


def _deeper(value: str) -> None:
    raise Odd(value)


def _forever(depth: int) -> int:
    return _forever(depth + 1) + 1


async def async_end(job: Job) -> Any:
    await asyncio.sleep(0)
    return end(job)


def once(job: Job) -> None:
    """Die the first time, succeed the second."""
    say("once began", job.id, job.attempt)
    if job.attempt == 1:
        os._exit(9)


# -- what a handler leaves behind -----------------------------------------------------------------------


def spawn(job: Job) -> None:
    """Leave processes behind; returns at once, or never when ``data["stay"]``."""
    for how in job.data["leave"]:
        if how == "sh":
            child = subprocess.Popen(["sleep", "600"])
        elif how == "setsid":
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        elif how == "deaf":
            child = subprocess.Popen(["sh", "-c", "trap '' TERM HUP INT; sleep 600; sleep 600"])
        else:
            pid = os.fork()
            if pid == 0:
                if how == "fork setsid":
                    os.setsid()
                time.sleep(600)
                os._exit(0)
            say("left", job.id, pid)
            continue
        say("left", job.id, child.pid)
    say("spawn began", job.id, job.attempt)
    if job.data.get("stay"):
        time.sleep(600)


def prints(job: Job) -> None:
    """Print in every way there is; then die if ``data["die"]``."""
    text = job.data["text"]
    print(text)
    os.write(1, f"{text} from C\n".encode())
    subprocess.run(["echo", f"{text} from a child"], check=True)
    print(f"{text} on stderr", file=sys.stderr)
    sys.stderr.write("no end of line")
    if job.data.get("die"):
        os._exit(9)


def flood(job: Job) -> None:
    """Much to say, on both streams."""
    for _ in range(job.data):
        sys.stdout.write("o" * 999 + "\n")
        sys.stderr.write("e" * 999 + "\n")
    sys.stdout.flush()
    say("flood ended", job.id)


def close_all(job: Job) -> None:
    """Close every descriptor there is, the worker's link included."""
    say("close_all began", job.id, job.attempt)
    os.closerange(0, 1000)


def close_stdio(job: Job) -> None:
    """Close the standard streams only."""
    say("close_stdio began", job.id, job.attempt)
    for fd in (0, 1, 2):
        os.close(fd)


def threads(job: Job) -> None:
    """Leave a thread that never ends."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    say("threads began", job.id, job.attempt)


def sleep(job: Job) -> None:
    say("sleep began", job.id, job.attempt)
    time.sleep(job.data)
    say("sleep ended", job.id, job.attempt)


def block(job: Job) -> None:
    """Sleep where no signal handler runs: in C, every signal blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    say("block began", job.id, job.attempt)
    time.sleep(600)


# -- the job's own calls ----------------------------------------------------------------------------------


def members(job: Job) -> None:
    """Everything a Job has."""
    say(
        "members",
        json.dumps(
            {
                "id": job.id,
                "type": job.type,
                "data": job.data,
                "attempt": job.attempt,
                "prio": job.prio,
                "aware": [job.inserted_at.tzinfo is not None, job.deadline.tzinfo is not None],
                "ttr_left": (job.deadline - dt.datetime.now(dt.UTC)).total_seconds(),
                "cancelled": job.cancelled,
                "repr": repr(job),
            }
        ),
    )
    job.log.warning("something to note")


def progress(job: Job) -> None:
    """Tell how far it is, then hold."""
    job.progress(0.25, "a quarter")
    say("progress began", job.id, job.attempt)
    _hold_for(job.data)
    job.progress(1, "all")


def renew(job: Job) -> None:
    """Work three times as long as the ttr, renewing."""
    say("renew began", job.id, job.attempt)
    kept = True
    for _ in range(job.data["times"]):
        time.sleep(job.data["every"])
        kept = kept and job.renew()
    say("renew ended", job.id, job.attempt, kept, job.cancelled)


def forked_return(job: Job) -> None:
    """Fork, and come back twice."""
    if os.fork():
        say("forked_return began", job.id, job.attempt)


# -- mistakes ------------------------------------------------------------------------------------------


def generator(job: Job) -> Any:
    yield job.data


async def async_generator(job: Job) -> Any:
    yield job.data


class Holder:
    @staticmethod
    def method(job: Job) -> None:
        say("nested", job.id, job.data)


def ledger(job: Job) -> None:
    """Write down, outside of the server, that this number ran; one write, so that a kill leaves it whole."""
    number, padding = job.data
    assert padding == "x" * len(padding)
    with open("ran", "ab", buffering=0) as file:
        file.write(b"%d\n" % number)
