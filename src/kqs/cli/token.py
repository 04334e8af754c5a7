"""``kqs token``."""

from __future__ import annotations

import datetime as dt

import click
import msgspec
from rich.console import Console
from rich.table import Table

from ..core.calls import ROLES, Role
from ..service import tokens
from .text import harmless

_data = click.option(
    "--data",
    envvar="KQS_DATA",
    default="./kqs-data",
    show_default=True,
    metavar="DIR",
    help="The server's data directory.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def token() -> None:
    """Say who may call a server."""


def _printable(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    if name is not None and not (1 <= len(name) <= 100 and name.isprintable()):
        raise click.BadParameter("a name has 1 to 100 printable characters")
    return name


@token.command()
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it allows.")
@click.option("--name", callback=_printable, help="For people [the role and a number].")
@_data
@_as_json
def new(role: Role, name: str | None, data: str, as_json: bool) -> None:
    """Make a token and print it: it is shown this once, the server keeps its SHA-256 only.

    A running server takes it within a second or two. From the first token on everybody needs one: a server
    that let everybody in closes the connections it has, when what they asked for is answered.
    """
    name, secret = tokens.new(data, role, name, dt.datetime.now(dt.UTC))
    if as_json:
        click.echo(msgspec.json.encode({"name": name, "role": role, "token": secret}).decode())
        return
    click.echo(
        f"token {name!r}, role {role}; clients take it from KQS_TOKEN; it is not shown again", err=True
    )
    click.echo(secret)


@token.command(name="list")
@_data
@_as_json
def list_(data: str, as_json: bool) -> None:
    """List the tokens of a data directory; those of a config file are in that file."""
    known = tokens.load(data) or []
    if as_json:
        shown = [{"name": one.name, "role": one.role, "created_at": one.created_at} for one in known]
        click.echo(msgspec.json.encode({"tokens": shown}).decode())
        return
    table = Table("name", "role", "created")
    for one in known:
        table.add_row(harmless(one.name), one.role, f"{one.created_at:%Y-%m-%d %H:%M}")
    Console(markup=False, emoji=False).print(table)


@token.command()
@click.argument("name")
@_data
def revoke(name: str, data: str) -> None:
    """End the token NAME: a running server closes its connections within a second or two.

    The last one too opens the server to nobody: calls are refused until there is another token.
    """
    left = tokens.revoke(data, name)
    click.echo(f"revoked; {left} left")
