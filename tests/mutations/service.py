"""Safeguards of the server, its connections and its workers."""

from __future__ import annotations

from .mutation import Mutation

_INPUT = "tests/service/test_hostile_input.py"
_LIMITS = "tests/service/test_small_limits.py"
_STRANGERS = "tests/service/test_strangers.py"
_ROLES = "tests/service/test_roles.py"
_FUZZ = "tests/fuzz/test_fuzz.py"
_CHAOS = "tests/runners/test_chaos.py"

MUTATIONS = [
    Mutation(
        "a role may make any call",
        "service",
        """        raise Forbidden(f"role {role} may not call {name}")\n""",
        "",
        (f"{_ROLES}::test_every_call_with_every_role",),
    ),
    Mutation(
        "who has no token may make any call",
        "service",
        """        if role is None:
            raise Unauthorized(""",
        """        if role is None:
            return
            raise Unauthorized(""",
        (f"{_ROLES}::test_every_call_without_a_token",),
    ),
    Mutation(
        "after a wrong token others may be tried",
        "service",
        """        if role is None:
            connection.rejected = True
""",
        """        if role is None:
""",
        (f"{_STRANGERS}::test_a_wrong_token_is_answered_and_nothing_behind_it_taken",),
    ),
    Mutation(
        "a connection may have any number of calls in flight",
        "service",
        "            and self.in_flight < self._server.limits.in_flight\n",
        "",
        (f"{_LIMITS}::test_calls_in_flight_hold_up_those_behind_them",),
    ),
    Mutation(
        "any number of connections is taken",
        "service",
        "        full = len(self._connections) + coming >= self.limits.connections\n",
        "        full = False\n",
        (f"{_LIMITS}::test_more_connections_are_closed_at_once_and_counted",),
    ),
    Mutation(
        "a peer that takes no replies is kept",
        "service",
        "            self._server.limits.write_timeout, self._close, True\n",
        "            1e6, self._close, True\n",
        (f"{_LIMITS}::test_a_reader_that_takes_nothing_is_dropped",),
    ),
    Mutation(
        "a line that is too long is answered after the connection was ended",
        "service",
        "        if self._reader.broken and not self._ending:",
        "        if self._reader.broken:",
        (_FUZZ,),
    ),
    Mutation(
        "a line that is no JSON does not end the connection",
        "service",
        """                self.failed(connection, "", error)
                connection.stop_reading()
                return
""",
        """                self.failed(connection, "", error)
                continue
""",
        (_FUZZ,),
    ),
    Mutation(
        "HTTP and TLS are taken for calls",
        "service",
        "            if looks_foreign(start):\n",
        "            if False:\n",
        (f"{_INPUT}::test_http_and_tls_are_cut_off_unanswered",),
    ),
    Mutation(
        "a line may have any length",
        "core",
        "        if len(block) > self.max_line or len(tail) > self.max_line:\n",
        "        if False:\n",
        (f"{_LIMITS}::test_the_longest_line",),
    ),
    Mutation(
        "text need not be UTF-8",
        "core",
        """    if not block.isascii():
        str(block, "utf-8")
""",
        "",
        ("tests/unit/core/test_wire_input.py", _INPUT),
    ),
    Mutation(
        "a newline within a call is a blank",
        "core",
        "    if block and not one_a_line(block, len(requests)):\n",
        "    if False:\n",
        ("tests/unit/core/test_wire_input.py",),
    ),
    Mutation(
        "a blank line makes up for two calls on another",
        "core",
        """ and block.startswith(b"{") and block.count(b"}\\n{") == lines - 1\n""",
        "\n",
        ("tests/unit/core/test_wire_input.py",),
    ),
    Mutation(
        "the process tree of an overdue attempt lives on",
        "runners",
        "        tree = [*parent.children(recursive=True), parent]\n",
        "        tree = [parent]\n",
        (f"{_CHAOS}::test_ttr_ends_the_whole_process_tree",),
    ),
    Mutation(
        "daemons of a worker that was killed live on",
        "runners",
        "            await asyncio.to_thread(kill_marked, mark)",
        "            pass",
        (f"{_CHAOS}::test_daemons_end_with_their_attempt",),
    ),
    Mutation(
        "what a command leaves behind lives on",
        "runners",
        "        kill_descendants(keep=before)\n",
        "        pass\n",
        ("tests/runners/test_command.py::test_what_a_command_leaves_behind_is_ended",),
    ),
    Mutation(
        "what left a command's session is nobody's child",
        "runners",
        "    _adopt_orphans(True)\n",
        "",
        ("tests/runners/test_command.py::test_what_left_its_session_is_ended_too",),
    ),
    Mutation(
        "workers outlive the server",
        "runners",
        "        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)\n",
        "        pass\n",
        (f"{_CHAOS}::test_workers_die_with_the_server",),
    ),
    Mutation(
        "an overdue attempt runs on",
        "runners",
        """            await self.kill(reason, [receipt])\n""",
        """            pass\n""",
        (f"{_CHAOS}::test_an_attempt_over_its_ttr_is_ended_and_the_job_runs_again",),
    ),
    Mutation(
        "a server without tokens listens to other machines",
        "service",
        "        if missing and not _is_loopback(address):\n",
        "        if False:\n",
        ("tests/cli/test_refusals.py::test_beyond_this_machine_both_tokens_and_tls_are_needed",),
        hangs=30,
    ),
    Mutation(
        "a job whose bulk payload is lost is taken for done",
        "service",
        """[Settlement(lease.receipt, outcome, reason=str(error))]""",
        """[Settlement(lease.receipt, "ok")]""",
        ("tests/service/test_payloads.py::test_a_payload_that_is_lost_is_told_and_its_job_kept",),
    ),
]
