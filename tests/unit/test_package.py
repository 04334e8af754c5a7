"""The package as a whole: what it shows, what importing it pulls in, and that every room has its tests."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import kqs
import kqs.client

SOURCE = Path(kqs.__file__).parent
UNIT = Path(__file__).parent


def fresh(program: str) -> str:
    """The output of a program in an interpreter of its own, where any warning is an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["kqs", "kqs.client"])
def test_importing_the_client_does_not_pull_the_server_in(name: str) -> None:
    loaded = set(json.loads(fresh(f"import {name}, sys, json; print(json.dumps(sorted(sys.modules)))")))
    assert f"{name}" in loaded
    rooms = {module.split(".")[1] for module in loaded if module.startswith("kqs.")}
    assert rooms == {"client", "core", "errors"}
    assert not loaded & {"asyncio", "click", "rich", "uvloop", "psutil", "structlog", "json5"}


def test_every_module_can_be_imported() -> None:
    modules = json.loads(
        fresh(
            "import importlib, json, pkgutil, kqs\n"
            "names = [module.name for module in pkgutil.walk_packages(kqs.__path__, 'kqs.')]\n"
            "for name in names:\n"
            "    if not name.endswith('__main__'):\n"
            "        importlib.import_module(name)\n"
            "print(json.dumps(names))"
        )
    )
    assert {"kqs.core.wire", "kqs.service.app", "kqs.cli.main"} <= set(modules)


@pytest.mark.parametrize("module", [kqs, kqs.client], ids=lambda module: module.__name__)
def test_public_names_are_exactly_all(module: types.ModuleType) -> None:
    shown = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    } | {"AsyncClient"}  # imported when it is asked for
    assert shown == set(module.__all__)
    assert len(module.__all__) == len(set(module.__all__))


def test_the_public_names() -> None:
    """They may grow; taking one away breaks programs."""
    assert set(kqs.__all__) == {"Again", "App", "AsyncClient", "Client", "Fail", "Job"}
    assert {name: getattr(kqs, name).__module__ for name in kqs.__all__} == {
        "Again": "kqs.core.outcome",
        "App": "kqs.client.app",
        "AsyncClient": "kqs.client.aio",
        "Client": "kqs.client.blocking",
        "Fail": "kqs.core.outcome",
        "Job": "kqs.core.handler",
    }


@pytest.mark.parametrize("room", ["core", "client"])
def test_every_source_file_has_its_test_file(room: str) -> None:
    sources = {path.stem for path in (SOURCE / room).glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in (UNIT / room).glob("test_*.py")}
    assert sources <= tests
