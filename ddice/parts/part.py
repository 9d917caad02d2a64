"""What the prior, the backends and the extractors have in common: parameters, averaged copies
and an optimiser that travel together.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from typing_extensions import Self

from ddice.core.config import Config
from ddice.core.randomness import Seed, plain_seed, seed_shape
from ddice.data import Batch, Spec, Transitions
from ddice.parts import loop


class Optimizer(Config):
    """AdamW; weight_decay = 0 is Adam."""

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay: Literal["constant", "cosine"] = Field(
        "constant", description='"cosine" lowers the learning rate to 0 over the steps of `fit`'
    )


class Part(nn.Module):
    """A trainable part. `update` does one step; `state` and `load_state` hold parameters, averages,
    optimiser and step.

    With a sequence of seeds every tensor has a leading axis of seeds; `select(i)` is the part that
    seed i alone would have trained.
    """

    config: Config
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)  # Adam's usual ones

    def __init__(
        self, config: Config, optimizer: Optimizer, batch_size: int, spec: Spec, seed: Seed
    ):
        super().__init__()
        self.config, self.spec, self.batch_size = config, spec, batch_size
        self.seed = plain_seed(seed)
        self.step, self.horizon = 0, 0
        self._settings = optimizer
        self._optimizer: torch.optim.AdamW | None = None

    @property
    def seed_shape(self) -> tuple[int, ...]:
        return seed_shape(self.seed)

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @property
    def optimizer(self) -> torch.optim.AdamW:
        """Made at the first use, when the parameters are where they will be trained."""
        if self._optimizer is None:
            trained, settings = [p for p in self.parameters() if p.requires_grad], self._settings
            self._optimizer = torch.optim.AdamW(
                trained,
                lr=settings.learning_rate,
                betas=self.betas,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        return self._optimizer

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step; cosine needs the horizon that `fit` sets, and is constant
        without one.
        """
        rate = self._settings.learning_rate
        if self._settings.decay == "cosine" and self.horizon:
            rate *= (
                0.5
                + 0.5
                * torch.cos(
                    torch.tensor(
                        torch.pi * min(1.0, step / self.horizon), dtype=torch.float64, device="cpu"
                    )
                ).item()
            )
        return rate

    def descend(
        self, loss: Tensor, step: int, *, gradients: Mapping[nn.Parameter, Tensor] | None = None
    ) -> None:
        """One optimiser step on the sum of `loss` (*seeds); `gradients` are added to those of
        the loss.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()
        for parameter, gradient in (gradients or {}).items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.optimizer.step()
        self.step = step + 1

    def state(self) -> dict[str, Tensor]:
        """All tensors, by name: enough to go on as if never interrupted."""
        state = {f"module.{name}": value for name, value in self.state_dict().items()}
        state["step"], state["horizon"] = (
            torch.tensor(self.step, dtype=torch.int64, device="cpu"),
            torch.tensor(self.horizon, dtype=torch.int64, device="cpu"),
        )
        for name, parameter in self.named_parameters():
            if self._optimizer is not None and parameter in self._optimizer.state:
                state |= {
                    f"optimizer.{name}.{key}": value
                    for key, value in self._optimizer.state[parameter].items()
                }
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`. Raises ValueError when the tensors are those of another part."""
        modules = {
            name.removeprefix("module."): value
            for name, value in state.items()
            if name.startswith("module.")
        }
        own = self.state_dict()
        if differing := sorted(set(own) ^ set(modules)) or sorted(
            n for n, v in modules.items() if v.shape != own[n].shape
        ):
            raise ValueError(
                f"expected the state of a {type(self).__name__} with this configuration, got "
                f"one that differs in {differing[:5]}"
            )
        self.load_state_dict(modules)
        self.step, self.horizon = int(state["step"]), int(state["horizon"])
        for name, parameter in self.named_parameters():
            prefix = f"optimizer.{name}."
            slots = {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
            if slots:
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
            own = name.split(".", 1)[-1]
            single = target.get(own) if name.startswith("module.") else None
            shared = (
                name in ("step", "horizon")
                or name.endswith(".step")
                or (single is not None and single.shape == value.shape)
            )
            state[name] = value if shared else value[index]
        part.load_state(state)
        return part

    def rebuild(self, index: int, seed: int) -> Self:
        """An untrained part like this one, for seed number `index` of several."""
        part: Self = self.config.build(self.spec, seed=seed)  # type: ignore[attr-defined]
        return part

    def identity(self, data: Transitions) -> str:
        """Names configuration, seed and data: what a checkpoint must agree with."""
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

    def fit(
        self,
        data: Transitions,
        *,
        steps: int,
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> Self:
        """Train for `steps` more steps. With `checkpoint`, a killed call goes on from that file
        and ends bit-identical on the CPU.
        """
        data = data.to(self.device)
        self.prepare(data)
        self.horizon = self.step + steps
        saved = (
            None
            if checkpoint is None
            else loop.Checkpoint(checkpoint, f"{self.identity(data)}/{self.horizon}")
        )
        self.run(
            data,
            lambda batch, step: self.update(batch, step=step),
            progress=progress,
            on_step=on_step,
            checkpoint=saved,
        )
        self.check_trained(data)
        return self

    def run(
        self,
        data: Transitions,
        step_function: Callable[[Batch, int], loop.Metrics],
        *,
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: loop.Checkpoint | None = None,
    ) -> None:
        """Call `step_function` on the batches of steps `self.step` .. `self.horizon` - 1; see
        `loop.run`.
        """
        loop.run(
            lambda step: step_function(
                data.sample(self.batch_size, seed=self.seed, step=step), step
            ),
            self,
            start=self.step,
            stop=self.horizon,
            name=str(getattr(self.config, "kind", type(self).__name__)),
            progress=progress,
            on_step=on_step,
            checkpoint=checkpoint,
        )


P = TypeVar("P", bound=Part)


class Fits(Generic[P]):
    """A configuration that `build`s a part P, and can train it at once."""

    @abstractmethod
    def build(self, spec: Spec, seed: Seed = 0) -> P:
        """The trainable part, untrained."""

    def fit(
        self,
        data: Transitions,
        *,
        steps: int,
        seed: Seed = 0,
        device: str | torch.device = "auto",
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> P:
        """Build the part and train it for `steps` steps on a device; see `Part.fit` for the
        other arguments.
        """
        part = self.build(data.spec, seed).to(loop.resolve_device(device))
        return part.fit(
            data, steps=steps, progress=progress, on_step=on_step, checkpoint=checkpoint
        )


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
    log_p = torch.log(weights / weights.sum(-1, keepdim=True))
    first, second = (
        torch.logsumexp(log_p + log_ratio, -1),
        torch.logsumexp(log_p + 2 * log_ratio, -1),
    )
    return torch.nan_to_num(torch.exp(2 * first - second), nan=0.0)
