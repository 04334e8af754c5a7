"""``--app``: functions declared with ``@app.job`` run on the server, their arguments taken from ``data``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kqs.client import App, Client
from kqs.errors import ConfigError
from tests.support import TESTS, ServerProcess, kqs, until

CONFIG = """
[pools.default]
processes = 1
[handlers.note]
python = "jobs:note"
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("app"), CONFIG, ("--app", "shop:app"))
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


@pytest.fixture
def client(running: ServerProcess) -> Iterator[Client]:
    with running.client() as client:
        yield client


@pytest.fixture
def shop(running: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as a producer imports it, its app connected to the server."""
    monkeypatch.syspath_prepend(str(TESTS / "handlers"))
    monkeypatch.setenv("KQS_URL", running.url)
    module = importlib.reload(importlib.import_module("shop"))
    yield module
    module.app.client.close()


def ended(client: Client, id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        job = client.job(id)
        return job if job["state"] in ("done", "buried") else None

    return until(over, "the job to end")  # type: ignore[return-value]


def test_its_types_are_served_beside_those_of_the_config(running: ServerProcess) -> None:
    assert set(running.ready["handlers"]) >= {"add", "order", "raw", "later", "note", "ping"}


def test_a_function_stays_a_function(shop: ModuleType) -> None:
    assert shop.add(1, 2) == 3
    assert shop.add.__name__ == "add"


def test_enqueue_runs_it_there(running: ServerProcess, shop: ModuleType, client: Client) -> None:
    id = shop.add.enqueue(a=32)
    running.stdout.wait_for("add 42")
    job = ended(client, id)
    assert (job["type"], job["prio"], job["ttr"]) == ("add", "high", 60)


def test_using_changes_the_settings(shop: ModuleType, client: Client) -> None:
    id = shop.add.using(prio="bulk", delay=500, ttr=5).enqueue(a=1)
    job = client.job(id, data=True)
    assert (job["prio"], job["state"], job["ttr"], job["data"]) == ("bulk", "delayed", 5, {"a": 1})


async def test_enqueue_async(running: ServerProcess, shop: ModuleType) -> None:
    await shop.add.enqueue_async(a=100, b=11)
    running.stdout.wait_for("add 111")


def test_settings_hold_for_jobs_inserted_by_anybody(client: Client) -> None:
    job = ended(client, client.call("insert", {"type": "add", "data": {"a": 1}})["id"])
    assert (job["prio"], job["ttr"], job["outcome"]) == ("high", 60, "ok")


def test_arguments_are_converted_to_their_annotations(running: ServerProcess, client: Client) -> None:
    data = {"items": [{"name": "a", "price": 1}, {"name": "b", "price": 2.5}], "note": "n"}
    id = client.insert("order", data)
    running.stdout.wait_for(f"order {id} 3.5 Item n")


@pytest.mark.parametrize(
    ("type", "data", "text"),
    [
        ("add", {}, "`a`"),
        ("add", None, "`a`"),
        ("add", {"a": "1"}, "$.a"),
        ("add", {"a": 1, "c": 2}, "`c`"),
        ("add", [1], "object"),
        ("add", b"bytes", "bytes"),
        ("order", {"items": [{"name": "a"}]}, "$.items[0]"),
    ],
)
def test_a_mismatch_fails_for_good_and_names_the_field(
    client: Client, type: str, data: Any, text: str
) -> None:
    job = ended(client, client.insert(type, data))
    assert (job["state"], job["attempt"], job["last_error"]["kind"]) == ("buried", 1, "Fail")
    assert text in job["last_error"]["message"]
    assert job["last_error"]["message"].startswith(type)


def test_a_mismatch_shows_where_it_is_made(shop: ModuleType) -> None:
    with pytest.raises(TypeError, match="c"):
        shop.add.enqueue(a=1, c=2)
    with pytest.raises(TypeError, match="a"):
        shop.add.enqueue(a="one")


def test_bytes_travel_as_bytes(running: ServerProcess, shop: ModuleType) -> None:
    shop.raw.enqueue(data=b"\0\xff\n\r" + bytes(100_000))
    running.stdout.wait_for("raw 100004 b'\\x00\\xff\\n\\r'")


def test_any_keywords(running: ServerProcess, shop: ModuleType) -> None:
    shop.anything.enqueue(x=1, y=[2])
    running.stdout.wait_for("anything [('x', 1), ('y', [2])]")


def test_coroutines_share_one_loop(running: ServerProcess, shop: ModuleType) -> None:
    ids = [shop.later.enqueue(seconds=0.01) for _ in range(3)]
    lines = [running.stdout.wait_for(f"later {id} 1")[0] for id in ids]
    assert len({line.split()[3] for line in lines}) == 1


def test_outcomes_of_a_coroutine(client: Client) -> None:
    job = ended(client, client.insert("async.fail"))
    assert (job["state"], job["attempt"], job["last_error"]["message"]) == ("buried", 3, "enough")


def test_what_one_job_sets_in_its_context_the_next_does_not_see(
    running: ServerProcess, client: Client
) -> None:
    for _ in range(3):
        id = client.insert("context")
        assert running.stdout.wait_for(f"context {id}")[0].endswith(" nothing")


def test_a_task_left_behind_holds_nothing_up(running: ServerProcess, client: Client) -> None:
    assert ended(client, client.insert("task.left"))["outcome"] == "ok"
    assert ended(client, client.insert("later", {"seconds": 0}))["outcome"] == "ok"


def test_the_same_type_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kqs.toml").write_text('[handlers.add]\npython = "jobs:note"\n')
    done = kqs("config", "check", "--app", "shop:app", cwd=tmp_path)
    assert done.status == 2
    assert done.err == "kqs: job type 'add' has a handler in the config and one in --app shop:app\n"


def test_declaring_twice_is_refused() -> None:
    app = App()
    app.job("x")(lambda: None)
    with pytest.raises(ConfigError, match="declared twice"):
        app.job("x")(lambda: None)
