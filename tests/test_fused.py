"""The kernels of the fused engine: their numbers in Triton's interpreter, and what they need of
a GPU, found without one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_graph import make, program

from ddice.policies.engines import layout
from ddice.policies.engines.fused import fused_plan

HERE = Path(__file__).parent
SHARED = 227 * 1024  # bytes that one block can have
with_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="needs triton: pip install 'ddice[triton]'"
)


def lines(script: str, **environment: str) -> list[Any]:
    """What a script of this folder prints, in a process of its own: Triton reads its environment
    when it is imported.
    """
    path = os.pathsep.join(
        [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run(
        [sys.executable, str(HERE / script)], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@with_triton
def test_kernels_make_the_decisions_of_eager() -> None:
    """Candidates and choices, ties apart: in float32 to 1e-5 of the largest, in tf32 and float16
    to 2e-3. NaN stays with its state.
    """
    found = lines("fused_cases.py", TRITON_INTERPRET="1")
    assert len(found) > 30
    assert not [
        case for case in found if max(case[2].values()) > (1e-5 if case[1] == "float32" else 2e-3)
    ]
    for dtype in ("tf32", "float16"):  # it is that indeed
        assert any(case[2]["candidates"] > 1e-6 for case in found if case[1] == dtype)


@with_triton
@pytest.mark.slow
def test_kernels_fit_compute_capability_9() -> None:
    """The published and the default networks: shared memory for two blocks at once, no register
    spilled, no NaN replaced by a bound.
    """
    found = lines("fused_compile.py", TRITON_INTERPRET="0")
    # The default critic has LayerNorm behind both hidden layers: two phases more.
    assert len(found) == 2 * 3 * (13 + 3) + 2 * 3 * (8 + 5)
    assert not [case for case in found if case[3]["shared"] > SHARED // 2]
    assert not [case for case in found if case[3]["spills"] or case[3]["drops NaN"]]


def test_without_cuda() -> None:
    with pytest.raises(
        ValueError,
        match=(
            r"engine 'fused' needs a CUDA device; this policy is on cpu: policy\.to\('cuda'\) "
            r"first, or engine='eager'"
        ),
    ):
        make().compile("fused", dtype="float16")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ddice.policies.engines.kernels", None)
    monkeypatch.delattr("ddice.policies.engines.kernels", raising=False)
    with pytest.raises(
        ImportError, match=r"engine 'fused' needs triton .*: pip install 'ddice\[triton\]'"
    ):
        fused_plan(program(make()))


@pytest.mark.parametrize("engine", ["auto", "reference", "eager", "onnx", "graph"])
def test_only_fused_has_other_precisions(engine: str) -> None:
    with pytest.raises(
        ValueError,
        match=(
            rf"engine '{engine}' computes in float32, got dtype='float16': engine='fused' "
            r"offers it"
        ),
    ):
        make().compile(engine, dtype="float16")  # type: ignore[arg-type]


def test_memory_of_a_layout() -> None:
    """Every weight and row lies where a task's tree says, and nothing overlaps."""
    policy = make()
    sampler = fused_layout(policy)
    taken: list[tuple[int, int]] = []
    for phase, _ in sampler.few:
        for task in phase:
            terms, _, size = task[0], task[1], task[2]
            for term in terms:
                taken.append((term[3], term[3] + term[1] * term[5]))
                assert term[5] >= size
    assert all(
        before[1] <= after[0]
        for before, after in zip(sorted(taken), sorted(taken)[1:], strict=False)
    )
    assert max(end for _, end in taken) <= len(sampler.weights)
    assert all(start % layout.ALIGNED == 0 for start, _ in taken)


def fused_layout(policy: Any) -> layout.Layout:
    from ddice.policies.engines.fused import _lay_out

    found = program(policy)
    return _lay_out(
        found.generator.network, found.observations, len(found.generator.times), "float32"
    )  # type: ignore[union-attr]


def test_blocks_cover_all_candidates_and_columns() -> None:
    """Tiles of 16 x 32 over 40 candidates and 50 columns of 3 members: 3 * 2 * 3; beside it 64 x
    16 over 40 and 16: 1.
    """
    task = partial(layout.Tree, layout.Tree(), layout.Tree())
    assert (
        layout.blocks(
            layout.Tree(task(50, 16, 32, 3, layout.Tree()), task(16, 64, 16, 1, layout.Tree())), 40
        )
        == 18 + 1
    )
