"""The page of a report: sections of tables and figures, written as one HTML file that needs
nothing else, and the figures as PNG files beside it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ddice.core.storage import write_bytes, write_json
from ddice.runs.comparison.curves_plot import ScoreCurve, score_curves
from ddice.runs.comparison.differences import PAIRED, what_seeds_tell
from ddice.runs.comparison.groups import Group
from ddice.runs.report.diagnostics import (
    diagnostic_table,
    machine_table,
    protocol_table,
    provenance_table,
)
from ddice.runs.report.drawing import Drawing, draw
from ddice.runs.report.figures import (
    Look,
    curve_figure,
    differences_figure,
    heat_figure,
    interval_figure,
    latency_figure,
    profile_figure,
    ratio_figure,
    scores_figure,
    shown_differences,
)
from ddice.runs.report.material import ASSETS, CONFIG, Material, Task, alone, read_material, slug
from ddice.runs.report.tables import (
    Table,
    aggregate_statistics,
    aggregate_table,
    aggregates,
    comparable,
    latency,
    score_table,
)

PAGE, TEMPLATE = "report.html", "page.html"
AGAIN = "again"  # the run folder of a command that repeats something
SIZE = "effective_sample_size"


@dataclass
class Section:
    """A heading with what stands below it."""

    title: str
    notes: list[str] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)


def write_report(
    run: str | Path, *, others: Sequence[str | Path] = (), trust: Sequence[str] = ()
) -> Path:
    """Write report.html into the run folder of a comparison, its figures as PNG files into
    report/, and there the configuration that repeats each policy alone -> the page.

    The same results give the same bytes. others: CSV files of other people's results, to stand
    beside ours. Raises what `read_material` raises, and ImportError with what to install; trust: as
    for `ddice.load_policy`.
    """
    folder = Path(run)
    material = read_material(folder, trust, [Path(other) for other in others])
    repeats = _repeats(material)
    sections = [
        _over_all(material),
        *(_of_task(material, task, repeats) for task in material.tasks),
    ]
    sections += [_protocol(material)]
    text = _rendered(material, sections)
    for section in sections:
        for one in section.drawings:
            write_bytes(folder / ASSETS / f"{one.name}.png", one.png)
    page = folder / PAGE
    write_bytes(page, text.encode())
    return page


def _rendered(material: Material, sections: Sequence[Section]) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("a report needs Jinja2: pip install 'ddice[report]'") from error
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    config = json.dumps(material.comparison.model_dump(mode="json"), indent=1)
    return environment.get_template(TEMPLATE).render(
        title=f"Comparison on {', '.join(task.name for task in material.tasks)}",
        sections=sections,
        warning=what_seeds_tell(material.seeds),
        missing=material.missing,
        left_out=material.left_out,
        whole=_command(CONFIG),
        config=config,
    )


def _command(config: str) -> str:
    return f"ddice compare --config {shlex.quote(config)} --run {AGAIN}"


def _repeats(material: Material) -> dict[str, list[str]]:
    """Of each task a command for each policy; writes the configurations that they read."""
    found: dict[str, list[str]] = {}
    for task in material.tasks:
        commands = []
        for group in task.groups:
            if group not in task.recipes:
                commands.append("")
                continue
            recipe = task.recipes[group]
            names = [name for name in (task.name, *group) if name is not None]
            place = f"{ASSETS}/{slug(*names)}.json"
            seeds = [row.seed for row in task.groups[group]]
            single = alone(recipe, group, seeds)
            write_json(material.folder / place, single.model_dump(mode="json"))
            commands.append(_command(place))
        found[task.name] = commands
    return found


def _over_all(material: Material) -> Section:
    tasks = comparable(material.tasks)
    section = Section(f"Over {len(tasks)} tasks" if len(tasks) != 1 else "Over seeds")
    left = [task.name for task in material.tasks if task not in tasks]
    if left:
        section.notes.append(
            f"Raw returns cannot be averaged with other tasks: {', '.join(left)} stand only below."
        )
    policies = aggregates(tasks)
    if not policies:
        section.notes.append("No policy has a common seed on all of these tasks.")
        return section
    partly = sum(len(task.groups) for task in tasks) - len(policies) * len(tasks)
    if partly:
        section.notes.append("Policies that some of the tasks lack are left out here.")
    section.notes.append(
        "IQM, median, mean, optimality gap (to a score of 100), probability of improvement and "
        "profiles as rliable defines them (Agarwal et al., NeurIPS 2021)."
    )
    section.tables.append(("", aggregate_table(tasks, _command(CONFIG))))
    look = Look([policy.group for policy in policies])
    runs = len(policies[0].scores)
    if runs > 1:
        for name, statistic in aggregate_statistics(tasks).items():
            if len(tasks) == 1 and name == "median":  # that of one task is its mean
                continue
            make = partial(interval_figure, policies, statistic, name, look)
            caption = f"Line: {name}; bar: 95 % stratified bootstrap interval over seeds."
            section.drawings.append(draw(slug("interval", name), name, caption, make))
    make = partial(profile_figure, policies, look)
    caption = "The share of runs with a score above the threshold; bands: 95 %, pointwise."
    section.drawings.append(draw("profile", "Performance profile", caption, make))
    return section


def _of_task(material: Material, task: Task, repeats: dict[str, list[str]]) -> Section:
    curves = [
        curve for rows in task.groups.values() for curve in score_curves(rows, material.folder)
    ]
    commands = repeats[task.name]
    section = Section(task.name, [f"Scores: {task.label}. Last checkpoint. {PAIRED}"])
    section.tables = [
        ("Scores", score_table(task, curves, commands)),
        ("Ratios and alarms, means over seeds", diagnostic_table(task, material.folder, commands)),
    ]
    dataset = material.comparison.datasets.get(task.name)
    if dataset is not None and dataset.published:
        scores = ", ".join(f"{name} {score:.1f}" for name, score in dataset.published.items())
        section.notes.append(f"Published in {dataset.published_by}, not run here: {scores}.")
    if not curves:
        section.notes.append(
            "No learning curves: recipe.evaluation.every was not set, or the metrics are not kept "
            "in this folder."
        )
    section.drawings = list(_drawings(task, curves))
    return section


def _drawings(task: Task, curves: Sequence[ScoreCurve]) -> Iterator[Drawing]:
    look = Look(list(task.groups))
    prefix = slug(task.name)
    make = partial(scores_figure, task, look)
    text = "Bar: mean of the seeds; dots: each seed."
    yield draw(f"{prefix}-scores", "Scores", text, make)
    if len(task.groups) > 1 and shown_differences(task):
        make = partial(differences_figure, task, look)
        text = (
            "Dots: mean over episodes of each seed; tick: their mean; bar: Student's 95 % interval "
            "over seeds, which may leave the frame."
        )
        yield draw(f"{prefix}-differences", "Ahead of the behaviour policy", text, make)
    if sum(backend is not None for backend, _ in task.groups) > 1:
        text = "Mean score of the seeds."
        yield draw(f"{prefix}-heat", "Backend x extractor", text, partial(heat_figure, task))
    if any(latency(rows) is not None for rows in task.groups.values()):
        make = partial(latency_figure, task, look)
        text = "Whiskers: lowest and highest seed. Time as the evaluation batched the decisions."
        yield draw(f"{prefix}-latency", "Return against latency", text, make)
    sizes = _sizes(task)
    if sizes:
        make = partial(ratio_figure, sizes, task, look)
        text = "A point for each seed; dash-dotted: the behaviour policy."
        yield draw(f"{prefix}-ratios", "Score against the ratios", text, make)
    for extractor, stage in dict.fromkeys((one.extractor, one.stage) for one in curves):
        make = partial(curve_figure, task, curves, extractor, stage, look)
        text = "Line: mean of the seeds; band: lowest and highest; ring: last checkpoint."
        name = slug(f"{prefix}-curve", extractor, stage)
        yield draw(name, f"Learning curve, {extractor}", text, make)


def _sizes(task: Task) -> dict[Group, list[float]]:
    """The effective sample sizes of each policy whose seeds all have one."""
    return {
        group: [row.diagnostics[SIZE] for row in rows]
        for group, rows in task.groups.items()
        if all(SIZE in row.diagnostics for row in rows)
    }


def _protocol(material: Material) -> Section:
    section = Section(
        "Protocol and provenance",
        [
            "Every policy is scored after its last step; no checkpoint is picked by its score. "
            "Episode i begins with a reset made of the evaluation seed and i: all policies meet "
            "the same starts."
        ],
        [("Protocol", protocol_table(material))],
    )
    machines = machine_table(material)
    if machines.rows:
        section.tables.append(("Machines", machines))
    if material.made_with:
        section.tables.append(("Processes", provenance_table(material)))
    else:
        section.notes.append("Who worked in the folder, with what, is not kept in it.")
    return section
