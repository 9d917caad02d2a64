"""What is known about a dataset before any training: shapes, spaces, normaliser, environment,
references, fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ddice.core.config import Config
from ddice.data.horizon import Horizon
from ddice.data.paths import keys_of

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)


def _like(values: tuple[float, ...], reference: ArrayOrTensor) -> Any:
    if isinstance(reference, Tensor):
        return torch.tensor(values, dtype=reference.dtype, device=reference.device)
    return np.asarray(values, dtype=reference.dtype)


FURTHEST = 1e15
"""Deviations from the mean past which an observation is no observation: normalising layers square
what comes in, and float32 ends at 1e38. There engines answer with NaN, or with a bound.
"""

WIDE = 1e30
"""A width whose products leave float32."""


def lies_aside(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where a box [low, high] does not hold zero, around which float32 is dense, or is so wide that
    float32 cannot compute in it.
    """
    return np.asarray((low > 0) | (high < 0) | (high - low > WIDE))


def _plain(leaf: Any) -> Any:
    """A leaf of an observation as an array or a tensor of numbers that are in memory. Raises
    TypeError for others.
    """
    if not isinstance(leaf, Tensor):
        return np.asarray(leaf)
    if leaf.layout != torch.strided or leaf.is_meta or leaf.is_complex():
        raise TypeError(
            f"expected dense real numbers, got a {leaf.layout} tensor of {leaf.dtype} on "
            f"{leaf.device}"
        )
    return leaf


class BoxActions(Config):
    """Continuous actions in the box [low, high]; training sees them mapped to [-1, 1]. Only this
    class reads the bounds.
    """

    is_measured: ClassVar[bool] = True

    kind: Literal["box"] = "box"
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.low)

    def to_unit(self, actions: ArrayOrTensor) -> ArrayOrTensor:
        """Environment actions (..., A) in [low, high] -> (..., A) in [-1, 1]."""
        exact = self._exact(actions)
        low, high = _like(self.low, exact), _like(self.high, exact)
        unit: ArrayOrTensor = 2 * (exact - low) / (high - low) - 1
        return unit

    def from_unit(self, actions: ArrayOrTensor) -> ArrayOrTensor:
        """The inverse of `to_unit`: (..., A) in [-1, 1] -> environment actions (..., A); in
        float64 where the box does not hold zero.
        """
        exact = self._exact(actions)
        low, high = _like(self.low, exact), _like(self.high, exact)
        # exact at -1 and 1: no action leaves the box by rounding
        mapped: ArrayOrTensor = (1 - exact) / 2 * low + (1 + exact) / 2 * high
        return mapped

    def _exact(self, actions: ArrayOrTensor) -> ArrayOrTensor:
        """In float64 where float32 would lose digits to an offset, else as they are."""
        if not lies_aside(np.asarray(self.low), np.asarray(self.high)).any():
            return actions
        if isinstance(actions, Tensor):
            return actions.double()
        return actions.astype(np.float64)


class ObservationPart(Config):
    """One leaf of an observation: its path (see `ddice.data.paths`; "" for a plain array)
    and its shape.
    """

    path: str
    shape: tuple[int, ...]


class Observations(Config):
    """The stated order in which the leaves of an observation are flattened and concatenated;
    leaves not listed are dropped.
    """

    parts: tuple[ObservationPart, ...]

    @property
    def size(self) -> int:
        return sum(int(np.prod(part.shape)) for part in self.parts)

    def flatten(self, observation: Any) -> Any:
        """A native observation (an array, a tensor, or nested dicts of them) with any leading batch
        axes -> (*batch, S).

        An array of S numbers in place of a dict is taken as flat already. Raises ValueError naming
        the leaf whose key is missing or whose trailing shape differs.
        """
        if any(part.path for part in self.parts) and not isinstance(observation, Mapping):
            flat = _plain(observation)
            if flat.ndim and flat.shape[-1] == self.size:
                return flat
        leaves = []
        for part in self.parts:
            leaf = observation
            for key in keys_of(part.path):
                if not isinstance(leaf, Mapping) or key not in leaf:
                    have = sorted(leaf) if isinstance(leaf, Mapping) else type(leaf).__name__
                    raise ValueError(
                        f"expected an observation with the key {part.path!r}, or a flat one of "
                        f"{self.size} numbers, got {have}: is this the environment of the "
                        "dataset?"
                    )
                leaf = leaf[key]
            if isinstance(leaf, Mapping):
                raise ValueError(
                    f"expected an array of shape {part.shape}, got a dict of {sorted(leaf)}: "
                    "is this the dataset's environment?"
                )
            leaf = _plain(leaf)
            rank = len(part.shape)
            if leaf.ndim < rank or tuple(leaf.shape[leaf.ndim - rank :]) != part.shape:
                name = f"observation[{part.path!r}]" if part.path else "observation"
                raise ValueError(
                    f"expected {name} of shape (..., {', '.join(map(str, part.shape))}), got "
                    f"{tuple(leaf.shape)}"
                )
            leaves.append(
                leaf.reshape(*leaf.shape[: leaf.ndim - rank], int(np.prod(part.shape)))
            )  # not -1: a batch may be empty
        tensors = [isinstance(leaf, Tensor) for leaf in leaves]
        if all(tensors):
            return torch.cat(leaves, dim=-1)
        if any(tensors):
            raise TypeError("expected an observation of arrays or of tensors, got some of each")
        return np.concatenate(leaves, axis=-1)


class Normalizer(Config):
    """Mean and standard deviation of the flat observations; constant dimensions have a deviation
    of 1.
    """

    is_measured: ClassVar[bool] = True

    mean: tuple[float, ...]
    std: tuple[float, ...]


class FixedGoal(Config):
    """One goal, that of the evaluation environment: reward 1 when the next position lies within
    `radius` of it, else 0 (D4RL's maze2d convention).
    """

    kind: Literal["fixed"] = "fixed"
    goal: tuple[float, ...]
    radius: float


class ObservedGoal(Config):
    """The goal stays in the observation and rewards are the recorded ones; also the view of data
    without goals.
    """

    kind: Literal["observed"] = "observed"


class EnvRecord(Config):
    """The evaluation environment as Gymnasium describes it: `EnvSpec.to_json()`."""

    spec: str

    @property
    def id(self) -> str:
        return str(json.loads(self.spec)["id"])

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is cut, None without a limit."""
        fields = json.loads(self.spec)
        limits = [fields.get("max_episode_steps")]
        for wrapper in fields.get("additional_wrappers") or ():
            if wrapper["name"] == "TimeLimit":
                limits.append((wrapper.get("kwargs") or {}).get("max_episode_steps"))
        # The shortest cuts first.
        return min((int(limit) for limit in limits if limit is not None), default=None)


class ReferenceScores(Config):
    """Returns that score 0 and 1, and where they come from."""

    random: float
    expert: float
    source: str


class RewardSummary(Config):
    """Statistics of rewards from which reward transforms take their constants.

    The `*_return` numbers are over whole episodes and None without episodes; `*_nonpositive` count
    the steps of an episode with reward <= 0.
    """

    is_measured: ClassVar[bool] = True

    mean: float
    std: float
    positive_share: float | None = None
    min_return: float | None = None
    max_return: float | None = None
    min_nonpositive: int | None = None
    max_nonpositive: int | None = None


class Spec(Config):
    """Everything that a part needs to know of a dataset. Frozen and saved with every policy."""

    observations: Observations
    actions: BoxActions
    normalizer: Normalizer
    view: FixedGoal | ObservedGoal = Field(default_factory=ObservedGoal, discriminator="kind")
    env: EnvRecord | None = None
    reference: ReferenceScores | None = None
    rewards: RewardSummary
    horizon: Horizon | None = None  # of whole episodes; None for independent transitions
    transitions: int
    episodes: int
    source_rows: int
    has_initial: bool
    # Of all that training reads, and of what a model of the behaviour reads: see
    # `transitions.build`.
    fingerprint: str
    behaviour_fingerprint: str

    @property
    def limits(self) -> tuple[float, ...]:
        """How far from 0 each number of a flat observation may lie to be acted on."""
        largest = float(np.finfo(np.float32).max)
        return tuple(
            min(abs(mean) + FURTHEST * std, largest)
            for mean, std in zip(self.normalizer.mean, self.normalizer.std, strict=True)
        )
