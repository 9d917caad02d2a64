"""Where an evaluation plays: an environment of its own for every episode, so that nothing is
remembered from one to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ddice.data.allowed import trust_in
from ddice.data.environment import close_environment, make_env, record_of, register_robotics
from ddice.data.memory import memory_of
from ddice.data.spec import EnvRecord, Spec

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    AnyEnvironment: TypeAlias = (
        str | EnvSpec | EnvRecord | gymnasium.Env[Any, Any] | Callable[[], gymnasium.Env[Any, Any]]
    )


@dataclass
class Arena:
    """Opens and closes environments; one that came ready made is the only one, and stays open.

    seconds: spent on making them.
    """

    make: Callable[[], Any]
    ready_made: bool
    seconds: float = 0.0
    _open: list[Any] = field(default_factory=list)
    _last: Any = None

    def open(self) -> gymnasium.Env[Any, Any]:
        """An environment that nobody has played in; again the same one where it is ready made."""
        import gymnasium

        started = time.perf_counter()
        made = self.make()
        self.seconds += time.perf_counter() - started
        if not isinstance(made, gymnasium.Env):
            raise TypeError(f"expected env to make a gymnasium.Env, got {type(made).__name__}")
        if self.ready_made:
            return made
        if made is self._last or any(made is one for one in self._open):
            raise TypeError(
                "expected env to make a new environment each time, got the same one twice: give "
                "the environment itself, or make it inside of the function"
            )
        # Remembered even when it is closed: with one episode at a time nothing else would be open,
        # and a function that returns the same object each time would go unnoticed.
        self._last = made
        self._open.append(made)
        return made

    def close(self, environment: gymnasium.Env[Any, Any]) -> None:
        """Closes one that `open` gave."""
        if not self.ready_made:
            self._open = [one for one in self._open if one is not environment]
            close_environment(environment)

    def close_all(self) -> None:
        """Closes what is still open."""
        while self._open:
            self.close(self._open[-1])


def arena_of(env: AnyEnvironment | None, spec: Spec, trust_env: Sequence[str] = ()) -> Arena:
    """Where to play; trust_env: as for `make_env`. Raises ValueError where nothing says so, and
    for a ready-made environment with running statistics; TypeError for a vector environment.
    """
    import gymnasium

    register_robotics()
    if env is None:
        if spec.env is None:
            raise ValueError(
                "expected an environment to play in, got none: the dataset records none, so "
                "give env= (an id, an EnvSpec or a function)"
            )
        env = spec.env
    if isinstance(env, gymnasium.vector.VectorEnv):
        raise TypeError(
            "expected a single environment, got a VectorEnv: give the function that makes one "
            "copy, and parallel="
        )
    if isinstance(env, gymnasium.Env):
        ready = env
        remembered = memory_of(ready)
        if remembered:
            raise ValueError(
                f"the environment remembers: {' and '.join(remembered)} keeps running statistics, "
                "so that scores would depend on the order of the episodes; give the function that "
                "makes it, or freeze them (update_running_mean = False)"
            )
        return Arena(lambda: ready, ready_made=True)
    if callable(env):
        return Arena(env, ready_made=False)
    record, trust = record_of(env), trust_in(env, trust_env)
    return Arena(lambda: make_env(record, trust), ready_made=False)
