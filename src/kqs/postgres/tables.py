"""What the tables, their schema and the channel are called, and what they hold."""

from __future__ import annotations

import re
from typing import Final

from ..core.job import NEEDS
from ..errors import ConfigError

#: The version of the tables this code works with: the number of the newest migration.
VERSION: Final = 3
#: What fields of a job the tables have a place for.
CAPABILITIES: Final = frozenset(NEEDS.values())
#: The largest payload a row holds, bytes.
MAX_PAYLOAD: Final = 64 * 1024 * 1024
#: Seconds an idempotency key is remembered.
KEY_WINDOW: Final = 86_400.0
#: Numbers are taken from the sequence this many at a time: its increment.
BLOCK: Final = 1000

#: As in the settings.
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


def qualified(schema: str) -> str:
    """What stands before the name of a table, so that no search_path matters.

    Raises:
        ConfigError: that is no name of a schema of KQS.
    """
    if not _SCHEMA.fullmatch(schema):
        raise ConfigError(f"schema: {schema!r} must be of a to z, 0 to 9 and _, 63 at most, no digit first")
    return f'"{schema}".'


def channel(schema: str) -> str:
    """Where servers are told of changes; PostgreSQL takes 63 characters."""
    return f"kqs_{schema}"[:63]


def refuse_version(schema: str, have: int) -> None:
    """Refuse tables that are not those this version works with.

    Args:
        schema: where they are.
        have: their version; 0: there are none.

    Raises:
        ConfigError: they are older or newer; it says what to do.
    """
    if have > VERSION:
        raise ConfigError(
            f"the schema {schema!r} is at version {have}, this KQS knows {VERSION} at most: "
            f"run the version of KQS that migrated it, or a later one"
        )
    if not have:
        raise ConfigError(no_tables(schema))
    if have < VERSION:
        raise ConfigError(
            f"the schema {schema!r} is at version {have}, this KQS needs version {VERSION}: "
            "run kqs engine migrate"
        )


def no_tables(schema: str) -> str:
    """What to do about a schema that is empty, or is not there."""
    return (
        f"the schema {schema!r} has no tables yet, this KQS needs version {VERSION}: run kqs engine migrate"
    )
