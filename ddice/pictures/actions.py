"""One decision in pictures: candidates and the chosen action over the density of the behaviour
and over Q, for two-dimensional actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ddice.core.randomness import randn
from ddice.data import Transitions
from ddice.diffusion.samplers import Diffusion, DiffusionSampler, Sampler
from ddice.diffusion.solvers import PUBLISHED
from ddice.diffusion.trained_prior import TrainedPrior
from ddice.pictures.maze import Maze, draw_maze, position_columns
from ddice.pictures.style import DENSITY_MAP, GREY, INK, VALUE_MAP, VERMILLION, colour_bar, panels
from ddice.policies.engines import QCallable
from ddice.policies.policy import Policy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELLS, NODES = 80, 61  # per axis: of the density, of Q
NEAREST = 200  # rows of the data that stand for one state
NARROWER = 0.5  # times Scott's bandwidth, which is meant for a single bump; behaviour has several
LEAST_BANDWIDTH = 0.03
ARROW = 0.6  # of a cell's side: the length of an action of 1
SMALL = 9


@dataclass(frozen=True)
class ActionView:
    """What there is to see at one state, all in [-1, 1]^2; grids have the first action along
    columns and the second along rows.

    q: None where there is no Q.
    """

    candidates: np.ndarray  # (K, 2) in the bounds
    chosen: int
    density: np.ndarray  # (CELLS, CELLS), integrates to 1
    source: str  # of the density
    q: np.ndarray | None  # (NODES, NODES) at np.linspace(-1, 1, NODES) in each axis

    @property
    def action(self) -> np.ndarray:
        """The chosen action (2,)."""
        return np.asarray(self.candidates[self.chosen])


def density_grid(actions: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Kernel density (cells, cells) over [-1, 1]^2 of actions (N, 2) in it; a kernel that is cut by
    the bounds is scaled up to mass 1 again.

    The mean of the cells times 4 is 1. Gaussian kernels, `NARROWER` times Scott's bandwidth std
    N^(-1/6) in each dimension.
    """
    centres = (np.arange(cells) + 0.5) / cells * 2 - 1
    bandwidth = np.maximum(NARROWER * actions.std(0) * len(actions) ** (-1 / 6), LEAST_BANDWIDTH)
    kernels = np.exp(
        -0.5 * ((centres - actions[:, :, None]) / bandwidth[:, None]) ** 2
    )  # (N, 2, cells)
    kernels /= kernels.sum(-1, keepdims=True)
    return np.asarray(kernels[:, 1].T @ kernels[:, 0]) / len(actions) * (cells / 2) ** 2


@torch.no_grad()
def q_grid(policy: Policy, observation: Tensor, q: QCallable, nodes: int = NODES) -> np.ndarray:
    """Q (nodes, nodes) at one flat observation (S,), members reduced as the policy ranks by
    them.
    """
    line = torch.linspace(-1, 1, nodes, device=policy.device, dtype=torch.float32)
    second, first = torch.meshgrid(line, line, indexing="ij")
    actions = torch.stack([first, second], -1).reshape(-1, 2)
    values = q(observation.expand(len(actions), -1), actions).reshape(-1, nodes, nodes)
    return policy.config.selection.scores(values).cpu().numpy()


@torch.no_grad()
def behaviour_actions(
    policy: Policy,
    observation: Tensor,
    *,
    data: Transitions | None = None,
    prior: TrainedPrior | None = None,
    samples: int = 4000,
) -> tuple[np.ndarray, str]:
    """Actions (N, 2) of the behaviour at one flat observation (S,), and where they come from.

    From the first of: `prior`; the actions of the `NEAREST` rows of `data` (distance in deviations
    of each dimension); the policy's own sampler without its guidance, which is the prior for guided
    and selected policies.
    """
    if prior is None and data is not None:
        rows = _nearest(data, observation, NEAREST)
        return data.actions[rows].cpu().numpy(), f"actions of the {len(rows)} nearest rows"
    if prior is not None:
        sampler: Sampler = DiffusionSampler(
            Diffusion(prior=prior.config, solver=PUBLISHED, clip_denoised=True),
            prior.encoder,
            prior.averaged,
            None,
        )
        source = "samples of the prior"
    else:
        sampler = policy.sampler
        imitates = policy.config.notes.get("extractor") in ("weighted_bc", "gaussian_bc")
        if isinstance(sampler, DiffusionSampler):
            sampler = DiffusionSampler(sampler.config, sampler.encoder, sampler.network, None)
        source = (
            "samples of the policy itself"
            if imitates or not isinstance(sampler, DiffusionSampler)
            else "samples of the prior"
        )
    noise = randn(0, "pictures/behaviour", 0, (1, samples, 2)).to(observation.device)
    return sampler(observation[None], noise)[0].clamp(-1, 1).cpu().numpy(), f"{samples:,} {source}"


def _nearest(data: Transitions, observation: Tensor, count: int) -> Tensor:
    std = torch.tensor(data.spec.normalizer.std, device=data.device, dtype=torch.float32)
    distance = ((data.observations - observation.to(data.device)) / std).square().sum(-1)
    return distance.topk(min(count, len(data)), largest=False).indices


def flat_observations(policy: Policy, observation: Any) -> Tensor:
    """One native observation, or a batch of them, as (B, S) where the policy is."""
    flat = policy.spec.observations.flatten(observation)
    tensor = torch.as_tensor(flat, dtype=torch.float32, device=policy.device)
    return tensor.reshape(-1, policy.spec.observations.size)


def view_actions(
    policy: Policy,
    observation: Any,
    *,
    data: Transitions | None = None,
    prior: TrainedPrior | None = None,
    q: QCallable | None = None,
    seed: int | None = None,
    samples: int = 4000,
) -> list[ActionView]:
    """One view for each state of `observation` (one, or a batch, as `policy.act` takes them).

    The candidates and the chosen one are those of `policy.act(observation[i], deterministic=True)`,
    or of `seed=seed`. The behaviour is that of `behaviour_actions`. q: (observations (B, S),
    actions (B, 2)) -> (M, B) or (B,), in place of the policy's own; one with one candidate has
    none. Raises ValueError for a policy whose actions are not two-dimensional.
    """
    if policy.spec.actions.size != 2:
        raise ValueError(
            f"expected a policy of 2-dimensional actions, got {policy.spec.actions.size} "
            "dimensions: a plane cannot show them"
        )
    observations = flat_observations(policy, observation)
    critic = policy.q if q is None else q
    views = []
    for state in observations:
        choice = policy.choose(state, deterministic=seed is None, seed=seed)
        actions, source = behaviour_actions(policy, state, data=data, prior=prior, samples=samples)
        views.append(
            ActionView(
                candidates=choice.candidates[0].clamp(-1, 1).cpu().numpy(),
                chosen=int(choice.chosen[0]),
                density=density_grid(actions),
                source=source,
                q=None if critic is None else q_grid(policy, state, critic),
            )
        )
    return views


def decision(
    policy: Policy,
    observation: Any,
    *,
    data: Transitions | None = None,
    prior: TrainedPrior | None = None,
    q: QCallable | None = None,
    maze: Maze | None = None,
    seed: int | None = None,
) -> Figure:
    """A row for each state: behaviour and candidates, Q and candidates; first, with `maze`,
    where it is. Arguments as for `view_actions`.
    """
    views = view_actions(policy, observation, data=data, prior=prior, q=q, seed=seed)
    states = flat_observations(policy, observation).cpu().numpy()
    figure, axes = panels(len(views), 2 + (maze is not None), height=3.4)
    for row, (view, state) in enumerate(zip(views, states, strict=True)):
        if maze is not None:
            _draw_state(axes[row, 0], maze, state[position_columns(policy.spec)], view)
        _draw_density(axes[row, -2], view, last=row == len(views) - 1)
        _draw_q(figure, axes[row, -1], view, last=row == len(views) - 1)
    if maze is not None:
        axes[0, 0].set_title("where the state is\n(actions as arrows)", fontsize=SMALL)
    axes[0, -2].set_title(f"behaviour\n({views[0].source})", fontsize=SMALL)
    axes[0, -1].set_title("Q\n(what candidates are ranked by)", fontsize=SMALL)
    handles, labels = axes[0, -2].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=SMALL
    )
    return figure


def _draw_state(axes: Any, maze: Maze, position: np.ndarray, view: ActionView) -> None:
    draw_maze(axes, maze)
    for action in view.candidates:
        _arrow(axes, position, action * ARROW * maze.side, GREY, 1.0)
    _arrow(axes, position, view.action * ARROW * maze.side, VERMILLION, 2.2)
    axes.plot(*position, "o", color=INK, markersize=7, zorder=7)


def _arrow(axes: Any, start: np.ndarray, step: np.ndarray, colour: str, width: float) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", start + step, start, arrowprops=arrow, zorder=6)


def _draw_density(axes: Any, view: ActionView, last: bool) -> None:
    from matplotlib.colors import PowerNorm

    # The square root shows the thin tails too: candidates are drawn from them.
    norm = PowerNorm(0.5, vmin=0, vmax=float(view.density.max()))
    axes.imshow(
        view.density,
        origin="lower",
        extent=(-1, 1, -1, 1),
        cmap=DENSITY_MAP,
        norm=norm,
        interpolation="bilinear",
    )
    _draw_actions(axes, view, last)


def _draw_q(figure: Any, axes: Any, view: ActionView, last: bool) -> None:
    if view.q is None:
        axes.text(
            0.5,
            0.5,
            "no Q:\nthis policy has one candidate",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=GREY,
        )
    else:
        line = np.linspace(-1, 1, len(view.q))
        drawn = axes.contourf(line, line, view.q, levels=14, cmap=VALUE_MAP)
        colour_bar(figure, drawn, axes, "Q")
    _draw_actions(axes, view, last)


def _draw_actions(axes: Any, view: ActionView, last: bool) -> None:
    others = np.delete(view.candidates, view.chosen, axis=0)
    axes.plot(
        *others.T,
        "o",
        color="white",
        markeredgecolor=INK,
        markersize=6,
        linestyle="",
        clip_on=False,
        zorder=6,
        label="candidates",
    )
    axes.plot(
        *view.action,
        "*",
        color=VERMILLION,
        markeredgecolor="white",
        markersize=16,
        linestyle="",
        clip_on=False,
        zorder=7,
        label="chosen",
    )
    axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.set_ylabel("action 2", fontsize=SMALL)
    axes.tick_params(labelsize=8)
    if last:
        axes.set_xlabel("action 1", fontsize=SMALL)
