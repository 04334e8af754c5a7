"""Names of payloads, whose they are, and several stores as one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kqs.core.job import BulkRef
from kqs.errors import Internal
from kqs.stores.files import FileStore
from kqs.stores.names import FILES, owner, place_of
from kqs.stores.several import SeveralStores

HEX, OWNER = "0" * 32, "0123456789abcdef"


def test_a_name_tells_the_store() -> None:
    assert place_of(HEX) == FILES
    assert place_of(f"mongo/{OWNER}/{HEX}") == "mongo"
    for name in (
        "",
        "..",
        f"mongo/{OWNER}/{HEX}\n",
        f"mongo/../{HEX}",
        f"mongo/{OWNER}/{HEX}/x",
        f"{HEX}.new",
    ):
        assert place_of(name) is None


def test_an_owner_is_made_once(tmp_path: Path) -> None:
    first = owner(str(tmp_path))
    assert len(first) == 16
    assert owner(str(tmp_path)) == first
    (tmp_path / "owner").write_text("nonsense")
    assert owner(str(tmp_path)) != first


async def test_each_payload_is_where_its_name_says(tmp_path: Path) -> None:
    files = FileStore(str(tmp_path / "files"))
    several = SeveralStores({FILES: files}, FILES)
    ref = await several.put(b"x")
    assert await files.get(ref) == await several.get(ref) == b"x"
    elsewhere = BulkRef(f"mongo/{OWNER}/{HEX}", ref.sha256, 1)
    with pytest.raises(Internal, match="not configured"):
        await several.get(elsewhere)
    with pytest.raises(Internal, match="not configured"):
        await several.delete([ref, elsewhere])
    assert await several.get(ref) == b"x"
    await several.delete([ref])
    assert await several.collect((), -1) == 0
    await several.close()
