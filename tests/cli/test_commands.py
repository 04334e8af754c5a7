"""The commands that ask a running server: what they print, as text and as JSON, and how they exit."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kqs.cli.main import cli
from kqs.client import Client
from tests.support import Finished, ServerProcess, kqs, kqs_here, until

Start = Callable[..., ServerProcess]
Ask = Callable[..., Finished]


@pytest.fixture
def ask(shared: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Runs a command against the shared server."""
    monkeypatch.setenv("KQS_URL", shared.url)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: kqs_here(*args, cwd=tmp_path)


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[Client]:
    with shared.client() as client:
        yield client


def ok(done: Finished) -> Finished:
    assert done.status == 0 and done.err == "", done
    return done


def refused(done: Finished, status: int, *texts: str) -> None:
    assert done.status == status and done.out == "", done
    assert re.fullmatch(r"kqs: [^\n]+\n", done.err), done
    assert all(text in done.err for text in texts), done


# -- insert ------------------------------------------------------------------------------------------


def test_insert_prints_the_id(ask: Ask, client: Client) -> None:
    id = ok(ask("insert", "cli", "{a:1, b:[true,null,'x']}")).out.strip()
    job = client.job(id, data=True)
    assert (job["type"], job["data"]) == ("cli", {"a": 1, "b": [True, None, "x"]})
    done = ok(ask("insert", "cli", "--json"))
    assert done.json.keys() == {"id"}
    assert client.job(done.json["id"], data=True)["data"] is None


def test_insert_with_every_option(ask: Ask, client: Client) -> None:
    options = ("--prio", "high", "--delay", "100", "--ttr", "2.5", "--max-attempts", "3")
    job = client.job(ok(ask("insert", "cli", "1", *options)).out.strip())
    assert (job["prio"], job["state"], job["ttr"]) == ("high", "delayed", 2.5)


def test_insert_from_stdin(shared: ServerProcess, client: Client) -> None:
    done = kqs("insert", "cli", "-", input="{a: 2}", KQS_URL=shared.url)
    assert client.job(ok(done).out.strip(), data=True)["data"] == {"a": 2}
    done = kqs("insert", "cli", "--binary", input=bytes(range(256)), KQS_URL=shared.url)
    assert client.job(ok(done).out.strip(), data=True)["size"] == 256


def test_binary_from_the_command_line(ask: Ask, client: Client) -> None:
    id = ok(ask("insert", "cli", "--binary", "abc")).out.strip()
    assert client.job(id, data=True)["data64"] == "YWJj"


@pytest.mark.parametrize("data", ["{a:", "undefined", "{a:1}}", "a b"])
def test_data_that_is_no_literal(ask: Ask, data: str) -> None:
    done = ask("insert", "cli", data)
    assert done.status == 2 and "DATA" in done.err and "JavaScript literal" in done.err


def test_a_refusal_is_told_with_its_code(ask: Ask) -> None:
    refused(ask("insert", "x" * 198), 1, "kqs: too_large: type is longer than 197 bytes")
    refused(ask("insert", "cli", "--ttr", "0"), 1, "kqs: bad_request: ttr:")
    done = ask("insert", "cli", "--prio", "top")
    assert done.status == 2 and "--prio" in done.err


# -- rpc and call --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("ping",), '{"v":1,"id":"1","n":"ping"}\n'),
        (("echo", "[1,{a:'x'}]"), '{"v":1,"id":"1","n":"echo","m":[1,{"a":"x"}]}\n'),
        (
            ("insert", '{type:"ping",data:{a:1}}'),
            '{"v":1,"id":"1","n":"insert","m":{"type":"ping","data":{"a":1}}}\n',
        ),
        (("any name", "null"), '{"v":1,"id":"1","n":"any name","m":null}\n'),
    ],
)
def test_rpc_prints_the_line(tmp_path: Path, args: tuple[str, ...], line: str) -> None:
    assert ok(kqs_here("rpc", *args, cwd=tmp_path)).out == line


def test_call_prints_the_reply(ask: Ask) -> None:
    assert ok(ask("call", "ping")).json == "pong"
    assert ok(ask("call", "echo", "{a:[1,2]}")).json == {"a": [1, 2]}
    assert ok(ask("call", "jobs", "{limit:1}", "--json")).json.keys() >= {"jobs"}
    refused(ask("call", "nosuch"), 1, "kqs: unsupported: nosuch: no handler")
    refused(ask("call", "job", "{id:1}"), 1, "kqs: bad_request: id:")
    done = ask("call", "echo", "{a:")
    assert done.status == 2 and "ARG" in done.err


# -- looking ----------------------------------------------------------------------------------------------


def test_stats(ask: Ask, shared: ServerProcess, client: Client) -> None:
    client.insert("stats.type")
    seen = ok(ask("stats", "--json")).json
    assert seen["process"]["pid"] == shared.pid
    text = ok(ask("stats")).out
    assert f"process {shared.pid}" in text and "engine embedded" in text
    assert re.search(r"stats\.type\D+0\D+1\D+0\D+0\D+0\D", text)
    assert re.search(r"insert\D+\d+", text)
    only = ok(ask("stats", "--type", "stats.type", "--json")).json
    assert only["types"].keys() == {"stats.type"}


def test_health(ask: Ask) -> None:
    done = ok(ask("health"))
    assert done.out.splitlines()[0] == "ok"
    assert [line.split(":")[0].strip() for line in done.out.splitlines()[1:]] == [
        "journal",
        "disk",
        "progress",
        "workers",
    ]
    assert ok(ask("health", "--json")).json["status"] == "ok"


def test_jobs_and_pages(ask: Ask, client: Client) -> None:
    ids = client.insert_many([{"type": "list", "data": n} for n in range(5)])
    text = ok(ask("jobs", "--type", "list", "--limit", "3")).out
    assert [id in text for id in ids] == [True, True, True, True, False][:3] + [id in text for id in ids[3:]]
    assert f"more: --after {ids[2]}" in text
    page = ok(ask("jobs", "--type", "list", "--after", ids[2], "--json")).json
    assert [job["id"] for job in page["jobs"]] == ids[3:]
    assert ok(ask("jobs", "--state", "buried", "--type", "list", "--json")).json == {"jobs": []}
    refused(ask("jobs", "--after", "x-1"), 1, "not_found")
    done = ask("jobs", "--limit", "0")
    assert done.status == 2 and "--limit" in done.err


def test_job(ask: Ask, client: Client) -> None:
    id = client.insert("show", {"a": 1})
    (lease,) = client.call("reserve", {"types": ["show"]})["jobs"]
    reason = {"message": "no \x1b[31mluck", "kind": "Luck", "traceback": "one\ntwo"}
    client.call("settle", [{"receipt": lease["receipt"], "outcome": "fail", "reason": reason}])
    text = ok(ask("job", id)).out
    assert f"id: {id}" in text and "state: buried" in text
    assert "last_error: Luck: no " in text
    assert "    one\n    two\n" in text
    assert ok(ask("job", id, "--data", "--json")).json["data"] == {"a": 1}
    assert 'data: {"a":1}' in ok(ask("job", id, "--data")).out
    refused(ask("job", "nosuch"), 1, "kqs: not_found: no job 'nosuch' here")


def test_what_jobs_say_cannot_move_the_cursor(ask: Ask, client: Client) -> None:
    """Text of a handler or a caller is shown, not obeyed."""
    before = client.insert("marker")
    id = client.insert("esc\x1b[2Jtype\x07")
    (lease,) = client.call("reserve", {"types": ["esc\x1b[2Jtype\x07"]})["jobs"]
    reason = {"message": "\x1b]0;title\x07\x9bred", "kind": "\x1bK", "traceback": "a\r\x1b[1Ab"}
    client.call("settle", [{"receipt": lease["receipt"], "outcome": "fail", "reason": reason}])
    for done in (ask("job", id), ask("jobs", "--after", before), ask("stats"), ask("job", id, "--json")):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ok(done).out), repr(done.out)
    shown = ask("job", id, "--json").json
    assert (shown["type"], shown["last_error"]["message"]) == ("esc\x1b[2Jtype\x07", reason["message"])


@pytest.mark.parametrize("type", ["[/red]", "[bold]x", "[link=x]y[/link]", "\\[x", ":smile:"])
def test_what_looks_like_markup_is_shown_as_it_is(ask: Ask, client: Client, type: str) -> None:
    client.insert(type)
    for done in (ask("jobs", "--type", type), ask("stats", "--type", type)):
        assert type in ok(done).out


# -- without a server ---------------------------------------------------------------------------------------


def test_no_server_is_told_with_what_to_do(tmp_path: Path) -> None:
    for url in ("kqs://127.0.0.1:1", f"kqs+unix:{tmp_path}/nosuch.sock"):
        done = kqs_here("call", "ping", "--timeout", "0.2", "--server", url, cwd=tmp_path)
        refused(done, 1, url, "is 'kqs serve' running?")


@pytest.mark.parametrize(
    "url", ["http://x", "kqs://", "kqs://h:port", "kqs+unix:", "kqss://h:port", "kqss://h?x=y", "kqs://[::1"]
)
def test_urls_that_are_none(tmp_path: Path, url: str) -> None:
    refused(kqs_here("call", "ping", "--server", url, cwd=tmp_path), 2, url)


def test_the_unix_socket_serves_the_commands(ask: Ask, shared: ServerProcess) -> None:
    assert ok(ask("call", "ping", "--server", f"kqs+unix:{shared.data}/kqs.sock")).json == "pong"
    both = f"kqs://127.0.0.1:1,kqs+unix:{shared.data}/kqs.sock"
    assert ok(ask("call", "ping", "--server", both)).json == "pong"


def test_help_names_every_command(tmp_path: Path) -> None:
    text = ok(kqs_here("--help", cwd=tmp_path)).out
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", ok(kqs_here("--version", cwd=tmp_path)).out)


def test_insert_with_a_fairness_key_and_list_by_it(ask: Ask, client: Client) -> None:
    ids = [ok(ask("insert", "fairly", str(n), "--fair", "acme")).out.strip() for n in range(3)]
    other = ok(ask("insert", "fairly", "--fair", "else")).out.strip()
    nobodys = ok(ask("insert", "fairly")).out.strip()
    assert [client.job(id).get("fair") for id in (*ids, other, nobodys)] == ["acme"] * 3 + ["else", None]
    page = ok(ask("jobs", "--fair", "acme", "--json")).json
    assert [job["id"] for job in page["jobs"]] == ids
    first = ok(ask("jobs", "--fair", "acme", "--type", "fairly", "--limit", "2", "--json")).json
    assert [job["id"] for job in first["jobs"]] == ids[:2]
    rest = ok(ask("jobs", "--fair", "acme", "--after", first["next"], "--json")).json
    assert [job["id"] for job in rest["jobs"]] == ids[2:]
    shown = ok(ask("jobs", "--fair", "else")).out
    assert other in shown and not any(id in shown for id in (*ids, nobodys))
    assert ok(ask("jobs", "--fair", "acme", "--state", "buried", "--json")).json == {"jobs": []}
    refused(ask("insert", "fairly", "--fair", ""), 1, "fair")


# -- config and journal ---------------------------------------------------------------------------


def test_config_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text('[handlers.a]\ncommand = ["true"]\n[pools.default]\nprocesses = 3\n')
    done = ok(kqs("config", "check", "mine.toml", cwd=tmp_path))
    assert done.out == "mine.toml: ok; 4 worker processes, handlers for: a, ping\n"
    (tmp_path / "kqs.toml").write_text("")
    assert ok(kqs("config", "check", "--app", "shop:app", cwd=tmp_path)).out.startswith("kqs.toml: ok")


def test_journal_cat(start: Start) -> None:
    server = start()
    client = server.client()
    id = client.insert("told", {"secret": "canary"}, delay=0)
    (lease,) = client.call("reserve", {"types": ["told"], "worker": "w"})["jobs"]
    client.call("settle", [{"receipt": lease["receipt"], "outcome": "ok"}])
    client.insert("other", b"\0\1")
    number = int(id.rpartition("-")[2])
    beside = lines(ok(kqs("journal", "cat", "--data", str(server.data))))
    server.stop()
    after = lines(ok(kqs("journal", "cat", "--data", str(server.data))))
    assert after[: len(beside)] == beside and len(beside) >= 3  # also beside a running server
    kinds = [line["kind"] for line in after if line.get("job") == number]
    assert kinds == ["accept", "lease", "ack"]
    accept = next(line for line in after if line["kind"] == "accept")
    assert (accept["type"], accept["prio"], accept["ttr"], accept["binary"]) == ("told", "normal", 30, False)
    assert "canary" not in json.dumps(after)
    only = lines(ok(kqs("journal", "cat", "--data", str(server.data), "--job", str(number))))
    assert [line["kind"] for line in only] == kinds


def lines(done: Finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def test_journal_cat_of_nothing(tmp_path: Path) -> None:
    refused(kqs("journal", "cat", "--data", str(tmp_path / "nosuch")), 2, str(tmp_path / "nosuch"))
    (tmp_path / "empty").mkdir()
    refused(kqs("journal", "cat", "--data", str(tmp_path / "empty")), 2, str(tmp_path / "empty"))


def test_journal_cat_of_damage_names_the_place(start: Start) -> None:
    server = start()
    for text in ("first", "second", "third"):  # a frame each
        server.client().insert("x", text)
    server.kill()
    (segment,) = [file for file in (server.data / "journal").glob("*.seg") if b"first" in file.read_bytes()]
    data = bytearray(segment.read_bytes())
    data[data.index(b"first")] ^= 0xFF
    segment.write_bytes(data)
    done = kqs("journal", "cat", "--data", str(server.data))
    assert done.status == 2, done
    assert segment.name in done.err and "byte" in done.err


def test_a_closed_pipe_is_no_traceback(shared: ServerProcess) -> None:
    import subprocess
    import sys

    from tests.support import environment

    command = f"{sys.executable} -m kqs.cli.main stats --json | true"
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        env=environment({"KQS_URL": shared.url}),
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_the_environment_sets_the_server(tmp_path: Path) -> None:
    config = tmp_path / "elsewhere.toml"
    config.write_text('[server]\nname = "by-file"\n')
    made = ServerProcess(
        tmp_path,
        None,
        env={"KQS_CONFIG": str(config), "KQS_DATA": "ignored", "KQS_LISTEN": "127.0.0.1:1"},
    )
    try:
        made.start()  # its flags win over the environment
        with made.client() as client:
            assert client.stats()["name"] == "by-file"
            until(lambda: client.stats()["workers"][0]["name"] == "by-file/builtin/1")
        made.stop()
    finally:
        made.discard()
    assert not (tmp_path / "ignored").exists()
