"""KQS: a job service in one command.

The names below are for programs that insert jobs and declare handlers; importing them does not pull the
server in.
"""

from .client import App, AsyncClient, Client
from .core.handler import Job
from .core.outcome import Again, Fail

__all__ = ["Again", "App", "AsyncClient", "Client", "Fail", "Job"]
