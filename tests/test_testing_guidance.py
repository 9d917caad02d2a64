"""The guidance and sampling oracles of `ddice.testing` against quadrature and closed forms, and
what a guidance scale really samples.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from oracles import VP
from torch import Tensor

import ddice
from ddice.dice_backends import GivenRatio
from ddice.diffusion.guidance import Guidance, guided, in_sample_loss, network_gradient
from ddice.diffusion.networks import MLP
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import MultiStep
from ddice.extractors import GuideThenSelect
from ddice.extractors.guide_then_select import GuideThenSelectExtractor
from ddice.parts.part import Optimizer
from ddice.testing import (
    ExponentialRatio,
    GaussianMixture,
    contrastive_loss,
    energy_distance,
    exact_flow,
    quantiles,
    regression_loss,
    threshold_guidance,
    two_sample,
)
from ddice.testing.order import noise_grid

pytestmark = pytest.mark.oracle

SCHEDULE, TIMES = VariancePreserving(), (0.02, 0.1, 0.3, 0.6, 0.9)
GAUSSIAN = GaussianMixture.of([1], [[0.3]], [[0.4]])
PEAKS = GaussianMixture.of([0.7, 0.3], [[-0.5], [0.4]], [[0.2], [0.15]])
PLANE = GaussianMixture.of([1, 2], [[-0.5, 0.2], [0.4, -0.3]], [[0.2, 0.3], [0.3, 0.15]])
RATIOS = {
    "linear": ExponentialRatio.linear([2.5]),
    "quadratic": ExponentialRatio.quadratic([1.0], [4.0]),
    "widening": ExponentialRatio.quadratic([0.5], [-2.0]),
    "mixture": ExponentialRatio.bumps([1.0, 0.3], [[0.5], [-0.3]], [[0.2], [0.1]]),
}
PLANE_RATIOS = {
    "linear": ExponentialRatio.linear([2.5, -1.0]),
    "quadratic": ExponentialRatio.quadratic([1.0, 0.0], [4.0, -1.0]),
    "mixture": ExponentialRatio.bumps(
        [1.0, 0.3], [[0.5, 0.0], [-0.3, 0.3]], [[0.2, 0.3], [0.2, 0.2]]
    ),
}
every_prior = pytest.mark.parametrize("prior", [GAUSSIAN, PEAKS], ids=["gaussian", "peaks"])
every_ratio = pytest.mark.parametrize("ratio", RATIOS.values(), ids=RATIOS.keys())


def density(prior: GaussianMixture, a: np.ndarray) -> np.ndarray:
    """sum_k m_k N(a; mu_k, v_k), in numpy."""
    mass, mean, variance = (
        prior.log_masses.exp().numpy(),
        prior.means[:, 0].numpy(),
        prior.variances[:, 0].numpy(),
    )
    return (
        mass * np.exp(-((a[:, None] - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    ).sum(1)


def by_quadrature(
    prior: GaussianMixture, w: np.ndarray, a: np.ndarray, x: np.ndarray, t: float
) -> np.ndarray:
    """log E[w | a_t = x] from sums over a fine grid a."""
    kernel = density(prior, a) * np.exp(
        -((x[:, None] - VP().alpha(t) * a) ** 2) / (2 * VP().sigma(t) ** 2)
    )
    return np.log((kernel * w).sum(1) / kernel.sum(1))


@every_prior
@every_ratio
def test_guidance_equals_quadrature(prior: GaussianMixture, ratio: ExponentialRatio) -> None:
    a, x = np.linspace(-6, 6, 60_001), np.linspace(-1, 1, 9)
    w = ratio.log(torch.from_numpy(a)[:, None]).exp().numpy()
    assert float(prior.tilted(ratio).log_mass) == pytest.approx(
        np.log((density(prior, a) * w).sum() * (a[1] - a[0])), abs=1e-7
    )
    for t in TIMES:
        got = prior.guidance(ratio, SCHEDULE, torch.from_numpy(x)[:, None], t)
        np.testing.assert_allclose(got, by_quadrature(prior, w, a, x, t), rtol=1e-6, atol=1e-6)


@every_prior
def test_the_guidance_of_a_threshold_equals_quadrature(prior: GaussianMixture) -> None:
    """The grid has no point on the threshold and equally many beside it: the sum is exact to the
    width of a cell.
    """
    a, x = np.linspace(-6, 6, 600_000), np.linspace(-1, 1, 9)
    value, gradient = threshold_guidance(prior, 0.2, SCHEDULE)
    for t in TIMES[1:]:
        expected = by_quadrature(prior, (a > 0.2).astype(float), a, x, t)
        column = torch.from_numpy(x)[:, None]
        np.testing.assert_allclose(
            value(column, torch.tensor(t, dtype=torch.float64)), expected, rtol=1e-3, atol=1e-3
        )
        ends = [value(column + h, torch.tensor(t, dtype=torch.float64)) for h in (-1e-5, 1e-5)]
        np.testing.assert_allclose(
            gradient(column, torch.tensor(t, dtype=torch.float64))[:, 0],
            (ends[1] - ends[0]) / 2e-5,
            rtol=1e-4,
            atol=1e-6,
        )


@pytest.mark.parametrize("ratio", PLANE_RATIOS.values(), ids=PLANE_RATIOS.keys())
def test_gradients_are_those_of_autograd(ratio: ExponentialRatio) -> None:
    """In two dimensions; the noise prediction is -sigma times the score."""
    x = (
        torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.7
    ).requires_grad_()
    for t in TIMES:
        expected = torch.autograd.grad(PLANE.guidance(ratio, SCHEDULE, x, t).sum(), x)[0]
        torch.testing.assert_close(
            PLANE.gradient(ratio, SCHEDULE)(x.detach(), torch.tensor(t)),
            expected,
            rtol=1e-5,
            atol=1e-6,
        )
        score = torch.autograd.grad(PLANE.diffused(SCHEDULE, t).log_density(x).sum(), x)[0]
        noise = PLANE.denoiser(SCHEDULE)(x.detach(), torch.tensor(t, dtype=torch.float64))
        torch.testing.assert_close(noise, -VP().sigma(t) * score, rtol=1e-9, atol=1e-9)


def test_an_infinite_mean_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match=r"E\[w\] is infinite"):
        GAUSSIAN.tilted(
            ExponentialRatio.quadratic([0.0], [-7.0])
        )  # the density falls with 1 / 0.16 = 6.25
    with pytest.raises(ValueError, match="one row per component"):
        GaussianMixture.of([1], torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="one exponential, got 2"):
        RATIOS["mixture"].power(2)


def test_draws_have_the_moments_of_the_mixture() -> None:
    """Within 4 standard errors of 40,000 draws."""
    tilted = PLANE.tilted(PLANE_RATIOS["mixture"])
    draws = tilted.sample(40_000, seed=0)
    assert ((draws.mean(0) - tilted.mean).abs() < 4 * (tilted.variance / 40_000).sqrt()).all()
    torch.testing.assert_close(draws.var(0), tilted.variance, rtol=0.04, atol=0)


def test_the_energy_distance_by_hand_and_its_floor() -> None:
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])
    assert energy_distance(x, y) == pytest.approx(2 * 2.5 - 0.5 - 0)
    assert energy_distance(x, x) == 0
    with pytest.raises(ValueError, match=r"shapes \(N, A\) and \(M, A\)"):
        energy_distance(x, torch.zeros(3, 2))
    same, other = (
        two_sample(PLANE.sample(500, 10**6) + shift, PLANE.sample, repetitions=10)
        for shift in (0.0, 0.1)
    )
    assert same.multiple < 2
    assert same.distance < same.highest_floor
    assert other.multiple > 4


def test_quantiles_of_a_density_on_a_grid() -> None:
    torch.testing.assert_close(
        quantiles(lambda x: -(x[..., 0] ** 2) / 2, 99), noise_grid(99), rtol=0, atol=1e-4
    )


@every_ratio
def test_the_flow_of_the_exact_gradient_ends_in_the_tilted_distribution(
    ratio: ExponentialRatio,
) -> None:
    """Quantiles of the noise become quantiles of p w, diffused to t_min: the flow is monotone.
    What is left: alpha(1) = 0.0066 instead of 0.
    """
    denoiser = guided(PEAKS.denoiser(SCHEDULE), PEAKS.gradient(ratio, SCHEDULE), SCHEDULE, 1.0)
    got = exact_flow(denoiser, noise_grid(201), SCHEDULE, steps=400)
    expected = quantiles(PEAKS.tilted(ratio).diffused(SCHEDULE, SCHEDULE.t_min).log_density, 201)
    assert (got - expected).abs().mean() < 0.01
    unguided = exact_flow(PEAKS.denoiser(SCHEDULE), noise_grid(201), SCHEDULE, steps=400)
    assert (unguided - expected).abs().mean() > 0.05


@pytest.mark.parametrize("ratio", PLANE_RATIOS.values(), ids=PLANE_RATIOS.keys())
def test_sampling_with_the_exact_gradient_cannot_be_told_from_the_tilted_distribution(
    ratio: ExponentialRatio,
) -> None:
    """Energy distance of 1000 samples against its noise floor. Measured: 0.8 to 1.3 floors;
    unguided 18 to 301.
    """
    noise = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    multiples = []
    for scale in (1.0, 0.0):
        denoiser = guided(
            PLANE.denoiser(SCHEDULE), PLANE.gradient(ratio, SCHEDULE), SCHEDULE, scale
        )
        actions = MultiStep(evaluations=40, spacing="quadratic").integrate(
            denoiser, noise, SCHEDULE
        )
        multiples.append(two_sample(actions, PLANE.tilted(ratio).sample, repetitions=5).multiple)
    assert multiples[0] < 2
    assert multiples[1] > 10


# ---- what a scale other than 1 samples


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
def test_a_scale_is_the_power_of_an_exponential_linear_ratio(scale: float) -> None:
    """Gaussian p and w = exp(b a): the guided ODE of any scale is that of p w^scale."""
    ratio, x = RATIOS["linear"], torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    denoiser = guided(
        GAUSSIAN.denoiser(SCHEDULE), GAUSSIAN.gradient(ratio, SCHEDULE), SCHEDULE, scale
    )
    powered = GAUSSIAN.tilted(ratio.power(scale)).denoiser(SCHEDULE)
    for t in TIMES:
        time = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(denoiser(x, time), powered(x, time), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
def test_a_scale_takes_the_geometric_mean_of_variances_where_the_power_takes_the_harmonic(
    scale: float,
) -> None:
    """p = N(0, 1), w = exp(-a^2 / 2): variance v'^scale with v' = 1/2, where p w^scale has 1 /
    (1 + scale).
    """
    prior, ratio = (
        GaussianMixture.of([1], [[0.0]], [[1.0]]),
        ExponentialRatio.quadratic([0.0], [1.0]),
    )
    schedule = VariancePreserving(t_min=1e-6)
    denoiser = guided(prior.denoiser(schedule), prior.gradient(ratio, schedule), schedule, scale)
    end = exact_flow(denoiser, torch.ones(1, 1), schedule, steps=400)
    assert float(end) ** 2 == pytest.approx(0.5**scale, rel=1e-3)
    power = float(prior.tilted(ratio.power(scale)).variance)
    assert power == pytest.approx(1 / (1 + scale))
    assert abs(0.5**scale / power - 1) > 0.05


def test_a_scale_is_not_the_power_of_a_mixture_ratio() -> None:
    """Mean absolute difference of quantiles (the distance W1) to p w^scale. Measured: 0.0007 at
    scale 1, 0.096 at 2, 0.118 at 4.
    """
    prior, ratio = PEAKS, RATIOS["mixture"]
    distances = {}
    for scale in (1.0, 2.0, 4.0):
        denoiser = guided(
            prior.denoiser(SCHEDULE), prior.gradient(ratio, SCHEDULE), SCHEDULE, scale
        )
        power = quantiles(lambda a, scale=scale: prior.log_density(a) + scale * ratio.log(a), 201)
        distances[scale] = float(
            (exact_flow(denoiser, noise_grid(201), SCHEDULE, steps=400) - power).abs().mean()
        )
    assert distances[1.0] < 0.01
    assert min(distances[2.0], distances[4.0]) > 5 * distances[1.0]


# ---- the learned gradient


@cache
def samples(count: int = 8192) -> ddice.data.Transitions:
    """Actions of the two peaks by their quantiles, one state; rewards carry nothing."""
    actions = quantiles(PEAKS.log_density, count).clamp(-1, 1).numpy()
    ends = {"terminations": np.ones(count, bool), "truncations": np.zeros(count, bool)}
    column = np.zeros((count, 1), np.float32)
    arrays = {
        "observations": column,
        "next_observations": column,
        "actions": actions,
        "rewards": np.zeros(count),
        **ends,
    }
    return ddice.load_dataset(arrays, action_bounds=(-1, 1))


@cache
def learned(name: str) -> GuideThenSelectExtractor:
    """g trained in-sample, as users train it; the prior lends its encoder and schedule and is
    not trained.
    """
    config = Guidance(
        network=MLP(hidden=(64, 64), activation="silu", initialisation="kaiming"),
        optimizer=Optimizer(learning_rate=5e-3, decay="cosine"),
        noises_per_action=8,
        time_power=2.0,
    )
    prior = DiffusionPrior().build(samples().spec)
    extractor = GuideThenSelect(candidates=1, guidance=config).build(samples().spec, prior=prior)
    log_w = RATIOS[name].log(samples().actions).float()
    ratios = GivenRatio(source=log_w.exp().numpy()).fit(samples())
    return extractor.fit(samples(), backend=ratios, steps=1500, progress=False)


@pytest.mark.gate
@pytest.mark.parametrize("name", [pytest.param("linear", marks=pytest.mark.slow), "mixture"])
def test_the_learned_gradient_and_its_samples(name: str) -> None:
    """The gradient where guided samples are, in root mean square, and their energy distance to p w,
    with the exact prior.

    Measured: 13 to 26 % of the gradient up to t = 0.3 (later it is below 0.1); 0.9 and 5.5 % of the
    distance of the unguided samples.
    """
    ratio, extractor = RATIOS[name], learned(name)
    gradient = network_gradient(
        extractor.network, extractor.prior.encoder(torch.zeros(1, 1)), SCHEDULE
    )
    tilted = PEAKS.tilted(ratio)
    for t in TIMES[1:]:
        x = tilted.diffused(SCHEDULE, t).sample(500, seed=0).float()
        exact = PEAKS.gradient(ratio, SCHEDULE)(x, torch.tensor(t))
        error = (gradient(x, torch.tensor(t)).detach() - exact).square().mean().sqrt()
        assert error < 0.35 * exact.square().mean().sqrt() + 0.1
    noise = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoiser = guided(PEAKS.denoiser(SCHEDULE), gradient, SCHEDULE, 1.0)
        actions = MultiStep(evaluations=40, spacing="quadratic").integrate(
            denoiser, noise, SCHEDULE
        )
    got = two_sample(actions, tilted.sample, repetitions=5)
    unguided = two_sample(PEAKS.sample(1000, 10**6), tilted.sample, repetitions=5)
    assert got.distance < 0.1 * unguided.distance


# ---- the objectives


def joint_and_ratio() -> tuple[Tensor, Tensor]:
    """P(action i, noised value j) of a finite problem, and heavy-tailed ratios of the actions."""
    kernel = [[0.8, 0.15, 0.05], [0.3, 0.6, 0.1], [0.1, 0.6, 0.3], [0.02, 0.08, 0.9]]
    return torch.tensor(kernel, dtype=torch.float64) / 4, torch.tensor(
        [0.01, 0.3, 1.0, 20.0], dtype=torch.float64
    )


def minimum(loss, count: int = 3) -> Tensor:
    g = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [g],
        max_iter=1000,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(g)
        value.backward()
        return value

    optimizer.step(closure)
    return g.detach()


def pairs(joint: Tensor, w: Tensor, self_normalised: bool):
    """The contrastive loss over all pairs of independent (action, noised value), exactly."""
    i, j, k, m = (
        index.flatten()
        for index in torch.meshgrid(*(torch.arange(n) for n in (4, 3, 4, 3)), indexing="ij")
    )
    probability, weights = joint[i, j] * joint[k, m], torch.stack([w[i], w[k]], -1)
    weights = weights / weights.sum(-1, keepdim=True) if self_normalised else weights
    return lambda g: (probability * contrastive_loss(weights, torch.stack([g[j], g[m]], -1))).sum()


def test_what_each_objective_is_minimised_by() -> None:
    """log E[w | a_t]; of the contrastive loss up to a constant, and only as long as its weights
    are not self-normalised.
    """
    joint, w = joint_and_ratio()
    exact = ((joint * w[:, None]).sum(0) / joint.sum(0)).log()
    torch.testing.assert_close(
        minimum(lambda g: (joint * in_sample_loss(w.log()[:, None], g, 50.0)).sum()),
        exact,
        rtol=1e-5,
        atol=1e-5,
    )
    torch.testing.assert_close(
        minimum(lambda g: (joint * regression_loss(w[:, None], g)).sum()),
        exact,
        rtol=1e-4,
        atol=1e-4,
    )
    contrastive = minimum(pairs(joint, w, False))
    torch.testing.assert_close(
        contrastive - contrastive.mean(), exact - exact.mean(), rtol=1e-4, atol=1e-4
    )
    biased = minimum(pairs(joint, w, True))
    assert (biased - biased.mean() - exact + exact.mean()).abs().max() > 0.2
    with pytest.raises(ValueError, match="at least two actions"):
        contrastive_loss(w[:1], w[:1])


def test_in_sample_learning_counts_every_noised_action_alike() -> None:
    """The curvature at the minimum, and the variance of the gradient in units of it: relative to
    E[w | a_t]^2 for one, equal for the other.
    """
    joint, w = joint_and_ratio()
    exact = ((joint * w[:, None]).sum(0) / joint.sum(0)).log()
    given = joint / joint.sum(0)
    for loss, curvature in (
        (lambda g: in_sample_loss(w.log()[:, None], g, 50.0), torch.ones(3)),
        (lambda g: regression_loss(w[:, None], g), None),
    ):
        hessian = torch.func.hessian(lambda g, loss=loss: (given * loss(g)).sum())(exact)
        expected = 2 * (2 * exact).exp() if curvature is None else curvature.double()
        torch.testing.assert_close(torch.diagonal(hessian), expected, rtol=1e-9, atol=1e-9)
    assert math.exp(2 * float(exact.max() - exact.min())) > 20
