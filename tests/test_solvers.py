from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from oracles import VP, GaussianData, TwoPeaks
from pydantic import TypeAdapter
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor

from ddice.diffusion.schedule import NoiseSchedule, VariancePreserving
from ddice.diffusion.solvers import (
    DDIM,
    PUBLISHED,
    AnySolver,
    MultiStep,
    SingleStep,
    Solver,
    Spacing,
)
from ddice.testing import check_solver

KINDS = [DDIM, SingleStep, MultiStep]
every_solver = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
PEAKS, GAUSSIAN = TwoPeaks(centre=0.6, std=0.2), GaussianData(mean=0.3, std=0.4)
NOISE = torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)[:, None]


class Spy:
    """A denoiser that records the times at which it is called."""

    def __init__(self, denoiser: Callable[[Tensor, Tensor], Tensor]):
        self.denoiser, self.times = denoiser, list[float]()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == ()
        assert t.dtype == x.dtype
        self.times.append(t.item())
        return self.denoiser(x, t)


def uniform_times(evaluations: int, t_min: float) -> list[float]:
    return [1 - (1 - t_min) * i / evaluations for i in range(evaluations + 1)]


def quadratic_times(evaluations: int, t_min: float) -> list[float]:
    return [(1 - (1 - math.sqrt(t_min)) * i / evaluations) ** 2 for i in range(evaluations + 1)]


def log_snr_times(evaluations: int, t_min: float) -> list[float]:
    """Equally spaced in log-SNR, each time found by bisection."""
    targets = np.linspace(VP().log_snr(1.0), VP().log_snr(t_min), evaluations + 1)
    return [
        brentq(
            lambda t, target=target: VP().log_snr(t) - target, t_min / 2, 2, xtol=1e-16, rtol=1e-14
        )
        for target in targets
    ]


TIMES = {"uniform": uniform_times, "quadratic": quadratic_times, "log_snr": log_snr_times}
every_spacing = pytest.mark.parametrize("spacing", TIMES)


def clean(x: Tensor, t: float) -> Tensor:
    """The clean prediction of the two peaks at one time, in plain formulas."""
    return (
        x - VP().sigma(t) * PEAKS.noise_prediction(x, torch.tensor(t, dtype=torch.float64))
    ) / VP().alpha(t)


def straight_line_2s(x: Tensor, times: list[float]) -> Tensor:
    """DPM-Solver++(2S) as the published sampler runs it, written out: inner points on the grid,
    one first-order step at the end.
    """
    alpha, sigma, log_snr = VP().alpha, VP().sigma, VP().log_snr
    for j in range(7):
        s, inner, t = times[2 * j], times[2 * j + 1], times[2 * j + 2]
        h, h_inner = log_snr(t) - log_snr(s), log_snr(inner) - log_snr(s)
        first = clean(x, s)
        u = sigma(inner) / sigma(s) * x - alpha(inner) * (math.exp(-h_inner) - 1) * first
        second = clean(u, inner)
        x = (
            sigma(t) / sigma(s) * x
            - alpha(t) * (math.exp(-h) - 1) * first
            - alpha(t) * h / (2 * h_inner) * (math.exp(-h) - 1) * (second - first)
        )
    s, t = times[14], times[15]
    return sigma(t) / sigma(s) * x - alpha(t) * (math.exp(log_snr(s) - log_snr(t)) - 1) * clean(
        x, s
    )


def straight_line_2m(x: Tensor, times: list[float]) -> Tensor:
    """DPM-Solver++(2M) written out; the first and the last step are first order."""
    alpha, sigma, log_snr = VP().alpha, VP().sigma, VP().log_snr
    seen: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(times)):
        h = log_snr(t) - log_snr(s)
        seen.append(clean(x, s))
        target = seen[-1]
        if 0 < i < len(times) - 2:
            slope = (seen[-1] - seen[-2]) / (log_snr(s) - log_snr(times[i - 1]))
            target = seen[-1] + slope * h / 2
        x = sigma(t) / sigma(s) * x + alpha(t) * (1 - math.exp(-h)) * target
    return x


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [DDIM, SingleStep, MultiStep])
@pytest.mark.parametrize("evaluations", [1, 3, 8])
def test_clipping_by_hand(kind: Any, evaluations: int) -> None:
    """A point mass at 1.7 is taken for one at 1, at every evaluation: alpha' + sigma' / sigma (x
    - alpha).
    """
    alpha, sigma, end = VP().alpha, VP().sigma, 1e-3

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return (x - alpha(float(t)) * 1.7) / sigma(float(t))

    free, kept = (
        kind(evaluations=evaluations).integrate(denoiser, NOISE, VariancePreserving(), clip=clip)
        for clip in (False, True)
    )
    for got, mass in ((free, 1.7), (kept, 1.0)):
        torch.testing.assert_close(
            got,
            alpha(end) * mass + sigma(end) / sigma(1.0) * (NOISE - alpha(1.0) * mass),
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.oracle
@pytest.mark.parametrize(
    "solver",
    [PUBLISHED, DDIM(evaluations=8), MultiStep(evaluations=8, spacing="quadratic")],
    ids=lambda s: s.kind,
)
def test_clipping_leaves_an_exact_denoiser_as_it_is(solver: Solver) -> None:
    """Actions -1, 0.2 and 0.9, equally likely: the exact clean action is their mean with softmax
    weights.
    """
    schedule, actions = VariancePreserving(), torch.tensor([-1.0, 0.2, 0.9], dtype=torch.float64)

    def exact(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        weights = torch.softmax(-((x - alpha * actions) / sigma).square() / 2, -1)
        return (x - alpha * (weights @ actions)[..., None]) / sigma

    free, kept = (solver.integrate(exact, NOISE, schedule, clip=clip) for clip in (False, True))
    torch.testing.assert_close(kept, free, rtol=1e-9, atol=1e-9)


@pytest.mark.oracle
def test_the_published_sampler_written_out() -> None:
    assert SingleStep(evaluations=15, spacing="uniform") == PUBLISHED
    got = PUBLISHED.integrate(PEAKS.noise_prediction, NOISE, VariancePreserving())
    torch.testing.assert_close(
        got, straight_line_2s(NOISE, uniform_times(15, 1e-3)), rtol=1e-9, atol=1e-11
    )


@pytest.mark.oracle
@every_spacing
@pytest.mark.parametrize("evaluations", [3, 8, 15])
def test_multi_step_written_out(evaluations: int, spacing: Spacing) -> None:
    solver = MultiStep(evaluations=evaluations, spacing=spacing)
    got = solver.integrate(PEAKS.noise_prediction, NOISE, VariancePreserving())
    torch.testing.assert_close(
        got, straight_line_2m(NOISE, TIMES[spacing](evaluations, 1e-3)), rtol=1e-9, atol=1e-11
    )


def halving(kind: Any, evaluations: int, answers: list[float]) -> tuple[float, list[float]]:
    """A solver on a schedule with alpha = 1 whose sigma halves from each time of the grid to the
    next, 1 at t = 1, from x = 0.

    The predictions make the clean actions `answers`, in turn. -> the action, and the x of each
    evaluation.
    """

    class Halving(NoiseSchedule):
        kind: Literal["halving"] = "halving"

        def log_alpha(self, t: Tensor) -> Tensor:
            return torch.zeros_like(t)

        def sigma(self, t: Tensor) -> Tensor:
            return torch.exp(-self.log_snr(t))

        def log_snr(self, t: Tensor) -> Tensor:
            return (1 - t) * evaluations * math.log(2) / (1 - self.t_min)

        def time(self, log_snr: Tensor) -> Tensor:
            return 1 - log_snr * (1 - self.t_min) / (evaluations * math.log(2))

    schedule, seen, rest = Halving(t_min=0.5), list[float](), list(answers)

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        seen.append(float(x))
        return (x - rest.pop(0)) / schedule.sigma(t)

    action = kind(evaluations=evaluations).integrate(
        denoiser, torch.zeros((), dtype=torch.float64), schedule
    )
    return float(action), seen


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "answers", "action", "seen"),
    [
        # A step to half the sigma takes x to x / 2 + clean / 2, and one to a quarter of it (two
        # grid points on) to x / 4 + 3 clean / 4.
        (DDIM, [8, 16, 4], 7.0, [0, 4, 10]),
        (SingleStep, [8], 4.0, [0]),
        (SingleStep, [8, 16], 10.0, [0, 4]),  # both steps first order
        (
            SingleStep,
            [8, 16, 4],
            8.0,
            [0, 4, 12],
        ),  # 8 + (16 - 8) / (2 * 1/2) = 16, so x = 12; then first order
        (MultiStep, [8], 4.0, [0]),
        (MultiStep, [8, 16], 10.0, [0, 4]),
        (
            MultiStep,
            [8, 16, 4],
            8.0,
            [0, 4, 12],
        ),  # 16 + (16 - 8) / 2 = 20, so x = 4 / 2 + 20 / 2 = 12; the last is first order
        (
            MultiStep,
            [8, 16, 4, 6],
            5.5,
            [0, 4, 12, 5],
        ),  # 4 + (4 - 16) / 2 = -2, so x = 12 / 2 - 2 / 2 = 5
    ],
)
def test_one_to_four_evaluations_by_hand(
    kind, answers: list[float], action: float, seen: list[float]
) -> None:
    got, at = halving(kind, len(answers), answers)
    assert got == pytest.approx(action, abs=1e-12)
    assert at == pytest.approx(seen, abs=1e-12)


@pytest.mark.oracle
def test_ddim_in_its_own_words() -> None:
    """x' = alpha' x0 + sigma' noise: the form in which DDIM was published."""
    x = NOISE
    for s, t in pairwise(uniform_times(10, 1e-3)):
        noise = PEAKS.noise_prediction(x, torch.tensor(s, dtype=torch.float64))
        x = VP().alpha(t) * (x - VP().sigma(s) * noise) / VP().alpha(s) + VP().sigma(t) * noise
    got = DDIM(evaluations=10).integrate(PEAKS.noise_prediction, NOISE, VariancePreserving())
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-11)


def exact(data: GaussianData | TwoPeaks, t_min: float) -> Tensor:
    """Where the diffusion ODE takes the noise: in closed form, or by a Runge-Kutta method of
    order 8.
    """
    if isinstance(data, GaussianData):
        return data.flow(NOISE, 1.0, t_min)
    solution = solve_ivp(
        data.velocity, (1.0, t_min), NOISE[:, 0].numpy(), method="DOP853", rtol=1e-11, atol=1e-11
    )
    return torch.from_numpy(solution.y[:, -1])[:, None]


@pytest.mark.oracle
@every_spacing
@pytest.mark.parametrize("data", [GAUSSIAN, PEAKS], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize(
    ("kind", "order"),
    [(DDIM, 1), (SingleStep, 2), (MultiStep, 2)],
    ids=lambda k: getattr(k, "__name__", None),
)
def test_order_of_convergence(kind, order: int, data, spacing: Spacing) -> None:
    """The slope of log error against log evaluations.

    It shows where all steps shrink alike in log-SNR: on grids that end at t = 0.1. On a uniform
    grid that ends at 1e-3 the last, first-order step is long in log-SNR until there are thousands
    of evaluations.
    """
    schedule, counts = VariancePreserving(t_min=0.1), [65, 129, 257, 513]
    truth = exact(data, 0.1)
    errors = [
        (
            kind(evaluations=n, spacing=spacing).integrate(data.noise_prediction, NOISE, schedule)
            - truth
        )
        .abs()
        .max()
        for n in counts
    ]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.oracle
@pytest.mark.parametrize("spacing", ["quadratic", "log_snr"])
@pytest.mark.parametrize("data", [GAUSSIAN, PEAKS], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("evaluations", [800, 801])
@every_solver
def test_many_evaluations_reach_the_exact_map(
    kind, evaluations: int, data, spacing: Spacing
) -> None:
    """From t = 1 to the default end of 1e-3."""
    got = kind(evaluations=evaluations, spacing=spacing).integrate(
        data.noise_prediction, NOISE, VariancePreserving()
    )
    torch.testing.assert_close(got, exact(data, 1e-3), rtol=0, atol=4e-3 if kind is DDIM else 5e-5)


@pytest.mark.oracle
@every_spacing
@pytest.mark.parametrize("evaluations", [1, 2, 3, 8, 15])
@every_solver
def test_exact_for_a_constant_clean_action(kind, evaluations: int, spacing: str) -> None:
    """When the data are a single point, every step is exact: what is left is sigma(t_min) times
    the noise that was there.
    """
    schedule, point = VP(), 0.7

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return (x - schedule.alpha(float(t)) * point) / schedule.sigma(float(t))

    got = kind(evaluations=evaluations, spacing=spacing).integrate(
        denoiser, NOISE, VariancePreserving()
    )
    expected = schedule.alpha(1e-3) * point + schedule.sigma(1e-3) / schedule.sigma(1.0) * (
        NOISE - schedule.alpha(1.0) * point
    )
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("evaluations", [1, 2])
@pytest.mark.parametrize("kind", [SingleStep, MultiStep], ids=lambda k: k.__name__)
def test_first_order_is_ddim(kind, evaluations: int) -> None:
    """With one or two evaluations there is room for first-order steps only."""
    arguments = PEAKS.noise_prediction, NOISE, VariancePreserving()
    assert torch.equal(
        kind(evaluations=evaluations).integrate(*arguments),
        DDIM(evaluations=evaluations).integrate(*arguments),
    )
    assert not torch.equal(
        kind(evaluations=3).integrate(*arguments), DDIM(evaluations=3).integrate(*arguments)
    )


@every_spacing
@pytest.mark.parametrize("evaluations", [1, 2, 7, 8])
def test_order_one_is_ddim(evaluations: int, spacing: Spacing) -> None:
    arguments = PEAKS.noise_prediction, NOISE, VariancePreserving()
    got = MultiStep(evaluations=evaluations, spacing=spacing, order=1).integrate(*arguments)
    assert torch.equal(got, DDIM(evaluations=evaluations, spacing=spacing).integrate(*arguments))


@every_spacing
@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 7, 8, 15, 16])
@every_solver
def test_each_evaluation_is_one_call_at_its_grid_time(
    kind, evaluations: int, spacing: Spacing
) -> None:
    spy, t_min = Spy(GAUSSIAN.noise_prediction), 0.02
    kind(evaluations=evaluations, spacing=spacing).integrate(
        spy, NOISE, VariancePreserving(t_min=t_min)
    )
    assert spy.times == pytest.approx(TIMES[spacing](evaluations, t_min)[:-1], rel=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        VariancePreserving(),
        VariancePreserving(t_min=1e-6),
        VariancePreserving(beta_min=1, beta_max=3, t_min=0.1),
    ],
    ids=str,
)
@every_spacing
@every_solver
def test_grids_begin_at_one_and_end_at_t_min(
    kind, spacing: Spacing, schedule: NoiseSchedule
) -> None:
    """What comes after the last call shows where the last step ended: x = sigma(t_min), when
    every prediction is that of a clean action of zero.
    """
    times: list[float] = []

    def zero(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t))
        return x / schedule.sigma(t)

    for evaluations in (1, 4, 15):
        times.clear()
        start, end = (
            schedule.sigma(torch.tensor(t, dtype=torch.float64)) for t in (1.0, schedule.t_min)
        )
        got = kind(evaluations=evaluations, spacing=spacing).integrate(zero, start, schedule)
        assert times[0] == pytest.approx(1, abs=1e-12)
        assert float(got) == pytest.approx(float(end), rel=1e-9)


class Sum:
    """A value that knows only what a linear combination needs: a sum with itself, a product with
    a Python float.
    """

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, terms: dict[str, float]):
        self.terms = terms

    def __add__(self, other: Sum) -> Sum:
        assert type(other) is Sum
        return Sum(
            {
                name: self.terms.get(name, 0.0) + other.terms.get(name, 0.0)
                for name in {**self.terms, **other.terms}
            }
        )

    def __mul__(self, factor: float) -> Sum:
        assert type(factor) is float
        return Sum({name: factor * value for name, value in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Sum:
        return self * (1 / divisor)

    def __neg__(self) -> Sum:
        return self * -1.0

    def __sub__(self, other: Sum) -> Sum:
        return self + -other


@every_spacing
@pytest.mark.parametrize(
    "solver",
    [
        DDIM(evaluations=6),
        SingleStep(evaluations=6),
        SingleStep(evaluations=7),
        MultiStep(evaluations=6),
    ],
    ids=str,
)
def test_solvers_add_and_scale_and_nothing_else(solver, spacing: Spacing) -> None:
    """Values that can only be added and scaled give the coefficients; with them in place, the
    same action as numbers give.
    """
    solver, count, answers = solver.model_copy(update={"spacing": spacing}), 0, list[Tensor]()

    def symbolic(x: Sum, t: Tensor) -> Sum:
        nonlocal count
        assert (t.shape, t.dtype) == ((), torch.float64)
        count += 1
        return Sum({str(count): 1.0})

    def numeric(x: Tensor, t: Tensor) -> Tensor:
        answers.append(PEAKS.noise_prediction(x, t))
        return answers[-1]

    terms = solver.integrate(symbolic, Sum({"0": 1.0}), VariancePreserving()).terms
    got = solver.integrate(numeric, NOISE, VariancePreserving())
    torch.testing.assert_close(
        sum(terms[str(i)] * value for i, value in enumerate([NOISE, *answers])),
        got,
        rtol=1e-9,
        atol=1e-11,
    )


@every_spacing
@pytest.mark.parametrize(
    ("solver", "order"),
    [(DDIM(), 1), (SingleStep(), 2), (MultiStep(), 2), (MultiStep(order=1), 1)],
    ids=str,
)
def test_every_solver_passes_the_conformance_suite(solver, order: int, spacing: Spacing) -> None:
    check_solver(solver.model_copy(update={"spacing": spacing}), order=order)


def test_log_snr_is_worse_under_ten_evaluations_of_strong_guidance() -> None:
    """The numbers of the field's description are those of the committed curves, which
    test_testing_solvers.py compares with the code.
    """
    path = Path(__file__).parent.parent / "benchmarks" / "solver_error.json"
    rows = {tuple(row.values())[:4]: row["rms"] for row in json.loads(path.read_text())}
    found = [
        rows["DPM-Solver++(2M)", spacing, 4.0, count]
        for spacing in ("log_snr", "quadratic")
        for count in (5, 8)
    ]
    said = re.findall(r"0\.\d+", str(MultiStep.model_fields["spacing"].description))
    assert [f"{value:.3f}" for value in found] == said
    assert {spacing for _, spacing, *_ in rows} == set(get_args(Spacing))


def test_an_even_count_ends_with_two_first_order_steps() -> None:
    """Six evaluations: two second-order steps over four grid points, then the rest as DDIM takes
    it.
    """
    schedule, times = VariancePreserving(), uniform_times(6, 1e-3)
    x = SingleStep(evaluations=6).integrate(PEAKS.noise_prediction, NOISE, schedule)
    middle: list[Tensor] = []

    def remember(noisy: Tensor, t: Tensor) -> Tensor:
        middle.append(noisy)
        return PEAKS.noise_prediction(noisy, t)

    assert torch.equal(SingleStep(evaluations=6).integrate(remember, NOISE, schedule), x)
    y = middle[4]
    for s, t in pairwise(times[4:]):
        y = VP().sigma(t) / VP().sigma(s) * y - VP().alpha(t) * math.expm1(
            VP().log_snr(s) - VP().log_snr(t)
        ) * clean(y, s)
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@every_solver
def test_any_batch_shape_and_single_precision(kind) -> None:
    x = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    solver, schedule = kind(), VariancePreserving()
    together = solver.integrate(PEAKS.noise_prediction, x, schedule)
    torch.testing.assert_close(
        together[1, 2],
        solver.integrate(PEAKS.noise_prediction, x[1, 2], schedule),
        rtol=1e-12,
        atol=0,
    )
    single = solver.integrate(PEAKS.noise_prediction, x.float(), schedule)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), together, rtol=0, atol=2e-3)


def test_by_kind() -> None:
    adapter: TypeAdapter = TypeAdapter(AnySolver)
    assert adapter.validate_python(
        {"kind": "multi_step", "evaluations": 8, "spacing": "quadratic"}
    ) == MultiStep(evaluations=8, spacing="quadratic", order=2)
    assert adapter.validate_python({"kind": "ddim", "evaluations": 5}) == DDIM(evaluations=5)
    for kind in KINDS:
        assert adapter.validate_json(kind(evaluations=4).model_dump_json()) == kind(evaluations=4)
        with pytest.raises(ValueError, match="evaluations"):
            kind(evaluations=0)
