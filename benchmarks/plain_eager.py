"""The baseline of the speed measurements: a policy's sampler as research code writes it, with the
policy's own weights.

torch modules, the state repeated for every candidate, noise levels computed on tensors at every
evaluation, the guidance gradient by autograd, candidates to the host and back before Q ranks them.
The solver is singlestep DPM-Solver++(2S) (arXiv 2211.01095), the noise the caller's: its decisions
are the reference's, and a test holds that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddice.diffusion.networks import NORM_EPS, Network
from ddice.diffusion.samplers import DiffusionSampler
from ddice.diffusion.solvers import SingleStep
from ddice.policies.policy import Policy


class PlainNetwork(nn.Module):
    """A network's plan as torch modules, one of them per layer."""

    def __init__(self, network: Network):
        super().__init__()
        self.inputs, self.plan, self.layers = network.inputs, network.plan(), nn.ModuleDict()
        for layer in self.plan:
            if layer.op == "linear":
                module: nn.Module = nn.Linear(*layer.weight.shape)
                module.weight.data, module.bias.data = (
                    layer.weight.detach().T.contiguous(),
                    layer.bias.detach().clone(),
                )
            elif layer.op == "layer_norm":
                module = nn.LayerNorm(len(layer.weight), eps=NORM_EPS)
                module.weight.data, module.bias.data = (
                    layer.weight.detach().clone(),
                    layer.bias.detach().clone(),
                )
            elif layer.op in ("silu", "relu"):
                module = nn.SiLU() if layer.op == "silu" else nn.ReLU()
            else:
                continue
            self.layers[layer.output] = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs (N, in_i) -> (N, out)."""
        values = dict(zip(self.inputs, inputs, strict=True))
        for layer in self.plan:
            x = [values[name] for name in layer.inputs]
            if layer.op == "add":
                y = x[0] + x[1]
            elif layer.op == "concat":
                y = torch.cat(x, dim=-1)
            elif layer.op == "fourier":
                angles = x[0][:, :1] * layer.weight
                y = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
            else:
                y = self.layers[layer.output](torch.cat(x, dim=-1) if len(x) > 1 else x[0])
            values[layer.output] = y
        return y


class PlainQ(nn.Module):
    """The members of an ensemble one after the other."""

    def __init__(self, critic: Network):
        super().__init__()
        layers = [layer for layer in critic.plan() if layer.op == "linear"]
        self.members = [
            [
                (layer.weight[m].detach().T.contiguous(), layer.bias[m].detach().clone())
                for layer in layers
            ]
            for m in range(critic.members[-1])
        ]

    def forward(self, features: Tensor, actions: Tensor) -> Tensor:
        """Features (N, F), actions (N, A) -> (M, N)."""
        found = []
        for member in self.members:
            x = torch.cat([features, actions], dim=-1)
            for i, (weight, bias) in enumerate(member):
                x = functional.linear(x, weight, bias)
                x = x if i == len(member) - 1 else torch.relu(x)
            found.append(x[:, 0])
        return torch.stack(found)


class PlainEager:
    """observations (B, S) and noise (B, K, A) -> actions (B, A) in [-1, 1]; singlestep solver, Q
    a ReLU ensemble, selection by its mean.
    """

    def __init__(self, policy: Policy):
        sampler, config = policy.sampler, policy.config
        assert isinstance(sampler, DiffusionSampler)
        assert isinstance(sampler.config.solver, SingleStep)
        assert sampler.config.solver.spacing == "uniform"
        assert not sampler.config.clip_denoised
        assert sampler.guidance is not None
        assert config.selection.rule == "mean"
        self.device, self.clip_first = policy.device, config.clip_candidates == "before_scoring"
        self.evaluations, self.scale = (
            sampler.config.solver.evaluations,
            sampler.config.guidance_scale,
        )
        self.schedule, self.encoder = sampler.config.prior.schedule, sampler.encoder
        self.score = PlainNetwork(sampler.network).to(self.device)
        self.guidance = PlainNetwork(sampler.guidance).to(self.device)
        self.q = PlainQ(policy.q.critic) if config.candidates > 1 else None  # type: ignore[union-attr]

    def _noise(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        """The guided prediction of noise at times t (N,)."""
        time = self.schedule.features(t)
        with torch.no_grad():
            noise = self.score(features, x, time)
        with torch.enable_grad():
            variable = x.detach().requires_grad_(True)
            gradient = torch.autograd.grad(self.guidance(features, variable, time).sum(), variable)[
                0
            ]
        return noise - self.schedule.sigma(t)[:, None] * self.scale * gradient

    def _clean(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        noise = self._noise(x, t.expand(len(x)), features)
        return (x - self.schedule.sigma(t) * noise) / self.schedule.alpha(t)

    def _advance(self, x: Tensor, clean: Tensor, start: Tensor, end: Tensor) -> Tensor:
        schedule = self.schedule
        factor = torch.expm1(schedule.log_snr(start) - schedule.log_snr(end))
        return (
            schedule.sigma(end) / schedule.sigma(start) * x - schedule.alpha(end) * factor * clean
        )

    def sample(self, features: Tensor, x: Tensor) -> Tensor:
        """Features (N, F), noise (N, A) -> candidates (N, A)."""
        schedule = self.schedule
        times = torch.linspace(
            1.0, schedule.t_min, self.evaluations + 1, dtype=torch.float64, device=x.device
        ).float()
        second_order = (self.evaluations - 1) // 2
        for j in range(0, 2 * second_order, 2):
            start, inner, end = times[j], times[j + 1], times[j + 2]
            r1 = (schedule.log_snr(inner) - schedule.log_snr(start)) / (
                schedule.log_snr(end) - schedule.log_snr(start)
            )
            clean = self._clean(x, start, features)
            inner_clean = self._clean(self._advance(x, clean, start, inner), inner, features)
            x = self._advance(x, clean + (inner_clean - clean) / (2 * r1), start, end)
        for start, end in zip(
            times[2 * second_order : -1], times[2 * second_order + 1 :], strict=True
        ):
            x = self._advance(x, self._clean(x, start, features), start, end)
        return x

    def __call__(self, observations: Tensor, noise: Tensor) -> Tensor:
        batch, count, size = noise.shape
        features = self.encoder(observations.to(self.device)).repeat_interleave(count, 0)
        candidates = self.sample(features, noise.reshape(-1, size).to(self.device)).cpu().numpy()
        x = torch.as_tensor(candidates, device=self.device)
        x = x.clamp(-1, 1) if self.clip_first else x
        if self.q is None:
            return x.clamp(-1, 1)
        with torch.no_grad():
            q = self.q(features, x).mean(0).view(batch, count)
        return x.view(batch, count, size)[
            torch.arange(batch, device=self.device), q.argmax(-1)
        ].clamp(-1, 1)
