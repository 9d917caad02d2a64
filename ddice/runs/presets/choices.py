"""What a preset sets otherwise than the default: field by field, with the reason and where that
comes from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ddice.core.config import Config, merge
from ddice.runs.recipe import Recipe


class Choice(Config):
    """One field that a preset sets, or a tree of fields that belong together."""

    field: str  # dotted
    value: Any
    reason: str
    source: str

    def covers(self, field: str) -> bool:
        """Whether a dotted field is set by this choice."""
        return field == self.field or field.startswith(f"{self.field}.")


def recipe_of(choices: Iterable[Choice]) -> Recipe:
    """The default recipe with these choices. Raises ValueError for a field that does not exist,
    and for a value that does not fit.
    """
    tree = Recipe().model_dump(mode="json")
    for choice in choices:
        change = choice.value
        for key in reversed(choice.field.split(".")):
            change = {key: change}
        tree = merge(tree, change)
    return Recipe.model_validate(tree)


def value_at(tree: Any, field: str) -> Any:
    """What stands at a dotted field of a tree of JSON. Raises KeyError where there is none."""
    for key in field.split("."):
        tree = tree[key]
    return tree
