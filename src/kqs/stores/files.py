"""Oversize payloads as files of the data directory.

A file is written under a temporary name, synced, renamed, and its directory synced, before the job that
refers to it is journaled. Names are random and made here; nothing a caller sends becomes part of a path.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import structlog

from ..core.job import BulkRef
from ..errors import Busy, CallError, DiskFull, Internal, NotFound
from ..ports import FULL, LACKING

_NAME = re.compile(r"[0-9a-f]{32}")
#: Locked, shared, by everybody who makes a copy.
_HOLD = "hold"


@contextmanager
def _held(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


class FileStore:
    """See :class:`kqs.ports.BulkStore`.

    Args:
        directory: where the files go; made when missing.
        random: gives n random bytes, for names.
    """

    def __init__(self, directory: str, random: Callable[[int], bytes] = os.urandom) -> None:
        self._directory = directory
        self._random = random
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._threads = ThreadPoolExecutor(2, "kqs-bulk")

    async def put(self, data: bytes) -> BulkRef:
        name = self._random(16).hex()
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._write, name, data)
        try:
            digest = await work
        except OSError as error:
            if error.errno in FULL:
                raise DiskFull("the disk is full: the payload cannot be stored") from None
            if error.errno in LACKING:
                raise Busy(f"the payload cannot be stored now: {error.strerror}; try again") from None
            raise Internal(f"the bulk store failed: {error.strerror}") from None
        return BulkRef(name, digest, len(data))

    async def get(self, ref: BulkRef) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, ref)

    async def delete(self, refs: Sequence[BulkRef]) -> None:
        await asyncio.get_running_loop().run_in_executor(
            self._threads, self._delete, [self._path(ref.name) for ref in refs]
        )

    async def collect(self, wanted: Collection[str], grace: float) -> int:
        """Remove files no job refers to: what a crash left between storing and accepting.

        Args:
            wanted: names that are referred to.
            grace: seconds a file must be old, so that one on its way to its job is left alone.

        Returns:
            How many were removed.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._collect, wanted, grace)

    def hold(self) -> AbstractContextManager[None]:
        """Have nothing deleted, by any process, while this lasts: a copy is being made.

        What is not deleted meanwhile is left for :meth:`collect`.
        """
        return _held(f"{self._directory}/{_HOLD}")

    def copy(self, refs: Collection[BulkRef], directory: str) -> list[BulkRef]:
        """Copy payloads into the directory of another store, verified and durable.

        Returns:
            Those that are not here, or are not what was stored: they are left out.
        """
        missing = []
        other = FileStore(directory, self._random)
        for ref in refs:
            try:
                data = self._read(ref)
            except CallError:
                missing.append(ref)
            else:
                other._write(ref.name, data)
        other._threads.shutdown()
        return missing

    async def close(self) -> None:
        self._threads.shutdown()

    def _path(self, name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise Internal(f"{name!r} is no name of this store")
        return f"{self._directory}/{name}"

    def _write(self, name: str, data: bytes) -> str:
        path = self._path(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f"{path}.new", flags, 0o600)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(f"{path}.new", path)
        except OSError:
            self._remove([f"{path}.new"])
            raise
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return hashlib.sha256(data).hexdigest()

    def _read(self, ref: BulkRef) -> bytes:
        try:
            fd = os.open(self._path(ref.name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with open(fd, "rb", closefd=False) as file:
                    data = file.read()
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise NotFound(f"the payload {ref.name} is not in the bulk store") from None
        except OSError as error:
            if error.errno in LACKING:
                raise Busy(f"the payload {ref.name} cannot be read now: {error.strerror}") from None
            raise Internal(f"the bulk store failed: {error.strerror}") from None
        if len(data) != ref.size or hashlib.sha256(data).hexdigest() != ref.sha256:
            raise Internal(f"the payload {ref.name} is not what was stored: its SHA-256 differs")
        return data

    def _delete(self, paths: Sequence[str]) -> None:
        if not self._is_held():
            self._remove(paths)

    def _is_held(self) -> bool:
        """Whether somebody makes a copy. Who begins one now reads the journal later than this, and finds
        that the jobs of what is deleted have ended."""
        try:
            fd = os.open(f"{self._directory}/{_HOLD}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:  # no descriptor to look with: what is left now is collected later
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @staticmethod
    def _remove(paths: Sequence[str]) -> None:
        for path in paths:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            except OSError as error:  # no job refers to it: it will be collected
                structlog.get_logger().warning("a bulk file cannot be removed now", reason=str(error))

    def _collect(self, wanted: Collection[str], grace: float) -> int:
        removed = 0
        if self._is_held():
            return removed
        before = time.time() - grace
        for entry in os.scandir(self._directory):
            name = entry.name.removesuffix(".new")
            if _NAME.fullmatch(name) is None or name in wanted:
                continue
            try:
                changed = entry.stat(follow_symlinks=False).st_mtime
            except FileNotFoundError:  # it was renamed, or deleted, meanwhile
                continue
            if changed < before:
                self._remove([entry.path])
                removed += 1
        return removed
