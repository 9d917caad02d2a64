"""Decisions of the fused engine, its kernels run by Triton's interpreter on the CPU, against those
of eager: one JSON line for each case.

Run with TRITON_INTERPRET=1, which Triton reads when it is imported: so in a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gelu
import torch
from parity import candidate_error, choice_error
from test_engines import GUIDANCES, SCORES, inputs, make
from torch import Tensor

from ddice.diffusion.networks import MLP
from ddice.diffusion.prediction import NoisePrediction
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Actor, Diffusion, Gaussian, Selection
from ddice.diffusion.solvers import DDIM, MultiStep, SingleStep
from ddice.policies.engines import Choice, layout
from ddice.policies.engines.decision import decision_program
from ddice.policies.engines.eager import EagerEngine
from ddice.policies.engines.fused import FusedDtype, FusedEngine, FusedRunner, fused_plan
from ddice.policies.engines.graph import Call
from ddice.policies.engines.layout import UNROLLED
from ddice.policies.policy import Policy

ROUNDED = (
    "published score, published guidance",
    "single_step 5",
    "multi_step 4",
    "normalised q, softmax",
    "gelu, one entry of the table",
    "large tiles",
)  # in other precisions too


def again(call: Call) -> Call:
    """In the place of a CUDA graph."""
    return call


def policies() -> Iterator[tuple[str, Policy, int]]:
    """Name, policy, number of states."""
    for score, network in SCORES.items():
        for guidance, config in GUIDANCES.items():
            sampler = Diffusion(
                prior=DiffusionPrior(prediction=NoisePrediction(), network=network),
                guidance=config,
                guidance_scale=1.5,
                solver=DDIM(evaluations=2),
                clip_denoised=False,
            )
            yield (
                f"{score} score, {guidance} guidance",
                make(sampler, candidates=1 if "fourier" in score else 3),
                2,
            )
    small = Diffusion(
        prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["residual, fourier"]),
        guidance=GUIDANCES["silu"],
        clip_denoised=True,
    )
    for solver in (SingleStep(evaluations=5), MultiStep(evaluations=4, spacing="quadratic")):
        yield (
            f"{solver.kind} {solver.evaluations}",
            make(small.model_copy(update={"solver": solver})),
            5,
        )
    short = small.model_copy(update={"solver": DDIM(evaluations=2), "clip_denoised": False})
    yield (
        "not clipped",
        make(short, candidates=7, selection=Selection(rule="minimum"), after=True),
        3,
    )
    yield (
        "normalised q, softmax",
        make(short, selection=Selection(rule="softmax", temperature=0.1), layer_norm=True),
        3,
    )
    yield "lower bound", make(short, selection=Selection(rule="lcb", coefficient=0.7)), 3
    yield "gaussian", make(Gaussian(network=MLP(hidden=(8,))), candidates=5), 2
    yield "actor", make(Actor(network=MLP(hidden=(8,))), candidates=1), 2
    yield "gelu, one entry of the table", make(gelu.sampler(), candidates=3), 3
    yield "large tiles", make(short, candidates=29), 5
    yield (
        "long history",
        make(short.model_copy(update={"solver": MultiStep(evaluations=UNROLLED)})),
        1,
    )


def compare(policy: Policy, batch: int, dtype: FusedDtype) -> dict[str, float]:
    """How far candidates and choices are from those of eager."""
    program = decision_program(policy.procedure)
    plan, (observations, noise, uniform) = fused_plan(program, dtype), inputs(policy, batch)

    def runner() -> FusedRunner:
        return FusedRunner(program, plan, rows_per_call=1000)

    engine = FusedEngine(
        runner, again, batch_sizes=(batch + 1,), rows_per_call=1000, device=torch.device("cpu")
    )
    expected = EagerEngine(program, rows_per_call=1000).decide(observations, noise, uniform)
    got = engine.decide(observations, noise, uniform)
    return {
        "candidates": candidate_error(expected, got),
        "choice": choice_error(policy, observations, uniform, expected.candidates, got.chosen),
        "spoiled": spoiled(engine, observations, noise, got),
    }


def spoiled(engine: FusedEngine, observations: Tensor, noise: Tensor, expected: Choice) -> float:
    """1 if a first state of NaN gives numbers, or changes those of other states; 0 as it should
    be.
    """
    bad = observations.clone()
    bad[0] = torch.nan
    got = engine.decide(bad, noise, None)
    return float(
        not torch.equal(got.candidates[1:], expected.candidates[1:])
        or not bool(got.candidates[0].isnan().all())
    )


def check_tf32() -> None:
    """Let products of the interpreter, which know no tf32, refuse factors with bits that tensor
    cores would not read.
    """
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if precision.name == "TF32":
            assert not any((factor.data.view("int32") & 0x1FFF).any() for factor in (a, b))
        return multiply(self, a, b, d, precision, imprecise)

    InterpreterBuilder.create_dot = create_dot


def main() -> None:
    for name, policy, batch in policies():
        layout.FEW_ROWS = 0 if name == "large tiles" else 1024
        dtypes: tuple[FusedDtype, ...] = (
            ("float32", "tf32", "float16") if name in ROUNDED else ("float32",)
        )
        for dtype in dtypes:
            print(json.dumps([name, dtype, compare(policy, batch, dtype)]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    check_tf32()
    with gelu.stated():
        main()
