"""Policies whose speed is measured, and what one of their decisions must compute and read at
least.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

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
