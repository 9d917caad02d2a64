"""docs/exactness.md is complete and keeps its bounds; `python benchmarks/exactness.py` writes it
anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from ddice.dice_backends.divergences import BUILT_IN
from ddice.diffusion.solvers import Solver

TEXT = (Path(__file__).parent.parent / "docs" / "exactness.md").read_text()


def test_every_divergence_and_every_solver_has_its_rows() -> None:
    rows = [line.split("|")[1].strip() for line in TEXT.splitlines() if line.startswith("| ")]
    missing = [
        name for name in (cls.model_fields["kind"].default for cls in BUILT_IN) if name not in rows
    ]
    missing += [
        solver.__name__
        for solver in get_args(get_args(Solver)[0])
        if f"{solver.__name__}, quadratic" not in rows
    ]
    assert not missing, f"docs/exactness.md lacks {missing}: run python benchmarks/exactness.py"


def test_no_bound_is_exceeded() -> None:
    assert "exceeded" not in TEXT
    assert TEXT.count("| kept |") > 50
