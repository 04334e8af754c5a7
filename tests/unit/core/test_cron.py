"""When crons run, and which runs are due."""

from __future__ import annotations

import datetime as dt
from itertools import islice
from time import monotonic
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kqs.core.cron import LATE, MOST, Missed, Schedule, due
from kqs.core.job import SECOND

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = 60 * SECOND
DAY = 24 * 60 * MINUTE


def at(text: str, zone: dt.tzinfo = dt.UTC) -> int:
    """A time as microseconds."""
    return round(dt.datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() * SECOND)


def utc(runs: list[int]) -> list[str]:
    return [dt.datetime.fromtimestamp(run // SECOND, dt.UTC).strftime("%d %H:%M") for run in runs]


def first(expression: str, zone: dt.tzinfo, after: str, count: int = 3) -> list[str]:
    return utc(list(islice(Schedule(expression, zone).after(at(after)), count)))


# -- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "runs"),
    [
        ("30 4 * * *", ["02 04:30", "03 04:30", "04 04:30"]),
        ("*/20 11 * * *", ["01 11:20", "01 11:40", "02 11:00"]),
        ("0 0 * * MON", ["05 00:00", "12 00:00", "19 00:00"]),
        ("0 9 1 * *", ["01 09:00", "01 09:00", "01 09:00"]),
        ("0 12 13 * FRI", ["02 12:00", "09 12:00", "13 12:00"]),
        ("0 8 L * *", ["31 08:00", "28 08:00", "31 08:00"]),
    ],
)
def test_runs_of_an_expression(expression: str, runs: list[str]) -> None:
    assert first(expression, dt.UTC, "2026-01-01 11:00:00.5") == runs


@pytest.mark.parametrize(
    "text", ["2026-03-01 12:00:00", "2026-03-01 12:00:00.000001", "2026-03-01 12:00:59.9"]
)
def test_a_run_is_later_than_where_it_is_looked_from(text: str) -> None:
    assert Schedule("* * * * *", dt.UTC).next(at(text)) == at("2026-03-01 12:01")


def test_hours_are_those_of_the_time_zone() -> None:
    assert first("0 12 * * *", BERLIN, "2026-01-01 00:00", 1) == ["01 11:00"]
    assert first("0 12 * * *", BERLIN, "2026-07-01 00:00", 1) == ["01 10:00"]
    assert first("0 12 * * *", ZoneInfo("Asia/Kolkata"), "2026-07-01 00:00", 1) == ["01 06:30"]


# In Berlin, 02:00 to 03:00 is left out on 29 March 2026, and comes twice on 25 October (00:00 and 01:00 UTC).


def test_a_set_hour_that_is_left_out_comes_right_after_it() -> None:
    assert first("30 2 * * *", BERLIN, "2026-03-28 00:00") == ["28 01:30", "29 01:00", "30 00:30"]


def test_a_set_hour_that_comes_twice_runs_once() -> None:
    assert first("30 2 * * *", BERLIN, "2026-10-24 12:00") == ["25 00:30", "26 01:30", "27 01:30"]


@pytest.mark.parametrize("seconds", range(0, 7200, 600))
def test_the_second_time_of_an_hour_has_no_run_of_the_first(seconds: int) -> None:
    """Wherever in it the next run is looked for."""
    start = at("2026-10-25 00:30") + seconds * SECOND
    assert utc([Schedule("30 2 * * *", BERLIN).next(start) or 0]) == ["26 01:30"]


def test_frequent_runs_follow_the_clock_through_both_changes() -> None:
    assert first("*/30 * * * *", BERLIN, "2026-03-29 00:00", 4) == [
        "29 00:30",
        "29 01:00",
        "29 01:30",
        "29 02:00",
    ]
    assert first("*/30 2 * * *", BERLIN, "2026-10-24 23:00", 5) == [
        *("25 00:00", "25 00:30", "25 01:00", "25 01:30"),
        "26 01:00",
    ]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "has 0 fields, not five"),
        ("@daily", "has 1 field, not five"),
        ("* * * *", "has 4 fields, not five"),
        ("0 * * * * *", "has 6 fields, not five"),
        ("60 * * * *", "has a bad minute"),
        ("0 24 * * *", "has a bad hour"),
        ("0 0 0 * *", "has a bad day-of-month"),
        ("0 0 * JAM *", "has a bad month"),
        ("0 0 * * 8", "has a bad day-of-week"),
        ("0 0 31 2 *", "has a bad day-of-month"),
        ("* * */20 * 1L", "never comes within 50 years"),
        ("*/0 * * * *", "has a bad minute"),
    ],
)
def test_what_is_no_schedule(expression: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        Schedule(expression, dt.UTC)
    assert str(refused.value) == says


@given(st.text(alphabet="0159*,-/#LWMON \t", max_size=24))
def test_any_text_is_a_schedule_or_refused(text: str) -> None:
    try:
        schedule = Schedule(text, dt.UTC)
    except ValueError:
        return
    assert (schedule.next(at("2026-01-01")) or 1 << 62) > at("2026-01-01")


@given(
    st.sampled_from(
        ["*/7 * * * *", "0 * * * *", "15,45 2 * * *", "30 1-4 * * *", "0 3 * * *", "*/20 2 * * *"]
    ),
    st.sampled_from(
        [("2026-03-29", BERLIN), ("2026-10-25", BERLIN), ("2026-11-01", ZoneInfo("America/New_York"))]
    ),
    st.integers(0, 24 * 3600),
    st.integers(0, 24 * 3600),
)
def test_runs_do_not_depend_on_where_one_looks_from(
    expression: str, day: tuple[str, ZoneInfo], one: int, other: int
) -> None:
    """So none is made twice or left out because a server looked at another moment than the one before."""
    schedule, start = Schedule(expression, day[1]), at(day[0])
    early, late = sorted((start + one * SECOND, start + other * SECOND))
    end = start + DAY
    runs = [run for run in schedule.latest(early, end, MOST) if run > late]
    assert schedule.latest(late, end, MOST) == runs
    assert schedule.latest(late, end, 2) == runs[-2:]


def test_years_of_minutes_are_not_counted_one_by_one() -> None:
    begun = monotonic()
    runs = Schedule("* * * * *", BERLIN).latest(at("1990-01-01"), at("2026-01-01"), MOST)
    assert (len(runs), runs[-1]) == (MOST, at("2026-01-01"))
    assert monotonic() - begun < 5  # counted, it takes minutes


# -- what is due ---------------------------------------------------------------------------------

HOURLY = Schedule("0 * * * *", dt.UTC)
NOON = at("2026-05-05 12:00")


@pytest.mark.parametrize("missed", ["skip", "one", "all"])
@pytest.mark.parametrize("late", [0, 1, SECOND, LATE])
def test_a_run_is_made_under_every_policy_when_it_is_little_late(missed: Missed, late: int) -> None:
    assert due(HOURLY, NOON - 1, NOON + late, missed) == [NOON]
    assert due(HOURLY, NOON, NOON + late, missed) == []
    assert due(HOURLY, NOON - 60 * MINUTE, NOON - 1, missed) == []


@pytest.mark.parametrize(
    ("missed", "runs"), [("skip", []), ("one", ["05 14:00"]), ("all", ["05 13:00", "05 14:00"])]
)
def test_runs_nobody_was_there_for(missed: Missed, runs: list[str]) -> None:
    assert utc(due(HOURLY, NOON, at("2026-05-05 14:40"), missed)) == runs


@pytest.mark.parametrize(
    ("missed", "runs"), [("skip", ["05 14:00"]), ("one", ["05 14:00"]), ("all", ["05 13:00", "05 14:00"])]
)
def test_of_missed_runs_and_one_in_time(missed: Missed, runs: list[str]) -> None:
    assert utc(due(HOURLY, NOON, at("2026-05-05 14:00:10"), missed)) == runs


def test_a_run_a_moment_too_late_is_skipped() -> None:
    assert due(HOURLY, NOON - 1, NOON + LATE + 1, "skip") == []


@pytest.mark.parametrize("missed", ["skip", "one", "all"])
def test_a_clock_that_was_set_back_makes_nothing_due(missed: Missed) -> None:
    for back in (1, MINUTE, 60 * MINUTE, 3650 * DAY):
        assert due(HOURLY, NOON, NOON - back, missed) == []


def test_at_most_the_latest_thousand_are_made_up_for() -> None:
    runs = due(HOURLY, NOON - 400 * DAY, NOON, "all")
    assert (len(runs), runs[0], runs[-1]) == (MOST, NOON - 999 * 60 * MINUTE, NOON)


@given(st.lists(st.integers(0, 7200), min_size=1, max_size=20), st.sampled_from(["one", "all", "skip"]))
def test_however_often_one_looks_no_run_is_due_twice(steps: list[int], missed: Missed) -> None:
    now = decided = NOON - 90 * SECOND
    made: list[int] = []
    for step in steps:
        now += step * SECOND
        made += due(HOURLY, decided, now, missed)
        decided = now
    assert made == sorted(set(made))
    if missed == "all":
        assert made == HOURLY.latest(NOON - 90 * SECOND, now, MOST)
    if missed == "one" and HOURLY.latest(NOON - 90 * SECOND, now, 1):
        assert made[-1] == HOURLY.latest(NOON - 90 * SECOND, now, 1)[0]
