"""The numbers behind `ddice diagnose` and benchmarks/few_steps.py, worked out by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import few_steps, tables
from ddice.cli import main
from ddice.runs.comparison import Comparison, Results, compare, render_table
from ddice.runs.diagnosis import diagnosis
from ddice.runs.diagnosis.backends import backend_numbers, before_termination
from ddice.runs.diagnosis.policies import cosine, over_pairs, spread
from ddice.runs.diagnosis.report import table
from ddice.runs.training import Training, train

pytestmark = pytest.mark.oracle


def test_the_cosine_of_two_moves() -> None:
    assert cosine(torch.tensor([[3.0, 0.0]]), torch.tensor([[3.0, 4.0]])) == pytest.approx(0.6)
    assert cosine(torch.zeros(2), torch.ones(2)) == 0


def test_spread_is_the_deviation_within_states() -> None:
    """Candidates 0 and 2, 5 and 5: sample variances 2 and 0, whose mean is 1."""
    assert spread(torch.tensor([[[0.0], [2.0]], [[5.0], [5.0]]])) == pytest.approx(1)


def test_all_pairs_of_seeds_count_and_one_seed_has_none() -> None:
    values = [torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])]
    assert over_pairs(values, cosine) == pytest.approx(1 / 3)
    assert math.isnan(over_pairs(values[:1], cosine))


def test_rows_before_a_termination() -> None:
    """Episodes of three, two and two rows; the first and the last terminate."""
    episode, terminations = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 0, 0, 0, 1], bool)
    found = before_termination(episode, terminations, 2).tolist()
    assert found == [False, True, True, False, False, True, True]


def test_the_table_leaves_out_what_is_not_there() -> None:
    rows = {("", "b"): {"score": 1.26, "length": 99.6, "agree": math.nan, "rank": 0.125}}
    assert table(("backend", "extractor"), rows).splitlines() == [
        "| backend | extractor | score | length | agree | rank |",
        "|---|---|---|---|---|---|",
        "|  | b | 1.3 | 100 |  | 0.12 |",
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A comparison of two seeds, and one recipe of it trained alone."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDICE_CACHE", str(folder / "cache"))
        recipe = small.recipe(
            small.write_npz(folder / "data.npz"),
            data={"env": small.SHORT},
            evaluation={"episodes": 1},
        )
        comparison = Comparison(
            recipe=recipe,
            backends={"mine": recipe.backend},
            extractors={"guided": recipe.extractor},
            seeds=(0, 1),
        )
        compare(comparison, folder / "grid", progress=False, say=lambda text: None)
        train(recipe, folder / "one", progress=False, say=lambda text: None)
        yield folder


@pytest.mark.filterwarnings("ignore")
def test_a_comparison_is_diagnosed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The behaviour policy is as wide as itself and has not moved; numbers of a backend are means
    of its seeds.
    """
    assert main(["diagnose", str(runs / "grid")]) == 0
    text = capsys.readouterr().out
    assert (runs / "grid" / "diagnosis.md").read_text() == text
    policies, backends = text.strip().split("\n\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in policies.splitlines()]
    assert cells[0] == [
        "backend", "extractor", "score", "outside", "spread", "moved", "agree", "rank", "length"
    ]  # fmt: skip
    behaviour, guided = (dict(zip(cells[0], row, strict=True)) for row in cells[2:])
    results = Results(runs / "grid" / "results.jsonl").rows
    mean = np.mean([row.evaluation.mean for row in results if row.backend is None])
    assert behaviour["extractor"] == "behaviour policy"
    assert behaviour["score"] == f"{mean:.1f}"
    assert (behaviour["spread"], behaviour["length"]) == ("1.00", "20")
    assert [behaviour[name] for name in ("moved", "agree", "rank")] == ["", "", ""]
    assert all(-1 <= float(guided[name]) <= 1 for name in ("agree", "rank"))
    assert float(guided["moved"]) > 0
    each = [backend_numbers(training) for training in trainings(runs / "grid")]
    expected = [np.mean([one[name] for one in each]) for name in each[0]]
    numbers = backends.splitlines()[2].split("|")[2:-1]
    assert [float(number) for number in numbers] == pytest.approx(expected, abs=0.006)


def trainings(run: Path) -> list[Training]:
    comparison = Comparison.model_validate_json((run / "comparison.json").read_text())
    data = comparison.recipe.data.load()
    return [
        Training(cell.recipe, data, progress=False, say=lambda text: None, only_found=True)
        for cell in comparison.cells()
        if cell.backend is not None
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_run_of_one_recipe_is_diagnosed(runs: Path) -> None:
    """The row of that policy is what the comparison of its seed alone would say."""
    policies, backends = diagnosis(runs / "one").split("\n\n")
    (row,) = policies.splitlines()[2:]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:2] == ["piecewise_f", "guide_then_select"]
    assert float(cells[5]) > 0
    assert cells[6:8] == ["", ""]  # seeds cannot agree where there is one
    assert backends.splitlines()[2].startswith("| piecewise_f |")


@pytest.mark.filterwarnings("ignore")
def test_what_the_cache_lost_is_said(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(runs / "no cache"))
    *_, backends = diagnosis(runs / "grid").split("\n\n")
    assert backends.startswith("backends: the trained backend is not in the cache")
    with pytest.raises(FileNotFoundError, match="the trained prior is not in the cache"):
        diagnosis(runs / "one")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        diagnosis(runs)


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
    for path, count in zip(tables.PAGES, (19, 1), strict=True):
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
