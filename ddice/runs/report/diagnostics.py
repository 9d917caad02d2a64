"""Of a report: what ratios and alarms say of each policy, and how the numbers came about."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ddice.runs.alarms.report import LABELS, last_numbers
from ddice.runs.comparison.store import MadeOn, Result
from ddice.runs.metrics import read_metrics
from ddice.runs.recipe import Recipe
from ddice.runs.report.material import Material, Task
from ddice.runs.report.tables import Cell, Table, number

DIAGNOSTICS = {
    "mean_ratio": "1 where the ratios hold: mean over a fixed sample of the data",
    "effective_sample_size": "near 0 few rows count, near 1 all do",
    "value": "mean V of that sample",
    "temperature": "given, or settled",
}
CLIP_RATE = "share of actions with a coordinate that was clipped to the bounds"


def diagnostic_table(task: Task, folder: Path, repeats: Sequence[str]) -> Table:
    """Means over seeds; of the alarms those that the metrics in the run folder have."""
    alarms = {
        group: [_alarms(folder / row.folder / "metrics") for row in rows]
        for group, rows in task.groups.items()
    }
    seen = {name for seeds in alarms.values() for numbers in seeds for name in numbers}
    shown = [name for name in LABELS if name in seen]
    columns = {"backend": "", "extractor": ""}
    columns |= {_short(name): hint for name, hint in DIAGNOSTICS.items()}
    columns |= {"clip rate": CLIP_RATE}
    columns |= {_short(name): LABELS[name] for name in shown}
    with_warnings = any(row.alarms for rows in task.groups.values() for row in rows)
    if with_warnings:
        columns["the alarms ask"] = "what was said when a stage of any seed was trained"
    table = Table(columns, repeats=list(repeats))
    for group, rows in task.groups.items():
        cells = [Cell(group[0] or ""), Cell(group[1])]
        cells += [number(mean_of([row.diagnostics for row in rows], one), 2) for one in DIAGNOSTICS]
        clipped = [row.clip_rate for row in rows if not row.foreign]
        cells.append(number(float(np.mean(clipped)) if clipped else None, 2))
        cells += [number(mean_of(alarms[group], name), 3) for name in shown]
        if with_warnings:
            said = dict.fromkeys(text for row in rows for text in row.alarms)
            cells.append(Cell("; ".join(said)))
        table.rows.append(cells)
    return table


def _short(name: str) -> str:
    return name.rpartition("/")[2].replace("_", " ")


def _alarms(metrics: Path) -> dict[str, float]:
    stages = last_numbers(read_metrics(metrics))
    return {name: value for numbers in stages.values() for name, value in numbers.items()}


def mean_of(seeds: Sequence[Mapping[str, float]], name: str) -> float | None:
    """Over the seeds that have the number."""
    found = [numbers[name] for numbers in seeds if name in numbers]
    return float(np.mean(found)) if found else None


def protocol_table(material: Material) -> Table:
    """What was played and trained on every task."""
    columns = dict.fromkeys(
        (
            "task",
            "data",
            "fingerprint",
            "environment",
            "seeds",
            "episodes per seed",
            "evaluation seed",
            "actions",
            "steps: prior, backend, extractor",
            "scores",
        ),
        "",
    )
    table = Table(columns)
    for task in material.tasks:
        first: Result = next(iter(task.groups.values()))[0]
        recipe = next(iter(task.recipes.values()))
        played, steps = first.evaluation, recipe.steps
        seeds = dict.fromkeys(row.seed for rows in task.groups.values() for row in rows)
        lengths = (steps.prior, steps.backend, steps.extractor)
        table.rows.append(
            [
                Cell(task.name),
                Cell(_data(recipe)),
                Cell(first.fingerprint or "not kept"),
                Cell(played.env_id or "unnamed"),
                Cell(", ".join(map(str, seeds))),
                number(len(played.returns), 0),
                Cell(str(played.seed)),
                Cell("deterministic" if played.deterministic else "sampled"),
                Cell(", ".join(f"{length:,}" for length in lengths)),
                Cell(played.label),
            ]
        )
    return table


def _data(recipe: Recipe) -> str:
    """The source, and what is otherwise than unless said."""
    fields = recipe.data.model_dump(mode="json", exclude_defaults=True)
    source = fields.pop("source", "")
    others = "".join(f", {name} {json.dumps(value)}" for name, value in fields.items())
    return f"{source}{others}"


def provenance_table(material: Material) -> Table:
    """Who worked in the folder, with what."""
    columns = dict.fromkeys(("started (UTC)", "command", "machine", "versions"), "")
    table = Table(columns)
    for one in material.made_with:
        machine = [str(one[name]) for name in ("name", "system", "device") if name in one]
        if "cores" in one and "threads" in one:
            machine.append(f"{one['cores']} cores, {one['threads']} threads")
        versions = {"python": one.get("python"), **(one.get("versions") or {})}
        table.rows.append(
            [
                Cell(str(one.get("started", ""))),
                Cell(str(one.get("command", ""))),
                Cell(", ".join(machine)),
                Cell(", ".join(f"{name} {found}" for name, found in versions.items() if found)),
            ]
        )
    return table


def machine_table(material: Material) -> Table:
    """On what, and with what, the policies were trained and played, as their rows say."""
    counts = Counter(
        row.made_on.model_dump_json()
        for task in material.tasks
        for rows in task.groups.values()
        for row in rows
        if row.made_on is not None
    )
    names = ("policies", "machine", "device", "cores, threads", "versions", "code")
    table = Table(dict.fromkeys(names, ""))
    for text, count in sorted(counts.items()):
        made = MadeOn.model_validate_json(text)
        versions = {"python": made.python, **made.versions}
        table.rows.append(
            [
                number(count, 0),
                Cell(f"{made.name}, {made.system}"),
                Cell(made.device),
                Cell(f"{made.cores}, {made.threads}"),
                Cell(", ".join(f"{name} {version}" for name, version in versions.items())),
                Cell(made.code),
            ]
        )
    return table
