"""Finite problems and their exact answers, from the equations alone: semi-gradient fixed points by bisection, duals by L-BFGS, in float64.

A problem is a list of outcomes (s, a, s', r, d) with probabilities, so that one weighted batch holds it whole; actions are one-hot per *pair*
(s, a), which makes affine networks tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

import ddice
from ddice.data import Batch, Transitions
from ddice.data.batch import InitialBatch
from ddice.networks import MLP, FlattenEncoder
from ddice.part import Optimizer, Part

Array = NDArray[np.float64]
TABLE, RAW = MLP(hidden=()), FlattenEncoder(normalize=False)
KINDS = ("kl", "pearson", "half_pearson", "piecewise", "soft_chi2")


def ratio(kind: str, y: Array) -> Array:
    """max(0, (f')^-1(y)) of each f in the table of divergences."""
    y = np.asarray(y, np.float64)
    below = np.exp(np.minimum(y, 0))
    return {
        "kl": lambda: np.exp(y),
        "pearson": lambda: np.maximum(0, y / 2 + 1),
        "half_pearson": lambda: np.maximum(0, y + 1),
        "piecewise": lambda: np.where(y < 0, below, y / 2 + 1),
        "soft_chi2": lambda: np.where(y < 0, below, y + 1),
    }[kind]()


def divergence(kind: str, x: Array) -> Array:
    """f(x), x >= 0."""
    entropy = np.where(x > 0, x * np.log(np.where(x > 0, x, 1)), 0) - x + 1
    square = (x - 1) ** 2
    return {
        "kl": entropy,
        "pearson": square,
        "half_pearson": square / 2,
        "piecewise": np.where(x < 1, entropy, square),
        "soft_chi2": np.where(x < 1, entropy, square / 2),
    }[kind]


def conjugate(kind: str, y: Array) -> Array:
    """x y - f(x) at the x that maximises it."""
    x = ratio(kind, y)
    return x * y - divergence(kind, x)


def bisect(increasing: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Where an increasing function changes sign, elementwise."""
    for _ in range(100):
        middle = (low + high) / 2
        negative = increasing(middle) < 0
        low, high = np.where(negative, middle, low), np.where(negative, high, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Problem:
    """N outcomes: s, a, s' of each, reward, termination, probability p (they sum to 1); first-state distribution mu0 (S,)."""

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
        return self.s * self.actions + self.a

    @property
    def pairs(self) -> Array:
        """Probability of each pair, (S * A,)."""
        return np.bincount(self.pair, self.p, self.states * self.actions)

    @property
    def behaviour(self) -> Array:
        """pi_D(a | s), (S, A)."""
        table = self.pairs.reshape(self.states, self.actions)
        return table / table.sum(1, keepdims=True)

    def expectation(self, outcome: Array) -> Array:
        """E[outcome | s, a], (S, A)."""
        return (np.bincount(self.pair, self.p * outcome, self.states * self.actions) / self.pairs).reshape(self.states, self.actions)

    def data(self) -> Transitions:
        """One row per outcome, weighted by its probability; one first observation per state, weighted by mu0."""
        one_hot, count = np.eye(self.states, dtype=np.float32), self.states * self.actions
        first = self.mu0 > 0
        return ddice.load_dataset(
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

    def by_outcome(self) -> Problem:
        """The problem in which every outcome is an action of its own: what a method sees that takes luck for choice."""
        position = np.array([np.sum(self.s[:i] == s) for i, s in enumerate(self.s)])
        return dataclasses.replace(self, a=position, actions=int(position.max()) + 1)

    def query(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Observations and actions of all pairs, in order."""
        count = self.states * self.actions
        return torch.eye(self.states).repeat_interleave(self.actions, 0), torch.eye(count)


def random_problem(seed: int, *, states: int = 6, actions: int = 3, branches: int = 3, terminate: float = 0.0, loops: bool = True) -> Problem:
    """Each pair leads to `branches` random states, the last branch of a share `terminate` of the pairs ends the episode; all states are covered."""
    rng = np.random.default_rng(seed)
    count = states * actions
    pair = np.repeat(np.arange(count), branches)
    s, a = pair // actions, pair % actions
    following = np.concatenate([rng.choice([x for x in range(states) if loops or x != i // actions], branches, replace=False) for i in range(count)])
    d = (np.arange(count * branches) % branches == branches - 1) & np.repeat(rng.random(count) < terminate, branches)
    rows = rng.uniform(0.5, 1.5, states)[:, None] * rng.dirichlet(np.full(actions, 3.0), states)
    p = rows.reshape(-1)[pair] * rng.dirichlet(np.full(branches, 3.0), count).reshape(-1)
    r = rng.normal(size=count)[pair] + 0.3 * rng.normal(size=count * branches)
    return Problem(s, a, following, r, d, p / p.sum(), rng.dirichlet(np.ones(states)), states, actions)


def bandit(seed: int, *, states: int = 4, actions: int = 5) -> Problem:
    """Every row terminates; rewards are constants of the pair."""
    base = random_problem(seed, states=states, actions=actions, branches=1)
    return dataclasses.replace(base, following=base.s, d=np.ones(len(base.s), bool))


@dataclass(frozen=True)
class Solution:
    """V (S,), Q (S, A) and w (S, A); for duals also the lambda, the value of the absorbing state, and the objective's minimum."""

    v: Array
    q: Array
    w: Array
    lam: float = 0.0
    absorbing: float = 0.0
    minimum: float = 0.0


def state_value(kind: str, q: Array, behaviour: Array, temperature: float, mean_ratio: float) -> Array:
    """V (S,) with sum_a pi_D(a | s) ratio((Q - V) / temperature) = mean_ratio in every state."""
    reach = temperature * (2 + 2 * mean_ratio + abs(np.log(mean_ratio)))
    return -bisect(
        lambda minus_v: (behaviour * ratio(kind, (q + minus_v[:, None]) / temperature)).sum(1) - mean_ratio,
        -q.max(1) - reach,
        -q.min(1) + reach,
    )


def semi_gradient(problem: Problem, kind: str, temperature: float, discount: float, mean_ratio: float = 1.0) -> Solution:
    """The fixed point of Q = E[r + discount (1 - d) V(s')] and V = `state_value`(Q), by iteration: a contraction by the discount."""
    v = np.zeros(problem.states)
    for _ in range(1 if discount == 0 else int(np.log(1e-13) / np.log(discount))):
        q = problem.expectation(problem.r + discount * ~problem.d * v[problem.following])
        v = state_value(kind, q, problem.behaviour, temperature, mean_ratio)
    return Solution(v, q, ratio(kind, (q - v[:, None]) / temperature))


def deviations(problem: Problem, discount: float, v: Array, absorbing: float) -> Array:
    """e(s, a) = E[r + discount V(s') - V(s)], with the absorbing state behind terminations, (S, A)."""
    return problem.expectation(problem.r + discount * np.where(problem.d, absorbing, v[problem.following]) - v[problem.s])


def dual(problem: Problem, kind: str, temperature: float, discount: float, absorbing_reward: float = 0.0) -> Solution:
    """min over V, v_abs, lam of (1 - discount) mu0 V + E[temperature f*((e - lam) / temperature)] + lam, the self-loops of the absorbing state
    among the rows; solved with an analytic gradient."""
    ends = problem.p[problem.d].sum()
    pairs, total = problem.pairs.reshape(problem.states, problem.actions), 1 + ends

    def objective(x: Array) -> tuple[float, Array]:
        v, absorbing, lam = x[:-2], x[-2], x[-1]
        y = (deviations(problem, discount, v, absorbing) - lam) / temperature
        y_loop = (absorbing_reward - (1 - discount) * absorbing - lam) / temperature
        value = (1 - discount) * problem.mu0 @ v + lam
        value += temperature * ((pairs * conjugate(kind, y)).sum() + ends * conjugate(kind, y_loop)) / total
        w, w_loop = ratio(kind, y), ratio(kind, y_loop)
        flow = problem.p * w[problem.s, problem.a] / total
        gradient = np.zeros_like(x)
        gradient[:-2] = (1 - discount) * problem.mu0 - np.bincount(problem.s, flow, problem.states)
        gradient[:-2] += discount * np.bincount(problem.following, flow * ~problem.d, problem.states)
        gradient[-2] = discount * (flow * problem.d).sum() - (1 - discount) * ends * w_loop / total
        gradient[-1] = 1 - flow.sum() - ends * w_loop / total
        return float(value), gradient

    result = minimize(objective, np.zeros(problem.states + 2), jac=True, method="L-BFGS-B", options={"maxiter": 50_000, "ftol": 1e-17, "gtol": 1e-10})
    assert np.abs(objective(result.x)[1]).max() < 1e-6, result
    v, absorbing, lam = result.x[:-2], float(result.x[-2]), float(result.x[-1])
    e = deviations(problem, discount, v, absorbing)
    return Solution(v, e + v[:, None], ratio(kind, (e - lam) / temperature), lam, absorbing, float(result.fun))


def stacked(problems: Sequence[Problem]) -> Batch:
    """Problems of the same sizes along the axis of the seeds, to be trained all at once."""
    batches = [problem.data().full() for problem in problems]
    initial = [batch.initial for batch in batches]
    fields = {f.name: torch.stack([getattr(b, f.name) for b in batches]) for f in dataclasses.fields(Batch) if f.name != "initial"}
    first = InitialBatch(*(torch.stack([getattr(i, name) for i in initial]) for name in ("observations", "weights")))
    return Batch(**fields, initial=first)


def train(part: Part, batch: Batch, steps: int) -> dict[str, Array]:
    """Steps on one and the same batch, with the learning rate falling to 0; the last metrics."""
    part.horizon = part.step + steps
    for step in range(part.step, part.horizon):
        metrics = part.update(batch, step=step)
    return {name: value.numpy() for name, value in metrics.items()}


def quick(learning_rate: float = 0.05) -> Optimizer:
    return Optimizer(learning_rate=learning_rate, decay="cosine")


def error(got: torch.Tensor | Array, expected: Array) -> float:
    """The largest |got - expected|, as a share of the largest |expected|."""
    return float(np.abs(np.asarray(got.detach() if isinstance(got, torch.Tensor) else got) - expected).max() / np.abs(expected).max())
