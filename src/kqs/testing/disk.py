"""A disk in memory that can lose power, break, fill up and lie.

What survives a power cut is decided by a seeded generator within the bounds that ``media`` describes, so a
run is a function of its seed. Nothing is put right on the way: a program that leaves out a sync loses data
here sooner or later, which is the point.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping
from random import Random

from ..ports import Disk
from .faults import Fault, Inject, Operation, PowerLost
from .media import Change, Content, Directory, Media, error


class SimDisk:
    """A :class:`~kqs.ports.Disk`.

    Args:
        seed: of everything that is left to chance here.
        capacity: bytes all files may have together, or None.
        trace: whether to keep a list of all operations.

    Attributes:
        capacity: may be changed at any time.
        inject: asked about every operation; says which fault it meets, if any.
        counts: operations so far, by kind.
        trace: every operation so far with its outcome, or None.
        open_files: how many files are open.
    """

    def __init__(self, seed: int = 0, *, capacity: int | None = None, trace: bool = False) -> None:
        self.random = Random(seed)
        self.capacity = capacity
        self.inject: Inject | None = None
        self.counts: Counter[str] = Counter()
        self.trace: list[Operation] | None = [] if trace else None
        self.open_files = 0
        self._media = Media()
        self._number = 0
        self._on = True
        self._life = 0

    @classmethod
    def holding(cls, files: Mapping[str, bytes], seed: int = 0, *, trace: bool = False) -> SimDisk:
        """A disk with these files, durable, by absolute path."""
        disk = cls(seed, trace=trace)
        for path, data in files.items():
            disk.put(path, data)
        return disk

    @property
    def operations(self) -> int:
        """How many operations there were."""
        return self._number

    # -- the port -------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False) -> SimFile:
        fault = self._begin("create" if create else "open", path)
        if not create:
            self._refuse(fault, path)
            return SimFile(self, path, self._media.file(path))
        directory, name = self._media.place(path)
        if name in directory.seen:
            raise error(errno.EEXIST, path)
        content = Content()
        self._change(fault, path, Change((directory, name, content)))
        return SimFile(self, path, content)

    def listdir(self, path: str) -> list[str]:
        self._refuse(self._begin("listdir", path), path)
        names = sorted(self._media.directory(path).seen)
        self.random.shuffle(names)  # the order means nothing
        return names

    def makedirs(self, path: str) -> None:
        fault = self._begin("makedirs", path)
        directory, parts = self._media.root, path.strip("/").split("/")
        changes: list[tuple[Directory, str, Directory]] = []
        for name in parts:
            node = directory.seen.get(name)
            if isinstance(node, Content):
                raise error(errno.EEXIST, path)
            if node is None:
                node = Directory()
                changes.append((directory, name, node))
            directory = node
        if not changes:
            self._refuse(fault, path)
        for change in changes:
            self._change(fault, path, Change(change))

    def rename(self, source: str, target: str) -> None:
        fault = self._begin("rename", source)
        directory, name = self._media.place(source)
        node = self._media.find(source)
        aim, new_name = self._media.place(target)
        there = aim.seen.get(new_name)
        if isinstance(there, Directory) and isinstance(node, Content):
            raise error(errno.EISDIR, target)
        if isinstance(there, Directory) and there.seen:
            raise error(errno.ENOTEMPTY, target)
        if isinstance(there, Content) and isinstance(node, Directory):
            raise error(errno.ENOTDIR, target)
        self._change(fault, source, Change((directory, name, None), (aim, new_name, node)))

    def link(self, source: str, target: str) -> None:
        fault = self._begin("link", source)
        content = self._media.file(source)
        aim, name = self._media.place(target)
        if name in aim.seen:
            raise error(errno.EEXIST, target)
        if fault is not None and fault.errno == errno.EPERM:  # this file system has no links
            self._refuse(fault, source)
        self._change(fault, source, Change((aim, name, content)))

    def unlink(self, path: str) -> None:
        fault = self._begin("unlink", path)
        self._media.file(path)
        directory, name = self._media.place(path)
        self._change(fault, path, Change((directory, name, None)))

    def sync_dir(self, path: str) -> None:
        fault = self._begin("sync_dir", path)
        directory = self._media.directory(path)
        if fault is not None and fault.effect == "error":
            self._media.lose(directory, self.random)
        self._refuse(fault, path)
        if fault is None or fault.effect != "lie":
            self._media.sync(directory)

    def free(self, path: str) -> tuple[int, int]:
        total = (1 << 40) if self.capacity is None else self.capacity
        return max(0, total - self._used()), total

    def attach(self) -> Disk:
        """The disk as one process sees it: dead with the next :meth:`kill` or :meth:`crash`."""
        return _Attached(self)

    # -- what happens to it ---------------------------------------------------------------------

    def crash(self, random: Random | None = None) -> None:
        """The power goes and comes back: unsynced data is lost, kept or torn, open files are gone.

        Args:
            random: decides, instead of the disk's own generator.
        """
        self._media.cut(random or self.random)
        self.kill()
        self._on = True

    def kill(self) -> None:
        """All processes die, the machine goes on: what they had open is gone, the cache stays."""
        self._life += 1
        self.open_files = 0

    def revive(self) -> None:
        """What looked like a power cut was the death of all processes only: the cache is still there."""
        self.kill()
        self._on = True

    def evict(self) -> None:
        """The cache lets go of everything that is clean: what a failed sync lost is seen to be lost."""
        for _path, content in self._media.files():
            content.evict()

    # -- looking and damaging -------------------------------------------------------------------

    def files(self) -> dict[str, bytes]:
        """All files as they are seen."""
        return {path: bytes(content.seen) for path, content in sorted(self._media.files())}

    def content(self, path: str) -> bytes:
        """A file as it is seen."""
        return bytes(self._media.file(path).seen)

    def durable(self, path: str) -> bytes | None:
        """What would be left of a file if nothing more reached the disk, or None: not even its name."""
        node: Content | Directory | None = self._media.root
        for name in path.strip("/").split("/"):
            node = node.durable.get(name) if isinstance(node, Directory) else None
        return bytes(node.durable) if isinstance(node, Content) else None

    def put(self, path: str, data: bytes) -> None:
        """Make a file have this content, durably, past the port: how a test damages a disk."""
        above, _, name = path.rpartition("/")
        directory = self._media.root
        for part in above.strip("/").split("/") if above else ():
            node = directory.seen.get(part)
            if not isinstance(node, Directory):
                node = Directory()
                directory.seen[part] = directory.durable[part] = node
            directory = node
        directory.seen[name] = directory.durable[name] = Content(data)

    def remove(self, path: str) -> None:
        """Make a file be gone, durably, past the port."""
        directory, name = self._media.place(path)
        del directory.seen[name]
        directory.durable.pop(name, None)

    def flip(self, path: str, offset: int, bit: int) -> None:
        """Turn one bit of a file over, in the cache and on the disk."""
        content = self._media.file(path)
        for image in (content.seen, content.durable):
            if offset < len(image):
                image[offset] ^= 1 << bit

    # -- inside ---------------------------------------------------------------------------------

    def _begin(
        self, kind: str, path: str, offset: int = 0, size: int = 0, life: int | None = None
    ) -> Fault | None:
        """Count an operation and find out whether it goes wrong."""
        if not self._on or (life is not None and life != self._life):
            raise PowerLost(f"{kind} {path}: this process is dead")
        self._number += 1
        self.counts[kind] += 1
        operation = Operation(self._number, kind, path, offset, size)
        fault = None if self.inject is None else self.inject(operation)
        if self.trace is not None:
            self.trace.append(operation._replace(outcome="ok" if fault is None else fault.effect))
        return fault

    def _refuse(self, fault: Fault | None, path: str) -> None:
        """Fail an operation that has no effect of its own left to decide."""
        if fault is None:
            return
        if fault.effect == "crash":
            self._on = False
            raise PowerLost(path)
        if fault.effect == "error":
            raise error(fault.errno, path)

    def _change(self, fault: Fault | None, path: str, change: Change) -> None:
        """Make a change of the tree. One that breaks off may have happened; for lack of space it has not."""
        if fault is not None and fault.effect == "error":
            if fault.errno != errno.ENOSPC and self.random.random() < 0.5:
                self._media.change(change)
            raise error(fault.errno, path)
        self._media.change(change)
        self._refuse(fault, path)

    def _named(self, content: Content) -> bool:
        return any(content is named for _path, named in self._media.files())

    def _used(self) -> int:
        return sum(len(content.seen) for _path, content in self._media.files())

    def _room(self, growth: int) -> int:
        """How many of these bytes there is space for."""
        if self.capacity is None:
            return growth
        return max(0, min(growth, self.capacity - self._used()))


class _Attached:
    """A disk that is gone when its process is."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk
        self._life = disk._life

    def _alive(self) -> SimDisk:
        if self._life != self._disk._life:
            raise PowerLost("this process is dead")
        return self._disk

    def open(self, path: str, *, create: bool = False) -> SimFile:
        return self._alive().open(path, create=create)

    def listdir(self, path: str) -> list[str]:
        return self._alive().listdir(path)

    def makedirs(self, path: str) -> None:
        self._alive().makedirs(path)

    def rename(self, source: str, target: str) -> None:
        self._alive().rename(source, target)

    def link(self, source: str, target: str) -> None:
        self._alive().link(source, target)

    def unlink(self, path: str) -> None:
        self._alive().unlink(path)

    def sync_dir(self, path: str) -> None:
        self._alive().sync_dir(path)

    def free(self, path: str) -> tuple[int, int]:
        return self._alive().free(path)


class SimFile:
    """An open file of a :class:`SimDisk`."""

    def __init__(self, disk: SimDisk, path: str, content: Content) -> None:
        self._disk = disk
        self._path = path
        self._content = content
        self._life = disk._life
        self._open = True
        disk.open_files += 1

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        disk, content = self._disk, self._content
        fault = self._begin("pwrite", offset, len(data))
        given = bytes(data)
        if fault is not None and fault.effect in ("error", "crash"):
            if fault.errno != errno.ENOSPC or fault.effect == "crash":
                content.write(given[: disk.random.randrange(len(given) + 1)], offset)
            disk._refuse(fault, self._path)
        if fault is not None and fault.effect == "short" and len(given) > 1:
            given = given[: disk.random.randrange(1, len(given))]
        growth = offset + len(given) - len(content.seen)
        if growth > 0 and (missing := growth - disk._room(growth)):
            if missing >= len(given):
                raise error(errno.ENOSPC, self._path)
            given = given[:-missing]
        content.write(given, offset)
        return len(given)

    def pread(self, size: int, offset: int) -> bytes:
        fault = self._begin("pread", offset, size)
        self._disk._refuse(fault, self._path)
        data = self._content.seen[offset : offset + size]
        if fault is not None and fault.effect == "flip" and data:
            data[self._disk.random.randrange(len(data))] ^= 1 << self._disk.random.randrange(8)
        return bytes(data)

    def allocate(self, size: int) -> None:
        disk, content = self._disk, self._content
        fault = self._begin("allocate", 0, size)
        growth = size - len(content.seen)
        if growth > 0 and disk._room(growth) < growth:
            raise error(errno.ENOSPC, self._path)
        happens = fault is None or fault.effect != "error"
        if fault is not None and fault.effect == "error" and fault.errno != errno.ENOSPC:
            happens = disk.random.random() < 0.5
        if growth > 0 and happens:
            content.resize(size)
        disk._refuse(fault, self._path)

    def size(self) -> int:
        self._check()
        return len(self._content.seen)

    def will_need(self, size: int, offset: int) -> None:
        self._check()

    def datasync(self) -> None:
        fault = self._begin("datasync")
        if fault is not None and fault.effect == "error":
            self._content.lose(self._disk.random)
        self._disk._refuse(fault, self._path)
        if fault is None or fault.effect != "lie":
            self._content.sync()
        if not self._disk._named(self._content):
            raise error(errno.ENOENT, self._path)

    def close(self) -> None:
        if self._open and self._life == self._disk._life:
            self._disk.open_files -= 1
        self._open = False

    def _begin(self, kind: str, offset: int = 0, size: int = 0) -> Fault | None:
        self._check()
        return self._disk._begin(kind, self._path, offset, size, self._life)

    def _check(self) -> None:
        if not self._open:
            raise error(errno.EBADF, self._path)
