"""Binary payloads: all ways in, all byte values, sizes around every limit, to Python and to a command.

The reference is the SHA-256 of what was sent, and what the handler says of what it got.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kqs.client import Client
from tests.support import ServerProcess, until

Start = Callable[..., ServerProcess]
MIB = 1024 * 1024
THRESHOLD = 65536
SIZES = [0, 1, 65_535, 65_536, 65_537, 10 * MIB]

#: A Node Buffer's JSON needs up to four characters a byte: 10 MiB of it are over the default limit of a line.
CONFIG = """
[limits]
line = 50331648
[handlers.digest]
python = "jobs:digest"
[handlers.sum]
command = ["sh", "-c", "sha256sum >$KQS_JOB_ID.new && mv $KQS_JOB_ID.new $KQS_JOB_ID"]
[pools.default]
processes = 2
"""


def payload(size: int) -> bytes:
    """Bytes of all values, not compressible to nothing, the same in every run."""
    block = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(32))
    return (bytes(range(256)) + block * (size // len(block) + 1))[:size]


def by_data64(client: Client, type: str, data: bytes) -> str:
    return str(client.call("insert", {"type": type, "data64": b64encode(data).decode()})["id"])


def by_buffer(client: Client, type: str, data: bytes) -> str:
    return str(client.call("insert", {"type": type, "data": {"type": "Buffer", "data": list(data)}})["id"])


def by_part(client: Client, type: str, data: bytes) -> str:
    return str(client.call("insert", {"type": type}, blob=data)["id"])


WAYS = [by_data64, by_buffer, by_part]
Way = Callable[[Client, str, bytes], str]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    made = ServerProcess(tmp_path_factory.mktemp("payloads"), CONFIG)
    try:
        yield made.start()
        made.stop()
    finally:
        made.discard()


@pytest.fixture
def client(running: ServerProcess) -> Iterator[Client]:
    with running.client() as client:
        yield client


def digested(server: ServerProcess, id: str) -> tuple[str, int, str]:
    """What the Python handler says: type, length, SHA-256."""
    (line,) = server.stdout.wait_for(f"digest {id} ")
    _digest, _id, kind, size, digest = line.split()
    return kind, int(size), digest


def summed(server: ServerProcess, client: Client, id: str) -> str:
    """What ``sha256sum`` says of the command's stdin."""
    file = server.folder / id
    until(file.exists, "the command")
    return file.read_text().split()[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_every_way(running: ServerProcess, client: Client, way: Way, size: int) -> None:
    data = payload(size)
    digest = hashlib.sha256(data).hexdigest()
    to_python, to_command = way(client, "digest", data), way(client, "sum", data)
    assert digested(running, to_python) == ("bytes", size, digest)
    assert summed(running, client, to_command) == digest
    for id in (to_python, to_command):
        until(lambda id=id: client.job(id)["state"] == "done")
        job = client.job(id)
        assert (job["size"], job["attempt"]) == (size, 1)


@pytest.mark.parametrize("way", WAYS)
def test_every_byte_value_alone(running: ServerProcess, client: Client, way: Way) -> None:
    ids = [way(client, "digest", bytes([byte])) for byte in range(256)]
    for byte, id in enumerate(ids):
        assert digested(running, id) == ("bytes", 1, hashlib.sha256(bytes([byte])).hexdigest())


@pytest.mark.parametrize("byte", [0, 10, 13, 26, 34, 92, 127, 128, 192, 255])
def test_awkward_bytes_to_a_command(running: ServerProcess, client: Client, byte: int) -> None:
    data = bytes([byte])
    assert summed(running, client, by_part(client, "sum", data)) == hashlib.sha256(data).hexdigest()


def test_bytes_in_a_batch(running: ServerProcess, client: Client) -> None:
    datas = [payload(size) for size in (0, 1, 300, THRESHOLD + 1)]
    ids = client.insert_many([{"type": "digest", "data": data} for data in datas])
    for data, id in zip(datas, ids, strict=True):
        assert digested(running, id) == ("bytes", len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [10, THRESHOLD - 2, THRESHOLD, THRESHOLD + 1, MIB])
def test_json_of_every_size_is_decoded_and_the_command_gets_its_text(
    running: ServerProcess, client: Client, size: int
) -> None:
    text = "\N{SNOWMAN}" + "x" * (size - 5)
    raw = json.dumps(text, ensure_ascii=False).encode()
    assert len(raw) == size
    to_python, to_command = client.insert("digest", text), client.insert("sum", text)
    kind, _size, digest = digested(running, to_python)
    assert (kind, digest) == ("str", hashlib.sha256(repr(text).encode()).hexdigest())
    assert summed(running, client, to_command) == hashlib.sha256(raw).hexdigest()


def test_json_reaches_a_command_as_it_was_written(running: ServerProcess, client: Client) -> None:
    """Not decoded, not encoded again: spaces, order, numbers and duplicate keys stay."""
    raw = b'{ "b" : 1.50, "a":1e2 ,"a": 12345678901234567890123 }'
    with running.connect() as wire:
        reply = wire.ask(b'{"v":1,"id":"1","n":"insert","m":{"type":"sum","data":%b}}' % raw)
    assert summed(running, client, reply["m"]["id"]) == hashlib.sha256(raw).hexdigest()


# -- the bulk store ---------------------------------------------------------------------------------


def bulk_files(server: ServerProcess) -> list[Path]:
    return list((server.data / "bulk").iterdir())


def test_only_what_is_above_the_threshold_goes_to_files(start: Start) -> None:
    server = start()
    with server.client() as client:
        client.insert("x", payload(THRESHOLD))
        client.insert("x", "x" * (THRESHOLD - 2))
        assert bulk_files(server) == []
        client.insert("x", payload(THRESHOLD + 1))
        client.insert("x", "x" * (THRESHOLD - 1))
        sizes = {file.stat().st_size for file in bulk_files(server)}
        assert sizes == {THRESHOLD + 1}
        assert {file.stat().st_mode & 0o777 for file in bulk_files(server)} == {0o600}
        for lease in client.call("reserve", {"max": 10})["jobs"]:
            client.call("settle", [{"receipt": lease["receipt"], "outcome": "ok"}])
        until(lambda: not bulk_files(server), "the files to go with their jobs")


def test_a_bulk_payload_outlives_sigkill(start: Start) -> None:
    server = start()
    data = payload(MIB)
    id = server.client().insert("digest", data)
    server.kill()
    again = start('[handlers.digest]\npython = "jobs:digest"\n')
    assert digested(again, id) == ("bytes", MIB, hashlib.sha256(data).hexdigest())
    until(lambda: not bulk_files(again), "the file to go with its job")


def test_a_payload_that_is_lost_is_told_and_its_job_kept(start: Start) -> None:
    """G6: never handed out wrong, never silently lost; it runs when the payload is back."""
    server = start()
    client = server.client()
    data = payload(MIB)
    harmed: dict[str, Path] = {}
    for _harm in ("gone", "changed", "cut"):
        before = set(bulk_files(server))
        id = client.insert("digest", data)
        (harmed[id],) = set(bulk_files(server)) - before
    server.stop()
    gone, changed, cut = harmed.values()
    gone.unlink()
    changed.write_bytes(b"?" + data[1:])
    cut.write_bytes(data[:-1])
    again = start(
        '[handlers.digest]\npython = "jobs:digest"\n[defaults.retry]\nbackoff = "fixed"\nbase = 0.1\n'
    )
    client = again.client()
    for id, file in harmed.items():
        error = until(lambda id=id: client.job(id).get("last_error"), "the loss to be told")
        assert file.name in error["message"]
    assert "digest" not in again.stdout.text
    for file in harmed.values():
        file.write_bytes(data)
    client.insert("digest", 1)
    for id in harmed:
        assert digested(again, id) == ("bytes", MIB, hashlib.sha256(data).hexdigest())


def test_a_batch_that_is_refused_leaves_no_files(start: Start) -> None:
    server = start()
    with server.connect() as wire:
        large = {"type": "x", "data": "x" * (2 * THRESHOLD)}
        assert wire.call("insert", [large, large, {"type": "x", "prio": "top"}])["e"]["index"] == 2
    assert bulk_files(server) == []
