"""What an environment says of a reset and of a step, read strictly, and copied: some environments
write into the same arrays again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LONGEST = 100_000
"""Steps after which an episode counts as one without an end; the longest horizons in use are a
thousand steps or so.
"""

BOUNDS_ROUNDING = 1e-5
"""How far outside of the bounds, relative to their width, an action is rounding: bounds and
actions go through float32.
"""


@dataclass(frozen=True)
class Step:
    """What came after an action."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: Mapping[str, Any]

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


def reset(env: Any, seed: int) -> Any:
    """The first observation of an episode. Raises ValueError when the environment fails."""
    try:
        answer = env.reset(seed=seed)
    except Exception as error:
        raise ValueError(_failure(error)) from error
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(
            "expected reset to return (observation, info), as Gymnasium does since 0.26, got "
            f"{_shape_of(answer)}: the environment is older, wrap it so that it does"
        )
    return snapshot(answer[0])


def step(env: Any, action: NDArray[Any]) -> Step:
    """Plays one step. Raises ValueError when the environment fails, answers with other than five
    values, or gives a reward that is not one finite number.
    """
    try:
        answer = env.step(np.array(action))  # its own: it may write into it
    except Exception as error:
        raise ValueError(_failure(error)) from error
    if not isinstance(answer, tuple) or len(answer) != 5:
        raise ValueError(
            "expected step to return (observation, reward, terminated, truncated, info), got "
            f"{_shape_of(answer)}{FOUR_VALUES}"
        )
    observation, reward, terminated, truncated, info = answer
    return Step(
        snapshot(observation),
        one_reward(reward),
        bool(np.all(terminated)),
        bool(np.all(truncated)),
        snapshot(info),
    )


FOUR_VALUES = (
    ": four values, with one done, are the step of Gym before 0.26; a time limit must be told "
    "apart from an end of the task, so return terminated and truncated"
)


def _failure(error: Exception) -> str:
    text = f"the environment failed with {type(error).__name__}: {error}"
    unpacked = "values to unpack (expected 5" in str(error)
    return text + FOUR_VALUES if unpacked else text


def _shape_of(answer: Any) -> str:
    if isinstance(answer, tuple):
        return f"{len(answer)} values"
    return f"one {type(answer).__name__}"


def one_reward(reward: Any) -> float:
    """A reward as a float; an array of one number is that number. Raises ValueError for others."""
    try:
        values = np.asarray(reward, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected one number as reward, got {reward!r}") from error
    if values.size != 1:
        raise ValueError(
            f"expected one number as reward, got shape {values.shape}: add them up in a wrapper"
        )
    number = values.item()
    if not math.isfinite(number):
        raise ValueError(f"expected finite rewards, got {number}: the environment has diverged")
    return number


def snapshot(value: Any) -> Any:
    """A copy of the arrays in nested mappings, lists and tuples."""
    if isinstance(value, Mapping):
        return {key: snapshot(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (list, tuple):
        return type(value)(snapshot(inner) for inner in value)
    return value


def within(action: NDArray[Any], space: Any) -> NDArray[Any]:
    """An action (A,) in the dtype and within the bounds of a Box: rounding is taken off. Raises
    ValueError for actions that lie outside by more.
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    slack = BOUNDS_ROUNDING * (1 + high - low)
    if (action < low - slack).any() or (action > high + slack).any():
        raise ValueError(
            f"expected actions within {space.low} and {space.high} from the policy, got "
            f"{action}: clip them in the policy"
        )
    return np.asarray(np.clip(action.astype(space.dtype), space.low, space.high))
