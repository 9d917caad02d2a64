"""OGBench's layout: `terminals` is where a trajectory is cut, `masks` is 0 where the task is
done. They are different things.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ddice.data.arrays import column_of, flags, read_arrays
from ddice.data.source import Source

KEYS = ("observations", "actions", "rewards", "masks", "terminals", "next_observations", "valids")


def is_ogbench(names: Mapping[str, object]) -> bool:
    """Whether columns of these names can only be OGBench's, or are too few to know whose they
    are (which `read_ogbench` then says).
    """
    return bool({"terminals", "masks", "valids"} & set(names)) and not {
        "terminations",
        "truncations",
        "episode_ids",
        "timeouts",
    } & set(names)


def read_ogbench(columns: Mapping[str, np.ndarray], name: str) -> Source:
    """Read the columns of an OGBench .npz, N rows each: observations, actions, rewards, masks,
    terminals, in any of its three forms.

    Regular (with next_observations): a row is a transition, terminals marks the last one of a
    trajectory. Compact (with valids): rows with valids = 0 hold a trajectory's last observation and
    no transition. As published (with neither): those are the rows with terminals = 1. A row
    terminates where masks = 0; trajectories go on after that, so terminations can lie inside an
    episode. Raises ValueError when rewards or masks are missing, as in the goal-conditioned files,
    and says how to add them.
    """
    _require(columns)
    arrays = {
        key: columns[key]
        for key in ("observations", "actions", "rewards", "next_observations")
        if key in columns
    }
    has_next, count = "next_observations" in columns, len(columns["actions"])
    masks, terminals, valids = (
        flags(column_of(columns, key), count, key) for key in ("masks", "terminals", "valids")
    )
    source = read_arrays(
        {**arrays, "truncations": ~valids if "valids" in columns and not has_next else terminals},
        name,
    )
    if len(masks) != count:
        raise ValueError(f"expected masks with one number per row, {count}, got {len(masks)}")
    source.terminations = ~masks[source.rows]
    if (
        not has_next
    ):  # what reading arrays calls dropped is here no loss: such a row is only an observation
        source.notes, source.dropped_rows, source.unpaid_episodes = [], 0, 0
        inside = terminals[:-1] & valids[:-1] & valids[1:] if "valids" in columns else terminals[:0]
        if inside.any():
            source.notes.append(
                f"{int(inside.sum())} terminals lie within trajectories, which end where valids "
                "is 0: the rows after them are taken to go on"
            )
        source.recorded_rewards = source.recorded_episode = source.kept_episodes = None
    return source


def _require(columns: Mapping[str, np.ndarray]) -> None:
    missing = [
        key
        for key in ("observations", "actions", "terminals", "rewards", "masks")
        if key not in columns
    ]
    if not missing:
        return
    what = f"got {', '.join(sorted(columns))} without {' and '.join(missing)}"
    if missing == ["masks"]:
        raise ValueError(
            f"{what}: in an OGBench file terminals is where a trajectory is cut, and masks, 0 "
            "where the task is done, must say what terminates; in a D4RL file terminals is "
            "what terminates, and timeouts must say what is cut. Add the one that is missing "
            "(all ones, or zeros, if that never happens), or name the columns terminations "
            "and truncations"
        )
    if "rewards" in missing and len(missing) < 3:
        raise ValueError(
            f"{what}: this is a goal-conditioned OGBench file, which has no task yet. Save it "
            "with rewards, one per row, and masks, 0 where the task "
            'is done and 1 elsewhere: np.savez("task.npz", **dict(np.load("play.npz")), '
            'rewards=rewards, masks=masks); the "singletask" datasets of '
            "ogbench.make_env_and_datasets have both"
        )
    raise ValueError(f"expected the columns of an OGBench file, {', '.join(KEYS[:5])}, {what}")
