"""Three objectives for the guidance, at equal samples: bias and deviation of the learned gradient
for light, heavy and sparse ratios.

    python benchmarks/guidance_objectives.py        # writes docs/guidance_objectives.md

Actions are normal in one dimension, so that the gradient of log E[w | a_t] is known. Every
objective sees the same data sets (one per seed, all trained together), the same number of noised
actions, the same network and the same optimiser. Contrastive energy prediction gets its K actions
of one state for free here; on a real dataset it would have to generate them.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddice.core.randomness import rand, randint, randn
from ddice.diffusion.guidance import Guidance, bounded_log_ratio, in_sample_loss
from ddice.diffusion.networks import MLP
from ddice.diffusion.schedule import VariancePreserving
from ddice.testing import (
    ExponentialRatio,
    GaussianMixture,
    contrastive_loss,
    quantiles,
    regression_loss,
    threshold_guidance,
)

ROOT = Path(__file__).parent.parent
SCHEDULE, PRIOR, THRESHOLD = VariancePreserving(), GaussianMixture.of([1], [[0.0]], [[0.5]]), 0.6
SEEDS, ACTIONS, BATCH, GROUP, STEPS, RATE, POINTS = tuple(range(8)), 1024, 256, 16, 500, 5e-3, 400
TIMES = (0.05, 0.1, 0.2, 0.4)  # later the gradient is small
CONFIG = Guidance(network=MLP(hidden=(48, 48), activation="silu", initialisation="kaiming"))


@dataclass(frozen=True)
class Ratio:
    """log w of actions (..., 1), and the gradient of log E[w | a_t]."""

    log: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


def exponential(slope: float) -> Ratio:
    ratio = ExponentialRatio.linear([slope])
    return Ratio(ratio.log, PRIOR.gradient(ratio, SCHEDULE))


RATIOS = {
    "light: log w has deviation 1": exponential(2.0),
    "heavy: log w has deviation 3": exponential(6.0),
    "sparse: w = 1 for 12 % of the actions, else 0": Ratio(
        lambda a: torch.where(a[..., 0] > THRESHOLD, 0.0, -torch.inf),
        threshold_guidance(PRIOR, THRESHOLD, SCHEDULE)[1],
    ),
}
# Each takes log w relative to its mean and g, (R, groups, K), and gives one number per seed.
OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "in-sample guidance learning": lambda log_w, g: in_sample_loss(
        log_w, g, CONFIG.exponent_cut
    ).mean((1, 2)),
    "contrastive, weights w": lambda log_w, g: contrastive_loss(log_w.exp(), g).mean(1) / GROUP,
    "contrastive, weights w / sum w": lambda log_w, g: contrastive_loss(
        torch.softmax(log_w, -1), g
    ).mean(1),
    "regression on w": lambda log_w, g: regression_loss(log_w.exp(), g).mean((1, 2)),
}


def train(
    ratio: Ratio, objective: Callable[[Tensor, Tensor], Tensor], steps: int = STEPS
) -> Callable[[Tensor, Tensor], Tensor]:
    """The gradient of the trained networks, (R, N, 1) from x (N, 1) and t."""
    actions = 0.5 * randn(SEEDS, "benchmark/actions", 0, (ACTIONS, 1))
    log_w = ratio.log(actions).float()
    log_mean = torch.logsumexp(log_w, -1) - math.log(ACTIONS)
    log_w, _, _ = bounded_log_ratio(log_w, log_mean, CONFIG.log_floor, None)
    network = CONFIG.build(1, 1, seed=SEEDS)
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0
    )
    nothing = torch.zeros(1, 1, 1, 1)
    for step in range(steps):
        index = randint(SEEDS, "benchmark/rows", step, ACTIONS, (BATCH,))
        a, w = (
            torch.gather(x, 1, index).reshape(len(SEEDS), -1, GROUP)
            for x in (actions[..., 0], log_w)
        )
        t = SCHEDULE.training_times(
            rand(SEEDS, "benchmark/time", step, (BATCH // GROUP, 1)), 2.0
        )  # a group shares its time
        noised = SCHEDULE.noise(
            a[..., None], t, randn(SEEDS, "benchmark/noise", step, (BATCH // GROUP, GROUP, 1))
        )
        g = network(nothing, noised, SCHEDULE.features(t))[..., 0]
        optimizer.zero_grad()
        objective(w, g).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = RATE * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.step()

    def gradient(x: Tensor, t: Tensor) -> Tensor:
        features = SCHEDULE.features(t.float()).reshape(1, 1, -1)
        return network.value_and_gradient(
            nothing[0], x.float()[None].expand(len(SEEDS), -1, -1), features, wrt="actions"
        )[1].detach()

    return gradient


def errors(ratio: Ratio, gradient: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """(bias, deviation over the seeds) in root mean square where guided samples are, relative to
    the exact gradient, over all times.
    """
    clean = quantiles(lambda a: PRIOR.log_density(a) + ratio.log(a), POINTS)
    bias, deviation = [], []
    for i, t in enumerate(torch.tensor(TIMES, dtype=torch.float64)):
        noise = torch.randn(
            POINTS, 1, generator=torch.Generator().manual_seed(i), dtype=torch.float64
        )
        x = SCHEDULE.alpha(t) * clean + SCHEDULE.sigma(t) * noise
        exact, found = ratio.gradient(x, t), gradient(x, t).double()
        size = exact.square().mean()
        bias.append((found.mean(0) - exact).square().mean() / size)
        deviation.append(found.var(0).mean() / size)
    return float(torch.stack(bias).mean().sqrt()), float(torch.stack(deviation).mean().sqrt())


def measure(steps: int = STEPS) -> dict[str, dict[str, tuple[float, float]]]:
    """ratio -> objective -> (bias, deviation); see `errors`."""
    return {
        name: {what: errors(ratio, train(ratio, loss, steps)) for what, loss in OBJECTIVES.items()}
        for name, ratio in RATIOS.items()
    }


def main() -> int:
    torch.set_num_threads(1)
    started = time.perf_counter()
    lines = [
        "# Objectives of the guidance at equal samples",
        "",
        f"Written by `python benchmarks/guidance_objectives.py`: {len(SEEDS)} data sets of "
        f"{ACTIONS} actions, {STEPS} steps on {BATCH} noised ones.",
        "Errors are those of the gradient of log E[w given a_t] where guided samples are, in "
        f"root mean square over t in {list(TIMES)}, relative to",
        "the exact gradient. The contrastive loss gets its contrasting actions of the same "
        "state from the data, which real data do not have.",
        "",
        "| ratio | objective | bias | deviation | both |",
        "|---|---|---|---|---|",
    ]
    for name, row in measure().items():
        for objective, (bias, deviation) in row.items():
            lines.append(
                f"| {name} | {objective} | {bias:.2f} | {deviation:.2f} | "
                f"{math.hypot(bias, deviation):.2f} |"
            )
            print(lines[-1], flush=True)
    (ROOT / "docs" / "guidance_objectives.md").write_text("\n".join(lines) + "\n")
    print(f"{time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
