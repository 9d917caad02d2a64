"""How much faster decisions are by several threads of PyTorch and ONNX Runtime than by one.

    python benchmarks/threads.py --threads 2

Both sides are timed in turn, each after a call that does not count. Means something only where
nothing else competes for the cores: the smallest ratio of all rounds shows what happens where
something does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.decisions import ACTIONS, NETWORKS, OBSERVATIONS, make_policy
from ddice.policies.policy import Policy

SHAPES = ((1, 4), (1, 32), (50, 32), (1000, 4))
SOLVER = "2M-8"
ROUNDS = {1: 40, 50: 9, 1000: 9}


def seconds(policy: Policy, batch: int, candidates: int, threads: int) -> float:
    torch.set_num_threads(threads)
    source = torch.Generator().manual_seed(0)
    observations, noise = (
        torch.randn(*shape, generator=source)
        for shape in ((batch, OBSERVATIONS), (batch, candidates, ACTIONS))
    )
    policy.decide(observations, noise)
    started = time.perf_counter()
    policy.decide(observations, noise)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    print(
        f"| networks | engine | states x K | times faster by {threads} threads, median | "
        "smallest |\n|---|---|---|---|---|"
    )
    for networks in NETWORKS:
        for engine in ("eager", "onnx"):
            for batch, candidates in SHAPES:
                policies = {}
                for count in (
                    1,
                    threads,
                ):  # ONNX Runtime takes the number of threads when a policy is compiled
                    torch.set_num_threads(count)
                    policies[count] = make_policy(networks, SOLVER, candidates).compile(
                        engine, batch_sizes=(batch,)
                    )  # type: ignore[arg-type]
                pairs = [
                    [seconds(policies[n], batch, candidates, n) for n in (1, threads)]
                    for _ in range(ROUNDS[batch])
                ]
                ratios = [one / several for one, several in pairs]
                print(
                    f"| {networks} | {engine} | {batch} x {candidates} | "
                    f"{statistics.median(ratios):.2f} | {min(ratios):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
