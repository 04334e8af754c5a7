"""Settings: ``kqs.toml``, typed. Unknown keys and incoherent values are refused at start.

docs/reference/config.md is generated from this file, so every attribute has its sentence here.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from ..core.calls import Role
from ..errors import ConfigError
from . import crons, jobtypes
from .crons import CronConfig
from .engines import BeanstalkdConfig, EngineConfig, PostgresConfig
from .jobtypes import ClassConfig, DefaultsConfig, HandlerConfig, HttpConfig, PoolConfig
from .shares import FairConfig, SchedulerConfig

Share = Annotated[float, Meta(ge=0, le=1)]


class _Table(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all tables of the file."""


class ServerConfig(_Table, frozen=True):
    """Where the server keeps its data and listens.

    Attributes:
        data: the data directory.
        listen: ``HOST:PORT`` of the qrpc port; an address other than loopback is refused unless there are
            tokens and TLS, or ``--insecure``.
        name: the server's name, as shown.
    """

    data: str = "./kqs-data"
    listen: str = "127.0.0.1:14151"
    name: str = "kqs"


class TlsConfig(_Table, frozen=True):
    """TLS on the qrpc port. The files are PEM, and read again on SIGHUP.

    Attributes:
        cert: the server's certificate, followed by those between it and its root; empty for no TLS.
        key: its private key, not encrypted; empty when it is in the file of ``cert``.
        client_ca: roots of client certificates; a client without one is not let in then. Empty for none.
    """

    cert: str = ""
    key: str = ""
    client_ca: str = ""


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
        threshold: payloads above this many bytes go to the bulk store; less where the engine takes less.
        store: where new ones go: ``files`` in the data directory, ``mongo`` or ``objects``. Those of before
            are still read from any store that is configured here.
        shared: whether every server that uses the same engine sees the files under its own data directory. An
            engine other than the embedded one is refused with ``files`` without it.
        mongo: ``mongodb://`` URL; the payloads are in its database, or in ``kqs``.
        objects: ``s3://BUCKET/PREFIX``, ``gs://BUCKET/PREFIX`` or ``az://CONTAINER/PREFIX``.
        options: of the object store, by obstore's names (``endpoint``, ``region``, ..); what is not given,
            credentials too, comes from the environment, as for the provider's own tools.
        timeout: seconds an operation of ``mongo`` or ``objects`` may take before the store counts as away.
    """

    threshold: Annotated[int, Meta(ge=0, le=1 << 30)] = 65536
    store: Literal["files", "mongo", "objects"] = "files"
    shared: bool = False
    mongo: str = ""
    objects: str = ""
    options: dict[str, str] = {}
    timeout: Annotated[float, Meta(gt=0, le=300)] = 10.0


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


class TokenConfig(_Table, frozen=True):
    """Who may call, besides the tokens made by ``kqs token``. With any token, calls without one are refused,
    from this machine too.

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
    tls: TlsConfig = TlsConfig()
    limits: LimitsConfig = LimitsConfig()
    engine: EngineConfig = EngineConfig()
    postgres: PostgresConfig = PostgresConfig()
    beanstalkd: BeanstalkdConfig = BeanstalkdConfig()
    journal: JournalConfig = JournalConfig()
    bulk: BulkConfig = BulkConfig()
    call_log: CallLogConfig = CallLogConfig()
    health: HealthConfig = HealthConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    fair: dict[str, FairConfig] = {}
    defaults: DefaultsConfig = DefaultsConfig()
    classes: dict[str, ClassConfig] = {}
    handlers: dict[str, HandlerConfig] = {}
    pools: dict[str, PoolConfig] = {}
    http: HttpConfig = HttpConfig()
    cron: dict[str, CronConfig] = {}
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
    tables = (config.defaults, config.classes, config.handlers, config.pools, config.http, config.fair)
    jobtypes.check(path, *tables)
    crons.check(f"{path}: ", config.cron, config.bulk.threshold)
    if config.journal.payload_window > config.journal.memory_limit // 2:
        raise ConfigError(
            f"{path}: journal.payload_window must be at most half of journal.memory_limit "
            f"({config.journal.memory_limit} bytes)"
        )
    if config.bulk.store != "files" and not getattr(config.bulk, config.bulk.store):
        raise ConfigError(
            f"{path}: bulk.{config.bulk.store} is missing: the URL of the store bulk.store names"
        )
    if config.bulk.threshold > config.limits.line:
        raise ConfigError(f"{path}: bulk.threshold is above limits.line, so it could never be reached")
    if not config.tls.cert and (config.tls.key or config.tls.client_ca):
        raise ConfigError(f"{path}: tls.cert is missing; without it nothing is encrypted")
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
        close = difflib.get_close_matches(unknown[1], _keys_of(setting), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        table = f"[{setting}] has" if setting else "there is"
        return f"{table} an unknown key {unknown[1]!r}{hint}"
    return f"{setting or 'the file'}: {text[:1].lower()}{text[1:]}"


def _keys_of(setting: str) -> tuple[str, ...]:
    """The keys of the table at this place of the file."""
    table: type[Struct] = Config
    for name in re.findall(r"[a-z_]+", setting):
        hint = get_type_hints(table)[name]
        parts = (part for part in (hint, *get_args(hint)) if isinstance(part, type))
        table = next(part for part in parts if issubclass(part, Struct))
    return table.__struct_fields__


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
