"""Ratios of a source that is not trained meanwhile: of every row once, or of each batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small
import torch
from torch import Tensor

import ddice
from ddice.data import Batch, Transitions
from ddice.dice_backends import DeterministicDice, LambdaReturns, PiecewiseF, StateCorrection
from ddice.extractors import GaussianBC
from ddice.parts.stage import run_stage
from ddice.parts.tabulated import tabulated

BATCH = 8
TINY: dict[str, Any] = {"hidden": (16,), "layer_norm": True}
QUIET: dict[str, Any] = {"device": "cpu", "progress": False}
CONFIG = GaussianBC(network={"hidden": (16,)}, batch_size=BATCH)

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


class Told:
    """log w = 2 r + row / 10, and one more for every further seed; a list of the batches that were
    asked for.
    """

    temperature = 0.5

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def log_ratio(self, batch: Batch) -> Tensor:
        self.asked.append(batch.rows.tolist())
        return told(batch)


def told(batch: Batch) -> Tensor:
    found = 2 * batch.rewards + batch.rows / 10
    return found + torch.arange(len(found))[:, None] if found.ndim == 2 else found


def same_state(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other.state()[name]) for name, value in one.state().items())


@pytest.fixture(scope="module")
def data() -> Transitions:
    """Without the first rows of the source, so that rows are no positions."""
    _, rest = ddice.load_dataset(small.arrays(), action_bounds=(-2, 2)).split(0.5, seed=1)
    assert rest.rows.tolist() != list(range(len(rest)))
    assert len(rest) % BATCH
    return rest


def test_every_row_is_asked_for_once(data: Transitions) -> None:
    """In batches as large as those of training, the last one filled up from the start."""
    source = Told()
    ratios = tabulated(source, data, batch_size=BATCH, seed_shape=())  # type: ignore[arg-type]
    assert source.asked == []
    for step in range(4):
        batch = data.sample(BATCH, seed=0, step=step)
        assert torch.equal(ratios.log_ratio(batch), told(batch))
        assert torch.equal(ratios.ratio(batch), told(batch).exp())
    assert {len(rows) for rows in source.asked} == {BATCH}
    rows = [row for asked in source.asked for row in asked]
    assert rows == (data.rows.tolist() * 2)[: len(rows)]
    assert len(data) < len(rows) < len(data) + BATCH
    assert ratios.temperature == 0.5  # type: ignore[comparison-overlap]


def test_each_seed_has_a_table(data: Transitions) -> None:
    ratios = tabulated(Told(), data, batch_size=BATCH, seed_shape=(3,))  # type: ignore[arg-type]
    batch = data.sample(BATCH, seed=(0, 1, 2), step=0)
    assert batch.rows.shape == (3, BATCH)
    assert torch.equal(ratios.log_ratio(batch), told(batch))


def test_rows_of_other_data_have_no_ratio(data: Transitions) -> None:
    other, _ = ddice.load_dataset(small.arrays(), action_bounds=(-2, 2)).split(0.5, seed=1)
    ratios = tabulated(Told(), data, batch_size=BATCH, seed_shape=())  # type: ignore[arg-type]
    assert ratios.log_ratio(other.full()).isnan().all()
    # A stage makes a table for the data of its steps, whichever those are.
    stage = CONFIG.build(data.spec).stage(Told(), steps=len(data) + 1)  # type: ignore[arg-type]
    for step, of in enumerate((data, other)):
        assert stage.over(of).step(of, step)["loss"].isfinite()


@pytest.mark.parametrize("more", [0, 1])
def test_a_stage_makes_a_table_where_it_pays(data: Transitions, more: int) -> None:
    """Where its steps ask for more rows than there are."""
    rows, steps = data.subset(0.5, seed=0), 4
    size = len(rows) // steps + more
    rows_asked = size * steps
    source = Told()
    part = CONFIG.model_copy(update={"batch_size": size}).build(data.spec)
    stage = part.stage(source, steps=steps).over(rows)  # type: ignore[arg-type]
    for step in range(3):
        stage.step(rows, step)
    drawn = [rows.sample(size, seed=0, step=step).rows.tolist() for step in range(3)]
    assert (source.asked == drawn) == (rows_asked <= len(rows))
    assert len(source.asked) == (3 if rows_asked <= len(rows) else -(-len(rows) // size))


def sources(data: Transitions, seed: Any) -> dict[str, Any]:
    fit: dict[str, Any] = {"steps": 3, "seed": seed, **QUIET}
    pair = PiecewiseF(value=TINY, critic=TINY).fit(data, **fit)
    lambda_returns = DeterministicDice(value=TINY, backup=LambdaReturns()).fit(data, **fit)
    corrected = StateCorrection(potential=TINY, factor=TINY).fit(data, backend=pair, **fit)
    return {"pair": pair, "lambda_returns": lambda_returns, "corrected": corrected}


@pytest.mark.parametrize("seed", [0, (0, 1)], ids=["seed", "seeds"])
def test_training_is_the_loop_by_hand(data: Transitions, seed: Any) -> None:
    """Bit for bit: rows of a batch of 8 are rounded alike, wherever they stand."""
    steps = len(data)
    for name, backend in sources(data, seed).items():
        fitted = CONFIG.build(data.spec, seed).fit(
            data, backend=backend, steps=steps, progress=False
        )
        looped = CONFIG.build(data.spec, seed).until(steps)
        for step in range(steps):
            batch = data.sample(BATCH, seed=seed, step=step)
            looped.update(batch, log_ratio=backend.log_ratio(batch), step=step)
        assert same_state(fitted, looped), name


def test_a_resumed_stage_reads_what_it_would_have_read(data: Transitions, tmp_path: Path) -> None:
    """Also where the steps that are left would not pay for a table."""
    backend = PiecewiseF(value=TINY, critic=TINY).fit(data, steps=3, **QUIET)
    steps = len(data)
    whole = CONFIG.build(data.spec).fit(data, backend=backend, steps=steps, progress=False)

    def stop(step: int, _: Any) -> None:
        if step == steps - 2:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    parts = [CONFIG.build(data.spec) for _ in range(2)]
    stages = [part.stage(backend, steps=steps) for part in parts]
    every = {"progress": False, "checkpoint": path, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        run_stage(stages[0], data, **every, on_step=stop)  # type: ignore[arg-type]
    asked: list[int] = []
    run_stage(stages[1], data, **every, on_step=lambda step, _: asked.append(step))  # type: ignore[arg-type]
    assert asked
    assert asked[0] > steps - 8
    assert same_state(parts[1], whole)
