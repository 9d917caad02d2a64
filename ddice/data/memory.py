"""Environments that remember: wrappers with running statistics, whose numbers depend on what was
played before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ddice.data.spec import EnvRecord
from ddice.data.tasks import wrappers_of

if TYPE_CHECKING:
    import gymnasium

NORMALIZES = "normalize"
"""In the names of Gymnasium's wrappers with running statistics, and of most others."""

STATISTICS = "runningmean"
"""In the names of the classes that hold such statistics: Gymnasium's is RunningMeanStd."""


def recorded_memory(record: EnvRecord) -> tuple[str, ...]:
    """The names of the wrappers of a record that keep running statistics."""
    names = (str(one["name"]) for one in wrappers_of(record))
    return tuple(name for name in names if NORMALIZES in name.lower())


def memory_of(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    """The names of the layers of an environment whose running statistics go on changing."""
    return tuple(type(layer).__name__ for layer in _layers(env) if _remembers(layer))


def reward_layers(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    """The names of the wrappers of an environment that change its rewards, as far as they say."""
    import gymnasium

    return tuple(
        type(layer).__name__
        for layer in _layers(env)
        if isinstance(layer, gymnasium.RewardWrapper) or type(layer).__name__ == "NormalizeReward"
    )


def _layers(env: Any) -> Iterator[Any]:
    """From the outermost wrapper to the environment itself."""
    while env is not None:
        yield env
        env = getattr(env, "__dict__", {}).get("env")


def _remembers(layer: Any) -> bool:
    if getattr(layer, "update_running_mean", True) is False:  # frozen
        return False
    held = getattr(layer, "__dict__", {}).values()
    return any(STATISTICS in type(value).__name__.lower() for value in held)


def words(names: tuple[str, ...]) -> str:
    """What such wrappers mean for data and for scores."""
    which = " and ".join(names)
    return (
        f"the environment is wrapped in {which}, whose running statistics are not part of any "
        "record: what it normalises depends on what was played before. An evaluation begins them "
        "anew in every episode, so that no score depends on another; better evaluate without it "
        "(env=), and collect raw rewards and observations"
    )
