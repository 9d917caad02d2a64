"""On CUDA: the same part computes what the CPU computes, and a whole run trains, resumes and acts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ddice
from ddice.dice_backends import DeterministicDice, OptiDice, PiecewiseF
from ddice.extractors import GuideThenSelect, WeightedBC

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture(scope="module")
def data() -> ddice.data.Transitions:
    rng = np.random.default_rng(0)
    rows, length = 2000, 20
    arrays = {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, size=(rows, 2)),
        "rewards": rng.normal(size=rows),
        "terminations": np.arange(rows) % length == length - 1,
    }
    return ddice.load_dataset(arrays, action_bounds=(-1.0, 1.0))


@pytest.mark.parametrize("config", [PiecewiseF(), DeterministicDice(), OptiDice()], ids=lambda config: config.kind)
def test_update_equals_the_cpu(config: PiecewiseF, data: ddice.data.Transitions) -> None:
    """Twenty updates on the same batches, which need no random numbers of their own, end in the same ratios."""
    parts = [config.build(data.spec, seed=0).to(device) for device in ("cpu", "cuda")]
    for step in range(20):
        batch = data.sample(64, seed=0, step=step)
        for part in parts:
            part.update(batch.to(part.device), step=step)
    batch = data.sample(256, seed=1, step=0)
    on_cpu, on_cuda = (part.log_ratio(batch.to(part.device)).cpu() for part in parts)
    torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-3, atol=1e-4)


def test_policy_acts_as_on_the_cpu(data: ddice.data.Transitions, tmp_path: Path) -> None:
    """Trained on CUDA, saved, loaded on both devices: the same deterministic actions to float32 rounding of 15 evaluations."""
    prior = ddice.DiffusionPrior().fit(data, steps=50, seed=0, device="cuda", progress=False)
    backend = PiecewiseF().fit(data, steps=50, seed=0, device="cuda", progress=False)
    for config in (GuideThenSelect(candidates=4), WeightedBC()):
        policy = config.fit(data, prior=prior, backend=backend, steps=50, seed=0, device="cuda", progress=False)
        policy.save(tmp_path / config.kind)
        observations = np.random.default_rng(1).normal(size=(7, 3))
        loaded = [ddice.load_policy(tmp_path / config.kind, device=device) for device in ("cuda", "cpu")]
        on_cuda, on_cpu = (one.act(observations, deterministic=True) for one in loaded)
        np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-3)


def test_resumes_on_cuda(data: ddice.data.Transitions, tmp_path: Path) -> None:
    """A checkpoint written on CUDA is found again, and its optimiser goes on."""
    path = tmp_path / "prior.safetensors"
    config = ddice.DiffusionPrior()
    config.fit(data, steps=30, seed=0, device="cuda", progress=False, checkpoint=path)
    resumed = config.fit(data, steps=60, seed=0, device="cuda", progress=False, checkpoint=path)
    assert resumed.step == 60
    assert all(torch.isfinite(parameter).all() for parameter in resumed.parameters())
