"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def on_demand(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) whose `names` are imported from their modules at
    their first use. At the first use of one of its modules all of these are: one finds
    `package.folder.module` then, as if the package had imported them at once.
    """

    def get(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        module = f"{package}.{name}"
        if not name.startswith("_"):
            try:
                found = importlib.import_module(module)
                for home in sorted(set(names.values())):
                    importlib.import_module(home)
                return found
            except ModuleNotFoundError as error:
                if error.name != module:
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
