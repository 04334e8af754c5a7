"""The job a handler is given: it passes on what is asked of it, and nothing else."""

from __future__ import annotations

import datetime as dt
import logging

import pytest

from kqs.core.handler import Job

THEN = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


class FakeLink:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[float | None, str]] = []
        self.current = True

    def progress(self, fraction: float | None, message: str) -> None:
        self.told.append((fraction, message))

    def renew(self) -> bool:
        return self.current

    @property
    def cancelled(self) -> bool:
        return not self.current


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def job(link: FakeLink) -> Job:
    return Job(
        id="7",
        type="image",
        data={"secret": "value"},
        attempt=2,
        prio="high",
        inserted_at=THEN,
        deadline=THEN + dt.timedelta(seconds=30),
        log=logging.getLogger("test"),
        link=link,
    )


def test_what_it_shows(job: Job) -> None:
    assert (job.id, job.type, job.data) == ("7", "image", {"secret": "value"})
    assert (job.attempt, job.prio) == (2, "high")
    assert job.deadline - job.inserted_at == dt.timedelta(seconds=30)


def test_progress_reaches_the_link(job: Job, link: FakeLink) -> None:
    job.progress(0.5, "half")
    job.progress(message="counting")
    job.progress()
    assert link.told == [(0.5, "half"), (None, "counting"), (None, "")]


def test_a_lost_lease_is_seen(job: Job, link: FakeLink) -> None:
    assert job.renew()
    assert not job.cancelled
    link.current = False
    assert not job.renew()
    assert job.cancelled


def test_its_text_holds_no_payload(job: Job) -> None:
    assert repr(job) == "<Job 7 type='image' attempt=2>"


def test_a_misspelt_attribute_is_not_kept(job: Job) -> None:
    with pytest.raises(AttributeError):
        job.progres = 1  # type: ignore[attr-defined]
