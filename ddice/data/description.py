"""The readable summary of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddice.data.horizon import Horizon
from ddice.data.measures import EpisodeTotals
from ddice.data.spec import FixedGoal, Spec

SATURATED = 0.999
"""An action this close to a bound, in units where the bounds are -1 and 1, counts as saturated."""


@dataclass(frozen=True)
class Provenance:
    """Where transitions come from and what reading them cost."""

    name: str
    dropped_rows: int = 0
    empty_episodes: int = 0
    clipped_rows: int = 0
    notes: tuple[str, ...] = ()
    part_of: str | None = None
    unpaid_episodes: int = 0


@dataclass(frozen=True)
class Description:
    """Counts and ranges of a dataset; `str` of it is a table. Numbers over episodes are None for
    independent transitions.
    """

    name: str
    steps: int
    episodes: int
    return_mean: float | None
    return_min: float | None
    return_max: float | None
    length_mean: float | None
    length_min: int | None
    length_max: int | None
    reward_mean: float
    horizon: Horizon | None
    terminations: int
    truncations: int | None
    dropped_rows: int
    empty_episodes: int
    clipped_rows: int
    action_saturation: tuple[float, ...]
    constant_observations: tuple[int, ...]
    layout: tuple[str, ...]
    view: str
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    env: str | None
    reference: str | None
    fingerprint: str
    part_of: str | None
    unpaid_episodes: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [("dataset", self.name)]
        if self.part_of:
            lines.append(("part of", self.part_of))
        lines.append(
            ("steps", f"{self.steps:,}" + ("" if self.episodes else " (independent transitions)"))
        )
        if self.episodes:
            lines += [
                (
                    "episodes",
                    f"{self.episodes:,} ({self.terminations:,} terminated rows, "
                    f"{self.truncations:,} episodes cut)",
                ),
                (
                    "return",
                    f"mean {self.return_mean:.4g}, min {self.return_min:.4g}, max "
                    f"{self.return_max:.4g}",
                ),
                (
                    "length",
                    f"mean {self.length_mean:.4g}, min {self.length_min}, max {self.length_max}",
                ),
            ]
        else:
            lines.append(("terminations", f"{self.terminations:,}"))
        lines += [
            ("observation", "; ".join(self.layout)),
            ("actions", f"low {_short(self.action_low)}, high {_short(self.action_high)}"),
            (
                "at a bound",
                _short(tuple(round(share, 4) for share in self.action_saturation))
                + " of the steps, per dimension",
            ),
            ("view", self.view),
            ("env", self.env or "none recorded: give env= to evaluate"),
            ("reference", self.reference or "none: returns are reported raw"),
        ]
        for label, count in (
            ("dropped rows", self.dropped_rows),
            ("empty episodes", self.empty_episodes),
            ("clipped rows", self.clipped_rows),
        ):
            if count:
                lines.append((label, f"{count:,}"))
        if self.constant_observations:
            lines.append(
                (
                    "constant",
                    f"observation dimensions {_short(self.constant_observations)} never change",
                )
            )
        lines += [("note", note) for note in self.notes]
        lines.append(("fingerprint", self.fingerprint))
        return "\n".join([*_aligned(lines), *(["", self.ahead] if self.horizon else [])])

    @property
    def ahead(self) -> str:
        """How far a critic has to see, as text: rewards, terminations, and what discounts make of
        them. Empty for independent transitions.
        """
        if self.horizon is None:
            return ""
        horizon = self.horizon
        ends = (
            f"{horizon.hazard:.2g} per step, at the end of {horizon.terminated:.0%} of the episodes"
        )
        lines = [
            ("reward", f"mean {self.reward_mean:.4g} per step"),
            ("terminations", ends if horizon.hazard else "none"),
        ]
        if horizon.sparse:
            lines.append(
                ("sparse", f"{horizon.usual_share:.1%} of the rows have one and the same reward")
            )
        table = horizon.table(self.reward_mean)
        return "\n".join(
            [
                *_aligned(lines),
                "",
                table,
                f'discount "horizon" is {horizon.discount:g}: {horizon.reason}',
            ]
        )


def _aligned(lines: list[tuple[str, str]]) -> list[str]:
    return [f"{label:<15}{text}" for label, text in lines]


def _short(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{value:.4g}" for value in values[:12])
    return f"({shown}{', ...' if len(values) > 12 else ''})"


def describe(
    spec: Spec,
    provenance: Provenance,
    observations: Tensor,  # (N, S)
    actions: Tensor,  # (N, A) in [-1, 1]
    terminations: Tensor,  # (N,) bool
    episode: Tensor | None,  # (N,)
    totals: EpisodeTotals | None,
) -> Description:
    """Summarise transitions on the CPU."""
    returns = lengths = truncations = None
    if episode is not None and totals is not None:
        returns, lengths = totals.returns, totals.lengths
        last = torch.diff(episode, append=episode[-1:] + 1) != 0
        never_seen = len(returns) - len(totals.kept)
        truncations = int((last & ~terminations).sum()) + never_seen
    layout, position = [], 0
    for part in spec.observations.parts:
        width = int(np.prod(part.shape))
        layout.append(f"{part.path or 'array'} {part.shape} at {position}..{position + width - 1}")
        position += width
    view = (
        f"fixed goal {_short(spec.view.goal)}, radius {spec.view.radius}"
        if isinstance(spec.view, FixedGoal)
        else "observed"
    )
    low, high = np.asarray(spec.actions.low), np.asarray(spec.actions.high)
    reference = (
        spec.reference
        and f"random {spec.reference.random:.4g}, expert {spec.reference.expert:.4g} "
        f"({spec.reference.source})"
    )
    return Description(
        name=provenance.name,
        steps=spec.transitions,
        episodes=0 if returns is None else len(returns),
        return_mean=None if returns is None else float(returns.mean()),
        return_min=None if returns is None else float(returns.min()),
        return_max=None if returns is None else float(returns.max()),
        length_mean=None if lengths is None else float(lengths.mean()),
        length_min=None if lengths is None else int(lengths.min()),
        length_max=None if lengths is None else int(lengths.max()),
        reward_mean=spec.rewards.mean,
        horizon=spec.horizon,
        terminations=int(terminations.sum()),
        truncations=truncations,
        dropped_rows=provenance.dropped_rows,
        empty_episodes=provenance.empty_episodes,
        clipped_rows=provenance.clipped_rows,
        action_saturation=tuple((actions.abs() >= SATURATED).double().mean(0).tolist()),
        constant_observations=tuple(
            torch.nonzero(observations.amin(0) == observations.amax(0)).squeeze(1).tolist()
        ),
        layout=tuple(layout),
        view=view,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        env=spec.env.id if spec.env else None,
        reference=reference or None,
        fingerprint=spec.fingerprint,
        part_of=provenance.part_of,
        unpaid_episodes=provenance.unpaid_episodes,
        notes=provenance.notes,
    )
