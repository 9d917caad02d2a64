"""Training steps as research code writes them: the yardstick of `benchmarks/steps.py`.

The same networks, losses, batch sizes and number of noises as the default parts, by torch.nn
modules and autograd, an optimiser for each network, a loader that collates row by row, ratios that
are computed for each batch, averages parameter by parameter, and metrics that are read at every
step.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ddice.data import Transitions

BETA_MIN, BETA_MAX, T_MIN = 0.1, 20.0, 1e-3
FLOOR, CUT, LARGEST = -10.0, 6.0, 4.6  # of log ratios, and of exponents
DISCOUNT, TEMPERATURE, POLYAK = 0.99, 1.0, 0.005
REACH = 6.0  # deviations to which targets of the advantage are clipped
LOW, HIGH = -5.0, 1.0  # of the Gaussian's log deviation
Metrics = dict[str, float]
Step = Callable[[], Metrics]


def mlp(sizes: list[int], activation: type[nn.Module], norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Score(nn.Module):
    def __init__(self, states: int, actions: int, width: int, blocks: int):
        super().__init__()
        self.first = nn.Linear(states + actions + 4, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            )
            for _ in range(blocks)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, actions))

    def forward(self, states: Tensor, actions: Tensor, t: Tensor) -> Tensor:
        x = self.first(torch.cat([states, actions, t], -1))
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


def noised(actions: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a_t, its velocity, and what networks are told of t (..., 1)."""
    log_alpha = -0.25 * (BETA_MAX - BETA_MIN) * t**2 - 0.5 * BETA_MIN * t
    alpha, sigma = torch.exp(log_alpha), torch.sqrt(1 - torch.exp(2 * log_alpha))
    noise = torch.randn_like(actions)
    told = torch.cat([t, torch.log(alpha / sigma) / 5, alpha, sigma], -1)
    return alpha * actions + sigma * noise, alpha * noise - sigma * actions, told


def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        mine.data.copy_(rate * theirs.data + (1 - rate) * mine.data)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def batches(data: Transitions, size: int) -> Iterator[list[Tensor]]:
    full = data.full()
    mean, std = (torch.tensor(x) for x in (data.spec.normalizer.mean, data.spec.normalizer.std))
    columns = (
        ((full.observations - mean) / std).float(),
        full.actions,
        full.rewards,
        ((full.next_observations - mean) / std).float(),
        full.terminations.float(),
    )
    while True:
        yield from DataLoader(TensorDataset(*columns), size, shuffle=True, drop_last=True)


def conjugate(y: Tensor) -> Tensor:
    """f* of the piecewise divergence."""
    return torch.where(y < 0, torch.exp(y.clamp(max=0)) - 1, y**2 / 4 + y)


def log_ratio_at(y: Tensor) -> Tensor:
    """log (f*)'(y)."""
    return torch.where(y < 0, y, torch.log(y.clamp(min=0) / 2 + 1))


def about_ratios(ratio: Tensor) -> Metrics:
    return {
        "mean_ratio": ratio.mean().item(),
        "effective_sample_size": (ratio.mean() ** 2 / (ratio**2).mean()).item(),
    }


class Critic:
    """V, two Q and their averaged copies."""

    def __init__(self, states: int, actions: int, norm: bool):
        self.value = mlp([states, 256, 256, 1], nn.ReLU, norm=True)
        self.q = nn.ModuleList(
            mlp([states + actions, 256, 256, 1], nn.ReLU, norm=norm) for _ in range(2)
        )
        self.target = copy.deepcopy(self.q)

    def scaled(self, states: Tensor, actions: Tensor, values: Tensor) -> Tensor:
        with torch.no_grad():
            inputs = torch.cat([states, actions], -1)
            q = torch.min(*(critic(inputs) for critic in self.target)).squeeze(-1)
        return (q - values) / TEMPERATURE

    @torch.no_grad()
    def log_ratio(self, states: Tensor, actions: Tensor) -> Tensor:
        return log_ratio_at(self.scaled(states, actions, self.value(states).squeeze(-1)))


def prior(data: Transitions, part: Any) -> Step:
    network = Score(*sizes(data), part.config.network.width, part.config.network.blocks)
    return denoising(data, network, part, None)


def weighted_bc(data: Transitions, part: Any, critic: Critic) -> Step:
    network = Score(*sizes(data), part.model.config.network.width, part.model.config.network.blocks)
    return denoising(data, network, part, critic)


def denoising(data: Transitions, network: nn.Module, part: Any, critic: Critic | None) -> Step:
    agree(part, network)
    loader, averaged = batches(data, part.batch_size), copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> Metrics:
        states, actions, *_ = next(loader)
        t = T_MIN + (1 - T_MIN) * torch.rand(len(states), 1)
        x, velocity, told = noised(actions, t)
        errors = ((network(states, x, told) - velocity) ** 2).sum(-1)
        if critic is not None:
            weights = critic.log_ratio(states, actions).clamp(max=LARGEST).exp()
            errors = weights / weights.mean() * errors
        loss = errors.mean()
        descend(optimizer, loss)
        follow(averaged, network, 0.001)
        return {"loss": loss.item()}

    return step


def backend(data: Transitions, part: Any) -> Step:
    critic = Critic(*sizes(data), norm=part.config.critic.layer_norm)
    agree(part, critic.value, critic.q)
    loader = batches(data, part.batch_size)
    v_optimizer = torch.optim.AdamW(critic.value.parameters(), lr=1e-3)
    q_optimizer = torch.optim.AdamW(critic.q.parameters(), lr=1e-3)

    def step() -> Metrics:
        states, actions, rewards, following, ends = next(loader)
        with torch.no_grad():
            targets = rewards + DISCOUNT * (1 - ends) * critic.value(following).squeeze(-1)
        values = critic.value(states).squeeze(-1)
        y = critic.scaled(states, actions, values)
        v_loss = (conjugate(y) + values / TEMPERATURE).mean()
        descend(v_optimizer, v_loss)
        inputs = torch.cat([states, actions], -1)
        q_loss = sum(((q(inputs).squeeze(-1) - targets) ** 2).mean() for q in critic.q)
        descend(q_optimizer, q_loss)
        follow(critic.target, critic.q, POLYAK)
        losses = {"v_loss": v_loss.item(), "q_loss": q_loss.item()}
        return losses | about_ratios(critic.log_ratio(states, actions).exp())

    return step


def deterministic(data: Transitions, part: Any) -> Step:
    states, actions = sizes(data)
    value = mlp([states, 256, 256, 1], nn.ReLU, norm=True)
    target = copy.deepcopy(value)
    heads = nn.ModuleList(mlp([states + actions, 256, 256, 1], nn.ReLU, norm=True) for _ in "ab")
    agree(part, value, heads)
    loader = batches(data, part.batch_size)
    v_optimizer = torch.optim.AdamW(value.parameters(), lr=1e-3)
    head_optimizer = torch.optim.AdamW(heads.parameters(), lr=1e-3)

    def step() -> Metrics:
        states, actions, rewards, following, ends = next(loader)
        with torch.no_grad():
            targets = rewards + DISCOUNT * (1 - ends) * target(following).squeeze(-1)
        values = value(states).squeeze(-1)
        y = (targets - values) / TEMPERATURE
        v_loss = (conjugate(y) + values / TEMPERATURE).mean()
        descend(v_optimizer, v_loss)
        advantage = (targets - values).detach()
        mean, reach = advantage.mean(), REACH * advantage.std()
        clipped = advantage.clamp(mean - reach, mean + reach)
        inputs = torch.cat([states, actions], -1)
        head_loss = sum(((head(inputs).squeeze(-1) - clipped) ** 2).mean() for head in heads)
        descend(head_optimizer, head_loss)
        follow(target, value, POLYAK)
        losses = {"v_loss": v_loss.item(), "head_loss": head_loss.item()}
        return losses | about_ratios(log_ratio_at(y.detach()).exp())

    return step


def guidance(data: Transitions, part: Any, critic: Critic) -> Step:
    states, actions = sizes(data)
    hidden = list(part.config.guidance.network.hidden)
    network = mlp([states + actions + 4, *hidden, 1], nn.SiLU)
    agree(part, network)
    loader, noises = batches(data, part.batch_size), part.config.guidance.noises_per_action
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)

    def step() -> Metrics:
        states, actions, *_ = next(loader)
        log_ratio = critic.log_ratio(states, actions)
        log_ratio = (log_ratio - torch.logsumexp(log_ratio, 0)).clamp(min=FLOOR)[:, None]
        t = (T_MIN + (1 - T_MIN) * torch.rand(len(states), 1, 1)).expand(-1, noises, 1)
        x, _, told = noised(actions[:, None].expand(-1, noises, -1), t)
        repeated = states[:, None].expand(-1, noises, -1)
        g = network(torch.cat([repeated, x, told], -1)).squeeze(-1)
        exponent = log_ratio - g
        tangent = torch.exp(exponent.clamp(max=CUT)) * (1 + functional.relu(exponent - CUT))
        loss = (tangent + g).mean()
        descend(optimizer, loss)
        return {"loss": loss.item(), "guidance_deviation": g.std().item()}

    return step


def gaussian_bc(data: Transitions, part: Any, critic: Critic) -> Step:
    states, actions = sizes(data)
    network = mlp([states, 256, 256, 2 * actions], nn.ReLU)
    agree(part, network)
    loader = batches(data, part.batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step() -> Metrics:
        states, actions, *_ = next(loader)
        mean, log_std = network(states).chunk(2, -1)
        log_std = LOW + (HIGH - LOW) * torch.sigmoid(log_std)
        normal = torch.distributions.Normal(torch.tanh(mean), log_std.exp())
        weights = critic.log_ratio(states, actions).clamp(max=LARGEST).exp()
        loss = -(weights / weights.mean() * normal.log_prob(actions).sum(-1)).mean()
        descend(optimizer, loss)
        return {"loss": loss.item()}

    return step


def sizes(data: Transitions) -> tuple[int, int]:
    return data.spec.observations.size, data.spec.actions.size


def agree(part: Any, *networks: nn.Module) -> None:
    """Raise ValueError unless a part trains as many numbers as these networks have."""
    ours = sum(p.numel() for p in part.parameters() if p.requires_grad)
    plain = sum(p.numel() for network in networks for p in network.parameters())
    if ours != plain:
        raise ValueError(
            f"{part.kind} trains {ours} numbers and its plain writing {plain}: a default has "
            "changed, and benchmarks/plain_steps.py must follow"
        )
