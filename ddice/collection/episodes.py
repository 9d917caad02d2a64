"""One episode: played, checked while it is played, and kept as arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddice.core.randomness import derived_seed
from ddice.data.environment import space_shapes
from ddice.data.paths import leaf_at, nested
from ddice.data.source import Leaves

Act = Callable[[Any], Any]
"""What plays one episode: the environment's own observation -> an action (A,)."""

# An episode without an end would be played for ever; the longest horizons in use are a thousand
# steps or so.
LONGEST = 100_000
# Actions this far outside of the bounds, relative to them, are rounding and clipped in silence.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Episode:
    """T steps: the leaves of the observations by path (T + 1 rows, a plain array has the path ""),
    actions (T, A) and rewards (T,).

    terminated, truncated: what the environment said of the last step. policy: the index of the one
    that played. seed: what the reset was given.
    """

    leaves: Leaves
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    terminated: bool
    truncated: bool
    policy: int
    seed: int

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def observations(self) -> Any:
        """The observations as the environment nests them, T + 1 rows in every leaf."""
        return nested(self.leaves.items())


@dataclass(frozen=True)
class ActionNoise:
    """With probability epsilon a uniform action; else action + scale * half * N(0, 1), clipped;
    half is half the width of the bounds (A,).
    """

    scale: float
    epsilon: float

    def add(
        self,
        action: NDArray[Any],
        low: NDArray[Any],
        high: NDArray[Any],
        generator: np.random.Generator,
    ) -> NDArray[Any]:
        """Action (A,) -> (A,) within [low, high]; three draws from the generator, whatever comes
        out.
        """
        explores, normal, uniform = (
            generator.random(),
            generator.standard_normal(len(low)),
            generator.uniform(low, high),
        )
        return np.asarray(
            uniform
            if explores < self.epsilon
            else np.clip(action + self.scale * (high - low) / 2 * normal, low, high)
        )


class _Refused(Exception):
    """Why an episode cannot be kept, before it is known where."""


def require_boxes(env: Any) -> None:
    """Raises ValueError unless observations are boxes of numbers, or dicts of them, and actions
    A floats with finite bounds.
    """
    import gymnasium

    space, shapes = env.action_space, space_shapes(env.observation_space)
    if (
        not isinstance(space, gymnasium.spaces.Box)
        or len(space.shape) != 1
        or not np.issubdtype(space.dtype, np.floating)
    ):
        raise ValueError(
            f"expected continuous actions, a box of A floats, got {space}: discrete and other "
            "actions are not supported yet"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"expected finite action bounds, got {space}: wrap the environment "
            "(gymnasium.wrappers.RescaleAction) and register that"
        )
    if shapes is None:
        raise ValueError(
            f"expected boxes, or dicts of boxes, as observations, got {env.observation_space}: "
            "others are not supported yet"
        )
    for path, shape in shapes.items():
        if len(shape) >= 3 or leaf_at(env.observation_space, path).dtype == np.uint8:
            raise ValueError(
                f"image observations are not supported yet: {path or 'the observation'} is "
                f"{leaf_at(env.observation_space, path)}"
            )


def play(env: Any, act: Act, noise: ActionNoise, *, seed: int, index: int, policy: int) -> Episode:
    """Plays episode `index` of a collection to its end: reset, policy and noise draw from seeds
    that depend on (seed, index) alone.

    Raises ValueError, with the place, for an environment that fails or does not end, for rewards or
    observations that are not finite, and for actions that have the wrong shape, are not finite, or
    lie outside of the bounds before any noise.
    """
    types = {
        path: leaf_at(env.observation_space, path).dtype
        for path in space_shapes(env.observation_space) or {}
    }
    generator = np.random.default_rng(derived_seed(seed, "noise", index))
    reset_seed = derived_seed(seed, "environment", index)
    rows: dict[str, list[NDArray[Any]]] = {path: [] for path in types}
    actions: list[NDArray[Any]] = []
    rewards: list[float] = []
    terminated = truncated = False
    try:
        observation, _ = _called(lambda: env.reset(seed=reset_seed))
        _keep(rows, observation, types)
        while not (terminated or truncated):
            if len(rewards) == LONGEST:
                raise _Refused(
                    "the episode does not end: give the environment a horizon, "
                    '{"max_episode_steps": 1000}'
                )
            action = _checked(act(observation), env.action_space, noise, generator)
            actions.append(action.copy())
            observation, reward, terminated, truncated, _ = _called(partial(env.step, action))
            if not math.isfinite(reward):
                raise _Refused(
                    f"expected finite rewards, got {reward}: the environment has diverged"
                )
            rewards.append(float(reward))
            _keep(rows, observation, types)
    except _Refused as error:
        raise ValueError(
            f"{error} (episode {index}, step {len(rewards)}, reset seed {reset_seed})"
        ) from error.__cause__
    leaves = {path: np.stack(values) for path, values in rows.items()}
    return Episode(
        leaves,
        np.stack(actions),
        np.array(rewards),
        bool(terminated),
        bool(truncated),
        policy,
        reset_seed,
    )


def _checked(
    action: Any, space: Any, noise: ActionNoise, generator: np.random.Generator
) -> NDArray[Any]:
    """What the policy said, with noise, as the environment is given it."""
    action = np.asarray(action)
    if action.shape != space.shape or not np.isfinite(action).all():
        raise _Refused(
            f"expected finite actions of shape {space.shape} from the policy, got {action}"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    slack = ROUNDING * (1 + high - low)
    if (action < low - slack).any() or (action > high + slack).any():
        raise _Refused(
            f"expected actions within {space.low} and {space.high} from the policy, got "
            f"{action}: clip them in the policy"
        )
    if noise.scale or noise.epsilon:
        action = noise.add(action, low, high, generator)
    return np.asarray(np.clip(action.astype(space.dtype), space.low, space.high))


def _keep(
    rows: Mapping[str, list[NDArray[Any]]], observation: Any, types: Mapping[str, Any]
) -> None:
    for path, dtype in types.items():
        leaf = np.array(
            leaf_at(observation, path), dtype
        )  # a copy: some environments write into the same array again
        if not np.isfinite(leaf).all():
            raise _Refused(
                "expected finite observations, got NaN or infinity: the environment has diverged"
            )
        rows[path].append(leaf)


def _called(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        raise _Refused(f"the environment failed with {type(error).__name__}: {error}") from error
