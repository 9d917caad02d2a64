"""Results of a comparison by task and by policy, whatever their seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.store import Result

Group = tuple[str | None, str]


def by_dataset(results: Sequence[Result]) -> dict[str | None, list[Result]]:
    """Results by dataset, in order of appearance; None where a comparison names none."""
    found: dict[str | None, list[Result]] = {}
    for result in results:
        found.setdefault(result.dataset, []).append(result)
    return found


def grouped(results: Sequence[Result]) -> dict[Group, list[Result]]:
    """Results of one dataset by (backend, extractor), in order of appearance."""
    groups: dict[Group, list[Result]] = {}
    for result in results:
        groups.setdefault((result.backend, result.extractor), []).append(result)
    return groups


def run_means(results: Sequence[Result]) -> np.ndarray:
    """The mean score of each seed, (R, 1): runs x one task."""
    return np.array([[result.evaluation.mean] for result in results])


def group_name(group: Group) -> str:
    """For people."""
    backend, extractor = group
    return extractor if backend is None else f"{backend} + {extractor}"


def behaviour_of(groups: dict[Group, list[Result]]) -> list[Result]:
    """The results of the behaviour policy, none where there is none."""
    return groups.get((None, BEHAVIOUR), [])


def best_other(groups: dict[Group, list[Result]], group: Group) -> Group | None:
    """The other policy of the highest mean score over seeds; None for a policy alone."""
    others = [other for other in groups if other != group]
    return max(others, key=lambda other: run_means(groups[other]).mean(), default=None)
