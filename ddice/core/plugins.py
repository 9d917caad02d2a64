"""Doors: every place of a configuration that has several kinds takes one's own too.

An object of the right abstract class is taken as it is. It is written to JSON under its class,
"module:Class", or under its `kind` where an installed package offers that by an entry point. From
JSON a class is imported only where its module is trusted: because an installed package offers it,
or because the caller says so, `load_policy(path, trust=["my_module"])`.

A package offers a class by an entry point of one of `GROUPS`: its name is the kind, its value
"package.module:Class".
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from ddice.core.config import TRUST, Config, class_name, unknown_name

GROUPS = (
    "ddice.backends",
    "ddice.divergences",
    "ddice.encoders",
    "ddice.extractors",
    "ddice.priors",
    "ddice.rewards",
    "ddice.samplers",
    "ddice.schedules",
    "ddice.scores",
    "ddice.solvers",
    "ddice.times",
)
EVERY_MODULE = "*"  # trusted when an object that is in memory already is read back on trial


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
    # Which of them wins would depend on the order of installation.
    if others:
        raise ValueError(
            f"several packages offer the kind {entry.name!r}: "
            f"{'; '.join(map(origin, (entry, *others)))}. Uninstall all but one"
        )
    where = f"the plugin {entry.name!r} ({origin(entry)})"
    found = _final(_imported(entry.value, where), base, where)
    kind = found.model_fields["kind"].default
    if kind != entry.name:
        raise ValueError(
            f'{where} needs a field kind: Literal["{entry.name}"] = "{entry.name}", got kind '
            f"{kind!r}"
        )
    return found


def _imported(name: str, where: str) -> Any:
    """What "module:Class" names; `where` begins the message of the ValueError where it is not
    there.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever another module raises when it is imported
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error


def _final(found: Any, base: type[Config], where: str) -> type[Config]:
    """What was imported, if it is a final subclass of the base."""
    expected = f"{base.__module__}.{base.__name__}"
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{where} must be a subclass of {expected}, got {found!r}")
    if found.is_abstract:
        raise ValueError(f"{where} must be a final subclass of {expected}: this one is abstract")
    return found


def members(union: Any) -> tuple[type[Config], ...]:
    """The built-in configurations of a union, in order; those that tests and options go through."""
    return tuple(cls for cls in _classes_of(union) if not cls.is_abstract)


def abstract_class(union: Any) -> type[Config]:
    """The class that one's own configurations of a union derive from."""
    (found,) = (cls for cls in _classes_of(union) if cls.is_abstract)
    return found


def group(union: Any) -> str:
    """The entry points of a union."""
    (door,) = (item for item in _metadata(union) if isinstance(item, Door))
    return door.group


def _metadata(union: Any) -> tuple[Any, ...]:
    """What is annotated, of an annotation of an annotation too."""
    if get_origin(union) is not Annotated:
        return ()
    inner, *metadata = get_args(union)
    return (*_metadata(inner), *metadata)


def _classes_of(union: Any) -> list[type[Config]]:
    if get_origin(union) is Annotated:
        return _classes_of(get_args(union)[0])
    if get_origin(union) in (Union, types.UnionType):
        return [cls for member in get_args(union) for cls in _classes_of(member)]
    return [union]


@dataclass(frozen=True)
class Door:
    """Annotation of a union of built-in configurations and the abstract class of all others:
    `Annotated[DDIM | SingleStep | Solver, Door("ddice.solvers")]`.
    """

    group: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        base = abstract_class(source)
        built_in = {str(cls.model_fields["kind"].default): cls for cls in members(source)}

        def read(
            value: Any, inner: core_schema.ValidatorFunctionWrapHandler, info: ValidationInfo
        ) -> Any:
            if isinstance(value, base) and type(value) not in built_in.values():
                require_readable(value)
                return value
            kind = value.get("kind") if isinstance(value, dict) else None
            if not isinstance(kind, str) or kind in built_in:
                return inner(value)
            trust = (info.context or {}).get(TRUST, ())
            found = self._named(kind, base, trust) or self._offered(kind, base, built_in)
            # "module:Class" is not the kind that the class gives itself, and would be refused as
            # one.
            fields = {key: item for key, item in value.items() if key != "kind"}
            return found.model_validate(fields, context=info.context)

        def write(value: Any, inner: core_schema.SerializerFunctionWrapHandler) -> Any:
            fields = inner(value)
            if not isinstance(fields, dict) or type(value) in built_in.values():
                return fields
            return {**fields, "kind": self._written_kind(type(value))}

        choices = {kind: handler.generate_schema(cls) for kind, cls in built_in.items()}
        serialization = core_schema.wrap_serializer_function_ser_schema(
            write, schema=core_schema.any_schema()
        )
        return core_schema.with_info_wrap_validator_function(
            read,
            core_schema.tagged_union_schema(choices, discriminator="kind"),
            serialization=serialization,
        )

    def _offered(self, kind: str, base: type[Config], built_in: Iterable[str]) -> type[Config]:
        """The class that an installed package offers under this kind."""
        offered = list(entry_points(group=self.group))
        if named := [entry for entry in offered if entry.name == kind]:
            return load(named, base)
        known = {*built_in, *(entry.name for entry in offered)}
        raise ValueError(unknown_name(kind, known, "kind"))

    def _named(self, kind: str, base: type[Config], trust: Sequence[str]) -> type[Config] | None:
        """The class "module:Class", imported if its module is trusted; None for a mere kind."""
        module, colon, _ = kind.partition(":")
        if not colon:
            return None
        if not trusted(module, trust):
            raise ValueError(_not_trusted(f"{kind} is a class", module))
        return _final(_imported(kind, kind), base, kind)

    def _written_kind(self, cls: type[Config]) -> str:
        """The kind under which a class of somebody else's is found again."""
        name, kind = class_name(cls), str(cls.model_fields["kind"].default)
        offered = [entry.value for entry in entry_points(group=self.group) if entry.name == kind]
        return kind if offered == [name] else name


def listed(module: str, trust: Sequence[str]) -> bool:
    """Whether `trust` names a module, or a package around it."""
    # With the dot, because trust in `mine` is none in `mineral`.
    return EVERY_MODULE in trust or any(f"{module}.".startswith(f"{name}.") for name in trust)


def trusted(module: str, trust: Sequence[str]) -> bool:
    """Whether a module may be imported to read a file: it, or a package around it, is in `trust`,
    or an installed package offers a class of it.
    """
    if listed(module, trust):
        return True
    offered = (entry for name in GROUPS for entry in entry_points(group=name))
    return any(entry.value.partition(":")[0] == module for entry in offered)


def require_trusted_function(name: str, field: str, info: ValidationInfo) -> None:
    """Raise ValueError where a file or an option names a function, "module:function", of a module
    that it is not read with trust in; nothing is imported. What Python code says is its own.
    """
    if info.context is None and info.mode == "python":
        return
    module = name.partition(":")[0]
    if not trusted(module, (info.context or {}).get(TRUST, ())):
        raise ValueError(_not_trusted(f"{field} = {name!r} is a function", module))


def _not_trusted(what: str, module: str) -> str:
    return (
        f"{what} of the module {module!r}, which is not trusted: nothing was imported. If you know "
        f"who wrote this, allow it: trust=[{module!r}], or --trust {module}"
    )


def require_readable(value: Config) -> None:
    """Raise ValueError unless a configuration of somebody else's comes back from its JSON: before
    it is trained, not after.
    """
    cls = type(value)
    name = class_name(cls)
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        raise ValueError(
            f"{name} is not found again under that name, so that nothing saved with it could be "
            "loaded: define the class at the top level of a module"
        )
    try:
        again = cls.model_validate_json(value.model_dump_json(), context={TRUST: (EVERY_MODULE,)})
        same = bool(again == value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} does not come back from its own JSON: {error}") from error
    if not same:
        raise ValueError(
            f"{name} does not come back from its own JSON: expected {value!r}, got {again!r}"
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


def survey(unions: Iterable[Any]) -> list[Plugin]:
    """All plugins of the unions; each is imported to see whether it works."""
    found = []
    for union in unions:
        offered = sorted(entry_points(group=group(union)), key=lambda entry: entry.name)
        for entry in offered:
            rivals = [other for other in offered if other.name == entry.name]
            about, error = "", None
            try:
                about = (load(rivals, abstract_class(union)).__doc__ or "").strip().split("\n")[0]
            except ValueError as problem:
                error = str(problem)
            found.append(Plugin(group(union), entry.name, origin(entry), about, error))
    return found
