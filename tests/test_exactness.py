"""docs/exactness.md is complete and keeps its bounds; `python benchmarks/exactness.py` writes it
anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ddice.dice_backends.divergences import BUILT_IN
from ddice.testing import catalogue

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "exactness.md").read_text()


@pytest.fixture
def exactness(monkeypatch: pytest.MonkeyPatch):
    """The script that writes the page."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import exactness

    return exactness


def test_every_divergence_and_every_solver_has_its_rows() -> None:
    rows = [line.split("|")[1].strip() for line in TEXT.splitlines() if line.startswith("| ")]
    kinds = [str(cls.model_fields["kind"].default) for cls in BUILT_IN]
    solvers = [f"{example.part.__name__}, quadratic" for example in catalogue.SOLVERS]
    missing = [name for name in (*kinds, *solvers) if name not in rows]
    assert not missing, f"docs/exactness.md lacks {missing}: run python benchmarks/exactness.py"


def test_every_backend_has_its_rows_or_a_reason(exactness) -> None:
    missing = exactness.missing(TEXT, catalogue.BACKENDS)
    assert not missing, f"docs/exactness.md lacks {missing}: run python benchmarks/exactness.py"
    without = "\n".join(line for line in TEXT.splitlines() if "OptiDice" not in line)
    assert exactness.missing(without, catalogue.BACKENDS) == ["OptiDice"]
    without = TEXT.replace("`GivenRatio` has no rows", "")
    assert exactness.missing(without, catalogue.BACKENDS) == ["GivenRatio"]


def test_no_bound_is_exceeded() -> None:
    assert "exceeded" not in TEXT
    assert TEXT.count("| kept |") > 50
