"""``kqs worker``."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from ..runners.log import AS_JSON
from .log import configure_log

if TYPE_CHECKING:
    from ..runners.spec import WorkerSpec

#: Seconds ``--check`` waits for a server.
_CHECK = 10.0


@click.command()
@click.argument("app", metavar="[PKG.MOD:APP]", required=False)
@click.option(
    "--server",
    "urls",
    multiple=True,
    metavar="URL",
    help="kqs://HOST:PORT, kqss://HOST:PORT (TLS) or kqs+unix:PATH; several are tried in turn [KQS_URL].",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    help="Take [handlers], [classes], [pools], [defaults] and [http] from this kqs.toml.",
)
@click.option(
    "--pool", "pools", multiple=True, metavar="NAME", help="Run only the handlers of this pool; repeatable."
)
@click.option("--processes", type=click.IntRange(1, 1024), metavar="N", help="Worker processes of each pool.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Attempts one process runs at once; above 1 all handlers must be async [1].",
)
@click.option("--types", metavar="TYPE,..", help="Run only these job types.")
@click.option("--burst", is_flag=True, help="Exit when no job is ready.")
@click.option("--max-jobs", type=click.IntRange(1), metavar="N", help="Exit after so many attempts.")
@click.option("--max-time", type=click.FloatRange(0, min_open=True), metavar="S", help="Exit after so long.")
@click.option("--check", is_flag=True, help="Import the handlers, connect, say what would run, exit.")
@click.option("--log-json", envvar=AS_JSON, is_flag=True, help="Log as JSON lines.")
def worker(
    app: str | None,
    urls: tuple[str, ...],
    config_path: str | None,
    pools: tuple[str, ...],
    processes: int | None,
    concurrency: int | None,
    types: str | None,
    burst: bool,
    max_jobs: int | None,
    max_time: float | None,
    check: bool,
    log_json: bool,
) -> None:
    """Run the handlers of an App, or of a config file, for servers elsewhere.

    The token comes from KQS_TOKEN. SIGTERM or SIGINT lets running jobs finish (30 s at most) and exits 0; a
    second one ends at once. A server that is away is waited for.
    """
    import structlog
    import uvloop

    from ..client.url import split
    from ..errors import ConfigError
    from ..remote.worker import RemoteWorker

    configure_log(log_json)
    if app is None and config_path is None:
        raise ConfigError("nothing to run: name an App (pkg.mod:app), or --config FILE")
    servers = split(",".join(urls) or None)
    specs = _specs(app, config_path, pools, processes, concurrency, types)
    remote = RemoteWorker(
        specs,
        servers,
        log=structlog.get_logger(),
        jobs=max_jobs or 0,
        seconds=max_time or 0.0,
        burst=burst,
    )
    if check:
        server = uvloop.run(remote.check(_CHECK))
        handled = sorted(frozenset[str]().union(*(spec.types for spec in specs)))
        where = server.partition("?")[0]
        click.echo(f"ok: {len(specs)} worker processes for {', '.join(handled)}, server {where}")
        return

    async def main() -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, remote.shutdown)
        return await remote.run()

    sys.exit(uvloop.run(main()))


def _specs(
    app: str | None,
    config_path: str | None,
    pools: Sequence[str],
    processes: int | None,
    concurrency: int | None,
    types: str | None,
) -> list[WorkerSpec]:
    """What to run, checked.

    Raises:
        ConfigError: what can't be run, and why.
    """
    from ..errors import ConfigError
    from ..settings import config as settings
    from ..settings.handlers import prepare
    from ..settings.jobtypes import DEFAULT_POOL, PoolConfig

    config = settings.load(config_path)
    given = {
        name: value
        for name, value in (("processes", processes), ("concurrency", concurrency))
        if value is not None
    }
    tables = {DEFAULT_POOL: PoolConfig(), **config.pools}
    if given:
        tables = {name: msgspec.structs.replace(table, **given) for name, table in tables.items()}
    # Names of this process alone: what servers show as the holder of a lease.
    server = msgspec.structs.replace(config.server, name=f"{socket.gethostname()}-{os.getpid()}")
    config = msgspec.structs.replace(config, pools=tables, server=server)
    only = [name.strip() for name in (types or "").split(",") if name.strip()]
    specs = prepare(config, app, pools, only=only, builtin=False).specs
    if not specs:
        raise ConfigError("nothing to run: there is no handler in what was named")
    return specs
