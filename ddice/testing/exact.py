"""Exact answers for finite problems, from the equations alone and in float64: fixed points by
iteration, duals by L-BFGS, occupancies by linear algebra. Nothing here uses the toolkit's own
divergences or backends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddice.testing.tabular import Array, Problem

KINDS = ("kl", "pearson", "half_pearson", "piecewise", "soft_chi2")
GRADIENT_TOLERANCE = 1e-6  # the largest flow violation at which a dual counts as solved


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
    """Where an increasing function changes sign, elementwise, to float64's precision of the
    first interval.
    """
    for _ in range(64):
        middle = (low + high) / 2
        negative = increasing(middle) < 0
        low, high = np.where(negative, middle, low), np.where(negative, high, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Solution:
    """V (S,), Q (S, A) and w (S, A). For duals also lambda, the value of the absorbing state, the
    minimum of the dual, its gap to the primal value of w, and the largest violation of the Bellman
    flow (probability, of all that sums to 1).
    """

    v: Array
    q: Array
    w: Array
    lam: float = 0.0
    absorbing: float = 0.0
    minimum: float = 0.0
    gap: float = 0.0
    residual: float = 0.0


def state_value(
    kind: str, q: Array, behaviour: Array, temperature: float, mean_ratio: float
) -> Array:
    """V (S,) with sum_a pi_D(a | s) ratio((Q - V) / temperature) = mean_ratio in every state."""
    reach = temperature * (2 + 2 * mean_ratio + abs(np.log(mean_ratio)))
    return -bisect(
        lambda minus_v: (
            (behaviour * ratio(kind, (q + minus_v[:, None]) / temperature)).sum(1) - mean_ratio
        ),
        -q.max(1) - reach,
        -q.min(1) + reach,
    )


def semi_gradient(
    problem: Problem, kind: str, temperature: float, discount: float, mean_ratio: float = 1.0
) -> Solution:
    """The fixed point of Q = E[r + discount (1 - d) V(s')] and V = `state_value`(Q), by
    iteration: a contraction by the discount.
    """
    v = np.zeros(problem.states)
    for _ in range(1 if discount == 0 else int(np.log(1e-13) / np.log(discount))):
        q = problem.expectation(problem.r + discount * ~problem.d * v[problem.following])
        v = state_value(kind, q, problem.behaviour, temperature, mean_ratio)
    return Solution(v, q, ratio(kind, (q - v[:, None]) / temperature))


def expectile(q: Array, behaviour: Array, share: float) -> Array:
    """V (S,) with share E[(Q - V)+ | s] = (1 - share) E[(V - Q)+ | s] under pi_D: the mean at 1/2,
    the maximum in the limit 1.
    """

    def slope(v: Array) -> Array:  # increasing in v
        above, below = np.maximum(q - v[:, None], 0), np.maximum(v[:, None] - q, 0)
        total: Array = (behaviour * ((1 - share) * below - share * above)).sum(1)
        return total

    return bisect(slope, q.min(1), q.max(1))


def implicit(
    problem: Problem,
    share: float,
    temperature: float,
    discount: float,
    log_cap: float,
) -> Solution:
    """IQL's fixed point Q = E[r + discount (1 - d) V(s')], V = `expectile`(Q), by iteration: a
    contraction by the discount. w = min(exp((Q - V) / temperature), e^log_cap).
    """
    v = np.zeros(problem.states)
    for _ in range(1 if discount == 0 else int(np.log(1e-13) / np.log(discount))):
        q = problem.expectation(problem.r + discount * ~problem.d * v[problem.following])
        v = expectile(q, problem.behaviour, share)
    return Solution(v, q, np.exp(np.minimum((q - v[:, None]) / temperature, log_cap)))


def deviations(problem: Problem, discount: float, v: Array, absorbing: float) -> Array:
    """e(s, a) = E[r + discount V(s') - V(s)], with the absorbing state behind terminations, (S,
    A).
    """
    return problem.expectation(
        problem.r + discount * np.where(problem.d, absorbing, v[problem.following]) - v[problem.s]
    )


def dual(
    problem: Problem, kind: str, temperature: float, discount: float, absorbing_reward: float = 0.0
) -> Solution:
    """min over V, v_abs, lam of (1 - discount) mu0 V + E[temperature f*((e - lam) / temperature)] +
    lam: OptiDICE's state-action ratio.

    The self-loops of the absorbing state, one per terminating row, are among the rows that E and
    E[w] = 1 count. Solved by L-BFGS with its gradient, which is the violation of the flow. Raises
    RuntimeError when that stays above 1e-6.
    """
    ends = problem.p[problem.d].sum()
    pairs, total = problem.pairs.reshape(problem.states, problem.actions), 1 + ends

    def objective(x: Array) -> tuple[float, Array]:
        v, absorbing, lam = x[:-2], x[-2], x[-1]
        y = (deviations(problem, discount, v, absorbing) - lam) / temperature
        y_loop = (absorbing_reward - (1 - discount) * absorbing - lam) / temperature
        value = (1 - discount) * problem.mu0 @ v + lam
        value += (
            temperature
            * ((pairs * conjugate(kind, y)).sum() + ends * conjugate(kind, y_loop))
            / total
        )
        w, w_loop = ratio(kind, y), ratio(kind, y_loop)
        flow = problem.p * w[problem.s, problem.a] / total
        gradient = np.zeros_like(x)
        gradient[:-2] = (1 - discount) * problem.mu0 - np.bincount(problem.s, flow, problem.states)
        gradient[:-2] += discount * np.bincount(
            problem.following, flow * ~problem.d, problem.states
        )
        gradient[-2] = discount * (flow * problem.d).sum() - (1 - discount) * ends * w_loop / total
        gradient[-1] = 1 - flow.sum() - ends * w_loop / total
        return float(value), gradient

    x, minimum, residual = _minimise(objective, np.zeros(problem.states + 2))
    v, absorbing, lam = x[:-2], float(x[-2]), float(x[-1])
    e = deviations(problem, discount, v, absorbing)
    w = ratio(kind, (e - lam) / temperature)
    w_loop = ratio(
        kind, np.array((absorbing_reward - (1 - discount) * absorbing - lam) / temperature)
    )
    primal = (
        problem.p * w[problem.s, problem.a] * problem.r
    ).sum() + ends * w_loop * absorbing_reward
    primal -= temperature * ((pairs * divergence(kind, w)).sum() + ends * divergence(kind, w_loop))
    return Solution(
        v, e + v[:, None], w, lam, absorbing, minimum, float(minimum - primal / total), residual
    )


def orthogonal_dual(
    problem: Problem, kind: str, temperature: float, discount: float, trade_off: float
) -> Solution:
    """min over V of E[(1 - trade_off) V(s) + trade_off temperature f*((r + discount (1 - d) V(s') -
    V(s)) / temperature)]: the limit in which orthogonal-gradient DICE follows the true gradient.

    Its flow starts from the *data's* states with mass (1 - trade_off) / trade_off, not from mu0.
    The sampled deviation stands in f*: exact for deterministic dynamics; otherwise give
    `problem.by_outcome()`.
    """
    start = np.bincount(problem.s, problem.p, problem.states) * (1 - trade_off) / trade_off

    def objective(v: Array) -> tuple[float, Array]:
        y = (problem.r + discount * ~problem.d * v[problem.following] - v[problem.s]) / temperature
        flow = problem.p * ratio(kind, y)
        gradient = start - np.bincount(problem.s, flow, problem.states)
        gradient += discount * np.bincount(problem.following, flow * ~problem.d, problem.states)
        return float(
            start @ v + temperature * (problem.p * conjugate(kind, y)).sum()
        ), gradient.astype(np.float64)

    v, minimum, residual = _minimise(objective, np.zeros(problem.states))
    e = problem.expectation(problem.r + discount * ~problem.d * v[problem.following]) - v[:, None]
    w = ratio(kind, e / temperature)
    primal = (
        problem.p
        * (
            w[problem.s, problem.a] * problem.r
            - temperature * divergence(kind, w[problem.s, problem.a])
        )
    ).sum()
    return Solution(
        v, e + v[:, None], w, minimum=minimum, gap=float(minimum - primal), residual=residual
    )


def _minimise(
    objective: Callable[[Array], tuple[float, Array]], start: Array
) -> tuple[Array, float, float]:
    """L-BFGS from `start`: where it ends, the value there, and the largest component of the
    gradient.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("the exact duals need SciPy: pip install scipy") from error
    options = {"maxiter": 50_000, "maxfun": 200_000, "ftol": 1e-17, "gtol": 1e-10}
    result: Any = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    residual = float(np.abs(objective(result.x)[1]).max())
    if residual >= GRADIENT_TOLERANCE:
        raise RuntimeError(
            f"expected the dual to be solved to a flow violation below {GRADIENT_TOLERANCE}, "
            f"got {residual}: {result.message}"
        )
    return result.x, float(result.fun), residual


def policy_of(problem: Problem, w: Array) -> Array:
    """pi(a | s) proportional to pi_D(a | s) w(s, a), (S, A); states in which all w are 0 keep
    pi_D.
    """
    table = problem.behaviour * w
    total = table.sum(1, keepdims=True)
    return np.where(total > 0, table / np.where(total > 0, total, 1), problem.behaviour)


def transition(problem: Problem, policy: Array) -> Array:
    """P(s' | s) under `policy` (S, A), without what terminates: rows sum to 1 - P(termination |
    s), (S, S).
    """
    chance = problem.p / problem.pairs[problem.pair] * policy[problem.s, problem.a] * ~problem.d
    table = np.zeros((problem.states, problem.states))
    np.add.at(table, (problem.s, problem.following), chance)
    return table


def policy_q(problem: Problem, policy: Array, discount: float) -> Array:
    """Q^pi (S, A) in closed form; nothing is earned behind a termination."""
    reward = (policy * problem.expectation(problem.r)).sum(1)
    v = np.linalg.solve(np.eye(problem.states) - discount * transition(problem, policy), reward)
    return problem.expectation(problem.r + discount * ~problem.d * v[problem.following])


def policy_value(
    problem: Problem, policy: Array, discount: float, start: Array | None = None
) -> float:
    """The discounted return of `policy` (S, A) from `start` (S,), by default mu0."""
    v = (policy * policy_q(problem, policy, discount)).sum(1)
    return float((problem.mu0 if start is None else start) @ v)


def occupancy(
    problem: Problem, policy: Array, discount: float, start: Array | None = None
) -> Array:
    """d^pi(s) = (1 - discount) sum_t discount^t P(s_t = s), (S,). What terminates leaves: the
    rest of its mass is in the absorbing state.
    """
    first: NDArray[np.float64] = problem.mu0 if start is None else start
    return np.linalg.solve(
        (np.eye(problem.states) - discount * transition(problem, policy)).T, (1 - discount) * first
    )


def state_action_ratio(problem: Problem, policy: Array, discount: float) -> Array:
    """d^pi(s) pi(a | s) / d^D(s, a), (S, A); 0 for pairs without data."""
    pairs = problem.pairs.reshape(problem.states, problem.actions)
    return np.where(
        pairs > 0,
        occupancy(problem, policy, discount)[:, None] * policy / np.where(pairs > 0, pairs, 1),
        0.0,
    )
