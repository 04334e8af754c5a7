"""``insert``: what is taken, what is refused and how it is told, and that a refused call changes nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest

from kqs.client import Client
from tests.support import ServerProcess, Wire

WAY_TOO_MANY = 10_001


@pytest.fixture
def wire(shared: ServerProcess) -> Iterator[Wire]:
    with shared.connect() as connection:
        yield connection


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[Client]:
    with shared.client() as client:
        yield client


def inserted(client: Client) -> int:
    """How many jobs the server took so far."""
    return int(client.stats()["journal"]["last_seq"])


def test_one_job(wire: Wire, client: Client) -> None:
    reply = wire.call("insert", {"type": "one", "data": {"a": 1}}, id="7")
    id = reply["m"]["id"]
    assert reply == {"v": 1, "id": "7", "e": None, "s": "end", "m": {"id": id}}
    assert client.job(id, data=True)["data"] == {"a": 1}


def test_an_array_has_its_ids_in_order(wire: Wire, client: Client) -> None:
    reply = wire.call("insert", [{"type": "many", "data": n} for n in range(100)])
    assert reply["m"].keys() == {"ids"}
    ids = reply["m"]["ids"]
    assert len(set(ids)) == 100
    assert [client.job(id, data=True)["data"] for id in ids] == list(range(100))


def test_an_array_of_one_is_answered_as_an_array(wire: Wire) -> None:
    assert wire.call("insert", [{"type": "one"}])["m"].keys() == {"ids"}


def test_ten_thousand_jobs_in_one_call(wire: Wire) -> None:
    ids = wire.call("insert", [{"type": "full"}] * 10_000)["m"]["ids"]
    assert len(set(ids)) == 10_000


def test_defaults(client: Client) -> None:
    job = client.job(client.call("insert", {"type": "plain"})["id"], data=True)
    shown = {name: job[name] for name in ("type", "state", "prio", "attempt", "ttr", "data")}
    assert shown == {
        "type": "plain",
        "state": "ready",
        "prio": "normal",
        "attempt": 0,
        "ttr": 30,
        "data": None,
    }
    assert job["due_at"] == job["inserted_at"]


def test_every_setting_is_kept(client: Client) -> None:
    id = client.insert(
        "set",
        prio="bulk",
        delay=100,
        ttr=2.5,
        max_attempts=3,
        retry={"backoff": "fixed", "base": 1, "cap": 2, "jitter": 0},
    )
    job = client.job(id)
    assert (job["state"], job["prio"], job["ttr"]) == ("delayed", "bulk", 2.5)
    assert job["due_at"] > job["inserted_at"]


@pytest.mark.parametrize("type", ["x" * 197, "\N{SNOWMAN}" * 65, "a b/c\\d", '"', " "])
def test_types_of_1_to_197_bytes(client: Client, type: str) -> None:
    assert client.job(client.insert(type))["type"] == type


@pytest.mark.parametrize(
    ("job", "code", "field"),
    [
        ({}, "bad_request", "type"),
        ({"data": 1}, "bad_request", "type"),
        ({"type": ""}, "bad_request", "type"),
        ({"type": 7}, "bad_request", "type"),
        ({"type": None}, "bad_request", "type"),
        ({"type": "x" * 198}, "too_large", "type"),
        ({"type": "\N{SNOWMAN}" * 66}, "too_large", "type"),
        ({"type": "x", "prio": "top"}, "bad_request", "prio"),
        ({"type": "x", "prio": 1}, "bad_request", "prio"),
        ({"type": "x", "prio": None}, "bad_request", "prio"),
        ({"type": "x", "delay": -1}, "bad_request", "delay"),
        ({"type": "x", "delay": "1"}, "bad_request", "delay"),
        ({"type": "x", "delay": True}, "bad_request", "delay"),
        ({"type": "x", "delay": 1e300}, "bad_request", "delay"),
        ({"type": "x", "ttr": 0}, "bad_request", "ttr"),
        ({"type": "x", "ttr": -5}, "bad_request", "ttr"),
        ({"type": "x", "ttr": 1e9}, "bad_request", "ttr"),
        ({"type": "x", "ttr": False}, "bad_request", "ttr"),
        ({"type": "x", "max_attempts": -1}, "bad_request", "max_attempts"),
        ({"type": "x", "max_attempts": 1.5}, "bad_request", "max_attempts"),
        ({"type": "x", "max_attempts": True}, "bad_request", "max_attempts"),
        ({"type": "x", "max_attempts": 10**40}, "bad_request", "max_attempts"),
        ({"type": "x", "retry": []}, "bad_request", "retry"),
        ({"type": "x", "retry": {"backoff": "square"}}, "bad_request", "retry.backoff"),
        ({"type": "x", "retry": {"jitter": 2}}, "bad_request", "retry.jitter"),
        ({"type": "x", "retry": {"bse": 2}}, "unknown_field", "retry.bse"),
        ({"type": "x", "data64": 7}, "bad_request", "data64"),
        ({"type": "x", "data64": "*"}, "bad_request", "data64"),
        ({"type": "x", "data64": "YQ"}, "bad_request", "data64"),
        ({"type": "x", "data": 1, "data64": "YQ=="}, "bad_request", "data"),
        ({"type": "x", "key": ""}, "bad_request", "key"),
        ({"type": "x", "unique": ""}, "bad_request", "unique"),
        ({"type": "x", "unique": "k" * 256}, "bad_request", "unique"),
        ({"type": "x", "unique": True}, "bad_request", "unique"),
        ({"type": "x", "unique": {"scope": "queued"}}, "bad_request", "unique.key"),
        ({"type": "x", "unique": {"key": ""}}, "bad_request", "unique.key"),
        ({"type": "x", "unique": {"key": "k", "scope": "running"}}, "bad_request", "unique.scope"),
        ({"type": "x", "unique": {"key": "k", "scop": "queued"}}, "unknown_field", "unique.scop"),
        ({"type": "x", "expires": 0}, "bad_request", "expires"),
        ({"type": "x", "result_ttl": -1}, "bad_request", "result_ttl"),
        ({"type": "x", "dealy": 5}, "unknown_field", "dealy"),
        ({"type": "x", "Type": "y"}, "unknown_field", "Type"),
        ({"type": "x", "id": "1"}, "unknown_field", "id"),
        ({"type": "x", "": 1}, "unknown_field", ""),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_bad_job_is_refused_with_its_field_and_index(
    wire: Wire, client: Client, job: dict[str, Any], code: str, field: str
) -> None:
    before = inserted(client)
    alone = wire.call("insert", job)["e"]
    assert (alone["code"], alone.get("field"), "index" in alone) == (code, field, False)
    among = wire.call("insert", [{"type": "good"}, {"type": "good"}, job, {"type": "good"}])["e"]
    assert (among["code"], among.get("field"), among["index"]) == (code, field, 2)
    assert inserted(client) == before


def test_unknown_fields_come_with_a_suggestion(wire: Wire) -> None:
    assert "did you mean 'delay'?" in wire.call("insert", {"type": "x", "dealy": 5})["e"]["message"]
    assert "did you mean 'base'?" in wire.call("insert", {"type": "x", "retry": {"bas": 5}})["e"]["message"]


def test_a_limit_is_named(wire: Wire, client: Client) -> None:
    before = inserted(client)
    assert wire.call("insert", {"type": "x" * 198})["e"]["limit"] == 197
    error = wire.call("insert", [{"type": "x"}] * WAY_TOO_MANY)["e"]
    assert (error["code"], error["limit"]) == ("too_large", 10_000)
    assert inserted(client) == before


@pytest.mark.parametrize("argument", [..., None, [], "x", 7, True, [[]], [None], [{"type": "x"}, 7]])
def test_what_is_no_job_is_refused(wire: Wire, client: Client, argument: Any) -> None:
    before = inserted(client)
    error = wire.call("insert", argument)["e"]
    assert error["code"] == "bad_request"
    if isinstance(argument, list) and argument:
        assert error["index"] == len(argument) - 1
    assert inserted(client) == before


def test_of_duplicate_keys_the_last_wins(wire: Wire, client: Client) -> None:
    reply = wire.ask(b'{"v":1,"id":"1","n":"insert","m":{"type":"a","data":1,"type":"b","data":2}}')
    job = client.job(reply["m"]["id"], data=True)
    assert (job["type"], job["data"]) == ("b", 2)


@pytest.mark.parametrize(
    ("m", "field"),
    [
        ('{"type":"x","delay":1e999}', "delay"),
        ('{"type":"x","max_attempts":%s}' % ("9" * 5000), "max_attempts"),
        ('{"type":"x","ttr":%s}' % ("9" * 400), "ttr"),
    ],
)
def test_numbers_beyond_all_bounds(wire: Wire, m: str, field: str) -> None:
    error = wire.ask(f'{{"v":1,"id":"1","n":"insert","m":{m}}}'.encode())["e"]
    assert (error["code"], error.get("field")) == ("bad_request", field)


def test_a_binary_part_goes_with_one_job(wire: Wire, client: Client) -> None:
    blob = bytes(range(256))
    text = b64encode(blob).decode()
    head = f'{{"v":1,"b":{len(text)},"id":"1","n":"insert"'
    reply = wire.ask(f'{head},"m":{{"type":"bin"}},"b":"{text}"}}'.encode())
    assert client.job(reply["m"]["id"], data=True)["data64"] == text
    array = wire.ask(f'{head},"m":[{{"type":"bin"}}],"b":"{text}"}}'.encode())
    assert (array["e"]["code"], array["e"]["field"]) == ("bad_request", "b")
    twice = wire.ask(f'{head},"m":{{"type":"bin","data":1}},"b":"{text}"}}'.encode())
    assert (twice["e"]["code"], twice["e"]["field"]) == ("bad_request", "data")
    without = wire.ask(f'{head},"b":"{text}"}}'.encode())
    assert without["e"]["code"] == "bad_request"


@pytest.mark.parametrize(
    "data",
    [
        '{"type":"Buffer"}',
        '{"type":"Buffer","data":[256]}',
        '{"type":"Buffer","data":[-1]}',
        '{"type":"Buffer","data":[1.5]}',
        '{"type":"Buffer","data":"abc"}',
        '{"type":"Buffer","data":[1],"more":1}',
        '{"type":"buffer","data":[1]}',
    ],
)
def test_what_only_looks_like_a_buffer_stays_json(wire: Wire, client: Client, data: str) -> None:
    reply = wire.ask(f'{{"v":1,"id":"1","n":"insert","m":{{"type":"b","data":{data}}}}}'.encode())
    job = client.job(reply["m"]["id"], data=True)
    assert job["data"] == json.loads(data)


@pytest.mark.parametrize(
    "data",
    [
        '{"type":"Buffer","data":[0,255]}',
        '{ "type" : "Buffer" , "data" : [ 0, 255 ] }',
        '{"data":[0,255],"type":"Buffer"}',
    ],
)
def test_a_buffer_however_it_is_written_is_bytes(wire: Wire, client: Client, data: str) -> None:
    reply = wire.ask(f'{{"v":1,"id":"1","n":"insert","m":{{"type":"b","data":{data}}}}}'.encode())
    assert client.job(reply["m"]["id"], data=True)["data64"] == "AP8="
