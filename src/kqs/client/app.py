"""``@app.job``: a function becomes a job type, and stays a function.

``data``'s members are the function's keyword arguments, converted to their annotations on both sides: before
the job is sent, so that a mistake shows where it is made, and before it runs.
"""

from __future__ import annotations

import functools
import inspect
import threading
import typing
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, overload

import msgspec

from ..core.handler import Job
from ..core.job import MAX_TYPE_BYTES, PRIOS, JobSettings, Prio, Unique
from ..core.outcome import Fail
from ..core.retry import RetryPolicy
from ..errors import ConfigError
from .blocking import Client

if typing.TYPE_CHECKING:
    from .aio import AsyncClient

#: Settings that stay with the type: a single job can't be given them.
_OF_THE_TYPE = frozenset({"keep_alive", "max_runtime"})

P = ParamSpec("P")
R = TypeVar("R")


class _Parameters(NamedTuple):
    """How a function takes a job.

    Attributes:
        job: the parameter that takes the Job, or None.
        data: Struct of the data's members.
        binary: the one parameter that takes a payload of bytes, or None.
        rest: annotation of ``**kwargs``, which take all other members, or None when there are none.
    """

    job: str | None
    data: type[msgspec.Struct]
    binary: str | None
    rest: Any


class App:
    """A set of job types and the functions that run them.

    Args:
        url: the server ``enqueue`` inserts at; None for ``KQS_URL`` or the local one.
        token: for servers that want one; None for ``KQS_TOKEN``.

    Attributes:
        jobs: the declared jobs, by type.
    """

    def __init__(self, url: str | None = None, *, token: str | None = None) -> None:
        self.jobs: dict[str, JobFunction[Any, Any]] = {}
        self._url = url
        self._token = token
        self._client: Client | None = None

    @overload
    def job(self, type: Callable[P, R]) -> JobFunction[P, R]: ...

    @overload
    def job(
        self,
        type: str | None = None,
        *,
        prio: Prio = ...,
        ttr: float = ...,
        max_attempts: int = ...,
        retry: RetryPolicy | Mapping[str, Any] = ...,
        expires: float = ...,
        result_ttl: float = ...,
        keep_alive: bool = ...,
        max_runtime: float = ...,
    ) -> Callable[[Callable[P, R]], JobFunction[P, R]]: ...

    def job(
        self,
        type: str | Callable[P, R] | None = None,
        *,
        prio: Prio | None = None,
        ttr: float | None = None,
        max_attempts: int | None = None,
        retry: RetryPolicy | Mapping[str, Any] | None = None,
        expires: float | None = None,
        result_ttl: float | None = None,
        keep_alive: bool | None = None,
        max_runtime: float | None = None,
    ) -> JobFunction[P, R] | Callable[[Callable[P, R]], JobFunction[P, R]]:
        """Declare a job: ``@app.job("image.thumbnail", ttr=60)``.

        What is not given comes from the type's class and the defaults of the server.

        Args:
            type: the job type, 1..197 bytes; the function's name when left out.
            prio: urgent, high, normal, low or bulk.
            ttr: seconds an attempt may take.
            max_attempts: attempts after which it is buried; 0 for no limit.
            retry: how long to wait between attempts.
            expires: seconds after its insert at which a job that did not run is buried; 0 for never.
            result_ttl: seconds what the function returned is kept; 0 keeps nothing.
            keep_alive: whether an attempt that is still running at the end of its ttr gets another one.
            max_runtime: seconds after which an attempt with ``keep_alive`` is killed all the same; 0 for no
                limit.

        Raises:
            ConfigError: a setting is wrong, or the type is declared already.
        """
        if callable(type):
            return self.job()(type)
        options = {
            "prio": prio,
            "ttr": ttr,
            "max_attempts": max_attempts,
            "retry": retry,
            "expires": expires,
            "result_ttl": result_ttl,
            "keep_alive": keep_alive,
            "max_runtime": max_runtime,
        }
        given = {name: value for name, value in options.items() if value is not None}
        try:
            # Through builtins, so that a RetryPolicy made by hand is checked too.
            settings = msgspec.convert(msgspec.to_builtins(given), JobSettings)
        except msgspec.ValidationError as error:
            hint = f"; prio is one of {', '.join(PRIOS)}" if "$.prio" in str(error) else ""
            raise ConfigError(f"job {type!r}: {error}{hint}") from None

        def declare(function: Callable[P, R]) -> JobFunction[P, R]:
            name = function.__name__ if type is None else type
            if not 1 <= len(name.encode()) <= MAX_TYPE_BYTES:
                raise ConfigError(f"job type {name!r} must have 1 to {MAX_TYPE_BYTES} bytes")
            if name in self.jobs:
                raise ConfigError(f"job type {name!r} is declared twice")
            made = JobFunction(self, name, function, settings)
            self.jobs[name] = made
            return made

        return declare

    @property
    def client(self) -> Client:
        """The client ``enqueue`` uses."""
        if self._client is None:
            self._client = Client(self._url, token=self._token)
        return self._client

    def async_client(self) -> AsyncClient:
        """A new asyncio client for the same server."""
        from .aio import AsyncClient

        return AsyncClient(self._url, token=self._token)


class JobFunction(Generic[P, R]):
    """A declared job: calling it calls the function, here and now.

    Attributes:
        type: the job type.
        settings: what the type's jobs get that do not say; what is not given, the server knows.
    """

    def __init__(self, app: App, type: str, function: Callable[P, R], settings: JobSettings) -> None:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                raise ConfigError(f"job {type!r}: parameter {name!r} can't be given by name")
        functools.update_wrapper(self, function)
        self.type = type
        self.settings = settings
        self._app = app
        self._function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<JobFunction {self.type!r}>"

    def enqueue(self, **data: Any) -> str:
        """Insert a job with these arguments; returns its id.

        Raises:
            TypeError: the arguments do not fit the function; names the field.
            CallError, ConnectionFailed: see :meth:`kqs.Client.call`.
        """
        return self.using().enqueue(**data)

    async def enqueue_async(self, **data: Any) -> str:
        """:meth:`enqueue` for asyncio."""
        return await self.using().enqueue_async(**data)

    def job(self, **data: Any) -> dict[str, Any]:
        """A job with these arguments, not inserted: for ``Client.insert_many`` and ``kqs.postgres.insert``.

        Raises:
            TypeError: the arguments do not fit the function; names the field.
        """
        return self.using().job(**data)

    def using(
        self,
        *,
        prio: Prio | None = None,
        delay: float | None = None,
        ttr: float | None = None,
        max_attempts: int | None = None,
        fair: str | None = None,
        unique: str | Unique | Mapping[str, str] | None = None,
    ) -> Prepared:
        """The same job with other settings: ``thumbnail.using(prio="high").enqueue(path=..)``.

        Args:
            prio: urgent, high, normal, low or bulk.
            delay: seconds before it may run.
            ttr: seconds an attempt may take.
            max_attempts: attempts after which it is buried; 0 for no limit.
            fair: fairness key: whose part of the worker time it takes.
            unique: a key of which only one of these jobs may stand, or ``{"key": .., "scope": "queued"}``;
                ``enqueue`` then returns the id of the one that stands.
        """
        options = {name: value for name, value in self.settings.given().items() if name not in _OF_THE_TYPE}
        chosen: dict[str, Any] = {
            "prio": prio,
            "delay": delay,
            "ttr": ttr,
            "max_attempts": max_attempts,
            "fair": fair,
            "unique": unique,
        }
        options |= {name: value for name, value in chosen.items() if value is not None}
        return Prepared(self._app, self, options)

    # -- arguments ------------------------------------------------------------------------------

    @functools.cached_property
    def _parameters(self) -> _Parameters:
        job: str | None = None
        rest: Any = None
        fields: list[Any] = []
        try:
            hints = typing.get_type_hints(self._function, include_extras=True)
        except NameError as error:
            raise ConfigError(f"job {self.type!r}: an annotation can't be resolved: {error}") from None
        for name, parameter in inspect.signature(self._function).parameters.items():
            hint = hints.get(name, Any)
            if parameter.kind is parameter.VAR_KEYWORD:
                rest = hint
            elif hint is Job:
                job = name
            elif parameter.default is parameter.empty:
                fields.append((name, hint))
            else:
                fields.append((name, hint, msgspec.field(default_factory=_constant(parameter.default))))
        only = rest is None and len(fields) == 1 and fields[0][1] is bytes
        struct = msgspec.defstruct(
            f"{self.type} data", fields, forbid_unknown_fields=rest is None, kw_only=True
        )
        _introduce(struct)
        _introduce(rest)
        return _Parameters(job, struct, fields[0][0] if only else None, rest)

    def check(self) -> None:
        """Resolve the function's annotations now rather than when it runs.

        Raises:
            ConfigError: one can't be resolved.
        """
        _ = self._parameters

    @property
    def binary(self) -> str | None:
        """The parameter that takes a payload of bytes, where it is the only one; None otherwise."""
        return self._parameters.binary

    def arguments(self, data: Any) -> dict[str, Any]:
        """The keyword arguments for a payload.

        Args:
            data: a dict of the members, or bytes for a function with one ``bytes`` parameter.

        Raises:
            TypeError: it does not fit; the message names the field.
            ConfigError: an annotation of the function can't be resolved.
        """
        parameters = self._parameters
        if isinstance(data, bytes):
            if parameters.binary is None:
                raise TypeError(f"{self.type}: the payload is bytes, and no single parameter takes bytes")
            return {parameters.binary: data}
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise TypeError(f"{self.type}: data must be an object, its members are the arguments")
        try:
            made = msgspec.convert(data, parameters.data, str_keys=True)
        except msgspec.ValidationError as error:
            raise TypeError(f"{self.type}: {error}") from None
        arguments = {name: getattr(made, name) for name in parameters.data.__struct_fields__}
        if parameters.rest is not None:
            for name in data.keys() - arguments.keys():
                arguments[name] = self._one_of_the_rest(name, data[name])
        return arguments

    def _one_of_the_rest(self, name: str, value: Any) -> Any:
        """A member that no parameter is named for, converted to the annotation of ``**kwargs``."""
        if name == self._parameters.job:
            raise TypeError(f"{self.type}: {name!r} is the job itself, no data")
        try:
            return msgspec.convert(value, self._parameters.rest, str_keys=True)
        except msgspec.ValidationError as error:
            raise TypeError(f"{self.type}: {name}: {error}") from None

    def run(self, job: Job) -> Any:
        """Run the function for a job (a coroutine when it is async).

        Raises:
            Fail: the payload does not fit the function: running it again would not help.
        """
        try:
            arguments = self.arguments(job.data)
        except TypeError as error:
            raise Fail(str(error)) from None
        if self._parameters.job is not None:
            arguments[self._parameters.job] = job
        return self._function(**arguments)  # type: ignore[call-arg]


class Prepared:
    """A job with its settings chosen; made by :meth:`JobFunction.using`."""

    def __init__(self, app: App, function: JobFunction[Any, Any], options: dict[str, Any]) -> None:
        self._app = app
        self._function = function
        self._options = options

    def _payload(self, data: dict[str, Any]) -> Any:
        """What travels: checked against the function, bytes alone as bytes."""
        if len(data) == 1:
            ((name, value),) = data.items()
            if isinstance(value, bytes | bytearray | memoryview) and name == self._function.binary:
                return bytes(value)
        # Through JSON, as it will travel: it has no NaN, no tuples, no keys but strings.
        plain = msgspec.json.decode(msgspec.json.encode(data))
        self._function.arguments(plain)
        return plain

    def job(self, **data: Any) -> dict[str, Any]:
        """See :meth:`JobFunction.job`."""
        return {"type": self._function.type, "data": self._payload(data), **self._options}

    def enqueue(self, **data: Any) -> str:
        """See :meth:`JobFunction.enqueue`."""
        return self._app.client.insert(self._function.type, self._payload(data), **self._options)

    async def enqueue_async(self, **data: Any) -> str:
        """See :meth:`JobFunction.enqueue_async`."""
        payload = self._payload(data)
        async with self._app.async_client() as client:
            return await client.insert(self._function.type, payload, **self._options)


def _introduce(kind: Any) -> None:
    """Show msgspec a type, one thread at a time: it may crash when two threads meet a Struct first."""
    with _introducing:
        try:
            msgspec.convert(None, kind)
        except (msgspec.ValidationError, TypeError):
            pass  # of no interest here, and told when there is data


_introducing = threading.Lock()


def _constant(value: Any) -> Callable[[], Any]:
    """A default_factory that always gives the same value: a parameter's default, as Python has it."""
    return lambda: value
