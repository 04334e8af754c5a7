"""A block of single inserts takes a way of its own; what comes out is the same as on the general one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kqs.core import calls
from kqs.core.calls import decode_singles
from kqs.core.job import DefaultsTable, JobDefaults, NewJob
from kqs.errors import DiskFull
from kqs.ports import Inserted
from kqs.service.calllog import CallLog
from kqs.service.calls import Desk
from kqs.service.intake import Intake
from kqs.service.metrics import Metrics
from kqs.service.server import Server
from kqs.service.tokens import Tokens
from kqs.settings.config import CallLogConfig, LimitsConfig
from kqs.stores.files import FileStore

THRESHOLD = 1000


class _Engine:
    """Accepts everything, or nothing."""

    capabilities = frozenset({"inspect"})

    def __init__(self, full: bool) -> None:
        self.jobs: list[NewJob] = []
        self._full = full

    async def put(self, jobs: Sequence[NewJob]) -> Inserted:
        if self._full:
            raise DiskFull("the disk is full")
        first = len(self.jobs)
        self.jobs.extend(jobs)
        return Inserted([f"job-{number}" for number in range(first, len(self.jobs))])


class _Outcome(msgspec.Struct):
    replies: list[dict[str, Any]]
    jobs: list[NewJob]
    metrics: Metrics


async def _outcome(folder: Path, lines: Sequence[bytes], *, full: bool = False) -> _Outcome:
    """Send all lines in one write and half-close; returns what came back and what the engine got."""
    engine, metrics = _Engine(full), Metrics()
    log = CallLog(str(folder), CallLogConfig(), lambda: 1.0)
    store = FileStore(str(folder / "bulk"))
    parts: dict[str, Any] = dict.fromkeys(("clock", "health", "about", "serves", "quit"))
    parts["dispatch"] = SimpleNamespace(dismiss=lambda connection: None)
    parts["crons"] = SimpleNamespace(handlers={})
    tokens = Tokens(str(folder), [])
    server = Server(LimitsConfig(), tokens)
    server.desk = Desk(
        engine=engine,  # type: ignore[arg-type]
        intake=Intake(engine, store, THRESHOLD, metrics, log),  # type: ignore[arg-type]
        bulk=store,
        table=DefaultsTable({"low": JobDefaults(prio="low", ttr=5, max_attempts=3)}),
        tokens=tokens,
        metrics=metrics,
        log=log,
        **parts,
    )
    await server.listen("127.0.0.1", 0, str(folder / "sock"))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(b"\n".join(lines) + b"\n")
        writer.write_eof()
        replies = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        server.stop_listening()
        await store.close()
        log.close()
    return _Outcome([msgspec.json.decode(line) for line in replies.splitlines()], engine.jobs, metrics)


def _insert(id: int, job: str, extra: str = "") -> bytes:
    return f'{{"v":1,"id":"{id}","n":"insert","m":{job}{extra}}}'.encode()


PLAIN = [_insert(id, f'{{"type":"a","data":{{"n":{id}}}}}') for id in range(3)]
LARGE = _insert(10, f'{{"type":"a","data":"{"x" * THRESHOLD}"}}')

BLOCKS = {
    "plain": PLAIN,
    "settings": [
        _insert(1, '{"type":"low","data":1}'),
        _insert(2, '{"type":"low","prio":"urgent","ttr":1.5,"delay":2,"max_attempts":0,"data":2}'),
        _insert(3, '{"type":"a","prio":"bulk","retry":{"backoff":"fixed","base":9},"data":3}'),
        _insert(4, '{"type":"a"}'),
    ],
    "bytes": [
        _insert(1, '{"type":"a","data64":"AAEC"}'),
        _insert(2, '{"type":"a","data":{"type":"Buffer","data":[9]}}'),
    ],
    "text": [_insert(1, '{"type":"ä","data":"\\u00e9ß\\n"}'), _insert(2, '{"type":"a","data":"\\\\"}')],
    "unknown field": [*PLAIN, _insert(8, '{"type":"a","dat":1}'), _insert(9, '{"type":"a"}')],
    "type too long": [*PLAIN, _insert(8, f'{{"type":"{"t" * 198}"}}'), _insert(9, '{"type":"a"}')],
    "unsupported": [_insert(8, '{"type":"a","fair":"u"}'), *PLAIN],
    "unique": [
        _insert(1, '{"type":"a","unique":"u"}'),
        *PLAIN,
        _insert(8, '{"type":"a","unique":{"key":"u","scope":"queued"}}'),
        _insert(9, '[{"type":"a"},{"type":"a","unique":"u"},{"type":"b","unique":"u"}]'),
    ],
    "odd ids": [
        b'{"v":1,"id":7,"n":"insert","m":{"type":"a"}}',
        b'{"v":1,"id":"a\\"b\\u0041","n":"insert","m":{"type":"a"}}',
        b'{"v":1,"n":"insert","m":{"type":"a","data":"none"}}',
    ],
    "array": [*PLAIN, _insert(8, '[{"type":"b"},{"type":"low"}]'), _insert(9, '{"type":"a"}')],
    "bad array": [*PLAIN, _insert(8, '[{"type":"b"},{"typ":"c"}]'), _insert(9, '{"type":"a"}')],
    "empty array": [*PLAIN, _insert(8, "[]")],
    "other call": [*PLAIN, b'{"v":1,"id":"8","n":"ping"}', _insert(9, '{"type":"a"}')],
    "other version": [*PLAIN, b'{"v":2,"id":"8","n":"insert","m":{"type":"a"}}'],
    "binary part": [*PLAIN, b'{"v":1,"b":4,"id":"8","n":"insert","m":{"type":"a"},"b":"AAEC"}'],
    "blank lines": [PLAIN[0], b"", b"  ", PLAIN[1]],
    "oversize": [PLAIN[0], LARGE, PLAIN[1], LARGE.replace(b'"10"', b'"11"')],
}


def _seen(outcome: _Outcome) -> Any:
    """Replies by id (some take longer than others) without the id the job got, and the jobs."""
    replies = sorted(outcome.replies, key=lambda reply: str(reply.get("id")))
    for reply in replies:
        reply.pop("m", None)
    jobs = sorted((msgspec.structs.astuple(job)[:6], bool(job.options.bulk)) for job in outcome.jobs)
    return replies, jobs


@pytest.mark.parametrize("lines", BLOCKS.values(), ids=BLOCKS.keys())
async def test_same_as_the_general_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[bytes]
) -> None:
    hot = await _outcome(tmp_path, lines)
    monkeypatch.setattr(calls, "decode_singles", lambda block: None)
    general = await _outcome(tmp_path, lines)
    assert hot.replies
    assert _seen(hot) == _seen(general)
    assert hot.metrics.errors == general.metrics.errors
    assert hot.metrics.calls["insert"].calls == general.metrics.calls["insert"].calls


async def test_replies_name_their_own_jobs(tmp_path: Path) -> None:
    outcome = await _outcome(tmp_path, PLAIN)
    assert [reply["id"] for reply in outcome.replies] == ["0", "1", "2"]
    assert [reply["m"] for reply in outcome.replies] == [{"id": f"job-{number}"} for number in range(3)]
    assert [job.data for job in outcome.jobs] == [b'{"n":0}', b'{"n":1}', b'{"n":2}']


async def test_oversize_payloads_go_to_the_store_alone(tmp_path: Path) -> None:
    outcome = await _outcome(tmp_path, BLOCKS["oversize"])
    assert len(outcome.jobs) == 4
    assert sorted((len(job.data), job.options.bulk is not None) for job in outcome.jobs) == [
        (0, True),
        (0, True),
        (7, False),
        (7, False),
    ]


async def test_a_refusal_answers_every_call(tmp_path: Path) -> None:
    outcome = await _outcome(tmp_path, PLAIN, full=True)
    assert [(reply["id"], reply["e"]["code"]) for reply in outcome.replies] == [
        (str(id), "disk_full") for id in range(3)
    ]
    assert outcome.metrics.errors == {"disk_full": 3}
    assert outcome.metrics.calls["insert"].calls == 3


GOOD = PLAIN[0] + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        b'{"v":1,"id":"1","m":{"type":"a"}}\n',
        b'{"v":1,"id":"1","n":"ping","m":{"type":"a"}}\n',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"\xff"}}\n',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"a","data":"\xff"}}\n',
        b'{"v":1,"id":"1","n":"insert","m":{"type":"a","auth":{"usr":"","pwd":""}}}\n',
        b'{"v":1,"id":"1","n":"insert","m":undefined}\n',
        b'{"v":1,"id":"1","n":"insert",\n"m":{"type":"a"}}\n',
        PLAIN[0] + PLAIN[1] + b"\n",
        b"\n",
    ],
)
def test_only_blocks_of_good_single_inserts(line: bytes) -> None:
    singles = decode_singles(GOOD)
    assert singles is not None
    assert [(single.id, single.m.type) for single in singles] == [("0", "a")]
    assert decode_singles(GOOD + line) is None
    assert decode_singles(line + GOOD) is None
