"""Journal first, then the engine: for one that cannot make an insert durable by itself, or may be away."""

from .feed import Feed
from .log import Fed

__all__ = ["Fed", "Feed"]
