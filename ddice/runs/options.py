"""Dotted options: every field of a configuration as a flag, merged over a file, with errors and
a help text that name them.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from ddice.core.config import kind_of, tag_of, unknown_name
from ddice.core.reading import MOST_NESTED, parse_json, read_bytes

Tree = dict[str, Any]


def parse_flags(tokens: Sequence[str]) -> Tree:
    """`--a.b 1 --a.c=x` -> {"a": {"b": 1, "c": "x"}}; values are JSON where they parse as JSON,
    else text.
    """
    tree: Tree = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or len(token) < 3:
            raise ValueError(
                f"expected an option such as --seed 1 or --backend.temperature 0.5, got {token!r}"
            )
        name, equals, value = token[2:].partition("=")
        if not equals:
            if not rest:
                raise ValueError(f"option --{name} needs a value")
            # Two dashes, because a negative number begins with one.
            if rest[0].startswith("--"):
                raise ValueError(f"option --{name} needs a value, got the option {rest[0]}")
            value = rest.pop(0)
        *path, last = name.replace("-", "_").split(".")
        if len(path) >= MOST_NESTED:
            raise ValueError(f"option --{name[:40]}... names a field {len(path)} levels deep")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ValueError(
                    f"option --{name} sets a field of something that another option gave as a whole"
                )
        if isinstance(node.get(last), dict):
            raise ValueError(
                f"option --{name} gives as a whole what another option sets a field of"
            )
        try:
            node[last] = _value(value)
        except ValueError as error:
            raise ValueError(f"option --{name}: {error}") from error
    return tree


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError:
        # Who knows the Python interface writes its spellings, and would else get a text.
        return {"None": None, "none": None, "True": True, "False": False}.get(text, text)


def read_config(path: str | Path) -> Tree:
    """A JSON file with an object. Raises ValueError or FileNotFoundError that names the file."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"--config {path} does not exist")
    try:
        content = parse_json(read_bytes(path))
    except ValueError as error:
        raise ValueError(f"--config {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold a JSON object, got {type(content).__name__}")
    return content


def explain(error: ValidationError, model: type[BaseModel] | None) -> str:
    """One line per mistake, by its dotted name; of a value that fits no member of a union, what
    the members expect.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        name = ".".join(map(str, item["loc"])) if model is None else _dotted(model, item["loc"])
        message = _message(item, name)
        given = (
            ""
            if isinstance(item["input"], dict) or f"got {item['input']!r}" in message
            else f" (got {item['input']!r})"
        )
        found.setdefault((name, given), []).append(message)
    return "\n".join(
        f"{name}: {'; or '.join(texts)}{given}" if name else "; ".join(texts)
        for (name, given), texts in found.items()
    )


def _message(item: Mapping[str, Any], name: str) -> str:
    context = item.get("ctx", {})
    if item["type"] == "union_tag_invalid":
        return unknown_name(
            context["tag"],
            # pydantic gives the tags as one text, each in quotes.
            [name.strip("'") for name in context["expected_tags"].split(", ")],
            context["discriminator"].strip("'"),
        )
    if item["type"] in ("model_attributes_type", "model_type") and isinstance(item["input"], str):
        return f"expected fields, got {item['input']!r}: a kind is chosen with --{name}.kind"
    return str(item["msg"]).removeprefix("Value error, ")


def _dotted(model: type[BaseModel], location: Sequence[int | str]) -> str:
    """The name of a field as it is written in options: without what pydantic adds for the
    members of a union.
    """
    names: list[str] = []
    models, keys = [model], False
    for key in location:
        annotations = [
            member.model_fields[key].annotation for member in models if key in member.model_fields
        ]
        labels = {
            label
            for member in models
            for label in (
                member.__name__,
                kind_of(member),
            )
        }
        # The fields of a plugin are in no annotation: an identifier that is not the label of a
        # member is taken for one of them.
        of_a_plugin = (
            bool(models) and not annotations and str(key).isidentifier() and key not in labels
        )
        if annotations:
            models = [
                inner for annotation in annotations for inner in _models(annotation, inside=True)
            ]
        if annotations or keys or isinstance(key, int) or of_a_plugin:
            names.append(str(key))
        # The next entry is then a key of that dict, which is a field of no model.
        keys = any(get_origin(annotation) is dict for annotation in annotations)
    return ".".join(names)


def describe_fields(
    model: type[BaseModel], prefix: str = "--", defaults: BaseModel | None = None
) -> list[str]:
    """One line per option: dotted name, type, default and description. Of a choice of kinds,
    each lists what those before it do not have.
    """
    lines: list[str] = []
    for name, field in model.model_fields.items():
        if name == tag_of(model):
            continue
        default = (
            field.get_default(call_default_factory=True)
            if defaults is None
            else getattr(defaults, name)
        )
        models = _models(field.annotation)
        if not models:
            shown = " (required)" if field.is_required() else f" = {_show(default)}"
            lines.append(
                f"{prefix}{name}  {_type(field.annotation)}{shown}"
                + (f"  {field.description}" if field.description else "")
            )
        elif len(models) == 1:
            if field.description:
                lines.append(f"{prefix}{name}.*  {field.description}")
            lines += describe_fields(models[0], f"{prefix}{name}.", default)
        else:
            lines += _describe_kinds(models, f"{prefix}{name}.", default)
    return lines


def _describe_kinds(models: list[type[BaseModel]], prefix: str, default: Any) -> list[str]:
    tag = tag_of(models[0])
    assert tag is not None
    kinds = [str(kind_of(member)) for member in models]
    if default is PydanticUndefined:
        shown = " (required)"
    else:
        shown = "" if default is None else f" = {getattr(default, tag)}"
    lines = [f"{prefix}{tag}  {{{','.join(kinds)}}}{shown}"]
    seen: set[str] = set()
    for member, kind in zip(models, kinds, strict=True):
        lines.append(f"  {kind}: {_first_line(member)}")
        own = describe_fields(member, prefix, default if isinstance(default, member) else None)
        lines += ["  " + line for line in own if line not in seen]
        seen.update(own)
    return lines


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _models(annotation: Any, inside: bool = False) -> list[type[BaseModel]]:
    """The configurations that an annotation names, through Annotated, unions and Optional; those
    inside of collections only if `inside`.
    """
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0], inside)
    if origin in (Union, types.UnionType) or (inside and origin is not None):
        return [model for member in get_args(annotation) for model in _models(member, inside)]
    # list[int] is an instance of type before Python 3.11.
    if origin is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [] if getattr(annotation, "is_abstract", False) else [annotation]
    return []


def _show(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple) and any(
        isinstance(item, BaseModel) for item in value
    ):
        return json.dumps([item.model_dump(mode="json") for item in value])
    return (
        json.dumps(value)
        if isinstance(value, str | int | float | bool | list | tuple | None)
        else str(value)
    )


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin is Literal:
        return "{" + ",".join(str(arg) for arg in args) + "}"
    if origin in (Union, types.UnionType):
        return "|".join(_type(arg) for arg in args)
    if origin in (tuple, list):
        return "[" + ",".join("..." if arg is Ellipsis else _type(arg) for arg in args) + "]"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
