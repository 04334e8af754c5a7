"""Which settings hold for a job type."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kqs.core.job import NO_OPTIONS, SECOND, DefaultsTable, JobDefaults, JobSettings
from kqs.core.retry import RetryPolicy
from kqs.core.shares import NO_SHARE, Share, Shares
from kqs.settings.config import parse
from kqs.settings.jobtypes import JobTypes, shares_of

CONFIG = """
[defaults]
ttr = 10
prio = "low"

[classes.wide]
types = ["*.big", "image.*", "exact"]
ttr = 20
max_attempts = 2
pool = "wide"

[classes.narrow]
types = ["image.thumb", "image.t*", "Image.*"]
ttr = 30
keep_alive = true
pool = "narrow"

[pools.wide]
[pools.narrow]
[pools.own]

[handlers."image.thumb"]
python = "jobs:note"
ttr = 40
pool = "own"

[handlers."image.rotate"]
python = "jobs:note"
retry = { base = 7 }

[handlers.plain]
python = "jobs:note"
expires = 60
result_ttl = 0.5
"""

#: Type: its class, its pool, its settings.
RESOLVED = {
    "image.thumb": ("narrow", "own", JobDefaults("low", 40, keep_alive=True)),  # named exactly, in the other
    "image.tiny": ("wide", "wide", JobDefaults("low", 20, 2)),  # both match: the first of the file
    "image.rotate": ("wide", "wide", JobDefaults("low", 20, 2, RetryPolicy(base=7))),
    "Image.x": ("narrow", "narrow", JobDefaults("low", 30, keep_alive=True)),  # case counts
    "exact": ("wide", "wide", JobDefaults("low", 20, 2)),
    "exactly": (None, "default", JobDefaults("low", 10)),
    "a.big": ("wide", "wide", JobDefaults("low", 20, 2)),
    "image": (None, "default", JobDefaults("low", 10)),
    "plain": (None, "default", JobDefaults("low", 10, expires=60, result_ttl=0.5)),
    "\n.big": ("wide", "wide", JobDefaults("low", 20, 2)),
}


@pytest.fixture
def types() -> JobTypes:
    config = parse(CONFIG.encode())
    return JobTypes(config.defaults, config.classes, config.handlers)


@pytest.mark.parametrize("type_", RESOLVED)
def test_handler_then_class_then_defaults(types: JobTypes, type_: str) -> None:
    class_, pool, settings = RESOLVED[type_]
    assert types.class_of(type_) == class_
    assert types.pool(type_) == pool
    assert types.settings(type_) == settings
    table = types.table({})
    for _ in range(2):  # looked up, then remembered
        assert table.get(type_).defaults == settings


def test_an_app_says_what_a_handler_would(types: JobTypes) -> None:
    said = {"a.big": JobSettings(ttr=99), "other": JobSettings(prio="high"), "exact": JobSettings()}
    table = types.table(said)
    assert table.get("a.big").defaults == types.settings("a.big", said["a.big"]) == JobDefaults("low", 99, 2)
    assert table.get("other").defaults == JobDefaults("high", 10)
    assert table.get("exact").defaults == JobDefaults("low", 20, 2)


def test_what_the_parser_takes_is_worked_out_once(types: JobTypes) -> None:
    table = types.table({})
    own = table.get("plain")
    assert (own.prio, own.ttr) == (3, 10_000)
    assert (own.options.expires, own.options.result_ttl) == (60 * SECOND, SECOND // 2)
    assert table.get("image") is table.get("whatever")
    assert table.get("image").options is NO_OPTIONS
    assert table.get("a.big") is table.get("b.big")


def test_made_up_types_do_not_fill_the_memory() -> None:
    table = DefaultsTable({"own": JobDefaults("high")}, globs=[("*x", JobDefaults("low"))])
    for number in range(25_000):
        table.get(f"type-{number}")
        assert len(table._known) <= 10_001
    assert table.get("own").defaults.prio == "high"
    assert table.get("yx").defaults.prio == "low"


def test_pools_are_checked_at_once(tmp_path: Path) -> None:
    """In threads, which msgspec bears only when it knows the types before: else the process may crash."""
    pools = "".join(
        f'[pools.p{n}]\nprocesses = 1\n[handlers.t{n}]\ncommand = ["cat"]\npool = "p{n}"\n' for n in range(6)
    )
    (tmp_path / "kqs.toml").write_text(pools)
    code = (
        "import sys, kqs.settings.handlers as handlers\n"
        "from kqs.settings.config import load\n"
        "sys.setswitchinterval(1e-6)\n"
        "handlers.subprocess.run = lambda *a, run=handlers.subprocess.run, **b: run(['cat', 'said'], "
        "capture_output=True)\n"
        "handlers.prepare(load('kqs.toml'))\n"
    )
    said = b'{"app":{"a":{"ttr":3}},"blocking":[],"roots":[],"stamp":""}\n'
    (tmp_path / "said").write_bytes(said)
    for _ in range(20):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
        assert done.returncode == 0


# -- shares --------------------------------------------------------------------------------------------

SHARES = """
[scheduler]
order = "fifo"
priority = "weighted"

[classes.wide]
types = ["image.*", "exact"]
weight = 2
concurrency = 8

[classes.plain]
types = ["plain.*"]

[handlers."image.thumb"]
python = "jobs:note"
weight = 5
rate = "90/m"
burst = 7

[handlers."image.rotate"]
python = "jobs:note"
concurrency = 1

[handlers.alone]
python = "jobs:note"
rate = "0.5/h"

[fair.gold]
weight = 3

[fair."gold-*"]
weight = 4
concurrency = 2
rate = "86400/d"

[fair."*"]
weight = 0.5
"""


def shares(text: str) -> Shares:
    config = parse(text.encode())
    return shares_of(config.scheduler, config.classes, config.handlers, config.fair)


def test_the_order_is_fair_and_priorities_are_strict_unless_it_is_said() -> None:
    assert (shares("").order, shares("").priority) == ("fair", "strict")
    assert (shares(SHARES).order, shares(SHARES).priority) == ("fifo", "weighted")


@pytest.mark.parametrize(
    ("type_", "class_", "share"),
    [
        ("image.thumb", "wide", Share(5, 0, 1.5, 7)),  # its own weight, not that of its class
        ("image.rotate", "wide", Share(2, 1)),  # that of its class, and not the limit: it is one of all
        ("image.other", "wide", Share(2)),
        ("exact", "wide", Share(2)),
        ("plain.a", "plain", NO_SHARE),
        ("alone", None, Share(1, 0, 0.5 / 3600)),
        ("whatever", None, NO_SHARE),
    ],
)
def test_weight_and_limits_of_a_type(type_: str, class_: str | None, share: Share) -> None:
    assert shares(SHARES).of_type(type_) == (class_, share)


def test_limits_of_a_class_are_of_all_its_types() -> None:
    assert shares(SHARES).classes == {"wide": Share(2, 8), "plain": NO_SHARE}


@pytest.mark.parametrize(
    ("key", "share"),
    [
        ("gold", Share(3)),  # named
        ("gold-1", Share(4, 2, 1)),  # the first pattern of the file that matches
        ("gold-*", Share(4, 2, 1)),
        ("Gold-1", Share(0.5)),
        ("", Share(0.5)),
        ("gold\n", Share(0.5)),
    ],
)
def test_the_share_of_a_fairness_key(key: str, share: Share) -> None:
    assert shares(SHARES).of_key(key) == share


def test_a_key_nobody_speaks_of() -> None:
    assert shares("[fair.gold]\nweight = 3\n").of_key("silver") == NO_SHARE


@pytest.mark.parametrize(
    ("rate", "per_second"), [("100/s", 100), ("10/m", 1 / 6), ("1.5/h", 1.5 / 3600), ("007/d", 7 / 86400)]
)
def test_rates(rate: str, per_second: float) -> None:
    assert shares(f'[fair.a]\nrate = "{rate}"\n').of_key("a").rate == pytest.approx(per_second)
