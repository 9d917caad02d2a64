"""AdamW with all parameters of a part in one call."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

EPS = 1e-8  # PyTorch's own


class AdamW:
    """Adam with decoupled weight decay (arXiv 1711.05101): the fused kernel of torch.optim.AdamW,
    bit for bit, without the hooks, groups and records around it, which cost as much on networks
    this small.

    `state`: per parameter "step", "exp_avg" and "exp_avg_sq", as torch.optim.AdamW names them;
    `rate`: the learning rate of the last step.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, betas: tuple[float, float], weight_decay: float
    ):
        self.parameters = list(parameters)
        self.betas, self.weight_decay = betas, weight_decay
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        self.rate: float | None = None

    def forget_gradients(self) -> None:
        """Leave no gradient behind."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move every parameter that has a gradient, at this learning rate."""
        self.rate = rate
        gradients = {p: p.grad for p in self.parameters if p.grad is not None}
        if not gradients:
            return
        trained: list[Tensor] = list(gradients)
        slots = [self.state.get(p) or self._start(p) for p in trained]
        counts = [slot["step"] for slot in slots]
        torch._foreach_add_(counts, 1)
        torch._fused_adamw_(
            trained,
            list(gradients.values()),
            [slot["exp_avg"] for slot in slots],
            [slot["exp_avg_sq"] for slot in slots],
            [],
            counts,
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=EPS,
            amsgrad=False,
            maximize=False,
        )

    def _start(self, parameter: Tensor) -> dict[str, Tensor]:
        self.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        return self.state[parameter]
