"""Safeguards of the embedded engine and of the bulk store."""

from __future__ import annotations

from .mutation import Mutation

_EMBEDDED = "tests/unit/engines/test_embedded.py"
_COMPACTION = "tests/unit/engines/test_compaction.py"
_KEYS = "tests/unit/engines/test_keys.py"
_UNIQUE = "tests/unit/engines/test_unique.py"
_SUITE = "tests/conformance/test_embedded.py::TestOnASimulatedDisk"
_STORES = "tests/conformance/test_stores.py"
_FILES = "tests/unit/stores/test_files.py"
_CRONS = "tests/unit/engines/test_crons.py"

MUTATIONS = [
    Mutation(
        "an insert is answered before the sync",
        "engines/embedded",
        "        first, durable = self._begin(jobs)\n        await durable\n",
        "        first, durable = self._begin(jobs)\n",
        (f"{_EMBEDDED}::test_a_job_is_in_nobodys_sight_before_it_is_durable",),
        fast=True,
    ),
    Mutation(
        "a job is handed out before it is durable",
        "engines/embedded",
        "        durable = self._ledger.journal.append(entries, first, enter)\n",
        """        enter(Location(self._ledger.journal.open_segment, 64))
        durable = self._ledger.journal.append(entries, first)
""",
        (f"{_EMBEDDED}::test_a_job_is_in_nobodys_sight_before_it_is_durable",),
    ),
    Mutation(
        "a settlement is answered before the sync",
        "engines/embedded",
        "        await done\n",
        "",
        (f"{_EMBEDDED}::test_a_settlement_counts_at_once_and_is_answered_when_durable",),
        fast=True,
    ),
    Mutation(
        "a repeated settlement is confirmed before the first is durable",
        "engines/embedded",
        """        elif repeated:
            await journal.sync()""",
        """        elif repeated:
            pass""",
        (f"{_EMBEDDED}::test_a_settlement_counts_at_once_and_is_answered_when_durable",),
    ),
    Mutation(
        "any receipt of a job counts",
        "engines/embedded",
        "            job = leases.get(settlement.receipt)\n",
        """            number = settlement.receipt.partition("-")[0]
            job = next((job for job in leases.values() if str(job.number) == number), None)
""",
        (f"{_SUITE}::test_the_receipt_of_an_earlier_attempt_does_not_touch_the_next",),
        fast=True,
    ),
    Mutation(
        "receipts have no nonce",
        "engines/embedded",
        "            nonce = self._epoch | self._nonce(40)\n",
        "            nonce = 1\n",
        (_SUITE,),
    ),
    Mutation(
        "a lease does not take the job out of the line",
        "engines/embedded",
        "        self._set_state(row, job, RESERVED)\n",
        "        job.state = RESERVED\n",
        (_SUITE,),
    ),
    Mutation(
        "leases are not journaled",
        "engines/embedded",
        "        journal.append_unwaited(parts, first)\n        if self._ledger.watchers:\n",
        "        if self._ledger.watchers:\n",
        (_SUITE,),
    ),
    Mutation(
        "a damaged payload is handed out",
        "engines/embedded",
        """                    self._ledger.bury_unreadable(row, damage)
                    index.untake([number])
                    del left[number]
""",
        """                    jobs.append((self._ledger.job(row), b"null"))
""",
        (f"{_EMBEDDED}::test_a_payload_that_does_not_read_back_is_buried_and_named",),
    ),
    Mutation(
        "leases of dead local workers are kept",
        "engines/embedded",
        "        self._settler.release_local()\n",
        "",
        (f"{_SUITE}::test_leases_of_workers_that_died_with_the_server_are_released_at_once",),
    ),
    Mutation(
        "inserts are taken at the memory limit",
        "engines/embedded",
        "        if self.memory >= self.memory_limit:\n",
        "        if False:\n",
        ("tests/unit/engines/test_memory.py",),
    ),
    Mutation(
        "a retry is taken on a full disk",
        "engines/embedded",
        """            elif outcome == "again" and not journal.accepting:""",
        """            elif False:""",
        (f"{_EMBEDDED}::test_on_a_full_disk_jobs_are_refused_others_end_and_it_recovers",),
    ),
    Mutation(
        "a job that kills its workers is tried for ever",
        "engines/embedded",
        "        if deaths >= POISON_DEATHS and alone:\n",
        "        if False:\n",
        (f"{_SUITE}::test_the_third_death_of_its_worker_is_poison",),
    ),
    Mutation(
        "keys are not carried forward",
        "engines/embedded",
        "        for data in ledger.keys.standing_in(segments, ledger.now()):\n",
        "        for data in list[bytes]():\n",
        (f"{_COMPACTION}::test_keys_outlive_the_segment_of_their_job",),
        fast=True,
    ),
    Mutation(
        "a segment is dropped before the entries that replace it are durable",
        "engines/embedded",
        "        await journal.append(parts, journal.take_sequences(len(parts)), carried)\n",
        """        journal.drop_before(rows[0].chunk.place[rows[0].at] + (1 << 32) >> 32)
        await journal.append(parts, journal.take_sequences(len(parts)), carried)
""",
        (f"{_COMPACTION}::test_a_power_cut_at_every_operation",),
    ),
    Mutation(
        "a segment of jobs that are durable and not yet told counts as empty",
        "engines/embedded",
        "        return journal.segments_before(min(oldest, journal.oldest_untold, journal.open_segment))\n",
        "        return journal.segments_before(min(oldest, journal.open_segment))\n",
        (f"{_COMPACTION}::test_a_segment_is_kept_until_its_jobs_are_in_the_index",),
    ),
    Mutation(
        "a job's last error is not carried",
        "engines/embedded",
        "        ledger.add_error(row, job)\n",
        "",
        (f"{_COMPACTION}::test_jobs_are_the_same_after_they_were_carried",),
    ),
    Mutation(
        "a key's second caller is answered before the first insert is durable",
        "engines/embedded",
        "            if durable is not None:\n",
        "            if False:\n",
        (f"{_UNIQUE}::test_a_duplicate_is_answered_when_the_job_is_durable",),
    ),
    Mutation(
        "a key is known only when its first insert is durable",
        "engines/embedded",
        "self._keys_under_way.get(key) or self._ledger.keys.find(key, now)\n",
        "self._ledger.keys.find(key, now)\n",
        (f"{_KEYS}::test_callers_at_the_same_time_get_one_job",),
    ),
    Mutation(
        "a unique job stands only when it is durable",
        "engines/embedded",
        """        for number, job in enumerate(jobs, first):
            if job.options.unique is not None:
""",
        """        def enter(_durable: object) -> None:
            for number, job in enumerate(jobs, first):
                if job.options.unique is not None:
                    self._ledger.index.unique.add(number, job.type, job.options.unique)

        durable.add_done_callback(enter)
        for number, job in ():
            if job.options.unique is not None:
""",
        (f"{_UNIQUE}::test_a_job_does_not_come_back_beside_one_that_is_on_its_way_in",),
    ),
    Mutation(
        "a unique job that stands is told before that is durable",
        "engines/embedded",
        "            await ledger.journal.sync()\n        for durable in",
        "            pass\n        for durable in",
        (f"{_UNIQUE}::test_a_duplicate_is_answered_when_it_is_durable_that_the_job_stands",),
        fast=True,
    ),
    Mutation(
        "a unique job comes back to wait beside another one",
        "engines/embedded",
        "event in _COMES_BACK and (other",
        "False and (other",
        (f"{_SUITE}::test_one_that_comes_back_beside_another_is_buried",),
    ),
    Mutation(
        "what stands is not worked out again by a restart",
        "engines/embedded",
        "        index.unique.rebuild(lambda number: index.state_of(index.row(number)))\n",
        "",
        (f"{_SUITE}::test_it_stands_while_it_runs_by_the_scope_of_the_one_that_stands",),
    ),
    Mutation(
        "entries of unknown kinds are passed over",
        "engines/embedded",
        """            raise Newer(f"entry kind {kind}")""",
        """            return""",
        ("tests/journal/test_newer.py",),
    ),
    Mutation(
        "unknown flags of an accept are passed over",
        "engines/embedded",
        """            raise Newer(f"accept flags {flags}")""",
        """            return""",
        ("tests/journal/test_newer.py",),
    ),
    Mutation(
        "renewals are forgotten by a restart",
        "engines/embedded",
        "            self._renew(event)\n            return\n",
        "            return\n",
        (f"{_SUITE}::test_a_renewed_lease_is_restored_as_renewed",),
    ),
    Mutation(
        "settled receipts are forgotten by a restart",
        "engines/embedded",
        """                index.settled[f"{leased.job}-{leased.attempt}-{leased.nonce:x}"] = outcome\n""",
        "                pass\n",
        ("tests/journal/test_golden.py",),
    ),
    Mutation(
        "a bulk payload goes before the end of its job is durable",
        "engines/embedded",
        """            await self._ledger.journal.sync()
        except JournalFailed:
            return  # the end""",
        """            pass
        except JournalFailed:
            return  # the end""",
        (f"{_EMBEDDED}::test_an_oversize_payload_is_deleted_only_after_the_end_of_its_job_is_durable",),
    ),
    Mutation(
        "a bulk payload's digest is not looked at",
        "stores",
        "        if len(data) != ref.size or hashlib.sha256(data).hexdigest() != ref.sha256:\n",
        "        if len(data) != ref.size:\n",
        (_STORES,),
        fast=True,
    ),
    Mutation(
        "a bulk payload is not synced",
        "stores",
        "                os.fsync(fd)\n",
        "                pass\n",
        (_FILES,),
    ),
    Mutation(
        "a bulk payload's name is not synced",
        "stores",
        "            os.fsync(folder)\n",
        "            pass\n",
        (_FILES,),
    ),
    Mutation(
        "a bulk payload's name may be any path",
        "stores",
        "        if _NAME.fullmatch(name) is None:\n            raise Internal",
        "        if False:\n            raise Internal",
        (_STORES,),
    ),
    Mutation(
        "a cron's mark is written after its jobs",
        "engines/embedded",
        """        first = await self._acceptor.enter(jobs, partial(self._entry, CronEntry(name, upto, upto)))
""",
        """        first = await self._acceptor.enter(jobs)
        await self._write(CronEntry(name, upto, upto))
""",
        (f"{_CRONS}::test_the_power_goes_at_every_operation",),
        fast=True,
    ),
    Mutation(
        "a run is made without a look at its cron's mark",
        "engines/embedded",
        "        return mark is not None and mark.at >= upto\n",
        "        return False\n",
        (f"{_SUITE}::test_a_run_that_was_made_is_not_made_again",),
        fast=True,
    ),
    Mutation(
        "a cron's mark is looked at only before its jobs are admitted",
        "engines/embedded",
        """        if self._taken(name, upto):
            await self._ledger.journal.sync()
            return None
        if not jobs:
""",
        """        elif self._taken(name, upto):
            await self._ledger.journal.sync()
            return None
        if not jobs:
""",
        (f"{_SUITE}::test_of_calls_at_once_one_makes_the_run",),
    ),
    Mutation(
        "marks of crons are not carried",
        "engines/embedded",
        "self._controller.carry, self._crons.carry)",
        "self._controller.carry)",
        (f"{_SUITE}::test_marks_outlive_the_log_they_were_written_to",),
    ),
]
