"""From a worker's settings to runners: all imports happen here, so that their errors name the handler."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..core.handler import Job
from ..errors import ConfigError
from ..ports import AsyncRunner, Runner
from .command import CommandRunner
from .python import AsyncPythonRunner, PythonRunner, is_async
from .spec import HandlerSpec, WorkerSpec


class Loaded(NamedTuple):
    """What a worker can run, and why it cannot run the rest."""

    runners: dict[str, Runner | AsyncRunner]
    errors: list[ConfigError]


def load(spec: WorkerSpec) -> Loaded:
    """The runner of each job type of a worker.

    A handler that can't be imported or found is among the errors, which name it, the reason and the line.
    """
    if spec.path is not None and spec.path not in sys.path:
        sys.path.insert(0, spec.path)
    runners: dict[str, Runner | AsyncRunner] = {}
    errors: list[ConfigError] = []
    for type_, handler in spec.handlers.items():
        try:
            runners[type_] = _runner(type_, handler, spec.env)
        except ConfigError as error:
            errors.append(error)
    try:
        for type_, function in app_jobs(spec).items():
            if spec.types and type_ not in spec.types:
                continue  # another pool's
            if type_ in spec.handlers:
                raise ConfigError(
                    f"job type {type_!r} has a handler in the config and one in --app {spec.app}"
                )
            runners[type_] = python_runner(function, function.run)
    except ConfigError as error:
        errors.append(error)
    return Loaded(runners, errors)


def app_jobs(spec: WorkerSpec) -> dict[str, Any]:
    """The ``@app.job`` functions of the worker's app, by type; none without an app."""
    if spec.app is None:
        return {}
    app = _resolve(spec.app, f"--app {spec.app}")
    jobs = getattr(app, "jobs", None)
    if not isinstance(jobs, dict):
        raise ConfigError(f"--app {spec.app}: is a {type(app).__name__}, not a kqs.App")
    return jobs


def python_runner(function: Any, run: Callable[[Job], Any]) -> Runner | AsyncRunner:
    """The runner of a Python function.

    Args:
        function: tells whether it is asynchronous.
        run: called with the job.
    """
    return AsyncPythonRunner(run) if is_async(function) else PythonRunner(run)


def _runner(type_: str, handler: HandlerSpec, env: Mapping[str, str]) -> Runner | AsyncRunner:
    if handler.python is not None:
        where = f"handlers.{type_}: {handler.python}"
        function = _resolve(handler.python, where)
        if not callable(function):
            raise ConfigError(f"{where}: is a {type(function).__name__}, not callable")
        return python_runner(function, function)
    if handler.http is not None:
        return _http(type_, handler, handler.http)
    argv = handler.command or []
    program = shutil.which(argv[0])
    if program is None:
        raise ConfigError(f"handlers.{type_}: command {argv[0]!r} is not found or not executable")
    return CommandRunner([os.path.abspath(program), *argv[1:]], env)


def _http(type_: str, handler: HandlerSpec, url: str) -> AsyncRunner:
    from .http import HttpRunner  # its libraries take long to import, and few workers need them

    try:
        return HttpRunner(url, secret=handler.secret, timeout=handler.timeout, allow=handler.allow)
    except ConfigError as error:
        raise ConfigError(f"handlers.{type_}.http: {error}") from None


def _resolve(path: str, where: str) -> Any:
    """The object ``pkg.mod:name`` stands for."""
    module_name, _, attributes = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:  # a module may raise anything, SystemExit too
        raise ConfigError(f"{where}: cannot be imported: {_describe(error)}") from None
    for name in attributes.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{where}: {module_name} has no {attributes!r}")
        found = getattr(found, name)
    return found


def _describe(error: BaseException) -> str:
    """The exception and where it was raised, without the import machinery's frames."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return text
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename
    ]
    own = [frame for frame in frames if frame.filename != __file__]
    return f"{text} ({own[-1].filename} line {own[-1].lineno})" if own else text
