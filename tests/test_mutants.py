"""Broken on purpose, the package turns its tests red: four mutants in the ordinary run, all
others with -m slow.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import FAST, MUTANTS, Mutant, check, mutated
from rewriting import Rewriting

TEXT = """
class Solver:
    def step(self, x, h):
        # a comment
        return x + h * (
            self.slope(x) - x
        )

def step(x, h):
    return x - h
"""


def rewritten(folder: Path, text: str, *change: str, name: str = "solvers.py") -> str:
    """The new text of the one file of a package."""
    folder.mkdir()
    (folder / name).write_text(text)
    path, new = Rewriting(*change).text(folder)
    assert path == folder / name
    return new


def test_every_mutation_still_fits_the_text() -> None:
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 45
    assert set(FAST) <= {m.name for m in MUTANTS}
    for mutant in MUTANTS:
        path, text = mutated(mutant)
        assert text != path.read_text()


def test_a_form_is_changed_by_hand(tmp_path: Path) -> None:
    new = rewritten(tmp_path / "a", TEXT, "Solver.step", "X + H * Y", "X - 2 * Y")
    assert "        return x - 2 * (self.slope(x) - x)\n" in new
    assert "    return x - h" in new
    new = rewritten(tmp_path / "b", TEXT, "Solver.step", "self.slope(X) - X", "0")
    assert "return x + h * 0\n" in new
    new = rewritten(tmp_path / "c", TEXT, "step", "return X - Y", "return Y - X")
    assert new.endswith("return h - x")


def test_formatting_names_of_locals_and_files_do_not_matter(tmp_path: Path) -> None:
    change = "Solver.step", "X + H * Y", "X - H * Y"
    before = rewritten(tmp_path / "a", TEXT, *change)
    flat = TEXT.replace("(\n            self.slope(x) - x\n        )", "(self.slope(x) - x)")
    assert rewritten(tmp_path / "b", flat.replace("# a comment", ""), *change) == before
    renamed = TEXT.replace("x, h):\n        #", "y, h):\n        #").replace("(x)", "(y)")
    new = rewritten(tmp_path / "c", renamed.replace("x + h", "y + h"), *change, name="moved.py")
    assert "y - h * (self.slope(y) - x)" in new


def test_a_letter_stands_for_one_thing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found it 0 times"):
        rewritten(tmp_path / "a", TEXT, "Solver.step", "X + X * Y", "X")


@pytest.mark.parametrize(
    ("where", "find", "message"),
    [
        ("Solver.step", "X / Y", r"(?s)`X / Y` once in 'Solver.step', found it 0.*solvers.py:3\n"),
        ("Solver.step", "X / Y", r"return x \+ h \* \(self.slope\(x\) - x\)"),
        ("Solvers.step", "X - Y", "nothing bears that name; near to it: Solver.step"),
        ("step", "X - Y", r"found it 2 times, in solvers.py:6, solvers.py:10: write more of its"),
    ],
)
def test_a_mutation_that_does_not_fit_says_what_is_there(
    tmp_path: Path, where: str, find: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rewritten(tmp_path / "a", TEXT, where, find, "X")


def test_a_mutation_that_no_longer_fits_is_an_error() -> None:
    with pytest.raises(ValueError, match="mutant 'stale': expected `no_such_line` once in"):
        mutated(Mutant("stale", "guided", "no_such_line", "X", ""))


@pytest.mark.parametrize(
    "mutant",
    [pytest.param(m, id=m.name, marks=() if m.name in FAST else pytest.mark.slow) for m in MUTANTS],
)
def test_the_mutant_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    check(mutant, tmp_path)
