"""What is asked of everything that trains, backends and extractors alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddice.core.randomness import Seed
from ddice.data import Batch, Transitions
from ddice.parts.loop import Metrics
from ddice.testing.expect import (
    NoHostSync,
    expect,
    expect_close,
    expect_metrics,
    expect_same_state,
    survives_json,
    untouched_global_generator,
)

SEED = 5
SEEDS = (3, 5)
ROWS = 32
STEPS = 20  # more than any check takes: a learning rate that falls must know an end
State = dict[str, Tensor]


@dataclass(frozen=True)
class Bench(ABC):
    """A configuration and the data on which its part is built, trained and asked."""

    config: Any
    data: Transitions

    @property
    def name(self) -> str:
        """What reports call it."""
        return str(getattr(self.config, "kind", type(self.config).__name__))

    @abstractmethod
    def build(self, seed: Seed = SEED) -> Any:
        """The part, untrained and ready for its first step."""

    @abstractmethod
    def update(self, part: Any, batch: Batch, step: int) -> Metrics:
        """One step of training."""

    def batch(self, step: int, seed: Seed = SEED) -> Batch:
        """What every part of this seed sees at this step."""
        return self.data.sample(ROWS, seed=seed, step=step)

    def train(self, part: Any, seed: Seed = SEED, start: int = 0, stop: int = 3) -> Any:
        """The part after steps `start` .. `stop` - 1."""
        for step in range(start, stop):
            self.update(part, self.batch(step, seed), step)
        return part

    def trained(self, seed: Seed = SEED, stop: int = 3) -> Any:
        """A new part after `stop` steps."""
        return self.train(self.build(seed), seed, stop=stop)

    def gradients(self, batch: Batch) -> State:
        """The gradient that the first step takes on a batch, by the name of the parameter."""
        part = self.build()
        self.update(part, batch, 0)
        parameters = part.named_parameters() if isinstance(part, nn.Module) else ()
        return {name: each.grad for name, each in parameters if each.grad is not None}


def copied(state: State) -> State:
    """A state that further training does not change."""
    return {name: value.clone() for name, value in state.items()}


def expect_gradients(got: State, wanted: State, what: str) -> None:
    """Raise AssertionError unless both hold the same gradients, to a share of the largest."""
    expect(got.keys() == wanted.keys(), f"{what}: other parameters have a gradient")
    largest = max((float(value.abs().max()) for value in wanted.values()), default=0.0)
    atol = 1e-4 * max(largest, 1e-3)
    for name, value in wanted.items():
        expect_close(got[name], value, f"{what}: the gradient of {name}", rtol=1e-3, atol=atol)


def configuration_survives_json(bench: Bench) -> None:
    """JSON in, JSON out; unknown fields are refused."""
    survives_json(bench.config)


def metrics_are_detached_scalars(bench: Bench) -> None:
    """update returns one finite detached number per seed and name, and never waits for the
    device.
    """
    for seed, shape in ((SEED, ()), (SEEDS, (2,))):
        part = bench.build(seed)
        for step in range(2):
            batch = bench.batch(step, seed)
            if part.trains:
                with NoHostSync():
                    metrics = bench.update(part, batch, step)
            else:
                metrics = bench.update(part, batch, step)
            expect_metrics(metrics, shape)


def training_is_a_function_of_seed_and_step(bench: Bench) -> None:
    """The same seed trains the same part, another seed another one; the global generator is
    neither read nor moved.
    """
    part = bench.build()
    with untouched_global_generator("training"):
        bench.train(part)
    torch.manual_seed(12345)
    again = bench.trained().state()
    expect_same_state(again, part.state(), "the same seed after torch.manual_seed")
    if part.trains:
        other = bench.trained(SEED + 1).state()
        differs = any(not torch.equal(value, other[name]) for name, value in again.items())
        expect(differs, "another seed trains the same part")


def a_state_goes_on_as_if_never_interrupted(bench: Bench) -> None:
    """state and load_state hold all that is trained: three steps, a new part, three more steps
    are six steps, bit for bit.
    """
    whole = bench.trained(stop=6)
    state = bench.trained(stop=3).state()
    expect(all(isinstance(value, Tensor) for value in state.values()), "state holds tensors only")
    resumed = bench.build()
    resumed.load_state(copied(state))
    bench.train(resumed, start=3, stop=6)
    expect_same_state(resumed.state(), whole.state(), "the resumed part")


def one_seed_of_several_is_that_seed_alone(bench: Bench) -> None:
    """select(i) of a part trained with several seeds is what seed i trains alone."""
    together = bench.trained(SEEDS)
    for i, seed in enumerate(SEEDS):
        alone = bench.trained(seed).state()
        selected = together.select(i).state()
        for name, value in alone.items():
            what = f"{name} of seed {seed} out of {SEEDS}"
            expect_close(selected[name].float(), value.float(), what, rtol=1e-3, atol=1e-4)


PART_CHECKS = (
    configuration_survives_json,
    metrics_are_detached_scalars,
    training_is_a_function_of_seed_and_step,
    a_state_goes_on_as_if_never_interrupted,
    one_seed_of_several_is_that_seed_alone,
)
