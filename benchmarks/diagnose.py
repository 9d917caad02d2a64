"""Why an extractor wins or loses: what its policies do to the candidates of the behaviour policy,
and whether training seeds agree about it.

    python benchmarks/diagnose.py runs/hopper            # a run folder of `ddice compare` with two
    seeds or more; writes diagnosis.md into it

For every policy, on states of its dataset and with the same noise for all policies of all seeds:

outside   share of candidates with a coordinate outside of the action bounds, before they are mapped
into them spread    deviation of the candidates of a state, over that of the behaviour policy's
moved     root mean square distance from the behaviour policy's candidate of the same noise, over
the behaviour policy's spread agree     correlation of that move between two seeds: 1 where all
seeds move candidates alike, 0 where a move is noise of training rank      rank correlation between
two seeds of Q over the behaviour policy's candidates of a state: 0 where selection is noise of
training length    mean number of steps of an evaluation episode

For every backend, on all rows of its dataset, the mean of the seeds; its trained networks must
still be in the cache:

V and return    correlation of V(s) with the discounted return that was observed from there on V -
return      the mean difference, in units of the return's deviation: far above 0, V has run away
weighted        return of the episodes that ratio-weighted rows come from, over that of all rows:
below 1, ratios prefer bad episodes before falling  mean ratio of the last 50 rows before a
termination, over the mean of all: above 1, ratios prefer what leads there
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddice import Policy, load_policy
from ddice.data.measures import episode_returns
from ddice.runs.alarms.critic import agreement
from ddice.runs.alarms.values import bias as value_bias
from ddice.runs.alarms.values import correlation as value_correlation
from ddice.runs.comparison import Comparison, Result, Results
from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.groups import grouped, run_means
from ddice.runs.training import Training

STATES, NOISES, FALL = 512, 16, 50
COLUMNS = ("backend", "extractor", "score", "outside", "spread", "moved", "agree", "rank", "length")
BACKEND_COLUMNS = ("backend", "V and return", "V - return", "weighted", "before falling")


def candidates(policy: Policy, observations: Tensor) -> Tensor:
    """Actions (B, N, A) for the same N noises at every state, as the sampler makes them."""
    noise = policy.sampler.latents(NOISES, policy.spec.actions.size).expand(
        len(observations), -1, -1
    )
    with torch.no_grad():
        return policy.sampler(observations, noise)


def spread(actions: Tensor) -> float:
    """Root mean square deviation of the candidates of a state."""
    return float(actions.std(1).square().mean().sqrt())


def correlation(first: Tensor, second: Tensor) -> float:
    """Of all entries, uncentred: the cosine of the angle between two moves."""
    return float((first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-12))


def ranking(policy: Policy, observations: Tensor, actions: Tensor) -> Tensor:
    """What the policy ranks actions (B, N, A) by, (B, N)."""
    assert policy.q is not None
    batch, count, size = actions.shape
    with torch.no_grad():
        q = policy.q(
            observations.repeat_interleave(count, 0), actions.clamp(-1, 1).reshape(-1, size)
        )
    return policy.config.selection.scores(q.reshape(-1, batch, count))


def over_seeds(policies: list[Policy], observations: Tensor, actions: Tensor) -> str:
    """How far the seeds agree in what they rank actions (B, N, A) by."""
    if len(policies) < 2:
        return ""
    rankings = [ranking(policy, observations, actions) for policy in policies]
    return f"{float(agreement(torch.stack(rankings))):.2f}"


def over_pairs(values: list[Tensor], compare: Callable[[Tensor, Tensor], float]) -> str:
    """The mean of `compare` over all pairs of seeds."""
    pairs = [compare(first, second) for first, second in itertools.combinations(values, 2)]
    return f"{sum(pairs) / len(pairs):.2f}" if pairs else ""


def row(
    group: tuple[str | None, str],
    rows: list[Result],
    run: Path,
    observations: Tensor,
    behaviour: dict[int, Tensor],
) -> str:
    """One line of the table."""
    policies = [load_policy(run / result.folder, device="cpu") for result in rows]
    width = {result.seed: spread(behaviour[result.seed]) for result in rows}
    made = [candidates(policy, observations) for policy in policies]
    moves = [actions - behaviour[result.seed] for actions, result in zip(made, rows, strict=True)]
    still = not any(move.any() for move in moves)
    ranked = [] if policies[0].q is None else policies
    count = len(rows)
    moved = sum(
        float(x.square().mean().sqrt()) / width[r.seed] for x, r in zip(moves, rows, strict=True)
    )
    cells = [
        group[0] or "",
        group[1],
        f"{run_means(rows).mean():.1f}",
        f"{sum(float((x.abs() > 1).any(-1).double().mean()) for x in made) / count:.2f}",
        f"{sum(spread(x) / width[r.seed] for x, r in zip(made, rows, strict=True)) / count:.2f}",
        "" if still else f"{moved / count:.2f}",
        "" if still else over_pairs(moves, correlation),
        over_seeds(ranked, observations, behaviour[rows[0].seed]),
        f"{sum(sum(r.evaluation.lengths) / len(r.evaluation.lengths) for r in rows) / count:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def backend_row(name: str, trainings: list[Training]) -> str:
    """One line of the table of backends."""
    numbers = np.mean([backend_numbers(training) for training in trainings], axis=0)
    return (
        "| "
        + " | ".join([name, *("" if np.isnan(number) else f"{number:.2f}" for number in numbers)])
        + " |"
    )


@torch.no_grad()
def backend_numbers(training: Training) -> tuple[float, float, float, float]:
    """The four numbers of a backend; NaN for what it has not."""
    data, backend = training.data, training.backend()
    assert data.episode is not None
    batches = list(data.batches(65_536))
    weights = torch.cat([backend.ratio(batch) for batch in batches]).double().numpy()
    returns = episode_returns(data.rewards, data.episode)[data.episode]
    observed = data.returns_to_go(data.rewards, backend.config.discount)
    beside = above = math.nan
    if backend.values_are_returns:
        values = torch.cat([backend.value(batch.observations) for batch in batches])
        beside = float(value_correlation(values, observed))
        above = float(value_bias(values, observed))
    falling = before_termination(data.episode.numpy(), data.terminations.numpy(), FALL)
    before = float(weights[falling].mean() / weights.mean()) if falling.any() else math.nan
    return beside, above, float(np.average(returns, weights=weights) / returns.mean()), before


def before_termination(episode: np.ndarray, terminations: np.ndarray, count: int) -> np.ndarray:
    """Which rows (N,) are among the last `count` of an episode that a termination ends."""
    lengths = np.bincount(episode)
    last = np.cumsum(lengths) - 1
    left = np.repeat(last, lengths) - np.arange(len(episode))
    return np.repeat(terminations[last], lengths) & (left < count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of ddice compare")
    options = parser.parse_args()
    comparison = Comparison.model_validate(
        json.loads((options.run / "comparison.json").read_text())
    )
    data = comparison.recipe.data.load()
    observations = data.sample(STATES, seed=0, step=0).observations
    groups = grouped(Results(options.run / "results.jsonl").rows)
    behaviour = {
        result.seed: candidates(
            load_policy(options.run / result.folder, device="cpu"), observations
        )
        for result in groups[None, BEHAVIOUR]
    }
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += [
        row(group, rows, options.run, observations, behaviour) for group, rows in groups.items()
    ]
    lines += ["", "| " + " | ".join(BACKEND_COLUMNS) + " |", "|" + "---|" * len(BACKEND_COLUMNS)]
    trainings: dict[str, dict[int, Training]] = {}
    for cell in comparison.cells():
        if cell.backend is not None and cell.recipe.schedule == "staged":
            trainings.setdefault(cell.backend, {})[cell.seed] = Training(
                cell.recipe, data, progress=False, say=lambda text: None, only_found=True
            )
    lines += [backend_row(name, list(seeds.values())) for name, seeds in trainings.items()]
    text = "\n".join(lines)
    (options.run / "diagnosis.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
