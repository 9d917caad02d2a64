"""One stage of training: which parts are updated, by what, on which batches, from step to step.

`fit`, `ddice train`, comparisons and joint training are stages, one after the other.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ddice.core.config import plain_count
from ddice.core.randomness import Seed
from ddice.data import Batch, Transitions
from ddice.parts import loop
from ddice.parts.watcher import Undisturbing, Watcher

Update = Callable[[Batch, int], loop.Metrics]  # batch, step -> metrics


class Trainable(Protocol):
    """What a stage asks of a part that it trains."""

    @property
    def kind(self) -> str:
        """What the part is called in messages."""

    @property
    def seed(self) -> Seed: ...

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def batch_size(self) -> int: ...

    @property
    def trains(self) -> bool:
        """False for a part that is ready as it is built."""

    @property
    def warm_up(self) -> int:
        """First steps that do less work than the others."""

    @property
    def device(self) -> torch.device: ...

    def to(self, device: torch.device) -> Self: ...

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One step of training on a batch; detached scalars, never synchronised with the host."""

    def until(self, step: int) -> Self:
        """Say at which step training ends, which is where a falling learning rate reaches 0."""

    def prepare(self, data: Transitions) -> None:
        """Learn what must be known of the whole dataset before the first step."""

    def check_trained(self, data: Transitions) -> None:
        """Warn of what has gone wrong in training."""

    def identity(self, data: Transitions) -> str:
        """Names all that the part depends on, but the number of its own steps."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Stage:
    """Steps `start` .. `stop` - 1 of the parts that one `update` trains on the same batches.

    `reads` are the parts that `update` reads and does not train. `update_over` gives the same
    update for one dataset, with what can be known of all of it beforehand. `watchers` look at the
    training and change nothing of it, so that the key leaves them out. A stage is saved as one
    thing: `state` and `load_state` are those of its parts, under their names.
    """

    name: str
    parts: Mapping[str, Trainable]
    update: Update
    batch_size: int
    seed: Seed
    start: int
    stop: int
    reads: tuple[Trainable, ...] = ()
    watchers: tuple[Watcher, ...] = ()
    update_over: Callable[[Transitions], Update] | None = None

    def over(self, data: Transitions) -> Stage:
        """This stage for the steps on `data`, whose parts are prepared."""
        if self.update_over is None:
            return self
        return dataclasses.replace(self, update=self.update_over(data), update_over=None)

    def step(self, data: Transitions, step: int) -> loop.Metrics:
        """One step on the batch of that step."""
        # The batch follows from seed and step alone: a resumed stage sees those that it would have
        # seen.
        return self.update(data.sample(self.batch_size, seed=self.seed, step=step), step)

    def key(self, data: Transitions) -> str:
        """32 hexadecimal digits that name all that the outcome depends on: the parts with their
        data, the parts that are read with their steps, the batches and the number of steps.
        """
        # The seed of the batches is that of the parts, which their identities hold.
        trained = [f"{name}={part.identity(data)}" for name, part in self.parts.items()]
        # An identity leaves out the number of steps, and a backend of more steps gives other
        # ratios.
        read = [f"{part.identity(data)}@{part.step}" for part in self.reads]
        text = "/".join([*trained, *read, str(self.batch_size), str(self.stop)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def state(self) -> dict[str, Tensor]:
        """All tensors of all parts."""
        return {
            f"{name}.{key}": value
            for name, part in self.parts.items()
            for key, value in part.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, part in self.parts.items():
            prefix = f"{name}."
            own = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            part.load_state(own)

    def check_trained(self, data: Transitions) -> None:
        """Warn of what has gone wrong in any part."""
        for part in self.parts.values():
            part.check_trained(data)


def alone(part: Trainable, *, steps: int | None, name: str | None = None) -> Stage:
    """The next `steps` steps of a part that learns from the data by itself.

    A part that is ready as it is built gets no steps. Raises TypeError where steps are needed and
    were not given.
    """
    if not part.trains:
        steps = 0
    if steps is None:
        raise TypeError(f"{part.kind} is trained: say for how many steps, such as steps=20_000")
    steps = plain_count(steps, "steps")
    if steps < 0:
        raise ValueError(f"expected steps of at least 0, got {steps}")
    name = part.kind if name is None else name
    return Stage(
        name=name,
        parts={name: part},
        update=lambda batch, step: part.update(batch, step=step),
        batch_size=part.batch_size,
        seed=part.seed,
        start=part.step,
        stop=part.step + steps,
    )


class Sweep(Trainable, Protocol):
    """A part that is ready when it has gone through all rows once."""

    def steps_over(self, data: Transitions) -> int:
        """The steps that takes."""


def whole(part: Sweep, data: Transitions, *, name: str | None = None) -> Stage:
    """The steps of a part that are left until it has gone through all rows of `data`."""
    return alone(part, steps=part.steps_over(data) - part.step, name=name)


def run_stage(
    stage: Stage,
    data: Transitions,  # on the device of the parts
    *,
    progress: bool = True,
    on_step: loop.OnStep | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    metrics: loop.MetricsFile | None = None,
    listeners: Sequence[loop.Listener] = (),
) -> None:
    """Do all steps of a stage; see `loop.run`. With `checkpoint`, a killed call goes on from that
    file and ends bit-identical on the CPU.
    """
    for part in stage.parts.values():
        part.prepare(data)
        part.until(stage.stop)
    if stage.start < stage.stop:
        over_data = stage.over(data)
        saved = None if checkpoint is None else loop.Checkpoint(checkpoint, stage.key(data))
        loop.run(
            lambda step: over_data.step(data, step),
            stage,
            start=stage.start,
            stop=stage.stop,
            name=stage.name,
            progress=progress,
            on_step=on_step,
            checkpoint=saved,
            checkpoint_every=checkpoint_every,
            metrics=metrics,
            listeners=listeners,
            watchers=_undisturbing(stage),
        )
    stage.check_trained(data)


def _undisturbing(stage: Stage) -> list[Watcher]:
    parts = (*stage.parts.values(), *stage.reads)
    modules = tuple(part for part in parts if isinstance(part, nn.Module))
    return [Undisturbing(watcher, modules) for watcher in stage.watchers]
