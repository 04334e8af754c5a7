"""``python -m tests.conformance.hanging KIND FILE``: an attempt that hangs, in a process to be killed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from kqs.core.handler import Job
from kqs.ports import Runner
from kqs.runners.command import CommandRunner
from kqs.runners.python import PythonRunner
from kqs.testing.runners import new_job

#: Says that it has begun by making the file, with its process id in it, then ignores all that can be ignored.
SCRIPT = """trap '' TERM INT HUP; echo $$ >"$0.new"; mv "$0.new" "$0"; while :; do sleep 600; done"""


def runner(kind: str, file: str) -> Runner:
    """A runner whose handler hangs."""
    if kind == "command":
        return CommandRunner(["sh", "-c", SCRIPT, file])

    def hang(_job: Job) -> None:
        Path(file).write_text("0")
        threading.Event().wait()

    return PythonRunner(hang)


if __name__ == "__main__":
    hanging = runner(*sys.argv[1:3])
    hanging.run(new_job(hanging), b"null")
