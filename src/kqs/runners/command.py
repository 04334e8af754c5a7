"""Runs a command for a job: fixed argv, no shell, the payload on its stdin, a clean environment."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any

from ..core.handler import Job
from ..core.outcome import OK, Attempted, Reason, exit_outcome
from .process import die_with_parent

#: Bytes of each of stdout and stderr that are kept: the last ones.
KEEP = 8 * 1024
#: What a command inherits of the worker's environment.
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
#: How often a command that closed neither pipe is looked at, seconds.
_LOOK = 0.05


class CommandRunner:
    """See :class:`kqs.ports.Runner`.

    Args:
        argv: program and arguments, the same for every job.
        env: what its environment holds beside the little it inherits.
    """

    decodes = False

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._argv = list(argv)
        self._env = dict(env or {})

    def run(self, job: Job, payload: bytes) -> Attempted:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment |= self._env
        environment |= {"KQS_JOB_ID": job.id, "KQS_TYPE": job.type, "KQS_ATTEMPT": str(job.attempt)}
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                process_group=0,
                preexec_fn=die_with_parent,
            )
        except (OSError, ValueError) as error:
            return Attempted("again", None, Reason(f"cannot start {self._argv[0]}: {error}", "command"))
        try:
            output = _converse(process, payload)
            status = process.wait()
        finally:
            _kill_group(process.pid)
        outcome, reason = exit_outcome(status)
        if reason is None:
            return OK
        last = (output[1] or output[0]).decode("utf-8", "replace").strip()
        kind = "signal" if status < 0 else "exit"
        return Attempted(outcome, None, Reason(reason, kind, last or None))


def _kill_group(group: int) -> None:
    """End what the command left running behind it."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _converse(process: subprocess.Popen[bytes], payload: bytes) -> tuple[bytes, bytes]:
    """Feed stdin and read both outputs at once, so that no full pipe blocks either side.

    Returns:
        The last bytes of stdout and of stderr. A child left behind with the pipes open is not waited for.
    """
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    assert stdin is not None and stdout is not None and stderr is not None
    kept: dict[IO[bytes], bytes] = {stdout: b"", stderr: b""}
    view = memoryview(payload)
    with selectors.DefaultSelector() as selector, stdin, stdout, stderr:
        for end in (stdin, stdout, stderr):
            os.set_blocking(end.fileno(), False)
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(stdout, selectors.EVENT_READ)
        selector.register(stderr, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(_LOOK)
            if not ready and process.poll() is not None:
                break
            for key, _events in ready:
                pipe: Any = key.fileobj
                if pipe is stdin:
                    view = _feed(stdin, view)
                    if not view:
                        selector.unregister(stdin)
                        stdin.close()
                elif part := os.read(pipe.fileno(), 65536):
                    kept[pipe] = (kept[pipe] + part)[-KEEP:]
                else:
                    selector.unregister(pipe)
    return kept[stdout], kept[stderr]


def _feed(stdin: IO[bytes], view: memoryview) -> memoryview:
    """Write what fits; what is left, nothing when the command does not read on."""
    try:
        return view[os.write(stdin.fileno(), view) :]
    except BlockingIOError:
        return view
    except BrokenPipeError:
        return view[:0]
