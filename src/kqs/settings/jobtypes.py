"""Settings of job types: handlers, classes and pools, and which of them hold for a type.

A setting is the job's own, else its handler's, else its class's, else the defaults'. A type's class is the
one that names it, else the first in the order of the file with a pattern that matches it.
"""

from __future__ import annotations

import difflib
import fnmatch
import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..core.job import MAX_TTR, MAX_TYPE_BYTES, DefaultsTable, JobDefaults, JobSettings
from ..core.shares import Share, Shares
from ..errors import ConfigError
from .shares import FairConfig, JobTypeConfig, SchedulerConfig, check_share, share_of, shares_of_keys

#: The pool of handlers that name none, in themselves or in their class.
DEFAULT_POOL = "default"
#: The pool of the handlers every server has.
BUILTIN_POOL = "builtin"
#: A worker process takes about this many bytes before it runs anything.
_BARE_PROCESS = 32 * 1024 * 1024

_NICE = Meta(ge=-20, le=19)


class DefaultsConfig(JobDefaults, frozen=True, forbid_unknown_fields=True):
    """What jobs get that do not say."""


class ClassConfig(JobTypeConfig, frozen=True, forbid_unknown_fields=True):
    """Settings that several job types share. Its limits hold for all of them together, its weight for each.

    Attributes:
        types: names of job types, or patterns of them (``image.*``; ``*``, ``?`` and ``[seq]`` as in shells).
        pool: the pool that runs them, where the handler names none.
    """

    types: list[str] = msgspec.field(default_factory=list)
    pool: str | UnsetType = UNSET


class HandlerConfig(JobTypeConfig, frozen=True, forbid_unknown_fields=True):
    """How jobs of one type are run: exactly one of ``python``, ``command`` and ``http``.

    Attributes:
        python: ``pkg.mod:callable``, called with one Job.
        command: argv, run without a shell, the payload on its stdin.
        http: URL the payload is sent to with POST; the status of the answer is the outcome.
        secret: key the requests of ``http`` are signed with (HMAC-SHA-256); without one they are not signed.
        secret_file: file that holds the key, instead of ``secret``.
        timeout: seconds a request of ``http`` may take; the ttr when not given.
        pool: the pool that runs it; that of its class when not given, else ``default``.
    """

    python: str | UnsetType = UNSET
    command: Annotated[list[str], Meta(min_length=1)] | UnsetType = UNSET
    http: str | UnsetType = UNSET
    secret: str | UnsetType = UNSET
    secret_file: str | UnsetType = UNSET
    timeout: Annotated[float, Meta(gt=0, le=MAX_TTR)] | UnsetType = UNSET
    pool: str | UnsetType = UNSET


class PoolConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Worker processes, and how they are run.

    Attributes:
        processes: how many. 0: one for each processor.
        concurrency: attempts one process runs at once; above 1 all its handlers must be async.
        memory: bytes of resident memory at which a process is replaced between two jobs; 0 for no limit.
        max_jobs: jobs after which a process is replaced; 0 for no limit.
        env: environment variables its processes and their commands get beside the server's own.
        user: user they run as, with that user's groups; the server must run as root. The server's when not
            given.
        directory: their working directory; the server's when not given.
        nice: their niceness, -20 (most favoured) to 19; the server's when not given.
    """

    processes: Annotated[int, Meta(ge=0, le=1024)] = 0
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 1
    memory: Annotated[int, Meta(ge=0)] = 0
    max_jobs: Annotated[int, Meta(ge=0)] = 0
    env: dict[str, str] = msgspec.field(default_factory=dict)
    user: str | UnsetType = UNSET
    directory: str | UnsetType = UNSET
    nice: Annotated[int, _NICE] | UnsetType = UNSET


class HttpConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """HTTP handlers.

    Attributes:
        allow_private: hosts, addresses and networks in private or link-local ranges that may be called; all
            others there are refused.
    """

    allow_private: list[str] = msgspec.field(default_factory=list)


class JobTypes:
    """Which settings hold for a job type.

    Args:
        defaults, classes, handlers: checked tables of the config.
    """

    def __init__(
        self,
        defaults: JobDefaults,
        classes: Mapping[str, ClassConfig],
        handlers: Mapping[str, HandlerConfig],
    ) -> None:
        self._defaults = JobSettings().over(defaults)
        self._classes = classes
        self._handlers = handlers
        named = [(text, name) for name, table in classes.items() for text in table.types]
        self._exact = {text: name for text, name in named if not is_glob(text)}
        self._globs = [(text, name) for text, name in named if is_glob(text)]

    def class_of(self, type_: str) -> str | None:
        """The name of a type's class, or None."""
        found = self._exact.get(type_)
        if found is None:
            found = next((name for glob, name in self._globs if fnmatch.fnmatchcase(type_, glob)), None)
        return found

    def pool(self, type_: str) -> str:
        """The pool that runs a type."""
        handler, class_ = self._handlers.get(type_), self.class_of(type_)
        if handler is not None and handler.pool is not UNSET:
            return handler.pool
        own = UNSET if class_ is None else self._classes[class_].pool
        return DEFAULT_POOL if own is UNSET else own

    def tables(self, type_: str) -> list[tuple[str, JobSettings]]:
        """The class of a type and its name in the file, where it has one."""
        class_ = self.class_of(type_)
        return [] if class_ is None else [(f"classes.{class_}", self._classes[class_])]

    def settings(self, type_: str, app: JobSettings | None = None) -> JobDefaults:
        """What jobs of a type get that do not say.

        Args:
            type_: the job type.
            app: what its ``@app.job`` says, for types whose handler is there.
        """
        class_ = self.class_of(type_)
        base = self._defaults if class_ is None else self._classes[class_].over(self._defaults)
        own = self._handlers.get(type_, app)
        return base if own is None else own.over(base)

    def table(self, app: Mapping[str, JobSettings]) -> DefaultsTable:
        """All of it, for the parser of jobs.

        Args:
            app: settings of the types of the ``--app``.
        """
        types = {*self._exact, *self._handlers, *app}
        globs = [(glob, self._classes[name].over(self._defaults)) for glob, name in self._globs]
        return DefaultsTable(
            {type_: self.settings(type_, app.get(type_)) for type_ in types}, self._defaults, globs
        )


def shares_of(
    scheduler: SchedulerConfig,
    classes: Mapping[str, ClassConfig],
    handlers: Mapping[str, HandlerConfig],
    fair: Mapping[str, FairConfig],
) -> Shares:
    """What the scheduler needs to know of the settings."""
    types = JobTypes(JobDefaults(), classes, handlers)
    of_class = {name: share_of(table) for name, table in classes.items()}

    def of_type(type_: str) -> tuple[str | None, Share]:
        class_, own = types.class_of(type_), handlers.get(type_)
        weight = 1.0 if class_ is None else of_class[class_].weight
        return class_, Share(weight) if own is None else share_of(own, weight)

    return Shares(scheduler.order, scheduler.priority, of_type, of_class, shares_of_keys(fair))


def share_given(
    scheduler: SchedulerConfig,
    classes: Mapping[str, ClassConfig],
    handlers: Mapping[str, HandlerConfig],
    fair: Mapping[str, FairConfig],
) -> str:
    """The first setting of the scheduler that is not as it is by default, or nothing."""
    if scheduler != SchedulerConfig():
        return "scheduler"
    if fair:
        return f"fair.{next(iter(fair))}"
    tables = [("classes", name, table) for name, table in classes.items()]
    for kind, name, table in [*tables, *(("handlers", name, table) for name, table in handlers.items())]:
        for field in ("weight", "concurrency", "rate", "burst"):
            if getattr(table, field) != getattr(JobTypeConfig(), field):
                return f"{kind}.{name}.{field}"
    return ""


def is_glob(text: str) -> bool:
    """Whether it is a pattern of job types rather than one."""
    return re.search(r"[*?[]", text) is not None


def check(
    path: str,
    defaults: JobDefaults,
    classes: Mapping[str, ClassConfig],
    handlers: Mapping[str, HandlerConfig],
    pools: Mapping[str, PoolConfig],
    http: HttpConfig,
    fair: Mapping[str, FairConfig],
) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ConfigError: one line: the file, the setting, what to do.
    """
    check_coherent(f"{path}: ", [], defaults)
    for table, named in (("classes", classes), ("handlers", handlers), ("fair", fair)):
        for name, share in named.items():
            check_share(f"{path}: {table}.{name}", share)
    _check_classes(f"{path}: ", defaults, classes, pools)
    types = JobTypes(defaults, classes, handlers)
    for type_, handler in handlers.items():
        where = f"handlers.{type_}"
        _check_handler(f"{path}: {where}", handler, pools)
        _check_type(f"{path}: {where}", type_)
        settings = types.settings(type_)
        check_coherent(f"{path}: ", [(where, handler), *types.tables(type_)], settings)
        if handler.timeout is not UNSET and handler.timeout > settings.ttr:
            raise ConfigError(
                f"{path}: {where}.timeout: {handler.timeout:g} s is more than its ttr of {settings.ttr:g} s, "
                "so it would never be reached; lower it or raise ttr"
            )
    for name, pool in pools.items():
        _check_pool(f"{path}: pools.{name}", name, pool)
    for host in http.allow_private:
        _check_host(f"{path}: http.allow_private", host)


def _check_classes(
    path: str, defaults: JobDefaults, classes: Mapping[str, ClassConfig], pools: Mapping[str, PoolConfig]
) -> None:
    named: dict[str, str] = {}
    for name, table in classes.items():
        where = f"{path}classes.{name}"
        if not table.types:
            raise ConfigError(f"{where}: has no types; name its job types, as types = ['image.*']")
        for text in table.types:
            _check_type(f"{where}.types", text)
            other = named.setdefault(text, name)
            if other != name:
                raise ConfigError(
                    f"{where}.types: {text!r} is in classes.{other} as well; remove it from one of them"
                )
        _check_pool_named(where, table.pool, pools)
        check_coherent(path, [(f"classes.{name}", table)], table.over(defaults))


def check_coherent(path: str, chain: Sequence[tuple[str, JobSettings]], settings: JobDefaults) -> None:
    """Refuse resolved settings that contradict each other.

    Args:
        path: what messages begin with.
        chain: the tables they come from before the defaults, the first goes before the others.
        settings: what they come to.
    """

    def where(setting: str) -> str:
        """The table a setting comes from, and the setting."""
        table = next((name for name, table in chain if setting in table.given()), "defaults")
        return f"{path}{table}.{setting}"

    if settings.max_runtime and not settings.keep_alive:
        raise ConfigError(
            f"{where('max_runtime')}: an attempt runs longer than its ttr only with keep_alive; add "
            "keep_alive = true, or remove max_runtime"
        )
    if settings.max_runtime and settings.max_runtime < settings.ttr:
        raise ConfigError(
            f"{where('max_runtime')}: {settings.max_runtime:g} s is less than the ttr of {settings.ttr:g} s; "
            "raise it or lower ttr"
        )
    if settings.retry.base > settings.retry.cap:
        raise ConfigError(
            f"{where('retry')}.base: {settings.retry.base:g} s is more than retry.cap "
            f"({settings.retry.cap:g} s), the longest wait; raise cap or lower base"
        )


def _check_type(where: str, type_: str) -> None:
    if not 1 <= len(type_.encode()) <= MAX_TYPE_BYTES:
        raise ConfigError(f"{where}: a job type has 1 to {MAX_TYPE_BYTES} bytes")


def _check_handler(where: str, handler: HandlerConfig, pools: Mapping[str, PoolConfig]) -> None:
    if sum(way is not UNSET for way in (handler.python, handler.command, handler.http)) != 1:
        raise ConfigError(f"{where}: give exactly one of python, command and http")
    if handler.python is not UNSET and not re.fullmatch(r"[\w.]+:[\w.]+", handler.python):
        raise ConfigError(f"{where}.python: {handler.python!r} is not of the form pkg.mod:callable")
    if handler.http is not UNSET:
        _check_url(f"{where}.http", handler.http)
        if handler.secret is not UNSET and handler.secret_file is not UNSET:
            raise ConfigError(f"{where}: give one of secret and secret_file")
        if handler.secret == "":
            raise ConfigError(
                f"{where}.secret: is empty; give a key, or remove it to send without a signature"
            )
    else:
        for setting in ("secret", "secret_file", "timeout"):
            if getattr(handler, setting) is not UNSET:
                raise ConfigError(f"{where}.{setting}: goes with http only; remove it")
    _check_pool_named(where, handler.pool, pools)


def _check_url(where: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ConfigError(f"{where}: {url!r} is no URL of the form https://HOST/PATH")


def _check_pool_named(where: str, pool: str | UnsetType, pools: Mapping[str, PoolConfig]) -> None:
    if pool is not UNSET and pool != DEFAULT_POOL and pool not in pools:
        hint = suggestion(pool, pools) or f"add [pools.{pool}]"
        raise ConfigError(f"{where}.pool: there is no pool {pool!r}; {hint}")


def suggestion(name: str, known: Collection[str]) -> str:
    """``did you mean 'X'?``, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else ""


def _check_pool(where: str, name: str, pool: PoolConfig) -> None:
    if name == BUILTIN_POOL:
        raise ConfigError(f"{where}: this name is that of the server's own handlers; choose another")
    if 0 < pool.memory < _BARE_PROCESS:
        raise ConfigError(
            f"{where}.memory: a worker process takes more than {pool.memory} bytes before it runs anything; "
            f"give at least {_BARE_PROCESS}, or 0 for no limit"
        )
    for key, value in pool.env.items():
        if not re.fullmatch(r"[^=\0]+", key) or "\0" in value:
            raise ConfigError(f"{where}.env: {key!r} can't be the name and value of a variable")


def _check_host(where: str, host: str) -> None:
    try:
        ipaddress.ip_network(host, strict=False)
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", host) or re.fullmatch(
            r"[\d.]+", host
        ):
            raise ConfigError(f"{where}: {host!r} is no host name, address or network (10.0.0.0/8)") from None
