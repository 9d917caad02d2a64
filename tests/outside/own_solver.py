"""A solver from outside: Heun's method."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ddice.diffusion.schedule import NoiseSchedule
from ddice.diffusion.solvers import Denoiser, Solver


class Heun(Solver):
    """dy/ds = noise(x, t) with y = x / alpha and s = sigma / alpha, at times equal in sqrt(t): two
    evaluations a step (arXiv 2206.00364).
    """

    kind: Literal["heun"] = "heun"
    evaluations: int = Field(16, ge=2, multiple_of=2, description="two for each step")

    def integrate(
        self, denoiser: Denoiser, x: Tensor, schedule: NoiseSchedule, clip: bool = False
    ) -> Tensor:
        steps = self.evaluations // 2
        times = torch.linspace(1, schedule.t_min**0.5, steps + 1, dtype=torch.float64) ** 2
        alphas, sigmas = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()

        def slope(y: Tensor, i: int) -> Tensor:
            here = alphas[i] * y
            noise = denoiser(here, times[i].to(x))
            if not clip:
                return noise
            clean = ((here - sigmas[i] * noise) / alphas[i]).clamp(-1, 1)
            return (here - alphas[i] * clean) / sigmas[i]

        y = x / alphas[0]
        for i in range(steps):
            step = sigmas[i + 1] / alphas[i + 1] - sigmas[i] / alphas[i]
            first = slope(y, i)
            second = slope(y + step * first, i + 1)
            y = y + 0.5 * step * (first + second)
        return alphas[-1] * y
