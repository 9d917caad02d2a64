"""The tables of what `benchmarks/gpu.py` found on one machine, from its folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.render_speed import decision_table

TABLES = "tables.md"
NEEDS_CUDA = 77
OUTCOMES = {0: "done", NEEDS_CUDA: "needs CUDA"}  # of a stage, by its exit status; else "failed"
# of the recipe
SHOWN = (
    "loss", "v_loss", "q_loss", "mean_ratio", "effective_sample_size", "evaluation/score",
)  # fmt: skip
Rows = list[dict[str, Any]]


def rows_of(path: Path) -> Rows:
    """The lines that are there; the last one of a killed process may be half a line."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def numbered(value: Any) -> str:
    """A number, or nothing where there is none."""
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def stage_table(rows: Rows) -> list[str]:
    """How each stage ended, the last time that it was run."""
    last = {row["stage"]: row for row in rows}
    return table(
        ("stage", "how it ended", "seconds"),
        [
            [
                name,
                ": ".join(filter(None, (row["outcome"], row.get("said")))),
                f"{row['seconds']:.0f}",
            ]
            for name, row in last.items()
        ],
    )


def told_of_tests(rows: Rows) -> list[str]:
    counts = Counter(row["found"] for row in rows)
    bad = [row["test"] for row in rows if row["found"] in ("failed", "error")]
    said = ", ".join(f"{count} {found}" for found, count in sorted(counts.items()))
    return [f"`pytest -m gpu`: {said}.", *(f"- {name}" for name in bad)]


def unknowns_table(rows: Rows) -> list[str]:
    cells = [[row["name"], numbered(row["number"]), row["unit"]] for row in rows]
    return table(("what", "number", "unit"), cells)


def training_table(rows: Rows) -> list[str]:
    columns = (
        "part", "preset", "batch", "mode", "steps/s", "ms a step", "peak MiB", "first step, s",
        "frames compiled", "largest difference from eager",
    )  # fmt: skip
    cells = [
        [
            row["part"], row["preset"], str(row["batch"]), row["mode"],
            numbered(row["steps_per_second"]), numbered(row["ms"]),
            numbered(row.get("peak_memory_mib")), numbered(row["cold_start_s"]),
            row.get("frames", ""), numbered(row.get("largest_difference")),
        ]
        for row in rows
    ]  # fmt: skip
    return table(columns, cells)


def curve_table(rows: Rows) -> list[str]:
    shown = [name for name in SHOWN if any(find(row, name) is not None for row in rows)]
    columns = ("part", "step", "of", "minutes", "steps/s", *shown)
    cells, before = [], {"part": None, "step": 0, "seconds": 0.0}
    for row in (row for row in rows if "step" in row):
        same = row["part"] == before["part"] and row["step"] > before["step"]
        took = row["seconds"] - before["seconds"]
        rate = (row["step"] - before["step"]) / took if same and took > 0 else None
        numbers = [numbered(value) for value in (row["step"], row["of"], row["seconds"] / 60, rate)]
        cells.append([row["part"], *numbers, *(numbered(find(row, name)) for name in shown)])
        before = row
    scores = [f"Score: {row['score']:.1f}." for row in rows if "score" in row]
    return [*table(columns, cells), *(("", *scores) if scores else ())]


def find(row: dict[str, Any], name: str) -> Any:
    """A metric, that of the extractor where two parts are trained together."""
    return row.get(name, row.get(f"extractor/{name}", row.get(f"backend/{name}")))


def failures(rows: Rows) -> list[str]:
    """What could not be measured, and why."""
    named = ("engine", "dtype", "solver", "batch", "candidates", "part", "preset", "mode")
    found = []
    for row in rows:
        names = " ".join(str(row[name]) for name in named if name in row)
        found.append(f"- {names}: {row['error']}")
    return found


def render(folder: Path) -> str:
    """The page of a folder, with a section for each thing that was found."""
    about = json.loads((folder / "machine.json").read_text())
    found = {path.stem: rows_of(path) for path in sorted(folder.glob("*.jsonl"))}
    decided = [row for name in ("eager", "graph", "fused") for row in found.get(name, [])]
    trained = [row for name in ("steps", "compiled") for row in found.get(name, [])]
    failed = [row for row in (*decided, *trained) if "error" in row]
    sections = [
        ("How the stages ended", stage_table, found.get("stages", [])),
        ("Tests", told_of_tests, found.get("tests", [])),
        ("Decisions", decision_table, [row for row in decided if "error" not in row]),
        ("Training steps", training_table, [row for row in trained if "error" not in row]),
        ("One recipe", curve_table, found.get("recipe", [])),
        ("The device itself", unknowns_table, found.get("unknowns", [])),
        ("Not measured", failures, failed),
    ]
    versions = ", ".join(
        f"{name} {about[name]}" for name in ("python", "torch", "triton") if name in about
    )
    text = [f"### {about['machine']}", "", f"{about['measured']}, {versions}."]
    for title, told, rows in sections:
        if rows:
            text += ["", f"#### {title}", "", *told(rows)]
    return "\n".join(text) + "\n"
