"""The base of every configuration: frozen, strict, abstract or final, and helpful about misspelt
names.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from typing_extensions import Self

# the context in which pydantic reads: the modules whose classes may be imported, see `core.plugins`
TRUST = "trust"


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
        if not attribute:
            raise ValueError("it names no function")
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{field} = {name!r} cannot be imported ({error}): expected "module:function", '
            "importable from here"
        ) from error


# float32 ends near 1e38: this leaves eight decades for what is multiplied.
LARGEST_NUMBER = 1e30
LARGEST_COUNT = 2**31 - 1  # of steps, rows, units, episodes; nothing here could hold as many


def plain_count(value: Any, name: str) -> int:
    """A whole number as an int, whatever integers came: numpy's, a tensor. Raises TypeError, which
    names it, for what is none.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"expected {name} to be a whole number, got {value!r}")


SEEDS = ("seed", "seeds")  # end the names of fields that take any integer
TAGS = ("kind", "rule")  # the fields that say which member of a union a configuration is


def tag_of(config: type[BaseModel]) -> str | None:
    """The field of a class of configurations that says which it is, None for one of no union."""
    return next((name for name in TAGS if name in config.model_fields), None)


def kind_of(config: type[BaseModel]) -> Any:
    """The value of that field which stands for the class, None for one of no union."""
    tag = tag_of(config)
    return None if tag is None else config.model_fields[tag].default


def from_kind(value: Any) -> Any:
    """The bare name of a kind, in place of its fields, stands for the kind with its defaults."""
    return {"kind": value} if isinstance(value, str) else value


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


def _require_moderate(value: Any, is_seed: bool) -> None:
    """Raise ValueError for a number that would only fail later."""
    numbers = value if isinstance(value, tuple) else (value,)
    for one in numbers:
        if isinstance(one, float) and abs(one) > LARGEST_NUMBER:
            raise ValueError(
                f"expected a number of at most {LARGEST_NUMBER:g}, which float32 can compute with, "
                f"got {one:g}"
            )
    whole = [one for one in numbers if isinstance(one, int) and not is_seed]
    if any(abs(one) > LARGEST_COUNT for one in whole):
        raise ValueError(f"expected at most {LARGEST_COUNT:,}, got a number beyond that")


def class_name(cls: type) -> str:
    """ "module:Class", by which a class is found again."""
    return f"{cls.__module__}:{cls.__qualname__}"


def _identity(cls: type) -> str:
    """What a digest knows of a class: of our own not the module, so that a move inside of the
    package forgets no trained part.
    """
    own = cls.__module__.partition(".")[0] == "ddice"
    return f"ddice:{cls.__qualname__}" if own else class_name(cls)


def _classes(value: Any) -> Any:
    """The class of every configuration in a tree of values, in the shape of the tree."""
    if isinstance(value, Config):
        inner = {name: _classes(getattr(value, name)) for name in type(value).model_fields}
        return [_identity(type(value)), inner]
    if isinstance(value, Mapping):
        return {str(key): _classes(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_classes(item) for item in value]
    return None


class Config(BaseModel):
    """A frozen value object; unknown keys are errors that name the nearest key.

    A dict that gives some fields of a nested configuration changes the default of that place: what
    it does not name stays as documented there.

    A class is abstract, `class NoiseSchedule(Config, abstract=True)`, and then never made, or
    final, and then never subclassed: what is saved names its class, and a subclass of a final one
    would come back as its parent.
    """

    # JSON has neither NaN nor infinity: such a value would not come back from a file.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )
    is_abstract: ClassVar[bool] = True
    is_measured: ClassVar[bool] = False
    """Whether its numbers come from data and may be of any size."""

    def __init_subclass__(cls, *, abstract: bool = False) -> None:
        super().__init_subclass__()
        cls.is_abstract = abstract
        for base in cls.__mro__[1:]:
            if issubclass(base, Config) and not base.is_abstract:
                raise TypeError(
                    f"{base.__name__} is final, got class {cls.__name__}({base.__name__}): "
                    f"{_instead(base)}"
                )
        if abstract:
            return
        if missing := _missing(cls):
            raise TypeError(
                f"class {cls.__name__} lacks {', '.join(missing)}: define what "
                f"{_public_base(cls).__name__} asks for, or say abstract=True"
            )
        if _lacks_kind(cls):
            raise TypeError(
                f'class {cls.__name__} needs a kind of its own: kind: Literal["a_name"] = "a_name"'
            )

    def __new__(cls, *_: Any, **fields: Any) -> Self:
        if cls.is_abstract:
            raise TypeError(
                f"{cls.__name__} is abstract: make one of {', '.join(_members(cls))}, or of a "
                f"class of your own, class Mine({cls.__name__})"
            )
        return super().__new__(cls)

    @classmethod
    def read(cls, content: Any, *, trust: Sequence[str] = ()) -> Self:
        """From what `model_dump(mode="json")` gave. Of the classes that it names "module:Class",
        those of installed plugins and of the modules in `trust` are imported; ValueError for
        others.
        """
        return cls.model_validate(content, context={TRUST: tuple(trust)})

    @field_validator("*")
    @classmethod
    def _check_size(cls, value: Any, info: ValidationInfo) -> Any:
        if not cls.is_measured:
            _require_moderate(value, is_seed=str(info.field_name).endswith(SEEDS))
        return value

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
        """32 hexadecimal digits that change whenever the class, a field that is not among
        `without` or the class of a configuration in it, or one of `extra`, changes.
        """
        # Classes are named beside the fields: two of them can have the same fields and do different
        # things.
        own, fields = _classes(self)
        left_out = set(without)
        content = {
            "class": own,
            "fields": self.model_dump(mode="json", exclude=left_out),
            "classes": {name: fields[name] for name in fields if name not in left_out},
            "extra": extra,
        }
        # Sorted, so that the order in which a class lists its fields counts for nothing.
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _lineage(cls: type[Config]) -> list[type[Config]]:
    """The configurations that a class derives from, nearest first, without `Config`."""
    return [base for base in cls.__mro__[1:] if issubclass(base, Config) and base is not Config]


def _public_base(cls: type[Config]) -> type[Config]:
    """The nearest base with a name for others."""
    named = [base for base in _lineage(cls) if not base.__name__.startswith("_")]
    return named[0] if named else Config


def _instead(final: type[Config]) -> str:
    """What to do in place of a subclass of a final class."""
    base = _public_base(final)
    if base is Config:
        return (
            "nothing else can stand in its place. Write a configuration of your own, "
            f"class Mine(Config), that holds a {final.__name__} as a field"
        )
    return (
        f"a subclass would be saved and loaded as {final.__name__}. Derive from {base.__name__}, "
        f'class Mine({base.__name__}), with a kind of its own, kind: Literal["mine"] = "mine"'
    )


def _missing(cls: type[Config]) -> list[str]:
    """The abstract methods that a class has not defined."""
    # From the bases: ABCMeta fills in those of the class itself only after `__init_subclass__`.
    asked = {name for base in cls.__bases__ for name in getattr(base, "__abstractmethods__", ())}
    return sorted(
        name for name in asked if getattr(getattr(cls, name), "__isabstractmethod__", False)
    )


def _lacks_kind(cls: type[Config]) -> bool:
    """Whether the bases of a class ask for a kind, and nobody gives it."""
    # pydantic collects the fields of the class itself later: until then only its namespace has
    # them.
    asked = [base.model_fields["kind"] for base in _lineage(cls) if "kind" in base.model_fields]
    return bool(asked) and "kind" not in vars(cls) and all(f.is_required() for f in asked)


def _members(cls: type[Config]) -> list[str]:
    """The names of the final classes that derive from an abstract one."""
    names: list[str] = []
    for member in cls.__subclasses__():
        names += _members(member) if member.is_abstract else [member.__name__]
    return sorted(set(names))
