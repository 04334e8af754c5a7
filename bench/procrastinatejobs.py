"""Inserts jobs with procrastinate and works them off; prints the seconds. Arguments: URL COUNT."""

from __future__ import annotations

import asyncio
import sys
import time

from procrastinate import App, PsycopgConnector

#: Jobs inserted in a call, and run at a time.
BATCH = 1000
AT_ONCE = 100


async def main(url: str, count: int) -> None:
    """Time from the first insert until no job is left."""
    app = App(connector=PsycopgConnector(conninfo=url, kwargs={}))

    @app.task(name="mail")
    async def mail(to: str) -> None:
        pass

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        begin = time.perf_counter()
        for _ in range(0, count, BATCH):
            await mail.batch_defer_async(*[{"to": "x" * 98}] * BATCH)
        await app.run_worker_async(concurrency=AT_ONCE, wait=False, install_signal_handlers=False)
        took = time.perf_counter() - begin
        left = await app.connector.execute_query_one_async(
            "SELECT count(*) AS n FROM procrastinate_jobs WHERE status <> 'succeeded'"
        )
    if left["n"]:
        raise SystemExit(f"{left['n']} jobs are left")
    print(took)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
