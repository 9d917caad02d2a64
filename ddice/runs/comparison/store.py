"""Results of a comparison: JSON lines, one per policy, appended as they come and found again by
what they depend on.
"""

from __future__ import annotations

import json
from pathlib import Path

from ddice.core.config import Config
from ddice.core.storage import append_line, write_bytes
from ddice.data import Transitions
from ddice.dice_backends import GivenRatio
from ddice.policies.evaluation import Evaluation
from ddice.runs.comparison.grid import Cell


class Result(Config):
    """One policy's scores and how they came about. `seconds` of stages that were found trained
    are those of finding them.
    """

    key: str
    backend: str | None
    extractor: str
    seed: int
    evaluation: Evaluation
    clip_rate: float
    diagnostics: dict[str, float]
    train_seconds: float


def cell_key(cell: Cell, data: Transitions) -> str:
    """Names everything that a cell's result depends on: its recipe, the content of the data, and
    that of ratios given by a name.
    """
    backend, given = cell.recipe.backend, {}
    if cell.backend is not None and isinstance(backend, GivenRatio):
        given["ratios"] = backend.build(data.spec, cell.seed).identity(data)
    return cell.recipe.digest(data=data.spec.fingerprint, **given)


class Results:
    """The file `results.jsonl` of a run folder."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Result] = []
        if path.exists():
            text = path.read_text()
            lines = text.splitlines()
            for line in lines:
                try:
                    content = json.loads(line)
                except json.JSONDecodeError:  # the last line of a killed run
                    continue
                self.rows.append(Result.model_validate(content))
            if len(self.rows) != len(lines) or not text.endswith("\n"):
                write_bytes(
                    path, "".join(row.model_dump_json() + "\n" for row in self.rows).encode()
                )

    def find(self, key: str) -> Result | None:
        """The result with this key, if it is there."""
        return next((row for row in self.rows if row.key == key), None)

    def append(self, result: Result) -> None:
        append_line(self.path, result.model_dump_json())
        self.rows.append(result)
