"""Conformance of score networks and encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddice.core.randomness import Seed
from ddice.diffusion.networks import TIME_FEATURES, Network
from ddice.testing.expect import (
    expect,
    expect_close,
    expect_same_state,
    name_of,
    run_checks,
    survives_json,
    untouched_global_generator,
)

FEATURES = 3
ACTIONS = 2
ROWS = 6
CANDIDATES = 4
SEED = 5
SEEDS = (3, 5)


def _network(config: Any, seed: Seed = SEED) -> Network:
    network: Network = config.build(FEATURES, ACTIONS, seed=seed, stream="prior")
    return network


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Features (B, 1, F), actions (B, K, A) and descriptions of times (B, 1, 4)."""
    source = torch.Generator("cpu").manual_seed(0)
    features = torch.randn(ROWS, 1, FEATURES, generator=source, dtype=torch.float32, device="cpu")
    actions = torch.randn(
        ROWS, CANDIDATES, ACTIONS, generator=source, dtype=torch.float32, device="cpu"
    )
    times = torch.randn(ROWS, 1, TIME_FEATURES, generator=source, dtype=torch.float32, device="cpu")
    return features, actions, times


def predictions_have_the_shape_of_actions(config: Any) -> None:
    """Features, actions and times that broadcast give finite float32 predictions, (B, K, A)."""
    features, actions, times = _inputs()
    got = _network(config)(features, actions, times)
    expect(got.shape == actions.shape, f"expected {tuple(actions.shape)}, got {tuple(got.shape)}")
    expect(got.dtype == torch.float32, f"expected float32, got {got.dtype}")
    expect(bool(got.isfinite().all()), "predictions must be finite")


@torch.no_grad()
def every_input_counts_for_its_row_alone(config: Any) -> None:
    """A prediction depends on its own features, action and time, on each of them, and on no
    others.
    """
    network = _network(config)
    inputs = _inputs()
    together = network(*inputs)
    alone = network(*(value[2:4] for value in inputs))
    expect_close(alone, together[2:4], "two rows alone", atol=1e-5)
    features, actions, times = inputs
    one = network(features, actions[:, 1:2], times)
    expect_close(one, together[:, 1:2], "one candidate alone", atol=1e-5)
    for i, name in enumerate(("features", "actions", "time")):
        moved = [value + 0.5 * (i == j) for j, value in enumerate(inputs)]
        expect(not torch.allclose(network(*moved), together), f"predictions ignore the {name}")


def gradients_reach_every_parameter(config: Any) -> None:
    """Each trainable parameter has a finite gradient, or it would never be trained."""
    network = _network(config)
    network(*_inputs()).square().sum().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        expect(gradient is not None, f"{name} has no gradient")
        finite = gradient is not None and bool(gradient.isfinite().all())
        expect(finite, f"the gradient of {name} is not finite")


def weights_are_those_of_the_seed(config: Any) -> None:
    """The same seed gives the same weights, another one others; the global generator is neither
    read nor moved; one seed of several is that seed alone.
    """
    with untouched_global_generator("building the network"):
        state = _network(config).state_dict()
    torch.manual_seed(12345)
    expect_same_state(_network(config).state_dict(), state, "the same seed")
    other = _network(config, SEED + 1).state_dict()
    expect(any(not torch.equal(other[name], state[name]) for name in state), "seeds do not matter")
    inputs = [value.expand(len(SEEDS), *value.shape) for value in _inputs()]
    together = _network(config, SEEDS)(*inputs)
    for i, seed in enumerate(SEEDS):
        alone = _network(config, seed)(*_inputs())
        expect_close(together[i], alone, f"seed {seed} out of {SEEDS}", atol=1e-5)


ScoreCheck = Callable[[Any], None]
SCORE_CHECKS: tuple[ScoreCheck, ...] = (
    survives_json,
    predictions_have_the_shape_of_actions,
    every_input_counts_for_its_row_alone,
    gradients_reach_every_parameter,
    weights_are_those_of_the_seed,
)


def check_score(
    config: Any,
    *,
    checks: Sequence[ScoreCheck] = SCORE_CHECKS,
) -> None:
    """All of `SCORE_CHECKS`, or those named, for one score network. Raises AssertionError that says
    what failed.
    """
    run_checks(checks, name_of(config), config)


def _encoder(config: Any) -> Any:
    return config.build((0.5, -1.0, 0.0), (2.0, 1.0, 0.5))


def features_are_rows_of_their_size(config: Any) -> None:
    """Observations (..., S) give finite features (..., size), a row at a time."""
    encoder = _encoder(config)
    source = torch.Generator("cpu").manual_seed(0)
    observations = torch.randn(
        ROWS, CANDIDATES, 3, generator=source, dtype=torch.float32, device="cpu"
    )
    features = encoder(observations)
    shape = (ROWS, CANDIDATES, encoder.size)
    expect(features.shape == shape, f"expected features {shape}, got {tuple(features.shape)}")
    expect(bool(features.isfinite().all()), "features must be finite")
    expect_close(encoder(observations[2, 1]), features[2, 1], "one row alone")
    distinct = len(features.flatten(0, 1).unique(dim=0))
    expect(distinct == ROWS * CANDIDATES, "different observations have the same features")


def the_same_encoder_is_built_twice(config: Any) -> None:
    """Prior, backend and extractor build their own: the same statistics give the same tensors."""
    expect_same_state(
        _encoder(config).state_dict(), _encoder(config).state_dict(), "another encoder"
    )


EncoderCheck = Callable[[Any], None]
ENCODER_CHECKS: tuple[EncoderCheck, ...] = (
    survives_json,
    features_are_rows_of_their_size,
    the_same_encoder_is_built_twice,
)


def check_encoder(
    config: Any,
    *,
    checks: Sequence[EncoderCheck] = ENCODER_CHECKS,
) -> None:
    """All of `ENCODER_CHECKS`, or those named, for one encoder. Raises AssertionError that says
    what failed.
    """
    run_checks(checks, name_of(config), config)
