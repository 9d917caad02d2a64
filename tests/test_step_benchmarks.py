"""benchmarks/steps.py: what it counts, and what its table says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import plain_steps, steps
from benchmarks.render_speed import against_plain, against_plain_table
from ddice.data import Transitions
from ddice.extractors import GaussianBC


@pytest.fixture(scope="module")
def data() -> Transitions:
    return steps.made_up(rows=600)


def test_every_part_beside_its_plain_writing(data: Transitions) -> None:
    """One of each runs; the plain one trains as many numbers, or `stages` raises."""
    products = {
        # An affine layer takes one product forward and two back, the first one only one, because
        # its input needs no gradient.
        "GaussianBC": 3 + 5,
        # Input and output, two for each of its blocks.
        "DiffusionPrior": 3 * (2 + 2 * 3) - 1,
    }
    for name, (stage, plainly) in steps.stages(data).items():
        found = steps.measure(data, stage, plainly, steps=1, rounds=1)
        assert min(found.values()) > 0, (name, found)
        if name in products:
            assert found["products"] == products[name], name


def test_a_part_with_another_network_is_refused(data: Transitions) -> None:
    part = GaussianBC(network={"hidden": (16,)}).build(data.spec)
    with pytest.raises(ValueError, match=r"gaussian_bc trains 294 numbers and its plain"):
        plain_steps.gaussian_bc(data, part, plain_steps.Critic(11, 3, norm=True))


def test_products_are_recorded_with_operands_that_lie_alike() -> None:
    left, right = torch.randn(3, 4), torch.randn(5, 4).T
    with steps.Recorder() as recorded:
        product = left @ right
        left.sum()
    ((function, operands),) = recorded.products
    assert [x.stride() for x in operands] == [left.stride(), right.stride()]
    assert operands[1].data_ptr() != right.data_ptr()
    assert torch.equal(function(*operands), product)


def test_the_table_says_what_was_measured() -> None:
    row = {
        "times_faster": 2.504,
        "over_products": 1.3,
        "ms": 4.0,
        "products_ms": 3.0769,
        "checkpoint_percent": 0.5,
    }
    assert (
        against_plain_table({"Part": row})[-1] == "| Part | **2.50** | 1.30 | 4.00 | 3.08 | 0.50 |"
    )
    about = {"machine": "a CPU", "python": "3.11", "torch": "2.9"}
    results = [
        {"name": name, "measured": day, "checkpoint_every": 1000, "machine": about, "parts": {}}
        for name, day in (("after", "2026-11-28"), ("before", "2026-11-27"))
    ]
    sections = against_plain(results)
    assert [text.partition(":")[0] for text in sections[1:]] == ["before", "after"]
    assert "one for every 1000 steps" in sections[0]
    assert against_plain([]) == []
