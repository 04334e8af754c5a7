"""KQS: a job service in one command.

The names below are for programs that insert jobs and declare handlers; importing them does not pull the
server in, nor asyncio before ``AsyncClient`` is asked for.
"""

import typing

from .client import App, Client
from .core.handler import Job
from .core.outcome import Again, Fail

if typing.TYPE_CHECKING:
    from .client import AsyncClient

__all__ = ["Again", "App", "AsyncClient", "Client", "Fail", "Job"]


def __getattr__(name: str) -> typing.Any:
    if name == "AsyncClient":
        from .client import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
