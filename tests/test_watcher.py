"""Watchers: when they look, what is written of it, and that nothing changes by it: training with
and without one, uninterrupted and resumed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from test_loop import STEPS, Toy, failing, go, records
from torch import Tensor, nn

from ddice import load_dataset
from ddice.core import cache
from ddice.data import Transitions
from ddice.parts.loop import Checkpoint, TrainingDiverged
from ddice.parts.stage import Stage, run_stage
from ddice.parts.watcher import Watcher, WatcherFailed, looks
from ddice.runs.metrics import own_looks, read_metrics
from ddice.runs.training import Training

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


@dataclass
class Seer:
    """Sees what a function of the step gives."""

    see: Callable[[int], Mapping[str, float]]
    every: int = 15
    name: str = "seer"
    identity: str = "eyes"
    steps: list[int] = field(default_factory=list)

    def look(self, step: int) -> Mapping[str, float]:
        self.steps.append(step)
        return self.see(step)


def seer_of(toy: Toy, **options: Any) -> Seer:
    return Seer(lambda step: {"sum": toy.x.sum().item(), "step": step}, **options)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, list[dict]]:
    """The state and the metrics of a watched run that nothing disturbs."""
    folder, toy = tmp_path_factory.mktemp("watched"), Toy()
    go(toy, folder, watchers=[seer_of(toy)])
    return toy, records(folder / "metrics.jsonl")


def test_looks_come_after_every_so_many_steps_and_after_the_last() -> None:
    assert looks(Seer(dict), 0, 50) == [15, 30, 45, 50]
    assert looks(Seer(dict), 30, 60) == [45, 60]
    assert looks(Seer(dict), 0, 7) == [7]
    assert looks(Seer(dict), 5, 5) == []


def test_a_watched_run_is_the_same_and_has_a_line_for_each_look(
    watched: tuple[Toy, list[dict]], tmp_path: Path
) -> None:
    plain = Toy()
    go(plain, tmp_path)
    assert torch.equal(plain.x, watched[0].x)
    of_looks = [line for line in watched[1] if "watcher" in line]
    assert [line for line in watched[1] if "watcher" not in line] == records(
        tmp_path / "metrics.jsonl"
    )
    by_hand, expected = Toy(), []
    for step in range(STEPS):
        by_hand.step(step)
        if step + 1 in (15, 30, 45, 60):
            seen = {"seer/sum": by_hand.x.sum().item(), "seer/step": step + 1}
            line = {"stage": "toy", "step": step + 1, "watcher": "seer", "identity": "eyes"}
            expected.append(line | seen)
    assert of_looks == expected


@pytest.mark.parametrize("at", [3, 15, 16, 30, 37, 59])
def test_no_look_is_lost_or_there_twice_after_a_break(
    at: int, tmp_path: Path, watched: tuple[Toy, list[dict]]
) -> None:
    broken, toy = Toy(), Toy()
    with pytest.raises(RuntimeError, match="gone"):
        go(broken, tmp_path, failing(broken, at), watchers=[seer_of(broken)])
    go(toy, tmp_path, watchers=[seer_of(toy)])
    assert torch.equal(toy.x, watched[0].x)
    assert records(tmp_path / "metrics.jsonl") == watched[1]


def test_a_watcher_that_raises_loses_no_training(
    tmp_path: Path, watched: tuple[Toy, list[dict]]
) -> None:
    """The last checkpoint is kept, the error says which; the same call looks again."""

    def blind(step: int) -> Mapping[str, float]:
        if step == 45:
            raise OSError("the lights are out")
        return {"sum": broken.x.sum().item(), "step": step}

    broken, toy = Toy(), Toy()
    message = (
        r"^toy: the watcher 'seer' failed at step 45 \(OSError: the lights are out\); the last "
        r"good checkpoint is .*checkpoint\. The same call goes on from there and looks again$"
    )
    with pytest.raises(WatcherFailed, match=message) as caught:
        go(broken, tmp_path, watchers=[Seer(blind)])
    assert isinstance(caught.value.__cause__, OSError)
    assert Checkpoint(tmp_path / "checkpoint", "toy").load(Toy()) == 40
    seer = seer_of(toy)
    go(toy, tmp_path, watchers=[seer])
    assert (toy.steps[0], seer.steps) == (40, [45, 60])
    assert torch.equal(toy.x, watched[0].x)
    assert records(tmp_path / "metrics.jsonl") == watched[1]


def test_what_is_no_number_is_refused_by_name(tmp_path: Path) -> None:
    for number, name in ((float("nan"), "nan"), (float("inf"), "inf")):
        toy = Toy()
        with pytest.raises(WatcherFailed, match=f"seer/score is {name}, expected a finite number"):
            go(toy, tmp_path, watchers=[Seer(lambda step, n=number: {"score": n}, every=7)])
    assert records(tmp_path / "metrics.jsonl")[-1]["step"] == 5


def test_nobody_looks_at_a_training_that_diverged(tmp_path: Path) -> None:
    """The metrics are checked first: what a broken network does is no news."""
    toy = Toy()
    seer = seer_of(toy, every=3)
    with pytest.raises(TrainingDiverged, match="loss is nan at step 2"):
        go(toy, tmp_path, lambda step: {"loss": torch.tensor(torch.nan)}, watchers=[seer])
    assert seer.steps == []


def test_listeners_hear_a_look_with_the_metrics_of_its_step(tmp_path: Path) -> None:
    toy, heard = Toy(), []
    seer = seer_of(toy, every=12)
    go(
        toy,
        tmp_path,
        stop=24,
        listeners=[lambda stage, step, steps, numbers: heard.append((step, set(numbers)))],
        watchers=[seer],
    )
    own, both = {"loss", "each"}, {"loss", "each", "seer/sum", "seer/step"}
    assert heard == [(5, own), (10, own), (12, both), (15, own), (20, own), (24, both)]


# -- stages


class Dreamer(nn.Module):
    """A part whose updates draw from the global generator and act by its mode: whoever disturbs
    either is found out.
    """

    kind, seed, step, batch_size, trains, warm_up = "dreamer", 0, 0, 4, True, 0
    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
        self.frozen = nn.BatchNorm1d(3).eval()

    def update(self, batch: Any, *, step: int) -> dict[str, Tensor]:
        drawn = torch.randn(8, 3) + float(np.random.rand()) + random.random()
        loss = self.frozen(self.layer(drawn)).square().mean()
        loss.backward()
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
        return {"loss": loss.detach()}

    def until(self, step: int) -> Dreamer:
        return self

    def prepare(self, data: Any) -> None: ...

    check_trained = prepare

    def identity(self, data: Any) -> str:
        return "dreamer"

    def state(self) -> dict[str, Tensor]:
        return self.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(state)


@pytest.fixture(scope="module")
def data() -> Transitions:
    return load_dataset(small.arrays(), env=small.ENV)


def dreamt(data: Transitions, rude: bool) -> dict[str, Tensor]:
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    part = Dreamer()
    watchers: list[Watcher] = []

    def look(step: int) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        assert not any(module.training for module in part.modules())
        part.layer(torch.rand(8, 3))  # moves the statistics of an unguarded BatchNorm
        part.layer.train()
        np.random.rand()
        random.random()
        return {"mean": 1.0}

    if rude:
        watchers.append(Seer(look, every=2))
    stage = Stage(
        "dreamer",
        {"dreamer": part},
        lambda batch, step: part.update(batch, step=step),
        batch_size=4,
        seed=0,
        start=0,
        stop=7,
        watchers=tuple(watchers),
    )
    run_stage(stage, data, progress=False)
    assert part.layer.training
    assert part.layer[1].training
    assert not part.frozen.training
    return part.state()


def test_a_rude_watcher_changes_no_bit(data: Transitions) -> None:
    """It draws from every global generator and switches modes."""
    quiet, rude = dreamt(data, rude=False), dreamt(data, rude=True)
    assert quiet.keys() == rude.keys()
    for name, value in quiet.items():
        assert torch.equal(value, rude[name]), name


# -- runs


class WatchedTraining(Training):
    """Two seers at every stage, of which one does not see each time."""

    identity = "first"

    def watchers(self, stage: str, **parts: Any) -> tuple[Watcher, ...]:
        self.there = {**getattr(self, "there", {}), stage: {n for n, p in parts.items() if p}}
        return (
            Seer(lambda step: {"at": step}, every=4, identity=self.identity),
            Seer(lambda step: {"at": -step}, every=100, name="sleeper"),
        )


@pytest.fixture
def npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    return small.write_npz(tmp_path / "small.npz")


def trained(cls: type[Training], npz: Path, run: Path, **changes: Any) -> tuple[Training, list]:
    recipe, said = small.recipe(npz, evaluation={"episodes": 0}, **changes), []
    training = cls(recipe, recipe.data.load(), run=run, progress=False, say=said.append)
    training.train()
    return training, said


def curves(run: Path, watcher: str) -> dict[str, list[tuple[int, float]]]:
    found = read_metrics(run / "metrics")
    return {stage: curve for (stage, name), curve in found.items() if name == f"{watcher}/at"}


def test_every_stage_can_be_watched_with_the_parts_that_are_there(
    npz: Path, tmp_path: Path
) -> None:
    training, said = trained(WatchedTraining, npz, tmp_path / "run")
    assert isinstance(training, WatchedTraining)
    assert training.there == {
        "prior": {"prior"},
        "backend": {"prior", "backend"},
        "extractor": {"prior", "backend", "extractor"},
    }
    assert curves(tmp_path / "run", "seer") == {
        "prior": [(4, 4.0), (8, 8.0), (12, 12.0)],
        "backend": [(4, 4.0), (8, 8.0), (10, 10.0)],
        "extractor": [(4, 4.0), (8, 8.0)],
    }
    assert said == []
    both, _ = trained(WatchedTraining, npz, tmp_path / "joint", schedule="joint")
    assert isinstance(both, WatchedTraining)
    assert both.there["joint"] == {"prior", "backend", "extractor"}
    assert curves(tmp_path / "joint", "sleeper")["joint"] == [(10, -10.0)]


def test_watching_changes_neither_key_nor_state_nor_the_other_metrics(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def states() -> dict[str, str]:
        digests = small.digests(cache.cache_folder())
        return {name: digest for name, digest in digests.items() if "state" in name}

    trained(WatchedTraining, npz, tmp_path / "watched")
    watched = states()
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))
    trained(Training, npz, tmp_path / "plain")
    assert states() == watched
    assert {name.split("/")[0] for name in watched} == {"data", "prior", "backend", "extractor"}
    for stage in ("prior", "backend", "extractor"):
        lines = records(tmp_path / "watched" / "metrics" / f"{stage}.jsonl")
        plain = records(tmp_path / "plain" / "metrics" / f"{stage}.jsonl")
        own, others = ([line for line in x if "watcher" not in line] for x in (lines, plain))
        assert own == others


def test_a_stage_that_is_found_shows_the_looks_that_belong_to_the_run(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(WatchedTraining, npz, tmp_path / "a")
    _, said = trained(WatchedTraining, npz, tmp_path / "b")
    assert len(said) == 3
    assert all("found trained (" in line for line in said)
    assert curves(tmp_path / "b", "seer") == curves(tmp_path / "a", "seer")
    # Nobody asks: what was seen may be of a policy that acts otherwise.
    trained(Training, npz, tmp_path / "c")
    assert curves(tmp_path / "c", "seer") == {}
    # Others ask.
    monkeypatch.setattr(WatchedTraining, "identity", "second")
    _, said = trained(WatchedTraining, npz, tmp_path / "d")
    assert curves(tmp_path / "d", "seer") == {}
    assert curves(tmp_path / "d", "sleeper") == curves(tmp_path / "a", "sleeper")
    missing = [line for line in said if "missing" in line]
    assert [line[:51] for line in missing] == [
        "prior: seer is missing at 3 of 3 steps, the first 4",
        "backend: seer is missing at 3 of 3 steps, the first",
        "extractor: seer is missing at 2 of 2 steps, the fir",
    ]


def test_looks_of_others_are_removed_line_by_line() -> None:
    lines = [
        {"stage": "a", "step": 1, "loss": 2.0},
        {"stage": "a", "step": 1, "watcher": "seer", "identity": "eyes", "seer/at": 1.0},
        {"stage": "a", "step": 1, "watcher": "seer", "identity": "ears", "seer/at": 5.0},
        {"stage": "a", "step": 2, "watcher": "other", "identity": "eyes", "other/at": 1.0},
    ]
    damaged = b'[1]\n"watcher"\n\xff\n{"watcher": "se'
    content = "".join(json.dumps(line) + "\n" for line in lines).encode() + damaged
    kept, steps = own_looks(content, [Seer(dict), Seer(dict, name="third")])
    assert kept == b"".join(content.splitlines(keepends=True)[:2]) + damaged
    assert steps == {"seer": [1], "third": []}
    assert own_looks(damaged, []) == (damaged, {})
