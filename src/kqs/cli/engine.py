"""``kqs engine``."""

from __future__ import annotations

import asyncio

import click
import msgspec

from .text import as_json_option, print_json

#: Members of jobs that an engine may have no use for.
_MEMBERS = ("key", "unique", "fair", "expires", "result_ttl")


@click.group()
def engine() -> None:
    """Make the tables of an engine, move jobs to another one."""


@engine.command()
@click.option("--config", "path", required=True, metavar="FILE", help="Settings with [postgres].")
@as_json_option
def migrate(path: str, as_json: bool) -> None:
    """Make the tables KQS needs in PostgreSQL, or bring them up to this version.

    Safe to run again, and by several at a time. Servers of another version refuse to start on the tables.
    """
    from ..service.engines import migrate as migrate_tables
    from ..settings.config import load

    config = load(path)
    before, after = asyncio.run(migrate_tables(config))
    if as_json:
        print_json({"before": before, "after": after})
        return
    done = "up to date" if before == after else f"migrated from version {before}"
    click.echo(f"schema {config.postgres.schema}: version {after}, {done}")


@engine.command()
@click.option("--from", "old", required=True, metavar="FILE", help="Settings of the server of before.")
@click.option("--to", "new", required=True, metavar="FILE", help="Settings of the server to come.")
@click.option(
    "--drop",
    multiple=True,
    type=click.Choice(_MEMBERS),
    help="Leave this member out of jobs whose new engine cannot keep it; repeatable.",
)
@click.option("--kick-buried", is_flag=True, help="Move buried jobs too: they run again.")
@as_json_option
def move(old: str, new: str, drop: tuple[str, ...], kick_buried: bool, as_json: bool) -> None:
    """Move all jobs that are not done from the embedded engine to another one.

    Stop the server and all workers first. Ids change, attempts count anew, what is left of a delay stays. A
    job is durable in the new engine before it is deleted from the old one: a move that was killed is begun
    again, and a few jobs may be there twice then. Exits 2, with nothing changed, when some cannot be moved.
    """
    from ..service.host import RealHost
    from ..service.move import move as move_jobs
    from ..settings.config import load
    from .log import configure_log

    configure_log(as_json=False)
    moved = asyncio.run(move_jobs(load(old), load(new), RealHost(), drop=drop, kick_buried=kick_buried))
    if as_json:
        print_json(msgspec.to_builtins(moved))
        return
    click.echo(f"{moved.jobs} jobs moved")
    for member, count in moved.dropped.items():
        click.echo(f"{member} was left out of {count} of them")
