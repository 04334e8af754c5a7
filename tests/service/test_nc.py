"""The seed's quick test as a person types it: a line of JSON through ``nc``, a payload on stdout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support import PATIENCE, Output, ServerProcess, environment, kqs

pytestmark = pytest.mark.service("nc")

Start = Callable[..., ServerProcess]
KQS = f"{sys.executable} -m kqs.cli.main"
PRINTED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ping running, payload = (.*)")


def pipeline(command: str) -> str:
    """What a shell's pipeline prints."""
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=environment(), timeout=PATIENCE, check=True
    )
    assert not done.stderr
    return done.stdout


def test_the_quick_test(start: Start) -> None:
    server = start()
    reply = pipeline(f"{KQS} rpc insert '{{type:\"ping\",data:{{a:1}}}}' | nc -N localhost {server.port}")
    assert json.loads(reply)["m"].keys() == {"id"}
    (line,) = server.stdout.wait_for("ping running")
    printed = PRINTED.fullmatch(line)
    assert printed is not None, line
    assert printed[1] == '{"a":1}'


def test_the_seeds_nc_that_stays(start: Start) -> None:
    """Without -N, nc waits for the server to close; the reply and the job come all the same."""
    server = start()
    line = kqs("rpc", "insert", '{type:"ping",data:{a:1}}').out.encode()
    nc = subprocess.Popen(
        ["nc", "localhost", str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert nc.stdin is not None and nc.stdout is not None
    try:
        nc.stdin.write(line)
        nc.stdin.close()
        (reply,) = Output(nc.stdout).wait_for('"s":"end"')
        assert json.loads(reply)["e"] is None
        server.stdout.wait_for('payload = {"a":1}')
        assert nc.poll() is None
        server.terminate()
        assert nc.wait(PATIENCE) == 0  # the server's end is nc's
    finally:
        nc.kill()
        nc.wait()
    assert server.wait() == 0


def test_a_unique_job_through_nc(start: Start) -> None:
    server = start()
    line = kqs("rpc", "insert", '{type:"report",unique:"may"}').out.strip()
    lines = f"printf '%s\\n%s\\n' '{line}' '{line}'"
    first, second = (
        json.loads(text)["m"] for text in pipeline(f"{lines} | nc -N localhost {server.port}").split("\n", 1)
    )
    assert first.keys() == {"id"}
    assert second == {"id": first["id"], "duplicate": True}


@pytest.mark.parametrize(
    ("argument", "printed"),
    [
        ('{type:"ping"}', "null"),
        ("{type:'ping',data:'it''s'}".replace("''", "\\'"), '"it\'s"'),
        ('{type:"ping",data:[1,2.5,null,true,{}]}', "[1,2.5,null,true,{}]"),
        ('{"type":"ping","data":{"b":"\N{SNOWMAN}"}}', '{"b":"\N{SNOWMAN}"}'),
        ('{type:"ping",data:{type:"Buffer",data:[1,2,3]}}', "<3 bytes>"),
        ('{type:"ping",data:"a\\nb"}', '"a\\nb"'),
    ],
)
def test_what_the_ping_job_prints(shared: ServerProcess, argument: str, printed: str) -> None:
    seen = len([line for line in shared.stdout.lines if "ping running" in line])
    line = kqs("rpc", "insert", argument).out
    with shared.connect() as wire:
        wire.send(line.encode())
        wire.half_close()
        (reply,) = wire.rest()
    assert reply["e"] is None
    last = shared.stdout.wait_for("ping running", times=seen + 1)[-1]
    found = PRINTED.fullmatch(last)
    assert found is not None and found[1] == printed


def test_every_call_of_the_seed_through_nc(start: Start) -> None:
    server = start()
    for command, shown in (
        ("rpc ping", '"m":"pong"'),
        ("rpc echo '[1,{a:2}]'", '"m":[1,{"a":2}]'),
        ("rpc stats", '"jobs":{'),
        ("rpc quit", '"m":null'),
    ):
        assert shown in pipeline(f"{KQS} {command} | nc -N localhost {server.port}")
    assert server.wait() == 0
