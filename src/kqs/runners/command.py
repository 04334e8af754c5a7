"""Runs a command for a job: fixed argv, no shell, the payload on its stdin, a clean environment."""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from ..core.handler import Job
from ..core.outcome import OK, Attempted, Reason, exit_outcome
from . import marked
from .output import KEEP, text, too_large, with_result
from .process import die_with_parent, no_survivors

#: Bytes of stdout that make a result.
MAX_OUTPUT = 64 * 1024
#: What a command inherits of the worker's environment; by the mark it is found when the worker was killed.
_ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LOGNAME",
    "PATH",
    "SHELL",
    "TMPDIR",
    "TZ",
    "USER",
    marked.NAME,
)
#: How often a command that says nothing and closes neither pipe is looked at, seconds.
_LOOK = 0.05
#: Bytes read at once; a pipe holds as many by default.
_PART = 64 * 1024
#: Most that is read of each pipe after the command's end: what a pipe can hold (pipe(7), pipe-max-size).
_LEFT_OVER = 1024 * 1024


class CommandRunner:
    """See :class:`kqs.ports.Runner`.

    When the command ends, all that it started and that still runs is killed.

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
        with no_survivors():
            try:
                process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env=environment,
                    process_group=0,
                    preexec_fn=die_with_parent,
                )
            except (OSError, ValueError) as error:
                return Attempted("again", None, Reason(f"cannot start {self._argv[0]}: {error}", "command"))
            with _Pipes(process, payload) as pipes:
                pipes.converse()
                status = process.wait()
                pipes.drain()
        outcome, reason = exit_outcome(status)
        if reason is not None:
            said = text(pipes.stderr.last(KEEP)) or text(pipes.stdout.last(KEEP))
            return Attempted(outcome, None, Reason(reason, "signal" if status < 0 else "exit", said))
        if not job.wants_result:
            return OK
        if pipes.stdout.size > MAX_OUTPUT:
            return too_large(MAX_OUTPUT)
        return with_result(pipes.stdout.last(MAX_OUTPUT))


class _Output:
    """One of the pipes a command writes to; of what it writes the last bytes are kept.

    Attributes:
        size: bytes written so far.
    """

    def __init__(self, pipe: IO[bytes], keep: int) -> None:
        self.pipe = pipe
        self.size = 0
        self._keep = keep
        self._kept = b""

    def read(self) -> int:
        """Take what is there; returns how much, 0 at the end.

        Raises:
            BlockingIOError: nothing is there now.
        """
        part = os.read(self.pipe.fileno(), _PART)
        self.size += len(part)
        self._kept = (self._kept + part)[-self._keep :]
        return len(part)

    def last(self, size: int) -> bytes:
        return self._kept[-size:]


class _Pipes:
    """Both ways of talking to a command at once, so that no full pipe blocks either side."""

    def __init__(self, process: subprocess.Popen[bytes], payload: bytes) -> None:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self._process = process
        self._stdin = process.stdin
        self._unsent = memoryview(payload)
        self.stdout = _Output(process.stdout, MAX_OUTPUT)
        self.stderr = _Output(process.stderr, KEEP)

    def __enter__(self) -> _Pipes:
        for pipe in (self._stdin, self.stdout.pipe, self.stderr.pipe):
            os.set_blocking(pipe.fileno(), False)
        return self

    def __exit__(self, *_error: object) -> None:
        for pipe in (self._stdin, self.stdout.pipe, self.stderr.pipe):
            pipe.close()

    def converse(self) -> None:
        """Return when the command has ended, or has closed all its ends of the pipes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            selector.register(self.stdout.pipe, selectors.EVENT_READ, self.stdout)
            selector.register(self.stderr.pipe, selectors.EVENT_READ, self.stderr)
            while selector.get_map() and self._process.poll() is None:
                for key, _events in selector.select(_LOOK):
                    if key.data is None:
                        self._feed()
                        if not self._unsent:
                            selector.unregister(self._stdin)
                            self._stdin.close()
                    elif not key.data.read():
                        selector.unregister(key.data.pipe)

    def drain(self) -> None:
        """Take what an ended command left in its pipes; what still holds them open is not waited for."""
        for output in (self.stdout, self.stderr):
            most = output.size + _LEFT_OVER
            with suppress(BlockingIOError):
                while output.read() and output.size < most:
                    pass

    def _feed(self) -> None:
        """Write what fits; nothing is left to write when the command does not read on."""
        try:
            self._unsent = self._unsent[os.write(self._stdin.fileno(), self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent = self._unsent[:0]
