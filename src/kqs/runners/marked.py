"""Finds what a worker started by a variable of its environment, wherever it went.

A daemon leaves its process group, its session and its parent, but keeps the environment it was started with
(environ(7), /proc/PID/environ); Jenkins ends what a build left behind in the same way. A process that clears
its environment as well is not found.
"""

from __future__ import annotations

from time import monotonic, sleep

import psutil

#: The variable; its value is of one worker process alone.
NAME = "KQS_WORKER"
#: How long new ones are looked for while they are being killed, seconds.
PERSISTENCE = 5.0


def kill_marked(value: str) -> None:
    """Kill all processes of a worker; returns when none is left, or none could be found for good.

    Args:
        value: of the variable.
    """
    until = monotonic() + PERSISTENCE
    unseen = 0
    # One look misses a process whose parent ends during the look: it was not listed yet, the parent no more.
    while unseen < 2 and monotonic() < until:
        if not (found := _marked(value)):
            unseen += 1
            continue
        unseen = 0
        for process in found:
            try:
                process.kill()
            except psutil.Error:
                pass
        sleep(0.001)


def _marked(value: str) -> list[psutil.Process]:
    found = []
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            if process.environ().get(NAME) == value:
                found.append(process)
        except psutil.Error:
            continue  # it has ended, or is another user's
    return found
