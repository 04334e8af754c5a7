"""Commands that change jobs, or wait for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from .ask import STATES, connect, server_option
from .text import as_json_option, harmless, print_json

_WAITING = STATES[:-1]
_selection = (
    click.argument("ids", nargs=-1, metavar="[ID]..."),
    click.option("--type", "type_", metavar="TYPE", help="All of this type."),
    click.option("--state", type=click.Choice(_WAITING), help="All in this state."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many, oldest first."),
    server_option,
    as_json_option,
)
_DID = {"kick": "kicked", "bury": "buried", "delete": "deleted", "cancel": "cancelled"}
#: How long a command may go on over many jobs, seconds.
_LONG = 3600.0
_FOR_EVER = 1e9


def _control(verb: str, text: str) -> click.Command:
    """The command for a verb."""

    def command(
        ids: tuple[str, ...],
        type_: str | None,
        state: str | None,
        limit: int | None,
        url: str | None,
        as_json: bool,
    ) -> None:
        members = {"ids": list(ids) or None, "type": type_, "state": state, "limit": limit}
        argument = {name: value for name, value in members.items() if value is not None}
        if not argument:
            raise click.UsageError(f"which jobs? kqs {verb} ID..., or --type, or --state")
        with connect(url) as client:
            _tell(client.call(verb, argument, timeout=_LONG), _DID[verb], as_json)

    command.__doc__ = text
    decorated: Callable[..., None] = command
    for option in reversed(_selection):
        decorated = option(decorated)
    return click.command(verb)(decorated)


def _tell(answer: dict[str, Any], did: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{did}: {answer['count']}")


kick = _control("kick", "Bring buried (or delayed) jobs back: they are ready at once.")
bury = _control("bury", "Park jobs until somebody kicks or deletes them.")
delete = _control("delete", "Delete jobs for good.")
cancel = _control("cancel", "End jobs: at once if they wait, else their worker is told to stop.")


@click.command()
@click.argument("type")
@click.option(
    "--state", type=click.Choice(_WAITING), default="ready", show_default=True, help="In this state."
)
@click.option("--older", type=float, metavar="S", help="Inserted so many seconds ago, at least.")
@server_option
@as_json_option
def purge(type: str, state: str, older: float | None, url: str | None, as_json: bool) -> None:
    """Delete all jobs of TYPE in a state."""
    argument = {"type": type, "state": state} | ({} if older is None else {"older": older})
    with connect(url) as client:
        _tell(client.call("purge", argument, timeout=_LONG), "deleted", as_json)


def _pause(verb: str, text: str) -> click.Command:
    def command(type: str, url: str | None, as_json: bool) -> None:
        with connect(url) as client:
            answer = client.call(verb, {"type": type})
        if as_json:
            print_json(answer)
        else:
            click.echo(f"{harmless(type)}: {'paused' if answer['paused'] else 'goes on'}")

    command.__doc__ = text
    return click.command(verb)(click.argument("type")(server_option(as_json_option(command))))


pause = _pause("pause", "Hand out no jobs of TYPE until it is resumed, over restarts too.")
resume = _pause("resume", "Hand out jobs of TYPE again.")


@click.command()
@click.option("--off", is_flag=True, help="Take work again.")
@server_option
@as_json_option
def drain(off: bool, url: str | None, as_json: bool) -> None:
    """Have the server hand out no more jobs; it still accepts them."""
    with connect(url) as client:
        answer = client.call("drain", {"on": not off})
    if as_json:
        print_json(answer)
    else:
        click.echo("draining" if answer["draining"] else "working")


@click.command()
@click.argument("id")
@click.option(
    "--timeout", type=float, default=3600.0, show_default=True, metavar="S", help="Seconds to wait."
)
@server_option
@as_json_option
def wait(id: str, timeout: float, url: str | None, as_json: bool) -> int:
    """Wait for the job ID and print its result.

    Exits 0 when it is done, 1 when it is buried, cancelled or deleted, or when time is up.
    """
    with connect(url) as client:
        answer = client.call("wait", {"id": id, "timeout": timeout}, timeout=timeout + 10)
    good = answer["state"] == "done" and answer.get("outcome") == "ok"
    if as_json:
        print_json(answer)
    elif good:
        print_json(answer.get("result"))
    else:
        error = answer.get("last_error", {}).get("message", "")
        click.echo(
            f"{answer.get('outcome', answer['state'])}{': ' if error else ''}{harmless(error)}", err=True
        )
    return 0 if good else 1


@click.command()
@click.argument("id", required=False)
@click.option("--type", "type_", metavar="TYPE", help="Jobs of this type only.")
@server_option
@as_json_option
def watch(id: str | None, type_: str | None, url: str | None, as_json: bool) -> None:
    """Print what happens to the job ID, to jobs of a type, or to all jobs, as it happens."""
    argument = {name: value for name, value in (("id", id), ("type", type_)) if value is not None}

    def show(event: dict[str, Any]) -> None:
        if as_json:
            print_json(event, indent=False)
        else:
            job = event["job"]
            error = "" if event["event"] == "done" else job.get("last_error", {}).get("message", "")
            text = f"{event['at']} {event['event']:<10} {job['id']} {job['type']} {job['state']} {error}"
            click.echo(harmless(text.rstrip()))
        sys.stdout.flush()

    _events(url, argument, show)


def _events(url: str | None, argument: dict[str, Any], show: Callable[[dict[str, Any]], Any]) -> None:
    """Have every event of a ``watch`` shown, until it ends or ``show`` says so by returning True."""
    import asyncio

    from ..client import AsyncClient

    async def main() -> None:
        async with AsyncClient(url) as client:
            await client.ping()  # a server that is not there is told of soon; a quiet watch may last
            async for event in client.stream("watch", argument, timeout=_FOR_EVER):
                if show(event):
                    return

    asyncio.run(main())


def follow(url: str | None, id: str) -> int:
    """Show a job's progress as a bar until it has ended; returns the exit status."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    job: dict[str, Any] = {}
    with Progress(*columns, console=Console(stderr=True, markup=False, emoji=False)) as bar:
        task = bar.add_task(harmless(id), total=1.0)

        def show(event: dict[str, Any]) -> bool:
            job.clear()
            job.update(event["job"])
            progress = job.get("progress", {})
            text = progress.get("message") or job.get("outcome") or job["state"]
            fraction = 1.0 if job["state"] == "done" else progress.get("fraction") or 0.0
            bar.update(task, completed=fraction, description=harmless(f"{id} {text}"))
            return bool(job["state"] == "buried")

        _events(url, {"id": id}, show)
    if job["state"] == "buried":
        click.echo(f"buried: {harmless(job['last_error']['message'])}", err=True)
    return 0 if job.get("outcome") == "ok" else 1
