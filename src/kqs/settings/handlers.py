"""From settings to what local workers run, checked before the server opens its port."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from ..core.job import DefaultsTable, JobSettings
from ..core.shares import Shares
from ..errors import ConfigError
from ..runners import place
from ..runners.check import REFUSED, Checked
from ..runners.spec import HandlerSpec, WorkerSpec
from .config import Config
from .jobtypes import (
    BUILTIN_POOL,
    DEFAULT_POOL,
    HandlerConfig,
    JobTypes,
    PoolConfig,
    check_coherent,
    is_glob,
    share_given,
    shares_of,
    suggestion,
)

BUILTIN = "kqs.runners.builtin:ping"
_CHECK_SECONDS = 60.0
#: Made here and not by the first of the threads that check: msgspec crashes when several meet a type first.
_checked = msgspec.json.Decoder(Checked)


class Handlers(Struct, frozen=True):
    """What the server needs to know of its handlers.

    Attributes:
        specs: one a worker process.
        table: settings of job types.
        roots: files and folders of the handlers' own code.
        app: settings of the types of the ``--app``.
        shares: settings of the scheduler.
        share_given: the first of these that is not as it is by default.
    """

    specs: list[WorkerSpec]
    table: DefaultsTable
    roots: list[str]
    app: dict[str, JobSettings]
    shares: Shares = Shares()
    share_given: str = ""


def prepare(
    config: Config,
    app: str | None = None,
    pools: Sequence[str] = (),
    *,
    only: Collection[str] = (),
    builtin: bool = True,
) -> Handlers:
    """Check that every handler can be run, in processes of their own, and plan the workers.

    Args:
        config: checked settings.
        app: ``pkg.mod:app`` whose jobs are handlers too, or None.
        pools: the pools that run here; all when empty. Handlers of others are not looked at.
        only: the job types that run here; all when empty.
        builtin: whether the handlers that every server has are planned, too.

    Raises:
        ConfigError: a handler can't be imported or found, or a pool can't run what or where it should; names
            it and says why.
    """
    known = {DEFAULT_POOL, *config.pools}
    for name in pools:
        if name not in known:
            hint = suggestion(name, known) or f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"--pool: there is no pool {name!r}; {hint}")
    types = JobTypes(config.defaults, config.classes, config.handlers)
    plan: dict[str, WorkerSpec] = {}
    for type_, handler in config.handlers.items():
        pool = types.pool(type_)
        if (not pools or pool in pools) and (not only or type_ in only):
            spec = plan.get(pool) or _spec(config, pool)
            handlers = {**spec.handlers, type_: _handler(type_, handler, config)}
            plan[pool] = msgspec.structs.replace(spec, handlers=handlers)
    checked: dict[str, Checked] = {}
    jobs: dict[str, JobSettings] = {}
    own: dict[str, JobSettings] = {}
    if app is not None:
        first = next(iter(pools), DEFAULT_POOL)
        spec = msgspec.structs.replace(plan.get(first) or _spec(config, first), app=app)
        checked[first] = _check(spec)
        jobs = checked[first].app
        own = {type_: settings for type_, settings in jobs.items() if not only or type_ in only}
        plan |= _with_app(plan, config, types, app, own, pools)
    todo = [spec for spec in plan.values() if spec.pool not in checked]
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        checked |= zip((spec.pool for spec in todo), executor.map(_check, todo), strict=True)
    specs: list[WorkerSpec] = []
    for pool, spec in plan.items():
        specs += _workers(config, types, spec, checked[pool], [t for t in own if types.pool(t) == pool])
    served = frozenset[str]().union(*(spec.types for spec in specs))
    for type_ in only:
        if type_ not in served:
            known = {*config.handlers, *jobs}
            hint = suggestion(type_, known) or f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"--types: nothing here runs {type_!r}; {hint}")
    builtin = builtin and "ping" not in config.handlers and "ping" not in served
    if builtin and (not pools or DEFAULT_POOL in pools):
        name = f"{config.server.name}/{BUILTIN_POOL}/1"
        ping = {"ping": HandlerSpec(python=BUILTIN)}
        specs.append(WorkerSpec(name, BUILTIN_POOL, ping, types=frozenset(ping), capture=False))
    roots = sorted({root for one in checked.values() for root in one.roots})
    shares = shares_of(config.scheduler, config.classes, config.handlers, config.fair)
    given = share_given(config.scheduler, config.classes, config.handlers, config.fair)
    return Handlers(specs, types.table(jobs), roots, jobs, shares, given)


def _with_app(
    plan: dict[str, WorkerSpec],
    config: Config,
    types: JobTypes,
    app: str,
    jobs: Mapping[str, JobSettings],
    pools: Sequence[str],
) -> dict[str, WorkerSpec]:
    """The pools that run types of the app, knowing the app."""
    found: dict[str, WorkerSpec] = {}
    for type_, settings in jobs.items():
        if type_ in config.handlers:
            raise ConfigError(f"job type {type_!r} has a handler in the config and one in --app {app}")
        chain = [(f"job type {type_!r}", settings), *types.tables(type_)]
        check_coherent(f"--app {app}: ", chain, types.settings(type_, settings))
        pool = types.pool(type_)
        if not pools or pool in pools:
            found[pool] = msgspec.structs.replace(plan.get(pool) or _spec(config, pool), app=app)
    return found


def _spec(config: Config, pool: str) -> WorkerSpec:
    """A pool's worker, without handlers yet."""
    table = config.pools.get(pool, PoolConfig())
    return WorkerSpec(
        f"{config.server.name}/{pool}",
        pool,
        {},
        path=os.getcwd(),
        concurrency=table.concurrency,
        max_jobs=table.max_jobs,
        memory=table.memory,
        env=table.env,
        user=_given(table.user),
        directory=_given(table.directory),
        nice=_given(table.nice),
    )


def _given(value: Any) -> Any:
    return None if value is UNSET else value


def _handler(type_: str, handler: HandlerConfig, config: Config) -> HandlerSpec:
    secret = _given(handler.secret)
    if handler.secret_file is not UNSET:
        where = f"handlers.{type_}.secret_file"
        try:
            with open(handler.secret_file, encoding="utf-8") as file:
                secret = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"{where}: {handler.secret_file} cannot be read: {reason}") from None
        if not secret:
            raise ConfigError(f"{where}: {handler.secret_file} is empty; write the key into it")
    return HandlerSpec(
        python=_given(handler.python),
        command=_given(handler.command),
        http=_given(handler.http),
        secret=secret,
        timeout=_given(handler.timeout),
        allow=tuple(config.http.allow_private) if handler.http is not UNSET else (),
    )


def _workers(
    config: Config, types: JobTypes, spec: WorkerSpec, checked: Checked, jobs: Iterable[str]
) -> list[WorkerSpec]:
    """A pool's workers: one spec a process.

    Args:
        spec: what they share.
        checked: what is known of their handlers.
        jobs: job types of the app they run.
    """
    served = frozenset(jobs).union(spec.handlers)
    blocking = next((type_ for type_ in checked.blocking if type_ in served), None)
    if spec.concurrency > 1 and blocking is not None:
        raise ConfigError(
            f"pools.{spec.pool}.concurrency: is {spec.concurrency}, but the handler of {blocking!r} is not "
            "async, so only one of its attempts fits in a process; make it async, or give it another pool"
        )
    settings = {type_: types.settings(type_, checked.app.get(type_)) for type_ in sorted(served)}
    kept_alive = {type_: own.max_runtime for type_, own in settings.items() if own.keep_alive}
    number = config.pools.get(spec.pool, PoolConfig()).processes or os.cpu_count() or 1
    return [
        msgspec.structs.replace(
            spec, name=f"{spec.name}/{n}", types=served, keep_alive=kept_alive, code=checked.stamp
        )
        for n in range(1, number + 1)
    ]


def _check(spec: WorkerSpec) -> Checked:
    """Import all handlers of a pool in a fresh process, run as and where the pool's are."""
    place.check(spec)
    own = place.account(spec)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "kqs.runners.check"],
            input=msgspec.json.encode(spec),
            capture_output=True,
            timeout=_CHECK_SECONDS,
            check=False,
            cwd=spec.directory,
            env=place.environment(spec),
            user=None if own is None else own.uid,
            group=None if own is None else own.gid,
            extra_groups=None if own is None else own.groups,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"importing the handlers took more than {_CHECK_SECONDS:g} s") from None
    except OSError as error:
        raise ConfigError(f"pools.{spec.pool}: a process can't be started: {error}") from None
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
        return _checked.decode(done.stdout.splitlines()[-1])
    except (msgspec.MsgspecError, IndexError) as error:
        raise ConfigError(f"the handlers could not be checked: {error}") from None


def resolved(config: Config, handlers: Handlers) -> dict[str, Any]:
    """What the settings come to: ``{defaults, classes, types, pools}``, for people and scripts.

    A type says its class, its pool, and whether it ``runs`` here. No secrets, no environments.
    """
    types = JobTypes(config.defaults, config.classes, config.handlers)
    here = {type_: spec.pool for spec in handlers.specs for type_ in spec.types}
    named = {text for table in config.classes.values() for text in table.types if not is_glob(text)}
    pools: dict[str, dict[str, Any]] = {}
    for spec in handlers.specs:
        shown = {"processes": 0, "concurrency": spec.concurrency, "types": sorted(spec.types)}
        pools.setdefault(spec.pool, shown)["processes"] += 1
    return {
        "defaults": config.defaults,
        "classes": {
            name: {"types": table.types, "settings": table.over(config.defaults)}
            for name, table in config.classes.items()
        },
        "types": {
            type_: {
                "class": types.class_of(type_),
                "pool": here.get(type_, types.pool(type_)),
                "runs": type_ in here,
                "settings": handlers.table.get(type_).defaults,
            }
            for type_ in sorted({*named, *config.handlers, *handlers.app, *here})
        },
        "pools": pools,
    }
