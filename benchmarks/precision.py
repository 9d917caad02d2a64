"""What float16 and tf32 do to trained policies: actions of the engine "fused" against those of
"eager" in float32, on states of the policies' data.

    python benchmarks/precision.py runs/mine/policy=ddice/pointmaze-umaze-v0

The largest difference of a coordinate within the action bounds: median, 95 % and maximum over the
candidates of 32 states; "the solver itself": against 400 evaluations. Takes folders of policies,
each with the id of the dataset that it was trained on. Without a GPU the kernels run in Triton's
interpreter, some minutes a policy (pip install 'ddice[triton]'). Untrained networks say nothing
about precision: their samples run away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

os.environ["TRITON_INTERPRET"] = (
    "0" if torch.cuda.is_available() else "1"
)  # read when triton is imported

from ddice import Policy, load_dataset, load_policy
from ddice.diffusion.samplers import DiffusionSampler
from ddice.policies.engines import EngineDtype, layout
from ddice.policies.engines.decision import decision_program
from ddice.policies.engines.eager import EagerEngine
from ddice.policies.engines.fused import FusedEngine, FusedRunner, fused_plan

ON_CUDA = torch.cuda.is_available()
OUT = Path(__file__).parent / "results" / "precision.md"
STATES, EXACT = 32, 400
DTYPES: tuple[EngineDtype, ...] = ("float32", "tf32", "float16")


def fused(policy: Policy, dtype: EngineDtype) -> Any:
    """The engine "fused": compiled where there is CUDA, else its kernels called one after the
    other by the interpreter.
    """
    if ON_CUDA:
        return policy.to("cuda").compile("fused", dtype=dtype, batch_sizes=(STATES,)).engine
    program = decision_program(policy.procedure)
    plan = fused_plan(program, dtype)  # type: ignore[arg-type]

    def runner() -> FusedRunner:
        return FusedRunner(program, plan, rows_per_call=2**14)

    return FusedEngine(
        runner,
        lambda call: call,
        batch_sizes=(STATES,),
        rows_per_call=2**14,
        device=torch.device("cpu"),
    )


def errors(got: Tensor, expected: Tensor) -> str:
    """Median, 95 % and largest of the greatest difference of a candidate's coordinates, within
    the bounds.
    """
    found = (got.cpu().clamp(-1, 1) - expected.clamp(-1, 1)).abs().amax(-1).flatten()
    return " | ".join(
        f"{float(value):.1e}" for value in (found.median(), found.quantile(0.95), found.max())
    )


def rows(folder: str, dataset: str) -> Iterator[str]:
    """The rows of one policy."""
    policy = load_policy(folder, device="cpu")
    assert isinstance(policy.sampler, DiffusionSampler)
    observations = load_dataset(dataset).sample(STATES, seed=0, step=0).observations
    source = torch.Generator().manual_seed(0)
    noise = torch.randn(
        STATES, policy.config.candidates, policy.spec.actions.size, generator=source
    )
    expected = EagerEngine(decision_program(policy.procedure), rows_per_call=2**14).decide(
        observations, noise, None
    )
    solver, networks = policy.sampler.config.solver, policy.sampler.config.prior.network.kind
    name = f"| {dataset} | {networks} | {solver.evaluations} x {policy.config.candidates} |"
    for dtype in DTYPES:
        got = fused(policy, dtype).decide(observations, noise, None)
        other = int((got.chosen.cpu() != expected.chosen).sum())
        yield (
            f"{name} {dtype} | {errors(got.candidates, expected.candidates)} | {other} of "
            f"{STATES} |"
        )
    exact = policy.sampler.config.model_copy(
        update={"solver": solver.model_copy(update={"evaluations": EXACT})}
    )
    sampler = DiffusionSampler(
        exact, policy.sampler.encoder, policy.sampler.network, policy.sampler.guidance
    )
    with torch.no_grad():
        yield (
            f"{name} the solver itself | "
            f"{errors(expected.candidates, sampler(observations, noise))} | |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "policies",
        nargs="+",
        metavar="POLICY=DATASET",
        help="the folder of a policy, and the id of its dataset",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not ON_CUDA:
        layout.FEW_ROWS = 0  # the interpreter's time is in the number of tiles
    columns = (
        "| dataset | networks | evaluations x K | arithmetic | median | 95 % | largest | other "
        "choices |"
    )
    lines = [columns, "|" + "---|" * columns.count("| ")]
    for pair in options.policies:
        for line in rows(*pair.split("=", 1)):
            print(line, flush=True)
            lines.append(line)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
