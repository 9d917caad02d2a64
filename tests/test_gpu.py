"""On CUDA: the same part computes what the CPU computes, and a whole run trains, resumes and
acts.
"""

from __future__ import annotations

import copy
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity import candidate_error, choice_error

import ddice
from ddice.dice_backends import DeterministicDice, OptiDice, PiecewiseF, QConfig
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, FourierTime, PublishedScore
from ddice.diffusion.samplers import Diffusion
from ddice.diffusion.solvers import SingleStep
from ddice.extractors import GuideThenSelect, WeightedBC
from ddice.policies.engines import Choice
from ddice.policies.policy import Policy, PolicyConfig
from ddice.testing.example import example_data

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


@pytest.mark.parametrize(
    "config", [PiecewiseF(), DeterministicDice(), OptiDice()], ids=lambda config: config.kind
)
def test_update_equals_the_cpu(config: PiecewiseF, data: ddice.data.Transitions) -> None:
    """Twenty updates on the same batches, which need no random numbers of their own, end in the
    same ratios.
    """
    parts = [config.build(data.spec, seed=0).to(device) for device in ("cpu", "cuda")]
    for step in range(20):
        batch = data.sample(64, seed=0, step=step)
        for part in parts:
            part.update(batch.to(part.device), step=step)
    batch = data.sample(256, seed=1, step=0)
    on_cpu, on_cuda = (part.log_ratio(batch.to(part.device)).cpu() for part in parts)
    torch.testing.assert_close(on_cuda, on_cpu, rtol=1e-3, atol=1e-4)


def test_policy_acts_as_on_the_cpu(data: ddice.data.Transitions, tmp_path: Path) -> None:
    """Trained on CUDA, saved, loaded on both devices: the same deterministic actions to float32
    rounding of 15 evaluations.
    """
    prior = ddice.DiffusionPrior().fit(data, steps=50, seed=0, device="cuda", progress=False)
    backend = PiecewiseF().fit(data, steps=50, seed=0, device="cuda", progress=False)
    for config in (GuideThenSelect(candidates=4), WeightedBC()):
        policy = config.fit(
            data, prior=prior, backend=backend, steps=50, seed=0, device="cuda", progress=False
        )
        policy.save(tmp_path / config.kind)
        observations = np.random.default_rng(1).normal(size=(7, 3))
        loaded = [
            ddice.load_policy(tmp_path / config.kind, device=device) for device in ("cuda", "cpu")
        ]
        on_cuda, on_cpu = (one.act(observations, deterministic=True) for one in loaded)
        np.testing.assert_allclose(on_cuda, on_cpu, atol=1e-3)


def test_resumes_on_cuda(data: ddice.data.Transitions, tmp_path: Path) -> None:
    """Interrupted half way: the checkpoint written on CUDA is found again, and training goes on
    with the next step.
    """
    path, config, seen = tmp_path / "prior.safetensors", ddice.DiffusionPrior(), []

    def stop(step: int, metrics: Any) -> None:
        if step == 29:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        config.fit(
            data, steps=60, seed=0, device="cuda", progress=False, checkpoint=path, on_step=stop
        )
    resumed = config.fit(
        data,
        steps=60,
        seed=0,
        device="cuda",
        progress=False,
        checkpoint=path,
        on_step=lambda step, metrics: seen.append(step),
    )
    assert (resumed.step, seen[0]) == (60, 30)
    assert all(torch.isfinite(parameter).all() for parameter in resumed.parameters())


@pytest.mark.parametrize(
    ("engine", "dtype", "bound"),
    [
        ("eager", "float32", 1e-4),
        ("graph", "float32", 1e-4),
        ("fused", "float32", 1e-4),
        ("fused", "tf32", 1e-1),
        ("fused", "float16", 2e-2),
    ],
)
@pytest.mark.parametrize("batch", [1, 3, 16, 40])
def test_engines_decide_as_on_the_cpu(engine: str, dtype: str, bound: float, batch: int) -> None:
    """Batches below, at, between and above the prepared sizes; candidates and choices, ties apart,
    to the bound. Untrained networks amplify rounding: benchmarks/precision.py has what it is of
    trained ones.
    """
    if engine == "fused":
        pytest.importorskip("triton")
    sampler = Diffusion(
        prior=ddice.DiffusionPrior(network=PublishedScore()),
        guidance=Guidance(network=MLP(hidden=(256,) * 4, activation="silu"), time=FourierTime()),
        solver=SingleStep(evaluations=5),
        clip_denoised=True,
    )
    config, spec = (
        PolicyConfig(sampler=sampler, candidates=8, q=QConfig(members=10)),
        example_data().spec,
    )
    policy = Policy(config, spec, sampler.build(spec), QConfig(members=10).build(spec))
    source = torch.Generator().manual_seed(batch)
    observations = torch.randn(batch, spec.observations.size, generator=source)
    noise = torch.randn(batch, 8, spec.actions.size, generator=source)
    expected = policy.compile("eager").decide(observations, noise)
    compiled = copy.deepcopy(policy).to("cuda").compile(engine, dtype=dtype, batch_sizes=(1, 16))  # type: ignore[arg-type]
    first = compiled.decide(observations, noise.cuda())
    kept = first.candidates.clone()
    again = compiled.decide(observations.cuda(), noise.cuda())
    assert torch.equal(kept, first.candidates)
    torch.testing.assert_close(again.candidates, first.candidates, rtol=0, atol=0)
    got = Choice(*(tensor.cpu() for tensor in first))
    assert candidate_error(expected, got) < bound
    assert choice_error(policy, observations, None, expected.candidates, got.chosen) < bound


@pytest.mark.parametrize("engine", ["graph", "fused"])
def test_recordings_that_do_not_fit(engine: str) -> None:
    """A device that holds the recording of one state and not that of 100,000 goes on with
    smaller ones, to the same actions.
    """
    if engine == "fused":
        pytest.importorskip("triton")
    sampler = Diffusion(
        prior=ddice.DiffusionPrior(), solver=SingleStep(evaluations=3), clip_denoised=True
    )
    spec = example_data().spec
    policy = Policy(
        PolicyConfig(sampler=sampler, candidates=1), spec, sampler.build(spec), None
    ).to("cuda")
    observations, noise = (
        torch.randn(100_000, spec.observations.size),
        torch.randn(100_000, 1, spec.actions.size).cuda(),
    )
    expected = policy.decide(observations, noise)
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 300 * 2**20
    torch.cuda.set_per_process_memory_fraction(
        allowed / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        with pytest.warns(UserWarning, match=f"engine '{engine}' goes on"):
            got = policy.compile(engine, batch_sizes=(1, 100_000)).decide(observations, noise)  # type: ignore[arg-type]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(got.actions, expected.actions, rtol=0, atol=1e-3)


@pytest.mark.parametrize("engine", ["graph", "fused"])
def test_two_threads_at_once(engine: str) -> None:
    """Each gets the decisions of its own states, whatever the stream it works on."""
    if engine == "fused":
        pytest.importorskip("triton")
    sampler = Diffusion(
        prior=ddice.DiffusionPrior(), solver=SingleStep(evaluations=3), clip_denoised=True
    )
    spec = example_data().spec
    policy = Policy(
        PolicyConfig(sampler=sampler, candidates=1), spec, sampler.build(spec), None
    ).to("cuda")
    compiled = policy.compile(engine, batch_sizes=(4,))  # type: ignore[arg-type]
    given = [
        np.random.default_rng(seed).normal(size=(1 + seed, spec.observations.size))
        for seed in range(6)
    ]
    expected = [policy.act(rows, deterministic=True) for rows in given]

    def work(index: int) -> list[np.ndarray]:
        with torch.cuda.stream(torch.cuda.Stream()):
            return [compiled.act(given[index], deterministic=True) for _ in range(20)]

    with ThreadPoolExecutor(6) as pool:
        for index, found in enumerate(pool.map(work, range(6))):
            for actions in found:
                np.testing.assert_allclose(actions, expected[index], atol=1e-3)


def test_memory_that_runs_out_on_cuda() -> None:
    """With little of the device's memory allowed, a large batch is worked off in smaller chunks,
    to the same actions.
    """
    sampler = Diffusion(
        prior=ddice.DiffusionPrior(), solver=SingleStep(evaluations=3), clip_denoised=True
    )
    spec = example_data().spec
    policy = (
        Policy(PolicyConfig(sampler=sampler, candidates=1), spec, sampler.build(spec), None)
        .to("cuda")
        .compile("eager")
    )
    observations, noise = (
        torch.randn(100_000, spec.observations.size),
        torch.randn(100_000, 1, spec.actions.size),
    )
    expected = policy.decide(observations, noise.cuda())
    policy.engine.free()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 300 * 2**20
    torch.cuda.set_per_process_memory_fraction(
        allowed / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        with pytest.warns(UserWarning, match="out of memory"):
            got = policy.decide(observations, noise.cuda())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(got.actions, expected.actions, rtol=0, atol=1e-3)
