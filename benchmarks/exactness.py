"""How exact every part is: the measured error of each divergence, backend, guidance case and solver
beside its bound.

    python benchmarks/exactness.py        # writes docs/exactness.md, in minutes; exits with 1 when
    a bound is exceeded

The answers come from closed forms, brute force, value iteration and L-BFGS (`ddice.testing` and the
helpers of tests/), never from the part itself. Backends and solvers are those of
`ddice.testing.catalogue`, divergences those of their union: a new one gets its rows
without a change here.
"""
# ruff: noqa: E402 (the helpers of tests/ are found through sys.path)

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import test_testing_guidance as cases
from oracles import brute_force_conjugate

from ddice.dice_backends.divergences import BUILT_IN
from ddice.diffusion.guidance import guided, network_gradient
from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import FEW_STEPS, PUBLISHED, MultiStep
from ddice.testing import (
    ExponentialRatio,
    GaussianMixture,
    catalogue,
    exact_flow,
    measured_order,
    quantiles,
    solver_error,
    two_sample,
)
from ddice.testing.order import noise_grid

SCHEDULE = VariancePreserving()
TEMPERATURE = 0.7
DISCOUNT = 0.9


@dataclass(frozen=True)
class Row:
    """One measured error and the bound that it must keep."""

    case: str
    what: str
    error: float
    bound: float

    @property
    def kept(self) -> bool:
        return self.error <= self.bound


def kind(part: object) -> str:
    return str(type(part).model_fields["kind"].default)


def divergences() -> Iterator[Row]:
    """y from -6 to 6 wherever the ratio is below 40 and no stated extension acts; float64."""
    for divergence in (cls() for cls in BUILT_IN):
        y = torch.linspace(-6, 6, 97, dtype=torch.float64)
        y = y[~divergence.past_cut(y) & (divergence.ratio(y) < 40)].requires_grad_()
        slope = torch.autograd.grad(divergence.conjugate(y).sum(), y)[0]
        y = y.detach()
        ratio, conjugate, brute = (
            divergence.ratio(y),
            divergence.conjugate(y),
            brute_force_conjugate(divergence.f, y),
        )
        fenchel = divergence.f(ratio) + conjugate - y * ratio
        one = torch.ones(1, dtype=torch.float64, requires_grad=True)
        at_one = divergence.f(one)
        name = kind(divergence)
        yield Row(
            name,
            "conjugate, to the largest x y - f(x) of a grid",
            float(((conjugate - brute).abs() / (1 + brute.abs())).max()),
            1e-6,
        )
        yield Row(
            name,
            "ratio, to the derivative of the conjugate",
            float(((ratio - slope).abs() / (1 + ratio)).max()),
            1e-9,
        )
        yield Row(
            name, "f(w) + f*(y) - w y", float((fenchel.abs() / (1 + brute.abs())).max()), 1e-9
        )
        yield Row(
            name,
            "f(1) and f'(1)",
            max(abs(float(at_one)), abs(float(torch.autograd.grad(at_one.sum(), one)[0]))),
            1e-12,
        )


def backends() -> Iterator[Row]:
    """Affine networks on one-hot states and pairs, one weighted full batch; half of the pairs may
    terminate, dynamics are random where nothing else is said.
    """
    for example in catalogue.BACKENDS:
        yield from backend_rows(example)


def backend_rows(example: catalogue.BackendExample) -> Iterator[Row]:
    """The ratios that a backend learns as a table, beside the exact ones; none where the example
    says why there is nothing to measure.
    """
    exact = example.exact
    if isinstance(exact, str):
        return
    problem = exact.problem
    for divergence in exact.divergences:
        config = exact.configure(example.config, divergence, TEMPERATURE, DISCOUNT)
        solution = exact.solve(problem, divergence, TEMPERATURE, DISCOUNT)
        expected = solution.w[problem.s, problem.a]
        ratio = exact.ratios(config, problem, exact.steps)
        positive = expected > 0
        relative = np.abs(ratio - expected)[positive] / expected[positive]
        largest = np.abs(ratio - expected).max() / expected.max()
        mean = (problem.p * (ratio - expected)).sum()
        case = ", ".join(filter(None, (example.part.__name__, divergence, exact.on)))
        median = "median relative error of positive ratios"
        yield Row(case, median, float(np.median(relative)), 0.02)
        yield Row(case, "largest error, relative to the largest ratio", float(largest), 0.02)
        yield Row(case, "mean ratio, to the exact one", abs(float(mean)), 0.005)


def unmeasured(examples: Iterable[catalogue.BackendExample]) -> list[str]:
    """Backends without rows, and why."""
    return [
        f"`{example.part.__name__}` has no rows: {example.exact}."
        for example in examples
        if isinstance(example.exact, str)
    ]


def missing(
    text: str,
    examples: Iterable[catalogue.BackendExample],
) -> list[str]:
    """The backends that a written page does not have, neither with rows nor with a reason."""
    reasons = unmeasured(examples)
    lines = text.splitlines()
    return [
        example.part.__name__
        for example in examples
        if not any(line.startswith(f"| {example.part.__name__}, ") for line in lines)
        and not any(reason in lines for reason in reasons if example.part.__name__ in reason)
    ]


def guidance() -> Iterator[Row]:
    """Two peaks in one dimension, or two in the plane, times exponential ratios of each kind."""
    a, x = np.linspace(-6, 6, 60_001), np.linspace(-1, 1, 9)
    for name, ratio in cases.RATIOS.items():
        w = ratio.log(torch.from_numpy(a)[:, None]).exp().numpy()
        closed = np.stack(
            [
                cases.PEAKS.guidance(ratio, SCHEDULE, torch.from_numpy(x)[:, None], t).numpy()
                for t in cases.TIMES
            ]
        )
        summed = np.stack([cases.by_quadrature(cases.PEAKS, w, a, x, t) for t in cases.TIMES])
        yield Row(
            name,
            "closed form of log E[w given a_t], to quadrature",
            float(np.abs(closed - summed).max()),
            1e-6,
        )
        denoiser = guided(
            cases.PEAKS.denoiser(SCHEDULE), cases.PEAKS.gradient(ratio, SCHEDULE), SCHEDULE, 1.0
        )
        expected = quantiles(
            cases.PEAKS.tilted(ratio).diffused(SCHEDULE, SCHEDULE.t_min).log_density, 201
        )
        flow = exact_flow(denoiser, noise_grid(201), SCHEDULE, steps=400)
        yield Row(
            name,
            "exact guided flow, to the quantiles of p w: mean error",
            float((flow - expected).abs().mean()),
            0.01,
        )
    for name, ratio in cases.PLANE_RATIOS.items():
        noise = torch.randn(
            1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        denoiser = guided(
            cases.PLANE.denoiser(SCHEDULE), cases.PLANE.gradient(ratio, SCHEDULE), SCHEDULE, 1.0
        )
        actions = MultiStep(evaluations=40, spacing="quadratic").integrate(
            denoiser, noise, SCHEDULE
        )
        found = two_sample(actions, cases.PLANE.tilted(ratio).sample)
        yield Row(
            f"{name}, two dimensions",
            "energy distance of 1000 guided samples, in noise floors",
            found.multiple,
            2,
        )
    for name in ("linear", "mixture"):
        yield from learned_rows(name)


def learned_rows(name: str) -> Iterator[Row]:
    extractor, tilted = cases.learned(name), cases.PEAKS.tilted(cases.RATIOS[name])
    gradient = network_gradient(
        extractor.network, extractor.prior.encoder(torch.zeros(1, 1)), SCHEDULE
    )
    for t in (0.1, 0.3):
        x = tilted.diffused(SCHEDULE, t).sample(500, seed=0).float()
        exact = cases.PEAKS.gradient(cases.RATIOS[name], SCHEDULE)(x, torch.tensor(t))
        error = (
            gradient(x, torch.tensor(t)).detach() - exact
        ).square().mean() / exact.square().mean()
        yield Row(
            f"{name}, learned",
            f"gradient at t = {t:g}, relative root mean square",
            float(error.sqrt()),
            0.4,
        )
    noise = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        denoiser = guided(cases.PEAKS.denoiser(SCHEDULE), gradient, SCHEDULE, 1.0)
        actions = MultiStep(evaluations=40, spacing="quadratic").integrate(
            denoiser, noise, SCHEDULE
        )
    found, unguided = (
        two_sample(sample, tilted.sample).distance
        for sample in (actions, cases.PEAKS.sample(1000, 10**6))
    )
    yield Row(
        f"{name}, learned",
        "energy distance of samples, relative to unguided ones",
        found / unguided,
        0.1,
    )


def scales() -> Iterator[Row]:
    """p = N(0, 1) and w = exp(-a^2 / 2): what the guided flow samples, against its closed form,
    the variance 2^-kappa.
    """
    prior, ratio, schedule = (
        GaussianMixture.of([1], [[0.0]], [[1.0]]),
        ExponentialRatio.quadratic([0.0], [1.0]),
        VariancePreserving(t_min=1e-6),
    )
    for scale in (0.5, 1.0, 2.0, 4.0):
        denoiser = guided(
            prior.denoiser(schedule), prior.gradient(ratio, schedule), schedule, scale
        )
        variance = float(exact_flow(denoiser, torch.ones(1, 1), schedule, steps=400)) ** 2
        what = f"variance {variance:.4f}, relative to 2^-kappa; p w^kappa has {1 / (1 + scale):.4f}"
        yield Row(f"scale {scale:g}", what, abs(variance * 2**scale - 1), 1e-3)


def solvers() -> Iterator[Row]:
    """On a guided mixture: the order from 65 to 513 evaluations, and the root mean square error
    of the named settings.
    """
    for example in catalogue.SOLVERS:
        for spacing in ("uniform", "quadratic"):
            measured = measured_order(example.part, spacing)
            yield Row(
                f"{example.part.__name__}, {spacing}",
                f"order {measured:.2f}, to the declared {example.order}",
                abs(measured - example.order),
                0.15,
            )
    for name, setting, bound in (("PUBLISHED", PUBLISHED, 0.1), ("FEW_STEPS", FEW_STEPS, 0.07)):
        for scale in (0.0, 1.0, 2.0, 4.0):
            error = solver_error(setting, scale, SCHEDULE)[0]
            yield Row(
                f"{name}, {setting.evaluations} evaluations, scale {scale:g}",
                "error of actions",
                error,
                bound,
            )


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "Divergences": divergences,
    "Backends": backends,
    "Guidance": guidance,
    "What a guidance scale samples": scales,
    "Solvers": solvers,
}


def main(path: Path) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "# How exact every part is",
        "",
        "Written by `python benchmarks/exactness.py`: each row is measured against an answer "
        "known otherwise.",
    ]
    exceeded = 0
    for title, section in SECTIONS.items():
        lines += [
            "",
            f"## {title}",
            "",
            " ".join(str(section.__doc__).split()),
            "",
            "| case | what | error | bound | |",
            "|---|---|---|---|---|",
        ]
        for row in section():
            exceeded += not row.kept
            lines.append(
                f"| {row.case} | {row.what} | {row.error:.2g} | {row.bound:g} | "
                f"{'kept' if row.kept else '**exceeded**'} |"
            )
            print(lines[-1], flush=True)
        if section is backends:
            lines += ["", *unmeasured(catalogue.BACKENDS)]
    path.write_text("\n".join(lines) + "\n")
    print(f"{path}: {exceeded} bounds exceeded")
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main(ROOT / "docs" / "exactness.md"))
