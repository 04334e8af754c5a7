"""``python -m kqs.runners.check``: import a worker's handlers, say what they are, exit.

Run by the server before it opens its port, in a process of its own, so that nothing a handler's module does
when it is imported reaches the server.
"""

from __future__ import annotations

import sys

import msgspec

from ..core.job import JobDefaults
from ..errors import ConfigError
from .load import app_jobs, load
from .spec import WorkerSpec

#: Exit status when a handler is refused; the last line on stderr says why.
REFUSED = 102


class Checked(msgspec.Struct, frozen=True):
    """What a worker's handlers are.

    Attributes:
        types: every job type, with the settings an app gave it (None for handlers of the config).
    """

    types: dict[str, JobDefaults | None]


def main() -> int:
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSpec)
    try:
        runners, errors = load(spec)
        if errors:
            raise errors[0]
        settings = {}
        for type_, function in app_jobs(spec).items():
            settings[type_] = function.settings
            function.check()
    except ConfigError as error:
        print("\n" + " | ".join(str(error).splitlines()), file=sys.stderr)
        return REFUSED
    types = {type_: settings.get(type_) for type_ in runners}
    print(f"\n{msgspec.json.encode(Checked(types)).decode()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
