"""What a recipe will cost: parameters and time of each stage, from a few measured steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ddice.data import Transitions
from ddice.parts.stage import Stage, Trainable
from ddice.runs.recipe import Recipe
from ddice.runs.stages import Stages

STEPS = 20  # that are measured
UNCOUNTED = 3  # first steps, in which optimiser and caches are made


@dataclass(frozen=True)
class Forecast:
    """What one stage costs: trained parameters, and seconds from measured steps."""

    stage: str
    parameters: int
    steps: int
    seconds: float


def forecast(
    recipe: Recipe, data: Transitions, *, steps: int = STEPS, trust_env: Sequence[str] = ()
) -> list[Forecast]:
    """Time `steps` steps of each stage on the real data, after a few that are not counted;
    nothing is kept. trust_env: as for `ddice.evaluate`; the environment is tried, too.
    """
    timing = _Timing(recipe, data, steps, trust_env)
    timing.check()
    timing.all()
    return timing.found


class _Timing(Stages):
    """Does a few steps of each stage in place of all."""

    def __init__(self, recipe: Recipe, data: Transitions, steps: int, trust_env: Sequence[str]):
        super().__init__(recipe, data, trust_env)
        self.steps = steps
        self.found: list[Forecast] = []

    def do(self, stage: Stage) -> None:
        if any(part.trains for part in stage.parts.values()):
            self.found.append(forecast_stage(stage, self.data, steps=self.steps))


def forecast_stage(stage: Stage, data: Transitions, *, steps: int = STEPS) -> Forecast:
    """As `forecast`, of one stage; its parts are no longer what they were."""
    parts = stage.parts.values()
    first = max(part.warm_up for part in parts)
    counted = first + UNCOUNTED
    last = counted + steps
    for part in parts:
        part.prepare(data)
        # Most steps come after the warm-up, and cost more than those within it.
        set_step(part, first)
        # A falling learning rate warns where it knows no end, and is refused at the end.
        part.until(last)
    stage = stage.over(data)
    started = 0.0
    for step in range(first, last):
        if step == counted:
            started = time.perf_counter()
        metrics = stage.step(data, step)
        _ = [float(value) for value in metrics.values()]  # waits for the device
    seconds = (time.perf_counter() - started) / steps
    all_steps = stage.stop - stage.start
    parameters = sum(_trained_parameters(part) for part in parts)
    return Forecast(stage.name, parameters, all_steps, seconds * all_steps)


def set_step(part: Trainable, step: int) -> None:
    """Let a part believe that it has done so many steps."""
    part.load_state({**part.state(), "step": torch.tensor(step, dtype=torch.int64, device="cpu")})


def _trained_parameters(part: Trainable) -> int:
    if not isinstance(part, nn.Module):
        return 0
    return sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
