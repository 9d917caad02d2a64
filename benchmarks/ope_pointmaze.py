"""How well off-policy evaluation ranks on a real dataset, beside returns in its environment.
Minutes to hours: see the options.

    ddice data make pointmaze-umaze python benchmarks/ope_pointmaze.py --dataset
    ddice/pointmaze-umaze-v0 --out benchmarks/results/ope-pointmaze.json

Episodes are split in two. On the first part: a prior, and per temperature a backend
(`DeterministicDice`), its guidance, and policies for all numbers of candidates and guidance scales.
On the other part: the corrected ratios' estimates of each temperature's regularised optimum, and
fitted Q evaluation of each policy with its own actions. Returns in the environment are undiscounted
and start where the environment starts, the estimates are discounted and start where the data's
episodes do: only ranks are compared. The true return beside a temperature is that of its policy
with one candidate and guidance scale 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch

import ddice
from ddice.dice_backends import DeterministicDice, StateCorrection
from ddice.diffusion.solvers import MultiStep
from ddice.extractors import GuideThenSelect
from ddice.ope import Estimate, FittedQEvaluation, estimate_value, rank_correlation
from ddice.parts.part import Optimizer
from ddice.policies.policy import Policy


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="ddice/pointmaze-umaze-v0")
    parser.add_argument("--goal", choices=("fixed", "observed"), default="fixed")
    parser.add_argument(
        "--held-out", type=float, default=0.3, help="share of the episodes that evaluates"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.1,
        help="of the held-out episodes whose next states get actions for fitted Q evaluation",
    )
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.3, 1.0]
    )
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--guidance-scales", type=float, nargs="+", default=[0.0, 1.0, 2.0])
    parser.add_argument("--discount", type=float, default=0.99)
    parser.add_argument("--prior-steps", type=int, default=8000)
    parser.add_argument("--backend-steps", type=int, default=15_000)
    parser.add_argument("--correction-steps", type=int, default=15_000)
    parser.add_argument("--guidance-steps", type=int, default=8000)
    parser.add_argument("--fitted-q-steps", type=int, default=15_000)
    parser.add_argument("--samples", type=int, default=4, help="J, actions kept per next state")
    parser.add_argument(
        "--evaluations", type=int, default=8, help="network evaluations of the 2M sampler"
    )
    parser.add_argument("--episodes", type=int, default=100, help="played per policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def numbers(estimate: Estimate | None) -> list[float] | None:
    return None if estimate is None else [estimate.value, estimate.low, estimate.high]


def of_policy(policy: Policy, held_out: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Fitted Q evaluation on the held-out episodes, and what the environment says."""
    held_out = held_out.subset(options.share, seed=options.seed)
    config = FittedQEvaluation(discount=options.discount, samples=options.samples, polyak=0.05)
    fitted = config.fit(
        held_out,
        policy=policy,
        steps=options.fitted_q_steps,
        seed=options.seed,
        device=options.device,
    )
    played = ddice.evaluate(policy, episodes=options.episodes, seed=options.seed)
    value = numbers(fitted.estimate(held_out))
    return {
        "fitted_q": value,
        "spread": fitted.spread(held_out),
        "return": sum(played.returns) / len(played.returns),
        "score": played.mean,
    }


def of_temperature(
    temperature: float, prior: Any, data: Any, held_out: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """One temperature: ratio estimates of its optimum, and every policy made from it."""
    common = {"seed": options.seed, "device": options.device}
    config = DeterministicDice(
        temperature=temperature,
        discount=options.discount,
        polyak=0.05,
        optimizer=Optimizer(decay="cosine"),
    )
    backend = config.fit(data, steps=options.backend_steps, **common)
    corrected = StateCorrection(optimizer=Optimizer(decay="cosine")).fit(
        data, backend=backend, steps=options.correction_steps, **common
    )
    estimate = estimate_value(corrected, held_out)
    solver = MultiStep(evaluations=options.evaluations, spacing="quadratic")
    extractor = (
        GuideThenSelect(candidates=1, solver=solver)
        .build(data.spec, seed=options.seed, prior=prior)
        .to(prior.device)
    )
    extractor.fit(data, backend=backend, steps=options.guidance_steps)
    policies = []
    for candidates, scale in itertools.product(options.candidates, options.guidance_scales):
        extractor.config = extractor.config.model_copy(
            update={"candidates": candidates, "guidance_scale": scale}
        )  # neither is read in training
        policy = extractor.policy(q=backend.q)
        policies.append(
            {"temperature": temperature, "candidates": candidates, "guidance_scale": scale}
            | of_policy(policy, held_out, options)
        )
        print(policies[-1], flush=True)
    row = {
        "temperature": temperature,
        "self_normalised": numbers(estimate.self_normalised),
        "doubly_robust": numbers(estimate.doubly_robust),
        "effective_sample_size": estimate.effective_sample_size,
        "effective_episodes": estimate.effective_units,
        "flow_residual": estimate.flow_residual,
        "reasons": estimate.reasons,
        "policies": policies,
    }
    print({key: value for key, value in row.items() if key != "policies"}, flush=True)
    return row


def rankings(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's correlations: policies by fitted Q, and temperatures by ratios where a policy
    with one candidate and scale 1 was played.
    """
    policies = [policy for row in rows for policy in row["policies"]]
    found = {}
    if len(policies) > 1:
        found["policies by fitted Q"] = rank_correlation(
            [p["fitted_q"][0] for p in policies], [p["return"] for p in policies]
        )
    plain = {
        p["temperature"]: p["return"]
        for p in policies
        if p["candidates"] == 1 and p["guidance_scale"] == 1
    }
    known = [row for row in rows if row["temperature"] in plain]
    for method in ("self_normalised", "doubly_robust"):
        if len(known) > 1:
            truths = [plain[row["temperature"]] for row in known]
            found[f"temperatures, {method}"] = rank_correlation(
                [row[method][0] for row in known], truths
            )
    return found


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    source = ddice.load_dataset(options.dataset, goal=options.goal)
    data, held_out = source.split(1 - options.held_out, seed=options.seed)
    prior = ddice.DiffusionPrior().fit(
        data, steps=options.prior_steps, seed=options.seed, device=options.device
    )
    rows = [
        of_temperature(temperature, prior, data, held_out, options)
        for temperature in options.temperatures
    ]
    found = rankings(rows)
    for name, correlation in found.items():
        print(f"{name}: rank correlation {correlation:.2f}")
    if options.out is not None:
        content = {
            "options": {k: v for k, v in vars(options).items() if k != "out"},
            "rows": rows,
            "rankings": found,
        }
        options.out.write_text(json.dumps(content, indent=1, default=dataclasses.asdict) + "\n")


if __name__ == "__main__":
    main()
