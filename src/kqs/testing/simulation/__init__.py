"""A whole server in a simulated world: one integer decides everything that happens (docs/reliability.md)."""

from .runs import Report, run

__all__ = ["Report", "run"]
