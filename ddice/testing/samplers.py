"""Conformance of samplers: observations and noise to candidate actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddice.data import Spec
from ddice.testing.example import example_data
from ddice.testing.expect import (
    expect,
    expect_close,
    name_of,
    run_checks,
    survives_json,
    untouched_global_generator,
)

ROWS, CANDIDATES = 6, 4


def _inputs(spec: Spec) -> tuple[Tensor, Tensor]:
    """Observations (B, S) and noise (B, K, A)."""
    source = torch.Generator("cpu").manual_seed(0)
    observations = torch.randn(
        ROWS, spec.observations.size, generator=source, dtype=torch.float32, device="cpu"
    )
    noise = torch.randn(
        ROWS, CANDIDATES, spec.actions.size, generator=source, dtype=torch.float32, device="cpu"
    )
    return observations, noise


@torch.no_grad()
def candidates_have_their_shape(config: Any, spec: Spec) -> None:
    """Observations (B, S) and noise (B, K, A) give finite candidates (B, K, A), also of one row
    and one candidate.
    """
    sampler = config.build(spec)
    observations, noise = _inputs(spec)
    expect(sampler.config == config, "a sampler keeps its configuration: policies save it")
    for some in (noise, noise[:, :1]):
        got = sampler(observations, some)
        expect(
            got.shape == some.shape,
            f"expected candidates {tuple(some.shape)}, got {tuple(got.shape)}",
        )
        expect(
            got.dtype == torch.float32 and bool(got.isfinite().all()),
            "candidates are finite float32",
        )


@torch.no_grad()
def rows_and_candidates_are_independent(config: Any, spec: Spec) -> None:
    """A candidate depends on its own observation and noise alone, or on the observation alone where
    the sampler reads no noise, and on nothing random.
    """
    sampler = config.build(spec)
    observations, noise = _inputs(spec)
    with untouched_global_generator("sampling"):
        together = sampler(observations, noise)
    expect(
        torch.equal(together, sampler(observations, noise)),
        "the same noise gives other candidates the second time",
    )
    rows = sampler(observations[2:4], noise[2:4])
    expect_close(rows, together[2:4], "two rows alone", atol=1e-4)
    candidates = sampler(observations, noise[:, 1:3])
    expect_close(candidates, together[:, 1:3], "two candidates alone", atol=1e-4)
    same = torch.allclose(together[:, 0], together[:, 1])
    if sampler.reads_noise:
        expect(not same, "other noise gives the same candidate")
    else:
        expect(same, "reads_noise is False, and other noise gives another candidate")


@torch.no_grad()
def tensors_make_the_same_sampler(config: Any, spec: Spec) -> None:
    """build(spec) and load_state_dict are all that loading a policy does."""
    sampler = config.build(spec)
    again = config.build(spec)
    observations, noise = _inputs(spec)
    source = torch.Generator("cpu").manual_seed(1)
    for parameter in sampler.parameters():
        parameter.add_(
            0.05 * torch.randn(parameter.shape, generator=source, dtype=torch.float32, device="cpu")
        )
    again.load_state_dict(sampler.state_dict())
    expect(
        torch.equal(again(observations, noise), sampler(observations, noise)),
        "the loaded sampler gives other candidates",
    )


def fixed_latents_start_alike(config: Any, spec: Spec) -> None:
    """latents(K, A) are always the same, and the first k of K are latents(k, A)."""
    sampler = config.build(spec)
    size = spec.actions.size
    latents = sampler.latents(5, size)
    expect(latents.shape == (5, size), f"expected latents {(5, size)}, got {tuple(latents.shape)}")
    expect(torch.equal(latents, sampler.latents(5, size)), "latents differ from call to call")
    expect(
        torch.equal(latents[:2], sampler.latents(2, size)),
        "the first latents depend on their number",
    )
    expect(len(latents.unique(dim=0)) == 5, "latents repeat")


SamplerCheck = Callable[[Any, Spec], None]
SAMPLER_CHECKS: tuple[SamplerCheck, ...] = (
    survives_json,
    candidates_have_their_shape,
    rows_and_candidates_are_independent,
    tensors_make_the_same_sampler,
    fixed_latents_start_alike,
)


def check_sampler(
    config: Any,
    *,
    spec: Spec | None = None,
    checks: Sequence[SamplerCheck] = SAMPLER_CHECKS,
) -> None:
    """All of `SAMPLER_CHECKS`, or those named, for one sampler configuration. Raises AssertionError
    that says which check failed, and where.
    """
    run_checks(checks, name_of(config), config, example_data().spec if spec is None else spec)
