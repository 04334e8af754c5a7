"""Who may call: the tokens of the config file and of ``DATA/tokens.json``.

Only a token's SHA-256 is kept. Slow, salted hashes make guessable secrets, passwords, expensive to guess; 256
random bits cannot be guessed at any speed, and a slow hash would only give strangers a way to keep the server
busy.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator
from itertools import count

import msgspec
from msgspec import Struct

from ..core.calls import Role
from ..errors import Conflict, DataDirError, NotFound
from ..journal.disk import RealDisk, make_directory
from ..journal.manifest import write_all
from ..settings.config import TokenConfig

FILE = "tokens.json"
FORMAT = 1
#: What every token begins with, so that people and secret scanners know one when they see it.
PREFIX = "kqs_"


class StoredToken(TokenConfig, frozen=True):
    """A token of the file.

    Attributes:
        name: for people; no two are the same.
        role: insert, work, read or admin.
        sha256: SHA-256 of the token, 64 hex digits.
        created_at: when it was made.
    """

    created_at: dt.datetime


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    tokens: list[StoredToken]


class _Format(Struct):
    format: int


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def load(directory: str) -> list[StoredToken] | None:
    """The tokens of a data directory's file, or None when there is no file.

    Raises:
        DataDirError: the file is there and cannot be used.
    """
    path = f"{directory}/{FILE}"
    try:
        with open(path, "rb") as file:
            text = file.read()
        if (found := msgspec.json.decode(text, type=_Format).format) != FORMAT:
            raise DataDirError(f"{path}: format {found} is not known here, only {FORMAT}; start a newer KQS")
        return msgspec.json.decode(text, type=_File).tokens
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataDirError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataDirError(f"{path}: {error}; restore it, or remove it and make new tokens") from None


def new(directory: str, role: Role, name: str | None, now: dt.datetime) -> tuple[str, str]:
    """Make a token and keep its hash, durably; the directory and the file are made when they are missing.

    Args:
        directory: the data directory.
        role: what the token allows.
        name: for people; None for one made of the role and a number.
        now: the time.

    Returns:
        The token's name, and the token: nobody can tell it again.

    Raises:
        Conflict: the name is taken.
        DataDirError: the file cannot be read or written.
    """
    token = PREFIX + secrets.token_urlsafe(32)
    with _editing(directory) as tokens:
        taken = {one.name for one in tokens}
        if name is None:
            name = next(free for number in count(1) if (free := f"{role}-{number}") not in taken)
        if name in taken:
            raise Conflict(f"there is a token named {name!r}; choose another name, or revoke it first")
        tokens.append(StoredToken(name, role, digest(token), now))
    return name, token


def revoke(directory: str, name: str) -> int:
    """Take a token out of the file, durably.

    Returns:
        How many are left in it.

    Raises:
        NotFound: there is no such token.
        DataDirError: the file cannot be read or written.
    """
    if load(directory) is None:
        raise NotFound(f"there is no {directory}/{FILE}; is --data right?")
    with _editing(directory) as tokens:
        kept = [one for one in tokens if one.name != name]
        if len(kept) == len(tokens):
            raise NotFound(f"no token is named {name!r}; 'kqs token list' shows their names")
        tokens[:] = kept
    return len(kept)


@contextlib.contextmanager
def _editing(directory: str) -> Iterator[list[StoredToken]]:
    """The file's tokens, to be changed in place; written back when the block ends well."""
    try:
        make_directory(directory)
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # against a second 'kqs token'; a server's lock is DATA/lock
            tokens = load(directory) or []
            yield tokens
            _store(directory, tokens)
        finally:
            os.close(folder)
    except OSError as error:
        raise DataDirError(f"{directory}/{FILE}: cannot be written: {error.strerror}") from None


def _store(directory: str, tokens: list[StoredToken]) -> None:
    """Swap the file in: after a crash at any point the old or the new one is there, whole."""
    disk, path = RealDisk(), f"{directory}/{FILE}"
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(f"{path}.new")
    file = disk.open(f"{path}.new", create=True)
    try:
        write_all(file, msgspec.json.format(msgspec.json.encode(_File(FORMAT, tokens))) + b"\n", 0)
        file.datasync()
    finally:
        file.close()
    if os.geteuid() == 0:  # the server that must read it may be another user
        owner = os.stat(directory)
        os.chown(f"{path}.new", owner.st_uid, owner.st_gid)
    disk.rename(f"{path}.new", path)
    disk.sync_dir(directory)


class Tokens:
    """The tokens a running server knows.

    Once there was a token, everybody needs one, until the server is started without any: that the last one
    was revoked, or the file removed, opens the server to nobody.

    Args:
        directory: the data directory.
        configured: tokens of the config file.

    Attributes:
        required: whether a caller needs a token.

    Raises:
        DataDirError: the file is there and cannot be used.
    """

    def __init__(self, directory: str, configured: list[TokenConfig]) -> None:
        self._directory = directory
        self._configured = configured
        self._stored: list[StoredToken] = []
        self._seen: tuple[int, int, int] | None = None
        self.required = bool(configured)
        self.refresh()

    def find(self, sha256: str) -> TokenConfig | None:
        """The token with this hash; None when there is none (any more)."""
        found: TokenConfig | None = None
        for token in (*self._configured, *self._stored):  # all of them: the time tells nothing
            if hmac.compare_digest(token.sha256, sha256):
                found = token
        return found

    def role(self, sha256: str) -> Role | None:
        """The role of the token with this hash; None when there is none (any more)."""
        found = self.find(sha256)
        return None if found is None else found.role

    def refresh(self) -> bool:
        """Read the file if it is another one than at the last look.

        Returns:
            Whether anything may have changed.

        Raises:
            DataDirError: the new file cannot be used; the tokens known so far go on to be right.
        """
        try:
            stat = os.stat(f"{self._directory}/{FILE}")
        except (FileNotFoundError, NotADirectoryError):
            seen = None
        except OSError as error:
            raise DataDirError(f"{self._directory}/{FILE}: cannot be read: {error.strerror}") from None
        else:
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if seen == self._seen:
            return False
        self._seen = seen
        self.required = True  # there is a file, or there was one
        self._stored = load(self._directory) or []
        return True
