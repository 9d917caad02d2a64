"""Finite Markov decision processes for tests: a list of outcomes that one weighted batch holds
whole.

Observations are one-hot in the state and actions one-hot in the *pair* (s, a), so that affine
networks (`MLP(hidden=())`) are tables. Exact answers are in `ddice.testing.exact`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ddice.data import Transitions, load_dataset

Array = NDArray[np.float64]
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (down, right) of the four actions of `grid_world`


@dataclass(frozen=True)
class Problem:
    """N outcomes: s, a, s' of each, reward, termination, probability p (they sum to 1); first-state
    distribution mu0 (S,).

    p is the data distribution d^D(s, a) P(s', r | s, a). It is free: d^D need not be the occupancy
    of any policy.
    """

    s: NDArray[np.int64]
    a: NDArray[np.int64]
    following: NDArray[np.int64]
    r: Array
    d: NDArray[np.bool_]
    p: Array
    mu0: Array
    states: int
    actions: int

    @property
    def pair(self) -> NDArray[np.int64]:
        """The number of the pair (s, a) of each outcome, s * A + a."""
        return self.s * self.actions + self.a

    @property
    def pairs(self) -> Array:
        """d^D(s, a), (S * A,)."""
        return np.bincount(self.pair, self.p, self.states * self.actions).astype(np.float64)

    @property
    def behaviour(self) -> Array:
        """pi_D(a | s), (S, A); uniform in states without data."""
        table = self.pairs.reshape(self.states, self.actions)
        total = table.sum(1, keepdims=True)
        return np.where(total > 0, table / np.where(total > 0, total, 1), 1 / self.actions)

    def expectation(self, outcome: Array) -> Array:
        """E[outcome | s, a], (S, A), of numbers (N,); 0 for pairs without data."""
        pairs = self.pairs
        total = np.bincount(self.pair, self.p * outcome, self.states * self.actions)
        return (total / np.where(pairs > 0, pairs, 1)).reshape(self.states, self.actions)

    def data(self) -> Transitions:
        """One row per outcome, weighted by its probability; one first observation per state that
        can be first, weighted by mu0.
        """
        one_hot, count = np.eye(self.states, dtype=np.float32), self.states * self.actions
        first = self.mu0 > 0
        return load_dataset(
            {
                "observations": one_hot[self.s],
                "actions": np.eye(count, dtype=np.float32)[self.pair],
                "rewards": self.r,
                "next_observations": one_hot[self.following],
                "terminations": self.d,
                "weights": self.p * len(self.p),
                "initial_observations": one_hot[first],
                "initial_weights": self.mu0[first],
            },
            action_bounds=(-1, 1),
        )

    def episodes(
        self, count: int, length: int, seed: int, policy: Array | None = None
    ) -> Transitions:
        """`count` sampled episodes of at most `length` steps of `policy` (S, A), by default the
        behaviour; cut ones are truncated.
        """
        rng, table = np.random.default_rng(seed), self.behaviour if policy is None else policy
        share = self.p / self.pairs[self.pair]
        outcomes = [np.flatnonzero(self.pair == pair) for pair in range(self.states * self.actions)]
        rows, ends, terminal = [], [], []
        for _ in range(count):
            state = int(rng.choice(self.states, p=self.mu0))
            for step in range(length):
                pair = state * self.actions + int(rng.choice(self.actions, p=table[state]))
                row = int(rng.choice(outcomes[pair], p=share[outcomes[pair]]))
                rows.append(row)
                terminal.append(bool(self.d[row]))
                ends.append(terminal[-1] or step == length - 1)
                if terminal[-1]:
                    break
                state = int(self.following[row])
        index, one_hot = np.array(rows), np.eye(self.states, dtype=np.float32)
        return load_dataset(
            {
                "observations": one_hot[self.s[index]],
                "actions": np.eye(self.states * self.actions, dtype=np.float32)[self.pair[index]],
                "rewards": self.r[index],
                "next_observations": one_hot[self.following[index]],
                "terminations": np.array(terminal),
                "truncations": np.array(ends) & ~np.array(terminal),
            },
            action_bounds=(-1, 1),
        )

    def observed(self, data: Transitions) -> Problem:
        """The problem that sampled `data` show: outcomes and first states with their frequencies.
        Its exact answers are what a method that makes no error of its own learns from these data.
        Raises ValueError without initial observations.
        """
        if data.initial_observations is None:
            raise ValueError("expected data with initial observations, as `episodes` makes them")
        pair, following = data.actions.argmax(-1).numpy(), data.next_observations.argmax(-1).numpy()
        first = np.bincount(
            data.initial_observations.argmax(-1).numpy(), minlength=self.states
        ).astype(np.float64)
        rewards, ends = data.rewards.double().numpy(), data.terminations.numpy()
        table, count = np.unique(
            np.column_stack([pair, following, ends, rewards]), axis=0, return_counts=True
        )
        number = table[:, 0].astype(np.int64)
        s, a = number // self.actions, number % self.actions
        p, mu0 = count / count.sum(), first / first.sum()
        return Problem(
            s,
            a,
            table[:, 1].astype(np.int64),
            table[:, 3],
            table[:, 2] > 0,
            p,
            mu0,
            self.states,
            self.actions,
        )

    def by_outcome(self) -> Problem:
        """The problem in which every outcome is an action of its own: what a method sees that
        takes luck for choice.
        """
        position = np.array([np.sum(self.s[:i] == s) for i, s in enumerate(self.s)])
        return dataclasses.replace(self, a=position, actions=int(position.max()) + 1)

    def query(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations (S * A, S) and actions (S * A, S * A) of all pairs, in order."""
        count = self.states * self.actions
        return torch.eye(self.states, dtype=torch.float32, device="cpu").repeat_interleave(
            self.actions, 0
        ), torch.eye(count, dtype=torch.float32, device="cpu")


def random_problem(
    seed: int,
    *,
    states: int = 6,
    actions: int = 3,
    branches: int = 3,
    terminate: float = 0.0,
    loops: bool = True,
) -> Problem:
    """Each pair leads to `branches` random states, the last branch of a share `terminate` of the
    pairs ends the episode; all states are covered.

    `branches=1` is deterministic; `loops=False` leaves out transitions of a state to itself.
    """
    rng = np.random.default_rng(seed)
    count = states * actions
    pair = np.repeat(np.arange(count), branches)
    s, a = pair // actions, pair % actions
    following = np.concatenate(
        [
            rng.choice(
                [x for x in range(states) if loops or x != i // actions], branches, replace=False
            )
            for i in range(count)
        ]
    )
    d = (np.arange(count * branches) % branches == branches - 1) & np.repeat(
        rng.random(count) < terminate, branches
    )
    rows = rng.uniform(0.5, 1.5, states)[:, None] * rng.dirichlet(np.full(actions, 3.0), states)
    p = rows.reshape(-1)[pair] * rng.dirichlet(np.full(branches, 3.0), count).reshape(-1)
    r = rng.normal(size=count)[pair] + 0.3 * rng.normal(size=count * branches)
    return Problem(
        s, a, following, r, d, p / p.sum(), rng.dirichlet(np.ones(states)), states, actions
    )


def tabular_bandit(seed: int, *, states: int = 4, actions: int = 5) -> Problem:
    """Every row terminates; rewards are constants of the pair."""
    base = random_problem(seed, states=states, actions=actions, branches=1)
    return dataclasses.replace(base, following=base.s, d=np.ones(len(base.s), bool))


def grid_world(
    size: int = 5,
    *,
    slip: float = 0.1,
    step_reward: float = -0.1,
    goal_reward: float = 1.0,
    greed: float = 0.5,
) -> Problem:
    """A size x size grid: four moves, each of which slips to a uniformly random one with
    probability `slip`; walls keep the place.

    Entering the far corner pays `goal_reward` and ends the episode; all other states are first
    states alike. The behaviour moves towards the goal with probability `greed` beyond chance, the
    data cover all states alike, and the goal itself has no data: it has no state of its own.
    """
    cells = [(row, column) for row in range(size) for column in range(size)][:-1]
    number = {cell: i for i, cell in enumerate(cells)}
    rows: list[tuple[int, int, int, float, bool, float]] = []
    for cell, i in number.items():
        behaviour = np.full(4, (1 - greed) / 4)
        useful = [
            m
            for m, (down, right) in enumerate(MOVES)
            if (down > 0 and cell[0] < size - 1) or (right > 0 and cell[1] < size - 1)
        ]
        behaviour[useful] += greed / len(useful)
        for action in range(4):
            for move, (down, right) in enumerate(MOVES):
                chance = slip / 4 + (1 - slip) * (move == action)
                place = (
                    min(max(cell[0] + down, 0), size - 1),
                    min(max(cell[1] + right, 0), size - 1),
                )
                if chance > 0:
                    ends = place not in number
                    rows.append(
                        (
                            i,
                            action,
                            i if ends else number[place],
                            goal_reward if ends else step_reward,
                            ends,
                            behaviour[action] * chance,
                        )
                    )
    s, a, following, r, d, p = (np.array(column) for column in zip(*rows, strict=True))
    states = len(cells)
    return Problem(
        s, a, following, r.astype(float), d, p / p.sum(), np.full(states, 1 / states), states, 4
    )
