"""What a worker process is told when it starts: one JSON document on its stdin."""

from __future__ import annotations

from msgspec import Struct


class HandlerSpec(Struct, frozen=True, omit_defaults=True):
    """How one job type is run: exactly one of ``python``, ``command`` and ``http``.

    Attributes:
        python: ``pkg.mod:callable``, called with one ``Job``.
        command: argv, the payload on its stdin.
        http: URL the payload is posted to.
        secret: what its requests are signed with, or None for no signature.
        timeout: most seconds for a response, beside the ttr, or None.
        allow: names, addresses and networks the URL may lead to although they are not public.
    """

    python: str | None = None
    command: list[str] | None = None
    http: str | None = None
    secret: str | None = None
    timeout: float | None = None
    allow: tuple[str, ...] = ()


class WorkerSpec(Struct, frozen=True, omit_defaults=True):
    """One worker process: one attempt at a time.

    Attributes:
        name: as shown; also the holder of its leases.
        pool: the pool it belongs to.
        handlers: by job type.
        app: ``pkg.mod:app`` whose ``@app.job`` functions are handlers too, or None.
        path: folder put first on ``sys.path``.
        types: all job types it runs, the app's included.
        prefetch: seconds of measured work it may hold unstarted.
    """

    name: str
    pool: str
    handlers: dict[str, HandlerSpec]
    app: str | None = None
    path: str | None = None
    types: frozenset[str] = frozenset()
    prefetch: float = 0.05
