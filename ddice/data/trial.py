"""Whether the evaluation environment of a dataset can be made, fits, and plays: tried once, before
hours of training.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddice.data import stepping
from ddice.data.environment import close_environment, make_env, space_shapes
from ddice.data.memory import memory_of, words
from ddice.data.spec import FixedGoal, Spec

if TYPE_CHECKING:
    import gymnasium


def require_fit(env: gymnasium.Env[Any, Any], spec: Spec) -> None:
    """Raises ValueError when a policy could not read the observations, would act outside of
    the action space, or knows only another goal.
    """
    _require_observations(env, spec)
    _require_actions(env, spec)
    goals = getattr(getattr(env.unwrapped, "maze", None), "unique_goal_locations", None)
    if not isinstance(spec.view, FixedGoal) or goals is None:
        return
    if not all(np.allclose(goal, spec.view.goal) for goal in goals):
        raise ValueError(
            "expected an environment with the one goal that the policy was trained for, "
            f"{spec.view.goal}, got {len(goals)} goal locations, "
            f'the first at {tuple(goals[0].tolist())}: leave env out, or train with goal="observed"'
        )


def _require_observations(env: gymnasium.Env[Any, Any], spec: Spec) -> None:
    shapes = space_shapes(env.observation_space)
    for part in spec.observations.parts:
        if shapes is not None and shapes.get(part.path) == part.shape:
            continue
        have = env.observation_space if shapes is None else shapes
        name = f"observation[{part.path!r}]" if part.path else "observation"
        raise ValueError(
            f"expected an environment with {name} of shape {part.shape}, got {have}: do "
            "environment and policy belong together?"
        )


def _require_actions(env: gymnasium.Env[Any, Any], spec: Spec) -> None:
    import gymnasium

    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(
            f"expected a continuous action space (Box), got {space}: other action spaces are "
            "not supported yet"
        )
    if space.shape != (spec.actions.size,):
        raise ValueError(
            f"expected an environment with actions of shape ({spec.actions.size},), as in the "
            f"dataset, got {space.shape}"
        )
    low, high = np.asarray(spec.actions.low), np.asarray(spec.actions.high)
    slack = stepping.BOUNDS_ROUNDING * (1 + high - low)
    if (low < space.low - slack).any() or (high > space.high + slack).any():
        raise ValueError(
            f"expected an environment that takes actions in [{low}, {high}], as in the "
            f"dataset, got [{space.low}, {space.high}]: is it another version, or wrapped so "
            "that actions are rescaled?"
        )


def try_environment(spec: Spec, trust_env: Sequence[str] = ()) -> tuple[str, ...]:
    """Makes the recorded environment, plays one step with the middle of the action bounds, and
    closes it -> what an evaluation will have to live with, in sentences.

    Raises ImportError where it cannot be made here, ValueError where it may not be made (see
    `make_env`), does not fit or fails.
    """
    if spec.env is None:
        raise ValueError("expected a recorded environment to try, got none: give env=")
    env = make_env(spec.env, trust_env)
    try:
        require_fit(env, spec)
        stepping.reset(env, seed=0)
        middle = (np.asarray(spec.actions.low) + np.asarray(spec.actions.high)) / 2
        stepping.step(env, stepping.within(middle, env.action_space))
        remembered = memory_of(env)
    finally:
        close_environment(env)
    remarks = [words(remembered)] if remembered else []
    if spec.env.time_limit is None:
        remarks.append(
            f"{spec.env.id} has no time limit: an episode that does not end by itself is given "
            f"up after {stepping.LONGEST:,} steps; register it with max_episode_steps"
        )
    return tuple(remarks)


def require_playable(spec: Spec, trust_env: Sequence[str] = ()) -> None:
    """`try_environment`, whose remarks become warnings."""
    for remark in try_environment(spec, trust_env):
        warnings.warn(remark, UserWarning, stacklevel=2)
