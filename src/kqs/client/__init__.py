"""Clients: insert jobs and ask a server, blocking or with asyncio; declare jobs with App."""

import typing

from .app import App, JobFunction
from .blocking import Client

if typing.TYPE_CHECKING:
    from .aio import AsyncClient

__all__ = ["App", "AsyncClient", "Client", "JobFunction"]


def __getattr__(name: str) -> typing.Any:
    if name == "AsyncClient":  # asyncio is most of what importing this would take
        from .aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
