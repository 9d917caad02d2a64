"""The base of every configuration: frozen, strict, and helpful about misspelt names."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


def unknown_name(name: str, known: Iterable[str], noun: str) -> str:
    """A sentence that names what was not known, its nearest neighbour and everything that is
    known.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {noun} {name!r}: {hint}known are {', '.join(known)}"


def import_function(name: str, field: str) -> Any:
    """What "module:function" names. Raises ValueError, naming the field that holds it, when it
    cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{field} = {name!r} cannot be imported ({error}): expected "module:function", '
            "importable from here"
        ) from error


TAGS = ("kind", "rule")  # the fields that say which member of a union a configuration is


def tag_of(config: type[BaseModel]) -> str | None:
    """The field of a class of configurations that says which it is, None for one of no union."""
    return next((name for name in TAGS if name in config.model_fields), None)


def kind_of(config: type[BaseModel]) -> Any:
    """The value of that field which stands for the class, None for one of no union."""
    tag = tag_of(config)
    return None if tag is None else config.model_fields[tag].default


def merge(base: Any, changes: Any) -> Any:
    """`changes` over `base`, key by key; where they name different kinds, nothing of the base's
    kind is kept.
    """
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    if any(tag in changes and tag in base and changes[tag] != base[tag] for tag in TAGS):
        return changes
    return {
        **base,
        **{
            key: merge(base[key], value) if key in base else value for key, value in changes.items()
        },
    }


class Config(BaseModel):
    """A frozen value object; unknown keys are errors that name the nearest key.

    A dict that gives some fields of a nested configuration changes the default of that place: what
    it does not name stays as documented there.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values:
            if key not in cls.model_fields:
                raise ValueError(
                    unknown_name(str(key), cls.model_fields, f"field of {cls.__name__}")
                )
        defaults = {key: cls.model_fields[key].default for key in values}
        return {
            key: merge(defaults[key].model_dump(), value)
            if isinstance(defaults[key], Config)
            else value
            for key, value in values.items()
        }

    def digest(self, *, without: Iterable[str] = (), **extra: Any) -> str:
        """32 hexadecimal digits that change whenever a field that is not among `without`, or one
        of `extra`, changes.
        """
        text = json.dumps(
            {"config": self.model_dump(mode="json", exclude=set(without)), "extra": extra},
            sort_keys=True,
        )
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
