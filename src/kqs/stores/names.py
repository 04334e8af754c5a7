"""Names of payloads: which store a payload is in, and whose it is.

In a server's own files a name is 32 hex digits. In a store that servers share it is PLACE/OWNER/HEX: the kind
of store, 16 hex digits that stand for a server's data directory, and 32 of the payload's own. All of it is
made here; nothing a caller sends becomes part of a name.
"""

from __future__ import annotations

import os
import re
from typing import Final

FILES: Final = "files"
OWNER: Final = re.compile(r"[0-9a-f]{16}")
_FILE: Final = re.compile(r"[0-9a-f]{32}")
_REMOTE: Final = re.compile(r"([a-z]+)/([0-9a-f]{16})/([0-9a-f]{32})")


def place_of(name: str) -> str | None:
    """The kind of store a payload of this name is in; None: no store gave this name."""
    if _FILE.fullmatch(name):
        return FILES
    found = _REMOTE.fullmatch(name)
    return None if found is None else found[1]


def owner(directory: str) -> str:
    """What stands for a data directory in a shared store; made at the first call, and kept.

    Args:
        directory: the folder of bulk files, which exists.

    Raises:
        OSError: it cannot be read or written.
    """
    path = f"{directory}/owner"
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
        if OWNER.fullmatch(text):
            return text
    except FileNotFoundError:
        pass
    text = os.urandom(8).hex()
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    return text
