"""The run folder: which recipe it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddice.core.reading import read_json
from ddice.core.storage import content_digest, write_json
from ddice.runs.recipe import Recipe

FILE = "recipe.json"
NOTE = "recipe"


def note_of(recipe: Recipe) -> dict[str, str]:
    """What a policy notes of the recipe that made it."""
    return {NOTE: content_digest(recipe.model_dump(mode="json"))}


def check_run(folder: Path, recipe: Recipe) -> None:
    """Raise ValueError when the run folder holds another recipe, naming what differs."""
    path = folder / FILE
    if not path.exists():
        return
    try:
        there = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete the folder {folder}, or give another one") from error
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
    write_json(folder / FILE, recipe.model_dump(mode="json"))


def read_recipe(folder: Path, notes: Mapping[str, str], trust: Sequence[str] = ()) -> Recipe:
    """The recipe of a run, whose policy has these `notes`; trust: as for `Recipe.read`.

    Raises FileNotFoundError where there is none, ValueError for one that is not the recipe that the
    policy was made by.
    """
    path = folder / FILE
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no {FILE}, which names the data and the backend: expected the run "
            "folder of ddice train"
        )
    content = read_json(path)
    # What an earlier version made notes no recipe.
    if notes.get(NOTE, content_digest(content)) != content_digest(content):
        raise ValueError(
            f"{path} is not the recipe that the policy was made by: it was edited or damaged. "
            "Delete it and run the same ddice train again, which finds all that is trained"
        )
    return Recipe.read(content, trust=trust)


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
