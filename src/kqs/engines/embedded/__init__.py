"""The default engine: no other server, an index over the journal."""

from .engine import EmbeddedEngine

__all__ = ["EmbeddedEngine"]
