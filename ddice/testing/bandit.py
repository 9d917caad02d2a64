"""A continuous bandit whose exact answers are one-dimensional integrals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ddice.data import Transitions, load_dataset
from ddice.testing.exact import bisect, ratio
from ddice.testing.tabular import Array

# points of the trapezoid rule on [-1, 1]; its error is of the order of 1e-7 for rewards that vary
# over 0.1
GRID = 4001


def tilted(contexts: Array, actions: Array) -> Array:
    """A reward linear in the action, 2 x a: with uniform actions and KL its value is alpha
    log(sinh(2 x / alpha) / (2 x / alpha)).
    """
    return 2 * contexts * actions


@dataclass(frozen=True)
class ContinuousBandit:
    """Contexts x uniform in [-1, 1], actions in [-1, 1] of density proportional to exp(-(slope a)^2
    / 2), one reward and the end.

    `reward` is elementwise in contexts and actions of one shape. `slope=0` is uniform.
    """

    reward: Callable[[Array, Array], Array] = tilted
    slope: float = 0.0

    def density(self, actions: Array) -> Array:
        """pi_D(a), of any shape."""
        grid = np.linspace(-1, 1, GRID)
        mass = _integral(self._height(grid), grid)
        return self._height(actions) / mass

    def _height(self, actions: Array) -> Array:
        """exp(-(slope a)^2 / 2), in (0, 1]."""
        return np.exp(-((self.slope * actions) ** 2) / 2)

    def data(self, count: int, seed: int) -> Transitions:
        """`count` independent transitions: observations (N, 1), actions (N, 1), all terminated."""
        rng = np.random.default_rng(seed)
        contexts = rng.uniform(-1, 1, count)
        actions = np.empty(0)
        while len(actions) < count:  # by rejection
            proposed = rng.uniform(-1, 1, count)
            kept = rng.random(count) < self._height(proposed)
            actions = np.append(actions, proposed[kept])
        actions = actions[:count]
        observations = contexts[:, None].astype(np.float32)
        return load_dataset(
            {
                "observations": observations,
                "next_observations": observations,
                "actions": actions[:, None].astype(np.float32),
                "rewards": self.reward(contexts, actions),
                "terminations": np.ones(count, bool),
                "initial_observations": observations,
            },
            action_bounds=(-1, 1),
        )

    def value(
        self, kind: str, contexts: Array, temperature: float, mean_ratio: float = 1.0
    ) -> Array:
        """V(x) with E_{a ~ pi_D}[ratio((r(x, a) - V) / temperature)] = mean_ratio, contexts (B,)
        -> (B,).
        """
        grid = np.linspace(-1, 1, GRID)
        every = np.broadcast_to(contexts[:, None], (len(contexts), GRID))
        rewards = self.reward(every, grid[None])
        density = self.density(grid)
        reach = temperature * (2 + 2 * mean_ratio + abs(np.log(mean_ratio)))

        def excess(minus_v: Array) -> Array:
            weights = ratio(kind, (rewards + minus_v[:, None]) / temperature)
            return _integral(density * weights, grid) - mean_ratio

        return -bisect(excess, -rewards.max(1) - reach, -rewards.min(1) + reach)

    def ratio(
        self,
        kind: str,
        contexts: Array,
        actions: Array,
        temperature: float,
        mean_ratio: float = 1.0,
    ) -> Array:
        """w(a | x) of pairs, contexts (B,) and actions (B,) -> (B,): the exact action ratio,
        which here is the state-action ratio as well.
        """
        value = self.value(kind, contexts, temperature, mean_ratio)
        return ratio(kind, (self.reward(contexts, actions) - value) / temperature)


def _integral(values: Array, grid: Array) -> Array:
    """The trapezoid rule over the last axis."""
    heights = (values[..., 1:] + values[..., :-1]) / 2
    area: Array = (heights * np.diff(grid)).sum(-1)
    return area
