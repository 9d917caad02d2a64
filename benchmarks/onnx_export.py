"""The ONNX model that ddice writes against a plain `torch.onnx.export` of the reference sampler.

Both make the same decisions (checked here), both run in ONNX Runtime on one thread, in turns, so
that whatever else the machine does slows both. Needs the extra `onnx`:

    python benchmarks/onnx_export.py --rounds 7
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decisions import make_policy
from ddice.policies.engines.decision import decision_program
from ddice.policies.engines.onnx_model import onnx_model
from ddice.policies.policy import Policy

CASES = (("default", "2M-8", 4), ("published", "2S-15", 4), ("published", "2S-15", 32))
WARM_UPS = 5
CALLS = 20  # of one side in a round


class Reference(nn.Module):
    """The reference engine's decision as one module, for one state."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.sampler = policy.sampler
        self.q = policy.q

    def forward(self, observations: Tensor, noise: Tensor) -> Tensor:
        batch, count, size = noise.shape
        candidates = self.sampler(observations, noise).clamp(-1, 1)
        q = self.q(observations.repeat_interleave(count, 0), candidates.reshape(-1, size))
        best = q.reshape(-1, batch, count).mean(0).argmax(-1)
        return candidates[torch.arange(batch), best]


def session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def plain(policy: Policy, given: tuple[Tensor, Tensor]) -> bytes:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # The exporter by tracing: that by torch.export refuses the solver, whose times are floats.
        file = io.BytesIO()
        names = ["observations", "noise"]
        torch.onnx.export(Reference(policy), given, file, input_names=names, dynamo=False)  # type: ignore[arg-type]
    return file.getvalue()


def ours(policy: Policy) -> bytes:
    size = policy.spec.actions.size
    program = decision_program(policy.procedure)
    model = onnx_model(program, batch=1, low=[-1.0] * size, high=[1.0] * size)
    text: bytes = model.SerializeToString()
    return text


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def compare(networks: str, solver: str, candidates: int, rounds: int) -> str:
    policy = make_policy(networks, solver, candidates)
    source = torch.Generator().manual_seed(0)
    observations = torch.randn(1, policy.spec.observations.size, generator=source)
    noise = torch.randn(1, candidates, policy.spec.actions.size, generator=source)
    export_ours, model_ours = timed(lambda: ours(policy))
    export_plain, model_plain = timed(lambda: plain(policy, (observations, noise)))
    feeds = {"observations": observations.numpy(), "noise": noise.numpy()}
    of_ours = {**feeds, "uniform": np.zeros(1, dtype=np.float32)}  # which the rule "mean" ignores
    runs = {
        "ours": (session(model_ours), ["unit_actions"]),
        "plain": (session(model_plain), None),
    }

    def call(side: str) -> np.ndarray:
        model, outputs = runs[side]
        given = of_ours if side == "ours" else feeds
        result: np.ndarray = model.run(outputs, given)[0]
        return result

    np.testing.assert_allclose(call("ours"), call("plain"), atol=1e-3)
    for side in runs:
        for _ in range(WARM_UPS):
            call(side)
    medians: dict[str, list[float]] = {side: [] for side in runs}
    for _ in range(rounds):
        found: dict[str, list[float]] = {side: [] for side in runs}
        for _ in range(CALLS):
            for side in runs:
                found[side].append(timed(lambda side=side: call(side))[0])  # type: ignore[misc]
        for side in runs:
            medians[side].append(statistics.median(found[side]))
    ratios = [p / o for p, o in zip(medians["plain"], medians["ours"], strict=True)]
    ms = {side: 1e3 * statistics.median(values) for side, values in medians.items()}
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return (
        f"| {networks} | {solver} x {candidates} | {export_ours:.1f} s | {export_plain:.1f} s "
        f"| {ms['ours']:.2f} ms | {ms['plain']:.2f} ms | {statistics.median(ratios):.2f} "
        f"({spread}) |"
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # The exporter by tracing knows no `mT`, which the networks use.
    torch.Tensor.mT = property(lambda x: x.transpose(-2, -1))  # type: ignore[assignment, misc]
    load = os.getloadavg()[0]
    versions = f"torch {torch.__version__}, onnx {onnx.__version__}, onnxruntime "
    print(f"{processor()}, load {load:.1f}; {versions}{onnxruntime.__version__}")
    print("| networks | evaluations x K | export | plain export | decision | plain | ratio |")
    print("|---|---|---|---|---|---|---|")
    for networks, solver, candidates in CASES:
        print(compare(networks, solver, candidates, options.rounds), flush=True)


if __name__ == "__main__":
    main()
