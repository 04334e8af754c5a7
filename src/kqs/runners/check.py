"""``python -m kqs.runners.check``: import a worker's handlers, say what they are, exit.

Run by the server before it opens its port, in a process of its own, so that nothing a handler's module does
when it is imported reaches the server.
"""

from __future__ import annotations

import sys

import msgspec

from ..core.job import JobSettings
from ..errors import ConfigError
from ..ports import AsyncRunner
from . import code
from .load import app_jobs, load
from .spec import WorkerSpec

#: Exit status when a handler is refused; the last line on stderr says why.
REFUSED = 102


class Checked(msgspec.Struct, frozen=True):
    """What a worker's handlers are.

    Attributes:
        app: the settings of the app's job types.
        blocking: job types whose attempts can't share a process: their handlers are not async.
        roots: packages and modules below the working directory that were imported.
        stamp: see :func:`kqs.runners.code.stamp`.
    """

    app: dict[str, JobSettings]
    blocking: list[str]
    roots: list[str]
    stamp: str


def main() -> int:
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSpec)
    try:
        runners, errors = load(spec)
        if errors:
            raise errors[0]
        functions = app_jobs(spec)
        for function in functions.values():
            function.check()
    except ConfigError as error:
        print("\n" + " | ".join(str(error).splitlines()), file=sys.stderr)
        return REFUSED
    roots = code.imported(spec.path) if spec.path is not None else []
    checked = Checked(
        app={type_: function.settings for type_, function in functions.items()},
        blocking=sorted(type_ for type_, runner in runners.items() if not isinstance(runner, AsyncRunner)),
        roots=roots,
        stamp=code.stamp(roots),
    )
    print(f"\n{msgspec.json.encode(checked).decode()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
