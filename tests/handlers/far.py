"""An App for ``kqs worker far:app``: every attempt leaves its beginning and end in a file."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from kqs import App, Fail, Job

app = App()


def _note(path: str, what: str, job: Job) -> None:
    """One line, in one write: several processes share the file."""
    line = f"{what} {job.id} {job.attempt} {os.getpid()}\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, line.encode())
    os.close(fd)


@app.job("record")
def record(path: str, job: Job, seconds: float = 0.0) -> str:
    _note(path, "began", job)
    time.sleep(seconds)
    _note(path, "ended", job)
    return job.id


@app.job("hold")
def hold(path: str, gate: str, job: Job) -> None:
    """Run until a file is there."""
    _note(path, "began", job)
    while not os.path.exists(gate):
        time.sleep(0.01)
    _note(path, "ended", job)


@app.job("ahold")
async def ahold(path: str, gate: str, job: Job) -> None:
    _note(path, "began", job)
    try:
        while not os.path.exists(gate):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        _note(path, "cancelled", job)
        raise
    _note(path, "ended", job)


@app.job("kept", ttr=1, keep_alive=True)
def kept(path: str, gate: str, job: Job) -> None:
    hold(path, gate, job)


@app.job("akept", ttr=1, keep_alive=True)
async def akept(path: str, gate: str, job: Job) -> None:
    await ahold(path, gate, job)


@app.job("limited", ttr=1, keep_alive=True, max_runtime=1.5)
def limited(path: str, gate: str, job: Job) -> None:
    hold(path, gate, job)


@app.job("die")
def die(path: str, job: Job) -> None:
    _note(path, "began", job)
    os.kill(os.getpid(), signal.SIGKILL)


@app.job("bad")
def bad() -> None:
    raise Fail("it never can")


@app.job("bytes")
def binary(data: bytes) -> str:
    return data.hex()
