"""Conformance of extractors: from ratios to a policy, without ever asking prior or critic about
generated actions in training.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.diffusion.networks import ResidualScore
from ddice.diffusion.prior import DiffusionPrior, Prior
from ddice.policies.policy import Policy, load_policy
from ddice.testing.example import example_data
from ddice.testing.expect import (
    NoHostSync,
    expect,
    expect_close,
    expect_metrics,
    expect_refusal,
    expect_same_state,
    run_checks,
    survives_json,
    untouched_global_generator,
)

SEED, SEEDS, ROWS = 5, (3, 5), 32
STEPS = 20  # more than any check does: a learning rate that falls must know an end
PRIOR = DiffusionPrior(network=ResidualScore(width=8, blocks=1), batch_size=ROWS)


def _q(observations: Tensor, actions: Tensor) -> Tensor:
    """One member (1, B) that prefers a large first action."""
    return actions[..., 0][None]


class _Backend:
    """Known ratios and Q; counts how often its Q is asked."""

    ratio_kind, trains = "action", False

    def __init__(self, spec: Spec, has_q: bool = True):
        self.spec, self.has_q, self.has_value, self.asked = spec, has_q, False, 0

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        self.asked += 1
        return _q(observations, actions)

    def log_ratio(self, batch: Batch) -> Tensor:
        return torch.where(batch.actions[..., 0] > 0, 0.7, -0.4).float()

    def select(self, index: int) -> _Backend:
        return self


def _prior(data: Transitions, seed: Seed) -> Prior:
    prior = PRIOR.build(data.spec, seed).until(STEPS)
    for step in range(3):
        prior.update(data.sample(ROWS, seed=seed, step=step), step=step)
    return prior


def _build(config: Any, data: Transitions, seed: Seed = SEED) -> Any:
    prior = _prior(data, seed) if config.needs_prior else None
    return config.build(data.spec, seed, prior).until(STEPS)


def _ratios(config: Any, batch: Batch, zeros: bool = False) -> Tensor | None:
    if not config.needs_ratio:
        return None
    log_ratio = torch.where(batch.actions[..., 0] > 0, 0.7, -0.4).float()
    return torch.where(batch.actions[..., 1] > 0.3, -torch.inf, log_ratio) if zeros else log_ratio


def _train(
    part: Any,
    data: Transitions,
    seed: Seed = SEED,
    start: int = 0,
    stop: int = 3,
    zeros: bool = True,
) -> Any:
    for step in range(start, stop):
        batch = data.sample(ROWS, seed=seed, step=step)
        part.update(batch, step=step, log_ratio=_ratios(part.config, batch, zeros))
    return part


def _policy(config: Any, data: Transitions) -> tuple[Any, Policy]:
    part = _train(_build(config, data), data)
    return part, part.policy(q=_q)


def configuration_survives_json(config: Any, data: Transitions) -> None:
    """JSON in, JSON out; unknown fields are refused."""
    survives_json(config)
    for name in config.acting_fields:
        expect(isinstance(name, str), f"acting_fields names fields, got {name!r}")


def missing_parts_are_refused_before_training(config: Any, data: Transitions) -> None:
    """check raises ValueError without a prior, ratios, or a Q that is needed."""
    prior, backend = _prior(data, SEED) if config.needs_prior else None, _Backend(data.spec)
    config.check(prior, backend)
    if config.needs_prior:
        expect_refusal(
            lambda: config.check(None, backend), "from check(None, backend) when needs_prior"
        )
    if config.needs_ratio:
        single = config.model_copy(update={"candidates": 1})
        expect_refusal(
            lambda: single.check(prior, None), "from check(prior, None) when needs_ratio"
        )
        batch = data.sample(ROWS, seed=SEED, step=0)
        expect_refusal(
            lambda: _build(config, data).update(batch, step=0),
            "from update without log_ratio when needs_ratio",
        )
    several = config.model_copy(update={"candidates": 2})
    expect_refusal(
        lambda: several.check(prior, _Backend(data.spec, has_q=False)),
        "from check with 2 candidates and a backend without Q",
    )
    expect_refusal(
        lambda: _build(several, data).policy(q=None), "from policy(q=None) with 2 candidates"
    )


def metrics_are_detached_scalars(config: Any, data: Transitions) -> None:
    """update returns one finite detached number per seed and name, and never waits for the
    device.
    """
    for seed, shape in ((SEED, ()), (SEEDS, (2,))):
        part = _build(config, data, seed)
        for step in range(2):
            batch = data.sample(ROWS, seed=seed, step=step)
            with NoHostSync():
                metrics = part.update(batch, step=step, log_ratio=_ratios(config, batch))
            expect_metrics(metrics, shape)


def training_is_a_function_of_seed_and_step(config: Any, data: Transitions) -> None:
    """The same seed trains the same part, another seed another one; the global generator is
    neither read nor moved.
    """
    part = _build(config, data)
    with untouched_global_generator("training"):
        _train(part, data)
    torch.manual_seed(12345)
    expect_same_state(
        _train(_build(config, data), data).state(),
        part.state(),
        "the same seed after torch.manual_seed",
    )
    if part.trains:
        other = _train(_build(config, data, SEED + 1), data, SEED + 1).state()
        expect(
            any(not torch.equal(value, other[name]) for name, value in part.state().items()),
            "another seed trains the same part",
        )


def a_state_goes_on_as_if_never_interrupted(config: Any, data: Transitions) -> None:
    """state and load_state hold all that is trained: three steps, a new part, three more steps
    are six steps, bit for bit.
    """
    whole = _train(_build(config, data), data, stop=6)
    state = {
        name: value.clone()
        for name, value in _train(_build(config, data), data, stop=3).state().items()
    }
    resumed = _build(config, data)
    resumed.load_state(state)
    expect_same_state(
        _train(resumed, data, start=3, stop=6).state(), whole.state(), "the resumed part"
    )


def one_seed_of_several_is_that_seed_alone(config: Any, data: Transitions) -> None:
    """select(i) of a part trained with several seeds is what seed i trains alone; several seeds
    together have no policy.
    """
    together = _train(_build(config, data, SEEDS), data, SEEDS)
    for i, seed in enumerate(SEEDS):
        alone, selected = _train(_build(config, data, seed), data, seed), together.select(i)
        for name, value in alone.state().items():
            expect_close(
                selected.state()[name].float(),
                value.float(),
                f"{name} of seed {seed} out of {SEEDS}",
                rtol=1e-3,
                atol=1e-3,
            )
    expect_refusal(lambda: together.policy(q=_q), "from policy() of several seeds")


def zero_ratios_are_taken(config: Any, data: Transitions) -> None:
    """log ratios of -inf, of some rows and of a whole batch, leave all parameters finite."""
    if not config.needs_ratio:
        return
    part = _train(_build(config, data), data, zeros=True)
    batch = data.sample(ROWS, seed=SEED, step=3)
    part.update(
        batch, step=3, log_ratio=torch.full((ROWS,), -torch.inf, dtype=torch.float32, device="cpu")
    )
    part.update(batch, step=4, log_ratio=_ratios(config, batch))
    for name, value in part.named_parameters():
        expect(bool(value.isfinite().all()), f"{name} is not finite after log ratios of -inf")


def no_generated_action_in_training(config: Any, data: Transitions) -> None:
    """fit neither asks the critic, nor evaluates or changes the prior's networks: it sees
    dataset actions only.
    """
    prior, backend = _prior(data, SEED) if config.needs_prior else None, _Backend(data.spec)

    def refuse(module: object, inputs: object) -> None:
        raise AssertionError(
            "the score network of the prior is evaluated in training: an extractor reads its "
            "encoder and schedule only"
        )

    hooks = (
        []
        if prior is None
        else [
            network.register_forward_pre_hook(refuse) for network in (prior.network, prior.averaged)
        ]
    )
    before = {} if prior is None else {name: value.clone() for name, value in prior.state().items()}
    policy = config.fit(
        data, prior=prior, backend=backend, steps=3, seed=SEED, device="cpu", progress=False
    )
    for hook in hooks:
        hook.remove()
    expect(backend.asked == 0, f"Q was asked {backend.asked} times in training")
    expect_same_state(
        {} if prior is None else prior.state(), before, "the prior after training the extractor"
    )
    expect(isinstance(policy, Policy), f"fit returns a Policy, got {type(policy).__name__}")


def _gradients(
    config: Any, data: Transitions, batch: Batch, log_ratio: Tensor | None
) -> dict[str, Tensor]:
    part = _build(config, data)
    part.update(batch, step=0, log_ratio=log_ratio)
    return {
        name: parameter.grad
        for name, parameter in part.named_parameters()
        if parameter.grad is not None
    }


def losses_are_weighted_means(config: Any, data: Transitions) -> None:
    """Weights times 3 change nothing, and neither does what stands in rows of weight 0."""
    batch = data.sample(ROWS, seed=SEED, step=0)
    weights = (torch.arange(ROWS, device="cpu") % 3).float()
    batch = dataclasses.replace(batch, weights=weights)
    log_ratio = _ratios(config, batch)
    other = dataclasses.replace(
        batch, actions=torch.where(weights[:, None] == 0, 0.9, batch.actions)
    )
    other = dataclasses.replace(
        other, observations=torch.where(weights[:, None] == 0, 2.0, batch.observations)
    )
    other_ratio = None if log_ratio is None else torch.where(weights == 0, 1.5, log_ratio)
    wanted = _gradients(config, data, batch, log_ratio)
    largest = max((float(value.abs().max()) for value in wanted.values()), default=0.0)
    cases = {
        "weights times 3": (dataclasses.replace(batch, weights=3 * weights), log_ratio),
        "rows of weight 0": (other, other_ratio),
    }
    for what, (changed, ratios) in cases.items():
        for name, value in _gradients(config, data, changed, ratios).items():
            expect_close(
                value,
                wanted[name],
                f"{what}: the gradient of {name}",
                rtol=1e-3,
                atol=1e-4 * max(largest, 1e-3),
            )


def a_policy_acts_within_the_bounds(config: Any, data: Transitions) -> None:
    """One observation gives (A,), a batch (B, A), in the bounds; the same seed the same actions;
    deterministic rows do not depend on their batch.
    """
    _, policy = _policy(config, data)
    observations = data.full().observations[:6].numpy()
    actions = policy.act(observations, seed=3)
    expect(
        actions.shape == (6, data.spec.actions.size),
        f"expected actions {(6, data.spec.actions.size)}, got {actions.shape}",
    )
    expect(bool((abs(actions) <= 1).all()), f"actions leave the bounds: {abs(actions).max()}")
    expect(
        bool((policy.act(observations, seed=3) == actions).all()),
        "the same seed gives other actions",
    )
    sure = torch.from_numpy(policy.act(observations, deterministic=True))
    expect_close(
        torch.from_numpy(policy.act(observations[2], deterministic=True)),
        sure[2],
        "one deterministic row alone",
        atol=1e-4,
    )


def a_policy_keeps_what_was_learned(config: Any, data: Transitions) -> None:
    """A policy is a copy: saved and loaded it acts alike, and further training does not change
    it.
    """
    part, policy = _policy(config, data)
    observations = data.full().observations[:6].numpy()
    before = policy.act(observations, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "policy")
        loaded = load_policy(Path(folder) / "policy", device="cpu", q=_q)
    expect(
        bool((loaded.act(observations, seed=3) == before).all()),
        "the loaded policy acts differently",
    )
    _train(part, data, start=3, stop=6)
    expect(
        bool((policy.act(observations, seed=3) == before).all()),
        "training after policy() changes the policy",
    )


EXTRACTOR_CHECKS = (
    configuration_survives_json,
    missing_parts_are_refused_before_training,
    metrics_are_detached_scalars,
    training_is_a_function_of_seed_and_step,
    a_state_goes_on_as_if_never_interrupted,
    one_seed_of_several_is_that_seed_alone,
    zero_ratios_are_taken,
    no_generated_action_in_training,
    losses_are_weighted_means,
    a_policy_acts_within_the_bounds,
    a_policy_keeps_what_was_learned,
)


def check_extractor(config: Any, *, data: Transitions | None = None) -> None:
    """All of `EXTRACTOR_CHECKS` for one extractor configuration, on `example_data` unless others
    are given, with known ratios and a small prior.

    Takes seconds with small networks. Raises AssertionError that says which check failed, and
    where.
    """
    run_checks(EXTRACTOR_CHECKS, config, example_data() if data is None else data)
