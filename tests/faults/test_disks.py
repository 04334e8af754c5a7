"""Disks that are full, read-only, or gone, under a real server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kqs.client import Client
from kqs.errors import CallError, ConnectionFailed, DiskFull, Internal, KQSError, ShuttingDown
from tests.support import ServerProcess, kqs, until

from .conftest import MakeFileSystem

CONFIG = """
[journal]
segment_size = 262144
"""
#: What a caller hears of a server that stops: its own call met the failure, or came after it.
STOPPED = (Internal, ShuttingDown, ConnectionFailed)
mount = pytest.mark.service("mkfs.ext4", "mount")


def job(number: int, size: int = 2000) -> dict[str, str]:
    return {"type": "work", "data": f"{number} " + "x" * size}


def insert_until_refused(client: Client) -> tuple[list[str], KQSError]:
    """Insert small jobs one by one; returns the ids and the error that ended it."""
    ids: list[str] = []
    while True:
        try:
            ids.append(client.insert(**job(len(ids))))
        except (CallError, ConnectionFailed) as error:
            return ids, error


def retry_until_refused(client: Client) -> str:
    """Retry the first job again and again; returns the receipt whose retry had no space."""
    while True:
        [one] = client.call("reserve", {"max": 1, "types": ["work"]})["jobs"]
        again = {"receipt": one["receipt"], "outcome": "again", "delay": 0}
        if refused := client.call("settle", [again])["refused"]:
            assert refused == [{"index": 0, "code": "disk_full"}]
            return str(one["receipt"])


def settle_all(client: Client) -> list[str]:
    """Do every job that is ready; returns the ids."""
    done: list[str] = []
    while jobs := client.call("reserve", {"max": 50, "types": ["work"]})["jobs"]:
        reply = client.call("settle", [{"receipt": one["receipt"], "outcome": "ok"} for one in jobs])
        assert reply == {"settled": len(jobs), "refused": []}
        done += [one["id"] for one in jobs]
    return done


def all_are_there(tmp_path: Path, data: Path, ids: list[str]) -> None:
    """A server that starts on this data again has these jobs first, and can end them."""
    server = ServerProcess(tmp_path, CONFIG, data=data).start()
    try:
        assert settle_all(server.client())[: len(ids)] == ids
        server.stop()
    finally:
        server.discard()


# -- full ---------------------------------------------------------------------------------------


@mount
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_on_a_full_disk_jobs_are_refused_and_end_and_it_recovers(
    tmp_path: Path, file_system: MakeFileSystem, kind: str
) -> None:
    disk = file_system(kind, 16 << 20)
    server = ServerProcess(tmp_path, CONFIG, data=disk.folder / "data").start()
    try:
        client = server.client()
        early = client.insert_many([job(number) for number in range(100)])
        full = disk.fill()
        more, error = insert_until_refused(client)
        assert isinstance(error, DiskFull), error
        with pytest.raises(DiskFull):
            client.insert(**job(0, 100_000))  # an oversize payload
        with pytest.raises(DiskFull):
            client.insert_many([job(number) for number in range(5)])
        assert client.stats()["jobs"]["ready"] == len(early + more)
        receipt = retry_until_refused(client)
        assert client.call("settle", [{"receipt": receipt, "outcome": "ok"}])["refused"] == []
        for _ in range(2):  # killed, and started on the disk that is full
            server.discard()
            server = ServerProcess(tmp_path, CONFIG, data=disk.folder / "data").start()
            client = server.client()
        assert settle_all(client) == [*early, *more][1:]
        full.unlink()

        def accepted() -> str:
            try:
                return client.insert(**job(1, 100_000))
            except DiskFull:
                return ""

        late = [until(accepted, "inserts to be accepted again"), client.insert(**job(2))]
        assert settle_all(client) == late
        server.stop()
    finally:
        server.discard()


# -- read-only ----------------------------------------------------------------------------------


@mount
def test_a_read_only_data_directory_is_refused_by_name(tmp_path: Path, file_system: MakeFileSystem) -> None:
    disk = file_system()
    data = disk.folder / "data"
    server = ServerProcess(tmp_path, CONFIG, data=data).start()
    id = server.client().insert(**job(1))
    server.stop()
    disk.unmount()
    disk.mount("ro")
    refused = kqs("serve", "--data", str(data), "--listen", "127.0.0.1:0", cwd=tmp_path)
    assert refused.status == 2
    assert f"data directory {data} cannot be written: Read-only file system" in refused.err
    assert "Traceback" not in refused.err
    disk.unmount()
    disk.mount()
    server = ServerProcess(tmp_path, CONFIG, data=data).start()
    try:
        assert settle_all(server.client()) == [id]
        server.stop()
    finally:
        server.discard()


@mount
def test_a_disk_that_becomes_read_only_stops_the_server(tmp_path: Path, file_system: MakeFileSystem) -> None:
    """As ext4 does by itself after an error (``errors=remount-ro``)."""
    disk = file_system()
    data = disk.folder / "data"
    server = ServerProcess(tmp_path, CONFIG, data=data).start()
    client = server.client()
    ids = client.insert_many([job(number) for number in range(3)])
    disk.remount("abort", "errors=remount-ro")
    try:
        more, error = insert_until_refused(client)
        assert isinstance(error, STOPPED)
        assert server.wait() == 1
        [line] = server.logged("the journal failed, the server stops: [Errno 30] Read-only file system")
        assert line["level"] == "critical"
    finally:
        server.discard()
    disk.unmount()
    disk.mount()
    all_are_there(tmp_path, data, ids + more)


# -- gone ---------------------------------------------------------------------------------------


def test_a_data_directory_that_is_removed_stops_the_server(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, CONFIG).start()
    try:
        client = server.client()
        client.insert_many([job(number) for number in range(3)])
        [leased] = client.call("reserve", {"max": 1, "types": ["work"]})["jobs"]
        shutil.rmtree(server.data)
        assert client.health()["status"] == "failing"
        with pytest.raises(CallError, match="removed while the server uses it"):
            client.call("settle", [{"receipt": leased["receipt"], "outcome": "ok"}])
        assert server.wait() == 1
        assert "removed while the server uses it" in server.stderr.text
        assert "Traceback" not in server.stderr.text
    finally:
        server.discard()


@mount
def test_jobs_of_a_disk_that_is_unmounted_under_the_server_are_on_it(
    tmp_path: Path, file_system: MakeFileSystem
) -> None:
    """What has the file open still reaches the disk; what has to open another file stops the server."""
    disk = file_system()
    data = disk.folder / "data"
    server = ServerProcess(tmp_path, CONFIG, data=data).start()
    client = server.client()
    ids = [client.insert(**job(0))]
    until(lambda: {"spare-1", "spare-2"} <= set(os.listdir(data / "journal")), "the next segments")
    ids.append(client.insert(**job(1)))  # answered by the thread that made them: it is done with that
    disk.unmount("--lazy")
    try:
        more, error = insert_until_refused(client)
        assert isinstance(error, STOPPED)
        assert len(more) > 10
        assert server.wait() == 1
        assert "No such file or directory" in server.stderr.text
        assert "Traceback" not in server.stderr.text
    finally:
        server.discard()
    assert not list(disk.folder.iterdir())  # nothing was begun anew beside it
    disk.mount()
    all_are_there(tmp_path, data, ids + more)


# -- shared -------------------------------------------------------------------------------------


def test_a_second_server_on_a_data_directory_is_refused_by_name(tmp_path: Path) -> None:
    first = ServerProcess(tmp_path, CONFIG).start()
    try:
        client = first.client()
        id = client.insert(**job(1))
        second = kqs("serve", "--data", str(first.data), "--listen", "127.0.0.1:0", cwd=tmp_path)
        assert second.status == 2
        assert f"in use by another server (process {first.pid})" in second.err
        assert settle_all(client) == [id]
        first.stop()
    finally:
        first.discard()
