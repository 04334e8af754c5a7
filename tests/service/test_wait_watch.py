"""``wait`` and ``watch``: what they answer, and what ends them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kqs.client import AsyncClient, Client
from kqs.errors import BadRequest, CallError, NotFound
from tests.support import ServerProcess, Wire, request, until

Start = Callable[..., ServerProcess]

_numbers = count()


@pytest.fixture
def client(shared: ServerProcess) -> Iterator[Client]:
    with shared.client() as client:
        yield client


@pytest.fixture
def type() -> str:
    """A job type no other test uses."""
    return f"watch-{next(_numbers)}"


def lease(client: Client, type: str) -> str:
    (job,) = client.call("reserve", {"types": [type]})["jobs"]
    return str(job["receipt"])


def settle(client: Client, receipt: str, outcome: str, **more: Any) -> None:
    assert client.call("settle", [{"receipt": receipt, "outcome": outcome, **more}])["settled"] == 1


class Waiting:
    """A ``wait`` that is under way on a connection of its own."""

    def __init__(self, server: ServerProcess, id: str, timeout: float = 600) -> None:
        self._wire = server.connect()
        self._wire.send(request("wait", {"id": id, "timeout": timeout}) + request("ping", id="2"))
        pong = self._wire.line()
        assert pong is not None and pong["m"] == "pong"  # the wait before it has been taken, too

    def answer(self) -> dict[str, Any]:
        reply = self._wire.line()
        assert reply is not None and reply["e"] is None, reply
        answer: dict[str, Any] = reply["m"]
        return answer


# -- wait -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_wait_answers_with_the_result(
    shared: ServerProcess, client: Client, type: str, kept: bool, late: bool
) -> None:
    """Whether the job ends before the call or while it waits."""
    id = client.insert(type, **({"result_ttl": 60} if kept else {}))
    receipt = lease(client, type)
    result = {"a": [1, None, "\N{SNOWMAN}"]}
    waiting = None if late else Waiting(shared, id)
    settle(client, receipt, "ok", result=result)
    answer = Waiting(shared, id).answer() if waiting is None else waiting.answer()
    assert answer == {"id": id, "state": "done", "outcome": "ok"} | ({"result": result} if kept else {})


def test_wait_answers_when_the_job_is_buried(shared: ServerProcess, client: Client, type: str) -> None:
    id = client.insert(type)
    receipt, waiting = lease(client, type), Waiting(shared, id)
    settle(client, receipt, "fail", reason="no such file")
    answer = waiting.answer()
    assert (answer["id"], answer["state"]) == (id, "buried")
    assert answer["last_error"]["message"] == "no such file"


@pytest.mark.parametrize(("verb", "outcome"), [("cancel", "cancelled"), ("delete", "deleted")])
def test_wait_answers_when_the_job_is_ended(
    shared: ServerProcess, client: Client, type: str, verb: str, outcome: str
) -> None:
    id = client.insert(type)
    waiting = Waiting(shared, id)
    client.call(verb, {"id": id})
    assert waiting.answer() == {"id": id, "state": "done", "outcome": outcome}


def test_wait_goes_on_while_the_job_is_tried_again(shared: ServerProcess, client: Client, type: str) -> None:
    id = client.insert(type)
    waiting = Waiting(shared, id)
    settle(client, lease(client, type), "again", delay=0, reason="not yet")
    settle(client, lease(client, type), "release")
    settle(client, lease(client, type), "ok")
    answer = waiting.answer()
    assert (answer["state"], answer["outcome"]) == ("done", "ok")


def test_when_its_time_is_up_wait_tells_the_state(client: Client, type: str) -> None:
    id = client.insert(type)
    for timeout in (0, 0.05):
        assert client.call("wait", {"id": id, "timeout": timeout}) == {"id": id, "state": "ready"}


@pytest.mark.parametrize("call", ["wait", "watch"])
@pytest.mark.parametrize("id", ["nosuch", "", "\x00", "watch-1", "00000000-1"])
def test_an_unknown_job(client: Client, call: str, id: str) -> None:
    with pytest.raises(NotFound) as refused:
        client.call(call, {"id": id})
    assert refused.value.field == "id"


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ({}, "id"),
        ({"id": 1}, "id"),
        ({"id": "a", "timeout": -1}, "timeout"),
        ({"id": "a", "timeout": 3601}, "timeout"),
    ],
)
def test_wait_refuses(client: Client, argument: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        client.call("wait", argument)
    assert refused.value.field == field


RESULTS = """
[handlers.end]
python = "jobs:end"
result_ttl = 60
"""


def test_results_of_a_handler_over_a_kill(start: Start) -> None:
    """A small one stands in the journal, a large one in the bulk store; another is no JSON."""
    server = start(RESULTS)
    client = server.client()
    large = "x" * 300_000
    values = {
        client.insert("end", {"how": "return", "value": value}): value for value in ([1, {"a": None}], large)
    }
    for id, value in values.items():
        answer = client.call("wait", {"id": id})
        assert answer == {"id": id, "state": "done", "outcome": "ok", "result": value}
    odd = client.call("wait", {"id": client.insert("end", {"how": "return_object"})})
    assert (odd["state"], odd["last_error"]["kind"]) == ("buried", "result")
    assert client.stats()["results"] == 2
    assert len([path for path in (server.data / "bulk").rglob("*") if path.is_file()]) == 1
    server.kill()
    client = start(RESULTS).client()
    for id, value in values.items():
        assert client.call("wait", {"id": id})["result"] == value


def test_a_result_is_forgotten_after_its_time(start: Start) -> None:
    server = start()
    client = server.client()
    id = client.insert("t", result_ttl=0.2)
    settle(client, lease(client, "t"), "ok", result="x" * 300_000)

    def stored() -> list[Path]:
        return [path for path in (server.data / "bulk").rglob("*") if path.is_file()]

    until(lambda: client.stats()["results"] == 0 and not stored(), "the result to be forgotten")
    assert client.call("wait", {"id": id}) == {"id": id, "state": "done", "outcome": "ok"}


def test_the_end_of_the_server_answers_who_waits(start: Start) -> None:
    server = start()
    client = server.client()
    id = client.insert("t")
    waiting = Waiting(server, id)
    client.call("quit")
    assert waiting.answer() == {"id": id, "state": "ready"}
    assert server.wait() == 0


# -- watch ------------------------------------------------------------------------------------------------


class Watching:
    """A ``watch`` that is under way on a connection of its own."""

    def __init__(self, server: ServerProcess, receive_buffer: int = 0, **argument: Any) -> None:
        self.wire: Wire = server.connect(receive_buffer)
        self.wire.send(request("watch", argument) + request("ping", id="2"))
        self.first: dict[str, Any] | None = None
        while (reply := self.wire.line()) is not None and reply["id"] != "2":
            self.first = reply["m"]
        if "id" in argument and self.first is None:
            self.first = self.next()

    def reply(self) -> dict[str, Any]:
        reply = self.wire.line()
        assert reply is not None, "closed"
        return reply

    def next(self) -> dict[str, Any]:
        """The next event."""
        reply = self.reply()
        assert reply.keys() == {"v", "id", "s", "m"} and reply["s"] == "ok", reply
        event: dict[str, Any] = reply["m"]
        return event

    def events(self, number: int) -> list[str]:
        return [self.next()["event"] for _ in range(number)]

    def ended(self) -> bool:
        return self.reply() == {"v": 1, "id": "1", "s": "end"}


def test_the_life_of_a_job_as_replies_to_one_call(shared: ServerProcess, client: Client, type: str) -> None:
    id = client.insert(type, {"a": 1}, ttr=7)
    other = client.insert(type)
    watch = Watching(shared, id=id)
    assert watch.first is not None and watch.first["event"] == "state"
    assert watch.first["job"] == client.job(id)
    receipt = lease(client, type)
    client.call("renew", {"receipts": [receipt], "progress": {"fraction": 0.5, "message": "half"}})
    settle(client, receipt, "again", delay=0, reason="not yet")
    settle(client, lease(client, type), "fail", reason="never")
    client.call("kick", {"id": id})
    settle(client, lease(client, type), "ok")
    client.call("delete", {"id": other})
    events = [watch.next() for _ in range(8)]
    assert watch.ended()
    assert [(event["event"], event["job"]["state"]) for event in events] == [
        ("reserved", "reserved"),
        ("progress", "reserved"),
        ("again", "ready"),
        ("reserved", "reserved"),
        ("buried", "buried"),
        ("kicked", "ready"),
        ("reserved", "reserved"),
        ("done", "done"),
    ]
    assert {event["job"]["id"] for event in events} == {id}
    assert events[1]["job"]["progress"] == {"fraction": 0.5, "message": "half"}
    assert events[4]["job"]["last_error"]["message"] == "never"
    assert events[7]["job"]["outcome"] == "ok"
    assert all(event.keys() == {"event", "at", "job"} for event in events)
    times = [event["at"] for event in events]
    assert times == sorted(times) and all(time.endswith("Z") for time in times)


@pytest.mark.parametrize(("verb", "event"), [("cancel", "cancelled"), ("delete", "deleted")])
def test_an_end_by_hand_ends_it(
    shared: ServerProcess, client: Client, type: str, verb: str, event: str
) -> None:
    id = client.insert(type)
    watch = Watching(shared, id=id)
    client.call(verb, {"id": id})
    assert watch.events(1) == [event] and watch.ended()


def test_a_job_that_is_done_is_told_and_that_is_all(shared: ServerProcess, client: Client, type: str) -> None:
    id = client.insert(type)
    client.call("delete", {"id": id})
    watch = Watching(shared, id=id)
    assert watch.first is not None and watch.first["job"]["outcome"] == "deleted"
    assert watch.ended()


def test_by_type_and_of_everything(shared: ServerProcess, client: Client, type: str) -> None:
    by_type, of_all = Watching(shared, type=type), Watching(shared)
    other = client.insert(f"{type}-other")
    ids = client.insert_many([{"type": type}] * 3)
    client.call("cancel", {"type": type})
    seen = [by_type.next() for _ in range(6)]
    assert [(event["event"], event["job"]["id"]) for event in seen] == [
        *(("accepted", id) for id in ids),
        *(("cancelled", id) for id in ids),
    ]
    everything = [of_all.next() for _ in range(7)]
    assert everything[0]["job"]["id"] == other and everything[1:] == seen
    by_type.wire.half_close()
    assert by_type.ended() and by_type.wire.closed()


def test_it_holds_up_no_other_call_of_its_connection(
    shared: ServerProcess, client: Client, type: str
) -> None:
    watch = Watching(shared, type=type)
    assert watch.wire.call("echo", 7, id="3")["m"] == 7
    client.insert(type)
    assert watch.events(1) == ["accepted"]


@pytest.mark.parametrize("together", [True, False])
def test_a_peer_that_sends_no_more_is_told_no_more(
    shared: ServerProcess, client: Client, type: str, together: bool
) -> None:
    """Also when its last line and the end of what it sends come at the same time."""
    id = client.insert(type)
    if together:
        wire = shared.connect()
        wire.send(request("watch", {"id": id}).rstrip(b"\n"))  # the end completes the line
        wire.half_close()
        first = wire.line()
        assert first is not None and first["m"]["event"] == "state"
    else:
        wire = Watching(shared, id=id).wire
        wire.half_close()
    assert wire.rest() == [{"v": 1, "id": "1", "s": "end"}]


def test_the_end_of_the_server_ends_it(start: Start) -> None:
    server = start()
    watches = [Watching(server), Watching(server, id=server.client().insert("t"))]
    server.terminate()
    assert watches[0].events(1) == ["accepted"]
    assert all(watch.ended() for watch in watches)
    assert server.wait() == 0


def test_a_watcher_that_does_not_read_is_told_so_and_holds_nobody_up(
    shared: ServerProcess, client: Client
) -> None:
    """Events of 600 bytes and more: the buffers on the way are full long before all are sent."""
    type = "x" * 197
    slow, fast = Watching(shared, receive_buffer=4096, type=type), Watching(shared, type=type)
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: seen.extend(fast.reply() for _ in range(40_000)))
    reader.start()
    for number in range(40):
        client.insert_many(
            [{"type": type, "key": f"{number:05d}-{one:05d}".ljust(255, "k")} for one in range(1000)]
        )
    reader.join()
    assert {reply["m"]["event"] for reply in seen} == {"accepted"}
    told = 0
    while (reply := slow.reply())["s"] == "ok":
        told += 1
    assert reply["e"]["code"] == "busy" and "10000 events behind" in reply["e"]["message"]
    assert 0 < told < 30_000
    assert slow.wire.call("ping", id="3")["m"] == "pong"  # its connection is as good as before


def test_a_watcher_that_is_gone_is_forgotten(shared: ServerProcess, client: Client, type: str) -> None:
    connections = client.stats()["connections"]["open"]
    for _ in range(20):
        Watching(shared, type=type).wire.close()
    until(lambda: client.stats()["connections"]["open"] <= connections, "their connections to end")
    client.insert_many([{"type": type}] * 100)
    assert client.ping() == "pong"


@pytest.mark.parametrize(
    ("argument", "field"), [({"id": "a", "type": "t"}, "type"), ({"id": 1}, "id"), ({"type": ""}, "type")]
)
def test_watch_refuses(client: Client, argument: Any, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        client.call("watch", argument)
    assert refused.value.field == field


async def test_the_asynchronous_client_streams_it(shared: ServerProcess, client: Client, type: str) -> None:
    id = client.insert(type)
    seen = []
    async with AsyncClient(shared.url) as watcher:
        async for event in watcher.stream("watch", {"id": id}):
            seen.append(event["event"])
            if seen == ["state"]:
                settle(client, lease(client, type), "ok")
        assert seen == ["state", "reserved", "done"]
        with pytest.raises(CallError):
            async for event in watcher.stream("watch", {"id": "nosuch"}):
                raise AssertionError(json.dumps(event))
