"""How long an evaluation takes here, from a few decisions and a few steps of the environment."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from ddice.data import stepping
from ddice.policies.evaluation.environments import arena_of
from ddice.policies.evaluation.playing import Actor, stack

DECISIONS, STEPS = 3, 50  # that are measured
USUAL_LENGTH = 1000  # steps of an episode without a time limit, as of most recorded tasks


def evaluation_seconds(
    policy: Actor, *, episodes: int, parallel: int, trust_env: Sequence[str] = ()
) -> float:
    """Seconds that `evaluate` takes at most: every episode goes on to the time limit of the
    environment that the policy's data record; trust_env: as there. Raises what `evaluate` raises
    before its first step.
    """
    rows = min(episodes, parallel)
    arena = arena_of(None, policy.spec, trust_env)
    try:
        env = arena.open()
        observation = stepping.reset(env, 0)
        deciding, action = _deciding(policy, stack([observation] * rows))
        playing = _playing(env, action)
    finally:
        arena.close_all()
    limit = None if policy.spec.env is None else policy.spec.env.time_limit
    steps = episodes * (limit or USUAL_LENGTH)
    return arena.seconds * episodes + steps * (deciding / rows + playing)


def _deciding(policy: Actor, observations: object) -> tuple[float, np.ndarray]:
    """Seconds of one decision for all rows, and the action of the first row."""
    actions = np.asarray(policy.act(observations, seed=0))  # not counted: caches are made
    started = time.perf_counter()
    for _ in range(DECISIONS):
        policy.act(observations, seed=0)
    return (time.perf_counter() - started) / DECISIONS, actions[0]


def _playing(env: object, action: np.ndarray) -> float:
    """Seconds of one step, with its share of the resets."""
    started = time.perf_counter()
    for number in range(STEPS):
        if stepping.step(env, action).over:
            stepping.reset(env, number)
    return (time.perf_counter() - started) / STEPS
