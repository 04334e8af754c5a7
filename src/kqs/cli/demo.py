"""``kqs demo``: real files through real jobs, the server killed half-way, and the sum at the end."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..client import Client
from ..errors import KQSError
from .demojob import RUNS, Summary, Task

_MARK = ".kqs-demo"
_CONFIG = """\
# Written by "kqs demo".
[handlers."demo.compress"]
python = "kqs.cli.demojob:compress"
ttr = 60
"""
#: Insert calls on their way at once.
_PIPELINE = 200
#: Seconds without any progress after which the demo gives up.
_PATIENCE = 60.0


class DemoFailed(KQSError):
    """The demo did not end as it must; the message says where to look."""


@click.command()
@click.option(
    "--files", metavar="DIR", help="Folder of files to compress [the Python standard library's sources]."
)
@click.option("--out", default="kqs-demo", show_default=True, metavar="DIR", help="Folder for the results.")
@click.option("--limit", type=click.IntRange(1), default=2000, show_default=True, help="Most files taken.")
@click.option("--json", "as_json", is_flag=True, help="Print the sum as JSON.")
def demo(files: str | None, out: str, limit: int, as_json: bool) -> int:
    """Compress real files through jobs while the server is killed half-way; nothing may be lost.

    Starts a server of its own, inserts one job for each file, kills the server with SIGKILL when about half
    are done, starts it again, and compares every result with its source. Exits 1 on any difference.
    """
    console = Console(stderr=as_json)
    sources = _sources(files, limit)
    folder = _prepare(Path(out).resolve())
    with ExitStack() as stack:
        server = stack.enter_context(_Server(folder))
        client = stack.enter_context(Client(server.url, timeout=30.0))
        console.print(
            f"server: process {server.pid} on {server.url}, data in {folder / 'data'}", highlight=False
        )
        bars = stack.enter_context(_bars(console))
        run = _Run(folder / "output", sources, client, bars)
        began = monotonic()
        run.insert()
        run.watch(until=len(sources) // 2)
        killed = server.kill()
        bars.console.print(
            f"SIGKILL to server process {killed} after {run.done()} of {len(sources)} jobs", highlight=False
        )
        server.start()
        bars.console.print(f"server: process {server.pid} on the same data", highlight=False)
        run.watch(until=len(sources))
        run.settle()
        took = monotonic() - began
    sum_ = run.verify() | {"jobs_per_second": round(len(sources) / took, 1), "seconds": round(took, 1)}
    if as_json:
        click.echo(msgspec.json.encode(sum_ | {"output": str(run.output)}).decode())
    else:
        _show(console, sum_, run.output)
    return 0 if not sum_["lost"] and not sum_["different"] else 1


def _sources(folder: str | None, limit: int) -> list[str]:
    """The files to compress, in order."""
    root = Path(folder or sysconfig.get_paths()["stdlib"]).resolve()
    pattern = "*" if folder else "*.py"
    found = []
    for path in sorted(root.rglob(pattern)):
        if not folder and "site-packages" in path.parts:
            continue
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            found.append(str(path))
            if len(found) == limit:
                break
    if len(found) < 2:
        raise click.UsageError(f"{root} holds fewer than two readable files; choose a folder with --files")
    return found


def _prepare(folder: Path) -> Path:
    """An empty folder for this run; one that an earlier demo made is emptied."""
    if folder.exists() and not (folder / _MARK).exists() and any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty and no demo made it; choose another with --out")
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "output").mkdir(parents=True)
    (folder / _MARK).touch()
    (folder / "kqs.toml").write_text(_CONFIG)
    return folder


class _Server:
    """The demo's own ``kqs serve``, on a port that was free."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.url = f"kqs://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> _Server:
        self.start()
        return self

    def start(self) -> None:
        argv = [sys.executable, "-m", "kqs.cli.main", "serve", "--config", "kqs.toml", "--data", "data"]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [*argv, "--listen", f"127.0.0.1:{self._port}"],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> int:
        """SIGKILL: the process gets no chance to do anything. Returns its id."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class _Run:
    """One pass over the files."""

    def __init__(self, output: Path, sources: list[str], client: Client, bars: Progress) -> None:
        self.output = output
        self._sources = sources
        self._client = client
        self._bars = bars
        self._accepted: dict[str, Task] = {}
        self._inserting = bars.add_task("accepted", total=len(sources))
        self._completing: TaskID = bars.add_task("completed", total=len(sources))

    def insert(self) -> None:
        """Insert one job a file; each is on disk when its reply is here."""
        tasks = [
            Task(source, str(self.output), f"{number:05d}-{Path(source).name}")
            for number, source in enumerate(self._sources)
        ]
        for start in range(0, len(tasks), _PIPELINE):
            part = tasks[start : start + _PIPELINE]
            replies = self._client.call_many(
                [("insert", {"type": "demo.compress", "data": task}) for task in part]
            )
            for task, reply in zip(part, replies, strict=True):
                if isinstance(reply, KQSError):
                    raise reply
                self._accepted[reply["id"]] = task
            self._bars.update(self._inserting, completed=len(self._accepted))

    def done(self) -> int:
        """Results that are there."""
        return sum(1 for name in os.listdir(self.output) if name.endswith(".json"))

    def watch(self, until: int) -> None:
        """Show progress until so many results are there."""
        last, since = -1, monotonic()
        while (done := self.done()) < until:
            if done != last:
                last, since = done, monotonic()
            elif monotonic() - since > _PATIENCE:
                raise DemoFailed(
                    f"no job completed for {_PATIENCE:g} s; see {self.output.parent / 'server.log'}"
                )
            self._bars.update(self._completing, completed=done)
            sleep(0.05)
        self._bars.update(self._completing, completed=done)

    def settle(self) -> None:
        """Wait until the server, too, counts every job as done."""
        deadline = monotonic() + _PATIENCE
        while any(self._client.stats()["jobs"][state] for state in ("delayed", "ready", "reserved")):
            if monotonic() > deadline:
                raise DemoFailed(f"jobs are left; see {self.output.parent / 'server.log'}")
            sleep(0.05)

    def verify(self) -> dict[str, Any]:
        """Compare every result with its source."""
        runs = Counter(line.split()[0] for line in (self.output / RUNS).read_text().splitlines())
        lost = different = 0
        size = packed = 0
        for task in self._accepted.values():
            try:
                summary = msgspec.json.decode((self.output / f"{task.name}.json").read_bytes(), type=Summary)
                unpacked = gzip.decompress((self.output / f"{task.name}.gz").read_bytes())
            except (OSError, EOFError, msgspec.MsgspecError):
                lost += 1
                continue
            source = Path(task.source).read_bytes()
            digest = hashlib.sha256(source).hexdigest()
            if unpacked != source or summary.sha256 != digest or summary.size != len(source):
                different += 1
            size += len(source)
            packed += summary.compressed
        return {
            "accepted": len(self._accepted),
            "completed": len(self._accepted) - lost,
            "run_more_than_once": sum(1 for id in self._accepted if runs[id] > 1),
            "lost": lost,
            "different": different,
            "bytes": size,
            "compressed_bytes": packed,
        }


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description:>9}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _show(console: Console, sum_: dict[str, Any], output: Path) -> None:
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, key in (
        ("accepted", "accepted"),
        ("completed", "completed"),
        ("run more than once", "run_more_than_once"),
        ("lost", "lost"),
        ("different from their source", "different"),
        ("jobs/s, kill and restart included", "jobs_per_second"),
    ):
        table.add_row(name, str(sum_[key]))
    table.add_row("MB in, compressed", f"{sum_['bytes'] / 1e6:.1f}, {sum_['compressed_bytes'] / 1e6:.1f}")
    console.print(table)
    console.print(f"output: {output}", highlight=False, soft_wrap=True)
