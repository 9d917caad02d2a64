"""Time of whole decisions: observation -> K guided candidates -> selection by Q -> action. `make bench` runs it.

Compare rows of one run by ratio: absolute times on shared machines say little.
"""

from __future__ import annotations

import platform

import pytest
import torch

from ddice.data import BoxActions, Normalizer, Spec
from ddice.data.spec import ObservationPart, Observations, RewardSummary
from ddice.dice_backends import QConfig
from ddice.guidance import Guidance
from ddice.networks import MLP, FlattenEncoder, FourierTime, PublishedScore
from ddice.policy import Policy, PolicyConfig
from ddice.prior import DiffusionPrior
from ddice.samplers import Diffusion
from ddice.solvers import DDIM, PUBLISHED, MultiStep, Solver

OBSERVATIONS, ACTIONS = 11, 3  # Hopper
NETWORKS = {
    "published": (PublishedScore(), Guidance(network=MLP(hidden=(256,) * 4, activation="silu"), time=FourierTime())),
    "default": (DiffusionPrior().network, Guidance()),
}
SOLVERS: dict[str, Solver] = {"2S-15": PUBLISHED, "2M-8": MultiStep(evaluations=8, spacing="quadratic"), "DDIM-15": DDIM(evaluations=15)}


def make_policy(networks: str, solver: str, candidates: int) -> Policy:
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
    score, guidance = NETWORKS[networks]
    prior = DiffusionPrior(network=score, encoder=FlattenEncoder(normalize=False))
    sampler = Diffusion(prior=prior, guidance=guidance, solver=SOLVERS[solver])
    q = QConfig(members=10)
    config = PolicyConfig(sampler=sampler, candidates=candidates, q=q)
    return Policy(config, spec, sampler.build(spec), q.build(spec))


@pytest.mark.parametrize(("batch", "candidates"), [(1, 4), (1, 32), (10, 4), (50, 32)])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("networks", NETWORKS)
def test_decisions(benchmark: pytest.FixtureRequest, networks: str, solver: str, batch: int, candidates: int) -> None:
    """One call of `policy.act` for `batch` states."""
    torch.set_num_threads(1)
    policy = make_policy(networks, solver, candidates)
    observations = torch.randn(batch, OBSERVATIONS, generator=torch.Generator().manual_seed(0))
    benchmark.group = f"{networks} networks, {batch} states x {candidates} candidates"  # type: ignore[attr-defined]
    benchmark.extra_info.update(  # type: ignore[attr-defined]
        {
            "candidates": candidates,
            "evaluations": SOLVERS[solver].evaluations,
            "batch": batch,
            "dtype": "float32",
            "device": "cpu",
            "threads": 1,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
    )
    actions = benchmark.pedantic(policy.act, args=(observations,), kwargs={"seed": 0}, rounds=10, warmup_rounds=2)  # type: ignore[attr-defined]
    assert actions.shape == (batch, ACTIONS)
