"""Conformance of backends: what extractors, training and comparisons rely on."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import get_protocol_members

from ddice.core.randomness import Seed
from ddice.data import Batch, Transitions
from ddice.parts.ratio_source import RatioSource
from ddice.testing.example import example_data, take
from ddice.testing.expect import (
    NoHostSync,
    expect,
    expect_close,
    expect_metrics,
    expect_same_state,
    run_checks,
    survives_json,
    untouched_global_generator,
)

SEED, SEEDS, ROWS = 5, (3, 5), 32
STEPS = 20  # more than any check does: a learning rate that falls must know an end
MEMBERS = (*sorted(get_protocol_members(RatioSource)), "fit")


def _build(config: Any, data: Transitions, seed: Seed = SEED) -> Any:
    part = config.build(data.spec, seed)
    missing = [name for name in MEMBERS if not hasattr(part, name)]
    expect(not missing, f"lacks {', '.join(missing)}")
    part.prepare(data)
    return part.until(STEPS)


def _train(part: Any, data: Transitions, seed: Seed = SEED, start: int = 0, stop: int = 3) -> Any:
    for step in range(start, stop):
        part.update(data.sample(ROWS, seed=seed, step=step), step=step)
    return part


def configuration_survives_json(config: Any, data: Transitions) -> None:
    """JSON in, JSON out; unknown fields are refused."""
    survives_json(config)


def has_what_a_backend_has(config: Any, data: Transitions) -> None:
    """The attributes and methods that extractors, training and comparisons use."""
    part = _build(config, data)
    expect(
        part.ratio_kind in ("action", "state-action"),
        f'ratio_kind is "action" or "state-action", got {part.ratio_kind!r}',
    )
    expect(
        isinstance(part.has_q, bool) and isinstance(part.has_value, bool),
        "has_q and has_value are booleans",
    )
    if part.has_value:
        expect(
            hasattr(part, "temperature") and bool((part.temperature > 0).all()),
            "a backend with values has a positive temperature",
        )
    expect(part.spec == data.spec, "spec is that of the data")


def shapes_are_as_promised(config: Any, data: Transitions) -> None:
    """log_ratio (*seeds, B), value (*seeds, B), q (*seeds, M, B), with one seed and with
    several.
    """
    for seed, axes in ((SEED, ()), (SEEDS, (2,))):
        part = _train(_build(config, data, seed), data, seed)
        batch = data.sample(ROWS, seed=seed, step=9)
        for name in ("log_ratio", "ratio"):
            got = getattr(part, name)(batch)
            expect(
                got.shape == (*axes, ROWS),
                f"{name}: expected shape {(*axes, ROWS)} for seed {seed}, got {tuple(got.shape)}",
            )
            expect(got.dtype == torch.float32, f"{name}: expected float32, got {got.dtype}")
        if part.has_value:
            got = part.value(batch.observations)
            expect(
                got.shape == (*axes, ROWS),
                f"value: expected shape {(*axes, ROWS)} for seed {seed}, got {tuple(got.shape)}",
            )
        if part.has_q and (part.trains or not axes):
            q = part.q(batch.observations, batch.actions)
            members = q.shape[len(axes)] if q.ndim == len(axes) + 2 else 0
            expect(
                members >= 1 and q.shape == (*axes, members, ROWS),
                f"q: expected (*seeds, M, B) = {(*axes, 'M', ROWS)}, got {tuple(q.shape)}",
            )


def log_ratio_is_a_logarithm(config: Any, data: Transitions) -> None:
    """log_ratio is finite or -inf, never NaN or inf; ratio is its exp; asking changes nothing; a
    row does not depend on its batch.
    """
    part = _train(_build(config, data), data)
    before = {name: value.clone() for name, value in part.state().items()}
    batch = data.full()
    log_ratio = part.log_ratio(batch)
    expect(
        not bool(log_ratio.isnan().any()),
        f"log_ratio is NaN in rows {log_ratio.isnan().nonzero().flatten()[:5].tolist()}",
    )
    expect(bool((log_ratio < torch.inf).all()), "log_ratio is inf")
    expect(
        not log_ratio.requires_grad,
        "log_ratio is attached to the graph: extractors must not train the backend",
    )
    expect_close(part.ratio(batch), log_ratio.exp(), "ratio against exp(log_ratio)")
    expect(
        torch.equal(log_ratio, part.log_ratio(batch)),
        "log_ratio of the same batch differs the second time",
    )
    some = torch.tensor([7, 2, 40], dtype=torch.int64, device="cpu")
    expect_close(part.log_ratio(take(batch, some)), log_ratio[some], "log_ratio of some rows alone")
    expect_same_state(part.state(), before, "after log_ratio")


def q_ranks_actions_row_by_row(config: Any, data: Transitions) -> None:
    """q is finite, and a row does not depend on the others."""
    part = _train(_build(config, data), data)
    if not part.has_q:
        return
    batch = data.full()
    q = part.q(batch.observations, batch.actions)
    expect(bool(q.isfinite().all()), "q is not finite on actions of the data")
    some = torch.tensor([7, 2, 40], dtype=torch.int64, device="cpu")
    expect_close(
        part.q(batch.observations[some], batch.actions[some]), q[..., some], "q of some rows alone"
    )


def metrics_are_detached_scalars(config: Any, data: Transitions) -> None:
    """update returns one finite detached number per seed and name, and never waits for the
    device.
    """
    for seed, shape in ((SEED, ()), (SEEDS, (2,))):
        part = _build(config, data, seed)
        for step in range(2):
            batch = data.sample(ROWS, seed=seed, step=step)
            if part.trains:
                with NoHostSync():
                    metrics = part.update(batch, step=step)
            else:
                metrics = part.update(batch, step=step)
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
    first = _train(_build(config, data), data, stop=3)
    state = {name: value.clone() for name, value in first.state().items()}
    expect(all(isinstance(value, Tensor) for value in state.values()), "state holds tensors only")
    resumed = _build(config, data)
    resumed.load_state(state)
    expect_same_state(
        _train(resumed, data, start=3, stop=6).state(), whole.state(), "the resumed part"
    )
    expect(
        torch.equal(resumed.log_ratio(data.full()), whole.log_ratio(data.full())),
        "the resumed part has other ratios",
    )


def one_seed_of_several_is_that_seed_alone(config: Any, data: Transitions) -> None:
    """select(i) of a part trained with several seeds is what seed i trains alone."""
    together = _train(_build(config, data, SEEDS), data, SEEDS)
    batch = data.full()
    for i, seed in enumerate(SEEDS):
        alone, selected = _train(_build(config, data, seed), data, seed), together.select(i)
        expect_close(
            selected.log_ratio(batch),
            alone.log_ratio(batch),
            f"log_ratio of seed {seed} out of {SEEDS}",
            rtol=1e-3,
            atol=1e-4,
        )
        for name, value in alone.state().items():
            expect_close(
                selected.state()[name].float(),
                value.float(),
                f"{name} of seed {seed} out of {SEEDS}",
                rtol=1e-3,
                atol=1e-4,
            )


def _gradients(config: Any, data: Transitions, batch: Batch) -> dict[str, Tensor]:
    part = _build(config, data)
    part.update(batch, step=0)
    if not isinstance(part, nn.Module):
        return {}
    return {
        name: parameter.grad
        for name, parameter in part.named_parameters()
        if parameter.grad is not None
    }


def _expect_gradients(got: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    largest = max((float(value.abs().max()) for value in wanted.values()), default=0.0)
    for name, value in wanted.items():
        expect_close(
            got[name],
            value,
            f"{what}: the gradient of {name}",
            rtol=1e-3,
            atol=1e-4 * max(largest, 1e-3),
        )


def a_weight_is_a_number_of_copies(config: Any, data: Transitions) -> None:
    """Every loss is a weighted mean: rows with weights 0, 1, 2, 3 train as if they stood in the
    batch so often.
    """
    batch = data.full()
    counts = torch.arange(len(batch.rows), device="cpu") % 4
    copies = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts)
    weighted = _gradients(config, data, dataclasses.replace(batch, weights=counts.float()))
    _expect_gradients(
        weighted, _gradients(config, data, take(batch, copies)), "weights against copies"
    )


def terminations_end_the_bootstrap(config: Any, data: Transitions) -> None:
    """What is written as the next observation of a terminated row changes nothing."""
    batch = data.full()
    garbage = dataclasses.replace(
        batch,
        next_observations=torch.where(batch.terminations[:, None], 100.0, batch.next_observations),
    )
    _expect_gradients(
        _gradients(config, data, garbage),
        _gradients(config, data, batch),
        "garbage behind terminations",
    )
    part = _train(_build(config, data), data)
    expect_close(
        part.log_ratio(garbage), part.log_ratio(batch), "log_ratio with garbage behind terminations"
    )


BACKEND_CHECKS = (
    configuration_survives_json,
    has_what_a_backend_has,
    shapes_are_as_promised,
    log_ratio_is_a_logarithm,
    q_ranks_actions_row_by_row,
    metrics_are_detached_scalars,
    training_is_a_function_of_seed_and_step,
    a_state_goes_on_as_if_never_interrupted,
    one_seed_of_several_is_that_seed_alone,
    a_weight_is_a_number_of_copies,
    terminations_end_the_bootstrap,
)


def check_backend(config: Any, *, data: Transitions | None = None) -> None:
    """All of `BACKEND_CHECKS` for one backend configuration, on `example_data` unless others are
    given (with at least 41 rows).

    Takes seconds with small networks, e.g. value=MLP(hidden=(8,)). Raises AssertionError that says
    which check failed, and where.
    """
    run_checks(BACKEND_CHECKS, config, example_data() if data is None else data)
