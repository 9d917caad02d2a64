"""Products with fixed weights: every kernel against float64, and which of them is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddice.policies.engines import products
from ddice.policies.engines.products import NARROW, WORTH_PACKING, Products

with_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this PyTorch comes without oneDNN"
)


@pytest.fixture(params=[False, pytest.param(True, marks=with_onednn)], ids=["plain", "packed"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every product by oneDNN, or none."""
    monkeypatch.setattr(products, "packing_pays", lambda: request.param)
    monkeypatch.setattr(products, "WORTH_PACKING", 0)
    return request.param


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("members", [(), (3,)])
@pytest.mark.parametrize("shared", [False, True], ids=["own x", "one x"])
@pytest.mark.parametrize("plus", [None, "row", "rows"])
@pytest.mark.parametrize("outputs", [1, NARROW, NARROW + 1, 40])
def test_a_product(
    packed: bool, members: tuple[int, ...], shared: bool, plus: str | None, outputs: int
) -> None:
    """x @ weight + plus; twice, and the second leaves the first as it was."""
    weight, make = random(*members, 24, outputs), Products()
    row = (*members, 1, outputs) if members else (outputs,)
    added = None if plus is None else random(*(row if plus == "row" else (*members, 7, outputs)))
    product = make.make(weight, 7)
    found = []
    for sign in (1, -1):
        x = sign * random(*(() if shared else members), 7, 24)
        found.append(
            (
                product(x, added),
                (x.double() @ weight.double() + (0 if added is None else added.double())).float(),
            )
        )
    for got, expected in found:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert make.packs(weight, 7) == (packed and outputs > NARROW)


@with_onednn
def test_silu_within_a_packed_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "packing_pays", lambda: True)
    monkeypatch.setattr(products, "WORTH_PACKING", 0)
    x, weight, row = 5 * random(7, 24), random(24, 40), random(40)
    got = Products().make(weight, 7, silu=True)(x, row)
    torch.testing.assert_close(
        got,
        torch.nn.functional.silu(x.double() @ weight.double() + row.double()).float(),
        rtol=1e-5,
        atol=1e-5,
    )


@with_onednn
def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows, and again for other weights."""
    calls = []
    packed = products._reorder
    monkeypatch.setattr(products, "packing_pays", lambda: True)
    monkeypatch.setattr(products, "_reorder", lambda weight: calls.append(weight) or packed(weight))
    make, weight = Products(), random(512, 512)
    for rows in (8, 64, 64):
        make.make(weight, rows)
    assert len(calls) == 1
    make.make(random(2, 512, 512), 8)
    assert len(calls) == 3


def test_only_large_products_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "packing_pays", lambda: True)
    weight, rows = torch.zeros(256, 256), WORTH_PACKING // 256**2
    assert (Products.packs(weight, rows), Products.packs(weight, rows - 1)) == (True, False)
    assert not Products.packs(weight.double(), rows)
    assert not Products.packs(torch.zeros(2**20, NARROW), rows)
    monkeypatch.setattr(products, "packing_pays", lambda: False)
    assert not Products.packs(weight, rows)


@pytest.mark.parametrize(
    ("packed", "expected"), [(0.5, True), (1 / products.PACKED_GAIN, False), (2.0, False)]
)
def test_packing_must_pay(packed: float, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed at 1 against these seconds; found out once."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch comes without oneDNN")
    seconds = iter([1.0, packed])
    monkeypatch.setattr(products, "_fastest", lambda call: next(seconds))
    products.packing_pays.cache_clear()
    try:
        assert [products.packing_pays(), products.packing_pays()] == [expected, expected]
    finally:
        products.packing_pays.cache_clear()


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    products.packing_pays.cache_clear()
    try:
        assert not products.packing_pays()
    finally:
        products.packing_pays.cache_clear()
