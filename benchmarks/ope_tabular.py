"""How well off-policy evaluation ranks, on finite problems where true returns are known.

    python benchmarks/ope_tabular.py --out benchmarks/results/ope-tabular.json

Episodes of the behaviour are split in two. The first part gives, per temperature, the action ratios
of `PiecewiseF` and their correction; the other part evaluates: ratios rank the temperatures
(self-normalised and doubly robust), and fitted Q evaluation ranks both the temperatures and the
number of candidates K, with the policy "the best by Q of K actions drawn from the behaviour". Ranks
are compared with exact returns by Spearman's correlation. Every part stands at its exact fixed
point *on the sampled data* (the tests show that the trained tables reach them), so that what is
seen is the error of the estimates, not of training. `--episodes 5` shows where they fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddice.data import Batch, Spec
from ddice.ope import estimate_value, rank_correlation
from ddice.testing import (
    Problem,
    grid_world,
    policy_of,
    policy_value,
    random_problem,
    semi_gradient,
    state_action_ratio,
)

DISCOUNT = 0.9
TEMPERATURES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CANDIDATES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Row:
    """One choice on one problem: its true return and what each method says of it."""

    problem: str
    choice: str  # "temperature" or "candidates"
    setting: float
    truth: float
    fitted_q: float
    self_normalised: float | None = None
    doubly_robust: float | None = None
    effective_episodes: float | None = None
    flow_residual: float | None = None
    valid: bool | None = None


@dataclass(frozen=True)
class Ranking:
    """Spearman's correlation of a method's ranks with those of the true returns, mean and worst
    over problems, and its mean absolute error.
    """

    choice: str
    method: str
    mean: float
    worst: float
    error: float


class Ratios:
    """A table x (S, A) of state-action ratios with values v (S,), behind the interface of a
    backend.
    """

    ratio_kind, starts_from, has_value = "state-action", "initial", True
    seed, discount, device = 0, None, torch.device("cpu")

    def __init__(self, spec: Spec, x: np.ndarray, v: np.ndarray):
        self.spec = spec
        self._log_x = torch.from_numpy(x.reshape(-1)).log()
        self._v = torch.from_numpy(v)

    def log_ratio(self, batch: Batch) -> torch.Tensor:
        return self._log_x[batch.actions.argmax(-1)]

    def rewards(self, raw: torch.Tensor) -> torch.Tensor:
        return raw

    def value(self, observations: torch.Tensor) -> torch.Tensor:
        return self._v[observations.argmax(-1)]


def best_of(behaviour: np.ndarray, q: np.ndarray, candidates: int) -> np.ndarray:
    """The policy (S, A) that takes the best by q of `candidates` draws: F(q)^K minus the same
    below, with F the behaviour's distribution of q.
    """
    order = np.argsort(q, 1)
    reach = np.cumsum(np.take_along_axis(behaviour, order, 1), 1).clip(max=1.0) ** candidates
    policy = np.empty_like(behaviour)
    np.put_along_axis(policy, order, np.diff(reach, axis=1, prepend=0.0), 1)
    return policy / policy.sum(1, keepdims=True)


def rows_of(
    name: str,
    problem: Problem,
    episodes: int,
    length: int,
    seed: int,
    temperatures: Sequence[float],
) -> list[Row]:
    """All choices on one problem."""
    data, held_out = problem.episodes(2 * episodes, length, seed).split(0.5, seed)
    known, other, rows = problem.observed(data), problem.observed(held_out), []
    for temperature in temperatures:
        solution = semi_gradient(known, "piecewise", temperature, DISCOUNT)
        policy = policy_of(known, solution.w)
        estimate = estimate_value(
            Ratios(data.spec, state_action_ratio(known, policy, DISCOUNT), solution.v),
            held_out,
            discount=DISCOUNT,
            repetitions=1,
        )
        assert estimate.doubly_robust is not None
        rows.append(
            Row(
                problem=name,
                choice="temperature",
                setting=temperature,
                truth=policy_value(problem, policy, DISCOUNT),
                fitted_q=policy_value(other, policy, DISCOUNT),
                self_normalised=estimate.self_normalised.value,
                doubly_robust=estimate.doubly_robust.value,
                effective_episodes=estimate.effective_units,
                flow_residual=estimate.flow_residual,
                valid=estimate.valid,
            )
        )
    for candidates in CANDIDATES:
        policy = best_of(known.behaviour, solution.q, candidates)
        truth = policy_value(problem, policy, DISCOUNT)
        rows.append(
            Row(name, "candidates", candidates, truth, policy_value(other, policy, DISCOUNT))
        )
    return rows


def table(
    problems: int = 6,
    *,
    episodes: int = 200,
    length: int = 40,
    temperatures: Sequence[float] = TEMPERATURES,
) -> tuple[list[Row], list[Ranking]]:
    """Rows of `problems` random problems (10 states, 4 actions, terminations) and a grid world,
    and how well each method ranks.
    """
    named = {
        f"random {seed}": random_problem(seed, states=10, actions=4, terminate=0.3)
        for seed in range(problems)
    } | {"grid": grid_world(4)}
    rows = [
        row
        for i, (name, problem) in enumerate(named.items())
        for row in rows_of(name, problem, episodes, length, i, temperatures)
    ]
    rankings = []
    for choice, methods in (
        ("temperature", ("self_normalised", "doubly_robust", "fitted_q")),
        ("candidates", ("fitted_q",)),
    ):
        groups = [
            [row for row in rows if row.problem == name and row.choice == choice] for name in named
        ]
        for method in methods:
            correlations = [
                rank_correlation([getattr(r, method) for r in group], [r.truth for r in group])
                for group in groups
            ]
            error = float(
                np.mean([abs(getattr(r, method) - r.truth) for group in groups for r in group])
            )
            rankings.append(
                Ranking(
                    choice, method, float(np.mean(correlations)), float(np.min(correlations)), error
                )
            )
    return rows, rankings


def markdown(rankings: Sequence[Ranking]) -> str:
    """The rankings as a table."""
    head = (
        "| what is ranked | by | rank correlation, mean | worst problem | mean absolute error "
        "|\n|---|---|---|---|---|"
    )
    return "\n".join(
        [
            head,
            *(
                f"| {r.choice} | {r.method} | {r.mean:.2f} | {r.worst:.2f} | {r.error:.3f} |"
                for r in rankings
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=200, help="of each half")
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, rankings = table(options.problems, episodes=options.episodes, length=options.length)
    for row in rows:
        print(
            {
                k: round(v, 3) if isinstance(v, float) else v
                for k, v in dataclasses.asdict(row).items()
                if v is not None
            }
        )
    print(markdown(rankings))
    if options.out is not None:
        content = {
            "options": {k: v for k, v in vars(options).items() if k != "out"},
            "rows": rows,
            "rankings": rankings,
        }
        options.out.write_text(json.dumps(content, default=dataclasses.asdict, indent=1) + "\n")


if __name__ == "__main__":
    main()
