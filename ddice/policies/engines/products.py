"""Matrix products with weights that stay the same, each by the kernel of PyTorch that is fastest
for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional

Product = Callable[
    [Tensor, Tensor | None], Tensor
]  # x ((M or 1,) N, in) and what is added, (*M, N or 1, out), (out) or None -> (*M, N, out)
NARROW = 8  # outputs up to which the weight's transpose is faster
WORTH_PACKING = (
    2**20
)  # multiply-adds of a product from which the 10 us that a call of oneDNN takes are made up for
PACKED_GAIN = 1.3  # times faster that packed weights must be, so that no noise of the clock decides
PROBE = (64, 512, 512)  # rows, inputs and outputs of the product that is timed
PROBES = 5


class Products:
    """Makes products, and keeps weights that oneDNN has laid out for itself: once, however many
    numbers of rows they serve.
    """

    def __init__(self) -> None:
        self._packed: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def make(self, weight: Tensor, rows: int, *, silu: bool = False) -> Product:
        """x, plus -> x @ weight + plus, for so many rows and a weight (in, out) or (M, in, out);
        then silu, which only products that `packs` take.
        """
        if self.packs(weight, rows):
            if weight.ndim == 3:
                return partial(_packed_members, [self._pack(member) for member in weight])
            return partial(_packed, self._pack(weight), "swish" if silu else "none")
        assert not silu
        if weight.device.type == "cpu" and weight.ndim == 2 and weight.shape[-1] <= NARROW:
            return partial(_narrow, weight.mT.contiguous())
        return partial(_plain if weight.ndim == 2 else _members, weight)

    @staticmethod
    def packs(weight: Tensor, rows: int) -> bool:
        """Whether the product of so many rows with this weight goes through oneDNN."""
        inputs, outputs = weight.shape[-2:]
        worth = (
            weight.device.type == "cpu"
            and weight.dtype == torch.float32
            and rows * inputs * outputs >= WORTH_PACKING
        )
        return worth and outputs > NARROW and packing_pays()

    def _pack(self, weight: Tensor) -> Tensor:
        key = (weight.data_ptr(), *weight.shape, *weight.stride())
        if key not in self._packed:
            self._packed[key] = (
                weight,
                _reorder(weight),
            )  # the weight too, so that nothing else comes to lie where it lies
        return self._packed[key][1]


def _plain(weight: Tensor, x: Tensor, plus: Tensor | None) -> Tensor:
    return torch.mm(x, weight) if plus is None else torch.addmm(plus, x, weight)


def _members(weight: Tensor, x: Tensor, plus: Tensor | None) -> Tensor:
    x = x.expand(len(weight), *x.shape[-2:])
    return torch.bmm(x, weight) if plus is None else torch.baddbmm(plus, x, weight)


def _narrow(transposed: Tensor, x: Tensor, plus: Tensor | None) -> Tensor:
    if plus is None or plus.ndim == 1:
        return functional.linear(x, transposed, plus)
    return functional.linear(x, transposed).add_(plus)


def _packed(weight: Tensor, activation: str, x: Tensor, plus: Tensor | None) -> Tensor:
    product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise
    if plus is None or plus.ndim == 1:
        return product(x, weight, plus, activation, [], "")
    assert activation == "none"
    return product(x, weight, None, "none", [], "").add_(plus)


def _packed_members(weights: list[Tensor], x: Tensor, plus: Tensor | None) -> Tensor:
    count = len(weights)
    sums = [None] * count if plus is None else plus.squeeze(-2)
    return torch.stack(
        [
            _packed(w, "none", row, p)
            for w, row, p in zip(weights, x.expand(count, *x.shape[-2:]), sums, strict=True)
        ]
    )


def _reorder(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.mT.contiguous())
    return packed


@cache
def packing_pays() -> bool:
    """Whether oneDNN with packed weights multiplies faster than PyTorch's own product, timed once
    for the process.

    MKL runs at its full rate on Intel's processors only: on others this is 1 to 2.3 times as fast.
    False where this PyTorch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    ):
        return False
    rows, inputs, outputs = PROBE
    x, weight = (
        torch.ones(rows, inputs, dtype=torch.float32, device="cpu"),
        torch.ones(inputs, outputs, dtype=torch.float32, device="cpu"),
    )
    plain = partial(_plain, weight, x, None)
    packed = partial(_packed, _reorder(weight), "none", x, None)
    return _fastest(plain) > PACKED_GAIN * _fastest(packed)


def _fastest(call: Callable[[], Tensor]) -> float:
    found = []
    for _ in range(PROBES):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)
