"""Runs an HTTP handler: a signed POST of the payload; the status of the response is the outcome."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hashlib
import hmac
import ssl
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from math import inf
from time import time
from urllib.parse import quote

import httpx

from ..core.handler import Job
from ..core.outcome import OK, Attempted, Reason, status_outcome
from .output import KEEP, text, too_large, with_result
from .python import MAX_RESULT, wire_text
from .target import NotAllowed, Target

#: Of the ttr this much is kept to settle in: seconds, and a share where that is less.
MARGIN, MARGIN_SHARE = 1.0, 0.1
#: Most seconds for a connection to one address; then the next one is tried.
CONNECT = 10.0
#: Longest wait a response may ask for, seconds.
MAX_RETRY_AFTER = 86_400.0
#: Seconds a connection is kept for the next job: less than servers keep theirs, so that none closes under it.
KEEP_OPEN = 1.0
#: Seconds given to the body of a response whose status already said that the attempt failed.
SAYING = 1.0


class HttpRunner:
    """See :class:`kqs.ports.AsyncRunner`.

    The response counts when all of it has arrived in time. Redirects are not followed, no proxy and no other
    setting of the environment is used, cookies are not kept, and TLS certificates are verified against the
    system's authorities.

    Args:
        url: where to; ``https`` or ``http``.
        secret: key of the signature, or None to send none.
        timeout: most seconds for all of a response, or None for what the ttr leaves.
        allow: see :class:`~kqs.runners.target.Target`.

    Raises:
        ConfigError: the URL cannot be used.
    """

    decodes = False

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        timeout: float | None = None,
        allow: Iterable[str] = (),
    ) -> None:
        self._target = Target(url, allow)
        self._secret = secret
        self._timeout = inf if timeout is None else timeout
        self._transport = httpx.AsyncHTTPTransport(
            verify=_authorities(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_OPEN),
        )

    async def arun(self, job: Job, payload: bytes) -> Attempted:
        left = (job.deadline - dt.datetime.now(dt.UTC)).total_seconds()
        seconds = max(0.0, min(self._timeout, left - min(MARGIN, MARGIN_SHARE * left)))
        failed: Attempted | None = None
        try:
            async with asyncio.timeout(seconds):
                response = await self._post(job, payload, seconds)
                try:
                    failed = _failure(response)
                    if failed is None:
                        return await _success(response, job.wants_result)
                    return await _explained(failed, response)
                finally:
                    await response.aclose()
        except TimeoutError:
            late = Reason(f"{self._target.netloc} did not respond in full within {seconds:.3g} s", "timeout")
            return failed or Attempted("again", None, late)
        except NotAllowed as error:
            return Attempted("again", None, Reason(wire_text(error), "target"))
        except (httpx.TransportError, OSError, UnicodeError) as error:
            return Attempted("again", None, self._unreachable(error))

    async def aclose(self) -> None:
        """Close the connections that are kept open."""
        await self._transport.aclose()

    async def _post(self, job: Job, payload: bytes, seconds: float) -> httpx.Response:
        """Send the job; returns when the head of the response is there."""
        headers = self._headers(job, payload)
        addresses = await self._target.addresses()
        connect = min(CONNECT, seconds / len(addresses))
        for address in addresses[:-1]:
            try:
                request = self._target.request(address, headers, payload, connect)
                return await self._transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                pass  # nothing was sent; perhaps another address answers
        request = self._target.request(addresses[-1], headers, payload, connect)
        return await self._transport.handle_async_request(request)

    def _headers(self, job: Job, payload: bytes) -> dict[str, str]:
        now = int(time())
        headers = {
            "Content-Type": "application/octet-stream" if job.binary else "application/json",
            "User-Agent": "kqs",
            "Accept-Encoding": "identity",  # so that a small response stays small
            "KQS-Job-Id": job.id,
            "KQS-Type": quote(job.type),
            "KQS-Attempt": str(job.attempt),
            "KQS-Timestamp": str(now),
        }
        if self._secret is not None:
            headers["KQS-Signature"] = signature(self._secret, now, job.id, job.attempt, payload)
        return headers

    def _unreachable(self, error: Exception) -> Reason:
        message = f"{self._target.netloc} cannot be called: {str(error) or type(error).__name__}"
        return Reason(wire_text(message), "network")


def signature(secret: str, timestamp: int, id: str, attempt: int, body: bytes) -> str:
    """What the header ``KQS-Signature`` of a request holds.

    HMAC-SHA-256 over ``TIMESTAMP.ID.ATTEMPT.BODY``, in hexadecimal after ``v1=``. Id, time and body are
    signed together as in Standard Webhooks (github.com/standard-webhooks/standard-webhooks), so that a
    receiver can refuse what is old and what it has seen; the version and the hexadecimal form are those of
    Stripe's ``Stripe-Signature``.

    Args:
        secret: the key, as UTF-8.
        timestamp: seconds since 1970 UTC, of the request.
        id, attempt: the job's.
        body: the payload as sent.
    """
    signed = hmac.new(secret.encode(), f"{timestamp}.{id}.{attempt}.".encode(), hashlib.sha256)
    signed.update(body)
    return f"v1={signed.hexdigest()}"


def retry_after(value: str, now: dt.datetime) -> float | None:
    """The wait a ``Retry-After`` header asks for, seconds (RFC 9110, section 10.2.3).

    Args:
        value: a number of seconds, or a date.
        now: aware.

    Returns:
        At most :data:`MAX_RETRY_AFTER`. None when it is neither, or asks for no wait: then the job's retry
        policy says when, so that a target in trouble is not called in a tight loop.
    """
    if value.isascii() and value.isdigit():
        seconds = float(value)
    else:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (when.replace(tzinfo=when.tzinfo or dt.UTC) - now).total_seconds()
    return min(seconds, MAX_RETRY_AFTER) if seconds > 0 else None


@functools.cache
def _authorities() -> ssl.SSLContext:
    """Of the system, and of SSL_CERT_FILE where that is set; read once, because that takes long."""
    return ssl.create_default_context()


def _failure(response: httpx.Response) -> Attempted | None:
    """What the head of a response says, unless that is success."""
    outcome, why = status_outcome(response.status_code)
    if why is None:
        return None
    delay = None
    if outcome == "again":
        delay = retry_after(response.headers.get("Retry-After", "").strip(), dt.datetime.now(dt.UTC))
    return Attempted(outcome, delay, Reason(why, "http"))


async def _explained(failed: Attempted, response: httpx.Response) -> Attempted:
    """The failure with the beginning of what the body says, as far as it comes soon."""
    said = b""
    try:
        async with asyncio.timeout(SAYING):
            async for part in response.aiter_raw():
                said += part
                if len(said) >= KEEP:
                    break
    except (httpx.TransportError, TimeoutError):
        pass  # the status has been said
    assert failed.reason is not None
    reason = Reason(failed.reason.message, failed.reason.kind, text(said[:KEEP]))
    return Attempted(failed.outcome, failed.delay, reason)


async def _success(response: httpx.Response, wanted: bool) -> Attempted:
    """Take all of the body, and keep it when it is wanted."""
    body = bytearray()
    async for part in response.aiter_raw():
        if wanted:
            body += part
            if len(body) > MAX_RESULT:
                return too_large(MAX_RESULT)
    return with_result(bytes(body)) if wanted else OK
