from __future__ import annotations

import math
from decimal import Decimal, getcontext

import pytest
import torch
from torch import Tensor

from ddice.diffusion.schedule import NoiseSchedule, VariancePreserving

RATES = [(0.1, 20.0), (1.0, 5.0), (3.0, 3.0)]  # rising, rising gently, constant
SCHEDULES = [VariancePreserving(beta_min=low, beta_max=high) for low, high in RATES]
every_schedule = pytest.mark.parametrize(
    "schedule", SCHEDULES, ids=lambda s: f"{s.beta_min:g}-{s.beta_max:g}"
)
TIMES = torch.logspace(-3, 0, 301, dtype=torch.float64)


def exact(t: str) -> tuple[float, float, float]:
    """(alpha, sigma, log-SNR) of the default schedule, in 50 digits."""
    getcontext().prec = 50
    time = Decimal(t)
    square = (-(Decimal("19.9") * time * time / 2 + Decimal("0.1") * time)).exp()
    return float(square.sqrt()), float((1 - square).sqrt()), float((square / (1 - square)).ln() / 2)


@pytest.mark.oracle
@pytest.mark.parametrize("t", ["0.001", "0.01", "0.1", "0.5", "0.9", "1"])
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=str
)
def test_known_numbers(t: str, dtype: torch.dtype, rtol: float) -> None:
    schedule, time = VariancePreserving(), torch.tensor(float(t), dtype=dtype)
    got = torch.stack([schedule.alpha(time), schedule.sigma(time), schedule.log_snr(time)])
    torch.testing.assert_close(got, torch.tensor(exact(t), dtype=dtype), rtol=rtol, atol=0)


def test_log_alpha_at_the_ends() -> None:
    """-(20 - 0.1)/4 - 0.1/2 = -5.025 at t = 1; nothing is lost at t = 0."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert VariancePreserving().log_alpha(ends).tolist() == pytest.approx([0, -5.025], rel=1e-14)
    assert VariancePreserving().alpha(ends)[0] == 1
    assert VariancePreserving().sigma(ends)[0] == 0


@every_schedule
def test_variance_is_preserved(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(
        schedule.alpha(TIMES) ** 2 + schedule.sigma(TIMES) ** 2,
        torch.ones_like(TIMES),
        rtol=0,
        atol=1e-15,
    )


@every_schedule
def test_log_snr_is_the_logarithm_of_the_ratio_and_falls(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(
        schedule.log_snr(TIMES),
        torch.log(schedule.alpha(TIMES) / schedule.sigma(TIMES)),
        rtol=1e-12,
        atol=1e-12,
    )
    assert (schedule.log_snr(TIMES).diff() < 0).all()


@every_schedule
def test_time_inverts_log_snr(schedule: NoiseSchedule) -> None:
    torch.testing.assert_close(schedule.time(schedule.log_snr(TIMES)), TIMES, rtol=1e-11, atol=0)
    single = TIMES.float()
    torch.testing.assert_close(schedule.time(schedule.log_snr(single)), single, rtol=1e-5, atol=0)


@every_schedule
def test_log_alpha_falls_at_half_the_noise_rate(schedule: NoiseSchedule) -> None:
    """The definition of the variance-preserving diffusion: d log alpha / dt = -beta(t) / 2, with
    beta linear in t.
    """
    t = TIMES.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.log_alpha(t).sum(), t)
    beta = schedule.beta_min + (schedule.beta_max - schedule.beta_min) * TIMES
    torch.testing.assert_close(slope, -beta / 2, rtol=1e-13, atol=0)


def test_a_noise_rate_that_falls_is_refused() -> None:
    """Past t = 1 by a rounding, its inverse is the root of a negative number."""
    with pytest.raises(ValueError, match=r"at least beta_min = 20, got 0\.1: were they swapped"):
        VariancePreserving(beta_min=20, beta_max=0.1)


def test_features() -> None:
    schedule, t = (
        VariancePreserving(),
        torch.tensor([[0.001, 0.5], [0.9, 1.0]], dtype=torch.float64),
    )
    features = schedule.features(t)
    assert features.shape == (2, 2, 4)
    for index, time in (((0, 0), "0.001"), ((0, 1), "0.5"), ((1, 0), "0.9"), ((1, 1), "1")):
        alpha, sigma, log_snr = exact(time)
        assert features[index].tolist() == pytest.approx(
            [float(time), log_snr / 5, alpha, sigma], rel=1e-12
        )


def test_noise_mixes_each_row_at_its_own_time() -> None:
    schedule = VariancePreserving()
    actions, noise = (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double(),
        torch.tensor([[5.0, 6.0], [7.0, 8.0]]).double(),
    )
    noisy = schedule.noise(actions, torch.tensor([0.1, 0.9]).double(), noise)
    for row, t in enumerate(("0.1", "0.9")):
        alpha, sigma, _ = exact(t)
        expected = [
            alpha * a + sigma * e
            for a, e in zip(actions[row].tolist(), noise[row].tolist(), strict=True)
        ]
        assert noisy[row].tolist() == pytest.approx(expected, rel=1e-6)


def test_noise_broadcasts_several_draws_of_one_action() -> None:
    """(B, J) times beside (B, 1, A) actions and (B, J, A) noises, as in the guidance loss."""
    schedule, generator = VariancePreserving(), torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    actions, t, noise = draw(3, 1, 2), draw(3, 4), draw(3, 4, 2)
    noisy = schedule.noise(actions, t, noise)
    for b in range(3):
        for j in range(4):
            torch.testing.assert_close(
                noisy[b, j], schedule.noise(actions[b, 0], t[b, j], noise[b, j]), rtol=1e-14, atol=0
            )


def test_training_times_stay_in_the_trained_range() -> None:
    """t_min + (1 - t_min) u^power: uniform times for power 1, a median of a quarter for power 2."""
    schedule, u = VariancePreserving(t_min=0.2), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert schedule.training_times(u).tolist() == pytest.approx([0.2, 0.6, 1.0])
    assert schedule.training_times(u, 2).tolist() == pytest.approx([0.2, 0.4, 1.0])


@pytest.mark.parametrize(
    "wrong", [{"beta_min": 0}, {"beta_max": -1}, {"t_min": 0}, {"t_min": 1}, {"beta_max": math.nan}]
)
def test_values_outside_the_range_are_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        VariancePreserving(**wrong)
