"""The numbers behind benchmarks/diagnose.py and benchmarks/few_steps.py, worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import diagnose, few_steps, tables
from ddice.runs.comparison import Results, render_table

pytestmark = pytest.mark.oracle


def test_correlation_of_moves_is_a_cosine() -> None:
    assert diagnose.correlation(
        torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    ) == pytest.approx(0.6)
    assert diagnose.correlation(torch.zeros(2), torch.ones(2)) == 0


def test_spread_is_the_deviation_within_states() -> None:
    """Candidates 0 and 2, 5 and 5: sample variances 2 and 0, whose mean is 1."""
    assert diagnose.spread(torch.tensor([[[0.0], [2.0]], [[5.0], [5.0]]])) == pytest.approx(1)


def test_all_pairs_of_seeds_count_and_one_seed_has_none() -> None:
    values = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    assert diagnose.over_pairs(values, diagnose.correlation) == "0.33"
    assert diagnose.over_pairs(values[:1], diagnose.correlation) == ""


def test_rows_before_a_termination() -> None:
    """Episodes of three, two and two rows; the first and the last terminate."""
    episode, terminations = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 0, 0, 1], bool)
    assert diagnose.before_termination(episode, terminations, 2).tolist() == [
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]


def test_rows_of_few_steps_compare_with_the_first() -> None:
    scores = np.array([[1.0], [2.0], [3.0]])
    found = [
        few_steps.Point("2S-15", 15, "eager", scores, 0.4),
        few_steps.Point("2M-5", 5, "eager", scores + 1, 0.1),
    ]
    assert few_steps.table("task", found) == [
        "| task | 2S-15 | 15 | 2.0 [1.0, 3.0] | 1.0 2.0 3.0 | 1.00 |",
        "| task | 2M-5 | 5 | 3.0 [2.0, 4.0] | 2.0 3.0 4.0 | 4.00 |",
    ]


def test_the_tables_of_the_pages_are_the_committed_ones() -> None:
    """Each block of docs/which.md and docs/fast.md is its file, and each table follows from its
    results.
    """
    names = []
    for path, count in zip(tables.PAGES, (15, 1), strict=True):
        page = path.read_text()
        found = [match[2] for match in tables.BLOCK.finditer(page)]
        assert len(found) == page.count("<!-- results/") == count
        assert tables.filled(page) == page
        names += found
    for name in names:
        if (
            name.endswith("/table.md")
            and (results := (tables.RESULTS / name).with_name("results.jsonl")).exists()
        ):
            assert (
                render_table(Results(results).rows) == (tables.RESULTS / name).read_text().strip()
            )
