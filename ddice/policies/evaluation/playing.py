"""Every episode once, in its own environment; the policy is asked for all of them at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from ddice.core.randomness import derived_seed
from ddice.data import stepping
from ddice.data.spec import Spec
from ddice.policies.evaluation.environments import Arena
from ddice.policies.evaluation.moment import Moment
from ddice.policies.evaluation.success import Reports

if TYPE_CHECKING:
    import gymnasium


class Actor(Protocol):
    """What evaluation needs of a policy."""

    @property
    def spec(self) -> Spec: ...

    def act(
        self, observation: Any, deterministic: bool = False, seed: int | Sequence[int] | None = None
    ) -> Any: ...


def episode_seed(seed: int, episode: int) -> int:
    """The seed with which `evaluate(..., seed=seed)` resets the environment for an episode."""
    return derived_seed(seed, "environment", episode)


@dataclass
class Episode:
    """One episode in play or played."""

    index: int
    environment: Any
    observation: Any
    length: int = 0
    total: float = 0.0
    reports: Reports = field(default_factory=Reports)

    def step(self, action: np.ndarray, longest: int) -> Moment:
        """Plays one step. Raises ValueError, with the place, for what is wrong with it."""
        try:
            if self.length == longest:
                raise ValueError(
                    f"the episode does not end within {longest:,} steps: give the environment a "
                    "time limit (gymnasium.register(..., max_episode_steps=1000)), or more "
                    "steps, evaluate(max_episode_steps=...)"
                )
            taken = stepping.within(action, self.environment.action_space)
            outcome = stepping.step(self.environment, taken)
        except ValueError as error:
            raise ValueError(f"{error} (episode {self.index}, step {self.length})") from error
        before = self.observation
        self.observation = outcome.observation
        self.total += outcome.reward
        self.length += 1
        self.reports.read(outcome.info)
        return Moment(
            episode=self.index,
            step=self.length - 1,
            observation=before,
            action=taken,
            reward=outcome.reward,
            next_observation=self.observation,
            success=self.reports.ever,
            over=outcome.over,
            info=outcome.info,
        )


def stack(observations: Sequence[Any]) -> Any:
    """Native observations, one per row -> one native observation with a leading batch axis."""
    first = observations[0]
    if isinstance(first, Mapping):
        return {key: stack([observation[key] for observation in observations]) for key in first}
    return np.stack(observations)


@dataclass
class Run:
    """Plays every episode once: when one is over, the next one begins in a new environment, and
    where none is left its place drops out of the batch.

    No environment resets by itself, so there is no junk transition, and short episodes cannot crowd
    out long ones.
    """

    policy: Actor
    arena: Arena
    seed: int
    episodes: int
    deterministic: bool
    longest: int
    on_step: Callable[[Moment], None] | None = None
    done: list[Episode] = field(default_factory=list)
    policy_seconds: float = 0.0

    def play(self, first: gymnasium.Env[Any, Any], parallel: int, progress: bool) -> None:
        """All episodes, `parallel` at a time; number 0 is played in `first`."""
        waiting = iter(range(self.episodes))
        active = [self._begin(next(waiting), first)]
        while len(active) < min(parallel, self.episodes):
            active.append(self._begin(next(waiting), self.arena.open()))
        with tqdm(
            total=self.episodes,
            desc="evaluate",
            unit="episode",
            disable=not progress,
            mininterval=0.5,
            dynamic_ncols=True,
        ) as bar:
            while active:
                active = list(self._step(active, waiting, bar))
        # In which order episodes end depends on `parallel`.
        self.done.sort(key=lambda episode: episode.index)

    def _step(
        self, active: Sequence[Episode], waiting: Iterator[int], bar: tqdm[Any]
    ) -> Iterator[Episode]:
        """One step of every episode -> those in play after it, a new one in the place of one that
        is over.
        """
        for episode, action in zip(active, self._actions(active), strict=True):
            moment = episode.step(action, self.longest)
            if self.on_step is not None:
                self.on_step(moment)
            if not moment.over:
                yield episode
                continue
            # Closed before the next one is opened, so that never more than `parallel` are open.
            self._end(episode, bar)
            index = next(waiting, None)
            if index is not None:
                yield self._begin(index, self.arena.open())

    def _begin(self, index: int, environment: Any) -> Episode:
        try:
            observation = stepping.reset(environment, episode_seed(self.seed, index))
        except ValueError as error:
            raise ValueError(f"{error} (episode {index})") from error
        return Episode(index, environment, observation)

    def _end(self, episode: Episode, bar: tqdm[Any]) -> None:
        self.arena.close(episode.environment)
        self.done.append(episode)
        mean = np.mean([one.total for one in self.done])
        bar.set_postfix({"return": f"{mean:.4g}"}, refresh=False)
        bar.update()

    def _actions(self, active: Sequence[Episode]) -> np.ndarray:
        """One call of the policy for all active episodes -> (B, A)."""
        seeds = None
        if not self.deterministic:
            seeds = [
                # Of the episode and its step, not of the call: with whom an action shares a batch
                # does not matter.
                derived_seed(self.seed, "policy", episode.index, episode.length)
                for episode in active
            ]
        observations = stack([episode.observation for episode in active])
        started = time.perf_counter()
        actions = np.asarray(
            self.policy.act(observations, deterministic=self.deterministic, seed=seeds)
        )
        self.policy_seconds += time.perf_counter() - started
        expected = (len(active), self.policy.spec.actions.size)
        if actions.shape != expected:
            raise ValueError(
                f"expected actions of shape {expected} from the policy, got {actions.shape}"
            )
        if not np.isfinite(actions).all():
            episode = active[int(np.argwhere(~np.isfinite(actions))[0, 0])]
            raise ValueError(
                "expected finite actions from the policy, got NaN or infinity in episode "
                f"{episode.index}, step {episode.length}"
            )
        return actions
