"""``kqs cron``."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from .ask import connect, server_option, whole
from .text import as_json_option, harmless, print_json


@click.group()
def cron() -> None:
    """Look at crons, jobs that are inserted at set times, and run them."""


@cron.command("list")
@server_option
@as_json_option
def list_(url: str | None, as_json: bool) -> None:
    """List the crons of a server: when each runs next, and ran last."""
    with connect(url) as client:
        answer = client.call("cron")
    if as_json:
        print_json(answer)
        return
    table = Table("name", "schedule", "timezone", "type", "missed", whole("next"), whole("last"))
    for one in answer["crons"]:
        words = (one[name] for name in ("name", "schedule", "timezone", "type", "missed"))
        table.add_row(*map(harmless, words), one.get("next_at", "never"), one.get("last_at", ""))
    Console(markup=False, emoji=False).print(table)


@cron.command()
@click.argument("name")
@server_option
@as_json_option
def run(name: str, url: str | None, as_json: bool) -> None:
    """Insert a job of the cron NAME now and print its id. The cron itself goes on as if nothing was."""
    with connect(url) as client:
        answer = client.call("cron_run", {"name": name})
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["id"])
