"""Every error KQS raises, in one tree; each class has the stable code it carries on the wire.

KQSError
+-- CallError              an answer with ``e``: the wire codes of docs/reference/wire.md
|   +-- BadRequest         bad_request     the caller's argument is wrong (field, index)
|   |   +-- UnknownField   unknown_field   a member nobody reads
|   +-- TooLarge           too_large       over a limit, which is named
|   +-- Busy               busy            try again later; nothing was done
|   +-- DiskFull           disk_full       no space for new jobs; acks still work
|   +-- Unauthorized       unauthorized    no or wrong token
|   +-- Forbidden          forbidden       the role may not make this call
|   +-- NotFound           not_found       no such job
|   +-- StaleReceipt       stale_receipt   the lease is not current any more
|   +-- Unsupported        unsupported     unknown call, or the engine cannot do it
|   +-- Conflict           conflict        the state forbids it
|   +-- ShuttingDown       shutting_down   the server is leaving; nothing was done
|   +-- Internal           internal        our fault; the outcome may be unknown
+-- ConnectionFailed       client side: no server reached, or it went away mid-call
|   +-- CallTimeout        client side: no reply in time; the outcome is unknown
+-- ProtocolError          the peer does not speak qrpc v1
+-- ConfigError            settings refused at start (exit code 2)
+-- DataDirError           the data directory cannot be used (exit code 2)
|   +-- DataDirInUse       another server holds its lock
|   +-- NewerFormat        written by a newer KQS; left alone
|   +-- DamagedJournal     segment, offset and sequence of the first damage
|   +-- WouldLose          a repair would lose entries, and was not told that it may
+-- JournalFailed          a write or fsync failed: the server stops (G5)
+-- EngineAway             the engine cannot be reached now; nothing is lost by that
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class KQSError(Exception):
    """Root of all errors raised by KQS."""


class CallError(KQSError):
    """An error answer to a call.

    Attributes:
        code: stable string of docs/reference/wire.md.
        message: a sentence that names what is wrong and what to do.
        field: the member of the argument it is about, or None.
        index: position in a batch, or None.
        limit: the limit that was passed, or None.
    """

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        index: int | None = None,
        limit: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.index = index
        self.limit = limit

    def to_wire(self) -> dict[str, Any]:
        """The members of ``e`` on the wire, without the ``_isError__`` mark."""
        wire: dict[str, Any] = {"message": self.message, "code": self.code}
        for name in ("field", "index", "limit"):
            value = getattr(self, name)
            if value is not None:
                wire[name] = value
        return wire


class BadRequest(CallError):
    code = "bad_request"


class UnknownField(BadRequest):
    code = "unknown_field"


class TooLarge(CallError):
    code = "too_large"


class Busy(CallError):
    code = "busy"


class DiskFull(CallError):
    code = "disk_full"


class Unauthorized(CallError):
    code = "unauthorized"


class Forbidden(CallError):
    code = "forbidden"


class NotFound(CallError):
    code = "not_found"


class StaleReceipt(CallError):
    code = "stale_receipt"


class Unsupported(CallError):
    code = "unsupported"


class Conflict(CallError):
    code = "conflict"


class ShuttingDown(CallError):
    code = "shutting_down"


class Internal(CallError):
    code = "internal"


_BY_CODE: dict[str, type[CallError]] = {
    cls.code: cls
    for cls in (
        BadRequest,
        UnknownField,
        TooLarge,
        Busy,
        DiskFull,
        Unauthorized,
        Forbidden,
        NotFound,
        StaleReceipt,
        Unsupported,
        Conflict,
        ShuttingDown,
        Internal,
    )
}


def from_wire(error: Any) -> CallError:
    """The exception for the ``e`` member of a reply.

    Args:
        error: the decoded JSON of ``e``; a dict from KQS, anything from another qrpc server.
    """
    if not isinstance(error, dict):
        return Internal(str(error))
    cls = _BY_CODE.get(str(error.get("code", "")), Internal)
    return cls(
        str(error.get("message", "")),
        field=error.get("field"),
        index=error.get("index"),
        limit=error.get("limit"),
    )


class ConnectionFailed(KQSError):
    """No server could be reached, or the connection ended before the reply.

    Attributes:
        sent: True when the call may have reached a server, so that its outcome is unknown.
    """

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class CallTimeout(ConnectionFailed):
    """No reply within the call's timeout; whether the call was done is unknown."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=True)


class ProtocolError(KQSError):
    """The peer sent something that is not qrpc v1."""


class ConfigError(KQSError):
    """A setting is refused: the message names it and the fix."""


class DataDirError(KQSError):
    """The data directory cannot be used: the message names it and the fix."""


class DataDirInUse(DataDirError):
    """Another server holds the lock of this data directory."""


class NewerFormat(DataDirError):
    """The data was written by a newer KQS; nothing was changed."""


class DamagedJournal(DataDirError):
    """The journal does not read back as it was written.

    Attributes:
        segment: file name of the segment, or "manifest".
        offset: byte offset of the first damage in it.
        sequence: the first sequence number that may be affected, or None when unknown.
    """

    def __init__(self, segment: str, offset: int, sequence: int | None, what: str) -> None:
        place = f"{segment} at byte {offset}"
        if sequence is not None:
            place += f", from sequence {sequence}"
        super().__init__(
            f"journal damaged: {place}: {what}; nothing was changed. "
            f"'kqs journal check' tells all of it; restore a backup, or see 'kqs journal repair'"
        )
        self.segment = segment
        self.offset = offset
        self.sequence = sequence
        self.what = what


class WouldLose(DataDirError):
    """A repair would lose entries, and was not told that it may; nothing was changed.

    Attributes:
        lost: first and last sequence of each range; no last one: it is not known how many there were.
    """

    def __init__(self, lost: Sequence[tuple[int, int | None]]) -> None:
        super().__init__(
            f"the repair would lose sequences {ranges(lost)}; nothing was changed. "
            f"Restore a backup, or run it again with --accept-loss"
        )
        self.lost = lost


def ranges(lost: Sequence[tuple[int, int | None]]) -> str:
    """Ranges of sequences in words."""
    words = []
    for first, last in lost:
        if last is None:
            words.append(f"{first} and all after it")
        else:
            words.append(f"{first}" if first == last else f"{first} to {last}")
    return ", ".join(words)


class JournalFailed(KQSError):
    """A journal write or fsync failed; no job is accepted any more and the server exits (G5)."""


class EngineAway(KQSError):
    """The engine cannot be reached, or takes nothing, for now; what waits for it is tried again."""
