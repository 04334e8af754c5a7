"""What is said to PostgreSQL, without I/O: a generator yields statements and is sent their rows.

Whoever drives one throws the error of a statement into it.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from psycopg import errors as pg

from ..core.job import NewJob
from .copying import copied, copy_into, encode

T = TypeVar("T")


class Query(NamedTuple):
    """A statement, and the values in it."""

    text: str
    values: Sequence[Any] = ()


class Copy(NamedTuple):
    """A COPY, and what it is given; it has no rows."""

    text: str
    data: bytes


Steps: TypeAlias = Generator[Query | Copy, Sequence[tuple[Any, ...]], T]


class SortedOut(NamedTuple):
    """What becomes of the jobs of a call.

    Attributes:
        numbers: of each: its own, or that of the one that was there before.
        duplicates: positions of those that were.
        fresh: the new ones, with their numbers.
        keys: their idempotency keys, with the numbers of their jobs.
    """

    numbers: list[int]
    duplicates: list[int]
    fresh: list[tuple[NewJob, int]]
    keys: list[tuple[str, int]]


def copy_new(at: str, fresh: Sequence[tuple[NewJob, int]], now: int) -> Copy:
    """The COPY of new jobs.

    Args:
        at: what stands before the name of a table.
        fresh: jobs and their numbers.
        now: microseconds.
    """
    return Copy(copy_into(at), copied(encode(job, number, now) for job, number in fresh))


def insert_once(
    at: str, jobs: Sequence[NewJob], spare: Sequence[int], now: int, window: int
) -> Steps[SortedOut]:
    """Insert the jobs that are new; the others get the number of the one that has their key.

    Args:
        at: what stands before the name of a table.
        jobs: valid ones.
        spare: numbers for all.
        now: microseconds.
        window: microseconds a key is remembered.

    Raises:
        UniqueViolation: another transaction that had the same in mind was first. Once this one's are taken
            back, the same again finds them, unless the isolation level hides them.
    """
    keys = sorted({job.options.key for job in jobs if job.options.key is not None})
    names = sorted({(job.type, job.options.unique.key) for job in jobs if job.options.unique is not None})
    used: dict[str, int] = {}
    stand: dict[tuple[str, str], int] = {}
    if keys:
        rows = yield Query(
            f"SELECT key, job FROM {at}key WHERE key = ANY(%s::text[]) AND at > %s::bigint",
            [keys, now - window],
        )
        used = {row[0]: row[1] for row in rows}
    if names:
        rows = yield Query(
            f"SELECT type, unique_key, id FROM {at}job WHERE (type, unique_key) IN (SELECT * FROM"
            " unnest(%s::text[], %s::text[])) AND (state IN (1, 2) OR (state = 3 AND NOT unique_queued))",
            [[name[0] for name in names], [name[1] for name in names]],
        )
        stand = {(row[0], row[1]): row[2] for row in rows}
    found = sort_out(jobs, spare, used, stand)
    if found.keys:
        rows = yield Query(
            f"INSERT INTO {at}key AS k SELECT n.k, n.j, %s::bigint FROM unnest(%s::text[], %s::bigint[])"
            " AS n (k, j) ORDER BY n.k ON CONFLICT (key) DO UPDATE SET job = excluded.job, at = excluded.at"
            " WHERE k.at <= %s::bigint RETURNING 1",
            [now, [key for key, _ in found.keys], [number for _, number in found.keys], now - window],
        )
        if len(rows) < len(found.keys):
            raise pg.UniqueViolation("another transaction has used the same key meanwhile")
    if found.fresh:
        # In order of their unique keys, so that of two transactions one waits and not each for the other.
        yield copy_new(at, sorted(found.fresh, key=lambda fresh: _name(fresh[0]) or ("", "")), now)
    return found


def sort_out(
    jobs: Sequence[NewJob], spare: Sequence[int], used: dict[str, int], stand: dict[tuple[str, str], int]
) -> SortedOut:
    """Tell new jobs from those that were there before.

    Args:
        jobs: in order; an earlier one counts for a later one.
        spare: numbers for all.
        used: numbers of jobs by their keys; those of new jobs are added.
        stand: numbers of unique jobs that stand; those of new jobs are added.
    """
    found = SortedOut([], [], [], [])
    for position, job in enumerate(jobs):
        key, name = job.options.key, _name(job)
        number = None if key is None else used.get(key)
        if number is None and name is not None:
            number = stand.get(name)
        if number is None:
            number = spare[len(found.fresh)]
            found.fresh.append((job, number))
            if key is not None:
                used[key] = number
                found.keys.append((key, number))
            if name is not None:
                stand[name] = number
        else:
            found.duplicates.append(position)
        found.numbers.append(number)
    return found


def _name(job: NewJob) -> tuple[str, str] | None:
    """What a unique job is told by."""
    unique = job.options.unique
    return None if unique is None else (job.type, unique.key)
