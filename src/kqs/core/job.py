"""Jobs as callers give them: decoding, defaults, limits.

The caller's ``data`` is never decoded here: it stays the bytes that came and is spliced into the journal and
into replies (qrpc's own server would decode and encode it again).
"""

from __future__ import annotations

import binascii
import fnmatch
import re
from base64 import b64decode
from collections.abc import Iterable
from math import ceil
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ..errors import BadRequest, TooLarge
from .arguments import explain
from .retry import RetryPolicy, Seconds
from .wire import copy_raw

Prio = Literal["urgent", "high", "normal", "low", "bulk"]
PRIOS: Final[tuple[Prio, ...]] = ("urgent", "high", "normal", "low", "bulk")
PRIO_NUMBER: Final[dict[str, int]] = {name: number for number, name in enumerate(PRIOS)}

MAX_TYPE_BYTES: Final = 197
MAX_BATCH: Final = 10_000
MAX_TTR: Final = 2_592_000  # 30 days; fits the journal's 32-bit milliseconds
DEFAULT_TTR: Final = 30.0
SECOND: Final = 1_000_000  # all times inside are integer microseconds

NULL: Final = Raw(b"null")

Ttr = Annotated[float, Meta(gt=0, le=MAX_TTR)]
Key = Annotated[str, Meta(min_length=1, max_length=255)]
MaxAttempts = Annotated[int, Meta(ge=0, le=1_000_000)]
UniqueScope = Literal["queued", "queued_or_running"]
DEFAULT_SCOPE: Final[UniqueScope] = "queued_or_running"
Expires = Annotated[float, Meta(gt=0, le=3_153_600_000)]


class Unique(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A job of which only one may stand at a time, among those of its type.

    Attributes:
        key: what the one is told by.
        scope: how long it stands: while it waits to run (``queued``), or until it is done or buried.
    """

    key: Key
    scope: UniqueScope = DEFAULT_SCOPE


class JobFields(Struct, gc=False, forbid_unknown_fields=True):
    """A job exactly as it stands in an ``insert`` (CALLS: "Job, as inserted")."""

    type: Annotated[str, Meta(min_length=1)]
    data: Raw = NULL
    data64: str | UnsetType = UNSET
    prio: Prio | UnsetType = UNSET
    delay: Seconds = 0
    ttr: Ttr | UnsetType = UNSET
    key: Key | UnsetType = UNSET
    unique: Key | Unique | UnsetType = UNSET
    fair: Key | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    retry: RetryPolicy | UnsetType = UNSET
    expires: Expires | UnsetType = UNSET
    result_ttl: Seconds | UnsetType = UNSET


class JobDefaults(Struct, frozen=True):
    """What a job type's settings give to jobs that do not say.

    Attributes:
        prio: urgent, high, normal, low or bulk.
        ttr: seconds an attempt may take.
        max_attempts: attempts after which a job is buried; 0 for no limit.
        retry: how long to wait between attempts.
        expires: seconds after its insert at which a job that did not run is buried; 0 for never.
        result_ttl: seconds what a handler returned is kept; 0 keeps nothing.
        keep_alive: whether an attempt that is still running at the end of its ttr gets another one instead of
            being killed.
        max_runtime: seconds after which an attempt with ``keep_alive`` is killed all the same; 0 for no
            limit.
    """

    prio: Prio = "normal"
    ttr: Ttr = DEFAULT_TTR
    max_attempts: MaxAttempts = 0
    retry: RetryPolicy = RetryPolicy()
    expires: Seconds = 0.0
    result_ttl: Seconds = 0.0
    keep_alive: bool = False
    max_runtime: Seconds = 0.0


class JobSettings(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some of the settings of :class:`JobDefaults`, as a table or a decorator gives them; same names.

    Attributes:
        prio, ttr, max_attempts, retry, expires, result_ttl, keep_alive, max_runtime: for jobs that do not
            say.
    """

    prio: Prio | UnsetType = UNSET
    ttr: Ttr | UnsetType = UNSET
    max_attempts: MaxAttempts | UnsetType = UNSET
    retry: RetryPolicy | UnsetType = UNSET
    expires: Seconds | UnsetType = UNSET
    result_ttl: Seconds | UnsetType = UNSET
    keep_alive: bool | UnsetType = UNSET
    max_runtime: Seconds | UnsetType = UNSET

    def given(self) -> dict[str, Any]:
        """The settings that are given, by name."""
        pairs = ((name, getattr(self, name)) for name in JobDefaults.__struct_fields__)
        return {name: value for name, value in pairs if value is not UNSET}

    def over(self, base: JobDefaults) -> JobDefaults:
        """These settings, and those of ``base`` for what is not given."""
        plain = {name: getattr(base, name) for name in JobDefaults.__struct_fields__}
        return JobDefaults(**plain | self.given())


class BulkRef(Struct, frozen=True):
    """Where an oversize payload lies.

    Attributes:
        name: the store's name for it.
        sha256: hex digest of the payload.
        size: bytes.
    """

    name: str
    sha256: str
    size: int


class JobOptions(Struct, frozen=True, omit_defaults=True):
    """The settings few jobs have; journaled as JSON beside the fixed fields, absent when all are default.

    Attributes:
        expires: microseconds after its insert at which it is buried unrun; 0 for never.
        result_ttl: microseconds its result is kept; 0 keeps none.
        fair: fairness key: its lane is that of its type and this.
        unique: only one such job may stand at a time.
    """

    max_attempts: int = 0
    retry: RetryPolicy | None = None
    bulk: BulkRef | None = None
    key: str | None = None
    expires: int = 0
    result_ttl: int = 0
    fair: str | None = None
    unique: Unique | None = None


NO_OPTIONS: Final = JobOptions()


class NewJob(Struct, gc=False):
    """A valid job, every setting resolved, ready for an engine.

    Attributes:
        type: handler routing, 1..197 bytes.
        data: the payload: JSON text, or any bytes when ``binary``.
        binary: whether ``data`` is bytes rather than JSON.
        prio: 0 (urgent) .. 4 (bulk).
        delay: microseconds before it may run.
        ttr: milliseconds a lease lasts.
        options: the rare settings.
    """

    type: str
    data: bytes
    binary: bool
    prio: int
    delay: int
    ttr: int
    options: JobOptions


#: A type this long may be too long in UTF-8.
_MAX_TYPE_CHARACTERS: Final = MAX_TYPE_BYTES // 4

#: What may follow the first brace of a Node Buffer's JSON: one of its two keys, or space. Most other data is
#: told apart by it; looking through all of it for ``"Buffer"`` would take longer than all other checks.
_BUFFER_STARTS: Final = frozenset({b'"t', b'"d'} | {bytes((s, c)) for s in b" \t\r\n" for c in b' \t\r\n"'})

_job = msgspec.json.Decoder(JobFields)
_jobs = msgspec.json.Decoder(Annotated[list[JobFields], Meta(min_length=1, max_length=MAX_BATCH)])
_raw_list = msgspec.json.Decoder(list[Raw])
#: What an engine must be able to do before a field may be given (its capability, and what it is for).
NEEDS: Final[dict[str, str]] = {
    "key": "idempotency",
    "unique": "unique",
    "fair": "fair_share",
    "expires": "expiry",
    "result_ttl": "results",
}


class TypeSettings(Struct, frozen=True):
    """:class:`JobDefaults` as :class:`NewJob` has them, worked out once.

    Attributes:
        defaults: what they were made from.
        prio: its number.
        ttr: milliseconds.
        options: :data:`NO_OPTIONS` itself when there is nothing in them.
    """

    defaults: JobDefaults
    prio: int
    ttr: int
    options: JobOptions


#: Types without an entry of their own that are remembered once their globs were tried: anybody who may insert
#: can make up types, and they must not fill the memory.
_REMEMBERED: Final = 10_000


class DefaultsTable:
    """Resolves the settings of a type; one dictionary look-up.

    Args:
        by_type: settings of the types that have some of their own.
        defaults: settings of all others.
        globs: settings of the others whose type matches a pattern (fnmatch, case counts), the first that
            does.
    """

    def __init__(
        self,
        by_type: dict[str, JobDefaults] | None = None,
        defaults: JobDefaults | None = None,
        globs: Iterable[tuple[str, JobDefaults]] = (),
    ) -> None:
        self._by_type = {type: self._resolve(own) for type, own in (by_type or {}).items()}
        self._others = self._resolve(defaults or JobDefaults())
        self._globs = [(re.compile(fnmatch.translate(glob)).match, self._resolve(own)) for glob, own in globs]
        self._known = dict(self._by_type)

    @staticmethod
    def _resolve(defaults: JobDefaults) -> TypeSettings:
        options = JobOptions(
            defaults.max_attempts,
            defaults.retry,
            expires=ceil(defaults.expires * SECOND),
            result_ttl=ceil(defaults.result_ttl * SECOND),
        )
        if options == JobOptions(retry=RetryPolicy()):
            options = NO_OPTIONS
        return TypeSettings(defaults, PRIO_NUMBER[defaults.prio], round(defaults.ttr * 1000) or 1, options)

    def get(self, type: str) -> TypeSettings:
        return self._known.get(type) or self._find(type)

    def _find(self, type: str) -> TypeSettings:
        if not self._globs:
            return self._others
        if len(self._known) - len(self._by_type) >= _REMEMBERED:
            self._known = dict(self._by_type)
        found = next((settings for matches, settings in self._globs if matches(type)), self._others)
        self._known[type] = found
        return found

    def all(self) -> list[TypeSettings]:
        """The settings of every type and pattern, and those of all others."""
        return [*self._by_type.values(), *(settings for _matches, settings in self._globs), self._others]


def check_count(count: int) -> None:
    """Refuse a batch of no job, or of more than 10,000.

    Raises:
        BadRequest, TooLarge: see there.
    """
    if not count:
        raise BadRequest("an array of jobs must hold at least one")
    if count > MAX_BATCH:
        raise TooLarge(
            f"a call takes at most {MAX_BATCH} jobs, this one has {count}; split it", limit=MAX_BATCH
        )


def split_batch(raw: bytes) -> list[Raw]:
    """The elements of a JSON array, undecoded.

    Raises:
        BadRequest: not an array, or an empty one.
        TooLarge: more than 10,000 jobs.
    """
    try:
        items = _raw_list.decode(raw)
    except msgspec.DecodeError as error:
        raise BadRequest(f"not an array of jobs: {error}") from None
    except RecursionError:
        raise BadRequest("array of jobs is nested too deep") from None
    check_count(len(items))
    return items


def parse_job(
    raw: Raw | bytes,
    table: DefaultsTable,
    capabilities: frozenset[str],
    *,
    index: int | None = None,
    blob: bytes | None = None,
) -> NewJob:
    """Decode and check one job.

    Args:
        raw: the JSON of the job.
        table, capabilities, index, blob: see :func:`check_job`.

    Raises:
        BadRequest, UnknownField, TooLarge, Unsupported: naming ``index`` and ``field``.
    """
    try:
        job = _job.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise explain(bytes(raw), error, JobFields, index=index, what="job") from None
    return check_job(job, table, capabilities, index, blob)


def parse_batch(raw: bytes, table: DefaultsTable, capabilities: frozenset[str]) -> list[NewJob]:
    """Decode and check an array of jobs.

    Args:
        raw: the JSON of the array.
        table, capabilities: see :func:`check_job`.

    Raises:
        BadRequest, UnknownField, TooLarge, Unsupported: naming ``index`` and ``field`` of the first bad job.
    """
    try:
        jobs = _jobs.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        items = split_batch(raw)
        return [parse_job(item, table, capabilities, index=index) for index, item in enumerate(items)]
    return [check_job(job, table, capabilities, index) for index, job in enumerate(jobs)]


def check_job(
    job: JobFields,
    table: DefaultsTable,
    capabilities: frozenset[str],
    index: int | None = None,
    blob: bytes | None = None,
) -> NewJob:
    """Check what a job's fields alone don't tell, and resolve its settings. On the hot path of ``insert``.

    Args:
        job: as decoded.
        table: settings of job types.
        capabilities: what the engine can do; a field that needs more is refused.
        index: position in a batch, named in errors.
        blob: payload that came as the call's binary part, or None.

    Raises:
        BadRequest, TooLarge, Unsupported: naming ``index`` and ``field``.
    """
    type_ = job.type
    if len(type_) > _MAX_TYPE_CHARACTERS and len(type_.encode()) > MAX_TYPE_BYTES:
        raise TooLarge(
            f"type is longer than {MAX_TYPE_BYTES} bytes", field="type", index=index, limit=MAX_TYPE_BYTES
        )
    settings = table.get(type_)
    data = copy_raw(job.data)
    binary = False
    if blob is not None or job.data64 is not UNSET:
        data = _binary_data(job, blob, index)
        binary = True
    elif data[1:3] in _BUFFER_STARTS and data.startswith(b"{") and data.find(b'"Buffer"') > 0:
        buffer = _node_buffer(data)
        if buffer is not None:
            data, binary = buffer, True
    options = settings.options
    if (
        job.max_attempts is not UNSET
        or job.retry is not UNSET
        or job.key is not UNSET
        or job.expires is not UNSET
        or job.result_ttl is not UNSET
        or job.fair is not UNSET
        or job.unique is not UNSET
    ):
        options = _own_options(job, settings)
    if (
        job.key is not UNSET
        or job.unique is not UNSET
        or job.fair is not UNSET
        or job.expires is not UNSET
        or job.result_ttl is not UNSET
    ):
        _check_capabilities(job, capabilities, index)
    delay = ceil(job.delay * SECOND) if job.delay else 0  # never early
    if delay and options.expires and options.expires <= delay:
        raise BadRequest(
            f"delay is {job.delay:g} s, but the job expires {options.expires / SECOND:g} s after its insert: "
            "it could never run; give a later expires",
            field="expires",
            index=index,
        )
    return NewJob(
        type_,
        data,
        binary,
        settings.prio if job.prio is UNSET else PRIO_NUMBER[job.prio],
        delay,
        settings.ttr if job.ttr is UNSET else round(job.ttr * 1000) or 1,
        options,
    )


def _own_options(job: JobFields, settings: TypeSettings) -> JobOptions:
    """The options of a job that says some of them itself."""
    defaults, given = settings.defaults, settings.options
    return JobOptions(
        max_attempts=defaults.max_attempts if job.max_attempts is UNSET else job.max_attempts,
        retry=defaults.retry if job.retry is UNSET else job.retry,
        key=None if job.key is UNSET else job.key,
        expires=given.expires if job.expires is UNSET else ceil(job.expires * SECOND),
        result_ttl=given.result_ttl if job.result_ttl is UNSET else ceil(job.result_ttl * SECOND),
        fair=None if job.fair is UNSET else job.fair,
        unique=None if job.unique is UNSET else _unique(job.unique),
    )


def _unique(given: str | Unique) -> Unique:
    return Unique(given) if isinstance(given, str) else given


def _binary_data(job: JobFields, blob: bytes | None, index: int | None) -> bytes:
    given = [
        name
        for name, there in (
            ("b", blob is not None),
            ("data64", job.data64 is not UNSET),
            ("data", job.data is not NULL and bytes(job.data) != b"null"),
        )
        if there
    ]
    if len(given) > 1:
        raise BadRequest(
            f"the payload is given twice: {' and '.join(given)}; give one", field=given[1], index=index
        )
    if blob is not None:
        return blob
    try:
        return b64decode(str(job.data64), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"data64 is not base64: {error}", field="data64", index=index) from None


class _NodeBuffer(Struct, forbid_unknown_fields=True, gc=False):
    type: Literal["Buffer"]
    data: list[Annotated[int, Meta(ge=0, le=255)]]


_node = msgspec.json.Decoder(_NodeBuffer)


def _node_buffer(data: bytes) -> bytes | None:
    """The bytes of a Node Buffer's JSON form, or None when it is some other object."""
    try:
        return bytes(_node.decode(data).data)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _check_capabilities(job: JobFields, capabilities: frozenset[str], index: int | None) -> None:
    from ..errors import Unsupported

    for name, capability in NEEDS.items():
        if getattr(job, name) is not UNSET and capability not in capabilities:
            raise Unsupported(
                f"{name} needs an engine with {capability}, which this one has not; leave it out",
                field=name,
                index=index,
            )
