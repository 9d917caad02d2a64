"""Preset "official" against the published method worked out a second time, in numpy and float64,
from its equations and settings alone.

Weights and noise are fixed here; the package computes in float64 too, so that a change of the maths
cannot hide in rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import ddice
import ddice.diffusion.prior
import ddice.extractors.guide_then_select
from ddice.data import Batch, Transitions
from ddice.dice_backends.semi_gradient import PairBackend
from ddice.diffusion.networks import Network
from ddice.diffusion.prior import Prior
from ddice.extractors.guide_then_select import GuideThenSelectExtractor
from ddice.runs.presets import PRESETS

pytestmark = pytest.mark.oracle

Array = NDArray[np.float64]
OFFICIAL = PRESETS["official"]
ROWS, STATE, ACTION = 5, 3, 2
TEMPERATURE, DISCOUNT, POLYAK, RATE, DECAY, SCALE, NOISES = 0.5, 0.99, 0.005, 3e-4, 1e-4, 4.0, 16
CLOSE = 1e-6  # float32 settings of the package (temperature, frequencies) are exact to 6e-8


# ---- the schedule and the networks, in numpy


def alpha(t: Array | float) -> Array:
    return np.exp(-(20 - 0.1) * np.square(t) / 4 - 0.1 * np.asarray(t) / 2)


def sigma(t: Array | float) -> Array:
    return np.sqrt(1 - alpha(t) ** 2)


def log_snr(t: Array | float) -> Array:
    return np.log(alpha(t) / sigma(t))


def silu(x: Array) -> Array:
    return x * (1 + np.tanh(x / 2)) / 2


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


class Weights:
    """The affine layers of a network in the order in which they were made: next(x) applies one;
    `frequencies` are the frozen ones.
    """

    def __init__(self, network: Network, member: int | None = None):
        pick = (
            (lambda p: p.detach().numpy())
            if member is None
            else (lambda p: p.detach().numpy()[member])
        )
        self.affine = [
            (pick(layer.weight), pick(layer.bias))
            for layer in network.plan()
            if layer.op == "linear"
        ]
        self.norm = [
            (pick(layer.weight), pick(layer.bias))
            for layer in network.plan()
            if layer.op == "layer_norm"
        ]
        self.frequencies = next(
            (layer.weight.detach().numpy() for layer in network.plan() if layer.op == "fourier"),
            None,
        )
        self.used = 0

    def next(self, *inputs: Array) -> Array:
        weight, bias = self.affine[self.used]
        self.used += 1
        shape = np.broadcast_shapes(*(x.shape[:-1] for x in inputs))
        return (
            np.concatenate([np.broadcast_to(x, (*shape, x.shape[-1])) for x in inputs], -1) @ weight
            + bias
        )

    def fourier(self, t: Array) -> Array:
        angles = t[..., None] * self.frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def noise_prediction(weights: Weights, s: Array, x: Array, t: Array) -> Array:
    """The residual U-net 512/256/128/128/256/512 over actions, given 32 numbers of the state and
    32 of the time.
    """
    weights.used = 0
    state = silu(weights.next(s))
    condition = weights.next(silu(weights.next(state, weights.next(weights.fourier(t)))))

    def block(x: Array, width: int) -> Array:
        shift = weights.next(silu(condition))
        y = silu(weights.next(silu(weights.next(x)) + shift))
        assert y.shape[-1] == width
        return y + (x if x.shape[-1] == width else weights.next(x))

    first = block(x, 512)
    second = block(first, 256)
    third = block(second, 128)
    up = block(third, 128)
    up = block(np.concatenate([third, up], -1), 256)
    up = block(np.concatenate([second, up], -1), 512)
    joined = np.concatenate([first, up], -1)
    assert joined.shape[-1] == 1024
    result = weights.next(joined)
    assert weights.used == len(weights.affine)
    return result


def guidance(weights: Weights, s: Array, x: Array, t: Array) -> Array:
    """g: four layers of 256 SiLU units over state, action and 32 Fourier features of the time."""
    weights.used = 0
    y = silu(weights.next(s, x, weights.fourier(t)))
    for _ in range(3):
        y = silu(weights.next(y))
        assert y.shape[-1] == 256
    return weights.next(y)[..., 0]


def guidance_gradient(weights: Weights, s: Array, x: Array, t: Array, h: float = 1e-5) -> Array:
    """By central differences."""
    steps = h * np.eye(ACTION)
    return np.stack(
        [
            (guidance(weights, s, x + e, t) - guidance(weights, s, x - e, t)) / (2 * h)
            for e in steps
        ],
        -1,
    )


def state_value(weights: Weights, s: Array) -> Array:
    """V: 256 x 2 ReLU, each layer normalised before its activation."""
    weights.used = 0
    y = s
    for gain, shift in weights.norm:
        y = weights.next(y)
        y = relu(
            (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * gain
            + shift
        )
        assert y.shape[-1] == 256
    assert len(weights.norm) == 2
    return weights.next(y)[..., 0]


def action_value(network: Network, s: Array, a: Array) -> Array:
    """Q of every member (M, ...): 256 x 2 ReLU, without normalisation."""
    members = [Weights(network, m) for m in range(network.members[-1])]
    return np.stack(
        [
            w.next(relu(w.next(relu(w.next(s, a)))))[..., 0]
            for w in members
            if len(w.affine) == 3 and not w.norm
        ]
    )


# ---- the parts, with weights and noise of our own


def fill(module: nn.Module, seed: int) -> None:
    """Weights N(0, 1.5 / in), biases N(0, 0.2^2), gains near 1, from a seeded generator; the
    frozen frequencies keep the published scale.
    """
    rng = np.random.default_rng(seed)
    for name, parameter in module.named_parameters():
        if "fourier" in name:
            value = 2 * np.pi * 30 * rng.normal(size=parameter.shape)
        elif name.endswith("weight") and "norm" not in name:
            value = rng.normal(size=parameter.shape) * math.sqrt(1.5 / parameter.shape[-2])
        else:
            value = 0.2 * rng.normal(size=parameter.shape) + (
                "norm" in name and name.endswith("weight")
            )
        parameter.data = torch.from_numpy(np.asarray(value, np.float64))


@cache
def data() -> Transitions:
    """Two episodes of returns 4.5 and -0.5, the first one cut by time, the second one ended."""
    rng = np.random.default_rng(1)
    ends, states = np.arange(6) % 3 == 2, rng.normal(size=(7, STATE)).astype(np.float32) * 2 + 5
    arrays = {
        "observations": states[:6],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, (6, ACTION)).astype(np.float32),
        "rewards": np.array([1.0, 2.0, 1.5, -1.0, 0.25, 0.25]),
        "terminations": ends & (np.arange(6) == 5),
        "truncations": ends & (np.arange(6) == 2),
    }
    return ddice.load_dataset(arrays, action_bounds=(-2, 2))


@cache
def batch() -> Batch:
    """Five transitions in float64; one terminates, and its next state must not count."""
    rng = np.random.default_rng(2)
    return Batch(
        observations=torch.from_numpy(rng.normal(size=(ROWS, STATE))),
        actions=torch.from_numpy(rng.uniform(-1, 1, (ROWS, ACTION))),
        rewards=torch.tensor([0.01, -0.005, 0.0, 0.02, 0.015], dtype=torch.float64),
        next_observations=torch.from_numpy(rng.normal(size=(ROWS, STATE))),
        terminations=torch.tensor([False, False, True, False, False]),
        rows=torch.arange(ROWS),
        weights=torch.ones(ROWS, dtype=torch.float64),
    )


def prior() -> Prior:
    part = OFFICIAL.prior.build(data().spec).double()
    fill(part.network, 10)
    affine = [layer for layer in part.network.plan() if layer.op == "linear"]
    skip, last = affine[7], affine[-1]  # of the first block, and of the whole
    assert skip.inputs == ("actions",)
    with (
        torch.no_grad()
    ):  # noise = x + something small, as in a trained network: actions then stay near the bounds
        last.weight.mul_(0.003)
        last.bias.mul_(0.003)
        skip.weight[:, :ACTION] = torch.eye(ACTION)
        last.weight[:ACTION] = torch.eye(ACTION)
    part.averaged.load_state_dict(part.network.state_dict())
    return part


def backend() -> PairBackend:
    part = OFFICIAL.backend.build(data().spec).double()
    for seed, network in enumerate((part.value_network, part.critic, part.target, part.head)):
        fill(network, 20 + seed)
    return part


def extractor() -> GuideThenSelectExtractor:
    part = OFFICIAL.extractor.build(data().spec, prior=prior()).double()
    fill(part.network, 30)
    with torch.no_grad():
        part.network.plan()[-1].weight.mul_(0.02)
    return part


def given(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, uniform: Array, noise: Array
) -> None:
    """Let a module draw these uniform and normal numbers; it must ask for exactly their shapes."""

    def draw(numbers: Array) -> Callable[..., torch.Tensor]:
        def drawn(
            seed: int, stream: str, step: int, shape: tuple[int, ...], device: object
        ) -> torch.Tensor:
            assert tuple(shape) == numbers.shape
            return torch.from_numpy(numbers)

        return drawn

    monkeypatch.setattr(module, "rand", draw(uniform))
    monkeypatch.setattr(module, "randn", draw(noise))


def numbers(tensor: torch.Tensor) -> Array:
    return tensor.detach().numpy().astype(np.float64)


@pytest.fixture(autouse=True)
def _overflows_are_errors() -> Iterator[None]:
    with np.errstate(over="raise", invalid="raise"):
        yield


# ---- the tests


def test_the_settings() -> None:
    """Those of section 2 of the method that no other test here would notice."""
    assert OFFICIAL.schedule == "joint"
    assert (OFFICIAL.steps.prior, OFFICIAL.steps.backend, OFFICIAL.steps.extractor) == (
        600_000,
        10**6,
        10**6,
    )
    assert (OFFICIAL.prior.batch_size, OFFICIAL.prior.ema) == (4096, 0)
    assert OFFICIAL.prior.optimizer.model_dump() == {
        "learning_rate": 1e-4,
        "weight_decay": 0,
        "decay": "constant",
    }
    assert OFFICIAL.extractor.guidance.batch_size == 512
    assert OFFICIAL.extractor.guidance.optimizer.model_dump() == {
        "learning_rate": RATE,
        "weight_decay": DECAY,
        "decay": "constant",
    }
    assert (OFFICIAL.extractor.candidates, OFFICIAL.extractor.clip_candidates) == (
        1,
        "after_scoring",
    )
    assert OFFICIAL.evaluation.episodes == 10
    assert (len(backend().critic.plan()), backend().critic.members, backend().head.members) == (
        5,
        (2,),
        (10,),
    )
    assert sum(
        p.numel() for p in OFFICIAL.extractor.guidance.build(17, 6, seed=0).parameters()
    ) == pytest.approx(0.21e6, rel=0.02)


def test_the_loss_of_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """E[sum_a (noise - network(s, a_t, t))^2], t uniform on [1e-3, 1], one time and one noise
    per row; no averaging of weights.
    """
    rng = np.random.default_rng(3)
    uniform, noise, part = rng.uniform(size=ROWS), rng.normal(size=(ROWS, ACTION)), prior()
    given(monkeypatch, ddice.diffusion.prior, uniform, noise)
    t = 1e-3 + (1 - 1e-3) * uniform
    noised = alpha(t)[:, None] * numbers(batch().actions) + sigma(t)[:, None] * noise
    predicted = noise_prediction(Weights(part.network), numbers(batch().observations), noised, t)
    expected = ((predicted - noise) ** 2).sum(1).mean()
    assert float(part.loss(batch(), 0).detach()) == pytest.approx(expected, rel=CLOSE)
    assert float(part.update(batch(), step=0)["loss"]) == pytest.approx(expected, rel=CLOSE)
    for live, used in zip(part.network.parameters(), part.averaged.parameters(), strict=True):
        assert torch.equal(live, used)


def by_hand(part: PairBackend) -> dict[str, Array]:
    """The numbers of one update of Q and V, before any step."""
    s, a, following = (
        numbers(batch().observations),
        numbers(batch().actions),
        numbers(batch().next_observations),
    )
    rewards = numbers(batch().rewards) * 1000 / (4.5 - -0.5)
    v, v_next = (state_value(Weights(part.value_network), x) for x in (s, following))
    y = (action_value(part.target, s, a).min(0) - v) / TEMPERATURE
    conjugate = np.where(y < 0, np.exp(np.minimum(y, 0)) - 1, y**2 / 4 + y)
    target = rewards + DISCOUNT * np.where(numbers(batch().terminations) > 0, 0, v_next)
    errors, head_errors = (
        action_value(network, s, a) - target for network in (part.critic, part.head)
    )
    return {
        "v_loss": (conjugate + v / TEMPERATURE).mean(),
        "q_loss": (errors**2).mean(1).sum(),
        "selector_loss": (head_errors**2).mean(1).sum(),
        "y": y,
        "errors": errors,
    }


def test_the_losses_of_the_critic() -> None:
    """V: mean[f*(y) + V / temperature] with the least of the two averaged Q; Q and ensemble:
    squared errors against r + gamma V(s'), V live.
    """
    part = backend()
    expected, metrics = by_hand(part), part.update(batch(), step=0)
    assert (expected["y"] < 0).any()
    assert (expected["y"] > 0).any()  # both branches of the divergence
    for name in ("v_loss", "q_loss", "selector_loss"):
        assert float(metrics[name]) == pytest.approx(float(expected[name]), rel=CLOSE), name


def test_the_ratios() -> None:
    """e^y below 0 and y / 2 + 1 above."""
    part = backend()
    y = by_hand(part)["y"]
    np.testing.assert_allclose(
        numbers(part.ratio(batch())),
        np.where(y < 0, np.exp(np.minimum(y, 0)), y / 2 + 1),
        rtol=CLOSE,
    )


def test_one_step_of_the_critic() -> None:
    """AdamW 3e-4 with decay 1e-4 on the last bias of Q, whose gradient is the mean of 2 errors;
    then the target moves 0.005 of the way.
    """
    part = backend()
    name = f"{part.critic.plan()[-1].output}_bias"
    before, target = (
        numbers(getattr(part.critic, name)).copy(),
        [numbers(p).copy() for p in part.target.parameters()],
    )
    gradient = 2 * by_hand(part)["errors"].mean(1)
    part.update(batch(), step=0)
    expected = before[:, 0] * (1 - RATE * DECAY) - RATE * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(numbers(getattr(part.critic, name))[:, 0], expected, rtol=1e-9)
    for old, new, live in zip(
        target, part.target.parameters(), part.critic.parameters(), strict=True
    ):
        np.testing.assert_allclose(
            numbers(new), (1 - POLYAK) * old + POLYAK * numbers(live), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("offset", [0.0, -5.0])
def test_the_loss_of_the_guidance(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(-max(-g)) E[w exp(-g) + g]: w in [1e-40, 100] and not normalised, 16 noises at one
    shared time, the maximum over the batch.
    """
    rng, part = np.random.default_rng(4), extractor()
    getattr(part.network, f"{part.network.plan()[-1].output}_bias").data += offset
    uniform, noise = rng.uniform(size=(ROWS, 1)), rng.normal(size=(ROWS, NOISES, ACTION))
    given(monkeypatch, ddice.extractors.guide_then_select, uniform, noise)
    t = 1e-3 + (1 - 1e-3) * uniform
    noised = alpha(t)[..., None] * numbers(batch().actions)[:, None] + sigma(t)[..., None] * noise
    g = guidance(Weights(part.network), numbers(batch().observations)[:, None], noised, t)
    w = np.array([0.0, 0.3, 2.0, 1e3, 1e-30])
    with np.errstate(divide="ignore"):
        log_ratio = torch.from_numpy(np.log(w))
    clamped = np.clip(w, 1e-40, 100)[:, None]
    expected = (clamped * np.exp(-g) + g).mean() * np.exp(-(-g).max())
    metrics = part.update(batch(), step=0, log_ratio=log_ratio)
    assert float(metrics["loss"]) == pytest.approx(expected, rel=CLOSE)
    assert float(metrics["floor_rate"]) == pytest.approx(1 / 5)
    assert float(metrics["cap_rate"]) == pytest.approx(1 / 5)


def published_sampler(part: GuideThenSelectExtractor, s: Array, x: Array) -> Array:
    """DPM-Solver++ of order 2 in data prediction: fifteen evaluations on sixteen uniform times,
    seven pairs, one first-order step; scale 4.
    """
    score, guide = Weights(part.prior.averaged), Weights(part.network)

    def clean(x: Array, t: float) -> Array:
        time = np.full((1, 1), t)
        noise = noise_prediction(score, s, x, time) - SCALE * sigma(t) * guidance_gradient(
            guide, s, x, time
        )
        return (x - sigma(t) * noise) / alpha(t)

    times = [1 - (1 - 1e-3) * i / 15 for i in range(16)]
    for start, inner, end in zip(times[0:14:2], times[1:14:2], times[2:16:2], strict=True):
        h, h_inner = log_snr(end) - log_snr(start), log_snr(inner) - log_snr(start)
        first = clean(x, start)
        between = sigma(inner) / sigma(start) * x + alpha(inner) * (1 - np.exp(-h_inner)) * first
        slope = (clean(between, inner) - first) / (2 * h_inner / h)
        x = sigma(end) / sigma(start) * x + alpha(end) * (1 - np.exp(-h)) * (first + slope)
    start, end = times[14], times[15]
    return sigma(end) / sigma(start) * x + alpha(end) * (
        1 - np.exp(log_snr(start) - log_snr(end))
    ) * clean(x, start)


def test_a_sampling_call_and_the_selection() -> None:
    """Candidates by the published sampler, unclipped; of these the best by the mean of ten Q,
    which saw them unclipped; then the bounds.
    """
    part, critic, candidates = extractor(), backend(), 4
    part.config = part.config.model_copy(update={"candidates": candidates})
    policy = part.policy(q=critic.q)
    rng = np.random.default_rng(5)
    s, x = rng.normal(size=(6, STATE)), rng.normal(size=(6, candidates, ACTION))
    expected = published_sampler(part, s[:, None], x)
    got = policy.decide(torch.from_numpy(s), torch.from_numpy(x))
    np.testing.assert_allclose(numbers(got.candidates), expected, rtol=1e-7, atol=1e-7)
    assert (np.abs(expected) > 1).any()
    q = action_value(critic.head, s[:, None], expected)
    assert q.shape == (10, 6, candidates)
    chosen = expected[np.arange(6), q.mean(0).argmax(-1)]
    np.testing.assert_allclose(numbers(got.actions), np.clip(chosen, -1, 1), rtol=1e-7, atol=1e-7)
    clipped = action_value(critic.head, s[:, None], np.clip(expected, -1, 1))
    for other in (
        q.min(0),
        clipped.mean(0),
        action_value(critic.target, s[:, None], expected).mean(0),
    ):
        assert (
            other.argmax(-1) != q.mean(0).argmax(-1)
        ).any()  # another rule would have chosen otherwise
    np.testing.assert_allclose(
        policy.spec.actions.from_unit(torch.tensor([[1.0, -0.5]])), [[2.0, -1.0]]
    )


def test_the_guided_noise() -> None:
    """noise - 4 sigma grad g, as the sampler computes it."""
    part = extractor()
    seen = []
    solver = part.sampler().config.solver
    sampler = part.sampler()

    class Once:
        def integrate(self, denoiser, x, schedule, clip=False):
            seen.append(denoiser(x, torch.tensor(0.3, dtype=torch.float64)))
            return x

    sampler.config = sampler.config.model_copy(update={"solver": Once()})
    rng = np.random.default_rng(6)
    s, x, time = rng.normal(size=(6, STATE)), rng.normal(size=(6, 2, ACTION)), np.full((1, 1), 0.3)
    sampler(torch.from_numpy(s), torch.from_numpy(x))
    gradient = guidance_gradient(Weights(part.network), s[:, None], x, time)
    expected = (
        noise_prediction(Weights(part.prior.averaged), s[:, None], x, time)
        - 4 * sigma(0.3) * gradient
    )
    np.testing.assert_allclose(numbers(seen[0]), expected, rtol=1e-6, atol=1e-7)
    assert solver.evaluations == 15
