"""The engines: which one, and where its servers are."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

EngineKind = Literal["embedded", "postgres", "beanstalkd"]


class EngineConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where the jobs are kept.

    Attributes:
        kind: ``embedded`` (in the data directory, nothing else to run), ``postgres`` (see ``[postgres]``) or
            ``beanstalkd`` (see ``[beanstalkd]``).
    """

    kind: EngineKind = "embedded"


class BeanstalkdConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The beanstalkd servers of ``engine.kind = "beanstalkd"``.

    Attributes:
        servers: ``HOST:PORT`` of each; ``HOST:PORT*WEIGHT`` for one that gets WEIGHT times as many jobs.
        connect_timeout: seconds to reach a server before it counts as down.
        silence: seconds a server that was asked may say nothing before its connections are given up, with
            what is reserved on them.
        unsafe: start although a server's binlog is off, so that what it holds is lost when it ends.
    """

    servers: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)] = ("127.0.0.1:11300",)
    connect_timeout: Annotated[float, Meta(gt=0, le=300)] = 3.0
    silence: Annotated[float, Meta(gt=0, le=300)] = 10.0
    unsafe: bool = False


class PostgresConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The PostgreSQL database of ``engine.kind = "postgres"``.

    Attributes:
        url: as libpq takes it: ``postgresql://USER@HOST:PORT/DATABASE`` or ``host=.. dbname=..``; a password
            is better in ``~/.pgpass`` or ``PGPASSWORD``.
        schema: where the tables are; ``kqs engine migrate`` makes them.
        writers: connections that insert and settle; each commits what came while the others did.
        leasers: connections that hand out jobs.
        connect_timeout: seconds to reach the server, and to wait for a free connection.
        accept: when an insert is answered: ``engine`` after PostgreSQL's commit, or ``journal`` as soon as
            the job is on this machine's disk, so that inserts go on while PostgreSQL is away.
        unsafe: start although the server's settings may lose what it confirmed.
    """

    url: str = "postgresql:///kqs"
    schema: Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] = "kqs"
    writers: Annotated[int, Meta(ge=1, le=64)] = 4
    leasers: Annotated[int, Meta(ge=1, le=64)] = 2
    connect_timeout: Annotated[float, Meta(gt=0, le=300)] = 5.0
    accept: Literal["engine", "journal"] = "engine"
    unsafe: bool = False
