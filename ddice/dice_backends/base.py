"""What all trained backends share: the fields of their configurations, the transformed rewards, V
and the temperature.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ddice.core.config import Config
from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.dice_backends.diagnostics import ratio_metrics as ratio_metrics  # found here before
from ddice.dice_backends.discount import Discount, resolve_discount
from ddice.dice_backends.q_function import QFunction
from ddice.dice_backends.rewards import AnyReward, Rewards, RewardTransform
from ddice.dice_backends.temperature import Temperature
from ddice.diffusion.networks import MLP, AnyEncoder, FlattenEncoder
from ddice.parts.fitting import Fits
from ddice.parts.part import Optimizer, Part
from ddice.parts.ratio_source import FlowStart, RatioSource
from ddice.parts.ratio_source import RatioKind as RatioKind  # found here before

# Per step and per unit of log effective sample size. It settles within some hundred steps, slower
# than the value, so that V is close to its minimum for the temperature in force.
TEMPERATURE_RATE = 0.01
# Rows whose mean value `check_trained` looks at: enough for a mean, cheap on any device.
CHECKED_ROWS = 4096
# Function approximation overshoots a little; run-away values are off by far more.
VALUE_MARGIN = 0.05
Polyak = Annotated[float, Field(gt=0, le=1, description="rate of the target networks")]


class BackendConfig(Config, Fits["Backend"], abstract=True):
    """The fields that all trained backends share. One of your own gives a `kind` and `build`."""

    kind: str

    temperature: Temperature = Field(
        1.0,
        description=(
            'strength of the f-divergence penalty in reward units, or a target such as "ess:0.3"'
        ),
    )
    discount: Discount = 0.99
    rewards: tuple[AnyReward, ...] = Field(
        (), description="ordered: unit_values, return_range, minus_one_zero, standardize, scale"
    )
    value: MLP = Field(MLP(layer_norm=True), description="network of V(s)")
    encoder: AnyEncoder = FlattenEncoder()
    optimizer: Optimizer = Optimizer(learning_rate=1e-3)
    batch_size: int = Field(512, ge=1)

    @field_validator("rewards", mode="before")
    @classmethod
    def _one_transform(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | dict | RewardTransform) else value


class Backend(Part):
    """A trained source of distribution ratios. Values and Q are in the units of the transformed
    rewards.
    """

    config: BackendConfig
    ratio_kind: ClassVar[RatioKind]
    starts_from: ClassVar[FlowStart] = "initial"  # where the flow of a state-action ratio begins
    has_q: bool = True
    has_value: bool = True
    values_are_returns: bool = True
    # What to do about values that have run away.
    remedy: ClassVar[str] = 'Raise the temperature, or let it be found: temperature="ess:0.3"'
    log_temperature: Tensor

    def __init__(self, config: BackendConfig, spec: Spec, seed: Seed):
        super().__init__(config, config.optimizer, config.batch_size, spec, seed)
        self.encoder = config.encoder.build(spec.normalizer.mean, spec.normalizer.std)
        self._discount = resolve_discount(config.discount, spec)
        transforms = [transform.at(self._discount) for transform in config.rewards]
        self.rewards = Rewards(transforms, spec.rewards)
        self.value_network = config.value.build(
            {"features": self.encoder.size}, 1, seed=seed, stream="value"
        )
        # The target effective sample size, a share of the batch; None for a fixed temperature.
        self.target_size = (
            float(config.temperature.removeprefix("ess:"))
            if isinstance(config.temperature, str)
            else None
        )
        # Kept as a logarithm: it stays positive, and adapting it multiplies. A buffer, not a
        # parameter: no loss has a gradient in it.
        start = 1.0 if isinstance(config.temperature, str) else config.temperature
        self.register_buffer(
            "log_temperature",
            torch.full(self.seed_shape, start, dtype=torch.float32, device="cpu").log(),
        )

    @property
    def discount(self) -> float:
        """gamma: the configured number, or the one derived from the data."""
        return self._discount

    @property
    def warm_up(self) -> int:
        """The steps of a warm start; none here."""
        return 0

    @property
    def temperature(self) -> Tensor:
        """The temperature in force, (*seeds): the configured number, or the one found for the
        target effective sample size.
        """
        return self.log_temperature.exp()

    @property
    def in_force(self) -> dict[str, Tensor]:
        """For the metrics, (*seeds): the temperature, and the discount where the data gave it."""
        found = {"temperature": self.temperature.detach().clone()}
        if isinstance(self.config.discount, str):
            found["discount"] = torch.full_like(self.log_temperature, self.discount)
        return found

    @property
    @abstractmethod
    def q(self) -> QFunction:
        """Q(observations, actions) -> (*seeds, M, B), a view of the live networks."""

    @abstractmethod
    def log_ratio(self, batch: Batch) -> Tensor:
        """log w of each row, (*seeds, B); may be -inf."""

    def ratio(self, batch: Batch) -> Tensor:
        """w = exp(log_ratio), (*seeds, B)."""
        return torch.exp(self.log_ratio(batch))

    def value(self, observations: Tensor) -> Tensor:
        """V(s), (*seeds, B)."""
        values: Tensor = self.value_network(self.encoder(observations))
        return values.squeeze(-1)

    def bootstrap_value(self, observations: Tensor) -> Tensor:
        """The V that targets look ahead with, (*seeds, B): the live one, for most."""
        return self.value(observations)

    def scaled(self, advantage: Tensor) -> Tensor:
        """advantage / temperature, for advantages (*seeds, B)."""
        # (*seeds, 1) broadcasts over the batch.
        return advantage / self.temperature[..., None]

    def bootstrap(self, batch: Batch, next_values: Tensor) -> Tensor:
        """r + gamma (1 - termination) V(s'), with transformed rewards; (*seeds, B)."""
        # Truncation is not termination: only a termination cuts the bootstrap. `where`, not a
        # product, keeps a non-finite V(s') behind a termination out of the value.
        return self.rewards(batch.rewards) + self.discount * torch.where(
            batch.terminations, 0.0, next_values
        )

    def prepare(self, data: Transitions) -> None:
        """What must be known of the whole dataset before the first update; nothing here. `fit`
        calls it; a hand-written loop must.
        """

    def check_trained(self, data: Transitions) -> None:
        """Warn when values average beyond every return that is possible, max(0, largest reward) /
        (1 - gamma) and the same from below.

        An error of a twentieth of the range is allowed for.
        """
        if not self.values_are_returns:
            return
        rewards = self.rewards(data.rewards)
        # Discounted sums of r in [r_min, r_max] lie in [r_min, r_max] / (1 - gamma). Zero is put
        # into the range, because after a termination no reward follows.
        low, high = (
            float(bound) / (1 - self.discount)
            for bound in (rewards.min().clamp(max=0), rewards.max().clamp(min=0))
        )
        observations = data.sample(min(CHECKED_ROWS, len(data)), seed=0, step=0).observations.to(
            self.device
        )
        with torch.no_grad():
            values = (
                self.value(observations.expand(*self.seed_shape, *observations.shape))
                .mean(-1)
                .reshape(-1)
                .tolist()
            )
        margin = VALUE_MARGIN * (high - low)
        if any(not low - margin <= value <= high + margin for value in values):
            warnings.warn(
                f"values average {', '.join(f'{value:.4g}' for value in values)}, but returns "
                f"lie between {low:.4g} and {high:.4g}: they have run "
                f"away, and the ratios with them. {self.remedy}",
                stacklevel=2,
            )

    @torch.no_grad()
    def adapt_temperature(self, effective_size: Tensor) -> None:
        """Move the temperature towards the target effective sample size: larger temperatures
        flatten the ratios.
        """
        # log alpha += rate log(target / ess). No gradient: alpha is found by feedback, not by the
        # loss. The floor guards the logarithm where all ratios are zero and ess = 0. The bound of
        # 1 limits a step to 1 % of alpha, so that V can follow.
        if self.target_size is not None:
            self.log_temperature += TEMPERATURE_RATE * (
                self.target_size / effective_size.clamp(min=1e-3)
            ).log().clamp(-1, 1)


if TYPE_CHECKING:  # read by mypy: a backend is a source of ratios

    def _as_a_source(backend: Backend) -> RatioSource:
        return backend
