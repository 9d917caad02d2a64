"""Decisions of the fused engine, its kernels run by Triton's interpreter on the CPU, against those of eager: one JSON line for each case.

Run with TRITON_INTERPRET=1, which Triton reads when it is imported: so in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from parity import candidate_error, choice_error
from test_engines import GUIDANCES, SCORES, inputs, make

from ddice.engines.eager import EagerEngine
from ddice.engines.fused import FusedDtype, FusedEngine, FusedRunner, fused_plan
from ddice.engines.graph import Call
from ddice.engines.program import decision
from ddice.networks import MLP
from ddice.policy import Policy
from ddice.prior import DiffusionPrior
from ddice.samplers import Diffusion, Gaussian, Selection
from ddice.solvers import DDIM, MultiStep, SingleStep

HALF = ("published score, published guidance", "single_step 5", "multi_step 4", "normalised q, softmax", "large tiles")  # in float16 too


def again(call: Call) -> Call:
    """In the place of a CUDA graph."""
    return call


def policies() -> Iterator[tuple[str, Policy, int]]:
    """Name, policy, number of states."""
    for score, network in SCORES.items():
        for guidance, config in GUIDANCES.items():
            sampler = Diffusion(prior=DiffusionPrior(network=network), guidance=config, guidance_scale=1.5, solver=DDIM(evaluations=2))
            yield f"{score} score, {guidance} guidance", make(sampler, candidates=1 if "fourier" in score else 3), 2
    small = Diffusion(prior=DiffusionPrior(network=SCORES["residual, fourier"]), guidance=GUIDANCES["silu"], clip_denoised=True)
    for solver in (SingleStep(evaluations=5), MultiStep(evaluations=4, spacing="quadratic")):
        yield f"{solver.kind} {solver.evaluations}", make(small.model_copy(update={"solver": solver})), 5
    short = small.model_copy(update={"solver": DDIM(evaluations=2), "clip_denoised": False})
    yield "not clipped", make(short, candidates=7, selection=Selection(rule="minimum"), after=True), 3
    yield "normalised q, softmax", make(short, selection=Selection(rule="softmax", temperature=0.1), layer_norm=True), 3
    yield "gaussian", make(Gaussian(network=MLP(hidden=(8,))), candidates=5), 2
    yield "large tiles", make(short, candidates=29), 9


def compare(policy: Policy, batch: int, dtype: FusedDtype) -> dict[str, float]:
    """How far candidates and choices are from those of eager."""
    config = policy.config
    program = decision(
        policy.sampler,
        policy.q,
        candidates=config.candidates,
        selection=config.selection,
        clip_before_scoring=config.clip_candidates == "before_scoring",
    )
    plan, (observations, noise, uniform) = fused_plan(program, dtype), inputs(policy, batch)

    def runner() -> FusedRunner:
        return FusedRunner(program, plan, rows_per_call=1000)

    engine = FusedEngine(runner, again, batch_sizes=(batch + 1,), rows_per_call=1000, device=torch.device("cpu"))
    expected = EagerEngine(program, rows_per_call=1000).decide(observations, noise, uniform)
    got = engine.decide(observations, noise, uniform)
    return {
        "candidates": candidate_error(expected, got),
        "choice": choice_error(policy, observations, uniform, expected.candidates, got.chosen),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, policy, batch in policies():
        dtypes: tuple[FusedDtype, ...] = ("float32", "float16") if name in HALF else ("float32",)
        for dtype in dtypes:
            print(json.dumps([name, dtype, compare(policy, batch, dtype)]), flush=True)
