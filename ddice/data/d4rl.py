"""D4RL's layout: flat columns in an HDF5 file, `terminals` and `timeouts` being terminations and
truncations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddice.data.arrays import read_arrays
from ddice.data.columns import ColumnNames, advice, read_table
from ddice.data.robomimic import is_robomimic, read_robomimic
from ddice.data.source import Source

COLUMNS = {
    "observations": "observations",
    "actions": "actions",
    "rewards": "rewards",
    "terminals": "terminations",
    "timeouts": "truncations",
    "next_observations": "next_observations",
}
"""D4RL's names, and those of `read_arrays`."""

REQUIRED = ("observations", "actions", "rewards", "terminals")
SAYS_NOTHING = ("infos", "metadata", "virtual")
"""What D4RL files hold besides: facts about the simulator and its policy that no transition
needs.
"""


def read_hdf5(
    path: Path, name: str, episode_steps: int | None, columns: ColumnNames | None = None
) -> Source:
    """Read an HDF5 file in D4RL's or robomimic's layout, or with the columns that `columns` names.
    Raises ValueError for another kind of file and for what the readers of these refuse.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _require_inside(file)
            if columns is not None:
                return read_table(Nodes(file), name, columns=columns, episode_steps=episode_steps)
            if is_robomimic(file):
                return read_robomimic(file, name)
            if "episode_0" in file:
                raise ValueError(
                    "expected D4RL's columns, got episodes, as Minari writes them: give the id "
                    "of the dataset"
                )
            found = {key: _values(node) if key in COLUMNS else None for key, node in file.items()}
    except (OSError, RuntimeError, KeyError) as error:  # h5py raises each of them for damage
        raise ValueError(
            f"cannot be read as HDF5 ({error}): it is truncated, or another kind of file"
        ) from error
    return read_d4rl(found, name, episode_steps)


def _require_inside(file: Any) -> None:
    """Raise ValueError for links that lead out of the file, which are not followed, or nowhere."""
    for key in file:
        outside = type(file.get(key, getlink=True)).__name__ == "ExternalLink"
        if outside or file.get(key) is None:
            raise ValueError(f"expected {key} in the file itself, got a link that leads elsewhere")


class Nodes(Mapping[str, Any]):
    """The columns of an open HDF5 file, those in groups under their path; only what is asked for
    is read.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Any:
        return _values(self._file[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def read_d4rl(columns: Mapping[str, Any], name: str, episode_steps: int | None) -> Source:
    """Read D4RL's columns, N rows each: observations, actions, rewards, terminals, and where they
    are there timeouts and next_observations.

    A termination ends the task, a timeout only the episode. Without next_observations the row of a
    timeout is dropped, because what came after it was not written down. Without timeouts, see
    `episode_steps` of `read_arrays`. Raises ValueError for missing and malformed columns.
    """
    for key in REQUIRED:
        if key not in columns:
            raise ValueError(
                f"expected the columns {', '.join(REQUIRED)} of D4RL, got "
                f"{', '.join(columns) or 'none'}: {key!r} is missing ({advice(columns)})"
            )
    source = read_arrays(
        {ours: columns[theirs] for theirs, ours in COLUMNS.items() if theirs in columns},
        name,
        episode_steps=episode_steps,
    )
    if source.episode is None:
        note = (
            "no timeouts, so nobody knows where episodes end: the rows are independent "
            "transitions; episode_steps= cuts them into episodes"
        )
        source.notes.append(note)
    ignored = sorted(set(columns) - set(COLUMNS) - set(SAYS_NOTHING))
    if ignored:
        source.notes.append(f"ignored: {', '.join(ignored)}")
    return source


def _values(node: Any) -> Any:
    """An array, or the nested dict of arrays that a group of observations is."""
    return (
        {key: _values(inner) for key, inner in node.items()} if hasattr(node, "items") else node[()]
    )
