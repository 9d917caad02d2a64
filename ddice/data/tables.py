"""Tables with named columns: frames of pandas and polars, and CSV files."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
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


def csv_table(path: Path) -> Mapping[str, np.ndarray]:
    """The columns of a CSV file by the names in its first row, as float64; true and false are 1
    and 0. Raises ValueError, with the line, for what is no number and for rows of another length.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        if not names or len(set(names)) < len(names):
            raise ValueError(f"expected a first row with a name for each column, got {names}")
        rows = [_numbers(row, names, reader.line_num) for row in reader if row]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(names))
    return dict(zip(names, table.T, strict=True))


def _numbers(row: Sequence[str], names: Sequence[str], line: int) -> list[float]:
    if len(row) != len(names):
        raise ValueError(f"line {line}: expected {len(names)} values, got {len(row)}")
    return [_number(text, name, line) for text, name in zip(row, names, strict=True)]


def _number(text: str, name: str, line: int) -> float:
    word = text.strip().lower()
    try:
        return TRUTH[word] if word in TRUTH else float(word)
    except ValueError:
        raise ValueError(f"line {line}: expected a number in {name!r}, got {text!r}") from None
