"""The fast safeguards, taken out one at a time (T12); ``KQS_MUTATIONS=all`` takes out all of them."""

from __future__ import annotations

import os

import pytest

from .__main__ import MUTATIONS
from .mutation import ROOT, Mutation, find, try_mutation

ALL = os.environ.get("KQS_MUTATIONS") == "all"
CHOSEN = [mutation for mutation in MUTATIONS if mutation.fast or ALL]


@pytest.mark.parametrize("mutation", CHOSEN, ids=lambda mutation: mutation.name)
def test_a_safeguard_that_is_taken_out_is_missed(mutation: Mutation) -> None:
    verdict = try_mutation(mutation)
    assert verdict.red, f"nothing noticed it:\n{verdict.output[-3000:]}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_list_is_up_to_date(mutation: Mutation) -> None:
    source = find(mutation, ROOT / "src").read_text()
    compile(source.replace(mutation.old, mutation.new), "mutant", "exec")


def test_names_are_told_apart() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names) >= 30
