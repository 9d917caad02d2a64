"""Policies whose speed is measured, and what one of their decisions must compute and read at
least.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.machine import bytes_per_second, description, flops_per_second
from ddice.data import BoxActions, Normalizer, Spec
from ddice.data.spec import ObservationPart, Observations, RewardSummary
from ddice.dice_backends import QConfig
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, FlattenEncoder, FourierTime, PublishedScore
from ddice.diffusion.prediction import NoisePrediction
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Diffusion
from ddice.diffusion.solvers import FEW_STEPS, PUBLISHED, MultiStep, Solver
from ddice.policies.engines.decision import DiffusionProgram, decision_program
from ddice.policies.engines.program import Instruction, Program
from ddice.policies.policy import Policy, PolicyConfig

OBSERVATIONS, ACTIONS = 11, 3  # Hopper
NETWORKS = {
    "published": (
        DiffusionPrior(network=PublishedScore(), prediction=NoisePrediction()),
        Guidance(network=MLP(hidden=(256,) * 4, activation="silu"), time=FourierTime()),
        QConfig(critic=MLP(), members=10),
    ),
    "default": (DiffusionPrior(), Guidance(), QConfig()),
}
SOLVERS: dict[str, Solver] = {
    "2S-15": PUBLISHED,
    "2M-8": FEW_STEPS,
    "2M-5": MultiStep(evaluations=5, spacing="quadratic"),
}


def make_policy(networks: str, solver: str, candidates: int, device: str = "cpu") -> Policy:
    """A policy with untrained weights: its arithmetic is that of a trained one."""
    spec = Spec(
        observations=Observations(parts=(ObservationPart(path="", shape=(OBSERVATIONS,)),)),
        actions=BoxActions(low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS),
        normalizer=Normalizer(mean=(0.0,) * OBSERVATIONS, std=(1.0,) * OBSERVATIONS),
        rewards=RewardSummary(mean=0.0, std=1.0),
        transitions=1,
        episodes=1,
        source_rows=1,
        has_initial=True,
        fingerprint="",
        behaviour_fingerprint="",
    )
    network, guidance, q = NETWORKS[networks]
    prior = network.model_copy(update={"encoder": FlattenEncoder(normalize=False)})
    sampler = Diffusion(prior=prior, guidance=guidance, solver=SOLVERS[solver], clip_denoised=False)
    config = PolicyConfig(sampler=sampler, candidates=candidates, q=q)
    torch.manual_seed(0)
    return Policy(config, spec, sampler.build(spec), q.build(spec)).to(device)


class Cost(NamedTuple):
    """Of one call for B states: multiply-adds x 2, and bytes of weights that pass the processor
    (once per evaluation).
    """

    flops: float
    bytes: float


def cost(policy: Policy, batch: int) -> Cost:
    """The least work that the policy's program asks for: linear layers alone, state and time
    terms once.
    """
    config = policy.config
    program = decision_program(policy.procedure)
    assert isinstance(program.generator, DiffusionProgram)
    evaluations, rows = len(program.generator.times), batch * config.candidates
    flops = size = 0.0
    for part, repeats in ((program.generator.network, evaluations), (program.q, 1)):
        if part is not None:
            flops += repeats * rows * _multiplications(part.body) + batch * _setup(
                part, evaluations
            )
            size += 4 * (repeats * _multiplications(part.body) + _multiplications(part.setup))
    return Cost(2 * flops, size)


class Case(NamedTuple):
    """What is measured."""

    networks: str
    solver: str
    engine: str
    batch: int
    candidates: int
    dtype: str
    device: str


def decision_row(
    case: Case,
    *,
    seconds: list[float],  # of the engine, one for each round
    plain_seconds: list[float],  # of the plain sampler in the same rounds
    cold_start: float,
    peak_memory: float | None,
) -> dict[str, Any]:
    """What is kept of the measurement of one case: against the plain sampler, and over the least
    time that its products and its weights need.
    """
    needed = cost(make_policy(case.networks, case.solver, case.candidates), case.batch)
    evaluations = SOLVERS[case.solver].evaluations
    size = needed.bytes / 2 if case.dtype == "float16" else needed.bytes
    reading = size / bytes_per_second(case.device, int(size / evaluations))
    floor = max(needed.flops / flops_per_second(case.device, case.dtype), reading)
    median = statistics.median(seconds)
    return {
        **description(case.device),
        **case._asdict(),
        "evaluations": evaluations,
        "ratio_to_plain": statistics.median(
            plain / engine for plain, engine in zip(plain_seconds, seconds, strict=True)
        ),
        "p50_ms": 1e3 * median,
        "p99_ms": 1e3 * float(np.quantile(seconds, 0.99)),
        "decisions_per_second": case.batch / median,
        "times_the_floor": median / floor,
        "floor_ms": 1e3 * floor,
        "gflop": needed.flops / 1e9,
        "peak_memory_mib": peak_memory,
        "cold_start_s": cold_start,
    }


def _multiplications(steps: list[Instruction]) -> int:
    return sum(weight.numel() for step in steps for weight in step.weights if step.op == "linear")


def _setup(part: Program, evaluations: int) -> int:
    """Multiplications per state of what is computed once per call; terms of state and time once
    for each evaluation.
    """
    timed = {name for name, value in part.constants.items() if value.shape[-3] > 1}
    count = 0
    for step in part.setup:
        depends = timed & {*step.inputs, step.row}
        if depends:
            timed.add(step.output)
        count += _multiplications([step]) * (evaluations if timed & set(step.inputs) else 1)
    return count
