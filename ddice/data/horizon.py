"""How far ahead a critic has to see on a dataset, and what a discount makes of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddice.core.config import Config

SHORTEST, LONGEST = 0.99, 0.999
"""Discounts between which "horizon" chooses. The least is the usual one; beyond the largest, a
value is a sum over more than 1,000 steps, whose error no ordinary budget of training gets small.
"""

SPARSE = 0.75  # share of rows with one and the same reward, from which on rewards are sparse
ENDS = 0.05  # share of episodes that end by a termination, from which on survival counts
DIGITS = 4  # of a derived discount, so that what is printed can be given as a number
SHOWN = (0.99, 0.995, 0.998, 0.999)


def survival_value(reward: float, hazard: float, discount: float) -> float:
    """r / (1 - gamma (1 - h)): the discounted sum of a reward r in every step until a
    termination, which comes after each step with probability h.
    """
    return reward / (1 - discount * (1 - hazard))


class Horizon(Config):
    """Where returns are made, in steps from the rows of a dataset. Lengths are means over rows,
    not over episodes: in a mixture of policies the rows of one that survives long count as much as
    those of one that falls at once, and often.
    """

    usual_share: float  # of the rows: those with the most frequent reward
    path: float | None  # of the stretch that leads a row of the usual reward to another one
    length: float  # of the episode that a row lies in
    hazard: float  # terminations per step
    terminated: float  # share of the episodes

    @property
    def sparse(self) -> bool:
        """Whether most rows have one and the same reward, and some are on the way to another."""
        return self.path is not None and self.usual_share >= SPARSE

    @property
    def ends(self) -> bool:
        """Whether survival decides about returns: rewards in most steps, until a termination."""
        return not self.sparse and self.terminated >= ENDS

    @property
    def discount(self) -> float:
        """What `discount="horizon"` stands for: 1 - 1 / n, between 0.99 and 0.999, with n

        - the length of a path to a reward, where rewards are sparse;
        - else the length of an episode, where episodes terminate;
        - else 100: with a reward in every step and no end, every discount ranks policies by their
          reward per step, and the shortest horizon is learned soonest.

        At the far end of n steps a reward still counts 1 / e. And where episodes end at a rate of
        1 / n, forgetting at that rate too passes on half of a relative difference in survival:
        d log V / d log h = -gamma h / (1 - gamma (1 - h)) is about -1/2 at 1 - gamma = h.
        """
        if self._steps is None:
            return SHORTEST
        return round(min(max(1 - 1 / self._steps, SHORTEST), LONGEST), DIGITS)

    @property
    def _steps(self) -> float | None:
        if self.sparse:
            return self.path
        return self.length if self.ends else None

    @property
    def reason(self) -> str:
        """How the discount comes about, in words."""
        if self._steps is None:
            return "rewards come all the time, nothing ends them: the shortest sees all there is"
        of = "a path to a reward" if self.sparse else "an episode: episodes terminate"
        words = f"1 - 1 / {self._steps:.0f}, the steps of {of}"
        exact = 1 - 1 / self._steps
        if exact < SHORTEST:
            return f"{words}; at least {SHORTEST:g}"
        return f"{words}; at most {LONGEST:g}" if exact > LONGEST else words

    def table(self, reward: float) -> str:
        """What discounts make of a mean `reward` per step: the steps 1 / (1 - gamma) that they
        see, the value r / (1 - gamma (1 - h)), and how much it gains where half as many steps
        terminate, or what a reward at the end of a path counts. The last line is that of "horizon".
        """
        rows = [(f"{shown:g}", shown) for shown in SHOWN]
        rows.append((f"horizon: {self.discount:g}", self.discount))
        lines = [f"{'discount':15}{'sees steps':>10}{'value':>12}{self._column:>24}".rstrip()]
        for label, discount in rows:
            value = survival_value(reward, self.hazard, discount)
            steps = 1 / (1 - discount)
            seen = self._seen(discount, reward)
            lines.append(f"{label:15}{steps:>10,.0f}{value:>12,.4g}{seen:>24}".rstrip())
        return "\n".join(lines)

    @property
    def _column(self) -> str:
        if self.sparse:
            return "end of a path"
        return "half the terminations" if self.ends else ""

    def _seen(self, discount: float, reward: float) -> str:
        """What a discount sees of what decides here."""
        if self.sparse and self.path is not None:
            return f"counts {discount**self.path:.0%}"
        if not self.ends or reward == 0:
            return ""
        value = survival_value(reward, self.hazard, discount)
        rarer = survival_value(reward, self.hazard / 2, discount)
        return f"value {(rarer - value) / abs(value):+.0%}"


def horizon_of(
    rewards: Tensor,  # (N,)
    terminations: Tensor,  # (N,) bool
    episode: Tensor,  # (N,), in order
) -> Horizon:
    """Measured on the rows of whole episodes, on the CPU. What follows a termination inside of an
    episode counts as another one.
    """
    ended = terminations.numpy()
    number = episode.numpy()
    starts = np.ones(len(number), bool)
    starts[1:] = (number[1:] != number[:-1]) | ended[:-1]
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=len(number))
    values, counts = np.unique(rewards.numpy(), return_counts=True)
    usual = rewards.numpy() == values[counts.argmax()]
    waits = _waits(usual, first)
    path = float((waits * (waits + 1)).sum() / waits.sum()) if waits.any() else None
    return Horizon(
        usual_share=float(usual.mean()),
        path=path,
        length=float((lengths**2).sum() / lengths.sum()),
        hazard=float(ended.mean()),
        terminated=float(ended.sum() / len(first)),
    )


def _waits(
    usual: NDArray[np.bool_],  # (N,)
    first: NDArray[np.int64],  # (E,), the rows at which episodes begin
) -> NDArray[np.int64]:
    """How many rows of the usual reward lie right before each other row, within its episode."""
    others = np.flatnonzero(~usual)
    begin = first[np.searchsorted(first, others, side="right") - 1]
    # Of two rows with another reward in one episode, the wait for the second begins behind the
    # first.
    behind = np.concatenate([np.zeros(1, np.int64), others[:-1] + 1])[: len(others)]
    return np.asarray(others - np.maximum(begin, behind), np.int64)
