"""Conformance of backends: what extractors, training and comparisons rely on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from typing_extensions import get_protocol_members

from ddice.core.randomness import Seed
from ddice.data import Batch, Transitions
from ddice.parts.loop import Metrics
from ddice.parts.ratio_source import RatioSource
from ddice.testing.example import example_data, take
from ddice.testing.expect import expect, expect_close, expect_same_state, run_checks
from ddice.testing.parts import (
    PART_CHECKS,
    ROWS,
    SEED,
    SEEDS,
    STEPS,
    Bench,
    copied,
    expect_gradients,
)

MEMBERS = (*sorted(get_protocol_members(RatioSource)), "fit")
# rows that are asked for alone
SOME = torch.tensor([7, 2, 40], dtype=torch.int64, device="cpu")


@dataclasses.dataclass(frozen=True)
class BackendBench(Bench):
    """A backend on data with at least 41 rows."""

    def build(self, seed: Seed = SEED) -> Any:
        part = self.config.build(self.data.spec, seed)
        missing = [name for name in MEMBERS if not hasattr(part, name)]
        expect(not missing, f"lacks {', '.join(missing)}")
        part.prepare(self.data)
        return part.until(STEPS)

    def update(self, part: Any, batch: Batch, step: int) -> Metrics:
        metrics: Metrics = part.update(batch, step=step)
        return metrics


def has_what_a_backend_has(bench: BackendBench) -> None:
    """The attributes and methods that extractors, training and comparisons use."""
    part = bench.build()
    expect(
        part.ratio_kind in ("action", "state-action"),
        f'ratio_kind is "action" or "state-action", got {part.ratio_kind!r}',
    )
    booleans = isinstance(part.has_q, bool) and isinstance(part.has_value, bool)
    expect(booleans, "has_q and has_value are booleans")
    if part.has_value:
        positive = hasattr(part, "temperature") and bool((part.temperature > 0).all())
        expect(positive, "a backend with values has a positive temperature")
    expect(part.spec == bench.data.spec, "spec is that of the data")


def shapes_are_as_promised(bench: BackendBench) -> None:
    """log_ratio (*seeds, B), value (*seeds, B), q (*seeds, M, B), with one seed and with
    several.
    """
    for seed, axes in ((SEED, ()), (SEEDS, (2,))):
        part = bench.trained(seed)
        batch = bench.batch(9, seed)
        found = {"log_ratio": part.log_ratio(batch), "ratio": part.ratio(batch)}
        if part.has_value:
            found["value"] = part.value(batch.observations)
        shape = (*axes, ROWS)
        for name, got in found.items():
            expect(
                got.shape == shape,
                f"{name}: expected shape {shape} for seed {seed}, got {tuple(got.shape)}",
            )
            expect(got.dtype == torch.float32, f"{name}: expected float32, got {got.dtype}")
        if part.has_q and (part.trains or not axes):
            q = part.q(batch.observations, batch.actions)
            members = q.shape[len(axes)] if q.ndim == len(axes) + 2 else 0
            expect(
                members >= 1 and q.shape == (*axes, members, ROWS),
                f"q: expected (*seeds, M, B) = {(*axes, 'M', ROWS)}, got {tuple(q.shape)}",
            )


def log_ratio_is_a_logarithm(bench: BackendBench) -> None:
    """log_ratio is finite or -inf, never NaN or inf; ratio is its exp; asking changes nothing; a
    row does not depend on its batch.
    """
    part = bench.trained()
    before = copied(part.state())
    batch = bench.data.full()
    log_ratio = part.log_ratio(batch)
    nan_rows = log_ratio.isnan().nonzero().flatten()[:5].tolist()
    expect(not nan_rows, f"log_ratio is NaN in rows {nan_rows}")
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
    expect_close(part.log_ratio(take(batch, SOME)), log_ratio[SOME], "log_ratio of some rows alone")
    expect_same_state(part.state(), before, "after log_ratio")


def q_ranks_actions_row_by_row(bench: BackendBench) -> None:
    """q is finite, and a row does not depend on the others."""
    part = bench.trained()
    if not part.has_q:
        return
    batch = bench.data.full()
    q = part.q(batch.observations, batch.actions)
    expect(bool(q.isfinite().all()), "q is not finite on actions of the data")
    alone = part.q(batch.observations[SOME], batch.actions[SOME])
    expect_close(alone, q[..., SOME], "q of some rows alone")


def ratios_belong_to_the_state(bench: BackendBench) -> None:
    """A part resumed from its state has the same ratios, and so has one seed out of several."""
    batch = bench.data.full()
    whole = bench.trained(stop=6)
    resumed = bench.build()
    resumed.load_state(copied(bench.trained(stop=3).state()))
    bench.train(resumed, start=3, stop=6)
    expect(
        torch.equal(resumed.log_ratio(batch), whole.log_ratio(batch)),
        "the resumed part has other ratios",
    )
    together = bench.trained(SEEDS)
    for i, seed in enumerate(SEEDS):
        selected = together.select(i).log_ratio(batch)
        alone = bench.trained(seed).log_ratio(batch)
        what = f"log_ratio of seed {seed} out of {SEEDS}"
        expect_close(selected, alone, what, rtol=1e-3, atol=1e-4)


def a_weight_is_a_number_of_copies(bench: BackendBench) -> None:
    """Every loss is a weighted mean: rows with weights 0, 1, 2, 3 train as if they stood in the
    batch so often.
    """
    batch = bench.data.full()
    counts = torch.arange(len(batch.rows), device="cpu") % 4
    copies = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), counts)
    weighted = bench.gradients(dataclasses.replace(batch, weights=counts.float()))
    expect_gradients(weighted, bench.gradients(take(batch, copies)), "weights against copies")


def terminations_end_the_bootstrap(bench: BackendBench) -> None:
    """What is written as the next observation of a terminated row changes nothing."""
    batch = bench.data.full()
    ended = batch.terminations[:, None]
    garbage = dataclasses.replace(
        batch, next_observations=torch.where(ended, 100.0, batch.next_observations)
    )
    got = bench.gradients(garbage)
    expect_gradients(got, bench.gradients(batch), "garbage behind terminations")
    part = bench.trained()
    what = "log_ratio with garbage behind terminations"
    expect_close(part.log_ratio(garbage), part.log_ratio(batch), what)


BackendCheck = Callable[[BackendBench], None]
BACKEND_CHECKS: tuple[BackendCheck, ...] = (
    has_what_a_backend_has,
    shapes_are_as_promised,
    log_ratio_is_a_logarithm,
    q_ranks_actions_row_by_row,
    *PART_CHECKS,
    ratios_belong_to_the_state,
    a_weight_is_a_number_of_copies,
    terminations_end_the_bootstrap,
)


def check_backend(
    config: Any,
    *,
    data: Transitions | None = None,
    checks: Sequence[BackendCheck] = BACKEND_CHECKS,
) -> None:
    """All of `BACKEND_CHECKS`, or those named, for one backend configuration, on `example_data`
    unless others are given (with at least 41 rows).

    Takes seconds with small networks, e.g. value=MLP(hidden=(8,)). Raises AssertionError that says
    which check failed, and where.
    """
    bench = BackendBench(config, example_data() if data is None else data)
    run_checks(checks, bench.name, bench)
