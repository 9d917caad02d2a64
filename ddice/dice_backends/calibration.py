"""Ratios of a trained critic whose mean in every state is what it should be: V and the temperature
are solved anew, on actions of the behaviour policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import Self

from ddice.core.config import Config
from ddice.core.randomness import Seed, plain_seed, randn
from ddice.data import Batch, Spec, Transitions
from ddice.diffusion.samplers import Diffusion, DiffusionSampler
from ddice.diffusion.solvers import FEW_STEPS, AnySolver
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.parts import loop
from ddice.parts.fitting import GoesOn
from ddice.parts.part import effective_sample_size, weighted_mean
from ddice.parts.ratio_source import FlowStart, QCallable, RatioKind, RatioSource
from ddice.parts.stage import run_stage, whole

HALVINGS = 40  # of an interval of log temperatures: to the end of float32
# The temperature is found within this factor of the trained one, on as many rows at most.
FURTHEST = 1e3
ROWS = 16_384


class CriticPair(RatioSource, Protocol):
    """The trained Q, and the ratio that follows from it and from a V."""

    @property
    def discount(self) -> float: ...

    @property
    def temperature(self) -> Tensor: ...

    @property
    def target_size(self) -> float | None:
        """The effective sample size that the temperature was found for; None for a fixed one."""

    @property
    def q(self) -> QCallable: ...

    def reduced_q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The one Q that the ratio sees, (B,)."""

    def balancing_values(
        self,
        q: Tensor,  # (B, K), of actions of the behaviour policy
        temperature: Tensor,  # ()
    ) -> Tensor:
        """V (B,) for which the ratios of each state average what they should."""

    def log_ratio_at(
        self,
        advantage: Tensor,  # (B,)
        temperature: Tensor,  # ()
    ) -> Tensor:
        """log w, (B,)."""


class Calibration(Config):
    """Solve V on actions of the behaviour policy, once Q is trained, and the temperature with it.

    A network V is off by more than what actions differ by in Q: on Hopper by ten temperatures, so
    that ratios prefer states at random. With E[w | s] in every state what it should be, they
    prefer actions.
    """

    actions: int = Field(8, ge=1, description="of the prior in every state, beside the data's own")
    solver: AnySolver = FEW_STEPS
    batch_size: int = Field(1024, ge=1, description="rows of a step")

    def build(
        self, spec: Spec, seed: Seed = 0, *, backend: CriticPair, prior: TrainedPrior
    ) -> CalibratedRatio:
        """Raises ValueError for several seeds that were trained together."""
        return CalibratedRatio(self, spec, seed, backend, prior)

    def fit(
        self,
        data: Transitions,
        *,
        backend: CriticPair,
        prior: TrainedPrior,
        seed: Seed = 0,
        progress: bool = True,
        on_step: loop.OnStep | None = None,
        checkpoint: str | Path | None = None,
    ) -> CalibratedRatio:
        """The ratios of all rows of `data`, with the Q of `backend` and actions of `prior`; both
        are read, never trained. On the backend's device.
        """
        part = self.build(data.spec, seed, backend=backend, prior=prior)
        run_stage(
            whole(part, data),
            data.to(part.device),
            progress=progress,
            on_step=on_step,
            checkpoint=checkpoint,
        )
        return part


class CalibratedRatio(GoesOn):
    """w = (f*)'((Q - V) / temperature) for the rows of one dataset, with V such that the data's own
    action and those of the prior have the mean ratio of the backend. A step is for the next rows.

    The data's own action is one of K + 1 of the behaviour policy, so that E[w | s] is right for
    any K, and no ratio is above K + 1 times it. Where the backend has a target effective sample
    size, the temperature is the one that gives it.
    """

    kind: ClassVar[str] = "calibration"
    trains: ClassVar[bool] = True
    ratio_kind: ClassVar[RatioKind] = "action"
    starts_from: ClassVar[FlowStart] = "initial"
    warm_up: ClassVar[int] = 0

    def __init__(
        self,
        config: Calibration,
        spec: Spec,
        seed: Seed,
        backend: CriticPair,
        prior: TrainedPrior,
    ):
        if not isinstance(backend.seed, int) or not isinstance(prior.seed, int):
            raise ValueError(
                "Calibration is for one seed: take one of those that were trained together with "
                "select(i), of the backend and of the prior"
            )
        self.config, self.spec, self.seed = config, spec, plain_seed(seed)
        self.backend, self.prior = backend, prior
        self.batch_size = config.batch_size
        self.step = 0
        # Q of the data's action, then of the others: all alike, so that w = 1, until a row is
        # reached; NaN for rows that are not of the data.
        self._q = torch.full(
            (spec.source_rows, 1 + config.actions),
            torch.nan,
            dtype=torch.float32,
            device=backend.device,
        )
        self._temperature: Tensor | None = None
        self._data: Transitions | None = None
        settings = Diffusion(prior=prior.config, solver=config.solver)
        self._sampler = DiffusionSampler(settings, prior.encoder, prior.averaged, None)

    # -- what it has of the backend

    @property
    def device(self) -> torch.device:
        return self.backend.device

    @property
    def discount(self) -> float:
        return self.backend.discount

    @property
    def rewards(self) -> Callable[[Tensor], Tensor]:
        return self.backend.rewards

    @property
    def has_q(self) -> bool:
        return True

    @property
    def has_value(self) -> bool:
        return True

    @property
    def q(self) -> QCallable:
        return self.backend.q

    def value(self, observations: Tensor) -> Tensor:
        """V(s) as the backend has learned it, (B,)."""
        return self.backend.value(observations)

    # -- ratios

    @property
    def temperature(self) -> Tensor:
        """The temperature in force, (): for the rows that are done."""
        if self._temperature is None:
            self._temperature = self._find_temperature()
        return self._temperature

    @torch.no_grad()
    def log_ratio(self, batch: Batch) -> Tensor:
        """log w of each row, (B,), 0 where it is not reached yet. Raises ValueError before the
        first step, and for rows of other data.
        """
        inside = self.step > 0 and int(batch.rows.max()) < len(self._q)
        q = self._q[batch.rows] if inside else None
        if q is None or bool(q[:, 0].isnan().any()):
            raise ValueError(
                "calibrated ratios are those of the rows that were calibrated, and some of these "
                "are others: Calibration().fit(data, backend=..., prior=...) on these data"
            )
        return self._log_ratio(q, self.temperature)

    def ratio(self, batch: Batch) -> Tensor:
        """exp(log_ratio), (B,)."""
        return torch.exp(self.log_ratio(batch))

    def _log_ratio(
        self,
        q: Tensor,  # (B, 1 + K)
        temperature: Tensor,  # ()
    ) -> Tensor:  # (B,)
        values = self.backend.balancing_values(q, temperature)
        return self.backend.log_ratio_at(q[:, 0] - values, temperature)

    @torch.no_grad()
    def _find_temperature(self) -> Tensor:
        trained, target = self.backend.temperature, self.backend.target_size
        if target is None:
            return trained
        known = self._q[~self._q[:, 0].isnan()]
        # Evenly over all episodes, whose rows stand together.
        q = known[:: max(1, len(known) // ROWS)]
        weights = torch.ones_like(q[:, 0])
        low, high = (trained.log() + sign * math.log(FURTHEST) for sign in (-1, 1))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            size = effective_sample_size(self._log_ratio(q, middle.exp()), weights)
            # The higher the temperature, the more alike are all ratios.
            low, high = (middle, high) if bool(size < target) else (low, middle)
        return ((low + high) / 2).exp()

    # -- training, as far as there is one

    def prepare(self, data: Transitions) -> None:
        """The rows of these data are to be calibrated."""
        self._data = data
        new = self._q[data.rows, 0].isnan()
        self._q[data.rows[new]] = 0.0

    def steps_over(self, data: Transitions) -> int:
        """Steps after which all rows are done."""
        return math.ceil(len(data) / self.batch_size)

    @torch.no_grad()
    def update(self, batch: Batch, *, step: int) -> loop.Metrics:
        """The next rows in order, whatever the batch; `value_error` is how far the trained V is
        from where ratios average what they should, in temperatures.
        """
        if self._data is None:
            raise ValueError("Calibration needs the whole dataset first: call prepare(data)")
        if step != self.step:
            raise ValueError(f"expected update(batch, step={self.step}), got step={step}")
        data, count = self._data, self.config.actions
        # Beyond the end it begins anew, as in a forecast of few rows.
        first = step % self.steps_over(data) * self.batch_size
        last = min(first + self.batch_size, len(data))
        rows = data.at(torch.arange(first, last, dtype=torch.int64, device=data.device))
        shape = (last - first, count, self.spec.actions.size)
        noise = randn(self.seed, "calibration", step, shape, data.device)
        others = self._sampler(rows.observations, noise).clamp(-1, 1)
        # (B, 1 + K, A): the data's own action is one of them.
        actions = torch.cat([rows.actions[:, None], others], 1)
        states = rows.observations.repeat_interleave(1 + count, 0)
        q = self.backend.reduced_q(states, actions.flatten(0, 1)).view(last - first, 1 + count)
        self._q[rows.rows] = q
        self._temperature = None
        self.step = step + 1
        trained = self.backend.temperature
        exact = self.backend.balancing_values(q, trained)
        off = (self.backend.value(rows.observations) - exact) / trained
        return {"value_error": weighted_mean(off.square(), rows.weights).sqrt()}

    def until(self, step: int) -> Self:
        """Nothing depends on when it ends."""
        return self

    def check_trained(self, data: Transitions) -> None:
        """There is nothing that could have gone wrong."""

    def identity(self, data: Transitions) -> str:
        """Names the settings, Q and the prior, with their steps."""
        own = self.config.digest(part=type(self).__name__, seed=self.seed)
        read = [f"{part.identity(data)}@{part.step}" for part in (self.backend, self.prior)]
        return "+".join([own, *read])

    def to(self, device: torch.device | str) -> Self:
        self.backend.to(torch.device(device))
        self._q = self._q.to(device)
        return self

    def state(self) -> dict[str, Tensor]:
        """Q of the rows that are done."""
        return {"step": torch.tensor(self.step, dtype=torch.int64, device="cpu"), "q": self._q}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.step = int(state["step"])
        self._q = state["q"].to(self.device)
        self._temperature = None

    def select(self, index: int) -> Self:
        """There is one seed. Raises ValueError."""
        raise ValueError("calibrated ratios are of one seed: there is none to select")


if TYPE_CHECKING:  # read by mypy: calibrated ratios are a source of ratios

    def _as_a_source(calibrated: CalibratedRatio) -> RatioSource:
        return calibrated
