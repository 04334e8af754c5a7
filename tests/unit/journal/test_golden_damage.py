"""The damage of :mod:`.test_damage` done to the golden journals (T3, T11).

By default to a sample of the places, the same in every run; in the nightly profile to all of them.
"""

from __future__ import annotations

from itertools import islice

import pytest

from kqs.testing.disk import SimDisk
from tests.journal.golden import Golden, contents, golden_journals

from .rig import DATA, Rig
from .test_damage import EVERY_BIT, MANIFEST, Damage, Sound, cuts, flips, judge_all, sectors, zeroed_from

#: One in this many of the cases is tried.
STEP = 1 if EVERY_BIT else 97
#: One has no frame to damage; in the others a tail is torn already, or files lie beside the journal.
LEFT_OUT = ("/empty", "/unfinished", "/leftovers")
GOLDEN = [golden for golden in golden_journals() if not golden.name.endswith(LEFT_OUT)]


async def _sound(golden: Golden) -> Sound:
    files = {f"{DATA}/{path}": data for path, data in contents(golden.data).items()}
    rig = Rig(SimDisk.holding(files))
    await rig.open().close()
    return Sound(files, [entry.entry for entry in rig.replayed])


@pytest.mark.parametrize("damage", [cuts, zeroed_from, flips, sectors], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
async def test_damage_is_named_or_does_no_harm(golden: Golden, damage: Damage) -> None:
    sound = await _sound(golden)
    for path in (MANIFEST, *map(sound.path, sound.segments)):
        outcomes = await judge_all(sound, path, islice(damage(sound.files[path]), None, None, STEP))
        assert outcomes.total() > 0
        if path != sound.path(sound.segments[-1]):
            assert set(outcomes) <= {"refused", "whole"}
