"""Tables with named columns: frames of pandas and polars, and CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TRUTH = {"true": 1.0, "false": 0.0}


def is_frame(item: Any) -> bool:
    """Whether this is a frame of pandas or polars, neither of which is imported."""
    return type(item).__name__ == "DataFrame" and hasattr(item, "columns")


def frame_table(frame: Any) -> Mapping[str, np.ndarray]:
    """The columns of a frame by their names; a column of lists is one array (N, k)."""
    return {str(name): _array(frame[name].to_numpy(), str(name)) for name in frame.columns}


def _array(column: np.ndarray, name: str) -> np.ndarray:
    if column.dtype != object or not all(isinstance(row, list | np.ndarray) for row in column):
        return column
    lengths = sorted({len(row) for row in column})
    if len(lengths) > 1:
        raise ValueError(
            f"expected the lists in the column {name!r} to have one length, got {lengths}"
        )
    return np.stack([np.asarray(row) for row in column])


class CsvTable(Mapping[str, np.ndarray]):
    """The columns of a CSV file by the names in its first row, as float64; true and false are 1
    and 0. Columns that nobody asks for may hold anything.

    Raises ValueError, with the line, for rows of another length, and for what is no number in a
    column that is asked for.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                names = next(reader, [])
                self._rows = [(reader.line_num, row) for row in reader if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"cannot be read as a table in UTF-8: {error}") from error
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected a first row with a name for each column, got {names}")
        for line, row in self._rows:
            if len(row) != len(names):
                raise ValueError(f"line {line}: expected {len(names)} values, got {len(row)}")
        self._places = {name: place for place, name in enumerate(names)}

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._places[name]
        return np.array([_number(row[place], name, line) for line, row in self._rows], np.float64)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _number(text: str, name: str, line: int) -> float:
    word = text.strip().lower()
    try:
        return TRUTH[word] if word in TRUTH else float(word)
    except ValueError:
        raise ValueError(f"line {line}: expected a number in {name!r}, got {text!r}") from None
