"""LeRobot's layout: a folder with `meta/info.json` and tables of Parquet below `data/` (v2 and
v3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddice.core.reading import read_json
from ddice.data.arrays import read_arrays
from ddice.data.columns import ColumnNames, read_table
from ddice.data.source import Source

INFO = "meta/info.json"
OBSERVATION = "observation."
PICTURES = ("image", "video")  # dtypes of features
NEEDED = ("action", "next.reward", "episode_index")


def is_lerobot(path: Path) -> bool:
    """Whether this is the folder of such a dataset."""
    return (path / INFO).is_file()


def lerobot_files(path: Path) -> list[Path]:
    """All that is read of it: the tables in order, and what is said about them."""
    return [path / INFO, *sorted((path / "data").rglob("*.parquet"))]


def read_lerobot(path: Path, name: str, columns: ColumnNames | None) -> Source:
    """Read numbers of observations, actions, `next.reward`, and where episodes end; or what
    `columns` names.

    An episode is a block of `episode_index`, or ends by `next.done`. It terminates where that row
    says `next.success`, else it is cut: `next.done` alone says that it is over, not why. Images are
    left out, which is said. Raises ValueError for data without rewards, and for damaged and
    incomplete ones; ImportError without pyarrow.
    """
    info = read_json(path / INFO)
    features = info.get("features") if isinstance(info, dict) else None
    if not isinstance(features, dict):
        raise ValueError(f"expected {INFO} to list the features of LeRobot, got none")
    table = Tables(lerobot_files(path)[1:])
    _require_whole(table, info)
    if columns is not None:
        return read_table(table, name, columns=columns, episode_steps=None)
    for key in NEEDED:
        if key not in table:
            raise ValueError(
                f"expected the columns {', '.join(NEEDED)}, got {', '.join(table)}: {key!r} is "
                "missing; columns={'rewards': ...} names a column that stands for it"
            )
    pictures = [key for key, about in features.items() if _dtype(about) in PICTURES]
    numbers = [key for key in table if key.startswith("observation") and key not in pictures]
    if not numbers:
        raise ValueError(f"expected observations of numbers, got {', '.join(pictures) or 'none'}")
    terminations, truncations = _ends(table)
    leaves = {key.removeprefix(OBSERVATION): table[key] for key in numbers}
    source = read_arrays(
        {
            "observations": leaves if len(leaves) > 1 else leaves.popitem()[1],
            "actions": table["action"],
            "rewards": table["next.reward"],
            "terminations": terminations,
            "truncations": truncations,
            "episode_ids": table["episode_index"],
        },
        name,
    )
    if pictures:
        source.notes.append(f"images that are not read: {', '.join(pictures)}")
    if "next.success" not in table:
        source.notes.append(
            "there is no next.success, so every episode counts as cut: a success ends none. If "
            "next.done means more than that the recording is over, "
            "columns={'terminations': 'next.done', ...} says so"
        )
    return source


def _dtype(about: Any) -> Any:
    return about.get("dtype") if isinstance(about, dict) else None


def _ends(table: Tables) -> tuple[np.ndarray, np.ndarray]:
    """(terminations, truncations), each (N,) bool."""
    episode = table["episode_index"].reshape(-1)
    last = np.append(episode[1:] != episode[:-1], True)[: len(episode)]
    over = _flags(table, "next.done", last)
    succeeded = _flags(table, "next.success", np.zeros(len(episode), bool))
    return over & succeeded, over & ~succeeded


def _flags(table: Tables, name: str, otherwise: np.ndarray) -> np.ndarray:
    return table[name].reshape(-1).astype(bool) if name in table else otherwise


def _require_whole(table: Tables, info: Mapping[str, Any]) -> None:
    """Raise ValueError where files are missing, as after a download that was stopped."""
    expected = info.get("total_frames")
    if isinstance(expected, int) and expected != table.rows:
        raise ValueError(
            f"expected the {expected:,} rows that {INFO} tells of, got {table.rows:,} below data/: "
            "files are missing; fetch the dataset again"
        )


class Tables(Mapping[str, np.ndarray]):
    """The columns of Parquet files, one below the other; only those that are asked for are read.

    Raises ValueError for files that cannot be read, for columns with gaps, and for lists of several
    lengths in one.
    """

    def __init__(self, files: list[Path]) -> None:
        if not files:
            raise ValueError("expected .parquet files below data/, got none")
        parquet = _parquet()
        self._files = files
        self._names: list[str] = []
        self.rows = 0
        for file in files:
            with _readable(file):
                footer = parquet.ParquetFile(file)
                names = list(footer.schema_arrow.names)
                self.rows += int(footer.metadata.num_rows)
            if self._names and names != self._names:
                raise ValueError(
                    f"{file.name}: expected the columns {', '.join(self._names)} as in "
                    f"{files[0].name}, got {', '.join(names)}"
                )
            self._names = names

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return np.concatenate([self._column(file, name) for file in self._files])

    def _column(self, file: Path, name: str) -> np.ndarray:
        with _readable(file):
            column = _parquet().read_table(file, columns=[name]).column(0).combine_chunks()
        return _array(column, f"{file.name}: {name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _array(column: Any, name: str) -> np.ndarray:
    """A column of numbers as (N,), one of lists as (N, k), and so on inwards."""
    if column.null_count:
        raise ValueError(f"expected {name} without gaps, got {column.null_count} empty places")
    if not hasattr(column, "flatten") or not hasattr(column.type, "value_type"):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    lengths = sorted(set(column.value_lengths().to_pylist()))
    if len(lengths) > 1:
        raise ValueError(f"expected the lists in {name} to have one length, got {lengths}")
    inner = _array(column.flatten(), name)
    return inner.reshape(len(column), lengths[0] if lengths else 0, *inner.shape[1:])


@contextlib.contextmanager
def _readable(file: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise ValueError(
            f"{file.name} cannot be read as Parquet ({error}): it is truncated, or another kind of "
            "file"
        ) from error


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"LeRobot's datasets need the package pyarrow ({error}): pip install 'ddice[lerobot]'"
        ) from error
    return pyarrow.parquet
