from __future__ import annotations

import math

import oracles
import pytest
import torch
from oracles import brute_force_conjugate
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ddice.core.config import TRUST
from ddice.core.plugins import members
from ddice.dice_backends.divergences import (
    BUILT_IN,
    KL,
    Alpha,
    Divergence,
    FDivergence,
    HalfPearson,
    LeCam,
    Neyman,
    NumericDivergence,
    ReverseKL,
    SquaredHellinger,
    TotalVariation,
    exponent_cut,
    pole_cut,
)

E = math.e
# By hand from the formulas: kind -> ([(x, f(x))], [(y, conjugate(y), ratio(y))]).
BY_HAND = {
    "kl": (
        [(0, 1), (0.5, 0.5 - 0.5 * math.log(2)), (2, 2 * math.log(2) - 1), (E, 1)],
        [(-1, 1 / E - 1, 1 / E), (0, 0, 1), (1, E - 1, E), (2, E * E - 1, E * E)],
    ),
    "pearson": (
        [(0, 1), (0.5, 0.25), (3, 4)],
        [(-3, -1, 0), (-2, -1, 0), (-1, -0.75, 0.5), (0, 0, 1), (2, 3, 2)],
    ),
    "half_pearson": (
        [(0, 0.5), (0.5, 0.125), (3, 2)],
        [(-3, -0.5, 0), (-1, -0.5, 0), (-0.5, -0.375, 0.5), (0, 0, 1), (2, 4, 3)],
    ),
    "piecewise": (
        [(0, 1), (0.5, 0.5 - 0.5 * math.log(2)), (3, 4)],
        [(-1, 1 / E - 1, 1 / E), (0, 0, 1), (2, 3, 2), (4, 8, 3)],
    ),
    "soft_chi2": (
        [(0, 1), (0.5, 0.5 - 0.5 * math.log(2)), (3, 2)],
        [(-1, 1 / E - 1, 1 / E), (0, 0, 1), (2, 4, 3), (4, 12, 5)],
    ),
    "reverse_kl": (
        [(0.5, math.log(2) - 0.5), (2, 1 - math.log(2)), (E, E - 2)],
        [(-1, -math.log(2), 0.5), (0, 0, 1), (0.5, math.log(2), 2), (0.75, math.log(4), 4)],
    ),
    "neyman": (
        [(0.5, 0.5), (2, 0.5), (4, 2.25)],
        [(-8, -4, 1 / 3), (-3, -2, 0.5), (0, 0, 1), (0.75, 1, 2)],
    ),
    "squared_hellinger": (
        [(0, 1), (0.25, 0.25), (4, 1)],
        [(-1, -0.5, 0.25), (0, 0, 1), (0.5, 1, 4)],
    ),
    "jensen_shannon": (
        [(0, math.log(2)), (3, 3 * math.log(3) - 4 * math.log(2))],
        [(-math.log(2), -math.log(1.5), 1 / 3), (0, 0, 1), (math.log(1.5), math.log(2), 3)],
    ),
    "le_cam": (
        [(0, 1), (0.5, 1 / 6), (3, 1)],
        [(-8, -1, 0), (-3, -1, 0), (-1.25, -0.75, 1 / 3), (0, 0, 1), (0.75, 1.25, 3)],
    ),
    # order 1.5: f = (x^1.5 - 1.5 x + 0.5) / 0.75, ratio (1 + y/2)^2, conjugate ((1 + y/2)^3 - 1) /
    # 1.5
    "alpha": (
        [(0, 2 / 3), (4, 10 / 3)],
        [(-3, -2 / 3, 0), (-2, -2 / 3, 0), (-1, -7 / 12, 0.25), (0, 0, 1), (2, 14 / 3, 4)],
    ),
    # smoothing 0.1; 0.24^2 + 0.1^2 = 0.26^2, and sqrt(1 - 4 0.3^2) = 0.8
    "total_variation": (
        [(0.76, 0.08), (1.24, 0.08), (0, (math.sqrt(1.01) - 0.1) / 2)],
        [(-1, (0.1 - math.sqrt(1.01)) / 2, 0), (-0.3, -0.29, 0.925), (0, 0, 1), (0.3, 0.31, 1.075)],
    ),
}
# The ratio is zero for y up to here; the other members are positive everywhere.
ZERO_UP_TO = {
    "pearson": -2.0,
    "half_pearson": -1.0,
    "le_cam": -3.0,
    "alpha": -2.0,
    "total_variation": -0.5 / math.sqrt(1.01),
}
POLES = {
    "reverse_kl": 1.0,
    "neyman": 1.0,
    "squared_hellinger": 1.0,
    "jensen_shannon": math.log(2),
    "le_cam": 1.0,
    "total_variation": 0.5,
}
every_member = pytest.mark.parametrize(
    "divergence", [cls() for cls in BUILT_IN], ids=lambda d: d.kind
)
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def derivative(function, y: Tensor) -> Tensor:
    y = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(y).sum(), y)
    return gradient


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def inside(divergence: FDivergence, y: Tensor) -> Tensor:
    """The y before the pole, if there is one, by a tenth of its value."""
    return y[y < 0.9 * POLES.get(divergence.kind, math.inf)]


def kinks_and_neighbours(dtype: torch.dtype) -> Tensor:
    """The points where some formula changes branch, and the closest numbers on both sides."""
    cuts = {cls().cut(dtype) for cls in BUILT_IN} - {math.inf}
    kinks = torch.tensor([0.0, -1.0, *POLES.values(), *ZERO_UP_TO.values(), *cuts], dtype=dtype)
    return torch.cat(
        [
            torch.nextafter(kinks, torch.full_like(kinks, -1e9)),
            kinks,
            torch.nextafter(kinks, torch.full_like(kinks, 1e9)),
        ]
    )


def wide(dtype: torch.dtype) -> Tensor:
    sizes = torch.logspace(-8, 6, 141, dtype=dtype)
    return torch.cat([-sizes, kinks_and_neighbours(dtype), sizes])


@pytest.mark.oracle
@every_member
def test_numbers_by_hand(divergence: FDivergence) -> None:
    values, conjugates = BY_HAND[divergence.kind]
    x, fx = (double(*column) for column in zip(*values, strict=True))
    torch.testing.assert_close(divergence.f(x), fx, rtol=1e-14, atol=1e-15)
    y, conjugate, ratio = (double(*column) for column in zip(*conjugates, strict=True))
    torch.testing.assert_close(divergence.conjugate(y), conjugate, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(divergence.ratio(y), ratio, rtol=1e-14, atol=1e-15)


@pytest.mark.oracle
@every_member
def test_conjugate_is_the_largest_value_of_xy_minus_f(divergence: FDivergence) -> None:
    y = inside(divergence, torch.linspace(-6, 3, 91, dtype=torch.float64))
    torch.testing.assert_close(
        divergence.conjugate(y),
        brute_force_conjugate(divergence.f, y, highest=120),
        rtol=0,
        atol=3e-7,
    )


@every_member
def test_ratio_is_the_derivative_of_the_conjugate(divergence: FDivergence) -> None:
    y = torch.cat(
        [torch.linspace(-12, 12, 241, dtype=torch.float64), kinks_and_neighbours(torch.float64)]
    )
    torch.testing.assert_close(
        derivative(divergence.conjugate, y), divergence.ratio(y), rtol=1e-12, atol=1e-13
    )


@every_member
def test_fenchel_equality_at_the_ratio(divergence: FDivergence) -> None:
    """f(x) + f*(y) = x y holds at x = ratio(y), and only there."""
    y = inside(divergence, torch.linspace(-12, 12, 241, dtype=torch.float64))
    x = divergence.ratio(y)
    torch.testing.assert_close(
        divergence.f(x) + divergence.conjugate(y), x * y, rtol=1e-12, atol=1e-12
    )
    for other in (x * 1.1 + 0.01, x * 0.9):
        gap = divergence.f(other) + divergence.conjugate(y) - other * y
        assert (gap >= -1e-12 * (1 + (other * y).abs())).all()


@every_member
def test_f_is_normalised_at_one(divergence: FDivergence) -> None:
    one = double(1.0)
    assert divergence.f(one).item() == 0
    assert derivative(divergence.f, one).item() == 0
    assert divergence.conjugate(double(0.0)).item() == 0
    assert divergence.ratio(double(0.0)).item() == 1
    assert (divergence.f(double(0.0, 0.9, 1.1, 7.0)) > 0).all()


@both_precisions
@every_member
def test_log_ratio_is_finite_exactly_where_the_ratio_is_positive(
    divergence: FDivergence, dtype: torch.dtype
) -> None:
    y = wide(dtype)
    log_ratio = divergence.log_ratio(y)
    assert not log_ratio.isnan().any()
    border = ZERO_UP_TO.get(divergence.kind, -math.inf)
    if (
        divergence.kind == "total_variation"
    ):  # whose border is no float: its neighbours may be taken for it
        clear = (y - border).abs() > 4 * torch.finfo(dtype).eps
        y, log_ratio = y[clear], log_ratio[clear]
    zero = y <= border
    assert (log_ratio[zero] == -math.inf).all()
    assert log_ratio[~zero].isfinite().all()
    torch.testing.assert_close(divergence.ratio(y), log_ratio.exp(), rtol=0, atol=0)


@both_precisions
@every_member
def test_everything_is_finite_up_to_a_million(divergence: FDivergence, dtype: torch.dtype) -> None:
    y = wide(dtype)
    of_log_ratio = derivative(divergence.log_ratio, y)
    for values in (
        divergence.conjugate(y),
        derivative(divergence.conjugate, y),
        divergence.ratio(y),
        of_log_ratio,
    ):
        assert values.dtype == dtype
        assert values.isfinite().all()
    assert (divergence.ratio(y) >= 0).all()
    assert (of_log_ratio >= 0).all()
    assert (of_log_ratio[divergence.log_ratio(y) == -math.inf] == 0).all()


@both_precisions
@every_member
def test_ratio_never_decreases(divergence: FDivergence, dtype: torch.dtype) -> None:
    ratio = divergence.ratio(wide(dtype).sort().values)
    assert (ratio.diff() >= -1e-6 * ratio[1:]).all()


@every_member
def test_single_precision_agrees_with_double(divergence: FDivergence) -> None:
    y = inside(divergence, torch.linspace(-20, 20, 401, dtype=torch.float64))
    close = {"rtol": 3e-6, "atol": 1e-7}
    torch.testing.assert_close(
        divergence.conjugate(y.float()).double(), divergence.conjugate(y.float().double()), **close
    )
    torch.testing.assert_close(
        divergence.ratio(y.float()).double(), divergence.ratio(y.float().double()), **close
    )


@every_member
def test_conjugate_keeps_its_digits_near_zero(divergence: FDivergence) -> None:
    """f*(y) = y + O(y^2): a formula like exp(y) - 1 would lose every digit of y = 1e-6 in single
    precision.
    """
    y = torch.tensor([-1e-6, 1e-6])
    torch.testing.assert_close(divergence.conjugate(y), y, rtol=2e-6, atol=0)


def test_the_cut_leaves_room_for_a_square() -> None:
    assert exponent_cut(torch.float32) == pytest.approx(44.3614, abs=1e-4)
    assert exponent_cut(torch.float64) == pytest.approx(354.8914, abs=1e-4)


WITH_A_CUT = [
    KL(),
    ReverseKL(),
    Neyman(),
    SquaredHellinger(),
    TypeAdapter(Divergence).validate_python("jensen_shannon"),
    LeCam(),
]
WITH_A_CUT += [Alpha(order=0.5), Alpha(order=-1), Alpha(order=0.99), TotalVariation()]


@both_precisions
@pytest.mark.parametrize("divergence", WITH_A_CUT, ids=lambda d: d.kind)
def test_past_the_cut_the_conjugate_goes_on_along_its_tangent(
    divergence: FDivergence, dtype: torch.dtype
) -> None:
    at = torch.tensor([divergence.cut(dtype)], dtype=dtype)
    slope = divergence.ratio(at)
    for distance in (0.0, 1.0, 100.0, 1e6):
        y = at + distance
        torch.testing.assert_close(
            divergence.conjugate(y), divergence.conjugate(at) + (y - at) * slope, rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            derivative(divergence.conjugate, y),
            slope,
            rtol=1e-3 if dtype == torch.float32 else 1e-7,
            atol=0,
        )
        torch.testing.assert_close(divergence.ratio(y), slope, rtol=0, atol=0)
        assert divergence.past_cut(y).item() == (distance > 0)
        assert derivative(divergence.log_ratio, y + 1).item() == 0
    before, after = at - 1e-3 * at.abs(), at + 1e-3 * at.abs()
    assert divergence.conjugate(before) < divergence.conjugate(at) < divergence.conjugate(after)
    assert divergence.ratio(before) < slope


@both_precisions
@pytest.mark.parametrize("divergence", WITH_A_CUT, ids=lambda d: d.kind)
def test_at_the_cut_the_ratio_keeps_its_digits(divergence: FDivergence, dtype: torch.dtype) -> None:
    """Rounding y by one unit changes the ratio by little: at worst by 1 % where float32 ends
    before the ratio is 100.
    """
    at = torch.tensor([divergence.cut(dtype)], dtype=dtype)
    near = torch.nextafter(at, torch.full_like(at, -1e9))
    change = 1 - divergence.ratio(near) / divergence.ratio(at)
    worst = (
        (0.01 if dtype == torch.float32 else 1e-9)
        if divergence.kind == "total_variation"
        else 1e4 * torch.finfo(dtype).eps
    )
    assert 0 <= change.item() < worst


@both_precisions
def test_where_the_cut_of_a_pole_is(dtype: torch.dtype) -> None:
    """Where the ratio is `max_ratio`, unless float32 ends before: 1 + 0.1 / sqrt(128 epsilon)
    for the total variation.
    """
    for kind in POLES:
        for max_ratio in (20.0, 100.0):
            divergence = TypeAdapter(Divergence).validate_python(
                {"kind": kind, "max_ratio": max_ratio}
            )
            at = torch.tensor(divergence.cut(dtype), dtype=dtype)
            reached = (
                min(max_ratio, 1 + 0.1 / math.sqrt(128 * torch.finfo(dtype).eps))
                if kind == "total_variation"
                else max_ratio
            )
            assert divergence.ratio(at).item() == pytest.approx(
                reached, rel=1e-2 if dtype == torch.float32 else 1e-9
            )
    assert 1 - pole_cut(1, torch.float32) == pytest.approx(64 * 2**-23)
    with pytest.raises(ValidationError, match="greater than 1"):
        ReverseKL(max_ratio=1)


@every_member
def test_past_cut_marks_where_the_tangent_acts(divergence: FDivergence) -> None:
    """Of y = 99 % of a pole and the pole, and of y around 44.36 for the exponential."""
    pole = POLES.get(divergence.kind, 1.0)
    y = torch.tensor([-50.0, 0.0, 0.89 * pole, pole, 44.0, 45.0, 1e6])
    from_a_pole = [False, False, False, True, True, True, True]
    expected = (
        from_a_pole if divergence.kind in POLES else [False] * 5 + [divergence.kind == "kl"] * 2
    )
    assert divergence.past_cut(y).tolist() == expected


# Cressie-Read orders that have names of their own.

CRESSIE_READ = [
    (2.0, HalfPearson(), 1.0),
    (0.5, SquaredHellinger(), 2.0),
    (-1.0, Neyman(), 0.5),
    (1.00001, KL(), 1.0),
    (0.99999, KL(), 1.0),
    (0.00001, ReverseKL(), 1.0),
    (-0.00001, ReverseKL(), 1.0),
]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("order", "named", "factor"), CRESSIE_READ, ids=lambda x: getattr(x, "kind", str(x))
)
def test_orders_that_have_a_name(order: float, named: FDivergence, factor: float) -> None:
    """f = factor * the named f, so that the conjugate is factor f*(y / factor) and the ratio
    that of y / factor.
    """
    alpha, close = (
        Alpha(order=order),
        {"rtol": 2e-4 if 0 < min(abs(order), abs(1 - order)) < 0.01 else 1e-12, "atol": 1e-9},
    )
    x = torch.linspace(0.05, 5, 100, dtype=torch.float64)
    torch.testing.assert_close(alpha.f(x), factor * named.f(x), **close)
    y = torch.linspace(-6, 0.4, 65, dtype=torch.float64)
    torch.testing.assert_close(alpha.conjugate(y), factor * named.conjugate(y / factor), **close)
    torch.testing.assert_close(alpha.ratio(y), named.ratio(y / factor), **close)


@both_precisions
@pytest.mark.parametrize(
    "order", [-3.0, -0.5, 0.3, 0.9, 0.99, 0.999, 1.001, 1.01, 1.1, 2.0, 3.0, 10.0]
)
def test_every_order_is_finite_up_to_a_million(order: float, dtype: torch.dtype) -> None:
    alpha = Alpha(order=order)
    y = (
        torch.cat([wide(dtype), torch.tensor([1 / (1 - order), alpha.cut(dtype)], dtype=dtype)])
        .sort()
        .values
    )
    assert (alpha.ratio(y).diff() >= -1e-6 * alpha.ratio(y)[1:]).all()
    for values in (
        alpha.conjugate(y),
        derivative(alpha.conjugate, y),
        alpha.ratio(y).square(),
        derivative(alpha.log_ratio, y),
    ):
        assert values.isfinite().all()
    close = (
        {"rtol": 1e-3, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-6, "atol": 1e-13}
    )
    torch.testing.assert_close(derivative(alpha.conjugate, y), alpha.ratio(y), **close)
    assert not alpha.log_ratio(y).isnan().any()


@pytest.mark.parametrize(("order", "name"), [(1, "kl"), (0.0, "reverse_kl")])
def test_orders_that_are_limits(order: float, name: str) -> None:
    with pytest.raises(ValidationError, match=f"is a limit that has its own name: {name}"):
        Alpha(order=order)


@pytest.mark.oracle
def test_the_surrogate_of_total_variation() -> None:
    """At most smoothing / 2 below |x - 1| / 2, and its ratio nears 1 between -1/2 and 1/2, and 0
    below.
    """
    x, y = torch.linspace(0, 10, 101, dtype=torch.float64), double(-0.7, -0.4, 0.4)
    for smoothing in (1.0, 0.1, 0.01):
        surrogate = TotalVariation(smoothing=smoothing)
        gap = (x - 1).abs() / 2 - surrogate.f(x)
        assert (gap >= 0).all()
        assert (gap <= smoothing / 2).all()
        torch.testing.assert_close(
            surrogate.ratio(y),
            double(0, max(0, 1 - smoothing * 0.8 / 0.6), 1 + smoothing * 0.8 / 0.6),
        )
    with pytest.raises(ValidationError, match=r"greater than or equal to 0\.01"):
        TotalVariation(smoothing=0.001)


# A divergence from its f alone.


@pytest.mark.oracle
@every_member
def test_a_numeric_conjugate_is_the_closed_form(divergence: FDivergence) -> None:
    """Also of an f that is not normalised: adding 3 + 2 x changes nothing."""
    numeric = NumericDivergence(function=lambda x: divergence.f(x) + 3 + 2 * x)
    y = inside(divergence, torch.linspace(-12, 12, 241, dtype=torch.float64))
    torch.testing.assert_close(
        numeric.conjugate(y), divergence.conjugate(y), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        derivative(numeric.conjugate, y), divergence.ratio(y), rtol=1e-8, atol=1e-10
    )
    torch.testing.assert_close(numeric.ratio(y), divergence.ratio(y), rtol=1e-8, atol=1e-10)
    clear = (y - ZERO_UP_TO.get(divergence.kind, -math.inf)).abs() > 1e-6
    torch.testing.assert_close(
        numeric.log_ratio(y)[clear], divergence.log_ratio(y)[clear], rtol=1e-8, atol=1e-8
    )
    x = torch.linspace(0.05, 5, 50, dtype=torch.float64)
    torch.testing.assert_close(numeric.f(x), divergence.f(x), rtol=1e-10, atol=1e-12)


@both_precisions
@every_member
def test_a_numeric_conjugate_is_finite_up_to_a_million(
    divergence: FDivergence, dtype: torch.dtype
) -> None:
    numeric = NumericDivergence(function=divergence.f)
    y = torch.cat([-torch.logspace(-6, 6, 13, dtype=dtype), torch.logspace(-6, 6, 13, dtype=dtype)])
    for values in (
        numeric.conjugate(y),
        derivative(numeric.conjugate, y),
        numeric.ratio(y).square(),
    ):
        assert values.dtype == dtype
        assert values.isfinite().all()
    torch.testing.assert_close(
        derivative(numeric.conjugate, y), numeric.ratio(y), rtol=1e-5, atol=0
    )
    assert not numeric.log_ratio(y).isnan().any()
    if divergence.kind != "total_variation" and divergence.kind != "alpha":
        at = torch.tensor(numeric.cut(torch.float64), dtype=torch.float64)
        assert numeric.log_ratio(at).item() == pytest.approx(
            0.99 * exponent_cut(torch.float64) if divergence.kind not in POLES else math.log(100)
        )
        assert numeric.past_cut(y).any().item() == (divergence.kind in (*POLES, "kl"))


def test_a_numeric_conjugate_without_gradients_around() -> None:
    numeric = NumericDivergence(function=KL().f)
    y = torch.tensor([-1.0, 0.5])
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            torch.testing.assert_close(numeric.conjugate(y), KL().conjugate(y))
            torch.testing.assert_close(numeric.log_ratio(y), y)


def test_a_numeric_divergence_in_a_recipe() -> None:
    adapter: TypeAdapter = TypeAdapter(Divergence)
    by_name = adapter.validate_python("oracles:hellinger")
    assert by_name == NumericDivergence(function="oracles:hellinger")
    trust = {TRUST: ("oracles",)}
    assert adapter.validate_json(by_name.model_dump_json(), context=trust) == by_name
    assert NumericDivergence(function=oracles.hellinger).model_dump(
        mode="json"
    ) == by_name.model_dump(mode="json")
    torch.testing.assert_close(by_name.ratio(double(-1.0, 0.5)), double(0.25, 4))
    local = NumericDivergence(function=lambda x: (x - 1) ** 2)
    assert local.model_dump(mode="json")["function"].startswith("callable:test_divergences:")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("kl", "expected a callable x -> f\\(x\\) or its \"module:function\", got 'kl'"),
        (3, "expected a callable"),
        ("oracles:missing", "function = 'oracles:missing' cannot be imported"),
        (lambda x: (x - 1).abs() / 2, "is not strictly convex: f'"),
        (lambda x: -((x - 1) ** 2), "is not strictly convex: f'"),
        (lambda x: torch.log(x - 1), "expected finite ones"),
        (lambda x: ((x - 1) ** 2).sum(), "expected f to map x of shape"),
    ],
)
def test_functions_that_make_no_divergence(function: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NumericDivergence(function=function)


@every_member
def test_any_shape(divergence: FDivergence) -> None:
    y = torch.linspace(-3, 3, 24, dtype=torch.float64)
    for function in (
        divergence.f,
        divergence.conjugate,
        divergence.log_ratio,
        divergence.ratio,
        divergence.past_cut,
    ):
        torch.testing.assert_close(
            function(y.abs().reshape(2, 3, 4)).flatten(), function(y.abs()), rtol=0, atol=0
        )


def test_by_name_and_by_dict() -> None:
    adapter: TypeAdapter = TypeAdapter(Divergence)
    assert len({cls().kind for cls in BUILT_IN}) == len(BUILT_IN)
    assert set(BY_HAND) == {cls().kind for cls in BUILT_IN}
    assert set(members(Divergence)) == {*BUILT_IN, NumericDivergence}
    for cls in BUILT_IN:
        for given in (cls().kind, {"kind": cls().kind}, cls()):
            assert adapter.validate_python(given) == cls()
        assert adapter.validate_json(cls().model_dump_json()) == cls()


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(
        ValidationError,
        match=(
            r"unknown divergence 'soft-chi2': did you mean 'soft_chi2'\?.*known are alpha, "
            r"half_pearson, "
        ),
    ):
        TypeAdapter(Divergence).validate_python("soft-chi2")
