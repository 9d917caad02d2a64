"""Learning curves: the numbers are those of the policy of that step, and training does not notice
that it is played.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from ddice import evaluate
from ddice.cli import main
from ddice.core import cache
from ddice.extractors import SelectOnly
from ddice.parts.watcher import WatcherFailed
from ddice.policies.policy import Policy
from ddice.runs.comparison import Comparison, compare
from ddice.runs.comparison.curves_plot import plot_curves, score_curves
from ddice.runs.comparison.plan import plan
from ddice.runs.comparison.store import Result
from ddice.runs.metrics import read_metrics
from ddice.runs.recipe import Recipe
from ddice.runs.training import Trained, train

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
CURVE = {"episodes": 2, "every": 4, "curve": {"episodes": 3}}
SMALL = {"prior": 4, "backend": 10, "extractor": 8}


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


def recipe(npz: Path, **changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "steps": SMALL,
        "evaluation": CURVE,
        "data": {"source": str(npz), "env": small.SHORT},
        "device": "cpu",
    }
    return small.recipe(npz, **{**fields, **changes})


def go(asked: Recipe, run: Path | None, **options: Any) -> tuple[Trained, Any, list[str]]:
    said: list[str] = []
    found, scores = train(asked, run, progress=False, say=said.append, **options)
    return found, scores, said


def curve(run: Path, name: str = "score") -> dict[str, list[tuple[int, float]]]:
    found = read_metrics(run / "metrics")
    return {stage: points for (stage, key), points in found.items() if key == f"evaluation/{name}"}


def played(policy: Policy, episodes: int = 3) -> float:
    """By the seed and the episodes of `CURVE`."""
    return evaluate(policy, episodes=episodes, seed=0, progress=False).mean


def lines(run: Path) -> Iterator[dict[str, Any]]:
    """The metrics of a run but for how long they took."""
    for path in sorted((run / "metrics").iterdir()):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            record.pop("evaluation/seconds", None)
            yield record


@pytest.mark.parametrize("schedule", ["staged", "joint"])
def test_training_does_not_notice_that_its_policy_is_played(
    schedule: str, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states() -> dict[str, str]:
        digests = small.digests(cache.cache_folder())
        return {
            name: digest for name, digest in digests.items() if name.endswith("state.safetensors")
        }

    _, scores, _ = go(recipe(npz, schedule=schedule), tmp_path / "run")
    watched = states()
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))
    plain = recipe(npz, schedule=schedule, evaluation={"episodes": 2})
    _, plain_scores, _ = go(plain, tmp_path / "plain")
    assert states() == watched
    assert scores.returns == plain_scores.returns
    others = [line for line in lines(tmp_path / "run") if line.get("watcher") != "evaluation"]
    assert others == list(lines(tmp_path / "plain"))
    assert curve(tmp_path / "plain") == {}
    stage, steps = ("joint", [4, 8, 10]) if schedule == "joint" else ("extractor", [4, 8])
    assert [step for step, _ in curve(tmp_path / "run")[stage]] == steps


def test_the_last_point_is_the_score_of_the_trained_policy(npz: Path, tmp_path: Path) -> None:
    trained, scores, _ = go(recipe(npz), tmp_path / "run")
    ((step, score),) = curve(tmp_path / "run")["extractor"][-1:]
    assert (step, score) == (8, played(trained.policy))
    assert len(scores.returns) == 2  # the number of the run is that of the last checkpoint
    assert curve(tmp_path / "run", "length")["extractor"] == [(4, 20.0), (8, 20.0)]
    assert curve(tmp_path / "run", "return") == curve(tmp_path / "run")  # without references
    assert curve(tmp_path / "run", "seconds")["extractor"][0][1] > 0


def test_a_point_on_the_way_is_the_score_of_a_shorter_training(npz: Path, tmp_path: Path) -> None:
    """Of a backend, whose learning rate does not fall: four steps of ten are four steps."""
    asked: dict[str, Any] = {
        "evaluation": {**CURVE, "curve": {"kind": "backend", "episodes": 3, "candidates": 4}},
        "backend": {"optimizer": {"learning_rate": 0.1}},  # so that ten steps change a choice
    }
    trained, _, _ = go(recipe(npz, **asked), tmp_path / "long")
    short, _, _ = go(recipe(npz, **asked, steps={**SMALL, "backend": 4}), tmp_path / "short")
    points = dict(curve(tmp_path / "long")["backend"])
    assert list(points) == [4, 8, 10]
    assert curve(tmp_path / "short")["backend"] == [(4, points[4])]
    for found, step in ((short, 4), (trained, 10)):
        config = recipe(npz).extractor
        select = SelectOnly(
            candidates=4,
            selection=config.selection,
            solver=config.solver,
            clip_denoised=config.clip_denoised,
        )
        assert found.backend is not None
        policy = select.build(found.policy.spec, 0, found.prior).policy(q=found.backend.q)
        assert points[step] == played(policy)
    assert points[4] != points[10]


def test_an_extractor_that_is_not_trained_is_played_while_its_backend_is(
    npz: Path, tmp_path: Path
) -> None:
    select = {"kind": "select_only", **small.EXTRACTORS["select_only"]}
    trained, _, _ = go(recipe(npz, extractor=select), tmp_path / "run")
    assert list(curve(tmp_path / "run")) == ["backend"]
    assert curve(tmp_path / "run")["backend"][-1] == (10, played(trained.policy))


def test_a_joint_backend_can_be_played_too(npz: Path, tmp_path: Path) -> None:
    asked = recipe(npz, schedule="joint", evaluation={**CURVE, "curve": "backend"})
    trained, _, _ = go(asked, tmp_path / "run")
    assert trained.prior is not None
    assert trained.backend is not None
    select = asked.evaluation.curve.played(asked.extractor)
    assert select.candidates == asked.extractor.candidates == 2
    policy = select.build(trained.policy.spec, 0, trained.prior).policy(q=trained.backend.q)
    assert dict(curve(tmp_path / "run")["joint"])[10] == played(policy, episodes=20)


def test_a_stopped_run_has_the_same_curve_in_the_end(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe(npz), tmp_path / "whole")
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))

    def stop(stage: str, step: int, steps: int, metrics: Any) -> None:
        if (stage, step) == ("extractor", 4):  # after the look, before its checkpoint
            raise KeyboardInterrupt

    options: dict[str, Any] = {"checkpoint_every": 3}
    with pytest.raises(KeyboardInterrupt):
        go(recipe(npz), tmp_path / "run", listeners=[stop], **options)
    assert [step for step, _ in curve(tmp_path / "run")["extractor"]] == [4]
    go(recipe(npz), tmp_path / "run", **options)
    assert list(lines(tmp_path / "run")) == list(lines(tmp_path / "whole"))


def test_an_environment_that_breaks_costs_no_training(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(recipe(npz), tmp_path / "whole")
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("the simulator is gone")

    with monkeypatch.context() as patch:
        patch.setattr("ddice.policies.evaluation.evaluate", broken)
        with pytest.raises(
            WatcherFailed, match="extractor: the watcher 'evaluation' failed at"
        ) as e:
            go(recipe(npz), tmp_path / "run", checkpoint_every=3)
    assert "ValueError: the simulator is gone" in str(e.value)
    assert "the last good checkpoint is" in str(e.value)
    go(recipe(npz), tmp_path / "run")
    assert list(lines(tmp_path / "run")) == list(lines(tmp_path / "whole"))


# -- what is found trained


def test_a_curve_of_another_policy_is_not_shown(npz: Path, tmp_path: Path) -> None:
    """What acting alone reads changes the policy and not its training."""
    go(recipe(npz), tmp_path / "a")
    _, _, said = go(recipe(npz), tmp_path / "b")
    assert curve(tmp_path / "b") == curve(tmp_path / "a")
    assert not any("missing" in line for line in said)
    for name, changes in {
        "scale": {"extractor": {"guidance_scale": 3.0}},
        "episodes": {"evaluation": {**CURVE, "curve": {"episodes": 4}}},
        "seed": {"evaluation": {**CURVE, "seed": 1}},
        "environment": {"data": {"source": str(npz), "env": small.ENV}},
    }.items():
        _, _, said = go(recipe(npz, **changes), tmp_path / name)
        assert curve(tmp_path / name) == {}
        (line,) = (one for one in said if "missing" in one)
        assert line.startswith(
            "extractor: evaluation is missing at 2 of 2 steps, the first 4: these were trained "
            "before it was asked for, and are not trained again"
        )


# -- what cannot work


def refused(npz: Path, tmp_path: Path, message: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=message):
        go(recipe(npz, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    trained = cache.cache_folder().glob("*/*/*.safetensors")
    assert {path.parts[-3] for path in trained} <= {"data"}


def test_what_cannot_be_played_is_refused_before_training(npz: Path, tmp_path: Path) -> None:
    none = {"source": str(npz), "env": None, "action_bounds": "data"}
    refused(npz, tmp_path, "record no environment .* and evaluation.every", data=none)
    refused(npz, tmp_path, "episodes = 0 trains without", evaluation={"episodes": 0, "every": 4})
    few = {**CURVE, "curve": {"episodes": 0}}
    refused(npz, tmp_path, "greater than or equal to 1", evaluation=few)
    refused(npz, tmp_path, "say how many, evaluation.every", evaluation={"curve": "backend"})
    refused(
        npz,
        tmp_path,
        r"evaluation.every = 9 is more than the 8 steps of the stage 'extractor'",
        evaluation={**CURVE, "every": 9},
    )
    select = {"kind": "select_only", "candidates": 1}
    given = {"kind": "given", "source": "small:ratio"}
    refused(
        npz, tmp_path, "neither given nor select_only is trained", extractor=select, backend=given
    )
    of_backend = {"evaluation": {**CURVE, "curve": "backend"}}
    weighted = {"kind": "weighted_bc", **small.EXTRACTORS["weighted_bc"], "candidates": 1}
    message = "candidates = 1: say how many, evaluation.curve.candidates"
    refused(npz, tmp_path, message, extractor=weighted, **of_backend)
    gaussian = {"kind": "gaussian_bc", **small.EXTRACTORS["gaussian_bc"], "candidates": 2}
    refused(npz, tmp_path, "SelectOnly needs a prior", extractor=gaussian, **of_backend)
    with pytest.raises(ValueError, match="into the run folder: give run"):
        go(recipe(npz), None)


# -- comparisons


def grid(npz: Path, evaluation: dict[str, Any], **changes: Any) -> Comparison:
    return Comparison(
        recipe=recipe(npz, evaluation=evaluation),
        backends={"piecewise_f": small.BACKENDS["piecewise_f"]},
        extractors={
            kind: {"kind": kind, **small.EXTRACTORS[kind]}
            for kind in ("weighted_bc", "select_only")
        },
        seeds=(0, 1),
        **changes,
    )


def compared(asked: Comparison, run: Path) -> tuple[list[Result], list[str]]:
    said: list[str] = []
    return compare(asked, run, progress=False, say=said.append), said


def test_a_comparison_draws_a_curve_for_each_policy(npz: Path, tmp_path: Path) -> None:
    """Select-only is trained first, because its curve is that of the backend which both share; the
    results are in the order of the table all the same.
    """
    run = tmp_path / "run"
    asked = grid(npz, CURVE)
    results, said = compared(asked, run)
    assert not any("missing" in line for line in said)
    assert [(row.backend, row.extractor, row.seed) for row in results] == [
        (None, "behaviour policy", 0),
        (None, "behaviour policy", 1),
        ("piecewise_f", "weighted_bc", 0),
        ("piecewise_f", "weighted_bc", 1),
        ("piecewise_f", "select_only", 0),
        ("piecewise_f", "select_only", 1),
    ]
    curves = score_curves(results, run)
    assert [(one.extractor, one.stage, one.steps.tolist()) for one in curves] == [
        ("weighted_bc", "extractor", [4, 8]),
        ("select_only", "backend", [4, 8, 10]),
    ]
    for one, stage in zip(curves, ("extractor", "backend"), strict=True):
        for seed in (0, 1):
            folder = run / f"seed-{seed}" / f"piecewise_f-{one.extractor}"
            assert one.scores[seed].tolist() == [score for _, score in curve(folder)[stage]]
    assert curves[0].last.tolist() == [results[2].evaluation.mean, results[3].evaluation.mean]
    assert plot_curves(results, run, run / "curves.png")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    again, said = compared(grid(npz, CURVE), run)
    assert ([row.key for row in again], said) == ([row.key for row in results], [])
    assert plan(grid(npz, CURVE), run, asked.recipe.data.load()) == []
    with pytest.raises(ValueError, match=r"every = 9 is more than the 8 steps"):
        plan(grid(npz, {**CURVE, "every": 9}), run, asked.recipe.data.load())


def test_results_are_found_without_their_curve_which_is_said(npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    results, _ = compared(grid(npz, {"episodes": 2}), run)
    assert not plot_curves(results, run, run / "curves.png")
    assert not (run / "curves.png").exists()
    again, said = compared(grid(npz, CURVE), run)
    assert [row.key for row in again] == [row.key for row in results]
    assert len(said) == 4
    assert said[0] == (
        "piecewise_f + select_only, seed 0: found, with another learning curve than is asked for "
        "now, or without one; it is not trained again for that"
    )


def test_a_policy_that_can_have_no_curve_goes_without(npz: Path, tmp_path: Path) -> None:
    of_backend = {**CURVE, "curve": {"kind": "backend", "episodes": 1}}
    asked = grid(npz, of_backend)
    one = {"weighted_bc": asked.extractors["weighted_bc"].model_copy(update={"candidates": 1})}
    both = asked.model_copy(update={"seeds": (0,), "extractors": {**asked.extractors, **one}})
    results, said = compared(both, tmp_path / "run")
    assert [line.split(": ")[:2] for line in said if "no learning curve" in line] == [
        ["piecewise_f + weighted_bc", "no learning curve (evaluation.every"]
    ]
    assert [(c.extractor, c.stage) for c in score_curves(results, tmp_path / "run")] == [
        ("select_only", "backend")
    ]
    alone = asked.model_copy(update={"seeds": (0,), "extractors": one})
    with pytest.raises(ValueError, match=r"say how many, evaluation\.curve\.candidates"):
        compared(alone, tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


# -- who hears of it


def test_tensorboard_and_status_show_the_score(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setattr("ddice.cli.train.plot_metrics", lambda *_: True)
    run = tmp_path / "run"
    fields = {
        **small.FIELDS,
        "steps": {**SMALL, "extractor": 6},
        "evaluation": CURVE,
        "data": {"source": str(npz), "env": small.SHORT},
        "device": "cpu",
    }
    options = ["--run", str(run), "--no-progress", "--tensorboard"]
    assert main(["train", *small.flags(npz, fields), *options]) == 0
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    shown = [(one.step, one.value) for one in events.Scalars("extractor/evaluation/score")]
    expected = curve(run)["extractor"]
    assert [step for step, _ in expected] == [4, 6]
    np.testing.assert_allclose(shown, expected, rtol=1e-6)
