"""What happened in some episodes of an evaluation, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddice.pictures.maze import POSITION
from ddice.policies.evaluation import Actor, Evaluation, Moment, episode_seed, evaluate


@dataclass(frozen=True)
class Recording:
    """One episode of T steps: observations (T + 1, native), actions (T, A) and rewards (T,) of
    the environment, and the seed of its reset.
    """

    reset_seed: int
    observations: tuple[Any, ...]
    actions: np.ndarray
    rewards: np.ndarray
    success: bool | None

    @property
    def positions(self) -> np.ndarray:
        """(T + 1, 2). Raises ValueError outside of goal mazes."""
        return np.stack([_leaf(observation, POSITION)[:2] for observation in self.observations])

    @property
    def goals(self) -> np.ndarray:
        """(T + 1, 2), where the goal was. Raises ValueError outside of goal mazes."""
        return np.stack(
            [_leaf(observation, "desired_goal")[:2] for observation in self.observations]
        )

    @property
    def total(self) -> float:
        """The return: the rewards added in the order in which evaluation adds them."""
        return float(sum(self.rewards.tolist()))


def _leaf(observation: Any, key: str) -> np.ndarray:
    if not isinstance(observation, Mapping) or key not in observation:
        have = (
            sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
        )
        raise ValueError(
            f"expected the observations of a goal maze, with {key!r}, got {have}: only mazes "
            "have positions to draw"
        )
    return np.asarray(observation[key])


@dataclass
class Recorder:
    """Keeps the first `episodes` episodes: `evaluate(policy, seed=seed,
    on_step=Recorder(episodes, seed))`, then `recordings()`.
    """

    episodes: int
    seed: int = 0
    _moments: dict[int, list[Moment]] = field(default_factory=dict)

    def __call__(self, moment: Moment) -> None:
        if moment.episode < self.episodes:
            self._moments.setdefault(moment.episode, []).append(moment)

    def recordings(self) -> list[Recording]:
        """What was kept, in the order of the episodes."""
        return [
            Recording(
                reset_seed=episode_seed(self.seed, episode),
                observations=(
                    *(moment.observation for moment in moments),
                    moments[-1].next_observation,
                ),
                actions=np.stack([moment.action for moment in moments]),
                rewards=np.array([moment.reward for moment in moments]),
                success=moments[-1].success,
            )
            for episode, moments in sorted(self._moments.items())
        ]


def record(
    policy: Actor,
    env: Any = None,
    *,
    episodes: int = 20,
    seed: int = 0,
    parallel: int = 50,
    deterministic: bool = False,
    progress: bool = True,
    trust_env: Sequence[str] = (),
) -> tuple[Evaluation, list[Recording]]:
    """`ddice.evaluate` with every step of every episode kept; the scores are the same."""
    recorder = Recorder(episodes, seed)
    scores = evaluate(
        policy,
        env,
        episodes=episodes,
        seed=seed,
        parallel=parallel,
        deterministic=deterministic,
        progress=progress,
        on_step=recorder,
        trust_env=trust_env,
    )
    return scores, recorder.recordings()
