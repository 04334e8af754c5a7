"""What a worker process is told when it starts: one JSON document on its stdin."""

from __future__ import annotations

from msgspec import Struct


class HandlerSpec(Struct, frozen=True, omit_defaults=True):
    """How one job type is run: exactly one of the two.

    Attributes:
        python: ``pkg.mod:callable``, called with one ``Job``.
        command: argv, the payload on its stdin.
    """

    python: str | None = None
    command: list[str] | None = None


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
