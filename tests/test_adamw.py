"""The optimiser of all parts against torch.optim.AdamW, bit for bit, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddice.parts.adamw import AdamW


def parameters() -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=source)) for shape in ((3, 4), (4,), (2,))]


@pytest.mark.oracle
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_adamw(decay: float) -> None:
    """Parameters, moments and counts over steps of falling rates; the last parameter has its
    first gradient at the third step.
    """
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, betas=(0.9, 0.99), weight_decay=decay)
    torchs = torch.optim.AdamW(theirs, betas=(0.9, 0.99), weight_decay=decay, fused=True)
    source = torch.Generator().manual_seed(1)
    for step in range(6):
        mine.forget_gradients()
        torchs.zero_grad(set_to_none=True)
        for a, b in list(zip(ours, theirs, strict=True))[: 3 if step > 1 else 2]:
            a.grad = torch.randn(a.shape, generator=source)
            b.grad = a.grad.clone()
        rate = 0.1 / (1 + step)
        torchs.param_groups[0]["lr"] = rate
        torchs.step()
        mine.step(rate)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            expected = torchs.state.get(b, {})
            assert set(mine.state.get(a, {})) == set(expected)
            for name, value in expected.items():
                assert torch.equal(mine.state[a][name], value), name
    assert [float(mine.state[p]["step"]) for p in ours] == [6, 6, 4]


@pytest.mark.oracle
def test_the_first_step_by_hand() -> None:
    """A first step moves by the rate against the sign of the gradient, and decays by rate times
    weight decay: 2 (1 - 0.1 * 0.5) - 0.1 = 1.8, and up from -2 to -1.8.
    """
    (p,) = (nn.Parameter(torch.tensor([2.0, -2.0, 0.0])),)
    optimizer = AdamW([p], betas=(0.9, 0.999), weight_decay=0.5)
    optimizer.step(0.1)
    assert p.tolist() == [2.0, -2.0, 0.0]
    assert not optimizer.state
    p.grad = torch.tensor([3.0, -5.0, 0.0])
    optimizer.step(0.1)
    assert p.tolist() == pytest.approx([1.8, -1.8, 0.0], rel=1e-6)
    optimizer.forget_gradients()
    assert p.grad is None
