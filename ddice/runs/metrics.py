"""The metrics of a run, read back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ddice.core.reading import parse_json, read_bytes
from ddice.parts.loop import IDENTITY, METRICS_LIMIT, WATCHER, read_place
from ddice.parts.watcher import Watcher

STAGES = ("prior", "backend", "calibration", "extractor", "joint")
EXPECTED = "_expected"  # "mean_ratio_expected" is what "mean_ratio" should be

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
    for number, line in enumerate(read_bytes(path, METRICS_LIMIT).splitlines(), 1):
        try:
            record = parse_json(line)
            read_place(record)
        except ValueError as error:
            warnings.warn(
                f"{path}, line {number} cannot be read and is left out ({error})",
                UserWarning,
                stacklevel=3,
            )
        else:
            yield record


def own_looks(content: bytes, watchers: Sequence[Watcher]) -> tuple[bytes, dict[str, list[int]]]:
    """The lines of a metrics file without the looks of others than these watchers, whose identity
    counts: what they saw may be of another policy. Beside it the steps of the looks, by watcher.
    """
    steps: dict[str, list[int]] = {watcher.name: [] for watcher in watchers}
    own = {(watcher.name, watcher.identity) for watcher in watchers}
    kept = []
    for line in content.splitlines(keepends=True):
        try:
            record = parse_json(line)
            _, step = read_place(record)
            look = (record[WATCHER], record[IDENTITY]) if WATCHER in record else None
        except (ValueError, KeyError):  # whoever reads the file says so
            look = None
        if look in own:
            steps[record[WATCHER]].append(step)
        if look is None or look in own:
            kept.append(line)
    return b"".join(kept), steps
