"""The engine on PostgreSQL 13 or newer."""

from .engine import PostgresEngine, open
from .schema import migrate, schema_version

__all__ = ["PostgresEngine", "migrate", "open", "schema_version"]
