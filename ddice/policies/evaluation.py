"""Playing episodes: a batched policy in many copies of the evaluation environment, and the
scores that come out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm import tqdm

from ddice.core import statistics
from ddice.core.config import Config
from ddice.core.randomness import derived_seed, one_seed
from ddice.data.environment import (
    close_environment,
    make_env,
    record_of,
    register_robotics,
    space_shapes,
)
from ddice.data.scores import bundled_reference
from ddice.data.spec import EnvRecord, FixedGoal, ReferenceScores, Spec

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

SUCCESS_KEYS = ("success", "is_success")
# Rounding of bounds that went through float32.
BOUNDS_TOLERANCE = 1e-5


class Actor(Protocol):
    """What evaluation needs of a policy."""

    @property
    def spec(self) -> Spec: ...

    def act(
        self, observation: Any, deterministic: bool = False, seed: int | Sequence[int] | None = None
    ) -> Any: ...


@dataclass(frozen=True)
class Moment:
    """One step of one episode as `evaluate` plays it: observations as the environment gives them,
    the action as it takes it.

    success: what the episode has reported so far; None where the environment reports nothing. over:
    whether it was the last step of the episode.
    """

    episode: int
    step: int
    observation: Any
    action: np.ndarray
    reward: float
    next_observation: Any
    success: bool | None
    over: bool


class Evaluation(Config):
    """What E episodes gave. Every tuple is in the order of the episodes; `model_dump_json` writes
    everything, `model_validate_json` reads it.

    scores: D4RL's convention, 100 (return - random) / (expert - random), or the raw returns when no
    reference scores are known; `label` says which. successes: whether any step of the episode
    reported success; final_successes: whether the last step did; None where the environment reports
    none. seconds: the whole evaluation after the environments were made; policy_seconds: the part
    spent in `policy.act`.
    """

    env_id: str | None
    label: str
    reference: ReferenceScores | None
    seed: int
    deterministic: bool
    returns: tuple[float, ...]
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[bool, ...] | None
    final_successes: tuple[bool, ...] | None
    seconds: float
    policy_seconds: float

    @property
    def mean(self) -> float:
        """The mean score."""
        return statistics.mean(self.scores)

    @property
    def std(self) -> float:
        """The sample standard deviation of the scores over episodes (divisor E - 1); 0 for one
        episode.
        """
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0

    @property
    def iqm(self) -> float:
        """The interquartile mean of the scores."""
        return statistics.iqm(self.scores)

    @property
    def success_rate(self) -> float | None:
        """The share of episodes that reported success at any step; None where the environment
        reports none.
        """
        return None if self.successes is None else float(np.mean(self.successes))

    @property
    def decisions_per_second(self) -> float:
        """Actions chosen per second spent in `policy.act`, at the batch sizes that the
        evaluation happened to have.
        """
        return sum(self.lengths) / max(self.policy_seconds, 1e-9)

    def interval(
        self, statistic: statistics.Statistic = statistics.mean, level: float = 0.95
    ) -> tuple[float, float]:
        """The bootstrap interval of a statistic of the scores over episodes: the luck of the
        episodes only, not that of training.
        """
        return statistics.stratified_interval(self.scores, statistic, level=level)

    def __str__(self) -> str:
        low, high = self.interval()
        iqm_low, iqm_high = self.interval(statistics.iqm)
        success = "" if self.success_rate is None else f", success {100 * self.success_rate:.0f} %"
        return "\n".join(
            (
                f"{self.env_id or 'environment'}: {len(self.returns)} episodes, seed "
                f"{self.seed}{', deterministic' if self.deterministic else ''}",
                f"  score   {self.mean:.2f} [{low:.2f}, {high:.2f}], IQM {self.iqm:.2f} "
                f"[{iqm_low:.2f}, {iqm_high:.2f}], std {self.std:.2f}",
                f"          ({self.label}; in brackets 95 % bootstrap intervals over episodes)",
                f"  return  {np.mean(self.returns):.2f}, {min(self.returns):.2f} to "
                f"{max(self.returns):.2f}; length {np.mean(self.lengths):.1f}, "
                f"{min(self.lengths)} to {max(self.lengths)}{success}",
                f"  speed   {self.decisions_per_second:.0f} decisions/s; {sum(self.lengths)} "
                f"steps in {self.seconds:.1f} s",
            )
        )


def evaluate(
    policy: Actor,
    env: str
    | EnvSpec
    | EnvRecord
    | gymnasium.Env[Any, Any]
    | Callable[[], gymnasium.Env[Any, Any]]
    | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    parallel: int = 50,
    deterministic: bool = False,
    progress: bool = True,
    on_step: Callable[[Moment], None] | None = None,
) -> Evaluation:
    """Plays exactly `episodes` episodes, each to its end, and scores them.

    env: None for the evaluation environment recorded with the dataset; an id, an `EnvSpec` or
    `EnvRecord`, or a function that makes one, always wins.
        A ready-made `gymnasium.Env` is played alone, one episode after the other, and left open.
    parallel: copies of the environment whose observations share one call of the policy. Episode i
    is reset with a seed derived from (seed, i) and its
        action at step t drawn with one derived from (seed, i, t), so `parallel` changes speed only
        (and the last bits of batched arithmetic).
    on_step: is shown every step, in time order within an episode; episodes played in parallel
    alternate. Raises ValueError without an environment, when its spaces do not fit the policy
    (before the first step), and for actions or rewards that are not finite; ImportError with what
    to install when the environment cannot be made.
    """
    if episodes < 1 or parallel < 1:
        raise ValueError(
            "expected at least one episode and one copy of the environment, got "
            f"episodes={episodes} and parallel={parallel}"
        )
    register_robotics()
    make, ready_made = _source(env, policy.spec)
    environments: list[gymnasium.Env[Any, Any]] = []
    run = _Run(policy, one_seed(seed), episodes, deterministic, on_step)
    try:
        environments.append(_made(make))
        require_fit(environments[0], policy.spec)
        while not ready_made and len(environments) < min(parallel, episodes):
            environments.append(_made(make))
        started = time.perf_counter()
        run.play(environments, progress)
        seconds = time.perf_counter() - started
    finally:
        for environment in () if ready_made else environments:
            close_environment(environment)
    env_spec = environments[0].spec
    return _scored(run, policy.spec, None if env_spec is None else env_spec.id, seconds)


def _source(env: Any, spec: Spec) -> tuple[Callable[[], Any], bool]:
    """A function that gives the environment, and whether it came ready made, so that there is
    only this one.
    """
    import gymnasium

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
        return lambda: env, True
    if callable(env):
        return env, False
    record = record_of(env)
    return lambda: make_env(record), False


def _made(make: Callable[[], Any]) -> gymnasium.Env[Any, Any]:
    import gymnasium

    environment = make()
    if not isinstance(environment, gymnasium.Env):
        raise TypeError(f"expected env to make a gymnasium.Env, got {type(environment).__name__}")
    return environment


def require_fit(env: gymnasium.Env[Any, Any], spec: Spec) -> None:
    """Raises ValueError when the policy could not read the observations, would act outside of
    the action space, or knows only another goal.
    """
    import gymnasium

    shapes = space_shapes(env.observation_space)
    for part in spec.observations.parts:
        if shapes is None or shapes.get(part.path) != part.shape:
            have = env.observation_space if shapes is None else shapes
            name = f"observation[{part.path!r}]" if part.path else "observation"
            raise ValueError(
                f"expected an environment with {name} of shape {part.shape}, got {have}: do "
                "environment and policy belong together?"
            )
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(
            f"expected a continuous action space (Box), got {space}: other action spaces are "
            "not supported yet"
        )
    if space.shape != (spec.actions.size,):
        raise ValueError(
            f"expected an environment with actions of shape ({spec.actions.size},), as in the "
            f"dataset, got {space.shape}"
        )
    low, high = np.asarray(spec.actions.low), np.asarray(spec.actions.high)
    slack = BOUNDS_TOLERANCE * (1 + high - low)
    if (low < space.low - slack).any() or (high > space.high + slack).any():
        raise ValueError(
            f"expected an environment that takes actions in [{low}, {high}], as in the "
            f"dataset, got [{space.low}, {space.high}]: is it another version, or wrapped so "
            "that actions are rescaled?"
        )
    goals = getattr(getattr(env.unwrapped, "maze", None), "unique_goal_locations", None)
    if (
        isinstance(spec.view, FixedGoal)
        and goals is not None
        and not all(np.allclose(goal, spec.view.goal) for goal in goals)
    ):
        raise ValueError(
            "expected an environment with the one goal that the policy was trained for, "
            f"{spec.view.goal}, got {len(goals)} goal locations, "
            f'the first at {tuple(goals[0].tolist())}: leave env out, or train with goal="observed"'
        )


def episode_seed(seed: int, episode: int) -> int:
    """The seed with which `evaluate(..., seed=seed)` resets the environment for an episode."""
    return derived_seed(seed, "environment", episode)


@dataclass
class _Episode:
    """One episode in play or played."""

    index: int
    environment: Any
    observation: Any
    length: int = 0
    total: float = 0.0
    reward: float = 0.0
    success: bool | None = None
    final_success: bool | None = None

    def step(self, action: np.ndarray) -> bool:
        """Plays one step; True when it was the last."""
        self.observation, reward, terminated, truncated, info = self.environment.step(action)
        reward = float(reward)
        if not math.isfinite(reward):
            raise ValueError(
                f"expected finite rewards, got {reward} in episode {self.index}, step "
                f"{self.length}: the environment has diverged"
            )
        self.total += reward
        self.reward = reward
        self.length += 1
        reported = next((info[key] for key in SUCCESS_KEYS if key in info), None)
        if reported is not None:
            self.final_success = bool(np.any(reported))
            self.success = bool(self.success) or self.final_success
        return bool(terminated or truncated)

    def moment(self, before: Any, action: np.ndarray, over: bool) -> Moment:
        """The step that was just played."""
        return Moment(
            self.index,
            self.length - 1,
            before,
            action,
            self.reward,
            self.observation,
            self.success,
            over,
        )


def _stack(observations: Sequence[Any]) -> Any:
    """Native observations, one per row -> one native observation with a leading batch axis."""
    if isinstance(observations[0], Mapping):
        return {
            key: _stack([observation[key] for observation in observations])
            for key in observations[0]
        }
    return np.stack(observations)


@dataclass
class _Run:
    """Plays every episode once: a free environment takes the next episode, and one that finds none
    left drops out of the batch.

    No environment resets by itself, so there is no junk transition, and short episodes cannot crowd
    out long ones.
    """

    policy: Actor
    seed: int
    episodes: int
    deterministic: bool
    on_step: Callable[[Moment], None] | None = None
    done: list[_Episode] = field(default_factory=list)
    policy_seconds: float = 0.0

    def play(self, environments: Sequence[Any], progress: bool) -> None:
        waiting = iter(range(self.episodes))
        active = [
            self._begin(index, environment)
            for environment, index in zip(environments, waiting, strict=False)
        ]
        with tqdm(
            total=self.episodes,
            desc="evaluate",
            unit="episode",
            disable=not progress,
            mininterval=0.5,
            dynamic_ncols=True,
        ) as bar:
            while active:
                going = []
                for episode, action in zip(active, self._actions(active), strict=True):
                    before = episode.observation
                    over = episode.step(action)
                    if self.on_step is not None:
                        self.on_step(episode.moment(before, action, over))
                    if not over:
                        going.append(episode)
                        continue
                    self.done.append(episode)
                    bar.set_postfix(
                        {"return": f"{np.mean([one.total for one in self.done]):.4g}"},
                        refresh=False,
                    )
                    bar.update()
                    index = next(waiting, None)
                    if index is not None:
                        going.append(self._begin(index, episode.environment))
                active = going
        self.done.sort(key=lambda episode: episode.index)

    def _begin(self, index: int, environment: Any) -> _Episode:
        observation, _ = environment.reset(seed=episode_seed(self.seed, index))
        return _Episode(index, environment, observation)

    def _actions(self, active: Sequence[_Episode]) -> np.ndarray:
        """One call of the policy for all active episodes -> (B, A) in the dtype of the action
        space.
        """
        seeds = (
            None
            if self.deterministic
            else [
                derived_seed(self.seed, "policy", episode.index, episode.length)
                for episode in active
            ]
        )
        observations = _stack([episode.observation for episode in active])
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
        return actions.astype(active[0].environment.action_space.dtype, copy=False)


def _reference(spec: Spec, env_id: str | None) -> tuple[ReferenceScores | None, str]:
    """The reference scores that apply in this environment, and the words for it."""
    recorded = None if spec.env is None else spec.env.id
    reference = spec.reference if env_id is None or recorded is None or env_id == recorded else None
    if reference is None:
        reference = bundled_reference(env_id)
    if reference is None:
        return None, "raw returns: no reference scores are known" + (
            f" for {env_id}" if env_id else ""
        )
    owner = {"Minari": "Minari's references", "user": "the user's references"}.get(
        reference.source, reference.source
    )
    return (
        reference,
        f"normalised by {owner}, random {reference.random:.6g}, expert {reference.expert:.6g}",
    )


def _scored(run: _Run, spec: Spec, env_id: str | None, seconds: float) -> Evaluation:
    reference, label = _reference(spec, env_id)
    returns = tuple(episode.total for episode in run.done)
    scores = (
        returns
        if reference is None
        else tuple(
            100 * (total - reference.random) / (reference.expert - reference.random)
            for total in returns
        )
    )
    reported = all(episode.success is not None for episode in run.done)
    return Evaluation(
        env_id=env_id,
        label=label,
        reference=reference,
        seed=run.seed,
        deterministic=run.deterministic,
        returns=returns,
        scores=scores,
        lengths=tuple(episode.length for episode in run.done),
        successes=tuple(bool(episode.success) for episode in run.done) if reported else None,
        final_successes=tuple(bool(episode.final_success) for episode in run.done)
        if reported
        else None,
        seconds=seconds,
        policy_seconds=run.policy_seconds,
    )
