"""Conformance of extractors: from what a backend has learned to a policy, without ever asking the
prior, nor the critic unless that is declared, about generated actions in training.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.data import Batch, Spec, Transitions
from ddice.diffusion.networks import ResidualScore
from ddice.diffusion.prior import DiffusionPrior, Prior
from ddice.parts.loop import Metrics
from ddice.policies.policy import Policy, load_policy
from ddice.testing.example import example_data
from ddice.testing.expect import (
    expect,
    expect_close,
    expect_refusal,
    expect_same_state,
    run_checks,
)
from ddice.testing.parts import (
    PART_CHECKS,
    ROWS,
    SEED,
    SEEDS,
    STEPS,
    Bench,
    State,
    copied,
    expect_gradients,
)

PRIOR = DiffusionPrior(network=ResidualScore(width=8, blocks=1), batch_size=ROWS)
ABOVE, BELOW = 0.7, -0.4  # log ratios, by the sign of the first action
CUT = 0.3  # where the second action is above, the ratio is zero


def prefers_first(
    observations: Tensor,  # (B, S)
    actions: Tensor,  # (B, A)
) -> Tensor:
    """Q (1, B) of one member that prefers a large first action."""
    return actions[..., 0].unsqueeze(-2)


def by_sign(batch: Batch) -> Tensor:
    """log w (*seeds, B) by the sign of the first action."""
    return torch.where(batch.actions[..., 0] > 0, ABOVE, BELOW).float()


class _Backend:
    """Known ratios and Q; counts how often its Q is asked."""

    ratio_kind, trains = "action", False

    def __init__(
        self,
        spec: Spec,
        has_q: bool = True,
        ratios: Callable[[Batch], Tensor | None] = by_sign,
    ):
        self.spec = spec
        self.has_q = has_q
        self.has_value = False
        self.asked = 0
        self.log_ratio = ratios
        # Of Q: what must collect no gradient.
        self.factor = torch.ones((), dtype=torch.float32, device="cpu", requires_grad=True)

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        self.asked += 1
        return self.factor * prefers_first(observations, actions)

    def select(self, index: int) -> _Backend:
        return self


@dataclasses.dataclass(frozen=True)
class ExtractorBench(Bench):
    """An extractor with known ratios, some of which are zero, and a small prior."""

    def prior(self, seed: Seed = SEED) -> Prior | None:
        """The prior after three steps; None where the extractor needs none."""
        if not self.config.needs_prior:
            return None
        prior = PRIOR.build(self.data.spec, seed).until(STEPS)
        for step in range(3):
            prior.update(self.batch(step, seed), step=step)
        return prior

    def build(self, seed: Seed = SEED) -> Any:
        return self.config.build(self.data.spec, seed, self.prior(seed)).until(STEPS)

    def with_candidates(self, count: int) -> Any:
        """The configuration with another number of candidates, where it has one."""
        if "candidates" not in type(self.config).model_fields:
            return self.config
        return self.config.model_copy(update={"candidates": count})

    def ratios(self, batch: Batch) -> Tensor | None:
        """log w (*seeds, B); None where the extractor needs none."""
        if not self.config.needs_ratio:
            return None
        return torch.where(batch.actions[..., 1] > CUT, -torch.inf, by_sign(batch))

    def update(self, part: Any, batch: Batch, step: int) -> Metrics:
        backend = _Backend(self.data.spec, ratios=self.ratios)
        metrics: Metrics = part.learn_from(batch, backend, step=step)
        return metrics

    def gradients_with(self, batch: Batch, log_ratio: Tensor | None) -> State:
        """The gradient of the first step on a batch with these ratios."""
        part = self.build()
        backend = _Backend(self.data.spec, ratios=lambda batch: log_ratio)
        part.learn_from(batch, backend, step=0)
        return {name: p.grad for name, p in part.named_parameters() if p.grad is not None}

    def observations(self) -> Any:
        """Six of them, (6, S)."""
        return self.data.full().observations[:6].numpy()


def missing_parts_are_refused_before_training(bench: ExtractorBench) -> None:
    """check raises ValueError without a prior, ratios, or a Q that is needed."""
    config = bench.config
    prior = bench.prior()
    backend = _Backend(bench.data.spec)
    config.check(prior, backend)
    for name in config.acting_fields:
        expect(isinstance(name, str), f"acting_fields names fields, got {name!r}")
    if config.needs_prior:
        what = "from check(None, backend) when needs_prior"
        expect_refusal(lambda: config.check(None, backend), what)
    if config.needs_ratio:
        what = "from check(prior, None) when needs_ratio"
        expect_refusal(lambda: bench.with_candidates(1).check(prior, None), what)
        what = "from update without log_ratio when needs_ratio"
        expect_refusal(lambda: bench.build().update(bench.batch(0), step=0), what)
    unable = _Backend(bench.data.spec, has_q=False)
    if config.needs_q:
        what = "from check with a backend without Q when needs_q"
        expect_refusal(lambda: config.check(prior, unable), what)
        what = "from update without q when needs_q"
        expect_refusal(lambda: bench.build().update(bench.batch(0), step=0), what)
    if "candidates" not in type(config).model_fields:
        return
    several = bench.with_candidates(2)
    what = "from check with 2 candidates and a backend without Q"
    expect_refusal(lambda: several.check(prior, unable), what)
    part = several.build(bench.data.spec, SEED, prior)
    expect_refusal(lambda: part.policy(q=None), "from policy(q=None) with 2 candidates")


def several_seeds_have_no_policy(bench: ExtractorBench) -> None:
    """One of them must be selected first."""
    together = bench.build(SEEDS)
    expect_refusal(lambda: together.policy(q=prefers_first), "from policy() of several seeds")


def zero_ratios_are_taken(bench: ExtractorBench) -> None:
    """log ratios of -inf, of some rows and of a whole batch, leave all parameters finite."""
    if not bench.config.needs_ratio:
        return
    part = bench.trained()
    nothing = torch.full((ROWS,), -torch.inf, dtype=torch.float32, device="cpu")
    part.learn_from(bench.batch(3), _Backend(bench.data.spec, ratios=lambda batch: nothing), step=3)
    bench.train(part, start=4, stop=5)
    for name, value in part.named_parameters():
        expect(bool(value.isfinite().all()), f"{name} is not finite after log ratios of -inf")


def no_generated_action_in_training(bench: ExtractorBench) -> None:
    """fit neither evaluates nor changes the prior's networks; it asks the critic where the
    extractor declares `needs_q`, and even then leaves no gradient in it.
    """
    prior = bench.prior()
    backend = _Backend(bench.data.spec)

    def refuse(module: object, inputs: object) -> None:
        raise AssertionError(
            "the score network of the prior is evaluated in training: an extractor reads its "
            "encoder and schedule only"
        )

    networks = () if prior is None else (prior.network, prior.averaged)
    hooks = [network.register_forward_pre_hook(refuse) for network in networks]
    before = {} if prior is None else copied(prior.state())
    policy = bench.config.fit(
        bench.data, prior=prior, backend=backend, steps=3, seed=SEED, device="cpu", progress=False
    )
    for hook in hooks:
        hook.remove()
    if bench.config.needs_q:
        expect(backend.asked > 0, "needs_q is declared, and Q was never asked in training")
    else:
        expect(backend.asked == 0, f"Q was asked {backend.asked} times in training")
    expect(backend.factor.grad is None, "training leaves a gradient in the parameters of Q")
    after = {} if prior is None else prior.state()
    expect_same_state(after, before, "the prior after training the extractor")
    expect(isinstance(policy, Policy), f"fit returns a Policy, got {type(policy).__name__}")


def losses_are_weighted_means(bench: ExtractorBench) -> None:
    """Weights times 3 change nothing, and neither does what stands in rows of weight 0."""
    weights = (torch.arange(ROWS, device="cpu") % 3).float()
    unseen = weights == 0
    batch = dataclasses.replace(bench.batch(0), weights=weights)
    log_ratio = bench.ratios(batch)
    wanted = bench.gradients_with(batch, log_ratio)
    heavier = dataclasses.replace(batch, weights=3 * weights)
    expect_gradients(bench.gradients_with(heavier, log_ratio), wanted, "weights times 3")
    other = dataclasses.replace(
        batch,
        actions=torch.where(unseen[:, None], 0.9, batch.actions),
        observations=torch.where(unseen[:, None], 2.0, batch.observations),
    )
    other_ratio = None if log_ratio is None else torch.where(unseen, 1.5, log_ratio)
    expect_gradients(bench.gradients_with(other, other_ratio), wanted, "rows of weight 0")


def a_policy_acts_within_the_bounds(bench: ExtractorBench) -> None:
    """One observation gives (A,), a batch (B, A), in the bounds; the same seed the same actions;
    deterministic rows do not depend on their batch.
    """
    policy = bench.trained().policy(q=prefers_first)
    observations = bench.observations()
    actions = policy.act(observations, seed=3)
    shape = (len(observations), bench.data.spec.actions.size)
    expect(actions.shape == shape, f"expected actions {shape}, got {actions.shape}")
    expect(bool((abs(actions) <= 1).all()), f"actions leave the bounds: {abs(actions).max()}")
    again = policy.act(observations, seed=3)
    expect(bool((again == actions).all()), "the same seed gives other actions")
    sure = torch.from_numpy(policy.act(observations, deterministic=True))
    alone = torch.from_numpy(policy.act(observations[2], deterministic=True))
    expect_close(alone, sure[2], "one deterministic row alone", atol=1e-4)


def a_policy_keeps_what_was_learned(bench: ExtractorBench) -> None:
    """A policy is a copy: saved and loaded it acts alike, and further training does not change
    it.
    """
    part = bench.trained()
    policy = part.policy(q=prefers_first)
    observations = bench.observations()
    before = policy.act(observations, seed=3)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder) / "policy")
        loaded = load_policy(Path(folder) / "policy", device="cpu", q=prefers_first)
    same = bool((loaded.act(observations, seed=3) == before).all())
    expect(same, "the loaded policy acts differently")
    bench.train(part, start=3, stop=6)
    same = bool((policy.act(observations, seed=3) == before).all())
    expect(same, "training after policy() changes the policy")


ExtractorCheck = Callable[[ExtractorBench], None]
EXTRACTOR_CHECKS: tuple[ExtractorCheck, ...] = (
    *PART_CHECKS,
    missing_parts_are_refused_before_training,
    several_seeds_have_no_policy,
    zero_ratios_are_taken,
    no_generated_action_in_training,
    losses_are_weighted_means,
    a_policy_acts_within_the_bounds,
    a_policy_keeps_what_was_learned,
)


def check_extractor(
    config: Any,
    *,
    data: Transitions | None = None,
    checks: Sequence[ExtractorCheck] = EXTRACTOR_CHECKS,
) -> None:
    """All of `EXTRACTOR_CHECKS`, or those named, for one extractor configuration, on `example_data`
    unless others are given, with known ratios and a small prior.

    Takes seconds with small networks. Raises AssertionError that says which check failed, and
    where.
    """
    bench = ExtractorBench(config, example_data() if data is None else data)
    run_checks(checks, bench.name, bench)
