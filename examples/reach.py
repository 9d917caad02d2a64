"""An environment of one's own, and data that somebody recorded in it: what the examples share.

A point in the plane wanders between random places; the task, of which whoever recorded the data
knew nothing, is to be near one of them.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

GOAL = np.array([0.6, 0.6])
STEP = 0.15  # the farthest that one action moves
ENV = "examples/Reach-v0"


class Reach(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observations: the position (2,). Actions: where to, (2,) in [-1, 1]. Reward: minus the
    distance from the goal.
    """

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.position = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + STEP * np.asarray(action), -1, 1)
        distance = float(np.linalg.norm(self.position - GOAL))
        return self.position.astype(np.float32), -distance, False, False, {}


# The entry point as text, so that a policy can write down where it is to be evaluated.
gymnasium.register(ENV, entry_point="reach:Reach", max_episode_steps=30)


def record(episodes: int = 300, seed: int = 0) -> dict[str, np.ndarray]:
    """What a wanderer did: whole episodes in time order, as `ddice.load_dataset` takes them."""
    env, random = gymnasium.make(ENV), np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {
        name: []
        for name in (
            "observations",
            "actions",
            "rewards",
            "next_observations",
            "terminations",
            "truncations",
        )
    }
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        target, over = random.uniform(-1, 1, 2), False
        while not over:
            towards = (target - observation) / STEP
            action = np.clip(towards + random.normal(0, 0.3, 2), -1, 1).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(action)
            for name, value in zip(
                rows, (observation, action, reward, after, terminated, truncated), strict=True
            ):
                rows[name].append(value)
            if np.linalg.norm(after - target) < STEP:
                target = random.uniform(-1, 1, 2)
            observation, over = after, terminated or truncated
    return {name: np.array(values) for name, values in rows.items()}
