"""A whole server in a simulated world: one integer decides everything that happens (docs/reliability.md)."""

from .simulation import Report, run

__all__ = ["Report", "run"]
