"""How goals are seen: kept in the observation, or fixed to the one of the evaluation
environment.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ddice.data.environment import Environment
from ddice.data.source import Source
from ddice.data.spec import FixedGoal, ObservationPart, Observations, ObservedGoal

GOAL_KEYS = frozenset(("observation", "achieved_goal", "desired_goal"))
"""The keys of Gymnasium's goal environments (`gymnasium_robotics.core.GoalEnv`)."""

GOAL_RADIUS = 0.45
"""Distance at which Gymnasium-Robotics' mazes count a goal as reached; a constant in
`MazeEnv.compute_reward` there.
"""

Goal = Literal["fixed", "observed"] | None


def has_goals(source: Source) -> bool:
    return set(source.leaves) >= GOAL_KEYS


def choose_view(source: Source, goal: Goal, env: Environment | None) -> FixedGoal | ObservedGoal:
    """None means "fixed" where the data have goals and the evaluation environment exactly one goal
    location, else "observed".

    Raises ValueError, saying why, when "fixed" is asked of data or of an environment that cannot
    have it.
    """
    if goal not in (None, "fixed", "observed"):
        raise ValueError(f'expected goal=None, "fixed" or "observed", got {goal!r}')
    one = env is not None and env.goals is not None and len(env.goals) == 1
    if goal == "observed" or (goal is None and not (has_goals(source) and one)):
        return ObservedGoal()
    hint = 'use goal="observed", or leave goal out'
    if not has_goals(source):
        raise ValueError(
            f'goal="fixed" needs observations with the keys {sorted(GOAL_KEYS)}, got '
            f"{sorted(source.leaves)}: {hint}"
        )
    if env is None:
        raise ValueError(
            f'goal="fixed" needs the evaluation environment, which {source.name} does not '
            f"record: give env=, or {hint}"
        )
    if env.goals is None:
        raise ValueError(
            'goal="fixed" needs a maze that lists its goal locations, got the environment '
            f"{env.record.id!r}: {hint}"
        )
    if len(env.goals) != 1:
        raise ValueError(
            f'goal="fixed" needs an environment with one goal location, got {len(env.goals)} '
            f"in {env.record.id!r}: give env=, or {hint}"
        )
    return FixedGoal(goal=env.goals[0], radius=GOAL_RADIUS)


def observations_of(source: Source, view: FixedGoal | ObservedGoal) -> Observations:
    """The leaves that are seen, in the order of the source.

    A fixed goal hides `desired_goal`, and `achieved_goal` where `observation` repeats it (a point's
    position does, an ant's does not).
    """
    hidden: set[str] = set()
    if isinstance(view, FixedGoal):
        hidden = {"desired_goal"} | ({"achieved_goal"} if _repeats(source) else set())
    return Observations(
        parts=tuple(
            ObservationPart(path=path, shape=leaf.shape[1:])
            for path, leaf in source.leaves.items()
            if path not in hidden
        )
    )


def _repeats(source: Source) -> bool:
    whole, position = source.leaves["observation"], source.leaves["achieved_goal"]
    if whole.ndim != 2 or position.ndim != 2:
        return False
    return all(
        any(np.array_equal(position[:, i], whole[:, j]) for j in range(whole.shape[1]))
        for i in range(position.shape[1])
    )


def relabel(source: Source, view: FixedGoal | ObservedGoal) -> None:
    """Give `source` the rewards of the fixed goal: 1 when the next position lies within the radius,
    else 0.

    Reaching a recorded goal that is no longer seen ends no episode, so terminations become plain
    cuts (truncations). Raises ValueError where the next position is not recorded.
    """
    if not isinstance(view, FixedGoal):
        return
    if source.unknown_next is not None and source.unknown_next.any():
        raise ValueError(
            'goal="fixed" reads the next position, which terminated rows of this source do not '
            "record: give next_observations"
        )
    positions = source.next_leaves["achieved_goal"]
    if positions.shape[1:] != (len(view.goal),):
        raise ValueError(
            f"expected {len(view.goal)} numbers per achieved_goal, got shape "
            f"{positions.shape}: do dataset and env fit?"
        )
    distance = np.linalg.norm(positions.astype(np.float64) - np.asarray(view.goal), axis=1)
    source.rewards = (distance <= view.radius)[source.there].astype(np.float32)
    # where a dropped row leads is not known, and so not what it would pay
    source.recorded_rewards = source.recorded_episode = source.kept_episodes = None
    source.unpaid_episodes = 0
    if source.terminations.any():
        source.notes.append(
            f"{int(source.terminations.sum())} terminations at recorded goals are cuts under "
            "the fixed goal"
        )
        source.terminations = np.zeros(len(source), bool)
