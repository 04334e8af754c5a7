"""Asynchronous handlers of the tests: many of their attempts run in one process."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from typing import Any

from jobs import _hold_for, say

from kqs import Job


def began(job: Job) -> None:
    print(f"{job.type} began {job.id} {job.attempt} {os.getpid()}")


def ended(job: Job) -> None:
    print(f"{job.type} ended {job.id} {job.attempt}")


async def until_there(path: str) -> None:
    while not os.path.exists(path):
        await asyncio.sleep(0.01)


async def hold(job: Job) -> None:
    """Run until a file is there."""
    began(job)
    try:
        await until_there(job.data)
    except asyncio.CancelledError:
        print(f"{job.type} cancelled {job.id} {job.cancelled}")
        raise
    ended(job)


async def deaf(job: Job) -> None:
    """Not to be cancelled; the first attempt only."""
    began(job)
    while job.attempt == 1:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def blocks(job: Job) -> None:
    """Keep the loop from running, in a task of its own; the first attempt only."""
    began(job)
    if job.attempt == 1:
        await asyncio.create_task(_block(job.data))


async def _block(path: str) -> None:
    _hold_for(path)


async def dies(job: Job) -> None:
    """Wait for a file, then end the process; ``data`` is the file, and how often."""
    began(job)
    path, times = job.data
    await until_there(path)
    if job.attempt <= times:
        os.kill(os.getpid(), signal.SIGKILL)


async def prints(job: Job) -> None:
    """Print by turns with others."""
    for number in range(5):
        print(f"line {number}")
        await asyncio.sleep(0.002)
        print("on stderr", file=sys.stderr)
        await asyncio.to_thread(print, "from a thread")
    sys.stdout.write("no end of line")


async def renew(job: Job) -> None:
    """Work longer than the ttr, renewing."""
    began(job)
    for _ in range(job.data["times"]):
        await asyncio.sleep(job.data["every"])
        job.renew()
    ended(job)


async def sleep(job: Job) -> None:
    began(job)
    await asyncio.sleep(job.data)
    ended(job)


_seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


async def context(job: Job) -> None:
    before = _seen.get()
    _seen.set(job.id)
    await asyncio.sleep(0.01)
    print(f"context {job.id} {before} {_seen.get() == job.id}")


async def child_exits(job: Job) -> None:
    """A task beside the handler's own ends with SystemExit."""

    async def leave() -> None:
        sys.exit(3)

    beside = asyncio.create_task(leave())
    await asyncio.sleep(0.01)
    assert beside.done()
    ended(job)


async def forked_return(job: Job) -> None:
    """Fork, and come back twice."""
    if os.fork():
        await asyncio.sleep(0.01)
        ended(job)
    else:
        await asyncio.sleep(0)
        print(f"child went on {job.id}")


async def forks(job: Job) -> None:
    """Fork; the child lets others run, the parent goes on when it has ended."""
    if child := os.fork():
        os.waitpid(child, 0)
    else:
        await asyncio.sleep(0)


async def says(job: Job) -> None:
    say("says", job.id, os.getpid())


_kept: list[bytearray] = []


async def grow(job: Job) -> None:
    """Keep some memory."""
    _kept.append(bytearray(os.urandom(1 << 20)) * job.data)
    print(f"{job.type} ended {job.id} {os.getpid()}")


# -- the storm: a fault at the first attempt, none at the second --------------------------------------


def daemon(job: Job) -> None:
    """Leave a daemon, once it has said its number: it has left process group, session and parent."""
    said, say_so = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            say("daemon", job.id, os.getpid())
            os.close(say_so)
            time.sleep(600)
        os._exit(0)
    os.close(say_so)
    os.waitpid(child, 0)
    os.read(said, 1)
    os.close(said)


def with_daemon(job: Job) -> None:
    daemon(job)
    if job.data["end"] == "death":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.data["end"] == "exit":
        os._exit(0)
    time.sleep(600)


def _bomb(depth: int) -> None:
    for _ in range(depth):
        if os.fork() == 0:
            os.setsid()
            _bomb(depth - 1)
            time.sleep(600)
            os._exit(0)


def _out_of_memory() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), hard))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _fault(job: Job, how: str) -> Any:
    match how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "exit":
            os._exit(0)
        case "segfault":
            ctypes.string_at(0)
        case "memory":
            _out_of_memory()
        case "bomb":
            _bomb(4)
            time.sleep(600)
        case "daemon":
            daemon(job)
            time.sleep(600)
        case "flood":
            os.system("timeout 1 head -c 2000000000 /dev/zero")
            raise RuntimeError("said much")
        case "descriptors":
            os.closerange(0, 1000)
        case "system exit":
            sys.exit(1)
        case "fork":
            if os.fork() == 0:
                return None  # comes back with the child
            raise RuntimeError("the parent goes on")
        case "threads":
            for _ in range(20):
                threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
            raise RuntimeError("left threads")
        case "block":
            time.sleep(600)
    return None


def storm(job: Job) -> None:
    """Do harm, then nothing but write down that the job ran to its end."""
    if job.attempt == 1:
        _fault(job, job.data)
    _write_down(job)


async def astorm(job: Job) -> None:
    await asyncio.sleep(0)
    if job.attempt == 1:
        if job.data == "deaf":
            await deaf(job)
        _fault(job, job.data)
    await asyncio.sleep(0)
    _write_down(job)


def _write_down(job: Job) -> None:
    with open("ran", "ab", buffering=0) as file:
        file.write(f"{job.id} {job.attempt}\n".encode())
