"""The run folder: which recipe it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ddice.core.storage import write_json
from ddice.runs.recipe import Recipe


def check_run(folder: Path, recipe: Recipe) -> None:
    """Raise ValueError when the run folder holds another recipe, naming what differs."""
    path = folder / "recipe.json"
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}): delete the folder {folder}, or give another one"
        ) from error
    # JSON against JSON: in Python a recipe holds tuples, which come back from a file as lists.
    found = differences(there, recipe.model_dump(mode="json"))
    if found:
        raise ValueError(
            f"{folder} holds another recipe, which differs in {', '.join(found)}: give another "
            "--run"
        )


def claim_run(folder: Path, recipe: Recipe) -> None:
    """Write `recipe.json` into a run folder. Raises ValueError when another recipe is there,
    OSError when the folder cannot be written.
    """
    check_run(folder, recipe)
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))


def differences(one: Any, two: Any, path: str = "") -> list[str]:
    """The dotted names at which two trees of JSON differ."""
    if not (isinstance(one, dict) and isinstance(two, dict)):
        return [] if one == two else [path]
    found: list[str] = []
    for key in sorted(set(one) | set(two)):
        below = f"{path}.{key}" if path else key
        # A missing key counts as null: a recipe of before a field existed still matches where that
        # is null.
        found += differences(one.get(key), two.get(key), below)
    return found
