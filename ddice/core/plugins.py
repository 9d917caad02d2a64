"""Parts of other packages: a `kind` that is not built in is looked up among entry points, and only
that one is imported.

A package offers a backend by an entry point of the group `ddice.backends`, an extractor by one of
`ddice.extractors`: its name is the kind, its value "package.module:Class", a subclass of
`BackendConfig` or `ExtractorConfig`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from ddice.core.config import Config, unknown_name

BACKENDS, EXTRACTORS = "ddice.backends", "ddice.extractors"


def origin(entry: EntryPoint) -> str:
    """Package, version and target of an entry point."""
    package = (
        f"{entry.dist.name} {entry.dist.version}"
        if entry.dist is not None
        else "an unknown package"
    )
    return f"{package}, {entry.value}"


def load(entries: Iterable[EntryPoint], base: type[Config]) -> type[Config]:
    """The configuration class behind the one entry point of a kind. Raises ValueError that shows
    its import error, or what is wrong with it.
    """
    entry, *others = entries
    if others:
        raise ValueError(
            f"several packages offer the kind {entry.name!r}: "
            f"{'; '.join(map(origin, (entry, *others)))}. Uninstall all but one"
        )
    try:
        found = entry.load()
    except Exception as error:  # whatever another package raises when it is imported
        raise ValueError(
            f"the plugin {entry.name!r} ({origin(entry)}) cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    where = f"the plugin {entry.name!r} ({origin(entry)})"
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"{where} must be a subclass of {base.__module__}.{base.__name__}, got {found!r}"
        )
    kind = found.model_fields["kind"].default if "kind" in found.model_fields else None
    if kind != entry.name or not callable(getattr(found, "build", None)):
        raise ValueError(
            f'{where} needs build(...) and a field kind: Literal["{entry.name}"] = '
            f'"{entry.name}", got kind {kind!r}'
        )
    return found


class PluginKinds:
    """Annotation of a union of configurations: it takes those of plugins too, by their kind or
    as objects, and writes them to JSON.
    """

    def __init__(self, group: str, base: type[Config]):
        self.group, self.base = group, base

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        built_in = {str(member.model_fields["kind"].default) for member in get_args(source)}

        def validate(value: Any, inner: core_schema.ValidatorFunctionWrapHandler) -> Any:
            kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            if not isinstance(kind, str) or kind in built_in:
                return inner(value)
            if isinstance(value, dict):
                offered = list(entry_points(group=self.group))
                if named := [entry for entry in offered if entry.name == kind]:
                    return load(named, self.base).model_validate(value)
                raise ValueError(
                    unknown_name(kind, built_in | {entry.name for entry in offered}, "kind")
                )
            return (
                value if isinstance(value, self.base) and hasattr(value, "build") else inner(value)
            )

        # The serializer of the union knows its own members only.
        any_object = core_schema.simple_ser_schema("any")
        return core_schema.no_info_wrap_validator_function(
            validate, handler(source), serialization=any_object
        )


@dataclass(frozen=True)
class Plugin:
    """An entry point that was found; `error` is why it cannot be used, None when it can."""

    group: str
    kind: str
    origin: str
    about: str
    error: str | None

    def __str__(self) -> str:
        return f"{self.group}  {self.kind}  ({self.origin})  " + (
            f"BROKEN: {self.error}" if self.error else self.about
        )


def survey(bases: Mapping[str, type[Config]]) -> list[Plugin]:
    """All plugins of the groups, whose configurations are of the given base; each is imported to
    see whether it works.
    """
    found = []
    for group, base in bases.items():
        offered = sorted(entry_points(group=group), key=lambda entry: entry.name)
        for entry in offered:
            try:
                about, error = (
                    (load([e for e in offered if e.name == entry.name], base).__doc__ or "")
                    .strip()
                    .split("\n")[0],
                    None,
                )
            except ValueError as problem:
                about, error = "", str(problem)
            found.append(Plugin(group, entry.name, origin(entry), about, error))
    return found
