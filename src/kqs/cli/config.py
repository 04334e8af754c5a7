"""``kqs config``."""

from __future__ import annotations

import click


@click.group()
def config() -> None:
    """Check settings."""


@config.command()
@click.argument("path", default="kqs.toml")
@click.option("--app", metavar="PKG.MOD:APP", help="Check this App's jobs as well.")
def check(path: str, app: str | None) -> None:
    """Check a config file, its handlers and certificates, as 'kqs serve' would; exits 2 and says why."""
    from ..service import config as settings
    from ..service.handlers import prepare
    from ..service.tls import server_context

    loaded = settings.load(path)
    handlers = prepare(loaded, app)
    if loaded.tls.cert:
        server_context(loaded.tls)
    types = sorted({type_ for spec in handlers.specs for type_ in spec.handlers})
    click.echo(f"{path}: ok; {len(handlers.specs)} worker processes, handlers for: {', '.join(types)}")
