"""Results of a comparison: JSON lines, one per policy, appended as they come and found again by
what they depend on.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from ddice.core.config import Config
from ddice.core.reading import parse_json, read_bytes
from ddice.core.storage import append_line, content_digest, write_bytes
from ddice.data import Transitions
from ddice.dice_backends import GivenRatio
from ddice.policies.evaluation import Evaluation
from ddice.runs.comparison.grid import Cell, policy_place

DIGEST = "digest"
SCHEMA_FIELD = "schema"
SCHEMA = 2  # of a line; lines without one are of the first, which had fewer columns


class MadeOn(Config):
    """On what, and with what, a policy was trained and played."""

    code: str = Field(description="digest of the source text of ddice")
    versions: dict[str, str]
    python: str
    system: str
    device: str
    name: str = Field(description="of the processor, or of the graphics card")
    cores: int
    threads: int = Field(description="of PyTorch")


class Result(Config):
    """One policy's scores and how they came about. Seconds of stages that were found trained are
    those of finding them. None: written by an earlier version, which did not keep it.
    """

    is_measured: ClassVar[bool] = True

    key: str
    dataset: str | None = Field(None, description="its name, where the comparison has several")
    backend: str | None
    extractor: str
    seed: int
    evaluation: Evaluation
    clip_rate: float
    diagnostics: dict[str, float]
    train_seconds: float
    train_cpu_seconds: float | None = None
    learning_curve: dict[str, Any] | None = Field(
        None, description="that was asked for; None without one"
    )
    source: str | tuple[str, ...] | None = None
    fingerprint: str | None = Field(None, description="of the content of the data")
    recipe: dict[str, Any] | None = None
    made_on: MadeOn | None = None
    foreign: bool = Field(False, description="of others, who may not say all of it: 0 then")
    alarms: tuple[str, ...] = Field((), description="what the alarms of its stages ask for")

    @property
    def folder(self) -> Path:
        """Its place below the run folder of the comparison."""
        return policy_place(self.dataset, self.backend, self.extractor, self.seed)


def cell_key(cell: Cell, data: Transitions) -> str:
    """Names everything that a cell's result depends on: its recipe but for the learning curve, the
    content of the data, and that of ratios given by a name.
    """
    backend, given = cell.recipe.backend, {}
    if cell.backend is not None and isinstance(backend, GivenRatio):
        given["ratios"] = backend.build(data.spec, cell.seed).identity(data)
    return cell.recipe.without_curve.digest(data=data.spec.fingerprint, **given)


class NewerSchema(ValueError):
    """A store of a later version of ddice."""


class Results:
    """The file `results.jsonl` of a run folder: a line per policy, each with a digest of itself.

    Reading changes nothing, and may happen while a comparison appends. A line that cannot be read,
    or is not as it was written, is said. Raises NewerSchema for lines of a later version of ddice.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Result] = []
        self._damaged: list[str] = []
        self._ends = True
        if not path.exists():
            return
        content = read_bytes(path)
        self._ends = content.endswith(b"\n") or not content
        for number, line in enumerate(content.splitlines(), 1):
            try:
                self.rows.append(_read(line))
            except NewerSchema as error:
                raise NewerSchema(f"{path}, line {number}: {error}") from None
            except ValueError as error:
                self._damaged.append(line.decode(errors="replace"))
                self._say(number, error)

    def mend(self) -> None:
        """For who holds the run folder: keep what cannot be read in `results.unreadable.jsonl`, so
        that its policies are scored again.
        """
        for text in self._damaged:
            append_line(self._unreadable, text)
        if self._damaged or not self._ends:
            write_bytes(self.path, "".join(_line(row) + "\n" for row in self.rows).encode())
        self._damaged, self._ends = [], True

    @property
    def _unreadable(self) -> Path:
        return self.path.with_name(f"{self.path.stem}.unreadable{self.path.suffix}")

    def _say(self, number: int, error: ValueError) -> None:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"{self.path}, line {number} cannot be read ({reason}): ddice compare scores its "
            f"policy again, and keeps the line in {self._unreadable}",
            UserWarning,
            stacklevel=3,
        )

    def find(self, key: str) -> Result | None:
        """The result with this key, if it is there."""
        return next((row for row in self.rows if row.key == key), None)

    def append(self, result: Result) -> None:
        """Write a line, which is on the disk when this returns."""
        self.mend()
        append_line(self.path, _line(result), durable=True)
        self.rows.append(result)


def _line(result: Result) -> str:
    content = {SCHEMA_FIELD: SCHEMA, **result.model_dump(mode="json")}
    return json.dumps({**content, DIGEST: content_digest(content)})


def _read(line: bytes) -> Result:
    """Raises ValueError for a line that is not as `_line` wrote it; those of earlier versions have
    no digest.
    """
    content = parse_json(line)
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    digest = content.pop(DIGEST, None)
    if digest is not None and digest != content_digest(content):
        raise ValueError("it does not have the digest that was written with it")
    schema = content.pop(SCHEMA_FIELD, 1)
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerSchema(
            f"it has schema {schema}, and this version of ddice reads up to {SCHEMA}: use the "
            "version that wrote it, or another --run"
        )
    return Result.model_validate(content)
