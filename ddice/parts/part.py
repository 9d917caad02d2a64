"""What the prior, the backends and the extractors have in common: parameters, averaged copies
and an optimiser that travel together.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from ddice.core.config import Config
from ddice.core.randomness import Seed, plain_seed, seed_shape
from ddice.data import Batch, Spec, Transitions
from ddice.parts import loop
from ddice.parts.adamw import AdamW
from ddice.parts.fitting import GoesOn

SHARED = ("step", "horizon")  # entries of a state that all seeds have in common


class Optimizer(Config):
    """AdamW; weight_decay = 0 is Adam."""

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay: Literal["constant", "cosine"] = Field(
        "constant", description='"cosine" lowers the learning rate to 0 over the steps of training'
    )


class Part(GoesOn, nn.Module):
    """A trainable part. `update` does one step; `state` and `load_state` hold parameters, averages,
    optimiser and step.

    With a sequence of seeds every tensor has a leading axis of seeds; `select(i)` is the part that
    seed i alone would have trained.
    """

    config: Config
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)  # Adam's usual ones
    trains: ClassVar[bool] = True

    def __init__(
        self, config: Config, optimizer: Optimizer, batch_size: int, spec: Spec, seed: Seed
    ):
        super().__init__()
        self.config = config
        self.spec = spec
        self.seed = plain_seed(seed)
        self.batch_size = batch_size
        self.step = 0
        self._horizon = 0
        self._warned = False
        self._settings = optimizer
        self._optimizer: AdamW | None = None

    @property
    def kind(self) -> str:
        """What the part is called in messages: the kind of its configuration."""
        return str(getattr(self.config, "kind", type(self).__name__))

    @property
    def warm_up(self) -> int:
        """First steps that do less work than the others: a forecast of the time leaves them out."""
        return 0

    @property
    def seed_shape(self) -> tuple[int, ...]:
        return seed_shape(self.seed)

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @property
    def optimizer(self) -> AdamW:
        """Made at the first use, when the parameters are where they will be trained."""
        if self._optimizer is None:
            self._optimizer = AdamW(
                (p for p in self.parameters() if p.requires_grad),
                betas=self.betas,
                weight_decay=self._settings.weight_decay,
            )
        return self._optimizer

    @property
    def horizon(self) -> int:
        """The step at which training ends, as far as it was said by `until`; 0 when it was not."""
        return self._horizon

    def until(self, step: int) -> Self:
        """Say at which step training ends, which is where a falling learning rate reaches 0.

        `fit` does it; a hand-written loop of n steps begins with `config.build(spec).until(n)`.
        """
        self._horizon = step
        return self

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step: the configured one, or with decay "cosine"

            rate * (1 + cos(pi * step / horizon)) / 2        (SGDR without restarts, 1608.03983).

        Without a horizon it cannot fall, and a warning says so. Raises ValueError at the horizon,
        where the rate is 0 and nothing would be learned.
        """
        rate = self._settings.learning_rate
        if self._settings.decay == "constant":
            return rate
        if not self._horizon:
            self._warn_of_no_horizon()
            return rate
        if step >= self._horizon:
            name = type(self.config).__name__
            raise ValueError(
                f"the learning rate of this {name} has fallen to 0 at step {self._horizon}, and "
                f"this is step {step}: say how far training goes on, part.until(...), or train "
                'with decay="constant"'
            )
        # torch's cosine: Python's differs in the last bit, and trained numbers with it.
        phase = torch.tensor(math.pi * (step / self._horizon), dtype=torch.float64, device="cpu")
        return rate * (0.5 + 0.5 * float(torch.cos(phase).numpy()))

    def _warn_of_no_horizon(self) -> None:
        if self._warned:
            return
        self._warned = True
        name = type(self.config).__name__
        warnings.warn(
            f"the learning rate of this {name} is to fall along a cosine, but it was never said "
            f"over how many steps, so that it stays {self._settings.learning_rate:g}: say it with "
            'build(spec, seed=0).until(steps), or ask for it with decay="constant"',
            stacklevel=5,
        )

    def expect_step(self, step: int) -> None:
        """Raise ValueError unless `step` is the next step of this part."""
        if step != self.step:
            name = type(self.config).__name__
            raise ValueError(
                f"expected update(batch, step={self.step}) of this {name}, which has done "
                f"{self.step} steps, got step={step}: noise, averages and the learning rate follow "
                "the step, so that none is left out or done twice"
            )

    def descend(
        self, loss: Tensor, step: int, *, gradients: Mapping[nn.Parameter, Tensor] | None = None
    ) -> None:
        """One optimiser step on the sum of `loss` (*seeds); `gradients` are added to those of
        the loss.
        """
        self.expect_step(step)
        rate = self.learning_rate(step)
        self.optimizer.forget_gradients()
        # Seeds share no parameter, so that each gets the gradient of its own loss from the sum.
        # AdamW works element by element, and takes the step that each seed alone would take.
        torch.autograd.backward(loss.sum())
        for parameter, gradient in (gradients or {}).items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        # Not a scheduler of torch's: the rate follows from the step, and needs no state of its own.
        self.optimizer.step(rate)
        self.step = step + 1

    def state(self) -> dict[str, Tensor]:
        """All tensors, by name: enough to go on as if never interrupted."""
        state = {f"module.{name}": value for name, value in self.state_dict().items()}
        state["step"] = _count(self.step)
        state["horizon"] = _count(self._horizon)
        if self._optimizer is None:
            return state
        for name, parameter in self.named_parameters():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError when the tensors are those of another part."""
        modules = _below("module.", state)
        own = self.state_dict()
        # Compared before anything is copied, so that a foreign state leaves the part as it was.
        differing = sorted(set(own) ^ set(modules))
        differing = differing or sorted(n for n, v in modules.items() if v.shape != own[n].shape)
        if differing:
            raise ValueError(
                f"expected the state of a {type(self).__name__} with this configuration, got "
                f"one that differs in {differing[:5]}"
            )
        self.load_state_dict(modules)
        self.step = int(state["step"])
        self._horizon = int(state["horizon"])
        for name, parameter in self.named_parameters():
            slots = _below(f"optimizer.{name}.", state)
            if slots:
                # A copy, because `state` hands out the tensors that go on being trained. Fused
                # AdamW wants its count of steps on the device of the parameters too.
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device, copy=True) for key, value in slots.items()
                }

    def select(self, index: int) -> Self:
        """The part of one seed out of several trained together, with its optimiser."""
        if isinstance(self.seed, int):
            raise ValueError("this part was trained with one seed: there is nothing to select")
        part = self.rebuild(index, self.seed[index]).to(self.device)
        target = part.state_dict()
        state = self.state()
        for name, value in state.items():
            # AdamW counts the steps of a parameter once for all seeds.
            if name in SHARED or name.endswith(".step"):
                continue
            # What all seeds share, such as the buffers of a normaliser, has the shape that one seed
            # expects, and stays whole.
            own = name.split(".", 1)[-1]
            single = target.get(own) if name.startswith("module.") else None
            if single is None or single.shape != value.shape:
                state[name] = value[index]
        part.load_state(state)
        return part

    def rebuild(self, index: int, seed: int) -> Self:
        """An untrained part like this one, for seed number `index` of several."""
        part: Self = self.config.build(self.spec, seed=seed)  # type: ignore[attr-defined]
        return part

    def identity(self, data: Transitions) -> str:
        """Names configuration, seed and data: with the number of steps, all that training depends
        on.
        """
        return self.config.digest(
            part=type(self).__name__, seed=self.seed, data=data.spec.fingerprint
        )

    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """One step of training on a batch; detached scalars, never synchronised with the host."""
        raise TypeError(f"{type(self).__name__} has no update of its own")

    def prepare(self, data: Transitions) -> None:
        """What a part needs to know of the whole dataset before its first step; nothing, for
        most.
        """

    def check_trained(self, data: Transitions) -> None:
        """Warn of what has gone wrong in training; nothing, for most."""


def _count(steps: int) -> Tensor:
    return torch.tensor(steps, dtype=torch.int64, device="cpu")


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(weights * values) / sum(weights) over the last axis."""
    return (weights * values).sum(-1) / weights.sum(-1)


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, rate: float) -> None:
    """target += rate * (source - target), for all parameters: Polyak and exponential moving
    averages.
    """
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def effective_sample_size(log_ratio: Tensor, weights: Tensor) -> Tensor:
    """(sum p w)^2 / sum p w^2 with p = weights / sum(weights), over the last axis: 1 for
    constant ratios, 0 when all are zero.
    """
    # In logarithms, because w^2 leaves float32 long before w does.
    log_p = torch.log(weights / weights.sum(-1, keepdim=True))
    first, second = (
        torch.logsumexp(log_p + log_ratio, -1),
        torch.logsumexp(log_p + 2 * log_ratio, -1),
    )
    # When all ratios are 0 this is exp(-inf + inf).
    return torch.nan_to_num(torch.exp(2 * first - second), nan=0.0)
