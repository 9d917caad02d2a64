"""The metrics of a run, read back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddice.core.reading import parse_json, read_bytes

STAGES = ("prior", "backend", "extractor", "joint")
EXPECTED = "_expected"  # "mean_ratio_expected" is what "mean_ratio" should be
# Two numbers for each of a dozen metrics every 100 steps: a million steps take 20 MB.
LIMIT = 1 << 30

Curves = dict[tuple[str, str], list[tuple[int, float]]]


def read_metrics(folder: Path) -> Curves:
    """(stage, metric) -> (step, value) pairs of the JSON lines in a metrics folder, in the order
    of the stages. Warns of lines that cannot be read.
    """
    curves: Curves = {}
    for path in (folder / f"{stage}.jsonl" for stage in STAGES):
        if not path.exists():
            continue
        for record in _records(path):
            for name, value in record.items():
                # Neither stage nor step is one; a list, of several seeds, is no single curve.
                if isinstance(value, float):
                    curves.setdefault((record["stage"], name), []).append((record["step"], value))
    return curves


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_bytes(path, LIMIT).splitlines(), 1):
        try:
            record = parse_json(line)
            if not isinstance(record["stage"], str) or not isinstance(record["step"], int):
                raise TypeError("it names no stage and step")
        except (ValueError, TypeError, KeyError) as error:
            warnings.warn(
                f"{path}, line {number} cannot be read and is left out ({error})",
                UserWarning,
                stacklevel=3,
            )
        else:
            yield record
