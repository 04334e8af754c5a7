"""``kqs journal check``, ``kqs journal repair`` and ``kqs backup`` on data of a real server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import Finished, ServerProcess, kqs, kqs_here

Start = Callable[..., ServerProcess]

PAYLOADS = [f"payload number {number}" for number in range(10)]


def run(*args: str) -> Finished:
    return kqs_here(*args, cwd=Path.cwd())


def refused(done: Finished, *texts: str) -> None:
    assert (done.status, done.out) == (2, ""), done
    assert re.fullmatch(r"kqs: [^\n]+\n", done.err), done
    assert all(text in done.err for text in texts), done


@pytest.fixture
def data(start: Start) -> Path:
    """A data directory with ten jobs, each in a call of its own; no server runs on it."""
    server = start()
    with server.client() as client:
        for payload in PAYLOADS:
            client.insert("t", payload)
    server.stop()
    return server.data


def damage(data: Path, payload: str) -> None:
    """Change one letter of a job's payload on the disk."""
    [segment] = (data / "journal").glob("*.seg")
    text = segment.read_bytes()
    assert payload.encode() in text
    segment.write_bytes(text.replace(payload.encode(), payload.upper().encode()))


def test_check_a_sound_journal_beside_its_server(start: Start) -> None:
    server = start()
    server.client().insert_many([{"type": "t", "data": n} for n in range(5)])
    done = run("journal", "check", "--data", str(server.data))
    assert (done.status, done.err) == (0, "")
    assert "5 entries, next sequence 6" in done.out and done.out.endswith("sound\n")
    done = run("journal", "check", "--data", str(server.data), "--json")
    assert done.json["sound"] is True
    assert (done.json["entries"], done.json["damage"], done.json["torn"]) == (5, [], None)


def test_check_names_all_damage(data: Path) -> None:
    damage(data, PAYLOADS[2])
    damage(data, PAYLOADS[6])
    before = {path: path.read_bytes() for path in data.rglob("*.seg")}
    done = run("journal", "check", "--data", str(data))
    assert done.status == 1
    lines = done.out.splitlines()
    for line, sequence in zip(lines[1:3], (3, 7), strict=True):
        place = rf"0000000001\.seg at byte \d+, from sequence {sequence}: "
        assert re.fullmatch(rf"{place}the frame's checksum is wrong; lost: {sequence}", line), line
    assert lines[3] == "places damaged: 2"
    assert "kqs journal repair" in done.err
    done = run("journal", "check", "--data", str(data), "--json")
    assert done.status == 1 and done.json["sound"] is False
    assert [place["lost"] for place in done.json["damage"]] == [[3, 3], [7, 7]]
    assert {path: path.read_bytes() for path in data.rglob("*.seg")} == before


def test_repair_needs_consent_and_the_server_starts_afterwards(data: Path, start: Start) -> None:
    damage(data, PAYLOADS[2])
    damage(data, PAYLOADS[6])
    repair = ("journal", "repair", "--data", str(data))
    refused(run(*repair), "sequences 3, 7;", "--accept-loss", "nothing was changed")
    done = run(*repair, "--accept-loss", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["repaired"] is True
    original = Path(done.json["original"])
    assert original == data / "journal.before-repair-1"
    assert PAYLOADS[2].upper().encode() in (original / "0000000001.seg").read_bytes()
    assert (original / "manifest").exists()
    assert run("journal", "check", "--data", str(data)).status == 0
    cat = kqs("journal", "cat", "--data", str(data)).out
    assert '"kind":"mark","options":{"lost":[3,3]}' in cat
    with start().client() as client:
        left = [PAYLOADS[n] for n in range(10) if n not in (2, 6)]
        jobs = client.call("reserve", {"max": 20})["jobs"]
        assert [job["data"] for job in jobs] == left
        assert int(client.insert("t").rpartition("-")[2]) > 10
    done = run(*repair)
    assert done.status == 2 and "in use" in done.err


def test_a_repair_in_words(data: Path) -> None:
    damage(data, PAYLOADS[4])
    done = run("journal", "repair", "--data", str(data), "--accept-loss")
    assert (done.status, done.err) == (0, "")
    assert f"the original is in {data}/journal.before-repair-1" in done.out
    assert "lost for good: sequences 5\n" in done.out
    assert "jobs that ended in these run again" in done.out
    done = run("journal", "repair", "--data", str(data))
    assert (done.status, done.out.splitlines()[-1]) == (0, "sound")
    assert not (data / "journal.before-repair-2").exists()


@pytest.mark.parametrize("command", ["check", "repair", "cat"])
def test_where_no_journal_is(tmp_path: Path, command: str) -> None:
    for where in (tmp_path / "nowhere", tmp_path):
        refused(run("journal", command, "--data", str(where)), "holds no journal", "--data")
    assert list(tmp_path.iterdir()) == []


def test_a_backup_of_a_running_server_is_started(start: Start, tmp_path: Path) -> None:
    server = start("[bulk]\nthreshold = 1024\n")
    with server.client() as client:
        small, large = client.insert("t", "small"), client.insert("t", "large" * 1000)
        done = kqs("backup", str(tmp_path / "copy"), "--data", str(server.data))
        assert (done.status, done.err) == (0, ""), done
        assert "up to sequence 2: 1 segments" in done.out and "1 bulk payloads" in done.out
        later = client.insert("t", "later")
    server.stop()
    restored = start(None, "--data", str(tmp_path / "copy"))
    with restored.client() as client:
        jobs = {job["id"]: job["data"] for job in client.call("reserve", {"max": 9})["jobs"]}
        assert jobs == {small: "small", large: "large" * 1000}
        assert client.insert("t", "new") != later  # an id that clients know is not given again


def test_a_backup_says_what_is_missing(start: Start, tmp_path: Path) -> None:
    server = start("[bulk]\nthreshold = 1024\n")
    server.client().insert("t", "large" * 1000)
    [payload] = (server.data / "bulk").iterdir()
    payload.unlink()
    done = kqs("backup", str(tmp_path / "copy"), "--data", str(server.data), "--json")
    assert done.status == 1 and done.json["missing"] == [1]
    assert "payloads of jobs 1" in done.err


def test_backups_that_cannot_be_made(data: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "mine").write_text("mine")
    refused(run("backup", str(there), "--data", str(data)), str(there), "new name")
    refused(run("backup", str(tmp_path / "b"), "--data", str(there)), "holds no journal")
    (tmp_path / "b.partial").mkdir()
    refused(run("backup", str(tmp_path / "b"), "--data", str(data)), "b.partial", "remove it")
    damage(data, PAYLOADS[0])
    refused(run("backup", str(tmp_path / "c"), "--data", str(data)), "journal damaged", "sequence 1")
    assert not (tmp_path / "c").exists() and not (tmp_path / "b").exists()
