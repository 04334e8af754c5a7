"""Functions and payloads for the tests of ``@app.job``."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import logging
import uuid
from typing import Annotated, Any

import msgspec

from kqs import Job

THEN = dt.datetime(2024, 1, 2, tzinfo=dt.UTC)


class Link:
    """A job's link to nowhere."""

    cancelled = False

    def progress(self, fraction: float | None, message: str) -> None:
        raise AssertionError("not called here")

    def renew(self) -> bool:
        raise AssertionError("not called here")


def a_job(data: Any) -> Job:
    return Job(
        id="7",
        type="t",
        data=data,
        attempt=1,
        prio="normal",
        inserted_at=THEN,
        deadline=THEN,
        log=logging.getLogger("test"),
        link=Link(),
    )


class Colour(enum.Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: int
    y: int = 0


@dataclasses.dataclass
class Size:
    width: float


def everything(
    number: int,
    share: float,
    text: str,
    at: dt.datetime,
    id: uuid.UUID,
    colour: Colour,
    point: Point,
    size: Size,
    names: list[str],
    table: dict[int, bool],
    pair: tuple[int, str],
    small: Annotated[int, msgspec.Meta(le=9)],
    maybe: int | None = None,
    anything: Any = "default",
    *,
    raw: bytes = b"",
    untyped="u",  # type: ignore[no-untyped-def]
) -> dict[str, Any]:
    return dict(locals())


EVERYTHING: dict[str, Any] = {
    "number": 1,
    "share": 2,
    "text": "\u00e9",
    "at": "2024-01-02T00:00:00Z",
    "id": "00000000-0000-0000-0000-000000000007",
    "colour": "red",
    "point": {"x": 1},
    "size": {"width": 2.5},
    "names": ["a"],
    "table": {"5": True},
    "pair": [1, "b"],
    "small": 9,
}
