from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian import CENTRAL, FINE, SMALL, STATES, STD, TIMES, behaviour, data, grid, prior

from ddice.diffusion.networks import ResidualScore
from ddice.diffusion.prior import DiffusionPrior, denoising_loss
from ddice.diffusion.samplers import Diffusion, DiffusionSampler
from ddice.parts.part import Optimizer

TINY = DiffusionPrior(network=ResidualScore(width=8, blocks=1), batch_size=16, ema=0.9)


def states_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_denoising_loss_by_hand() -> None:
    predicted, noise = (
        torch.tensor([[1.0, 2.0], [0.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [3.0, 1.0]]),
    )
    weights = torch.tensor([3.0, 1.0])
    assert denoising_loss(predicted, noise, weights).item() == pytest.approx((3 * 5 + 10) / 4)
    assert denoising_loss(
        predicted, noise, weights, torch.tensor([2.0, 0.5])
    ).item() == pytest.approx((3 * 2 * 5 + 0.5 * 10) / 4)
    copies = [0, 0, 0, 1]
    assert denoising_loss(predicted[copies], noise[copies], torch.ones(4)).item() == pytest.approx(
        (3 * 5 + 10) / 4
    )


@pytest.mark.oracle
@pytest.mark.parametrize("state", [-1.0, 1.0])
def test_the_denoiser_predicts_the_mean_noise(state: float) -> None:
    """E[noise | a_t, s] is known; the noise itself has a deviation up to 1. Measured: 0.005 to
    0.04.
    """
    denoiser = prior().denoiser(prior().encoder(torch.tensor([[state]])))
    for t in TIMES:
        x = grid(state, t)
        error = denoiser(x, torch.tensor(t)).detach() - behaviour(state).noise_prediction(
            x, torch.tensor(t)
        )
        assert error.square().mean().sqrt() < 0.08, t


@pytest.mark.oracle
def test_the_loss_reaches_what_no_model_can_go_below() -> None:
    """E[Var(v | a_t)] = E_t[Var(noise | a_t) / alpha^2] = E_t[std^2 / (alpha^2 std^2 + sigma^2)],
    because noise - alpha v is known where a_t is.
    """
    times = np.linspace(1e-3, 1, 4001)
    floor = np.mean([(STD / behaviour(1.0).deviation(t)) ** 2 for t in times])
    with torch.no_grad():
        losses = [
            prior().loss(data().sample(512, seed=9, step=k), 10_000 + k).item() for k in range(200)
        ]
    noise = np.std(losses) / 200**0.5
    assert abs(np.mean(losses) - floor) < 4 * noise + 0.02 * floor


@pytest.mark.oracle
def test_samples_follow_the_exact_map() -> None:
    """From the same noise to the same action; measured: 0.01, a twentieth of the deviation."""
    sampler = DiffusionSampler(
        Diffusion(prior=prior().config, solver=FINE, clip_denoised=False),
        prior().encoder,
        prior().averaged,
        None,
    )
    with torch.no_grad():
        actions = sampler(STATES, CENTRAL[None, :, None].expand(2, -1, -1))[..., 0]
    for i, state in enumerate((-1.0, 1.0)):
        expected = behaviour(state).flow(CENTRAL, 1.0, 1e-3)
        assert (actions[i] - expected).abs().max() < 0.03
        assert abs((actions[i] - expected).mean()) < 0.01


def test_the_average_by_hand() -> None:
    """weights_k = d_k weights_{k-1} + (1 - d_k) live_k with d_k = min(ema, (1 + k) / (10 + k))."""
    part = TINY.build(data().spec)
    name = "linear_0_weight"
    expected = getattr(part.network, name).detach().double().clone()
    for step in range(30):
        part.update(data().sample(16, seed=0, step=step), step=step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * getattr(part.network, name).detach().double()
    torch.testing.assert_close(
        getattr(part.averaged, name).double(), expected, rtol=1e-5, atol=1e-6
    )
    assert not torch.equal(getattr(part.averaged, name), getattr(part.network, name))


def test_without_an_average_the_last_weights_are_used() -> None:
    part = TINY.model_copy(update={"ema": 0.0}).fit(data(), steps=3, progress=False)
    for mine, live in zip(part.averaged.parameters(), part.network.parameters(), strict=True):
        torch.testing.assert_close(mine, live)


def test_only_the_live_network_is_trained() -> None:
    part = TINY.build(data().spec)
    before = [p.clone() for p in part.averaged.parameters()]
    part.descend(part.loss(data().sample(16, seed=0, step=0), 0), 0)
    assert all(
        torch.equal(old, new) for old, new in zip(before, part.averaged.parameters(), strict=True)
    )


@pytest.mark.oracle
def test_several_seeds_are_the_single_ones() -> None:
    together = TINY.fit(data(), steps=20, seed=(0, 5), progress=False)
    for i, seed in enumerate((0, 5)):
        alone, selected = TINY.fit(data(), steps=20, seed=seed, progress=False), together.select(i)
        assert selected.seed == seed
        assert selected.step == 20
        for name, value in alone.state().items():
            torch.testing.assert_close(selected.state()[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="nothing to select"):
        together.select(0).select(0)


def test_killed_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    whole = TINY.fit(data(), steps=60, progress=False)

    def interrupt(step: int, metrics) -> None:
        if step == 25:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="stopped at step 26"):
        TINY.fit(data(), steps=60, progress=False, on_step=interrupt, checkpoint=tmp_path / "prior")
    steps: list[int] = []
    resumed = TINY.fit(
        data(),
        steps=60,
        progress=False,
        on_step=lambda step, metrics: steps.append(step),
        checkpoint=tmp_path / "prior",
    )
    assert steps == list(range(26, 60))
    assert states_equal(whole.state(), resumed.state())


def test_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    TINY.fit(data(), steps=2, progress=False, checkpoint=tmp_path / "prior")
    for other in (
        TINY.model_copy(update={"ema": 0.5}),
        TINY.model_copy(update={"optimizer": Optimizer(learning_rate=0.1)}),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            other.fit(data(), steps=2, progress=False, checkpoint=tmp_path / "prior")
    with pytest.raises(ValueError, match="belongs to another run"):
        TINY.fit(data(), steps=2, seed=1, progress=False, checkpoint=tmp_path / "prior")
    with pytest.raises(ValueError, match="belongs to another run"):
        TINY.fit(data().subset(0.5, seed=0), steps=2, progress=False, checkpoint=tmp_path / "prior")


def test_training_goes_on() -> None:
    """With a constant rate two calls are one; the cosine of the default ends with each call."""
    steady = TINY.model_copy(update={"optimizer": Optimizer(learning_rate=1e-3)})
    whole, parts = (
        steady.fit(data(), steps=20, progress=False),
        steady.fit(data(), steps=8, progress=False),
    )
    parts.fit(data(), steps=12, progress=False)
    assert states_equal({**whole.state(), "horizon": torch.tensor(20)}, parts.state())


def test_the_state_of_another_part_is_refused() -> None:
    part = TINY.build(data().spec)
    with pytest.raises(ValueError, match="expected the state of a Prior with this configuration"):
        part.load_state(SMALL.build(data().spec).state())


def test_the_learning_rate_falls_as_a_cosine() -> None:
    part = TINY.model_copy(
        update={"optimizer": Optimizer(learning_rate=0.1, decay="cosine")}
    ).build(data().spec)
    part.until(100)
    assert [part.learning_rate(step) for step in (0, 25, 50, 99)] == pytest.approx(
        [0.1, 0.05 * (1 + 0.5**0.5), 0.05, 0.05 * (1 - np.cos(np.pi / 100))]
    )
    with pytest.raises(ValueError, match=r"has fallen to 0 at step 100, and this is step 100"):
        part.learning_rate(100)
