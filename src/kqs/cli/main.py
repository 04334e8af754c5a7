"""The ``kqs`` command. Commands are imported when they are used, so that ``kqs rpc`` starts fast."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..errors import CallError, ConfigError, ConnectionFailed, DataDirError, KQSError
from .text import harmless

#: command -> (module, attribute, line for --help)
_COMMANDS = {
    "demo": ("demo", "demo", "Compress real files through jobs; the server is killed half-way."),
    "serve": ("serve", "serve", "Run the server."),
    "worker": ("worker", "worker", "Run handlers on any machine, for servers elsewhere."),
    "insert": ("ask", "insert", "Insert a job."),
    "rpc": ("ask", "rpc", "Print a call's request line, for nc."),
    "call": ("ask", "call", "Make any call, print the reply."),
    "stats": ("ask", "stats", "What the server holds and does."),
    "health": ("ask", "health", "Is the server getting work done?"),
    "jobs": ("ask", "jobs", "List jobs."),
    "job": ("ask", "job", "Show one job."),
    "why": ("ask", "why", "Why is this job not running?"),
    "wait": ("manage", "wait", "Wait for a job, print its result."),
    "watch": ("manage", "watch", "Print what happens to jobs, as it happens."),
    "kick": ("manage", "kick", "Bring buried jobs back."),
    "bury": ("manage", "bury", "Park jobs."),
    "delete": ("manage", "delete", "Delete jobs."),
    "cancel": ("manage", "cancel", "End jobs, running ones too."),
    "purge": ("manage", "purge", "Delete all jobs of a type in a state."),
    "pause": ("manage", "pause", "Hand out no jobs of a type."),
    "resume": ("manage", "resume", "Hand out jobs of a type again."),
    "drain": ("manage", "drain", "Have a server take no more work."),
    "cron": ("cron", "cron", "Look at jobs that are inserted at set times, insert one now."),
    "engine": ("engine", "engine", "Make the tables of an engine, move jobs to another one."),
    "journal": ("journal", "journal", "Look into a journal, check and repair it."),
    "backup": ("backup", "backup", "Copy a data directory, also of a running server."),
    "token": ("token", "token", "Say who may call a server."),
    "config": ("config", "config", "Check settings."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = _COMMANDS.get(cmd_name)
        if found is None:
            return None
        module = importlib.import_module(f".{found[0]}", __package__)
        command: click.Command = getattr(module, found[1])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_m, _a, line) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kqs", message="%(version)s")
def cli() -> None:
    """KQS: a job service in one command.

    A job is one line of JSON; it is on disk before the reply, and it runs until it is done.
    Start with 'kqs demo', then 'kqs serve'.
    """


def main(argv: Sequence[str] | None = None) -> Any:
    """Entry point; exits 0 when done, 1 when the server refused or failed, 2 when the settings or
    arguments are wrong."""
    try:
        code = cli(args=argv, standalone_mode=False, prog_name="kqs")
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (ConfigError, DataDirError) as error:
        _complain(str(error), 2)
    except CallError as error:
        _complain(f"{error.code}: {error}", 1)
    except ConnectionFailed as error:
        _complain(str(error), 1)
    except KQSError as error:
        _complain(str(error), 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, status: int) -> None:
    """One line on stderr, control characters made harmless."""
    click.echo(f"kqs: {harmless(message)}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
