"""Clients: insert jobs and ask a server, blocking or with asyncio; declare jobs with App."""

from .aio import AsyncClient
from .app import App, JobFunction
from .blocking import Client

__all__ = ["App", "AsyncClient", "Client", "JobFunction"]
