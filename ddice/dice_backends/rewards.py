"""Reward transforms: an ordered list in a backend's configuration, with constants fitted on the
data.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ddice.core.config import Config, unknown_name
from ddice.core.plugins import Door
from ddice.data.spec import RewardSummary


class RewardTransform(Config, abstract=True):
    """A map of rewards. One of your own gives a `kind`, `apply` and `summarise`, and `absorbing`
    where a termination leads to another reward than `apply` says.
    """

    kind: str

    def at(self, discount: float) -> RewardTransform:
        """The same for values of this discount; itself, for most."""
        return self

    @abstractmethod
    def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
        """Rewards of any shape -> transformed rewards; `summary` describes the rewards that
        arrive here.
        """

    @abstractmethod
    def summarise(self, summary: RewardSummary) -> RewardSummary:
        """The summary of the transformed rewards, in closed form."""

    def absorbing(self, reward: float, summary: RewardSummary) -> float:
        """The reward of the absorbing state that a termination leads to, where it was `reward`
        before.
        """
        return float(self.apply(torch.tensor(reward, dtype=torch.float64, device="cpu"), summary))


def _affine_summary(summary: RewardSummary, factor: float, shift: float) -> RewardSummary:
    """The summary of factor * r + shift, factor > 0. A shift moves returns by the episode's
    length: they, and the sign of r, are then unknown.
    """
    # sum_t (k r_t + b) = k R + b T, and the length T of the extreme episodes is not known.
    returns = (summary.min_return, summary.max_return) if shift == 0 else (None, None)
    scaled = [None if value is None else factor * value for value in returns]
    return RewardSummary(
        mean=factor * summary.mean + shift,
        std=factor * summary.std,
        positive_share=summary.positive_share if shift == 0 else None,
        min_return=scaled[0],
        max_return=scaled[1],
        min_nonpositive=summary.min_nonpositive,
        max_nonpositive=summary.max_nonpositive,
    )


class Scale(RewardTransform):
    """r * factor."""

    kind: Literal["scale"] = "scale"
    factor: float = Field(gt=0)

    def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
        return rewards * self.factor

    def summarise(self, summary: RewardSummary) -> RewardSummary:
        return _affine_summary(summary, self.factor, 0)


class ReturnRange(RewardTransform):
    """r * 1000 / (max return - min return) over the episodes of the data (the published choice
    for locomotion).
    """

    kind: Literal["return_range"] = "return_range"

    def _factor(self, summary: RewardSummary) -> float:
        if summary.min_return is None or summary.max_return is None:
            raise ValueError(
                '"return_range" needs the returns of whole episodes: put it before any shift '
                "of rewards, and give data with episodes"
            )
        if summary.max_return <= summary.min_return:
            raise ValueError(
                '"return_range" needs episodes of different returns, all are '
                f'{summary.max_return}: use "scale" or "standardize"'
            )
        # Published for locomotion (arXiv 2407.20109): returns then span 1000, whatever the task.
        return 1000 / (summary.max_return - summary.min_return)

    def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
        return rewards * self._factor(summary)

    def summarise(self, summary: RewardSummary) -> RewardSummary:
        return _affine_summary(summary, self._factor(summary), 0)


class Standardize(RewardTransform):
    """(r - mean) / std over the transitions of the data."""

    kind: Literal["standardize"] = "standardize"

    def _std(self, summary: RewardSummary) -> float:
        if summary.std <= 0:
            raise ValueError('"standardize" needs rewards that differ, all are equal')
        return summary.std

    def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
        return (rewards - summary.mean) / self._std(summary)

    def summarise(self, summary: RewardSummary) -> RewardSummary:
        std = self._std(summary)
        return _affine_summary(summary, 1 / std, -summary.mean / std)


class UnitValues(RewardTransform):
    """r * (1 - gamma) / rms(r): the value of earning the root mean square reward for ever is 1,
    whatever the rewards and the horizon are.

    An optimiser such as Adam moves a network's output by about as much in every step, whatever the
    units. Values in the hundreds then lag behind their targets, and ratios exp(Q - V) that should
    average 1 do not.
    """

    kind: Literal["unit_values"] = "unit_values"
    discount: float | None = Field(
        None, ge=0, lt=1, description="gamma; that of the backend unless given"
    )

    def at(self, discount: float) -> RewardTransform:
        return self if self.discount is not None else UnitValues(discount=discount)

    def _factor(self, summary: RewardSummary) -> float:
        if self.discount is None:
            raise ValueError('"unit_values" outside of a backend needs a discount')
        size = math.hypot(summary.mean, summary.std)
        if size <= 0:
            raise ValueError('"unit_values" needs rewards other than zero, all are zero')
        return (1 - self.discount) / size

    def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
        return rewards * self._factor(summary)

    def summarise(self, summary: RewardSummary) -> RewardSummary:
        return _affine_summary(summary, self._factor(summary), 0)


class MinusOneZero(RewardTransform):
    """0 where r > 0, else -1 (the published choice for AntMaze): must come first. Reaching the
    goal ends the cost, so absorption costs 0.
    """

    kind: Literal["minus_one_zero"] = "minus_one_zero"

    def _share(self, summary: RewardSummary) -> float:
        if summary.positive_share is None:
            raise ValueError('"minus_one_zero" must come before any shift of rewards')
        return summary.positive_share

    def apply(self, rewards: Tensor, summary: RewardSummary) -> Tensor:
        self._share(summary)
        return torch.where(rewards > 0, 0.0, -1.0).to(rewards.dtype)

    def summarise(self, summary: RewardSummary) -> RewardSummary:
        share = self._share(summary)
        return RewardSummary(
            # r is -1 with probability 1 - p and else 0: mean p - 1, variance p (1 - p).
            mean=share - 1,
            std=(share * (1 - share)) ** 0.5,
            positive_share=0.0,
            # A return is minus the number of steps without reward: the most such steps, the least
            # return.
            min_return=None if summary.max_nonpositive is None else -float(summary.max_nonpositive),
            max_return=None if summary.min_nonpositive is None else -float(summary.min_nonpositive),
        )

    def absorbing(self, reward: float, summary: RewardSummary) -> float:
        return 0.0


_TRANSFORMS = (Scale, ReturnRange, Standardize, UnitValues, MinusOneZero)


def _from_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = [cls.model_fields["kind"].default for cls in _TRANSFORMS]
    if value not in names:
        raise ValueError(unknown_name(value, names, "reward transform"))
    return {"kind": value}


AnyReward = Annotated[
    Scale | ReturnRange | Standardize | UnitValues | MinusOneZero | RewardTransform,
    Door("ddice.rewards"),
    BeforeValidator(_from_name),
]


class Rewards:
    """An ordered list of transforms with the constants of one dataset."""

    def __init__(self, transforms: Sequence[RewardTransform], summary: RewardSummary):
        self._steps: list[tuple[RewardTransform, RewardSummary]] = []
        # Behind a termination a raw reward of 0 is paid for ever. A shift changes it, and with it
        # what a termination is worth: standardised, it becomes -mean / std.
        absorbing = 0.0
        for transform in transforms:
            self._steps.append((transform, summary))
            absorbing = transform.absorbing(absorbing, summary)
            summary = transform.summarise(summary)
        self.absorbing = absorbing

    def __call__(self, rewards: Tensor) -> Tensor:
        """Raw rewards of any shape -> transformed rewards."""
        for transform, summary in self._steps:
            rewards = transform.apply(rewards, summary)
        return rewards
