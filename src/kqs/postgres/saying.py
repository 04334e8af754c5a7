"""Says a statement over a connection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncCursor, Cursor
from psycopg.rows import TupleRow

from .statements import Copy, Query


def say(cursor: Cursor[TupleRow], step: Query | Copy) -> Sequence[tuple[Any, ...]]:
    """Returns the rows it gives."""
    if isinstance(step, Copy):
        with cursor.copy(step.text.encode()) as into:
            into.write(step.data)
        return ()
    cursor.execute(step.text.encode(), step.values)
    return cursor.fetchall() if cursor.description else ()


async def asay(cursor: AsyncCursor[TupleRow], step: Query | Copy) -> Sequence[tuple[Any, ...]]:
    """:func:`say` for asyncio."""
    if isinstance(step, Copy):
        async with cursor.copy(step.text.encode()) as into:
            await into.write(step.data)
        return ()
    await cursor.execute(step.text.encode(), step.values)
    return await cursor.fetchall() if cursor.description else ()
