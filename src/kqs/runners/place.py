"""Where a worker process runs: as which user, in which directory, with which environment and niceness."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable

from msgspec import Struct

from ..errors import ConfigError
from .spec import WorkerSpec


class Account(Struct, frozen=True):
    """A user of this machine, looked up before the fork: the user database must not be read after it.

    Attributes:
        uid, gid, groups: what a process of the user has.
        home: home directory.
    """

    uid: int
    gid: int
    groups: list[int]
    home: str


def account(spec: WorkerSpec) -> Account | None:
    """The user a worker changes to; None when it stays the server's.

    Raises:
        ConfigError: there is no such user, or the server may not change to another.
    """
    if spec.user is None:
        return None
    where = f"pools.{spec.pool}.user"
    try:
        found = pwd.getpwnam(spec.user)
    except (KeyError, ValueError):
        raise ConfigError(f"{where}: there is no user {spec.user!r}; create it, or name another") from None
    if found.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise ConfigError(
            f"{where}: only a server that runs as root can run handlers as {spec.user!r}; start it as "
            "root, or remove user"
        )
    groups = os.getgrouplist(spec.user, found.pw_gid)
    return Account(found.pw_uid, found.pw_gid, groups, found.pw_dir)


def check(spec: WorkerSpec) -> None:
    """Refuse a worker that cannot run where it should.

    Raises:
        ConfigError: names the setting and the fix.
    """
    account(spec)
    where = f"pools.{spec.pool}"
    if spec.directory is not None and not os.path.isdir(spec.directory):
        raise ConfigError(
            f"{where}.directory: {spec.directory!r} is no directory; create it, or name another"
        )
    if spec.nice is not None and os.geteuid() != 0 and spec.nice < os.getpriority(os.PRIO_PROCESS, 0):
        raise ConfigError(
            f"{where}.nice: only a server that runs as root can favour its workers with {spec.nice}; "
            "raise it, or start the server as root"
        )


def environment(spec: WorkerSpec) -> dict[str, str]:
    """The environment of a worker's process."""
    own = account(spec)
    user = {} if own is None else {"HOME": own.home, "USER": spec.user or "", "LOGNAME": spec.user or ""}
    return {**os.environ, **user, **spec.env}


def entering(spec: WorkerSpec) -> Callable[[], None] | None:
    """What the new process does between fork and exec, so that nothing of the user's runs with more rights.

    Only system calls are made then: everything is looked up now.
    """
    own, nice = account(spec), spec.nice
    if own is None and nice is None:
        return None

    def enter() -> None:
        if nice is not None:
            os.setpriority(os.PRIO_PROCESS, 0, nice)
        if own is not None:
            os.setgroups(own.groups)
            os.setgid(own.gid)
            os.setuid(own.uid)

    return enter
