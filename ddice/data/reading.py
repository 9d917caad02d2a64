"""Which reader a source belongs to, and whether the flat cache has done its work already."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddice.data.columns import ColumnNames, read_table
from ddice.data.d4rl import read_d4rl, read_hdf5
from ddice.data.flat import cached
from ddice.data.lerobot import is_lerobot, lerobot_files, read_lerobot
from ddice.data.minari_reader import read_minari
from ddice.data.minari_store import is_minari, locate
from ddice.data.ogbench import is_ogbench, read_ogbench
from ddice.data.source import Source
from ddice.data.tables import CsvTable, frame_table, is_frame

SHOWN = 100  # characters of a name in a message
NOT_ZIPPED = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, MemoryError, KeyError),
)
"""What zipfile and numpy raise for a damaged .npz, and for an encrypted one."""

SUFFIXES = (".npz", ".csv", ".hdf5", ".h5")


def read(
    item: Any,
    name: str,
    *,
    download: bool,
    episode_steps: int | None,
    cache: bool,
    columns: ColumnNames | None = None,
    trust_env: Sequence[str] = (),
) -> Source:
    """Read one source; `name` is that of a dict of arrays or a frame. Raises ValueError, TypeError
    and OSError for what cannot be read.
    """
    if isinstance(item, Mapping) or is_frame(item):
        table = item if isinstance(item, Mapping) else frame_table(item)
        return read_table(table, name, columns=columns, episode_steps=episode_steps)
    path = _path_of(item)
    if path is not None:
        return _from_disk(path, str(item), episode_steps, columns, cache)
    if not isinstance(item, str) and not is_minari(item):
        raise TypeError(
            "expected a Minari id, a MinariDataset, a dict of arrays, a frame of pandas or polars, "
            f"a file or a list of these, got {type(item).__name__}"
        )
    if columns is not None:
        raise ValueError(
            f"expected columns= only for arrays, frames and files, got it for {item}: Minari "
            "names its columns itself"
        )
    if episode_steps is not None:
        raise ValueError(
            "expected episode_steps only for files and arrays without truncations, got it for "
            f"{item}: Minari records them"
        )
    folder, reader = locate(item, download=download), partial(read_minari, item, trust_env)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = (
        None
        if isinstance(item, str)
        else hashlib.blake2b(
            np.asarray(item.episode_indices, np.int64).tobytes(), digest_size=16
        ).hexdigest()
    )
    return (
        cached({"source": str(folder.resolve()), "episodes": chosen}, files, reader)
        if cache
        else reader()
    )


def _path_of(item: Any) -> Path | None:
    """Where a file lies, or a folder of LeRobot; None for what is named otherwise."""
    if not isinstance(item, (str, Path)):
        return None
    try:
        path = Path(item).expanduser()
        named = isinstance(item, Path) or path.suffix.lower() in SUFFIXES
        there = path.is_file() or is_lerobot(path)
        return path.resolve() if named or there else None
    # no such user, a zero byte, too long a name
    except (RuntimeError, ValueError, OSError) as error:
        shown = repr(str(item)[:SHOWN])
        raise ValueError(f"{shown} names no file ({str(error)[:SHOWN]})") from error


def _from_disk(
    path: Path, name: str, episode_steps: int | None, columns: ColumnNames | None, cache: bool
) -> Source:
    """A file or folder, through the cache unless `cache` says no."""
    if is_lerobot(path):
        files = lerobot_files(path)
    else:
        _require_file(path, name)
        files = [path]
    reader = partial(_read_file, path, name, episode_steps, columns)
    named = {} if columns is None else {"columns": dict(columns)}
    identity = {"source": str(path), "episode_steps": episode_steps, **named}
    source = cached(identity, files, reader) if cache else reader()
    source.name = name  # another spelling of the same path is the same entry
    return source


def _require_file(path: Path, name: str) -> None:
    what = (
        f"expected a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file with columns such as "
        "observations and actions"
    )
    if path.is_dir():
        raise IsADirectoryError(
            f"{what}, got the folder {name}: give the file in it; Minari datasets are named by "
            "their id, those of LeRobot are folders with meta/info.json"
        )
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist: {what}")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{what}, got {name}")


def _read_file(
    path: Path, name: str, episode_steps: int | None, columns: ColumnNames | None
) -> Source:
    suffix = path.suffix.lower()
    try:
        if path.is_dir():
            if episode_steps is not None:
                raise ValueError("expected no episode_steps: LeRobot says where episodes end")
            return read_lerobot(path, name, columns)
        if suffix == ".npz":
            return _read_npz(path, name, episode_steps, columns)
        if suffix == ".csv":
            return read_table(CsvTable(path), name, columns=columns, episode_steps=episode_steps)
        return read_hdf5(path, name, episode_steps, columns)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from error


class Columns(Mapping[str, np.ndarray]):
    """The arrays of a .npz; those that nobody asks for are not read."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return np.asarray(self._file[name])
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise TypeError(
                f"expected {name} to be an array of numbers, got Python objects, which are "
                f"pickled in the file and never read: save np.asarray({name}.tolist(), np.float32)"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def _read_npz(
    path: Path, name: str, episode_steps: int | None, columns: ColumnNames | None
) -> Source:
    if not zipfile.is_zipfile(path):
        raise ValueError("cannot be read as a .npz: it is truncated, or another kind of file")
    try:
        with np.load(path, allow_pickle=False) as zipped:
            file = Columns(zipped)
            if columns is not None:
                return read_table(file, name, columns=columns, episode_steps=episode_steps)
            if is_ogbench(file) and "observations" in file:
                if episode_steps is not None:
                    raise ValueError(
                        "expected no episode_steps, because the terminals of an OGBench file "
                        "say where trajectories are cut"
                    )
                return read_ogbench(file, name)
            if "terminals" in file and "timeouts" in file:
                return read_d4rl(file, name, episode_steps)
            return read_table(file, name, columns=None, episode_steps=episode_steps)
    except NOT_ZIPPED as error:
        raise ValueError(f"cannot be read as a .npz ({error}): it is damaged") from error
