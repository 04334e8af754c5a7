"""The demo's handler: compress one file, note its checksum. Running it more than once does no harm."""

from __future__ import annotations

import gzip
import hashlib
import os

import msgspec

from ..core.handler import Job

RUNS = "runs.log"


class Task(msgspec.Struct):
    """A demo job's payload.

    Attributes:
        source: the file to compress.
        output: the folder the results go to.
        name: what to call them there.
    """

    source: str
    output: str
    name: str


class Summary(msgspec.Struct):
    """What a job writes beside the compressed file."""

    source: str
    sha256: str
    size: int
    compressed: int


def compress(job: Job) -> None:
    """Write ``NAME.gz`` and ``NAME.json`` into the output folder, each by rename: whole or not there."""
    task = msgspec.convert(job.data, Task)
    runs = os.open(f"{task.output}/{RUNS}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(runs, f"{job.id} {job.attempt}\n".encode())
    finally:
        os.close(runs)
    with open(task.source, "rb") as file:
        data = file.read()
    packed = gzip.compress(data, 6, mtime=0)
    summary = Summary(task.source, hashlib.sha256(data).hexdigest(), len(data), len(packed))
    _write(f"{task.output}/{task.name}.gz", packed)
    _write(f"{task.output}/{task.name}.json", msgspec.json.encode(summary))


def _write(path: str, data: bytes) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
