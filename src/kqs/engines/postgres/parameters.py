"""What the engine is told, as the settings have it."""

from __future__ import annotations

from typing import Protocol


class Parameters(Protocol):
    """See :class:`kqs.settings.engines.PostgresConfig`."""

    @property
    def url(self) -> str: ...
    @property
    def schema(self) -> str: ...
    @property
    def writers(self) -> int: ...
    @property
    def leasers(self) -> int: ...
    @property
    def connect_timeout(self) -> float: ...
    @property
    def unsafe(self) -> bool: ...
