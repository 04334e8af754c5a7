"""What a worker logs: whole lines, however long what a handler says."""

from __future__ import annotations

import json
import logging
import os
from select import PIPE_BUF

import pytest

from kqs.runners.log import AS_JSON, WorkerLog


@pytest.mark.parametrize(
    "text", ["x" * 50_000, "\N{SNOWMAN}" * 9000, "\x00" * 3000, "\udcff" * 9000, "short", ""]
)
@pytest.mark.parametrize("as_json", [True, False])
def test_a_line_is_never_more_than_a_pipe_takes_in_one_piece(
    text: str, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AS_JSON, "1" if as_json else "")
    writes: list[bytes] = []
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append(bytes(data)))
    record = logging.makeLogRecord({"msg": text, "levelname": "INFO", "job": "j-1", "type": "t"})
    WorkerLog(2).emit(record)
    assert all(len(data) <= PIPE_BUF and data.endswith(b"\n") for data in writes)
    if as_json:
        said = [json.loads(data) for data in writes]
        assert all(line["job"] == "j-1" for line in said)
        assert "".join(line["line"] for line in said) == text.encode("utf-8", "replace").decode()
    elif text.startswith("x"):
        assert sum(data.count(b"x") for data in writes) == len(text)
