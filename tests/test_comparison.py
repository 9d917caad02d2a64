"""Comparisons: the grid, what is computed once, results on disk, and a table whose numbers were
worked out by hand.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from pydantic import ValidationError

from ddice import load_policy
from ddice.core.storage import content_digest
from ddice.dice_backends import GivenRatio, OptiDice, PiecewiseF
from ddice.extractors import GuideThenSelect, SelectOnly
from ddice.parts import loop
from ddice.policies.evaluation import Evaluation
from ddice.runs.comparison import Comparison, Result, Results, compare, render_table
from ddice.runs.comparison.differences import (
    PAIRED,
    difference,
    over_tasks,
    seed_differences,
    what_seeds_tell,
)
from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.scores_plot import plot_scores
from ddice.runs.comparison.store import cell_key
from ddice.runs.metrics import read_metrics
from ddice.runs.metrics_figure import plot_metrics

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


def quiet(_: str) -> None:
    pass


def recipe(npz: Path, **changes: Any) -> dict[str, Any]:
    quick = {
        "data": {"env": small.SHORT},
        "evaluation": {"episodes": 1},
        "steps": {"prior": 2, "backend": 2, "extractor": 2},
    }
    return small.recipe(npz, **small.merge(quick, changes)).model_dump(mode="json")


def grid(npz: Path, **fields: Any) -> Comparison:
    chosen = {
        "recipe": recipe(npz),
        "backends": {name: small.BACKENDS[name] for name in ("piecewise_f", "optidice")},
        "extractors": {name: small.EXTRACTORS[name] for name in ("weighted_bc", "select_only")},
        **fields,
    }
    return Comparison.model_validate(chosen)


def go(comparison: Comparison, run: Path, **options: Any) -> list[Result]:
    return compare(comparison, run, progress=False, **{"say": quiet, **options})


# -- the grid


def test_cells_in_order_behaviour_first_seeds_innermost(npz: Path) -> None:
    comparison = grid(npz, seeds=[3, 5])
    cells = list(comparison.cells())
    assert [(cell.backend, cell.extractor, cell.seed) for cell in cells] == [
        (None, BEHAVIOUR, 3),
        (None, BEHAVIOUR, 5),
        ("piecewise_f", "weighted_bc", 3),
        ("piecewise_f", "weighted_bc", 5),
        ("piecewise_f", "select_only", 3),
        ("piecewise_f", "select_only", 5),
        ("optidice", "weighted_bc", 3),
        ("optidice", "weighted_bc", 5),
        ("optidice", "select_only", 3),
        ("optidice", "select_only", 5),
    ]
    assert [cell.recipe.seed for cell in cells] == [cell.seed for cell in cells]
    for cell in cells[2:]:
        assert cell.recipe.backend == comparison.backends[cell.backend]
        assert cell.recipe.extractor == comparison.extractors[cell.extractor]
        assert cell.recipe.model_copy(
            update={"backend": 0, "extractor": 0, "seed": 0}
        ) == comparison.recipe.model_copy(update={"backend": 0, "extractor": 0, "seed": 0})


def test_the_behaviour_policy_is_one_unguided_candidate_of_the_extractors_sampler(
    npz: Path,
) -> None:
    cell = next(iter(grid(npz, recipe=recipe(npz, schedule="joint")).cells()))
    assert isinstance(cell.recipe.extractor, SelectOnly)
    assert cell.recipe.extractor.candidates == 1
    assert cell.recipe.extractor.solver.model_dump() == {**small.SOLVER, "spacing": "uniform"}
    assert cell.recipe.schedule == "staged"
    only_gaussian = grid(npz, extractors=["gaussian_bc"])
    assert next(iter(only_gaussian.cells())).recipe.extractor.solver == SelectOnly().solver


def test_pairs_leave_out_the_extractors_that_are_not_named(npz: Path) -> None:
    cells = list(grid(npz, pairs={"optidice": ["select_only"]}).cells())
    assert [(cell.backend, cell.extractor) for cell in cells[1:]] == [
        ("piecewise_f", "weighted_bc"),
        ("piecewise_f", "select_only"),
        ("optidice", "select_only"),
    ]
    assert cells[-1].recipe == list(grid(npz).cells())[-1].recipe


@pytest.mark.parametrize(
    ("pairs", "wrong"),
    [
        ({"opti": ["select_only"]}, r"got \['opti'\]"),
        ({"optidice": ["select"]}, r"got \['select'\]"),
    ],
)
def test_pairs_of_unknown_names(npz: Path, pairs: dict[str, list[str]], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        grid(npz, pairs=pairs)


@pytest.mark.parametrize(
    "value", ["piecewise_f,optidice", "piecewise_f, optidice,", ["piecewise_f", "optidice"]]
)
def test_kinds_stand_for_their_defaults(value: Any) -> None:
    assert Comparison(backends=value).backends == {
        "piecewise_f": PiecewiseF(),
        "optidice": OptiDice(),
    }


def test_names_are_the_users_and_a_kind_may_be_its_own_name() -> None:
    comparison = Comparison(
        backends={
            "soft": {"kind": "piecewise_f", "temperature": 2},
            "optidice": {"temperature": 3},
            "made": PiecewiseF(),
        },
        extractors="select_only",
    )
    assert comparison.backends == {
        "soft": PiecewiseF(temperature=2),
        "optidice": OptiDice(temperature=3),
        "made": PiecewiseF(),
    }
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_without_backends_and_extractors_those_of_the_recipe_are_compared(npz: Path) -> None:
    own = small.recipe(npz)
    comparison = Comparison(recipe=own)
    assert comparison.backends == {"piecewise_f": own.backend}
    assert comparison.extractors == {"guide_then_select": own.extractor}
    assert Comparison().extractors == {"guide_then_select": GuideThenSelect()}


@pytest.mark.parametrize(
    ("given", "seeds"),
    [("0,1,2", (0, 1, 2)), (4, (4,)), ("7", (7,)), ([1, 2], (1, 2)), (range(2), (0, 1))],
)
def test_seeds(given: Any, seeds: tuple[int, ...]) -> None:
    assert Comparison(seeds=given).seeds == seeds


@pytest.mark.parametrize("given", ["a,b", [], 1.5, ""])
def test_seeds_that_are_none(given: Any) -> None:
    with pytest.raises(ValidationError, match="seeds"):
        Comparison(seeds=given)


# -- running


def test_results_and_the_run_folder(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = grid(npz)
    said: list[str] = []
    results = go(comparison, tmp_path / "run", say=said.append)
    assert [(result.backend, result.extractor) for result in results] == [
        (cell.backend, cell.extractor) for cell in comparison.cells()
    ]
    assert [line.strip() for line in said if line.startswith("\n")] == [
        "behaviour policy, seed 0",
        "piecewise_f + weighted_bc, seed 0",
        "piecewise_f + select_only, seed 0",
        "optidice + weighted_bc, seed 0",
        "optidice + select_only, seed 0",
    ]
    assert (
        Comparison.model_validate_json((tmp_path / "run" / "comparison.json").read_text())
        == comparison
    )
    assert Results(tmp_path / "run" / "results.jsonl").rows == results
    assert results[0].diagnostics == {}
    assert set(results[1].diagnostics) == {
        "mean_ratio",
        "effective_sample_size",
        "value",
        "temperature",
    }
    assert results[1].diagnostics == results[2].diagnostics != results[3].diagnostics
    names = [
        "behaviour-policy",
        "piecewise_f-weighted_bc",
        "piecewise_f-select_only",
        "optidice-weighted_bc",
        "optidice-select_only",
    ]
    for result, name in zip(results, names, strict=True):
        folder = tmp_path / "run" / "seed-0" / name
        assert (
            Evaluation.model_validate_json((folder / "evaluation.json").read_text())
            == result.evaluation
        )
        again = small.recipe(npz, evaluation={"episodes": 1}).evaluation.evaluate(
            load_policy(folder / "policy"), progress=False
        )
        assert again is not None
        assert again.returns == result.evaluation.returns
    trained = {
        path.parent.name: sorted(one.name for one in path.iterdir())
        for path in (tmp_path / "run").glob("seed-0/*/metrics")
    }
    assert trained["behaviour-policy"] == ["prior.jsonl"]
    assert trained["optidice-weighted_bc"] == ["backend.jsonl", "extractor.jsonl", "prior.jsonl"]


def test_diagnostics_are_those_of_the_ratios(npz: Path, tmp_path: Path) -> None:
    """Weights 1 and 3 in turn: mean 2, effective sample size 2^2 / 5, on a sample of the data."""
    weights = np.resize([1.0, 3.0], small.EPISODES * small.LENGTH)
    np.save(tmp_path / "w.npy", weights)
    comparison = grid(
        npz,
        backends={"mine": {"kind": "given", "source": str(tmp_path / "w.npy"), "q": "small:q"}},
        extractors=["gaussian_bc"],
    )
    result = go(comparison, tmp_path / "run")[1]
    data = comparison.recipe.data.load()
    drawn = weights[data.sample(len(data), seed=0, step=0).rows.numpy()]
    assert result.diagnostics["mean_ratio"] == pytest.approx(drawn.mean(), rel=1e-5)
    assert result.diagnostics["effective_sample_size"] == pytest.approx(
        drawn.mean() ** 2 / (drawn**2).mean(), rel=1e-5
    )
    assert result.diagnostics["mean_ratio"] == pytest.approx(2, abs=0.3)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is really trained and evaluated."""
    names: list[str] = []
    run, evaluate = loop.run, small.recipe("x").evaluation.__class__.evaluate

    def run_spy(*args: Any, **options: Any) -> None:
        names.append(options["name"])
        run(*args, **options)

    def evaluate_spy(*args: Any, **options: Any) -> Any:
        names.append("evaluate")
        return evaluate(*args, **options)

    monkeypatch.setattr(loop, "run", run_spy)
    monkeypatch.setattr("ddice.runs.recipe.EvaluationSettings.evaluate", evaluate_spy)
    return names


def test_everything_is_computed_once(npz: Path, tmp_path: Path, work: list[str]) -> None:
    first = go(grid(npz), tmp_path / "run")
    assert work == [
        "prior",
        "evaluate",
        "backend",
        "extractor",
        "evaluate",
        "evaluate",
        "backend",
        "extractor",
        "evaluate",
        "evaluate",
    ]
    del work[:]
    content = small.digests(tmp_path / "run")
    assert go(grid(npz), tmp_path / "run") == first
    assert work == []
    assert small.digests(tmp_path / "run") == content
    # another run folder evaluates again, and trains nothing
    other = go(grid(npz), tmp_path / "other")
    assert work == ["evaluate"] * 5
    assert [result.evaluation.returns for result in other] == [
        result.evaluation.returns for result in first
    ]


def test_a_larger_grid_computes_what_is_new(npz: Path, tmp_path: Path, work: list[str]) -> None:
    first = go(
        grid(npz, extractors={"weighted_bc": small.EXTRACTORS["weighted_bc"]}), tmp_path / "run"
    )
    del work[:]
    second = go(grid(npz), tmp_path / "run")
    assert work == ["evaluate", "evaluate"]  # select_only with either backend
    assert [second[i] for i in (0, 1, 3)] == first
    go(grid(npz, seeds=[0, 1]), tmp_path / "run")
    assert work[2:] == [
        "prior",
        "evaluate",
        "backend",
        "extractor",
        "evaluate",
        "evaluate",
        "backend",
        "extractor",
        "evaluate",
        "evaluate",
    ]


def test_results_take_the_names_of_today(npz: Path, tmp_path: Path, work: list[str]) -> None:
    go(grid(npz), tmp_path / "run")
    del work[:]
    renamed = grid(npz, backends={"mine": {"kind": "piecewise_f", **small.BACKENDS["piecewise_f"]}})
    results = go(renamed, tmp_path / "run")
    assert work == []
    assert [(result.backend, result.extractor) for result in results] == [
        (None, BEHAVIOUR),
        ("mine", "weighted_bc"),
        ("mine", "select_only"),
    ]


@pytest.mark.parametrize(
    ("kept", "rest"),
    [(3, 0), (3, 50), (4, -1)],
    ids=["a line lost", "half a line", "only its newline lost"],
)
def test_a_killed_comparison_goes_on(
    kept: int, rest: int, npz: Path, tmp_path: Path, work: list[str]
) -> None:
    first = go(grid(npz), tmp_path / "run")
    path = tmp_path / "run" / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:3], lines[3][:rest]]))
    del work[:]
    results = go(grid(npz), tmp_path / "run")
    assert work == ["evaluate"] * (5 - kept)
    assert [result.evaluation.returns for result in results] == [
        result.evaluation.returns for result in first
    ]
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == [
        result.key for result in first
    ]


def test_given_ratios_count_by_their_content(npz: Path, tmp_path: Path, work: list[str]) -> None:
    path = tmp_path / "w.npy"
    comparison = grid(
        npz,
        backends={"mine": {"kind": "given", "source": str(path), "q": "small:q"}},
        extractors=["gaussian_bc"],
    )
    np.save(path, np.ones(small.EPISODES * small.LENGTH))
    go(comparison, tmp_path / "run")
    assert work == ["prior", "evaluate", "extractor", "evaluate"]
    np.save(path, np.linspace(0, 1, small.EPISODES * small.LENGTH))
    go(comparison, tmp_path / "run")
    assert work[4:] == ["extractor", "evaluate"]


def test_keys_see_recipe_and_data(npz: Path, tmp_path: Path) -> None:
    data = grid(npz).recipe.data.load()
    other = grid(small.write_npz(tmp_path / "other.npz", seed=1)).recipe.data.load()
    cells = list(grid(npz, seeds=[0, 1]).cells())
    keys = {cell_key(cell, data) for cell in cells} | {cell_key(cell, other) for cell in cells}
    assert len(keys) == 2 * len(cells)
    more = next(iter(grid(npz, recipe=recipe(npz, evaluation={"episodes": 7})).cells()))
    assert cell_key(more, data) not in keys


def test_joint_recipes(npz: Path, tmp_path: Path, work: list[str]) -> None:
    extractors = {name: small.EXTRACTORS[name] for name in ("guide_then_select", "select_only")}
    backends = {"piecewise_f": small.BACKENDS["piecewise_f"]}
    results = go(
        grid(npz, recipe=recipe(npz, schedule="joint"), backends=backends, extractors=extractors),
        tmp_path / "run",
    )
    assert work == ["prior", "evaluate", "joint", "evaluate", "backend", "evaluate"]
    assert [result.extractor for result in results] == [
        BEHAVIOUR,
        "guide_then_select",
        "select_only",
    ]
    assert (
        tmp_path / "run" / "seed-0" / "piecewise_f-guide_then_select" / "metrics" / "joint.jsonl"
    ).exists()


def test_what_cannot_work_is_refused_before_any_training(
    npz: Path, tmp_path: Path, work: list[str]
) -> None:
    without = recipe(npz, evaluation={"episodes": 0})
    with pytest.raises(
        ValueError, match=r"a comparison needs recipe\.evaluation\.episodes of at least 1"
    ):
        go(grid(npz, recipe=without), tmp_path / "run")
    backends = {
        "piecewise_f": small.BACKENDS["piecewise_f"],
        "mine": GivenRatio(source="small:ratio"),
    }
    with pytest.raises(
        ValueError, match="candidates = 2 needs a Q to choose among them and there is none"
    ):
        go(grid(npz, backends=backends), tmp_path / "run")
    assert work == []
    assert not (tmp_path / "run").exists()


# -- the table, by hand


def result(
    backend: str | None,
    extractor: str,
    seed: int,
    scores: list[float],
    clip: float = 0.0,
    size: float | None = None,
) -> Result:
    return Result(
        key=f"{backend}/{extractor}/{seed}",
        backend=backend,
        extractor=extractor,
        seed=seed,
        evaluation=Evaluation(
            env_id="Maze-v3",
            label="normalised by hand",
            reference=None,
            seed=0,
            deterministic=False,
            returns=tuple(scores),
            scores=tuple(scores),
            lengths=(50,) * len(scores),
            successes=None,
            final_successes=None,
            seconds=2.0,
            policy_seconds=0.5 + seed,
        ),
        clip_rate=clip,
        diagnostics={} if size is None else {"effective_sample_size": size, "mean_ratio": 1.0},
        train_seconds=1.0,
    )


ROWS = [
    result(None, BEHAVIOUR, 0, [10.0, 20.0], clip=0.1),
    result(None, BEHAVIOUR, 1, [20.0, 30.0], clip=0.3),
    result("a", "x", 0, [0.0, 2.0], size=0.2),
    result("a", "x", 1, [9.0, 11.0], size=0.4),
    result("a", "x", 2, [100.0, 100.0], size=0.6),
    result("b", "x", 0, [7.0]),
]


def test_the_table_by_hand() -> None:
    lines = render_table(ROWS).splitlines()
    columns = [
        "backend",
        "extractor",
        "score, mean (std)",
        "IQM [95 %]",
        "each seed",
        "minus behaviour [95 %]",
        "minus best other [95 %]",
        "ratios' effective sample size",
        "clip rate",
        "decisions/s",
    ]
    assert lines[:2] == [f"| {' | '.join(columns)} |", "|" + "---|" * 10]
    # Seeds 15 and 25: mean 20, deviation 10 / sqrt 2 = 7.07; the IQM of two trims nothing; the
    # bootstrap reaches from one seed to the other. 100 steps in 0.5 s and in 1.5 s: the median of
    # 200 and 66.7 decisions/s. Ahead of a + x by (10 + 18) / 2 = 14 and (11 + 19) / 2 = 15 on the
    # two seeds that both have: 14.5, standard error 1 / 2, Student's factor of one degree 12.706.
    assert lines[2] == (
        "|  | behaviour policy | 20.0 (7.1) | 20.0 [15.0, 25.0] | 15.0 25.0 |  | "
        "+14.5 [8.1, 20.9] |  | 0.20 | 133 |"
    )
    # Seeds 1, 10, 100: mean 37, deviation sqrt((36^2 + 27^2 + 63^2) / 2) = 54.7; trimming int(3 /
    # 4) = 0 values leaves the mean.
    assert lines[3].startswith(
        "| a | x | 37.0 (54.7) | 37.0 [1.0, 100.0] | 1.0 10.0 100.0 | -14.5 [-20.9, -8.1] | "
        "-14.5 [-20.9, -8.1] | 0.40 | 0.00 | 67 |"
    )
    # One episode where the others have two: there are no pairs.
    assert lines[4] == "| b | x | 7.0 |  | 7.0 |  |  |  | 0.00 | 100 |"
    assert lines[5:] == [
        "",
        "Scores: normalised by hand; 2 episodes per seed in Maze-v3, last checkpoint.",
        f"{PAIRED} {what_seeds_tell(3)}",
    ]
    assert "2 to 5 points comes out wrong in 19 %" in what_seeds_tell(3)
    assert "with 5 seeds" in what_seeds_tell(7)
    assert "wrong in 10 %" in what_seeds_tell(7)
    assert "1 seed cannot rank" in what_seeds_tell(1)


def test_paired_differences_by_hand() -> None:
    behaviour, policy = ROWS[:2], ROWS[2:5]
    pairs = seed_differences(policy, behaviour)
    assert {seed: found.tolist() for seed, found in pairs.items()} == {0: [-10, -18], 1: [-11, -19]}
    # Of one seed, -10 and -18: the interval is over episodes, 14 off by 4 times 12.706.
    alone = difference(policy[:1], behaviour)
    assert (alone.mean, alone.over) == (-14, "episodes")
    reach = 4 * 12.7062
    assert (alone.low, alone.high) == pytest.approx((-14 - reach, -14 + reach), rel=1e-5)
    # A single number has no interval, and what has no pairs no difference.
    single = difference(ROWS[5:], [result("c", "x", 0, [5.0])])
    assert (single.mean, single.low, single.high) == (2, -np.inf, np.inf)
    assert str(single) == "+2.0"
    assert not single.is_above
    assert difference(ROWS[5:], behaviour) is None
    other_units = [
        row.model_copy(update={"evaluation": row.evaluation.model_copy(update={"label": "raw"})})
        for row in behaviour
    ]
    assert difference(policy, other_units) is None
    # Two tasks, ahead by 14 and 15, and by 1 and 3: (14.5 + 2) / 2, variances 1/4 and 1 of the
    # means, freedom (5/4)^2 / (1/16 + 1) = 1.47, rounded down to 1.
    ahead = [result("d", "x", 0, [11.0, 21.0]), result("d", "x", 1, [23.0, 33.0])]
    both = over_tasks([(behaviour, policy), (ahead, behaviour)])
    reach = 12.7062 * (5 / 4) ** 0.5 / 2
    assert both.mean == pytest.approx(8.25)
    assert (both.low, both.high) == pytest.approx((8.25 - reach, 8.25 + reach), rel=1e-5)


def test_the_iqm_trims_a_quarter_on_either_side() -> None:
    """Of 0, 4, 6, 100 the two in the middle are left: 5; the mean is 27.5 and the deviation
    sqrt((27.5^2 + 23.5^2 + 21.5^2 + 72.5^2) / 3) = 48.4.
    """
    rows = [result("a", "x", seed, [score]) for seed, score in enumerate((100.0, 0.0, 6.0, 4.0))]
    assert "| 27.5 (48.4) | 5.0 [" in render_table(rows)


# -- results on disk


def test_results_round_trip(tmp_path: Path) -> None:
    results = Results(tmp_path / "new" / "results.jsonl")
    assert results.rows == []
    for row in ROWS:
        results.append(row)
    again = Results(results.path)
    assert again.rows == ROWS
    assert again.find("a/x/1") == ROWS[3]
    assert again.find("nothing") is None


@pytest.mark.parametrize("rest", ["{", '{"key": "x", "back', "half", "[" * 100_000, "[]", "{}"])
def test_a_half_written_last_line_is_said_kept_and_does_not_swallow_the_next(
    rest: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).append(ROWS[0])
    path.write_text(path.read_text() + rest)
    with pytest.warns(UserWarning, match=r"line 2 cannot be read .*results\.unreadable\.jsonl"):
        results = Results(path)
    assert results.rows == ROWS[:1]
    assert path.read_text().endswith(rest)  # reading changes nothing: somebody may be writing
    results.mend()
    assert (tmp_path / "results.unreadable.jsonl").read_text() == rest + "\n"
    results.append(ROWS[1])
    assert Results(path).rows == ROWS[:2]


def test_no_change_of_a_results_file_goes_unsaid(tmp_path: Path) -> None:
    """Mutations of single bytes: every row is as it was written, or its line is said and kept."""
    intact = tmp_path / "intact.jsonl"
    results = Results(intact)
    for row in ROWS:
        results.append(row)
    content, source = intact.read_bytes(), np.random.default_rng(0)
    for index in range(200):
        changed = bytearray(content)
        changed[int(source.integers(len(content)))] = int(source.integers(256))
        path = tmp_path / str(index) / "results.jsonl"
        path.parent.mkdir()
        path.write_bytes(changed)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            results = Results(path)
            results.mend()
        rows = results.rows
        assert all(row in ROWS for row in rows)
        kept = path.with_name("results.unreadable.jsonl")
        lines = kept.read_bytes().count(b"\n") if kept.exists() else 0
        assert len(said) == lines >= (len(rows) < len(ROWS))


def test_results_of_an_earlier_version_have_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for row in ROWS))
    assert Results(path).rows == ROWS


def test_results_of_a_later_version_are_refused_and_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).append(ROWS[0])
    content = json.loads(path.read_text())
    del content["digest"]
    assert content["schema"] == 2
    later = {**content, "schema": 3, "a column of then": 1}
    line = json.dumps({**later, "digest": content_digest(later)})
    path.write_text(path.read_text() + line + "\n")
    before = path.read_text()
    with pytest.raises(ValueError, match=r"line 2: it .*schema 3, .* reads up to 2: use the vers"):
        Results(path)
    assert path.read_text() == before


def test_metrics_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    folder = metrics(tmp_path / "m")
    expected = read_metrics(folder)
    path = folder / "prior.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(["[" * 100_000, "{}", *lines, '{"stage": "prior", "st']))
    with pytest.warns(UserWarning, match="cannot be read and is left out") as said:
        assert read_metrics(folder) == expected
    assert len(said) == 3


def test_a_line_that_lost_its_newline_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path).append(ROWS[0])
    path.write_text(path.read_text().rstrip("\n"))
    results = Results(path)
    results.append(ROWS[1])
    assert Results(path).rows == ROWS[:2]


# -- plots


def test_the_bars_of_the_scores_are_as_long_as_the_scores(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    path = tmp_path / "scores.png"
    plot_scores(ROWS, path)
    red, green, blue = np.moveaxis(image.imread(path)[..., :3], -1, 0)
    # Half transparent tab:blue and tab:gray on white; the dots of the seeds cover some of it, never
    # the whole height of a bar.
    bars = (abs(red - 0.56) < 0.02) & (abs(green - 0.73) < 0.02) & (abs(blue - 0.85) < 0.02)
    behaviour = (abs(red - 0.75) < 0.01) & (abs(green - 0.75) < 0.01) & (abs(blue - 0.75) < 0.01)
    rows = np.flatnonzero(bars.any(1))
    upper, lower = np.split(rows, np.flatnonzero(np.diff(rows) > 1)[:1] + 1)
    lengths = [int(mask.sum(1).max()) for mask in (behaviour, bars[upper], bars[lower])]
    np.testing.assert_allclose(np.array(lengths) / lengths[1], [20 / 37, 1, 7 / 37], atol=0.02)


def metrics(folder: Path) -> Path:
    folder.mkdir()
    lines = [
        {
            "stage": "backend",
            "step": step,
            "mean_ratio": 1 / step,
            "mean_ratio_expected": 1.0,
            "each": [1.0, 2.0],
        }
        for step in (100, 200, 300)
    ]
    (folder / "backend.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "prior.jsonl").write_text(
        json.dumps({"stage": "prior", "step": 100, "loss": 2.5}) + "\n"
    )
    return folder


def test_metrics_are_read_in_the_order_of_the_stages(tmp_path: Path) -> None:
    assert list(read_metrics(metrics(tmp_path / "m")).items()) == [
        (("prior", "loss"), [(100, 2.5)]),
        (("backend", "mean_ratio"), [(100, 0.01), (200, 0.005), (300, 1 / 300)]),
        (("backend", "mean_ratio_expected"), [(100, 1.0), (200, 1.0), (300, 1.0)]),
    ]


def test_drawing_leaves_the_backend_of_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyplot, which holds the session's backend and open figures, is not even imported."""
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setattr(matplotlib, "use", lambda *_, **__: pytest.fail("another backend"))
    plot_scores(ROWS, tmp_path / "scores.png")
    assert plot_metrics(metrics(tmp_path / "m"), tmp_path / "m.png")


def test_what_learns_from_no_ratio_is_not_trained_jointly() -> None:
    comparison = Comparison(
        recipe={"schedule": "joint"}, extractors=["guide_then_select", "select_only"]
    )
    assert [cell.recipe.schedule for cell in comparison.cells()] == ["staged", "joint", "staged"]
