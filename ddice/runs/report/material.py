"""What a report is made of: the rows of the comparison that the folder holds, in its order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddice.core.reading import parse_json, read_bytes, read_json
from ddice.runs.comparison.foreign import foreign_results
from ddice.runs.comparison.grid import Cell, Comparison
from ddice.runs.comparison.groups import Group
from ddice.runs.comparison.reading import read_results
from ddice.runs.comparison.store import Result
from ddice.runs.made_with import FILE
from ddice.runs.recipe import Recipe

CONFIG = "comparison.json"
ASSETS = "report"  # the folder beside the page


@dataclass(frozen=True)
class Task:
    """One dataset with the results of every policy on it, seeds in the order of the comparison;
    policies of others have no recipe.
    """

    name: str
    groups: dict[Group, list[Result]]
    recipes: dict[Group, Recipe]  # of the first seed

    @property
    def label(self) -> str:
        """The units of the scores."""
        return next(iter(self.groups.values()))[0].evaluation.label

    @property
    def is_normalised(self) -> bool:
        """Scores are 0 for a random policy and 100 for the reference's expert."""
        return next(iter(self.groups.values()))[0].evaluation.reference is not None


@dataclass(frozen=True)
class Material:
    """A run folder of `ddice compare`, read. missing: cells without a result; left_out: how many
    results are of cells that the comparison has no more; made_with: a line for each process that
    worked in the folder.
    """

    folder: Path
    comparison: Comparison
    tasks: tuple[Task, ...]
    missing: tuple[str, ...]
    left_out: int
    made_with: tuple[dict[str, Any], ...]

    @property
    def seeds(self) -> int:
        """The most that any policy has."""
        return max(len(rows) for task in self.tasks for rows in task.groups.values())


def read_material(folder: Path, trust: Sequence[str] = (), others: Sequence[Path] = ()) -> Material:
    """others: CSV files of other people's results, to stand beside ours. Raises FileNotFoundError
    where the folder holds no comparison or not one result, ValueError for results of another
    comparison only and what `foreign_results` raises; trust: as for `ddice.load_policy`.
    """
    path = folder / CONFIG
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no comparison: expected a folder that was given as --run to ddice "
            "compare"
        )
    comparison = Comparison.read(read_json(path), trust=trust)
    rows = read_results(folder)
    found = {_place(row): row for row in rows}
    tasks: dict[str | None, Task] = {}
    missing = []
    for cell in comparison.cells():
        row = found.pop(_place(cell), None)
        if row is None:
            missing.append(cell.title)
            continue
        name = cell.dataset or str(cell.recipe.data.source)
        task = tasks.setdefault(cell.dataset, Task(name, {}, {}))
        group = (cell.backend, cell.extractor)
        task.groups.setdefault(group, []).append(row)
        task.recipes.setdefault(group, cell.recipe)
    if not tasks:
        raise ValueError(f"{folder} has no result of the comparison in {CONFIG}: run ddice compare")
    for other in others:
        for row in foreign_results(other, rows):
            groups = tasks[row.dataset].groups
            groups.setdefault((row.backend, row.extractor), []).append(row)
    made_with = tuple(_processes(folder / FILE))
    return Material(
        folder, comparison, tuple(tasks.values()), tuple(missing), len(found), made_with
    )


def _place(what: Cell | Result) -> tuple[str | None, str | None, str, int]:
    return what.dataset, what.backend, what.extractor, what.seed


def _processes(path: Path) -> list[dict[str, Any]]:
    """The lines that can be read; nothing else depends on them."""
    found = []
    for line in read_bytes(path).splitlines() if path.exists() else []:
        try:
            one = parse_json(line)
        except ValueError:
            continue
        if isinstance(one, dict):
            found.append(one)
    return found


def alone(recipe: Recipe, group: Group, seeds: Sequence[int]) -> Comparison:
    """A comparison of one policy and the behaviour policy, whose cells have the recipes that they
    have in the comparison which this recipe of the policy is from.
    """
    backend, extractor = group
    if backend is None:  # its recipe plays the unguided prior, and so does its behaviour policy
        return Comparison(recipe=recipe, seeds=tuple(seeds))
    return Comparison(
        recipe=recipe,
        backends={backend: recipe.backend},
        extractors={extractor: recipe.extractor},
        seeds=tuple(seeds),
    )


def slug(*names: str) -> str:
    """A file's name made of others."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-") for name in names)
