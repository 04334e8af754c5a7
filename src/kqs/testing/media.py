"""What a simulated disk holds: for every file and directory, what is seen and what would survive a power cut.

The model is what POSIX leaves open, not what one file system does:

- Written data is in the cache only. At a power cut each 512-byte sector, on its own, holds the last synced
  content or that of any write since. The order of writes means nothing without a sync between them.
- A file's size (also of space that was allocated) is a thing of its own that may or may not survive.
- A directory entry survives for certain only after its directory was synced, whatever was done to the file.
  A rename is one change: after a power cut all of it happened or none of it. Other changes of entries are
  lost or kept each on its own.
- A sync that failed has written some of it, and marks everything clean: no later sync writes the rest, yet
  reads go on showing it until the cache lets go of it. (So does Linux with a page whose write failed.)
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from random import Random
from typing import TypeVar

SECTOR = 512

T = TypeVar("T")


def survivors(changes: list[T], random: Random) -> list[T]:
    """Which of some changes that were not synced have reached the disk: none, all, the first, or any."""
    style = random.randrange(4)
    if style == 0 or not changes:
        return []
    if style == 1:
        return list(changes)
    if style == 2:
        return changes[: random.randrange(len(changes) + 1)]
    chance = random.random()
    return [change for change in changes if random.random() < chance]


class Content:
    """A file's bytes, independent of its name.

    Attributes:
        seen: what reads see.
        durable: what would survive if nothing more was written back.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.seen = bytearray(data)
        self.durable = bytearray(data)
        self._dirty: dict[int, list[bytes]] = {}  # every content of a sector since the last sync
        self._sizes: list[int] = []  # every size since then

    @property
    def clean(self) -> bool:
        """Whether a sync would have nothing to do."""
        return not self._dirty and not self._sizes

    def write(self, data: bytes, offset: int) -> None:
        if not data:
            return
        end = offset + len(data)
        if end > len(self.seen):
            self.resize(end)
        self.seen[offset:end] = data
        for sector in range(offset // SECTOR, (end - 1) // SECTOR + 1):
            start = sector * SECTOR
            image = bytes(self.seen[start : start + SECTOR])
            self._dirty.setdefault(sector, []).append(image)

    def resize(self, size: int) -> None:
        """Make the file longer; the new part reads as zeros."""
        self.seen.extend(bytes(size - len(self.seen)))
        self._sizes.append(size)

    def sync(self) -> None:
        """Make everything since the last sync durable."""
        if self._sizes:
            _set_size(self.durable, self._sizes[-1])
        for sector, images in self._dirty.items():
            self._put(sector, images[-1])
        self._clean()

    def lose(self, random: Random) -> None:
        """A sync failed: some of it is durable, the rest never will be."""
        self._write_back(random)
        self._clean()

    def cut(self, random: Random) -> None:
        """The power goes: what was not synced is decided now."""
        self._write_back(random)
        self._clean()
        self.seen = bytearray(self.durable)

    def evict(self) -> None:
        """The cache lets go of what it holds clean; reads see the disk again."""
        seen = bytearray(self.durable)
        if self._sizes:
            _set_size(seen, len(self.seen))
        for sector in self._dirty:
            start = sector * SECTOR
            image = self.seen[start : start + SECTOR]
            if len(seen) < start + len(image):
                _set_size(seen, start + len(image))
            seen[start : start + len(image)] = image
        self.seen = seen

    def _write_back(self, random: Random) -> None:
        if self._sizes:
            _set_size(self.durable, random.choice([len(self.durable), *self._sizes]))
        for sector in survivors(sorted(self._dirty), random):
            images = self._dirty[sector]
            image = images[-1] if random.random() < 0.5 else random.choice(images)
            # A sector behind the end that survived is not part of the file.
            self._put(sector, image[: max(0, len(self.durable) - sector * SECTOR)])

    def _put(self, sector: int, image: bytes) -> None:
        start = sector * SECTOR
        if len(self.durable) < start + len(image):
            _set_size(self.durable, start + len(image))
        self.durable[start : start + len(image)] = image

    def _clean(self) -> None:
        self._dirty.clear()
        self._sizes.clear()


def _set_size(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


class Directory:
    """A directory's entries, as seen and as durable."""

    def __init__(self) -> None:
        self.seen: dict[str, Node] = {}
        self.durable: dict[str, Node] = {}


Node = Content | Directory


class Change:
    """A change of directory entries that happens as a whole.

    Args:
        effects: (directory, name, what the name stands for afterwards or None), in order.
    """

    def __init__(self, *effects: tuple[Directory, str, Node | None]) -> None:
        self.effects = effects

    def touches(self, directory: Directory) -> bool:
        return any(where is directory for where, _name, _node in self.effects)

    def shares_name(self, other: Change) -> bool:
        mine = [(id(where), name) for where, name, _node in self.effects]
        return any((id(where), name) in mine for where, name, _node in other.effects)

    def apply(self, entries: Callable[[Directory], dict[str, Node]]) -> None:
        for where, name, node in self.effects:
            if node is None:
                entries(where).pop(name, None)
            else:
                entries(where)[name] = node


def _seen(directory: Directory) -> dict[str, Node]:
    return directory.seen


def _durable(directory: Directory) -> dict[str, Node]:
    return directory.durable


class Media:
    """The tree of directories and files, and the changes to it that are not durable."""

    def __init__(self) -> None:
        self.root = Directory()
        self._pending: list[Change] = []

    # -- finding --------------------------------------------------------------------------------

    def find(self, path: str) -> Node:
        """What a path stands for.

        Raises:
            FileNotFoundError, NotADirectoryError.
        """
        node: Node = self.root
        for name in _parts(path):
            if not isinstance(node, Directory):
                raise error(errno.ENOTDIR, path)
            found = node.seen.get(name)
            if found is None:
                raise error(errno.ENOENT, path)
            node = found
        return node

    def directory(self, path: str) -> Directory:
        node = self.find(path)
        if not isinstance(node, Directory):
            raise error(errno.ENOTDIR, path)
        return node

    def file(self, path: str) -> Content:
        node = self.find(path)
        if not isinstance(node, Content):
            raise error(errno.EISDIR, path)
        return node

    def place(self, path: str) -> tuple[Directory, str]:
        """The directory a path is in, and its name there."""
        *above, name = _parts(path)
        return self.directory("/" + "/".join(above)), name

    def files(self) -> Iterator[tuple[str, Content]]:
        """All files that are seen, with their paths."""
        todo: list[tuple[str, Directory]] = [("", self.root)]
        while todo:
            path, directory = todo.pop()
            for name, node in directory.seen.items():
                if isinstance(node, Directory):
                    todo.append((f"{path}/{name}", node))
                else:
                    yield f"{path}/{name}", node

    # -- changing -------------------------------------------------------------------------------

    def change(self, change: Change) -> None:
        """See a change now; it is durable when its directory is synced."""
        change.apply(_seen)
        self._pending.append(change)

    def sync(self, directory: Directory) -> None:
        """Make a directory's changes durable, and those of other directories they build on."""
        for change in self._take(directory):
            change.apply(_durable)

    def lose(self, directory: Directory, random: Random) -> None:
        """A sync of a directory failed: some of its changes are durable, the others never will be."""
        for change in survivors(self._take(directory), random):
            change.apply(_durable)

    def _take(self, directory: Directory) -> list[Change]:
        taken = [change.touches(directory) for change in self._pending]
        for number in range(len(self._pending) - 1, -1, -1):
            later = [self._pending[n] for n in range(number + 1, len(self._pending)) if taken[n]]
            if not taken[number] and any(self._pending[number].shares_name(change) for change in later):
                taken[number] = True
        both = list(zip(self._pending, taken, strict=True))
        self._pending = [change for change, take in both if not take]
        return [change for change, take in both if take]

    def cut(self, random: Random) -> None:
        """The power goes: what was not synced is decided now."""
        for change in survivors(self._pending, random):
            change.apply(_durable)
        self._pending.clear()
        todo = [self.root]
        while todo:
            directory = todo.pop()
            directory.seen = dict(directory.durable)
            for name in sorted(directory.seen):
                node = directory.seen[name]
                if isinstance(node, Directory):
                    todo.append(node)
                else:
                    node.cut(random)


def _parts(path: str) -> list[str]:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not absolute")
    return [part for part in path.split("/") if part]


def error(number: int, path: str) -> OSError:
    """The OSError the operating system would raise."""
    return OSError(number, os.strerror(number), path)
