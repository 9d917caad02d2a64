"""Which box the actions live in, and whether they do."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ddice.data.source import Bounds, Source
from ddice.data.spec import BoxActions, lies_aside

ActionBounds = Literal["data"] | tuple[object, object]

ROUNDING = 1e-6
"""Relative excess over a bound that float32 rounding explains; it is clipped in silence."""

UNBOUNDED = 1e30
"""Spaces that mean "no bound" write infinity or the largest float of their dtype."""

CONSTANT_WIDTH = 1e-3
"""Half-width, relative and absolute, given to an action dimension that never changes, whose box
would otherwise have no inside.
"""


def choose_bounds(source: Source, requested: ActionBounds | None) -> BoxActions:
    """The bounds asked for, else those of the action space; (low, high) may be numbers or sequences
    of A numbers.

    Raises ValueError when there are none, or infinite ones, naming `action_bounds="data"`.
    """
    size = source.actions.shape[1]
    if isinstance(requested, str):
        if requested != "data":
            raise ValueError(
                f'expected action_bounds=None, "data" or (low, high), got {requested!r}'
            )
        return _box(*_data_bounds(source))
    if requested is not None:
        if not isinstance(requested, (tuple, list)) or len(requested) != 2:
            raise ValueError(
                f'expected action_bounds=None, "data" or (low, high), got {requested!r}'
            )
        return _box(*(_vector(bound, size) for bound in requested))
    hint = (
        'give action_bounds=(low, high), or action_bounds="data" to take the smallest and '
        "largest action of the dataset"
    )
    if source.bounds is None:
        raise ValueError(
            "expected an action space to read the action bounds from, got none in "
            f"{source.name}: {hint}"
        )
    low, high = source.bounds
    if low.shape != (size,):
        raise ValueError(
            f"expected {low.size} numbers per action as the action space says, got {size}: do "
            "the dataset and the env belong together?"
        )
    if not (np.abs(low) < UNBOUNDED).all() or not (np.abs(high) < UNBOUNDED).all():
        raise ValueError(
            f"expected finite action bounds, got low {low.tolist()}, high {high.tolist()} from "
            f"the action space: {hint}"
        )
    return _box(low, high)


def _data_bounds(source: Source) -> Bounds:
    exact = source.actions.min(0).astype(np.float64), source.actions.max(0).astype(np.float64)
    # what float32 holds of them, as in the table, but where an offset would eat their digits
    rounded = [bound.astype(np.float32).astype(np.float64) for bound in exact]
    offset = lies_aside(*exact)
    low, high = (np.where(offset, *pair) for pair in zip(exact, rounded, strict=True))
    constant = low == high
    if constant.any():
        source.notes.append(
            f"action dimensions {np.flatnonzero(constant).tolist()} never change; their bounds "
            f"are widened by {CONSTANT_WIDTH}"
        )
    margin = np.where(constant, CONSTANT_WIDTH * np.maximum(1.0, np.abs(low)), 0.0)
    return low - margin, high + margin


def _vector(bound: object, size: int) -> np.ndarray:
    try:
        vector = np.asarray(bound, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected action_bounds of numbers, got {bound!r}") from error
    if vector.ndim and vector.shape != (size,):
        raise ValueError(
            f"expected action_bounds of one number or {size}, got shape {vector.shape}"
        )
    return np.broadcast_to(vector, (size,))


def _box(low: np.ndarray, high: np.ndarray) -> BoxActions:
    """Raises ValueError for bounds that are infinite, in the wrong order, or one number in
    float32, in which policies compute.
    """
    if not np.isfinite(low).all() or not np.isfinite(high).all() or not (low < high).all():
        raise ValueError(
            "expected finite action bounds with low < high in every dimension, got low "
            f"{low.tolist()}, high {high.tolist()}"
        )
    with np.errstate(over="ignore"):
        low32, high32 = low.astype(np.float32), high.astype(np.float32)
    bad = ~np.isfinite(low32) | ~np.isfinite(high32) | (low32 >= high32)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise ValueError(
            "expected action bounds that float32 can tell apart, got low "
            f"{low[first]:.17g}, high {high[first]:.17g} in dimension {first}: subtract an offset "
            "from the actions, or give them in other units, here and in the environment"
        )
    return BoxActions(low=tuple(low.tolist()), high=tuple(high.tolist()))


def to_unit(
    source: Source, box: BoxActions, out_of_bounds: Literal["error", "clip"]
) -> tuple[np.ndarray, int]:
    """Actions (N, A) mapped to [-1, 1], float32, and how many rows had to be clipped.

    Raises ValueError with the share and the worst row when actions lie outside by more than
    rounding and `out_of_bounds` is "error".
    """
    low, high = np.asarray(box.low), np.asarray(box.high)
    # Floats are densest around zero: a box that lies aside of it, or is as wide as float32 reaches,
    # needs float64; for all others float32 is as good, and what it ever was.
    dtype = np.float64 if lies_aside(low, high).any() else np.float32
    low, high = low.astype(dtype), high.astype(dtype)
    actions = source.actions.astype(dtype, copy=False)
    excess = np.maximum(np.maximum(low - actions, actions - high), 0)
    scale = np.maximum(np.maximum(np.abs(low), np.abs(high)), high - low)
    tolerance = (ROUNDING * scale).astype(dtype)
    outside = (excess > tolerance).any(1)
    count = int(outside.sum())
    if count and out_of_bounds == "error":
        worst = int((excess / (high - low)).max(1).argmax())
        raise ValueError(
            f"expected actions within low {_short(low)} and high {_short(high)}, but "
            f"{count / len(actions):.2%} of the rows "
            f"({count} of {len(actions)}) lie outside; worst is row {int(source.rows[worst])}: "
            f"{_short(actions[worst])}; "
            'give the right action_bounds, or out_of_bounds="clip" to clip them'
        )
    unit = box.to_unit(np.clip(actions, low, high)).astype(np.float32, copy=False)
    return np.clip(unit, -1, 1, out=unit), count


def _short(values: np.ndarray) -> str:
    return (
        "("
        + ", ".join(f"{value:.6g}" for value in values[:12])
        + (", ..." if len(values) > 12 else "")
        + ")"
    )
