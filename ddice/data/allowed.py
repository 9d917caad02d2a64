"""Which environments may be made of a record: a record names the code that makes it, and may come
from a stranger.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ddice.core.plugins import EVERY_MODULE, listed
from ddice.data.spec import EnvRecord
from ddice.data.tasks import wrappers_of

BY_NAME = "shimmy"
"""Its registered environments make others by a name that they are given, "module:Id" too."""

WRITING = frozenset(("RecordVideo",))
"""Wrappers of Gymnasium that write files where the record says."""


def trust_in(env: Any, trust_env: Sequence[str]) -> Sequence[str]:
    """The modules that may make an environment that was asked for: a record needs leave for its
    own, and what the caller's own code made or names is the caller's.
    """
    return trust_env if env is None or isinstance(env, EnvRecord) else (EVERY_MODULE,)


def require_allowed(record: EnvRecord, trust_env: Sequence[str]) -> None:
    """Raise ValueError, before anything is imported, unless all that makes a recorded environment
    is in Gymnasium's registry, a wrapper of Gymnasium, or of a module that `trust_env` lists (a
    package stands for all that it holds).

    Raises ImportError where the package that is asked for is not installed.
    """
    registered = frozenset(_registered())
    for entry_point in _entry_points(record):
        if entry_point in registered or _wraps(entry_point):
            continue
        module = entry_point.partition(":")[0]
        if listed(module, trust_env):
            continue
        package = module.partition(".")[0]
        if not _is_here(package):
            raise ModuleNotFoundError(f"No module named {package!r}")
        raise ValueError(
            f"the environment {record.id!r} is recorded as made by {entry_point}, which "
            "Gymnasium's registry does not hold: nothing was imported. If you know who wrote "
            f"this, allow it: trust_env=[{module!r}], or --trust-env {module}"
        )


def require_allowed_id(env_id: str | None, trust_env: Sequence[str]) -> None:
    """Raise ValueError for an id "module:Id-v0" of a recipe whose module `trust_env` does not
    list.
    """
    module, separator, _ = (env_id or "").partition(":")
    if separator and not listed(module, trust_env):
        raise ValueError(
            f"data.env = {env_id!r} imports the module {module!r}, which is not trusted: nothing "
            f"was imported. If you know who wrote this, allow it: trust_env=[{module!r}], or "
            f"--trust-env {module}"
        )


def _entry_points(record: EnvRecord) -> Iterator[str]:
    """ "module:Class" of the environment, then of its wrappers."""
    wrappers = (one.get("entry_point") for one in wrappers_of(record))
    for entry_point in (json.loads(record.spec).get("entry_point"), *wrappers):
        if not isinstance(entry_point, str):
            raise ValueError(
                f'expected the environment {record.id!r} to be recorded with "module:Class", got '
                f"{entry_point!r}"
            )
        yield entry_point


def _is_here(package: str) -> bool:
    """Whether a name without dots can be imported, which is found out without importing it."""
    try:
        return bool(package) and importlib.util.find_spec(package) is not None
    except ValueError:  # a script that runs has no spec
        return True


def _registered() -> Iterator[str]:
    """What the entries of the registry are made by."""
    import gymnasium

    for spec in gymnasium.registry.values():
        wrappers = [wrapper.entry_point for wrapper in spec.additional_wrappers]
        for entry_point in (spec.entry_point, *wrappers):
            module = str(entry_point).partition(":")[0]
            if isinstance(entry_point, str) and not listed(module, (BY_NAME,)):
                yield entry_point


def _wraps(entry_point: str) -> bool:
    """Whether this is one of Gymnasium's own wrappers, as records name them."""
    import gymnasium

    module, _, name = entry_point.partition(":")
    if not listed(module, (gymnasium.wrappers.__name__,)) or name in WRITING:
        return False
    if name not in gymnasium.wrappers.__all__:
        return False
    found = getattr(gymnasium.wrappers, name)
    return isinstance(found, type) and found.__module__ == module
