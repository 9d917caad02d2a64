"""The metrics of a run, read back and drawn."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ddice.core.reading import parse_json, read_bytes
from ddice.pictures.style import panels

STAGES = ("prior", "backend", "extractor", "joint")
EXPECTED = "_expected"  # "mean_ratio_expected" is what "mean_ratio" should be
COLUMNS = 5
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


def plot_metrics(folder: Path, path: Path) -> bool:
    """Every metric of the stages in `folder` against the step, what it should be dashed; False
    when there are none. Raises ImportError without matplotlib.
    """
    curves = read_metrics(folder)
    shown = [key for key in curves if not key[1].endswith(EXPECTED)]
    if not shown:
        return False
    figure, grid = panels(-(-len(shown) // COLUMNS), COLUMNS, width=3, height=2.1)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (stage, name) in zip(grid.flat, shown, strict=False):
        axes.plot(*zip(*curves[stage, name], strict=True), linewidth=1)
        if expected := curves.get((stage, name + EXPECTED)):
            axes.plot(*zip(*expected, strict=True), "--", color="black", linewidth=0.8)
        axes.set_title(f"{stage}: {name}", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.savefig(path)
    return True
