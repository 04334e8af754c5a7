"""Safeguards of the journal: what makes an answered job durable, and damage known."""

from __future__ import annotations

from .mutation import Mutation

_CRASHES = "tests/unit/journal/test_crashes.py"
_LOG = "tests/unit/journal/test_log.py"
_RECOVERY = "tests/unit/journal/test_recovery.py"
_MANIFEST = "tests/unit/journal/test_manifest.py"
_DAMAGE = "tests/unit/journal/test_damage.py"
_POWER_CUTS = f"{_CRASHES}::test_power_cut_at_every_operation"
_NEWER = "tests/journal/test_newer.py"

MUTATIONS = [
    Mutation(
        "a frame is not synced",
        "journal",
        """        write_all(self._file, data, self._end)
        self._file.datasync()
""",
        """        write_all(self._file, data, self._end)
""",
        (_POWER_CUTS,),
        fast=True,
    ),
    Mutation(
        "a call is split over several frames",
        "journal",
        """        data, crc = record.encode_frame(
            parts,
            salt=self._header.salt,
            frame=self._frame + 1,
            first_sequence=batch[0].sequence,
            durable=self._frame,
            count=len(parts),
            previous=self._crc,
        )
""",
        """        data, crc = bytearray(), self._crc
        for number, part in enumerate(parts):
            if number:
                self._frame += 1
            frame, crc = record.encode_frame(
                [part],
                salt=self._header.salt,
                frame=self._frame + 1,
                first_sequence=batch[0].sequence + number,
                durable=self._frame,
                count=1,
                previous=crc,
            )
            data += frame
""",
        (_POWER_CUTS,),
    ),
    Mutation(
        "the journal goes on after a failed commit",
        "journal",
        """            self._fail(error, batch)
            return
        location""",
        """            return
        location""",
        (f"{_LOG}::test_a_failed_write_or_sync_stops_everything",),
        hangs=30,
    ),
    Mutation(
        "the thread goes on after a failure",
        "journal",
        """                self._broken = True
                raise
""",
        """                raise
""",
        (f"{_LOG}::test_a_failure_while_work_is_queued_behind_it_stops_that_too",),
        fast=True,
    ),
    Mutation(
        "a failed journal takes more",
        "journal",
        """        if self.failed is not None:
            raise self.failed
        size = sum""",
        """        size = sum""",
        (f"{_LOG}::test_a_failed_write_or_sync_stops_everything",),
        hangs=30,
    ),
    Mutation(
        "what was told to be synced is only what was written before",
        "journal",
        """        if self._durable_appends < self._appends:
            waiter""",
        """        if False:
            waiter""",
        (f"{_LOG}::test_sync_returns_when_what_was_appended_before_it_is_durable",),
    ),
    Mutation(
        "a segment is removed before the manifest without it is durable",
        "journal",
        """        self._t_store(kept)
        for info in gone:
            self._disk.unlink(f"{self._folder}/{info.file}")
""",
        """        for info in gone:
            self._disk.unlink(f"{self._folder}/{info.file}")
        self._t_store(kept)
""",
        (_POWER_CUTS,),
    ),
    Mutation(
        "an entry read back is not checked",
        "journal",
        """            record.check_entry(entry)
        except FileNotFoundError""",
        """        except FileNotFoundError""",
        (f"{_LOG}::test_an_entry_that_reads_back_otherwise_is_named",),
        fast=True,
    ),
    Mutation(
        "no space is kept free for the ends of jobs",
        "journal",
        """            return self._available - size >= self._needed + self.segment_size // 2
""",
        """            return self._available - size >= 0
""",
        (
            "tests/unit/engines/test_embedded.py::test_on_a_full_disk_jobs_are_refused_others_end_and_it_recovers",
        ),
    ),
    Mutation(
        "a write that was cut short is not gone on with",
        "journal",
        """        view = view[written:]
        offset += written
""",
        """        view = view[len(view) :]
""",
        (f"{_CRASHES}::test_short_writes_at_every_operation_make_no_difference",),
        fast=True,
    ),
    Mutation(
        "the new manifest's name is not synced",
        "journal",
        """    disk.rename(f"{path}.new", path)
    disk.sync_dir(directory)
""",
        """    disk.rename(f"{path}.new", path)
""",
        (_POWER_CUTS,),
    ),
    Mutation(
        "the new manifest is not synced before it is swapped in",
        "journal",
        """        file.datasync()
    finally:
        file.close()
    disk.rename""",
        """        pass
    finally:
        file.close()
    disk.rename""",
        (f"{_MANIFEST}::test_at_a_crash_anywhere_the_old_or_the_new_one_is_there",),
    ),
    Mutation(
        "a manifest's checksum is not looked at",
        "journal",
        """    if check.strip() != b"%08x" % crc32(line):""",
        """    if False:""",
        (f"{_DAMAGE}::test_the_manifest",),
    ),
    Mutation(
        "a newer format is read as if it were known",
        "journal",
        """        if version > FORMAT:""",
        """        if False:""",
        (_NEWER,),
    ),
    Mutation(
        "a new segment is not synced",
        "journal",
        """        write_all(file, data, 0)
        file.datasync()
        disk.sync_dir(folder)
    except BaseException:""",
        """        write_all(file, data, 0)
        disk.sync_dir(folder)
    except BaseException:""",
        (_POWER_CUTS,),
    ),
    Mutation(
        "a new segment's name is not synced",
        "journal",
        """        file.datasync()
        disk.sync_dir(folder)
    except BaseException:""",
        """        file.datasync()
    except BaseException:""",
        (_POWER_CUTS,),
    ),
    Mutation(
        "the journal folder's name is not synced",
        "journal",
        """    disk.sync_dir(directory)  # the folder's own name, before a manifest says what is in it
""",
        "",
        (f"{_CRASHES}::test_a_crash_before_the_manifest_of_a_new_journal_is_durable",),
    ),
    Mutation(
        "frames need not be chained",
        "journal",
        """            if frame.frame != self.frame + 1 or previous != self.crc:""",
        """            if frame.frame != self.frame + 1:""",
        (f"{_RECOVERY}::test_frames_whose_numbers_cannot_be_are_refused",),
        fast=True,
    ),
    Mutation(
        "frames need not follow each other",
        "journal",
        """            if frame.frame != self.frame + 1 or previous != self.crc:""",
        """            if previous != self.crc:""",
        (f"{_RECOVERY}::test_frames_whose_numbers_cannot_be_are_refused",),
    ),
    Mutation(
        "a sealed segment may end anywhere",
        "journal",
        """        if (self.end, self.frame, self.crc) != (info.end, info.last_frame, info.last_crc):""",
        """        if False:""",
        (f"{_DAMAGE}::test_a_sealed_segment",),
    ),
    Mutation(
        "the open segment may be shorter than it was made",
        "journal",
        """        if len(self.data) < self.info.size:""",
        """        if False:""",
        (f"{_DAMAGE}::test_the_open_segment",),
    ),
    Mutation(
        "a torn tail may hide valid frames",
        "journal",
        """        if later is not None:
            raise self._damaged(""",
        """        if False:
            raise self._damaged(""",
        (f"{_DAMAGE}::test_the_open_segment",),
    ),
    Mutation(
        "a torn tail is cut before its copy is durable",
        "journal",
        """        write_all(keep, torn, 0)
        keep.datasync()
        keep.close()
        disk.sync_dir(folder)
""",
        """        write_all(keep, torn, 0)
        keep.close()
""",
        (f"{_CRASHES}::test_a_torn_tail_is_never_cut_without_being_kept",),
        fast=True,
    ),
    Mutation(
        "sequences do not jump after a cut",
        "journal",
        """        following += TORN_SKIP
""",
        """        pass
""",
        (f"{_RECOVERY}::test_no_sequence_of_a_cut_frame_is_given_again",),
    ),
    Mutation(
        "the jump of the sequences is not written down",
        "journal",
        """        valid += jump
        scan.end = len(valid)
""",
        """        scan.frame -= 1
        scan.crc = _Scan(disk, folder, manifests.load(disk, folder.rpartition("/")[0]), info).crc
""",
        (f"{_CRASHES}::test_a_second_power_cut_while_the_first_end_is_being_recovered",),
    ),
    Mutation(
        "the recovered segment is not synced before it is trusted",
        "journal",
        """    write_all(file, valid, 0)
    file.datasync()
""",
        """    write_all(file, valid, 0)
""",
        (f"{_RECOVERY}::test_data_a_failed_sync_lost_is_durable_again_after_a_restart",),
        fast=True,
    ),
    Mutation(
        "the recovered segment is not read back",
        "journal",
        """    if file.pread(len(valid), 0) != valid:""",
        """    if False:""",
        (f"{_RECOVERY}::test_a_disk_that_does_not_give_back_what_was_written_is_refused",),
    ),
    Mutation(
        "a start is not counted",
        "journal",
        """manifest.epoch + 1, segments)""",
        """manifest.epoch, segments)""",
        (_RECOVERY, "tests/conformance/test_embedded.py", "tests/journal/test_golden.py"),
    ),
    Mutation(
        "a start is not counted durably",
        "journal",
        """    store_manifest(disk, directory, manifest)
    # Only now""",
        """    # Only now""",
        (
            f"{_RECOVERY}::test_the_open_segment_is_rewritten_synced_and_read_back_before_it_is_trusted",
            _POWER_CUTS,
        ),
    ),
    Mutation(
        "leftover segments are removed before the manifest is durable",
        "journal",
        """    if torn:
        following += TORN_SKIP
""",
        """    for name in unlisted:
        disk.unlink(f"{folder}/{name}")
    unlisted = []
    if torn:
        following += TORN_SKIP
""",
        (_CRASHES,),
    ),
    Mutation(
        "a frame's checksum is not looked at",
        "core",
        """    if crc32(view[start:end], crc32(view[offset : start - 4], salt & 0xFFFFFFFF)) != crc:""",
        """    if False:""",
        (f"{_DAMAGE}::test_the_open_segment",),
    ),
    Mutation(
        "a payload can hold bytes that pass for a frame",
        "core",
        """    if crc32(view[start:end], crc32(view[offset : start - 4], salt & 0xFFFFFFFF)) != crc:
        raise Damaged(offset, "the frame's checksum is wrong")
    if flags:""",
        """    unsalted = crc32(view[start:end], crc32(view[offset : start - 4], 0))
    if crc not in (crc32(view[start:end], crc32(view[offset : start - 4], salt & 0xFFFFFFFF)), unsalted):
        raise Damaged(offset, "the frame's checksum is wrong")
    if flags:""",
        (f"{_RECOVERY}::test_a_payload_cannot_pass_for_a_frame",),
    ),
    Mutation(
        "unknown frame flags are passed over",
        "core",
        """    if flags:
        raise Newer(f"frame flags {flags}")
""",
        "",
        (_NEWER,),
    ),
    Mutation(
        "unknown flags of an event are passed over",
        "core",
        """    if flags & ~_EVENT_FLAGS:
        raise Newer(f"event flags {flags}")
""",
        "",
        (_NEWER,),
    ),
    Mutation(
        "two servers may use one data directory",
        "journal",
        """        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
""",
        """        pass
""",
        (f"{_RECOVERY}::test_a_second_process_is_refused_until_the_first_is_gone",),
    ),
    Mutation(
        "a data directory's own name is not synced",
        "journal",
        """            _sync_directory(folder)
        except PermissionError:""",
        """            pass
        except PermissionError:""",
        ("tests/journal/test_data_directory_is_durable.py", "tests/unit/journal/test_disk.py"),
    ),
]
