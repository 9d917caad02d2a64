"""Results of a comparison by policy, whatever their seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddice.runs.comparison.store import Result

Group = tuple[str | None, str]


def grouped(results: Sequence[Result]) -> dict[Group, list[Result]]:
    """Results by (backend, extractor), in order of appearance."""
    groups: dict[Group, list[Result]] = {}
    for result in results:
        groups.setdefault((result.backend, result.extractor), []).append(result)
    return groups


def run_means(results: Sequence[Result]) -> np.ndarray:
    """The mean score of each seed, (R, 1): runs x one task."""
    return np.array([[result.evaluation.mean] for result in results])
