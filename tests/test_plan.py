"""What a comparison says beforehand: how much is left to do, and how long it takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small

from ddice.core.storage import save_tensors
from ddice.data import stepping
from ddice.data.environment import record_of
from ddice.data.spec import EnvRecord
from ddice.parts.loop import CHECKPOINT
from ddice.policies.evaluation.pace import evaluation_seconds
from ddice.runs.comparison import Comparison, compare
from ddice.runs.comparison.plan import Task, plan
from ddice.runs.forecast import Forecast

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
STEP, EPISODE = 0.25, 3.0  # seconds, as the tests measure them


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    recipe = small.recipe(
        small.write_npz(tmp_path / "data.npz"),
        data={"env": small.SHORT},
        steps={"prior": 4, "backend": 3, "extractor": 2},
        evaluation={"episodes": 1},
    )
    guided = small.EXTRACTORS["guide_then_select"]
    extractors = {"four": guided | {"candidates": 4}, "one": guided | {"candidates": 1}}
    return Comparison(
        recipe=recipe,
        backends={"mine": {"kind": "piecewise_f", **small.BACKENDS["piecewise_f"]}},
        extractors={
            name: {"kind": "guide_then_select", **fields} for name, fields in extractors.items()
        },
        seeds=(0, 1),
    )


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured, each at the paces above."""
    names: list[str] = []

    def of_stage(stage: Any, data: Any) -> Forecast:
        names.append(stage.name)
        steps = stage.stop - stage.start
        return Forecast(stage.name, 1, steps, STEP * steps)

    def of_playing(policy: Any, *, episodes: int, parallel: int, trust_env: Any) -> float:
        names.append("playing")
        return EPISODE * episodes

    module = "ddice.runs.comparison.plan"
    monkeypatch.setattr(f"{module}.forecast_stage", of_stage)
    monkeypatch.setattr(f"{module}.evaluation_seconds", of_playing)
    return names


def test_work_is_counted_once_and_measured_once(
    comparison: Comparison, tmp_path: Path, measured: list[str]
) -> None:
    """Two seeds of each; the two extractors differ only in how they act, so they train once."""
    data = comparison.recipe.data.load()
    assert plan(comparison, tmp_path / "run", data) == [
        Task("prior", "steps", 2 * 4, 8 * STEP),
        Task("playing behaviour policy", "episodes", 2, 2 * EPISODE),
        Task("backend mine", "steps", 2 * 3, 6 * STEP),
        Task("extractor four of mine", "steps", 2 * 2, 4 * STEP),
        Task("playing four of mine", "episodes", 2, 2 * EPISODE),
        Task("playing one of mine", "episodes", 2, 2 * EPISODE),
    ]
    assert measured == ["prior", "playing", "backend", "extractor", "playing", "playing"]
    assert not (tmp_path / "run").exists()


def test_what_is_there_is_not_planned(
    comparison: Comparison, tmp_path: Path, measured: list[str]
) -> None:
    """The stages of the plan have the fingerprints of those that are trained."""
    data = comparison.recipe.data.load()
    compare(comparison, tmp_path / "run", data=data, progress=False, say=lambda text: None)
    assert plan(comparison, tmp_path / "run", data) == []
    elsewhere = plan(comparison, tmp_path / "elsewhere", data)
    assert [(task.count, task.seconds) for task in elsewhere if task.unit == "steps"] == [
        (0, 0)
    ] * 3
    assert sum(task.count for task in elsewhere if task.unit == "episodes") == 6


def test_a_checkpoint_counts(
    comparison: Comparison,
    tmp_path: Path,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three of the four steps of the first seed's prior are done."""
    from ddice.core import cache

    entry, seen = cache.entry, []

    def with_checkpoint(stage: str, key: str) -> cache.Entry:
        found = entry(stage, key)
        if stage == "prior" and not seen:
            seen.append(key)
            save_tensors(found.checkpoint, CHECKPOINT, {}, {"identity": "", "step": 3})
        return found

    monkeypatch.setattr("ddice.core.cache.entry", with_checkpoint)
    prior, *_ = plan(comparison, tmp_path / "run", comparison.recipe.data.load())
    assert prior == Task("prior", "steps", 1 + 4, 5 * STEP)


def test_nothing_to_play_is_refused(comparison: Comparison, tmp_path: Path) -> None:
    settings = comparison.recipe.evaluation.model_copy(update={"episodes": 0})
    recipe = comparison.recipe.model_copy(update={"evaluation": settings})
    with pytest.raises(ValueError, match="episodes of at least 1"):
        plan(
            comparison.model_copy(update={"recipe": recipe}),
            tmp_path,
            comparison.recipe.data.load(),
        )


class Slow:
    """Acts in two seconds of a clock of its own, however many rows there are."""

    def __init__(self, clock: list[float]):
        self.clock = clock
        self.spec = SimpleNamespace(env=record(), actions=SimpleNamespace(size=1))

    def act(self, observation: Any, deterministic: bool = False, seed: Any = None) -> np.ndarray:
        self.clock[0] += 2
        return np.zeros((len(observation), 1), dtype=np.float32)


def record() -> EnvRecord:
    return record_of(small.SHORT)


def test_the_time_of_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 episodes of 20 steps, two at a time: a step costs half a decision and 0.01 s of the
    environment.
    """
    clock, step = [0.0], stepping.step

    def slow(env: Any, action: Any) -> Any:
        clock[0] += 0.01
        return step(env, action)

    module = "ddice.policies.evaluation.pace"
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(f"{module}.stepping", SimpleNamespace(step=slow, reset=stepping.reset))
    seconds = evaluation_seconds(Slow(clock), episodes=4, parallel=2)
    assert seconds == pytest.approx(4 * 20 * (2 / 2 + 0.01), abs=0.5)
