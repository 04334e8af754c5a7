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
    """One worker process.

    Attributes:
        name: as shown; also the holder of its leases.
        pool: the pool it belongs to.
        handlers: by job type.
        app: ``pkg.mod:app`` whose ``@app.job`` functions are handlers too, or None.
        path: folder put first on ``sys.path``.
        types: all job types it runs, the app's included.
        prefetch: seconds of measured work it may hold unstarted.
        concurrency: attempts it runs at once; above 1 all its handlers are async.
        max_jobs: jobs after which it ends, to be replaced; 0 for no limit.
        memory: bytes of resident memory at which it ends between two jobs; 0 for no limit.
        keep_alive: job types whose running attempts are renewed at the end of their ttr, with the seconds
            after which that stops (0: it does not).
        env: environment variables beside the server's own.
        user: user it runs as, or None for the server's.
        directory: its working directory, or None for the server's.
        nice: its niceness, or None for the server's.
        code: stands for the code of its handlers as it was found; another one makes another worker.
        capture: whether what its jobs print is logged with their ids; else it goes to the server's stdout.
    """

    name: str
    pool: str
    handlers: dict[str, HandlerSpec]
    app: str | None = None
    path: str | None = None
    types: frozenset[str] = frozenset()
    prefetch: float = 0.05
    concurrency: int = 1
    max_jobs: int = 0
    memory: int = 0
    keep_alive: dict[str, float] = {}
    env: dict[str, str] = {}
    user: str | None = None
    directory: str | None = None
    nice: int | None = None
    code: str = ""
    capture: bool = True
