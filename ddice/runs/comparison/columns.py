"""Results as a table that others read: a row per policy, the same columns everywhere."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddice.core.storage import write_bytes
from ddice.data.parquet import parquet_bytes
from ddice.policies.evaluation.playing import episode_seed
from ddice.runs.comparison.store import MadeOn, Result

Cells = dict[str, Any]

# name -> what it is. Docs: docs/comparisons.md.
COLUMNS: dict[str, Callable[[Result], Any]] = {
    "dataset": lambda row: row.dataset or "",
    "backend": lambda row: row.backend or "",
    "extractor": lambda row: row.extractor,
    "seed": lambda row: row.seed,
    "env_id": lambda row: row.evaluation.env_id or "",
    "reference_random": lambda row: _reference(row, "random"),
    "reference_expert": lambda row: _reference(row, "expert"),
    "score": lambda row: row.evaluation.mean,
    "success_rate": lambda row: row.evaluation.success_rate,
    "returns": lambda row: list(row.evaluation.returns),
    "scores": lambda row: list(row.evaluation.scores),
    "lengths": lambda row: list(row.evaluation.lengths),
    "successes": lambda row: _listed(row.evaluation.successes),
    "final_successes": lambda row: _listed(row.evaluation.final_successes),
    "evaluation_seed": lambda row: row.evaluation.seed,
    "episode_seeds": lambda row: [
        episode_seed(row.evaluation.seed, episode) for episode in range(len(row.evaluation.returns))
    ],
    "deterministic": lambda row: row.evaluation.deterministic,
    "decision_ms": lambda row: _measured(row, _milliseconds(row)),
    "evaluation_seconds": lambda row: _measured(row, row.evaluation.seconds),
    "train_seconds": lambda row: _measured(row, row.train_seconds),
    "train_cpu_seconds": lambda row: row.train_cpu_seconds,
    "clip_rate": lambda row: _measured(row, row.clip_rate),
    "mean_ratio": lambda row: row.diagnostics.get("mean_ratio"),
    "effective_sample_size": lambda row: row.diagnostics.get("effective_sample_size"),
    "value": lambda row: row.diagnostics.get("value"),
    "temperature": lambda row: row.diagnostics.get("temperature"),
    "alarms": lambda row: list(row.alarms),
    "source": lambda row: json.dumps(row.source),
    "fingerprint": lambda row: row.fingerprint,
    "recipe": lambda row: json.dumps(row.recipe),
    "learning_curve": lambda row: json.dumps(row.learning_curve),
    "code": lambda row: _made_on(row, "code"),
    "versions": lambda row: json.dumps(_made_on(row, "versions")),
    "python": lambda row: _made_on(row, "python"),
    "system": lambda row: _made_on(row, "system"),
    "device": lambda row: _made_on(row, "device"),
    "processor": lambda row: _made_on(row, "name"),
    "cores": lambda row: _made_on(row, "cores"),
    "threads": lambda row: _made_on(row, "threads"),
    "key": lambda row: row.key,
}


def _milliseconds(row: Result) -> float:
    return 1000 * row.evaluation.policy_seconds / sum(row.evaluation.lengths)


def _measured(row: Result, number: float) -> float | None:
    """Others may not have measured it."""
    return None if row.foreign and not number else number


def _reference(row: Result, name: str) -> float | None:
    reference = row.evaluation.reference
    return None if reference is None else float(getattr(reference, name))


def _listed(values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else list(values)


def _made_on(row: Result, name: str) -> Any:
    found: MadeOn | None = row.made_on
    return None if found is None else getattr(found, name)


def records(results: Sequence[Result]) -> list[Cells]:
    """A dict per policy: numbers, texts, lists of an entry per episode; None for what is not known.
    What has a shape of its own (recipe, versions) is JSON.
    """
    return [{name: read(row) for name, read in COLUMNS.items()} for row in results]


def write_csv(results: Sequence[Result], path: Path) -> None:
    """Lists as JSON; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records(results):
        writer.writerow(
            {n: json.dumps(cell) if isinstance(cell, list) else cell for n, cell in record.items()}
        )
    write_bytes(path, text.getvalue().encode())


def write_parquet(results: Sequence[Result], path: Path) -> None:
    """Lists as lists. Raises ImportError without pyarrow."""
    write_bytes(path, parquet_bytes(records(results)))
