"""The results in a run folder, in the order of its comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ddice.core.reading import read_json
from ddice.runs.comparison.store import Result, Results


def read_results(folder: Path) -> list[Result]:
    """The last result of every policy: datasets, backends, extractors and seeds in the order in
    which comparison.json names them, the behaviour policy first. Works while a comparison runs.

    Raises FileNotFoundError where there is none, and what `Results` raises.
    """
    path = folder / "results.jsonl"
    rows = Results(path).rows
    if not rows:
        raise FileNotFoundError(
            f"{folder} holds no results: expected a folder that was given as --run to ddice "
            "compare, with at least one policy done"
        )
    config = folder / "comparison.json"
    named = read_json(config) if config.exists() else {}
    last = {row.folder: row for row in rows}
    return sorted(last.values(), key=lambda row: _place(row, named))


def _place(row: Result, named: dict[str, Any]) -> tuple[int, ...]:
    fields = ("datasets", row.dataset), ("backends", row.backend), ("extractors", row.extractor)
    places = [_index(list(named.get(field, ())), name) for field, name in fields]
    return *places, _index(list(named.get("seeds", ())), row.seed)


def _index(names: list[Any], name: Any) -> int:
    """Who has no name comes first, who is not named last."""
    if name is None:
        return -1
    return names.index(name) if name in names else len(names)
