"""`evaluate`: from a policy to its scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ddice.core.config import plain_count
from ddice.core.randomness import one_seed
from ddice.data.spec import Spec
from ddice.data.stepping import LONGEST
from ddice.data.tasks import task_of
from ddice.data.trial import require_fit
from ddice.policies.evaluation.environments import arena_of
from ddice.policies.evaluation.moment import Moment
from ddice.policies.evaluation.pairing import PairedEvaluation, paired
from ddice.policies.evaluation.playing import Actor, Run
from ddice.policies.evaluation.scores import Evaluation, scores_of, units
from ddice.policies.evaluation.success import judge

if TYPE_CHECKING:
    from ddice.policies.evaluation.environments import AnyEnvironment


def evaluate(
    policy: Actor,
    env: AnyEnvironment | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    parallel: int = 50,
    deterministic: bool = False,
    max_episode_steps: int = LONGEST,
    progress: bool = True,
    on_step: Callable[[Moment], None] | None = None,
    trust_env: Sequence[str] = (),
) -> Evaluation:
    """Plays exactly `episodes` episodes, each to its end, and scores them.

    env: None for the evaluation environment recorded with the dataset; an id, an `EnvSpec` or
        `EnvRecord`, or a function that makes one, always wins. Every episode has a copy of its own,
        so that nothing is remembered. A ready-made `gymnasium.Env` is played alone, one episode
        after the other, and left open.
    parallel: episodes whose observations share one call of the policy. Episode i is reset with a
        seed derived from (seed, i) and its action at step t drawn with one derived from
        (seed, i, t), so `parallel` changes speed only (and the last bits of batched arithmetic).
    max_episode_steps: an episode that goes on for longer has no end, and is an error.
    on_step: is shown every step, in time order within an episode; episodes played in parallel
        alternate.
    trust_env: modules that the recorded environment may be made by. Without it an environment
        whose maker Gymnasium's registry does not hold is refused: a record may name any code.

    Raises ValueError without an environment, when its spaces do not fit the policy (before the
    first step), when it fails, does not end or remembers, and for actions or rewards that are not
    finite; ImportError with what to install when the environment cannot be made.
    """
    episodes, parallel = plain_count(episodes, "episodes"), plain_count(parallel, "parallel")
    max_episode_steps = plain_count(max_episode_steps, "max_episode_steps")
    if min(episodes, parallel, max_episode_steps) < 1:
        raise ValueError(
            "expected at least one episode, one copy of the environment and one step, got "
            f"episodes={episodes}, parallel={parallel} and max_episode_steps={max_episode_steps}"
        )
    arena = arena_of(env, policy.spec, trust_env)
    run = Run(policy, arena, one_seed(seed), episodes, deterministic, max_episode_steps, on_step)
    try:
        first = arena.open()
        require_fit(first, policy.spec)
        env_id, reference, label = units(policy.spec, first)
        started, making = time.perf_counter(), arena.seconds
        run.play(first, 1 if arena.ready_made else parallel, progress)
        seconds = time.perf_counter() - started - (arena.seconds - making)
    finally:
        arena.close_all()
    returns = tuple(episode.total for episode in run.done)
    success = judge([episode.reports for episode in run.done])
    return Evaluation(
        env_id=env_id,
        label=label,
        reference=reference,
        seed=run.seed,
        deterministic=deterministic,
        returns=returns,
        scores=scores_of(returns, reference),
        lengths=tuple(episode.length for episode in run.done),
        successes=success.ever,
        final_successes=success.final,
        success_note=success.note,
        seconds=seconds,
        policy_seconds=run.policy_seconds,
    )


def evaluate_pair(
    first: Actor,
    second: Actor,
    env: AnyEnvironment | None = None,
    *,
    episodes: int = 100,
    seed: int = 0,
    parallel: int = 50,
    deterministic: bool = False,
    progress: bool = True,
    trust_env: Sequence[str] = (),
) -> PairedEvaluation:
    """`evaluate` of two policies on the same starts, and their differences episode by episode.

    Raises what `evaluate` raises, and ValueError for policies of different environments without
    `env`.
    """
    if env is None:
        env = common_environment(first.spec, second.spec)
    one, other = (
        evaluate(
            policy,
            env,
            episodes=episodes,
            seed=seed,
            parallel=parallel,
            deterministic=deterministic,
            progress=progress,
            trust_env=trust_env,
        )
        for policy in (first, second)
    )
    return paired(one, other)


def common_environment(first: Spec, second: Spec) -> AnyEnvironment:
    """The environment that both datasets record. Raises ValueError where there is none."""
    if first.env is None or second.env is None:
        raise ValueError("expected two policies that record their environment: give env=")
    if task_of(first.env) != task_of(second.env):
        raise ValueError(
            f"expected two policies of the same environment, got {first.env.id} and "
            f"{second.env.id}, with their arguments: give env="
        )
    return first.env
