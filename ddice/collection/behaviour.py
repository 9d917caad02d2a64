"""Who plays: policies by name or as objects, each as something that begins an episode and then
turns observations into actions.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ddice.collection.episodes import Act
from ddice.collection.stable_baselines import load_stable_baselines
from ddice.core.config import import_function
from ddice.core.randomness import derived_seed
from ddice.dice_backends.q_function import QFunction
from ddice.policies.policy import Policy, load_policy

PolicyFunction: TypeAlias = Callable[[Any, np.random.Generator], Any]
"""(observation, generator) -> action (A,) within the bounds; every random number is drawn from
the generator, which is new in every episode.
"""

AnyPolicy: TypeAlias = str | PolicyFunction | Policy
EXPECTED = (
    '"random", "module:function" with function(observation, generator) -> action, the folder '
    "of a ddice policy or of a run, "
    "or a Stable-Baselines3 .zip"
)


@dataclass(frozen=True)
class Behaviour:
    """One policy of a collection: its name, its share of the steps, what begins episode i with
    it, and a fingerprint of what it does.
    """

    name: str
    share: float
    begin: Callable[[int], Act]
    fingerprint: str


@dataclass(frozen=True)
class Loading:
    """What all policies of a collection share: the seed, the environment's action space, and how
    policies with an own sampler are asked.
    """

    seed: int
    action_space: Any
    deterministic: bool
    device: str
    trust_pickle: bool
    trust: tuple[str, ...] = ()


def load_behaviours(
    policies: AnyPolicy | Mapping[Any, float], loading: Loading
) -> tuple[Behaviour, ...]:
    """One policy, or {policy: share}; shares are relative to their sum. Raises ValueError or
    TypeError that names the policy at fault.
    """
    shares = dict(policies) if isinstance(policies, Mapping) else {policies: 1.0}
    if not shares or not all(math.isfinite(share) and share > 0 for share in shares.values()):
        raise ValueError(f"expected at least one policy, and positive shares, got {shares}")
    total = math.fsum(shares.values())
    return tuple(_load(policy, share / total, loading) for policy, share in shares.items())


def _load(policy: AnyPolicy, share: float, loading: Loading) -> Behaviour:
    if isinstance(policy, str):
        return _named(policy, share, loading)
    if isinstance(policy, Policy):
        return Behaviour("ddice policy", share, _begin_policy(policy, loading), _weights(policy))
    name = f"{policy.__module__}:{getattr(policy, '__qualname__', type(policy).__qualname__)}"
    return Behaviour(
        name, share, _begin_function(policy, name, loading.seed), _source(policy.__module__)
    )


def _named(name: str, share: float, loading: Loading) -> Behaviour:
    path = Path(name)
    if name == "random":
        low, high = loading.action_space.low, loading.action_space.high
        return Behaviour(
            name,
            share,
            _begin_function(lambda _, generator: generator.uniform(low, high), name, loading.seed),
            name,
        )
    if path.suffix == ".zip":
        model = load_stable_baselines(
            path, deterministic=loading.deterministic, trust_pickle=loading.trust_pickle
        )
        return Behaviour(
            name, share, _begin_seeded(model, loading.seed), _digest(path.read_bytes())
        )
    if path.is_dir():
        policy = load_policy(path, device=loading.device, trust=loading.trust)
        return Behaviour(name, share, _begin_policy(policy, loading), _weights(policy))
    if ":" not in name:
        raise ValueError(
            f"expected a policy to be {EXPECTED}, got {name!r}, which is none of them and no folder"
        )
    function = import_function(name, "policy")
    return Behaviour(
        name, share, _begin_function(function, name, loading.seed), _source(name.partition(":")[0])
    )


def _begin_function(function: PolicyFunction, name: str, seed: int) -> Callable[[int], Act]:
    if inspect.isclass(function) or not callable(function):
        raise TypeError(
            f"expected {name} to be a function(observation, generator) -> action, got "
            f"{function!r}: make the object, and name that"
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"expected {name} to be a function(observation, generator) -> action, but {error}"
        ) from error
    reset = getattr(function, "reset", None)

    def begin(index: int) -> Act:
        generator = np.random.default_rng(derived_seed(seed, "policy", index))
        if callable(reset):
            reset()
        return lambda observation: function(observation, generator)

    return begin


def _begin_seeded(act: Callable[[Any, int], Any], seed: int) -> Callable[[int], Act]:
    """Step t of episode i draws from the seed that `ddice.evaluate` gives it, so that the same
    episodes come out.
    """

    def begin(index: int) -> Act:
        steps = itertools.count()
        return lambda observation: act(
            observation, derived_seed(seed, "policy", index, next(steps))
        )

    return begin


def _begin_policy(policy: Policy, loading: Loading) -> Callable[[int], Act]:
    if loading.deterministic:
        return lambda _: lambda observation: policy.act(observation, deterministic=True)
    return _begin_seeded(
        lambda observation, seed: policy.act(observation, seed=[seed]), loading.seed
    )


def _digest(*contents: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(content)
    return digest.hexdigest()


def _source(module: str) -> str:
    """Changes with the file of the module; functions typed into a notebook have none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return "" if file is None else _digest(Path(file).read_bytes())


def _weights(policy: Policy) -> str:
    state = dict(policy.sampler.state_dict()) | (
        dict(policy.q.state_dict(prefix="q.")) if isinstance(policy.q, QFunction) else {}
    )
    return _digest(
        policy.config.digest().encode(),
        *(value.cpu().numpy().tobytes() for value in state.values()),
    )
