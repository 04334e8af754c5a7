"""As whom, where and with what a worker process runs."""

from __future__ import annotations

import os
import pwd
import subprocess
from typing import Any

import pytest

from kqs.errors import ConfigError
from kqs.runners import place
from kqs.runners.spec import WorkerSpec

NOBODY = pwd.getpwnam("nobody")
#: A user that is neither root nor whoever runs this.
OTHER = "nobody" if NOBODY.pw_uid != os.geteuid() else "daemon"


def spec(**settings: Any) -> WorkerSpec:
    return WorkerSpec("kqs/p/1", "p", {}, **settings)


def said(made: WorkerSpec, *argv: str) -> str:
    """What a program prints that is started as the worker would be."""
    done = subprocess.run(argv, preexec_fn=place.entering(made), capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the user")
def test_a_user_with_its_groups_and_niceness() -> None:
    made = spec(user=OTHER, nice=-3)
    place.check(made)
    user = pwd.getpwnam(OTHER)
    assert said(made, "id", "-u") == said(made, "id", "-ru") == str(user.pw_uid)
    groups = {int(group) for group in said(made, "id", "-G").split()}
    assert groups == {user.pw_gid, *os.getgrouplist(OTHER, user.pw_gid)}
    assert said(made, "nice") == "-3"
    environment = place.environment(made)
    assert (environment["HOME"], environment["USER"], environment["LOGNAME"]) == (user.pw_dir, OTHER, OTHER)
    assert place.environment(spec(user=OTHER, env={"HOME": "/h"}))["HOME"] == "/h"


def test_nothing_to_change() -> None:
    assert place.entering(spec()) is None
    assert place.entering(spec(user=pwd.getpwuid(os.geteuid()).pw_name)) is None
    assert place.environment(spec()) == dict(os.environ)
    assert place.environment(spec(env={"A": "b"})) == {**os.environ, "A": "b"}


def test_only_root_changes_the_user_or_favours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(ConfigError, match=r"pools\.p\.user: only a server that runs as root"):
        place.check(spec(user=OTHER))
    with pytest.raises(ConfigError, match=r"pools\.p\.nice: only a server that runs as root"):
        place.check(spec(nice=os.getpriority(os.PRIO_PROCESS, 0) - 1))
    place.check(spec(nice=os.getpriority(os.PRIO_PROCESS, 0)))
