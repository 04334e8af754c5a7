"""``kqs serve``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import click
import msgspec

from ..runners.log import AS_JSON
from .log import configure_log


@click.command()
@click.option("--config", "config_path", envvar="KQS_CONFIG", metavar="FILE", help="Settings (kqs.toml).")
@click.option("--data", envvar="KQS_DATA", metavar="DIR", help="Data directory [./kqs-data].")
@click.option("--listen", envvar="KQS_LISTEN", metavar="HOST:PORT", help="qrpc address [127.0.0.1:14151].")
@click.option(
    "--app", envvar="KQS_APP", metavar="PKG.MOD:APP", help="App whose @app.job functions are handlers."
)
@click.option(
    "--pool",
    "pools",
    envvar="KQS_POOL",
    multiple=True,
    metavar="NAME",
    help="Run only the handlers of this pool here; may be given several times.",
)
@click.option("--watch", is_flag=True, help="Reload when the config or a handler's code changes.")
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without tokens or TLS.")
@click.option("--log-json", envvar=AS_JSON, is_flag=True, help="Log as JSON lines.")
def serve(
    config_path: str | None,
    data: str | None,
    listen: str | None,
    app: str | None,
    pools: tuple[str, ...],
    watch: bool,
    insecure: bool,
    log_json: bool,
) -> None:
    """Run the server: take jobs, keep them, run their handlers.

    SIGTERM or SIGINT lets running jobs finish (30 s at most) and exits 0; a second one ends at once. Nothing
    accepted is lost either way. SIGHUP takes over changed handlers, their code, classes, pools, defaults and
    certificates, and disturbs no running job.
    """
    import uvloop

    from ..errors import ConfigError
    from ..service.app import Service
    from ..service.reload import Sources
    from ..settings import config as settings
    from ..settings.handlers import Handlers, prepare

    configure_log(log_json)
    if sys.platform == "win32":
        raise ConfigError("KQS runs on Linux and macOS")

    def read() -> settings.Config:
        config = settings.load(config_path)
        own = config.server
        server = msgspec.structs.replace(own, data=data or own.data, listen=listen or own.listen)
        settings.split_address(server.listen, "--listen")
        return msgspec.structs.replace(config, server=server)

    def plan(config: settings.Config) -> Handlers:
        return prepare(config, app, pools)

    config = read()
    files = [] if config_path is None else [config_path]
    sources = Sources(read, plan, files)
    service = Service(config, plan(config), insecure=insecure, sources=sources, watch=watch)
    terminal = os.isatty(2)

    def hang_up() -> None:
        if terminal and not os.isatty(2):  # it was closed: nobody sees the server any more
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGHUP)
        service.reload()

    async def main() -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.shutdown)
        loop.add_signal_handler(signal.SIGHUP, hang_up)
        return await service.run()

    sys.exit(uvloop.run(main()))
