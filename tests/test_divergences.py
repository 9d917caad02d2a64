from __future__ import annotations

import math

import pytest
import torch
from oracles import brute_force_conjugate
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ddice.divergences import BUILT_IN, KL, Divergence, FDivergence, exponent_cut

E = math.e
# By hand from the formulas: kind -> ([(x, f(x))], [(y, conjugate(y), ratio(y))]).
BY_HAND = {
    "kl": (
        [(0, 1), (0.5, 0.5 - 0.5 * math.log(2)), (2, 2 * math.log(2) - 1), (E, 1)],
        [(-1, 1 / E - 1, 1 / E), (0, 0, 1), (1, E - 1, E), (2, E * E - 1, E * E)],
    ),
    "pearson": ([(0, 1), (0.5, 0.25), (3, 4)], [(-3, -1, 0), (-2, -1, 0), (-1, -0.75, 0.5), (0, 0, 1), (2, 3, 2)]),
    "half_pearson": ([(0, 0.5), (0.5, 0.125), (3, 2)], [(-3, -0.5, 0), (-1, -0.5, 0), (-0.5, -0.375, 0.5), (0, 0, 1), (2, 4, 3)]),
    "piecewise": (
        [(0, 1), (0.5, 0.5 - 0.5 * math.log(2)), (3, 4)],
        [(-1, 1 / E - 1, 1 / E), (0, 0, 1), (2, 3, 2), (4, 8, 3)],
    ),
    "soft_chi2": (
        [(0, 1), (0.5, 0.5 - 0.5 * math.log(2)), (3, 2)],
        [(-1, 1 / E - 1, 1 / E), (0, 0, 1), (2, 4, 3), (4, 12, 5)],
    ),
}
ZERO_UP_TO = {"pearson": -2.0, "half_pearson": -1.0}  # the ratio is zero for y up to here; the other members are positive everywhere
every_member = pytest.mark.parametrize("divergence", [cls() for cls in BUILT_IN], ids=lambda d: d.kind)
both_precisions = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def derivative(function, y: Tensor) -> Tensor:
    y = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(y).sum(), y)
    return gradient


def double(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def kinks_and_neighbours(dtype: torch.dtype) -> Tensor:
    """The points where some formula changes branch, and the closest numbers on both sides."""
    kinks = torch.tensor([0.0, -1.0, -2.0, exponent_cut(dtype)], dtype=dtype)
    return torch.cat([torch.nextafter(kinks, torch.full_like(kinks, -1e9)), kinks, torch.nextafter(kinks, torch.full_like(kinks, 1e9))])


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
    y = torch.linspace(-6, 3, 91, dtype=torch.float64)
    torch.testing.assert_close(divergence.conjugate(y), brute_force_conjugate(divergence.f, y), rtol=0, atol=3e-8)


@every_member
def test_ratio_is_the_derivative_of_the_conjugate(divergence: FDivergence) -> None:
    y = torch.cat([torch.linspace(-12, 12, 241, dtype=torch.float64), kinks_and_neighbours(torch.float64)])
    torch.testing.assert_close(derivative(divergence.conjugate, y), divergence.ratio(y), rtol=1e-12, atol=1e-15)


@every_member
def test_fenchel_equality_at_the_ratio(divergence: FDivergence) -> None:
    """f(x) + f*(y) = x y holds at x = ratio(y), and only there."""
    y = torch.linspace(-12, 12, 241, dtype=torch.float64)
    x = divergence.ratio(y)
    torch.testing.assert_close(divergence.f(x) + divergence.conjugate(y), x * y, rtol=1e-12, atol=1e-12)
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
def test_log_ratio_is_finite_exactly_where_the_ratio_is_positive(divergence: FDivergence, dtype: torch.dtype) -> None:
    y = wide(dtype)
    log_ratio = divergence.log_ratio(y)
    assert not log_ratio.isnan().any()
    zero = y <= ZERO_UP_TO.get(divergence.kind, -math.inf)
    assert (log_ratio[zero] == -math.inf).all()
    assert log_ratio[~zero].isfinite().all()
    torch.testing.assert_close(divergence.ratio(y), log_ratio.exp(), rtol=0, atol=0)


@both_precisions
@every_member
def test_everything_is_finite_up_to_a_million(divergence: FDivergence, dtype: torch.dtype) -> None:
    y = wide(dtype)
    for values in (divergence.conjugate(y), derivative(divergence.conjugate, y), divergence.ratio(y)):
        assert values.dtype == dtype
        assert values.isfinite().all()
    assert (divergence.ratio(y) >= 0).all()


@both_precisions
@every_member
def test_ratio_never_decreases(divergence: FDivergence, dtype: torch.dtype) -> None:
    ratio = divergence.ratio(wide(dtype).sort().values)
    assert (ratio.diff() >= -1e-6 * ratio[1:]).all()


@every_member
def test_single_precision_agrees_with_double(divergence: FDivergence) -> None:
    y = torch.linspace(-20, 20, 401, dtype=torch.float64)
    close = {"rtol": 3e-6, "atol": 1e-7}
    torch.testing.assert_close(divergence.conjugate(y.float()).double(), divergence.conjugate(y.float().double()), **close)
    torch.testing.assert_close(divergence.ratio(y.float()).double(), divergence.ratio(y.float().double()), **close)


@every_member
def test_conjugate_keeps_its_digits_near_zero(divergence: FDivergence) -> None:
    """f*(y) = y + O(y^2): a formula like exp(y) - 1 would lose every digit of y = 1e-6 in single precision."""
    y = torch.tensor([-1e-6, 1e-6])
    torch.testing.assert_close(divergence.conjugate(y), y, rtol=2e-6, atol=0)


def test_the_cut_leaves_room_for_a_square() -> None:
    assert exponent_cut(torch.float32) == pytest.approx(44.3614, abs=1e-4)
    assert exponent_cut(torch.float64) == pytest.approx(354.8914, abs=1e-4)


@both_precisions
def test_kl_goes_on_along_its_tangent(dtype: torch.dtype) -> None:
    kl, cut = KL(), exponent_cut(dtype)
    at = torch.tensor([cut], dtype=dtype)
    slope = at.exp()
    for distance in (0.0, 1.0, 100.0, 1e6):
        y = at + distance
        torch.testing.assert_close(kl.conjugate(y), kl.conjugate(at) + (y - at) * slope, rtol=1e-6, atol=0)
        torch.testing.assert_close(derivative(kl.conjugate, y), slope, rtol=1e-6, atol=0)
        torch.testing.assert_close(kl.ratio(y), slope, rtol=1e-6, atol=0)
    near = torch.tensor([cut - 1e-3, cut + 1e-3], dtype=dtype)
    low, high = kl.conjugate(near)
    assert (high - low).item() == pytest.approx((near[1] - near[0]).item() * slope.item(), rel=2e-3)


@every_member
def test_past_cut_marks_where_the_tangent_acts(divergence: FDivergence) -> None:
    y = torch.tensor([-50.0, 0.0, 44.0, 45.0, 1e6])
    expected = [False, False, False, True, True] if divergence.kind == "kl" else [False] * 5
    assert divergence.past_cut(y).tolist() == expected


@every_member
def test_any_shape(divergence: FDivergence) -> None:
    y = torch.linspace(-3, 3, 24, dtype=torch.float64)
    for function in (divergence.f, divergence.conjugate, divergence.log_ratio, divergence.ratio):
        torch.testing.assert_close(function(y.abs().reshape(2, 3, 4)).flatten(), function(y.abs()), rtol=0, atol=0)


def test_by_name_and_by_dict() -> None:
    adapter: TypeAdapter = TypeAdapter(Divergence)
    assert len({cls().kind for cls in BUILT_IN}) == len(BUILT_IN)
    assert set(BY_HAND) == {cls().kind for cls in BUILT_IN}
    for cls in BUILT_IN:
        for given in (cls().kind, {"kind": cls().kind}, cls()):
            assert adapter.validate_python(given) == cls()
        assert adapter.validate_json(cls().model_dump_json()) == cls()


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(ValidationError, match=r"unknown divergence 'soft-chi2': did you mean 'soft_chi2'\?.*known are half_pearson, kl, "):
        TypeAdapter(Divergence).validate_python("soft-chi2")
