"""The exact answer on sampled episodes of a finite problem, where targets follow the rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ddice.data import Transitions
from ddice.testing.tabular import Array, Problem

# Iterations of a contraction by the discount end at this share of the first distance.
TOLERANCE = 1e-12


def lambda_fixed_point(
    problem: Problem,
    data: Transitions,
    state_value: Callable[[Array, Array], Array],
    *,
    discount: float,
    lam: float,
) -> tuple[Array, Array]:
    """V (S,) and Q (S, A) with Q the mean of G over the rows of a pair and V = state_value(Q,
    behaviour of the rows), where G (N,) solves

        G_t = r_t + discount (1 - d_t) ((1 - lam) V(s_t+1) + lam G_t+1)

    as one linear system; in the last row of an episode V(s_t+1) stands alone. `data` are episodes
    of `problem`, which every state and pair must be in. Raises ValueError otherwise.
    """
    s, following = (x.argmax(-1).numpy() for x in (data.observations, data.next_observations))
    pair, r, d = (
        data.actions.argmax(-1).numpy(),
        data.rewards.double().numpy(),
        data.terminations.numpy(),
    )
    rows, pairs = len(s), problem.states * problem.actions
    if data.episode is None or len(np.unique(pair)) < pairs:
        raise ValueError("expected episodes in which every pair occurs: give more of them")
    episode = data.episode.numpy()
    goes_on = np.append(episode[1:] == episode[:-1], False) & ~d
    mean = _one_hot(pair, pairs).T
    mean /= mean.sum(1, keepdims=True)
    behaviour = np.bincount(pair, minlength=pairs).reshape(problem.states, problem.actions)
    behaviour = behaviour / behaviour.sum(1, keepdims=True)
    system = np.eye(rows) - discount * lam * np.diag(goes_on[:-1].astype(np.float64), 1)
    read = discount * np.where(goes_on, 1 - lam, np.where(d, 0.0, 1.0))
    # From V to Q by the solution of the system: Q = constant + slope V.
    constant = mean @ np.linalg.solve(system, r)
    slope = mean @ np.linalg.solve(system, read[:, None] * _one_hot(following, problem.states))
    v = np.zeros(problem.states)
    for _ in range(int(np.log(TOLERANCE) / np.log(discount))):
        q = (constant + slope @ v).reshape(problem.states, problem.actions)
        v = state_value(q, behaviour)
    return v, q


def _one_hot(index: NDArray[np.int64], size: int) -> Array:
    table: Array = np.eye(size)[index]
    return table
