"""Commands that ask a running server."""

from __future__ import annotations

import sys
from typing import Any, get_args

import click
import msgspec
from rich.console import Console
from rich.table import Table

from ..client import Client
from ..core import wire
from ..core.job import DEFAULT_SCOPE, PRIOS, UniqueScope
from .literal import parse
from .text import as_json_option, harmless, print_json

STATES = ("delayed", "ready", "reserved", "buried", "done")

server_option = click.option(
    "--server",
    "url",
    envvar="KQS_URL",
    metavar="URL",
    help="kqs://HOST:PORT, kqss://HOST:PORT (TLS) or kqs+unix:PATH [local].",
)


def connect(url: str | None) -> Client:
    """A client for the server a command was told of."""
    return Client(url)


def _value(text: str, name: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=name) from None


@click.command()
@click.argument("type")
@click.argument("data", required=False)
@click.option("--prio", type=click.Choice(PRIOS), help="Priority [normal].")
@click.option("--delay", type=float, metavar="S", help="Seconds before it may run.")
@click.option("--ttr", type=float, metavar="S", help="Seconds an attempt may take [30].")
@click.option("--max-attempts", type=int, metavar="N", help="Bury it after so many attempts [no limit].")
@click.option("--key", metavar="KEY", help="Insert once: the same key again gives the same job.")
@click.option("--fair", metavar="KEY", help="Its fairness key: whose part of the worker time it takes.")
@click.option("--unique", metavar="KEY", help="Insert none while one of TYPE with the same KEY stands.")
@click.option(
    "--unique-scope",
    type=click.Choice(get_args(UniqueScope)),
    help=f"Whether one that runs stands, too [{DEFAULT_SCOPE}].",
)
@click.option("--expires", type=float, metavar="S", help="Bury it when it has not run after so many seconds.")
@click.option(
    "--result-ttl", type=float, metavar="S", help="Keep its result so many seconds, for 'kqs wait'."
)
@click.option("--binary", is_flag=True, help="Take DATA (or stdin) as bytes, not as JSON.")
@server_option
@as_json_option
def insert(
    type: str,
    data: str | None,
    prio: str | None,
    delay: float | None,
    ttr: float | None,
    max_attempts: int | None,
    key: str | None,
    fair: str | None,
    unique: str | None,
    unique_scope: str | None,
    expires: float | None,
    result_ttl: float | None,
    binary: bool,
    url: str | None,
    as_json: bool,
) -> None:
    """Insert a job of TYPE and print its id. DATA is JSON or a JavaScript literal; '-' reads stdin."""
    if unique_scope is not None and unique is None:
        raise click.UsageError("--unique-scope says how long a --unique KEY stands; give one")
    options = {
        "prio": prio,
        "delay": delay,
        "ttr": ttr,
        "max_attempts": max_attempts,
        "key": key,
        "fair": fair,
        "unique": unique if unique_scope is None else {"key": unique, "scope": unique_scope},
        "expires": expires,
        "result_ttl": result_ttl,
    }
    given = {name: value for name, value in options.items() if value is not None}
    payload: Any = None
    if binary:
        payload = sys.stdin.buffer.read() if data in (None, "-") else str(data).encode()
    elif data is not None:
        payload = _value(sys.stdin.read() if data == "-" else data, "DATA")
    with connect(url) as client:
        id = client.insert(type, payload, **given)
    if as_json:
        print_json({"id": id})
    else:
        click.echo(id)


@click.command()
@click.argument("name")
@click.argument("arg", required=False)
def rpc(name: str, arg: str | None) -> None:
    """Print the request line of a call, for '| nc localhost 14151'. ARG is JSON or a JavaScript literal."""
    argument = b"" if arg is None else msgspec.json.encode(_value(arg, "ARG"))
    click.echo(wire.encode_request("1", name, argument).decode(), nl=False)


@click.command()
@click.argument("name")
@click.argument("arg", required=False)
@click.option("--timeout", type=float, default=60.0, show_default=True, metavar="S", help="Seconds to wait.")
@server_option
@as_json_option
def call(name: str, arg: str | None, timeout: float, url: str | None, as_json: bool) -> None:
    """Make the call NAME and print its reply as JSON. ARG is JSON or a JavaScript literal."""
    with connect(url) as client:
        if arg is None:
            print_json(client.call(name, timeout=timeout))
        else:
            print_json(client.call(name, _value(arg, "ARG"), timeout=timeout))


@click.command()
@click.option("--type", "type_", metavar="TYPE", help="Of one job type only.")
@server_option
@as_json_option
def stats(type_: str | None, url: str | None, as_json: bool) -> None:
    """What the server holds and does."""
    with connect(url) as client:
        answer = client.call("stats", {"type": type_}) if type_ else client.call("stats")
    if as_json:
        print_json(answer)
        return
    console = Console(markup=False, emoji=False)
    process, journal = answer["process"], answer.get("journal")
    line = (
        f"{answer['name']}: engine {answer['engine']}, process {process['pid']}, "
        f"{(process['rss_bytes'] or 0) / 2**20:.0f} MiB, up {process['uptime']:.0f} s"
    )
    if journal is not None:
        line += (
            f"; journal {journal['bytes'] / 2**20:.1f} MiB in {journal['segments']} segments, "
            f"sequence {journal['synced_seq']} of {journal['last_seq']} synced"
        )
    if (feed := answer.get("feed")) is not None:
        line += f"; {feed['waiting']} jobs wait to be delivered"
        line += f" ({feed['away']})" if "away" in feed else ""
    console.print(line, highlight=False)
    table = Table("type", *(click_right(state) for state in STATES))
    for name, counts in sorted(answer["types"].items()):
        table.add_row(harmless(name), *(str(counts[state]) for state in STATES))
    table.add_row("all", *(str(answer["jobs"][state]) for state in STATES), style="bold")
    console.print(table)
    calls = Table("call", *(click_right(name) for name in ("count", "errors", "p50 ms", "p99 ms", "max ms")))
    for name, figures in answer["calls"].items():
        duration = figures["duration"]
        times = (f"{duration[key] * 1000:.2f}" for key in ("p50", "p99", "max"))
        calls.add_row(name, str(figures["count"]), str(figures["errors"]), *times)
    console.print(calls)


def whole(name: str) -> Any:
    """A column that is never cut short, however narrow the terminal: an id, a time."""
    from rich.table import Column

    return Column(name, no_wrap=True)


def click_right(name: str) -> Any:
    """A right-aligned column."""
    from rich.table import Column

    return Column(name, justify="right")


@click.command()
@server_option
@as_json_option
def health(url: str | None, as_json: bool) -> int:
    """Is the server getting work done? Exits 0 when ok, 1 when degraded or failing."""
    with connect(url) as client:
        answer = client.call("health")
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["status"])
        for check in answer["checks"]:
            click.echo(f"  {check['name']}: {check['status']}: {harmless(check['text'])}")
    return 0 if answer["status"] == "ok" else 1


@click.command()
@click.option("--state", type=click.Choice(STATES), help="In this state only.")
@click.option("--type", "type_", metavar="TYPE", help="Of this type only.")
@click.option("--fair", metavar="KEY", help="With this fairness key only.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="ID", help="Go on after this id.")
@server_option
@as_json_option
def jobs(
    state: str | None,
    type_: str | None,
    fair: str | None,
    limit: int,
    after: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """List jobs, in the order they were inserted."""
    wanted = {"state": state, "type": type_, "fair": fair, "limit": limit, "after": after}
    with connect(url) as client:
        page = client.call("jobs", {name: value for name, value in wanted.items() if value is not None})
    if as_json:
        print_json(page)
        return
    table = Table(
        whole("id"),
        "type",
        "state",
        "prio",
        click_right("attempt"),
        "inserted",
        click_right("bytes"),
        "last error",
    )
    for one in page["jobs"]:
        error = one.get("last_error", {}).get("message", "")
        table.add_row(
            one["id"],
            harmless(one["type"]),
            one["state"],
            one["prio"],
            str(one["attempt"]),
            one["inserted_at"],
            str(one["size"]),
            harmless(error[:60]),
        )
    Console(markup=False, emoji=False).print(table)
    if "next" in page:
        click.echo(f"more: --after {page['next']}")


@click.command()
@click.argument("id")
@click.option("--data", is_flag=True, help="With its payload.")
@click.option("--follow", is_flag=True, help="Show its progress until it has ended.")
@server_option
@as_json_option
def job(id: str, data: bool, follow: bool, url: str | None, as_json: bool) -> int:
    """Show the job ID. With --follow, exits 0 when it is done, 1 when it is buried, deleted or cancelled."""
    if follow:
        from .manage import follow as follow_job

        return follow_job(url, id)
    with connect(url) as client:
        answer = client.call("job", {"id": id, "data": data})
    if as_json:
        print_json(answer)
        return 0
    for name, value in answer.items():
        if name == "last_error":
            click.echo(f"last_error: {harmless(value['kind'])}: {harmless(value['message'])} ({value['at']})")
            for line in value.get("traceback", "").splitlines():
                click.echo(f"    {harmless(line)}")
        else:
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            click.echo(f"{name}: {harmless(text)}")
    return 0


@click.command()
@click.argument("id")
@server_option
@as_json_option
def why(id: str, url: str | None, as_json: bool) -> None:
    """Say why the job ID is not running: the first reason first."""
    with connect(url) as client:
        answer = client.call("why", {"id": id})
    if as_json:
        print_json(answer)
        return
    click.echo(f"{id}: {harmless(answer['type'])}, {answer['state']}")
    for reason in answer["reasons"]:
        click.echo(f"  {reason['code']}: {harmless(reason['text'])}")
