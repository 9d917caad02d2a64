"""One episode: played, checked while it is played, and kept as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddice.core.randomness import derived_seed
from ddice.data import stepping
from ddice.data.environment import space_shapes
from ddice.data.paths import leaf_at, nested
from ddice.data.source import Leaves
from ddice.data.stepping import LONGEST

Act = Callable[[Any], Any]
"""What plays one episode: the environment's own observation -> an action (A,)."""


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
        explores = generator.random()
        normal = generator.standard_normal(len(low))
        uniform = generator.uniform(low, high)
        if explores < self.epsilon:
            return uniform
        disturbed = action + self.scale * (high - low) / 2 * normal
        return np.asarray(np.clip(disturbed, low, high))


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
    outcome = None
    try:
        observation = stepping.reset(env, reset_seed)
        _keep(rows, observation, types)
        while outcome is None or not outcome.over:
            if len(rewards) == LONGEST:
                raise ValueError(
                    "the episode does not end: give the environment a horizon, "
                    '{"max_episode_steps": 1000}'
                )
            action = _checked(act(observation), env.action_space, noise, generator)
            outcome = stepping.step(env, action)
            observation = outcome.observation
            actions.append(action)
            rewards.append(outcome.reward)
            _keep(rows, observation, types)
    except ValueError as error:
        raise ValueError(
            f"{error} (episode {index}, step {len(rewards)}, reset seed {reset_seed})"
        ) from error
    return Episode(
        leaves={path: np.stack(values) for path, values in rows.items()},
        actions=np.stack(actions),
        rewards=np.array(rewards),
        terminated=outcome.terminated,
        truncated=outcome.truncated,
        policy=policy,
        seed=reset_seed,
    )


def _checked(
    action: Any, space: Any, noise: ActionNoise, generator: np.random.Generator
) -> NDArray[Any]:
    """What the policy said, with noise, as the environment is given it."""
    action = np.asarray(action)
    if action.shape != space.shape or not np.isfinite(action).all():
        raise ValueError(
            f"expected finite actions of shape {space.shape} from the policy, got {action}"
        )
    taken = stepping.within(action, space)
    if not noise.scale and not noise.epsilon:
        return taken
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return stepping.within(noise.add(action, low, high, generator), space)


def _keep(
    rows: Mapping[str, list[NDArray[Any]]], observation: Any, types: Mapping[str, Any]
) -> None:
    for path, dtype in types.items():
        leaf = np.asarray(leaf_at(observation, path), dtype)
        if not np.isfinite(leaf).all():
            raise ValueError(
                "expected finite observations, got NaN or infinity: the environment has diverged"
            )
        rows[path].append(leaf)
