"""Broken on purpose, the package turns its tests red: four mutants in the ordinary run, all
others with -m slow.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import FAST, MUTANTS, Mutant, check, mutated


def test_every_mutation_still_fits_the_text() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 20
    assert set(FAST) <= {m.name for m in MUTANTS}
    for mutant in MUTANTS:
        assert mutated(mutant)


def test_a_mutation_that_no_longer_fits_is_an_error() -> None:
    with pytest.raises(ValueError, match="found it 0 times: write it for the new text"):
        mutated(Mutant("stale", "guidance.py", "no such line", "", ""))


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=() if m.name in FAST else pytest.mark.slow) for m in MUTANTS],
)
def test_the_mutant_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    check(mutant, tmp_path)
