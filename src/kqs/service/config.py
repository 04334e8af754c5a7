"""Settings: ``kqs.toml``, typed. Unknown keys and incoherent values are refused at start.

docs/reference/config.md is generated from this file, so every attribute has its sentence here.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ..core.calls import Role
from ..core.job import DEFAULT_TTR, JobDefaults, MaxAttempts, Prio, Ttr
from ..core.retry import RetryPolicy
from ..errors import ConfigError

Share = Annotated[float, Meta(ge=0, le=1)]


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables of the file."""


class ServerConfig(_Table, frozen=True):
    """Where the server keeps its data and listens.

    Attributes:
        data: the data directory.
        listen: ``HOST:PORT`` of the qrpc port; an address other than loopback is refused without tokens and
            ``--insecure``.
        name: the server's name, as shown.
    """

    data: str = "./kqs-data"
    listen: str = "127.0.0.1:14151"
    name: str = "kqs"


class LimitsConfig(_Table, frozen=True):
    """What one peer may use.

    Attributes:
        line: longest line taken, bytes.
        connections: open connections; more are closed at once. The limit on open files (``ulimit -n``) may
            lower it: it is raised as far as allowed, and some 200 descriptors are kept for the server itself.
        in_flight: unanswered calls of one connection; reading stops until some are answered.
        write_timeout: seconds a peer may leave its replies untaken before it is dropped.
        unsynced: bytes of accepted jobs waiting for the disk; reading stops until they are durable.
    """

    line: Annotated[int, Meta(ge=1024, le=1 << 30)] = 16 * 1024 * 1024
    connections: Annotated[int, Meta(ge=1)] = 10_000
    in_flight: Annotated[int, Meta(ge=1)] = 10_000
    write_timeout: Annotated[float, Meta(gt=0)] = 30.0
    unsynced: Annotated[int, Meta(ge=1 << 20)] = 64 * 1024 * 1024


class JournalConfig(_Table, frozen=True):
    """The journal.

    Attributes:
        segment_size: bytes of a segment file; two are reserved ahead, one of them for a start on a full disk.
        payload_window: bytes of payloads kept in memory; others are read back from the journal.
        memory_limit: bytes of memory jobs may take, estimated; inserts get ``busy`` beyond it.
        key_window: seconds an idempotency key is remembered.
        key_cap: most idempotency keys remembered; the oldest are forgotten first.
    """

    segment_size: Annotated[int, Meta(ge=64 * 1024, le=4 << 30)] = 64 * 1024 * 1024
    payload_window: Annotated[int, Meta(ge=0)] = 64 * 1024 * 1024
    memory_limit: Annotated[int, Meta(ge=1 << 20)] = 1 << 30
    key_window: Annotated[float, Meta(ge=0, le=31_536_000)] = 86_400.0
    key_cap: Annotated[int, Meta(ge=0)] = 500_000


class BulkConfig(_Table, frozen=True):
    """Oversize payloads.

    Attributes:
        threshold: payloads above this many bytes go to the bulk store (files in the data directory).
    """

    threshold: Annotated[int, Meta(ge=0, le=1 << 30)] = 65536


class CallLogConfig(_Table, frozen=True):
    """``DATA/log/calls.jsonl``.

    Attributes:
        slow: calls that took this many seconds or more are logged.
        failed: whether calls answered with an error are logged.
        sample: share of the other calls that is logged, 0..1.
        max_bytes: size at which the file is rotated.
        keep: rotated files kept.
    """

    slow: Annotated[float, Meta(ge=0)] = 1.0
    failed: bool = True
    sample: Share = 0.0
    max_bytes: Annotated[int, Meta(ge=1024)] = 10 * 1024 * 1024
    keep: Annotated[int, Meta(ge=0, le=1000)] = 5


class HealthConfig(_Table, frozen=True):
    """When ``health`` is not ok.

    Attributes:
        stall: seconds in which an attempt must end or be renewed while there is work and a worker for it
            (longer when a running job's ttr is longer).
        disk_free: share of the data directory's file system that must stay free.
    """

    stall: Annotated[float, Meta(gt=0)] = 60.0
    disk_free: Share = 0.05


class DefaultsConfig(_Table, frozen=True):
    """What jobs get that do not say.

    Attributes:
        prio: urgent, high, normal, low or bulk.
        ttr: seconds an attempt may take.
        max_attempts: attempts after which a job is buried; 0 for no limit.
        retry: how long to wait between attempts.
    """

    prio: Prio = "normal"
    ttr: Ttr = DEFAULT_TTR
    max_attempts: MaxAttempts = 0
    retry: RetryPolicy = RetryPolicy()


class HandlerConfig(_Table, frozen=True):
    """How jobs of one type are run: exactly one of ``python`` and ``command``.

    Attributes:
        python: ``pkg.mod:callable``, called with one Job.
        command: argv, run without a shell, the payload on its stdin.
        pool: the pool that runs it.
        prio: for jobs of this type that do not say.
        ttr: for jobs of this type that do not say, seconds.
        max_attempts: for jobs of this type that do not say.
        retry: for jobs of this type that do not say.
    """

    python: str | UnsetType = UNSET
    command: Annotated[list[str], Meta(min_length=1)] | UnsetType = UNSET
    pool: str = "default"
    prio: Prio | UnsetType = UNSET
    ttr: Ttr | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    retry: RetryPolicy | UnsetType = UNSET


class PoolConfig(_Table, frozen=True):
    """Worker processes.

    Attributes:
        processes: how many; each runs one attempt at a time. 0: one for each processor.
    """

    processes: Annotated[int, Meta(ge=0, le=1024)] = 0


class TokenConfig(_Table, frozen=True):
    """Who may call. With any token set, calls without one are refused, from this machine too.

    Attributes:
        name: for people.
        role: insert, work, read or admin.
        sha256: SHA-256 of the token, 64 hex digits.
    """

    name: str
    role: Role
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Config(_Table, frozen=True):
    """The whole file."""

    server: ServerConfig = ServerConfig()
    limits: LimitsConfig = LimitsConfig()
    journal: JournalConfig = JournalConfig()
    bulk: BulkConfig = BulkConfig()
    call_log: CallLogConfig = CallLogConfig()
    health: HealthConfig = HealthConfig()
    defaults: DefaultsConfig = DefaultsConfig()
    handlers: dict[str, HandlerConfig] = {}
    pools: dict[str, PoolConfig] = {}
    tokens: list[TokenConfig] = []


def load(path: str | None) -> Config:
    """Read and check a config file (None: all defaults).

    Raises:
        ConfigError: one line: the file, the setting, what to do.
    """
    if path is None:
        return Config()
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse(text, path)


def parse(text: bytes, path: str = "kqs.toml") -> Config:
    """Check the text of a config file.

    Raises:
        ConfigError: see :func:`load`.
    """
    try:
        config = msgspec.toml.decode(text, type=Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error))}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    _check(config, path)
    return config


def _check(config: Config, path: str) -> None:
    """Refuse settings that contradict each other."""
    for type_, handler in config.handlers.items():
        where = f"{path}: handlers.{type_}"
        if (handler.python is UNSET) == (handler.command is UNSET):
            raise ConfigError(f"{where}: give exactly one of python and command")
        if not 1 <= len(type_.encode()) <= 197:
            raise ConfigError(f"{where}: a job type has 1 to 197 bytes")
        if handler.python is not UNSET and not re.fullmatch(r"[\w.]+:[\w.]+", handler.python):
            raise ConfigError(f"{where}.python: {handler.python!r} is not of the form pkg.mod:callable")
        if handler.pool != "default" and handler.pool not in config.pools:
            close = difflib.get_close_matches(handler.pool, config.pools, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"add [pools.{handler.pool}]"
            raise ConfigError(f"{where}.pool: there is no pool {handler.pool!r}; {hint}")
    if config.journal.payload_window > config.journal.memory_limit // 2:
        raise ConfigError(
            f"{path}: journal.payload_window must be at most half of journal.memory_limit "
            f"({config.journal.memory_limit} bytes)"
        )
    if config.bulk.threshold > config.limits.line:
        raise ConfigError(f"{path}: bulk.threshold is above limits.line, so it could never be reached")
    names = [token.name for token in config.tokens]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: tokens: two have the same name")
    split_address(config.server.listen, f"{path}: server.listen")


def _explain(message: str) -> str:
    """msgspec's words, with the setting first and a suggestion for an unknown key."""
    text, _, place = message.partition(" - at `$")
    setting = place.rstrip("`").lstrip(".").replace("[...]", ".*")
    unknown = re.search(r"unknown field `([^`]*)`", text)
    if unknown:
        close = difflib.get_close_matches(unknown[1], _all_keys(), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        table = f"[{setting}] has" if setting else "there is"
        return f"{table} an unknown key {unknown[1]!r}{hint}"
    return f"{setting or 'the file'}: {text[:1].lower()}{text[1:]}"


def _all_keys() -> list[str]:
    keys: list[str] = []
    todo: list[type] = [Config]
    while todo:
        table = todo.pop()
        keys.extend(table.__struct_fields__)  # type: ignore[attr-defined]
        todo.extend(tables_in(table))
    return keys


def tables_in(table: type) -> list[type]:
    """The table types that a table's settings hold, directly or in a dict or list."""
    parts = (part for hint in get_type_hints(table).values() for part in (hint, *get_args(hint)))
    return [part for part in parts if isinstance(part, type) and issubclass(part, Struct)]


def split_address(address: str, what: str) -> tuple[str, int]:
    """``HOST:PORT`` (``[::1]:PORT`` for IPv6) in two.

    Raises:
        ConfigError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{what}: {address!r} is not HOST:PORT")
    return host, int(port)


def job_defaults(config: Config, handler: HandlerConfig | None = None) -> JobDefaults:
    """What jobs of a handler's type get that do not say."""
    base = config.defaults

    def pick(name: str) -> Any:
        own = UNSET if handler is None else getattr(handler, name)
        return getattr(base, name) if own is UNSET else own

    return JobDefaults(pick("prio"), pick("ttr"), pick("max_attempts"), pick("retry"))


def processes(config: Config, pool: str) -> int:
    """How many worker processes a pool has."""
    number = config.pools.get(pool, PoolConfig()).processes
    return number or os.cpu_count() or 1
