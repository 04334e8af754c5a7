"""The simulated disk: what it must lose, what it must keep, and that its seed decides."""

from __future__ import annotations

import errno
from collections.abc import Callable
from random import Random

import pytest

from kqs.testing.disk import SimDisk
from kqs.testing.faults import CRASH, EIO, ENOSPC, FLIP, LIE, SHORT, FaultAt, PowerLost, RandomFaults
from kqs.testing.media import SECTOR

SEEDS = range(60)


def outcomes(script: Callable[[SimDisk], None], look: Callable[[SimDisk], object]) -> set[object]:
    """What a disk can look like after a script and a power cut, over many seeds."""
    seen = set()
    for seed in SEEDS:
        disk = SimDisk.holding({"/d/old": b"old"}, seed)
        script(disk)
        disk.crash()
        seen.add(look(disk))
    return seen


def names(disk: SimDisk) -> tuple[str, ...]:
    return tuple(sorted(disk.listdir("/d")))


def text(name: str) -> Callable[[SimDisk], object]:
    def look(disk: SimDisk) -> object:
        return disk.files().get(f"/d/{name}")

    return look


# -- the port -----------------------------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    disk = SimDisk()
    disk.makedirs("/a/b")
    file = disk.open("/a/b/f", create=True)
    assert file.pwrite(b"hello", 3) == 5
    assert (file.pread(100, 0), file.size()) == (b"\0\0\0hello", 8)
    assert file.pread(2, 4) == b"el"
    file.allocate(20)
    file.allocate(10)
    assert file.pread(100, 0) == b"\0\0\0hello".ljust(20, b"\0")
    assert disk.open("/a/b/f").pread(5, 3) == b"hello"


def test_a_file_with_two_names() -> None:
    disk = SimDisk.holding({"/d/f": b"old"})
    disk.link("/d/f", "/d/g")
    disk.open("/d/f").pwrite(b"new", 0)
    disk.unlink("/d/f")
    assert disk.files() == {"/d/g": b"new"}
    with pytest.raises(FileExistsError):
        disk.link("/d/g", "/d/g")


def test_a_second_name_is_durable_after_its_directory_was_synced() -> None:
    def link(disk: SimDisk) -> None:
        disk.link("/d/old", "/d/new")

    assert outcomes(link, names) == {("old",), ("new", "old")}

    def link_and_sync(disk: SimDisk) -> None:
        link(disk)
        disk.sync_dir("/d")

    assert outcomes(link_and_sync, names) == {("new", "old")}


def test_a_directory_is_renamed_with_all_that_is_in_it() -> None:
    disk = SimDisk.holding({"/d/f": b"1", "/full/g": b"2"})
    disk.makedirs("/empty")
    with pytest.raises(OSError, match="not empty"):
        disk.rename("/d", "/full")
    with pytest.raises(NotADirectoryError):
        disk.rename("/d", "/full/g")
    disk.rename("/d", "/empty")
    assert disk.files() == {"/empty/f": b"1", "/full/g": b"2"}


def test_files_of_one_name_are_not_created_twice() -> None:
    disk = SimDisk.holding({"/d/f": b""})
    with pytest.raises(FileExistsError):
        disk.open("/d/f", create=True)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda disk: disk.open("/d/none"), FileNotFoundError),
        (lambda disk: disk.open("/none/f", create=True), FileNotFoundError),
        (lambda disk: disk.unlink("/d/none"), FileNotFoundError),
        (lambda disk: disk.rename("/d/none", "/d/x"), FileNotFoundError),
        (lambda disk: disk.listdir("/d/f"), NotADirectoryError),
        (lambda disk: disk.open("/d"), IsADirectoryError),
        (lambda disk: disk.makedirs("/d/f"), FileExistsError),
    ],
)
def test_errors_are_those_of_the_operating_system(call: Callable[[SimDisk], object], expected: type) -> None:
    disk = SimDisk.holding({"/d/f": b"x"})
    with pytest.raises(expected):
        call(disk)
    assert disk.files() == {"/d/f": b"x"}


def test_a_removed_or_replaced_file_lives_on_for_who_has_it_open() -> None:
    disk = SimDisk.holding({"/d/a": b"a", "/d/b": b"b"})
    first, second = disk.open("/d/a"), disk.open("/d/b")
    disk.rename("/d/a", "/d/b")
    disk.unlink("/d/b")
    assert (first.pread(9, 0), second.pread(9, 0), disk.files()) == (b"a", b"b", {})


def test_a_closed_file_refuses_and_counts_as_closed_once() -> None:
    disk = SimDisk.holding({"/d/f": b"x"})
    file = disk.open("/d/f")
    assert disk.open_files == 1
    file.close()
    file.close()
    assert disk.open_files == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.pread(1, 0)


def test_operations_are_counted_and_traced() -> None:
    disk = SimDisk(trace=True)
    disk.makedirs("/d")
    file = disk.open("/d/f", create=True)
    file.pwrite(b"abc", 7)
    file.datasync()
    disk.sync_dir("/d")
    assert [operation.kind for operation in disk.trace or ()] == [
        "makedirs",
        "create",
        "pwrite",
        "datasync",
        "sync_dir",
    ]
    assert (disk.trace or [])[2] == (3, "pwrite", "/d/f", 7, 3, "ok")
    assert disk.counts == {"makedirs": 1, "create": 1, "pwrite": 1, "datasync": 1, "sync_dir": 1}


# -- power cuts: content ------------------------------------------------------------------------


def test_synced_content_survives_and_unsynced_content_may_or_may_not() -> None:
    def script(disk: SimDisk) -> None:
        file = disk.open("/d/old")
        file.pwrite(b"new", 0)

    def synced(disk: SimDisk) -> None:
        script(disk)
        disk.open("/d/old").datasync()

    assert outcomes(script, text("old")) == {b"old", b"new"}
    assert outcomes(synced, text("old")) == {b"new"}


def test_a_sync_covers_what_was_written_through_any_handle_before_it_only() -> None:
    def script(disk: SimDisk) -> None:
        file, other = disk.open("/d/old"), disk.open("/d/old")
        file.pwrite(b"1", 0)
        other.datasync()
        file.pwrite(b"2", 1)

    assert outcomes(script, text("old")) == {b"1ld", b"12d"}


def test_writes_are_torn_at_sectors_and_reordered() -> None:
    def script(disk: SimDisk) -> None:
        file = disk.open("/d/old")
        file.allocate(3 * SECTOR)
        file.datasync()
        file.pwrite(b"x" * 2 * SECTOR, SECTOR // 2)

    def look(disk: SimDisk) -> object:
        data = disk.content("/d/old")
        # Inside a sector it is all or nothing.
        for start in range(0, 3 * SECTOR, SECTOR):
            written = data[start : start + SECTOR].count(b"x")
            assert written in (0, SECTOR // 2, SECTOR)
        return tuple(b"x" in data[start : start + SECTOR] for start in range(0, 3 * SECTOR, SECTOR))

    seen = outcomes(script, look)
    assert {(False, False, False), (True, True, True), (True, False, False)} <= seen
    assert any(states in seen for states in [(False, True, False), (False, False, True), (False, True, True)])


def test_a_sector_written_twice_may_hold_any_of_its_contents() -> None:
    def script(disk: SimDisk) -> None:
        file = disk.open("/d/old")
        file.pwrite(b"one", 0)
        file.pwrite(b"two", 0)

    assert outcomes(script, text("old")) == {b"old", b"one", b"two"}


def test_the_size_of_an_allocation_needs_a_sync() -> None:
    def script(disk: SimDisk) -> None:
        disk.open("/d/old").allocate(8)

    def synced(disk: SimDisk) -> None:
        script(disk)
        disk.open("/d/old").datasync()

    assert outcomes(script, text("old")) == {b"old", b"old\0\0\0\0\0"}
    assert outcomes(synced, text("old")) == {b"old\0\0\0\0\0"}


def test_appended_data_needs_its_size_to_survive() -> None:
    def script(disk: SimDisk) -> None:
        disk.open("/d/old").pwrite(b"er", 3)

    assert outcomes(script, text("old")) == {b"old", b"older", b"old\0\0"}


# -- power cuts: names --------------------------------------------------------------------------


def test_a_created_file_needs_its_own_sync_and_its_directorys() -> None:
    def script(disk: SimDisk, *, file: bool, directory: bool) -> None:
        new = disk.open("/d/new", create=True)
        new.pwrite(b"new", 0)
        if file:
            new.datasync()
        if directory:
            disk.sync_dir("/d")

    def run(**syncs: bool) -> set[object]:
        return outcomes(lambda disk: script(disk, **syncs), text("new"))

    assert run(file=True, directory=True) == {b"new"}
    assert run(file=True, directory=False) == {None, b"new"}
    assert {b"", b"new"} <= run(file=False, directory=True) <= {b"", b"new", b"\0\0\0"}
    assert None in run(file=False, directory=False)


def test_a_rename_is_all_or_nothing_until_its_directory_is_synced() -> None:
    def script(disk: SimDisk) -> None:
        new = disk.open("/d/new", create=True)
        new.pwrite(b"new", 0)
        new.datasync()
        disk.sync_dir("/d")
        disk.rename("/d/new", "/d/old")

    def synced(disk: SimDisk) -> None:
        script(disk)
        disk.sync_dir("/d")

    assert outcomes(script, lambda disk: tuple(disk.files().items())) == {
        (("/d/new", b"new"), ("/d/old", b"old")),
        (("/d/old", b"new"),),
    }
    assert outcomes(synced, lambda disk: tuple(disk.files().items())) == {(("/d/old", b"new"),)}


def test_a_renamed_file_that_was_not_synced_can_be_empty() -> None:
    def script(disk: SimDisk) -> None:
        disk.open("/d/new", create=True).pwrite(b"new", 0)
        disk.rename("/d/new", "/d/old")
        disk.sync_dir("/d")

    assert outcomes(script, text("old")) == {b"", b"new", b"\0\0\0"}


def test_a_removed_file_can_come_back_until_its_directory_is_synced() -> None:
    assert outcomes(lambda disk: disk.unlink("/d/old"), names) == {(), ("old",)}

    def synced(disk: SimDisk) -> None:
        disk.unlink("/d/old")
        disk.sync_dir("/d")

    assert outcomes(synced, names) == {()}


def test_changes_of_names_can_be_kept_out_of_order() -> None:
    def script(disk: SimDisk) -> None:
        disk.open("/d/a", create=True)
        disk.open("/d/b", create=True)

    assert outcomes(script, names) == {("old",), ("a", "old"), ("b", "old"), ("a", "b", "old")}


def test_a_new_directory_needs_a_sync_of_the_one_above() -> None:
    def script(disk: SimDisk) -> None:
        disk.makedirs("/d/sub")
        disk.open("/d/sub/f", create=True).datasync()
        disk.sync_dir("/d/sub")

    def synced(disk: SimDisk) -> None:
        script(disk)
        disk.sync_dir("/d")

    assert outcomes(script, text("sub/f")) == {None, b""}
    assert outcomes(synced, text("sub/f")) == {b""}


def test_a_rename_between_directories_brings_what_it_builds_on() -> None:
    def script(disk: SimDisk) -> None:
        disk.makedirs("/e")
        disk.sync_dir("/")
        disk.open("/e/f", create=True)
        disk.rename("/e/f", "/d/f")
        disk.sync_dir("/d")
        disk.sync_dir("/e")

    assert outcomes(script, lambda disk: tuple(disk.files())) == {("/d/f", "/d/old")}


# -- processes and power ------------------------------------------------------------------------


def test_a_power_cut_ends_every_open_file_and_a_dead_process_stays_dead() -> None:
    disk = SimDisk.holding({"/d/f": b"x"})
    process, file = disk.attach(), disk.open("/d/f")
    disk.crash()
    for attempt in (lambda: file.pread(1, 0), lambda: process.listdir("/d"), lambda: process.open("/d/f")):
        with pytest.raises(PowerLost):
            attempt()
    assert disk.open("/d/f").pread(1, 0) == b"x"
    assert disk.attach().listdir("/d") == ["f"]


def test_a_killed_process_loses_nothing_it_wrote() -> None:
    disk = SimDisk.holding({"/d/f": b"x"})
    process = disk.attach()
    file = process.open("/d/f")
    file.pwrite(b"y", 0)
    disk.kill()
    with pytest.raises(PowerLost):
        file.datasync()
    assert disk.content("/d/f") == b"y"
    assert disk.durable("/d/f") == b"x"


def test_after_a_power_cut_at_an_operation_everything_fails_until_the_power_is_back() -> None:
    disk = SimDisk.holding({"/d/f": b"x"})
    file = disk.open("/d/f")
    disk.inject = FaultAt(1, CRASH, kinds=("datasync",))
    file.pwrite(b"y", 0)
    with pytest.raises(PowerLost):
        file.datasync()
    with pytest.raises(PowerLost):
        disk.listdir("/d")
    disk.crash()
    assert disk.content("/d/f") in (b"x", b"y")


def test_a_power_cut_during_an_operation_leaves_it_done_or_not() -> None:
    def script(disk: SimDisk) -> None:
        disk.inject = FaultAt(1, CRASH, kinds=("rename",))
        with pytest.raises(PowerLost):
            disk.rename("/d/old", "/d/new")

    assert outcomes(script, names) == {("old",), ("new",)}


# -- faults -------------------------------------------------------------------------------------


def test_a_failed_sync_loses_data_that_no_later_sync_brings_back() -> None:
    def script(disk: SimDisk) -> None:
        file = disk.open("/d/old")
        file.pwrite(b"new", 0)
        disk.inject = FaultAt(1, EIO, kinds=("datasync",))
        with pytest.raises(OSError, match="Input/output error"):
            file.datasync()
        file.datasync()  # says yes
        assert disk.content("/d/old") == b"new"  # and the cache agrees

    assert outcomes(script, text("old")) == {b"old", b"new"}

    def evicted(disk: SimDisk) -> None:
        script(disk)
        disk.evict()
        assert disk.content("/d/old") == disk.durable("/d/old")

    assert outcomes(evicted, text("old")) == {b"old", b"new"}


def test_eviction_keeps_what_is_dirty() -> None:
    disk = SimDisk.holding({"/d/f": b"x" * 600})
    disk.open("/d/f").pwrite(b"y" * 600, 600)
    disk.evict()
    assert disk.content("/d/f") == b"x" * 600 + b"y" * 600


def test_writing_again_after_a_failed_sync_makes_it_durable() -> None:
    for seed in SEEDS:
        disk = SimDisk.holding({"/d/f": b""}, seed)
        file = disk.open("/d/f")
        file.pwrite(b"new", 0)
        disk.inject = FaultAt(1, EIO, kinds=("datasync",))
        with pytest.raises(OSError):
            file.datasync()
        file.pwrite(b"new", 0)
        file.datasync()
        disk.crash()
        assert disk.content("/d/f") == b"new"


def test_a_failed_directory_sync_loses_names_that_no_later_sync_brings_back() -> None:
    def script(disk: SimDisk) -> None:
        disk.rename("/d/old", "/d/new")
        disk.inject = FaultAt(1, EIO, kinds=("sync_dir",))
        with pytest.raises(OSError):
            disk.sync_dir("/d")
        disk.sync_dir("/d")

    assert outcomes(script, names) == {("old",), ("new",)}


def test_a_sync_that_lies_makes_nothing_durable() -> None:
    def script(disk: SimDisk) -> None:
        disk.inject = RandomFaults(Random(1), {"datasync": [(1.0, LIE)], "sync_dir": [(1.0, LIE)]})
        file = disk.open("/d/old")
        file.pwrite(b"new", 0)
        file.datasync()
        disk.unlink("/d/old")
        disk.sync_dir("/d")

    assert outcomes(script, text("old")) == {b"old", b"new", None}


def test_a_short_write_says_how_much_it_took() -> None:
    disk = SimDisk.holding({"/d/f": b""})
    file = disk.open("/d/f")
    disk.inject = FaultAt(1, SHORT, kinds=("pwrite",))
    taken = file.pwrite(b"abcdefgh", 0)
    assert 0 < taken < 8
    assert file.pread(9, 0) == b"abcdefgh"[:taken]
    assert file.pwrite(b"abcdefgh"[taken:], taken) == 8 - taken
    assert file.pread(9, 0) == b"abcdefgh"


def test_a_failed_write_may_have_written_a_part() -> None:
    sizes = set()
    for seed in SEEDS:
        disk = SimDisk.holding({"/d/f": b""}, seed)
        disk.inject = FaultAt(1, EIO, kinds=("pwrite",))
        with pytest.raises(OSError):
            disk.open("/d/f").pwrite(b"abc", 0)
        sizes.add(disk.content("/d/f"))
    assert sizes == {b"", b"a", b"ab", b"abc"}


@pytest.mark.parametrize("kind", ["create", "rename", "unlink"])
def test_a_change_of_names_that_failed_may_have_happened(kind: str) -> None:
    call = {
        "create": lambda disk: disk.open("/d/new", create=True),
        "rename": lambda disk: disk.rename("/d/old", "/d/new"),
        "unlink": lambda disk: disk.unlink("/d/old"),
    }[kind]
    seen = set()
    for seed in SEEDS:
        disk = SimDisk.holding({"/d/old": b""}, seed)
        disk.inject = FaultAt(1, EIO, kinds=(kind,))
        with pytest.raises(OSError) as caught:
            call(disk)
        assert caught.value.errno == errno.EIO
        disk.inject = None
        seen.add(names(disk))
    assert len(seen) == 2


def test_a_read_can_fail_or_come_back_wrong_by_one_bit() -> None:
    disk = SimDisk.holding({"/d/f": b"\0" * 64})
    file = disk.open("/d/f")
    disk.inject = FaultAt(1, FLIP, kinds=("pread",))
    assert sum(byte.bit_count() for byte in file.pread(64, 0)) == 1
    assert file.pread(64, 0) == b"\0" * 64
    disk.inject = FaultAt(1, EIO, kinds=("pread",))
    with pytest.raises(OSError, match="Input/output"):
        file.pread(1, 0)


def test_a_full_disk_takes_what_fits_and_then_nothing() -> None:
    disk = SimDisk(capacity=10)
    disk.makedirs("/d")
    file = disk.open("/d/f", create=True)
    assert file.pwrite(b"x" * 16, 0) == 10
    for refused in (lambda: file.pwrite(b"x", 10), lambda: file.allocate(11)):
        with pytest.raises(OSError) as caught:
            refused()
        assert caught.value.errno == errno.ENOSPC
    assert (file.size(), disk.free("/d")) == (10, (0, 10))
    assert file.pwrite(b"y" * 10, 0) == 10  # in place there is room
    disk.capacity = 12
    file.allocate(12)
    assert disk.free("/d") == (0, 12)


def test_a_refusal_for_lack_of_space_changes_nothing() -> None:
    for seed in SEEDS:
        disk = SimDisk.holding({"/d/old": b"x"}, seed)
        for kind, call in {
            "create": lambda disk=disk: disk.open("/d/new", create=True),
            "rename": lambda disk=disk: disk.rename("/d/old", "/d/new"),
            "allocate": lambda disk=disk: disk.open("/d/old").allocate(9),
            "pwrite": lambda disk=disk: disk.open("/d/old").pwrite(b"yy", 0),
        }.items():
            disk.inject = FaultAt(1, ENOSPC, kinds=(kind,))
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.ENOSPC
        assert disk.files() == {"/d/old": b"x"}


def test_faults_are_aimed_by_kind_path_and_number() -> None:
    disk = SimDisk.holding({"/d/a": b"a", "/d/b": b"b"})
    fault = disk.inject = FaultAt(2, EIO, kinds=("pread",), path="/b", lasting=True)
    a, b = disk.open("/d/a"), disk.open("/d/b")
    assert (a.pread(1, 0), a.pread(1, 0), b.pread(1, 0)) == (b"a", b"a", b"b")
    for _ in range(2):
        with pytest.raises(OSError):
            b.pread(1, 0)
    assert (a.pread(1, 0), fault.met) == (b"a", 2)


# -- damage and determinism ---------------------------------------------------------------------


def test_damage_is_on_the_disk_and_in_the_cache() -> None:
    disk = SimDisk.holding({"/d/f": b"\x01", "/d/g": b"g"})
    disk.flip("/d/f", 0, 7)
    disk.remove("/d/g")
    assert (disk.files(), disk.durable("/d/f"), disk.durable("/d/g")) == ({"/d/f": b"\x81"}, b"\x81", None)
    disk.put("/d/f", b"other")
    disk.crash()
    assert disk.files() == {"/d/f": b"other"}


def test_the_seed_decides_everything() -> None:
    def run(seed: int) -> list[object]:
        disk = SimDisk.holding({"/d/f": b""}, seed, trace=True)
        disk.inject = RandomFaults(
            Random(seed), {"pwrite": [(0.2, SHORT), (0.1, EIO)], "datasync": [(0.1, EIO)]}
        )
        draw = Random(seed)
        for step in range(60):
            try:
                file = disk.open("/d/f")
                file.pwrite(draw.randbytes(700), draw.randrange(5000))
                if step % 7 == 0:
                    file.datasync()
                disk.rename("/d/f", "/d/g")
                disk.rename("/d/g", "/d/f")
                disk.open(f"/d/{step}", create=True)
                if step % 5 == 0:
                    disk.sync_dir("/d")
            except OSError:
                pass
            if step % 20 == 19:
                disk.crash()
                if "/d/f" not in disk.files():
                    disk.put("/d/f", b"")
        return [disk.trace, disk.files(), disk.listdir("/d")]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_caller_can_bring_its_own_generator() -> None:
    def run(seed: int) -> list[bytes]:
        disk = SimDisk.holding({"/d/f": bytes(5000)}, 0)
        results = []
        random = Random(seed)
        for number in range(8):
            disk.open("/d/f").pwrite(bytes([number + 1]) * 5000, 0)
            disk.crash(random)
            results.append(disk.content("/d/f"))
        return results

    assert run(5) == run(5)
    assert run(5) != run(6)
