"""Environments as facts: their spec as JSON, the shapes of their spaces, and their goal
locations if they are goal mazes.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddice.data.allowed import require_allowed, trust_in
from ddice.data.paths import path_below
from ddice.data.source import Bounds
from ddice.data.spec import EnvRecord

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

ENV_SPEC_FIELDS = frozenset(
    (
        *("id", "entry_point", "vector_entry_point", "kwargs", "additional_wrappers"),
        *(
            "reward_threshold",
            "nondeterministic",
            "max_episode_steps",
            "order_enforce",
            "disable_env_checker",
        ),
    )
)
"""What the JSON of `gymnasium.envs.registration.EnvSpec` holds since 1.0; older records have
more, which it refuses.
"""


@dataclass(frozen=True)
class Environment:
    """What a dataset needs to know of an environment."""

    record: EnvRecord
    shapes: dict[str, tuple[int, ...]] | None
    bounds: Bounds | None
    action_shape: tuple[int, ...] | None
    goals: tuple[tuple[float, ...], ...] | None
    """Distinct goal locations, None unless the environment is a maze that lists them."""


def clean_record(text: str) -> EnvRecord:
    """A recorded `EnvSpec.to_json()`, of Gymnasium 0.26 or later, without the fields that
    today's Gymnasium refuses.
    """
    fields = json.loads(text)
    return EnvRecord(
        spec=json.dumps({key: value for key, value in fields.items() if key in ENV_SPEC_FIELDS})
    )


def register_robotics() -> bool:
    """Registers the environments of gymnasium-robotics; False where that package is not
    installed.
    """
    import gymnasium

    try:
        # The package greets every process with a notice about Adroit on the error stream;
        # `ddice.data.scores` says it where it matters.
        with redirect_stderr(io.StringIO()):
            import gymnasium_robotics
    except ImportError:
        return False
    gymnasium.register_envs(gymnasium_robotics)
    return True


def make_env(record: EnvRecord, trust_env: Sequence[str] = ()) -> gymnasium.Env[Any, Any]:
    """The environment that a record describes, if Gymnasium's registry holds what makes it or
    `trust_env` lists its module.

    Raises ValueError for others, before anything is imported; ImportError, with what to install,
    when it cannot be made here.
    """
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    register_robotics()
    try:
        require_allowed(record, trust_env)
    except ImportError as error:
        raise _not_made(record, error) from error
    try:
        return gymnasium.make(EnvSpec.from_json(record.spec))
    except Exception as error:  # constructors raise whatever they like
        raise _not_made(record, error) from error


def _not_made(record: EnvRecord, error: Exception) -> ImportError:
    return ImportError(
        f"expected to be able to make the environment {record.id!r}, got "
        f"{type(error).__name__}: {error}; install what it needs (`pip install "
        "'ddice[robotics]'` for mazes and Gymnasium-Robotics) or give env="
    )


def record_of(env: Any) -> EnvRecord:
    """The record of an env id, a `gymnasium.Env` or an `EnvSpec`. Raises ValueError when it has
    none that could be saved.
    """
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    if isinstance(env, EnvRecord):
        return env
    if isinstance(env, str):
        register_robotics()
        spec = _registered(env)
    elif isinstance(env, EnvSpec):
        spec = env
    elif isinstance(env, gymnasium.Env):
        if env.spec is None:
            raise ValueError(
                f"expected an env made by gymnasium.make, got {env} without a spec: register "
                "it and give its id"
            )
        spec = env.spec
    else:
        raise TypeError(
            f"expected env to be an id, a gymnasium.Env or an EnvSpec, got {type(env).__name__}"
        )
    try:
        return EnvRecord(spec=spec.to_json())
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"expected an env that can be written as JSON, got {spec.id!r}: {error}; register "
            "it with a text, entry_point='module:Class', and with plain arguments"
        ) from error


def _registered(env_id: str) -> EnvSpec:
    """The spec of an id; "module:Id-v0" imports the module first, as `gymnasium.make` does."""
    import gymnasium

    module, separator, name = env_id.partition(":")
    try:
        if separator:
            importlib.import_module(module)
        return gymnasium.spec(name if separator else env_id)
    except (gymnasium.error.Error, ImportError, ValueError) as error:
        raise ValueError(
            f"expected env to be a registered Gymnasium id, got {env_id!r}: {error}; an id of "
            'your own is registered by a module, "module:Id-v0"'
        ) from error


def inspect(env: Any, *, record: EnvRecord, trust_env: Sequence[str] = ()) -> Environment:
    """Make the environment (unless it is given ready made), read what is needed, and close it
    again. trust_env: as for `make_env`, where the record alone says what to make.
    """
    import gymnasium

    given = isinstance(env, gymnasium.Env)
    made: gymnasium.Env[Any, Any] = env if given else make_env(record, trust_in(env, trust_env))
    try:
        space = made.action_space
        box = isinstance(space, gymnasium.spaces.Box)
        return Environment(
            record=record,
            shapes=space_shapes(made.observation_space),
            bounds=(np.asarray(space.low, np.float64), np.asarray(space.high, np.float64))
            if isinstance(space, gymnasium.spaces.Box)
            else None,
            action_shape=tuple(space.shape or ()) if box else None,
            goals=_goals(made),
        )
    finally:
        if not given:
            with suppress(Exception):
                made.close()


def space_shapes(space: Any) -> dict[str, tuple[int, ...]] | None:
    """{path: shape} of the leaves of an observation space, None when a leaf is no box."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        shapes: dict[str, tuple[int, ...]] = {}
        for key in sorted(space.spaces):
            inner = space_shapes(space.spaces[key])
            if inner is None:
                return None
            for path, shape in inner.items():
                shapes[path_below(key, path, "the observation space")] = shape
        return shapes
    return {"": tuple(space.shape)} if isinstance(space, gymnasium.spaces.Box) else None


def _goals(env: Any) -> tuple[tuple[float, ...], ...] | None:
    maze = getattr(env.unwrapped, "maze", None)
    locations = getattr(maze, "unique_goal_locations", None)
    if locations is None:
        return None
    return tuple(sorted({tuple(float(x) for x in location) for location in locations}))


def close_environment(env: Any) -> None:
    """Closes an environment and removes the scratch file that Gymnasium-Robotics' mazes leave in
    the temporary folder, one per copy.
    """
    scratch = getattr(env.unwrapped, "tmp_xml_file_path", None)
    env.close()
    if scratch is not None:
        Path(scratch).unlink(missing_ok=True)


@contextmanager
def closing_environment(env: gymnasium.Env[Any, Any]) -> Iterator[gymnasium.Env[Any, Any]]:
    """The environment, closed after the block as `close_environment` does."""
    try:
        yield env
    finally:
        close_environment(env)
