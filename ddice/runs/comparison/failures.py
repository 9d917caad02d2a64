"""The cells of a comparison that failed: a line of JSON for each time, with the cause."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from ddice.core.reading import parse_json, read_bytes
from ddice.core.storage import append_line
from ddice.runs.comparison.cells import Job
from ddice.runs.comparison.store import Result

FILE = "failures.jsonl"


class CellsFailed(RuntimeError):
    """Some policies of a comparison failed, and all the others are there: `results`."""

    def __init__(self, results: list[Result], causes: dict[str, str], of: int, folder: Path):
        lines = [f"  {title}: {cause}" for title, cause in causes.items()]
        again = f"where the cause is mended, --only-failed does them again; see {folder / FILE}"
        super().__init__("\n".join([f"{len(causes)} of {of} policies failed:", *lines, again]))
        self.results = results
        self.causes = causes


def cause_of(error: BaseException) -> str:
    """In a line."""
    text = str(error)
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def trace_of(error: BaseException) -> str:
    """Where it was raised."""
    return "".join(traceback.format_exception(error))


def write_failure(folder: Path, job: Job, cause: str, trace: str) -> None:
    """Add a failure to the run folder."""
    cell = job.cell
    content = {
        "key": job.key,
        "dataset": cell.dataset,
        "backend": cell.backend,
        "extractor": cell.extractor,
        "seed": cell.seed,
        "cause": cause,
        "trace": trace,
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    append_line(folder / FILE, json.dumps(content))


def failed_before(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """Those of these jobs that failed before. Raises ValueError where none did."""
    path = folder / FILE
    lines = read_bytes(path).splitlines() if path.exists() else []
    keys = set(map(_key, lines))
    found = [job for job in jobs if job.key in keys]
    if not found:
        raise ValueError(
            f"nothing in {folder} failed that is not done: leave --only-failed out to do what is "
            "left"
        )
    return found


def _key(line: bytes) -> str:
    """Empty for a line that cannot be read."""
    try:
        content = parse_json(line)
    except ValueError:
        return ""
    return str(content.get("key", "")) if isinstance(content, dict) else ""
