"""Bad values, refused with the array, the first row and the count."""

from __future__ import annotations

import numpy as np

from ddice.data.source import Leaves, Source


def require_finite(values: np.ndarray, name: str, rows: np.ndarray | None = None) -> None:
    """Raise ValueError if (N, ...) `values` hold a NaN or an infinity; rows are counted as in
    the source.
    """
    good = np.isfinite(values)
    if good.all():
        return
    bad = np.flatnonzero(~good.reshape(len(values), -1).all(1))
    row, what = int(bad[0]), values.reshape(len(values), -1)[bad[0]]
    number = what[~np.isfinite(what)][0]
    raise ValueError(
        f"expected finite {name}, got {number} in row "
        f"{row if rows is None else int(rows[row])}; {len(bad)} of {len(values)} rows hold "
        "NaN, infinite or beyond-float32 values: remove or repair them"
    )


BYTES = (
    "vectors of bytes are not supported yet: {name} is uint8 of shape {shape} per step, such as "
    "the RAM of a console; give its numbers as floats (.astype(np.float32) / 255), and wrap the "
    "environment so that it gives the same"
)


def require_vectors(leaves: Leaves) -> None:
    """Raise for observations that networks on flat vectors cannot take: images, discrete states,
    empty leaves.
    """
    for path, leaf in leaves.items():
        name = f"observations[{path!r}]" if path else "observations"
        if leaf.dtype == np.uint8 and leaf.ndim - 1 <= 1:
            raise ValueError(BYTES.format(name=name, shape=leaf.shape[1:]))
        if leaf.dtype == np.uint8 or leaf.ndim - 1 >= 3:
            raise ValueError(
                f"image observations are not supported yet: {name} is {leaf.dtype} of shape "
                f"{leaf.shape[1:]} per step"
            )
        if leaf.ndim == 1 and not path and leaf.dtype.kind in "biu":
            raise ValueError(
                f"discrete observations are not supported yet: {name} holds one {leaf.dtype} "
                "per step; one-hot encode them"
            )
        if leaf.ndim == 1 and not path:
            raise ValueError(
                f"expected {name} of shape (N, S), got {leaf.shape}: use observations[:, None]"
            )
        if 0 in leaf.shape[1:]:
            raise ValueError(
                f"expected {name} with at least one number per step, got shape {leaf.shape}"
            )


def require_continuous(actions: np.ndarray) -> None:
    """Raise for actions that are not (N, A) real numbers."""
    if actions.dtype.kind in "biu":
        raise ValueError(
            f"discrete actions are not supported yet: actions are {actions.dtype} of shape "
            f"{actions.shape}; continuous ones are floats"
        )
    if actions.ndim != 2 or actions.shape[1] == 0:
        hint = ": use actions[:, None]" if actions.ndim == 1 else ""
        raise ValueError(f"expected actions of shape (N, A), got {actions.shape}{hint}")


def require_content(source: Source) -> None:
    """Raise ValueError when nothing is left to learn from."""
    if len(source):
        return
    if source.dropped_rows:
        raise ValueError(
            f"expected at least one transition, got none in {source.name}: all "
            f"{source.dropped_rows} rows end a truncated or unfinished one-step episode "
            "without its next observation; give next_observations"
        )
    raise ValueError(
        f"expected at least one transition, got none in {source.name} ({source.empty_episodes} "
        "empty episodes)"
    )


def require_weights(weights: np.ndarray, name: str) -> None:
    """Raise ValueError unless the weights are finite, nonnegative and not all zero."""
    require_finite(weights, name)
    if (weights < 0).any() or not weights.any():
        row = int(np.flatnonzero(weights < 0)[0]) if (weights < 0).any() else 0
        raise ValueError(
            f"expected {name} >= 0 with at least one above 0, got {weights[row]} in row {row}"
        )
