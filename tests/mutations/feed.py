"""Safeguards of engines that are fed, and of bulk stores elsewhere."""

from __future__ import annotations

from .mutation import Mutation

_FEED = "tests/unit/engines/test_feed.py"
_SUITE = "tests/conformance/test_beanstalkd.py"
_SERVERS = "tests/beanstalkd/test_servers.py"
_WAKING = "tests/beanstalkd/test_waking.py"
_REPLIES = "tests/beanstalkd/test_replies.py"
_STORES = "tests/conformance/test_stores.py"

MUTATIONS = [
    Mutation(
        "the feed's cursor forgets what was offered and not taken",
        "engines/feed",
        "Cursor(self._upto, sorted(self._offered), self.last)",
        "Cursor(self._upto, [], self.last)",
        (_FEED,),
        fast=True,
        hangs=30,
    ),
    Mutation(
        "the feed's cursor is moved before the engine confirmed",
        "engines/feed",
        "if offered.fed.delivered]",
        "]",
        (_FEED,),
        hangs=30,
    ),
    Mutation(
        "a segment goes although an undelivered job stands in it",
        "engines/feed",
        "        needed += [self._ranges[0].segment] if self._ranges else []\n",
        "",
        (_FEED,),
        hangs=30,
    ),
    Mutation(
        "a pause goes with its segment",
        "engines/feed",
        "            if paused.segment in segments:\n",
        "            if False:\n",
        (_FEED,),
        hangs=30,
    ),
    Mutation(
        "a put that was not confirmed counts",
        "engines/beanstalk",
        """            case b"INSERTED":\n""",
        """            case b"INSERTED" | b"DRAINING" | b"OUT_OF_MEMORY":\n""",
        ("tests/service/test_beanstalkd.py::test_a_server_that_drains_takes_nothing_and_its_jobs_wait",),
    ),
    Mutation(
        "a delay is rounded down to whole seconds",
        "engines/beanstalk",
        "max(0, -(-micros // SECOND))",
        "max(0, micros // SECOND)",
        (_SUITE,),
    ),
    Mutation(
        "an ack that beanstalkd refused is taken for done",
        "engines/beanstalk",
        """            if reply is None or reply.word not in (b"DELETED", b"RELEASED", b"BURIED"):\n""",
        "            if reply is None:\n",
        (_SUITE,),
    ),
    Mutation(
        "a beanstalkd that says nothing is waited for",
        "engines/beanstalk",
        "        if self._unheard > _LOOKS:\n",
        "        if False:\n",
        (f"{_SERVERS}::test_a_silent_server_is_given_up_and_its_jobs_go_elsewhere",),
    ),
    Mutation(
        "a server is taken for silent by the clock alone",
        "engines/beanstalk",
        "        self._unheard += 1\n",
        "        self._unheard += _LOOKS + 1 if self.silent_for() > self._silence else 1\n",
        (f"{_SERVERS}::test_a_machine_that_stood_still_makes_no_server_silent",),
    ),
    Mutation(
        "a connection counts as a beanstalkd that is up",
        "engines/beanstalk",
        "        async with asyncio.timeout(timeout):\n            await loop",
        "        async with asyncio.timeout(None):\n            await loop",
        (f"{_SERVERS}::test_a_start_waits_for_no_stopped_server",),
    ),
    Mutation(
        "deliveries wait for a beanstalkd that is stopped",
        "engines/beanstalk",
        "timeout=PATIENCE if fresh else _MOMENT",
        "timeout=None",
        (f"{_SERVERS}::test_a_stopped_server_holds_nobody_up",),
    ),
    Mutation(
        "what a slow server took is offered to another one",
        "engines/beanstalk",
        "if not fed.delivered and fed.number not in busy]",
        "if not fed.delivered]",
        (f"{_SERVERS}::test_a_stopped_server_holds_nobody_up",),
    ),
    Mutation(
        "a number of beanstalkd is a job's id whoever gave it",
        "engines/beanstalk",
        'f"beanstalkd-{connection.instance}-{reply.number}"',
        'f"beanstalkd-{reply.number}"',
        (f"{_SERVERS}::test_nothing_known_of_a_server_counts_for_the_next_one_there",),
    ),
    Mutation(
        "a server is asked for its binlog only at the start",
        "engines/beanstalk",
        "_checked(self.name, made.told, self._limits.unsafe)",
        "_checked(self.name, made.told, self._limits.unsafe or bool(self.reason))",
        (f"{_SERVERS}::test_a_server_that_comes_back_without_its_binlog_is_not_used",),
    ),
    Mutation(
        "of a server's figures only the ready count is compared",
        "engines/beanstalk",
        "[figure(stats, sign) for sign in _SIGNS]",
        "[figure(stats, sign) for sign in _SIGNS[:1]]",
        (f"{_WAKING}::test_a_job_is_seen_though_as_many_are_ready_as_before",),
    ),
    Mutation(
        "nobody looks while no figure changes",
        "engines/beanstalk",
        "(signs == before and began < again)",
        "signs == before",
        (f"{_WAKING}::test_delayed_kicked_and_paused_jobs_are_seen",),
    ),
    Mutation(
        "what comes while somebody asks is missed",
        "engines/beanstalk",
        "if leases or not ask.rung:",
        "if leases is not None:",
        (f"{_WAKING}::test_what_comes_while_somebody_asks_is_not_missed",),
    ),
    Mutation(
        "jobs that come too late are nobody's",
        "engines/beanstalk",
        "self._came_late(done, found[kept:])",
        "None",
        (f"{_WAKING}::test_what_a_slow_server_gives_too_late_goes_back",),
    ),
    Mutation(
        "a job is put although its tube could not be used",
        "engines/beanstalk",
        '        if using.word != b"USING":\n            if reply.word',
        "        if False:\n            if reply.word",
        (f"{_REPLIES}::test_what_was_put_into_another_tube_is_taken_back",),
    ),
    Mutation(
        "a tube is changed although another one is used",
        "engines/beanstalk",
        '        if using.word != b"USING":\n            raise',
        "        if False:\n            raise",
        (f"{_REPLIES}::test_no_job_of_another_tube_is_changed",),
    ),
    Mutation(
        "a failed watch counts",
        "engines/beanstalk",
        "connection.watched ^= {tube}",
        "pass",
        (f"{_REPLIES}::test_a_tube_that_could_not_be_watched_is_watched_later",),
    ),
    Mutation(
        "a job of a tube nobody asked for is taken",
        "engines/beanstalk",
        "if job.tube not in wanted:",
        "if False:",
        (f"{_REPLIES}::test_jobs_of_a_tube_that_could_not_be_ignored_are_not_taken",),
    ),
    Mutation(
        "a remote payload's digest is not looked at",
        "stores",
        "        if len(data) != ref.size or await _sha256(data) != ref.sha256:\n",
        "        if len(data) != ref.size:\n",
        (f"{_STORES}::TestObjects",),
    ),
    Mutation(
        "a name of another store is taken",
        "stores",
        """            raise Internal(f"{name!r} is no name of this store")\n\n    def _away""",
        """            pass\n\n    def _away""",
        (f"{_STORES}::TestMongo", f"{_STORES}::TestObjects"),
    ),
    Mutation(
        "a server collects what others stored",
        "stores",
        "self._list(self._own)",
        """self._list(f"{self.place}/")""",
        (f"{_STORES}::TestMongo",),
    ),
]
