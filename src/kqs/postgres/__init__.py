"""Insert jobs into the engine's PostgreSQL within a transaction of one's own, with psycopg 3.

The jobs are there when that transaction commits, and never were when it does not. No server of KQS needs to
be reached. The rest of this package is what the engine and this have in common.
"""

from .insert import ainsert, insert

__all__ = ["ainsert", "insert"]
