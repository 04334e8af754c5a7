"""``kqs config``."""

from __future__ import annotations

import click


@click.group()
def config() -> None:
    """Check settings."""


@config.command()
@click.argument("path", default="kqs.toml")
@click.option("--app", metavar="PKG.MOD:APP", help="Check this App's jobs as well.")
@click.option(
    "--pool", "pools", multiple=True, metavar="NAME", help="Check the handlers of this pool only; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print what the settings come to, as JSON.")
def check(path: str, app: str | None, pools: tuple[str, ...], as_json: bool) -> None:
    """Check a config file, its handlers and certificates, as 'kqs serve' would; exits 2 and says why."""
    import msgspec

    from ..service.tls import server_context
    from ..settings import config as settings
    from ..settings.handlers import prepare, resolved

    loaded = settings.load(path)
    handlers = prepare(loaded, app, pools)
    if loaded.tls.cert:
        server_context(loaded.tls)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(resolved(loaded, handlers))).decode())
        return
    types = sorted(frozenset[str]().union(*(spec.types for spec in handlers.specs)))
    click.echo(f"{path}: ok; {len(handlers.specs)} worker processes, handlers for: {', '.join(types)}")
