"""``kqs serve``."""

from __future__ import annotations

import asyncio
import signal
import sys

import click
import msgspec
import structlog


@click.command()
@click.option("--config", "config_path", envvar="KQS_CONFIG", metavar="FILE", help="Settings (kqs.toml).")
@click.option("--data", envvar="KQS_DATA", metavar="DIR", help="Data directory [./kqs-data].")
@click.option("--listen", envvar="KQS_LISTEN", metavar="HOST:PORT", help="qrpc address [127.0.0.1:14151].")
@click.option(
    "--app", envvar="KQS_APP", metavar="PKG.MOD:APP", help="App whose @app.job functions are handlers."
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without tokens or TLS.")
@click.option("--log-json", is_flag=True, help="Log as JSON lines.")
def serve(
    config_path: str | None,
    data: str | None,
    listen: str | None,
    app: str | None,
    insecure: bool,
    log_json: bool,
) -> None:
    """Run the server: take jobs, keep them, run their handlers.

    SIGTERM or SIGINT lets running jobs finish (30 s at most) and exits 0; a second one ends at once. Nothing
    accepted is lost either way. SIGHUP has it read its certificates again.
    """
    import uvloop

    from ..errors import ConfigError
    from ..service import config as settings
    from ..service.app import Service
    from ..service.handlers import prepare

    configure_log(log_json)
    config = settings.load(config_path)
    server = msgspec.structs.replace(
        config.server, data=data or config.server.data, listen=listen or config.server.listen
    )
    config = msgspec.structs.replace(config, server=server)
    settings.split_address(server.listen, "--listen")
    if sys.platform == "win32":
        raise ConfigError("KQS runs on Linux and macOS")
    service = Service(config, prepare(config, app), insecure=insecure)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.shutdown)
        loop.add_signal_handler(signal.SIGHUP, service.reload_tls)
        return await service.run()

    sys.exit(uvloop.run(main()))


def configure_log(as_json: bool) -> None:
    """Log to stderr: stdout belongs to the handlers."""
    renderer = structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
