"""The datasets of a comparison, by name, with what is otherwise on each of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from pydantic import Field, ValidationError

from ddice.core.config import Config, merge, unknown_name
from ddice.runs.presets.named import PRESETS
from ddice.runs.recipe import Recipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # it is a folder of the run


class Dataset(Config):
    """What is otherwise on one dataset than in the recipe of the comparison."""

    preset: str | None = Field(
        None, description="the recipe to begin with, in place of the comparison's: ddice presets"
    )
    recipe: dict[str, Any] = Field(
        default_factory=dict, description="fields of the recipe: data.source, evaluation.episodes"
    )

    published: dict[str, float] = Field(
        default_factory=dict, description="scores of others by method, said below the table"
    )
    published_by: str = Field("", description="where these stand")

    def recipe_from(self, base: Recipe, name: str, trust: Sequence[str] = ()) -> Recipe:
        """The whole recipe. Raises ValueError, which says where, for a field or preset that there
        is not; trust: as for `Recipe.read`.
        """
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(
                f"datasets.{name}.preset: {unknown_name(self.preset, PRESETS, 'preset')}"
            )
        begin = base if self.preset is None else PRESETS[self.preset]
        if unknown := sorted(set(self.recipe) - set(Recipe.model_fields)):
            problem = unknown_name(unknown[0], Recipe.model_fields, "field of Recipe")
            raise ValueError(f"datasets.{name}.recipe: {problem}")
        try:
            return _changed(begin, self.recipe, trust)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["datasets", name, "recipe", *map(str, first["loc"])])
            message = first["msg"].removeprefix("Value error, ")
            raise ValueError(f"{place}: {message}") from None


def _changed(base: Recipe, changes: dict[str, Any], trust: Sequence[str]) -> Recipe:
    """The recipe with these fields. What is not changed stays the object that it is: a part of
    somebody's own class is read from JSON only where its module is trusted.
    """
    tree = base.model_dump(mode="json")
    fields = {
        name: merge(tree[name], changes[name]) if name in changes else getattr(base, name)
        for name in tree
    }
    return Recipe.read(fields, trust=trust)


def by_name(value: Any) -> Any:
    """Datasets by name, of a list of sources, and of sources by name. Raises ValueError for names
    that are none, or that two have.
    """
    if isinstance(value, str):
        value = [source.strip() for source in value.split(",") if source.strip()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        named = [(_name(source), source) for source in value]
        if len(dict(named)) < len(named):
            raise ValueError(f"expected sources of different names, got {[n for n, _ in named]}")
        value = dict(named)
    if not isinstance(value, dict):
        return value
    for name in value:
        if not NAME.fullmatch(str(name)):
            raise ValueError(
                f"expected names of letters, digits, '.', '_' and '-', which a folder can have, "
                f"got {name!r}"
            )
    return {
        name: {"recipe": {"data": {"source": one}}} if isinstance(one, str) else one
        for name, one in value.items()
    }


def _name(source: Any) -> str:
    """The name of a file without its ending, or an id without its slashes."""
    if not isinstance(source, str):
        raise ValueError(f"expected a source, an id or the path of a file, got {source!r}")
    path = PurePath(source)
    return path.stem if path.suffix else "-".join(path.parts)
