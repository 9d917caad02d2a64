"""The episodes that a recipe trains on, and those that it only looks at."""

from __future__ import annotations

from dataclasses import dataclass

from ddice.data import Transitions


@dataclass(frozen=True)
class Split:
    """Two disjoint parts of a dataset, by whole episodes."""

    training: Transitions
    held_out: Transitions | None


def hold_out(data: Transitions, share: float, seed: int) -> Split:
    """About `share` of the episodes apart (of the rows, for independent transitions); 0 keeps all
    for training.

    Raises ValueError for a share that leaves no episode on either side.
    """
    if not share:
        return Split(data, None)
    unit, count = ("rows", len(data)) if data.episode is None else ("episodes", data.spec.episodes)
    kept = round(share * count)
    if not 0 < kept < count:
        none = "no episode is held out" if not kept else "none is left to train on"
        raise ValueError(
            f"data.validation = {share:g} of {count} {unit} is {kept}, so that {none}: expected a "
            f"share between {1 / count:.3g} and {1 - 1 / count:.3g}, or 0 to hold out nothing"
        )
    held_out, training = data.split(share, seed)
    return Split(training, held_out)
