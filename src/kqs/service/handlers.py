"""From settings to what local workers run, checked before the server opens its port."""

from __future__ import annotations

import os
import subprocess
import sys

import msgspec
from msgspec import UNSET, Struct

from ..core.job import JobDefaults
from ..errors import ConfigError
from ..runners.check import REFUSED, Checked
from ..runners.spec import HandlerSpec, WorkerSpec
from .config import Config, job_defaults, processes

BUILTIN = "kqs.runners.builtin:ping"
_CHECK_SECONDS = 60.0


class Handlers(Struct, frozen=True):
    """What the server needs to know of its handlers.

    Attributes:
        specs: one a worker process.
        defaults: settings of the types that have some of their own.
        base: settings of all other types.
    """

    specs: list[WorkerSpec]
    defaults: dict[str, JobDefaults]
    base: JobDefaults


def prepare(config: Config, app: str | None) -> Handlers:
    """Check that every handler can be run, in a process of its own, and plan the workers.

    Args:
        config: checked settings.
        app: ``pkg.mod:app`` whose jobs are handlers too, or None.

    Raises:
        ConfigError: a handler can't be imported or found; names it and says why.
    """
    base = job_defaults(config)
    path = os.getcwd()
    pools: dict[str, dict[str, HandlerSpec]] = {}
    defaults: dict[str, JobDefaults] = {}
    for type_, handler in config.handlers.items():
        spec = HandlerSpec(
            python=None if handler.python is UNSET else handler.python,
            command=None if handler.command is UNSET else handler.command,
        )
        pools.setdefault(handler.pool, {})[type_] = spec
        own = job_defaults(config, handler)
        if own != base:
            defaults[type_] = own
    everything = {type_: spec for handlers in pools.values() for type_, spec in handlers.items()}
    types = set(everything)
    if app is not None or everything:
        checked = _check(WorkerSpec("check", "check", everything, app, path))
        defaults |= {type_: own for type_, own in checked.items() if own is not None}
        types |= checked.keys()
        if app is not None:
            pools.setdefault("default", {})
    specs = [
        WorkerSpec(
            f"{config.server.name}/{pool}/{number}",
            pool,
            handlers,
            app if pool == "default" else None,
            path,
            frozenset(types - everything.keys() if pool == "default" else ()).union(handlers),
        )
        for pool, handlers in pools.items()
        for number in range(1, processes(config, pool) + 1)
    ]
    if "ping" not in types:
        name = f"{config.server.name}/builtin/1"
        ping = {"ping": HandlerSpec(python=BUILTIN)}
        specs.append(WorkerSpec(name, "builtin", ping, types=frozenset(ping), capture=False))
    return Handlers(specs, defaults, base)


def _check(spec: WorkerSpec) -> dict[str, JobDefaults | None]:
    """Import all handlers in a fresh process; returns the types and the settings the app gave them."""
    argv = [sys.executable, "-m", "kqs.runners.check"]
    text = msgspec.json.encode(spec)
    try:
        done = subprocess.run(argv, input=text, capture_output=True, timeout=_CHECK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"importing the handlers took more than {_CHECK_SECONDS:g} s") from None
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    if done.returncode == REFUSED and lines:
        raise ConfigError(lines[-1])
    if done.returncode != 0:
        modules = [handler.python for handler in spec.handlers.values() if handler.python] + [spec.app or ""]
        names = ", ".join(sorted({name.partition(":")[0] for name in modules if name}))
        how = f"status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
        last = f", saying {lines[-1]!r}" if lines else ""
        raise ConfigError(f"importing the handlers' modules ({names}) ended the process: {how}{last}")
    try:
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Checked).types
    except (msgspec.MsgspecError, IndexError) as error:
        raise ConfigError(f"the handlers could not be checked: {error}") from None
