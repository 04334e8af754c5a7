"""The examples on the pages are run, against a real server where they talk to one."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import NoReturn

import pytest
from database import DJANGO, Shop
from pages import Block, Known, blocks

from kqs.core.wire import decode_replies
from kqs.settings.config import Config, parse

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(
    path.relative_to(DOCS).as_posix()
    for path in DOCS.rglob("*.md")
    if "_build" not in path.parts and "<!-- test: " in path.read_text(encoding="utf-8")
)
PATIENCE = 30.0
#: Without a disk check: how full the disk is here is nothing the pages talk about.
QUIET = "[health]\ndisk_free = 0\n"


class Server:
    """A ``kqs serve`` of a page, on a port of its own."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str]) -> None:
        self.output: SimpleQueue[str] = SimpleQueue()
        self.log: list[str] = []
        self._ready = threading.Event()
        self.port = 0
        self.process = subprocess.Popen(
            f"exec {command} --listen 127.0.0.1:0",
            shell=True,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [threading.Thread(target=self._read_log), threading.Thread(target=self._read_output)]
        for reader in self._readers:
            reader.start()
        if not self._ready.wait(PATIENCE) or not self.port:
            self.process.kill()
            self.stop()
            pytest.fail(f"{command}: {''.join(self.log)}")

    def _read_output(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.put(line.rstrip("\n"))

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            self.output.put(line.rstrip("\n"))
            if found := re.search(r"\bready .*listen=\S+:(\d+)", line):
                self.port = int(found[1])
                self._ready.set()
        self._ready.set()

    def stop(self) -> None:
        """End it as Ctrl-C does, unless it is gone already."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Page:
    """One page, run from top to bottom in a folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self._page = DOCS / name
        self._folder = folder / "page"
        self._folder.mkdir()
        self._known = Known()
        self._server: Server | None = None
        self._shop: Shop | None = None
        self._missing: set[str] = set()
        programs = folder / "bin"
        programs.mkdir()
        for program, call in (("kqs", "-m kqs.cli.main"), ("python3", "")):
            path = programs / program
            path.write_text(f'#!/bin/sh\nexec {sys.executable} {call} "$@"\n')
            path.chmod(0o755)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("KQS_")}
        source = str(DOCS.parent / "src")
        self._environment = inherited | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{self._folder}:{source}",
        }

    def run(self) -> None:
        for block in blocks(self._page):
            if block.file is not None:
                (self._folder / block.file).write_text(self._known.fill(block.text))
            if block.kind is not None:
                getattr(self, f"run_{block.kind.replace('-', '_')}")(block)
        if self._missing:
            self._give_up(*self._missing)

    @staticmethod
    def _give_up(*programs: str) -> NoReturn:
        text = f"examples not run: {', '.join(sorted(programs))} not installed"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
        if self._shop is not None:
            self._shop.close()

    def _fail(self, block: Block, text: str) -> None:
        log = "".join(self._server.log) if self._server is not None else "none"
        pytest.fail(f"docs/{self._page.relative_to(DOCS)}:{block.line}: {text}\nserver's log: {log}")

    # -- servers --------------------------------------------------------------------------------

    def _serve(self, command: str) -> Server:
        if self._server is not None:
            self._server.stop()
        self._server = Server(command, self._folder, self._environment)
        self._environment["KQS_URL"] = f"kqs://127.0.0.1:{self._server.port}"
        return self._server

    @property
    def server(self) -> Server:
        """The page's server; a plain one where the page has not started any yet."""
        if self._server is None:
            (self._folder / "quiet.toml").write_text(QUIET)
            self._serve("kqs serve --config quiet.toml")
        assert self._server is not None
        return self._server

    # -- kinds of blocks ------------------------------------------------------------------------

    def run_console(self, block: Block) -> None:
        """Commands after ``$``, and what they print."""
        for command, expected in _commands(block.text):
            if command.startswith("kqs serve"):
                self._serve(command)
                continue
            if "| nc " in command and shutil.which("nc") is None:
                self._missing.add("nc")
                continue
            if command.startswith("openssl ") and shutil.which("openssl") is None:
                self._give_up("openssl")
            output = self._shell(command)
            if len(output) != len(expected) or not all(map(self._known.matches, expected, output)):
                self._fail(block, f"$ {command}\nexpected {expected}\nprinted  {output}")

    def run_eventually(self, block: Block) -> None:
        """As ``console``, but what is expected may take a while to come true."""
        for command, expected in _commands(block.text):
            until = monotonic() + PATIENCE
            while not all(map(self._known.matches, expected, output := self._shell(command))) or not output:
                if monotonic() > until:
                    self._fail(block, f"$ {command}\nexpected {expected}\nprinted  {output}")
                sleep(0.05)

    def _shell(self, command: str) -> list[str]:
        if "kqs " in command or "python3 " in command or "nc " in command:
            command = command.replace("14151", str(self.server.port))
            command = command.replace("kqs-data", str(self._data()))
        done = subprocess.run(
            ["bash", "-c", self._known.fill(command)],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return done.stdout.splitlines()

    def _data(self) -> Path:
        return self._folder / "kqs-data"

    def run_server_output(self, block: Block) -> None:
        """Lines of the server's output and log, in any order."""
        expected = block.text.splitlines()
        seen: list[str] = []
        until = monotonic() + PATIENCE
        while expected:
            try:
                seen.append(self.server.output.get(timeout=max(0.0, until - monotonic())))
            except Empty:
                self._fail(block, f"expected {expected}\nprinted {seen}")
            match = next((line for line in expected if self._known.matches(line, seen[-1])), None)
            if match is not None:
                expected.remove(match)

    def run_wire(self, block: Block) -> None:
        """A conversation on one connection."""
        with (
            socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE) as sock,
            sock.makefile("r", encoding="utf-8", newline="\n") as replies,
        ):
            for line in block.text.splitlines():
                who, _, text = line.partition(": ")
                if who == "C":
                    sock.sendall(self._known.fill(text).encode() + b"\n")
                    continue
                assert who == "S", line
                try:
                    reply = replies.readline().rstrip("\n") or "(closed)"
                except ConnectionResetError:
                    reply = "(closed)"
                if not self._known.matches(text, reply):
                    self._fail(block, f"expected {text}\nanswered {reply}")

    def run_replies(self, block: Block) -> None:
        """Replies no call of this version gives: our clients must understand them."""
        text = block.text.replace("S: ", "")
        decoded = decode_replies(text.encode())
        assert [reply.last for reply in decoded] == [*([False] * (len(decoded) - 1)), True]
        assert [reply.value() for reply in decoded if reply.m] == [1, 2]

    def run_python(self, block: Block) -> None:
        """A script; its comments ``prints:`` say what it prints."""
        assert self.server.port
        self._script(block, block.text)

    def _script(self, block: Block, text: str) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", text],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode != 0:
            self._fail(block, done.stderr)
        for line in re.findall(r"  # prints: (.*)$", block.text, re.MULTILINE):
            if line not in done.stdout.splitlines():
                self._fail(block, f"expected {line}\nprinted {done.stdout}")

    @property
    def shop(self) -> Shop:
        """The page's database."""
        if self._shop is None:
            self._shop = Shop()
            self._environment |= self._shop.environment
        return self._shop

    def run_sql(self, block: Block) -> None:
        """Statements of an administrator of the database ``shop``."""
        self.shop.execute(block.text)

    def run_postgres(self, block: Block) -> None:
        """A script that uses the database ``shop``; then each order has a mail, and nothing else has."""
        before, _ = self.shop.orders_without_mail()
        self._script(block, block.text)
        assert self.shop.orders_without_mail() == (before + 1, [])

    def run_django(self, block: Block) -> None:
        """A module ``checkout``, called from Django, once in a transaction that is rolled back."""
        self.run_postgres(block._replace(text=DJANGO))

    def run_node(self, block: Block) -> None:
        """A script for Node with the npm package qrpc."""
        modules = os.environ.get("KQS_NODE_MODULES", str(DOCS.parent / "tests/node/node_modules"))
        if shutil.which("node") is None or not Path(modules, "qrpc").is_dir():
            self._missing.add("node with the npm package qrpc")
            return
        done = subprocess.run(
            ["node", "--no-deprecation", "-e", block.text.replace("14151", str(self.server.port))],
            env=self._environment | {"NODE_PATH": modules},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        lines = done.stdout.splitlines()
        if len(lines) != 2 or not self._known.matches("71d96dc0-0", lines[0]):
            self._fail(block, done.stdout + done.stderr)
        assert lines[1].startswith("unknown_field job has an unknown field 'prioo'")

    def run_config(self, block: Block) -> None:
        """A configuration file that is accepted, and says something."""
        assert parse(block.text.encode()) != Config()

    def run_defaults(self, block: Block) -> None:
        """A configuration file that changes nothing."""
        assert parse(block.text.encode()) == Config()

    def run_unit(self, block: Block) -> None:
        """A systemd unit: its timeout is longer than the server's grace, and its commands exist."""
        settings = dict(line.split("=", 1) for line in block.text.splitlines() if "=" in line)
        assert float(settings["TimeoutStopSec"]) > 30
        for key in ("ExecStartPre", "ExecStart"):
            command = settings[key].removeprefix("/opt/kqs/bin/")
            help_text = "\n".join(self._shell(" ".join(command.split()[:2]) + " --help"))
            assert all(word in help_text for word in command.split() if word.startswith("--"))


def _commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block with the lines it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *output = part.splitlines()
        yield command, output


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Page]:
    made = Page(request.param, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("page", PAGES, indirect=True)
def test_examples(page: Page) -> None:
    page.run()


def test_pages_with_examples_are_found() -> None:
    assert {"tutorial/quickstart.md", "reference/calls.md", "reference/wire.md"} <= set(PAGES)
