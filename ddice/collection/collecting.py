"""Recording any policies in any environment, as a Minari dataset."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from tqdm import tqdm

from ddice.collection.behaviour import AnyPolicy, Behaviour, Loading, load_behaviours
from ddice.collection.episodes import ActionNoise, Episode, play, require_boxes
from ddice.collection.parts import Parts
from ddice.core.cache import entry
from ddice.core.config import Config
from ddice.core.machine import versions
from ddice.core.randomness import one_seed
from ddice.data.allowed import trust_in
from ddice.data.environment import closing_environment, make_env, record_of, register_robotics
from ddice.data.memory import memory_of, words
from ddice.data.minari_store import dataset_metadata, has_dataset
from ddice.data.minari_writer import write_dataset
from ddice.data.scores import bundled_reference
from ddice.data.spec import EnvRecord

# Steps that a killed collection can lose.
PART = 5_000
PACKAGES = (
    "ddice",
    "numpy",
    "gymnasium",
    "gymnasium-robotics",
    "mujoco",
    "torch",
    "stable-baselines3",
)
METADATA_KEY = "ddice_collection"


class Player(Config):
    """A policy of a collection, its share of the steps, and a fingerprint of its weights or
    source.
    """

    name: str
    share: float
    fingerprint: str


class Collection(Config):
    """What a collection is made of; written into the metadata of the dataset."""

    env: EnvRecord
    policies: tuple[Player, ...]
    steps: int | None = Field(ge=1)
    episodes: int | None = Field(ge=1)
    seed: int = Field(ge=0)
    noise: float = Field(
        ge=0,
        description="standard deviation of Gaussian action noise, in half widths of the bounds",
    )
    epsilon: float = Field(ge=0, le=1, description="probability of a uniform action")
    deterministic: bool
    versions: dict[str, str]

    @property
    def text(self) -> str:
        """A sentence for people."""
        policies = ", ".join(
            f"{player.name} {100 * player.share:.3g} %" for player in self.policies
        )
        noise = f"; Gaussian action noise {self.noise:g}" if self.noise else ""
        return f"{policies}{noise}" + (
            f"; uniform actions with probability {self.epsilon:g}" if self.epsilon else ""
        )


def collect(
    dataset_id: str,
    env: Any,
    policies: AnyPolicy | Mapping[Any, float],
    *,
    steps: int | None = None,
    episodes: int | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    noise: float = 0.0,
    epsilon: float = 0.0,
    deterministic: bool = False,
    reference: tuple[float, float] | None = None,
    trust_pickle: bool = False,
    trust: Sequence[str] = (),
    device: str = "auto",
    progress: bool = True,
) -> str:
    """Records whole episodes of one policy, or of {policy: share}, as a local Minari dataset, and
    returns its id.

    env: a Gymnasium id ("module:Id" imports the module first), with `env_kwargs` for
    `gymnasium.make`; or an `EnvSpec`, or an environment with one. policies: "random"; a
    function(observation, generator) -> action, or its name "module:function"; a ddice policy, or
    its folder; a .zip of
        Stable-Baselines3, which is unpickled and so needs `trust_pickle`. A function with an
        attribute `reset` has it called before every episode.
    steps, episodes: one of them; the last episode passes `steps` where it must. Every next episode
    goes to the policy with the fewest steps for
        its share, so that no policy plays more than its share of the steps and one episode, at any
        time.
    noise, epsilon: a uniform action with probability epsilon, else action + noise * half width of
    the bounds * N(0, 1), clipped into them. trust: as for `ddice.load_policy`, of policies that are
    given by their folder. deterministic: for ddice policies and those of
    Stable-Baselines3. reference: the returns of (random, expert); None: the bundled ones, if any.
    Episode i is a function of (seed, i, its policy) alone: it has an environment of its own, reset
    with its own seed, which the dataset records, and its policy and its noise draw from their own
    generators. Finished episodes
    are kept in the cache, so that the same call goes on where a killed one stopped, and ends with
    the same dataset; a ddice policy plays the episodes that `ddice.evaluate` plays with that seed.
    Raises ValueError for an id that is taken by something else, spaces that are no boxes, and what
    `play` refuses; ImportError with what to install.
    """
    if (steps is None) == (episodes is None):
        raise ValueError(
            f"expected steps or episodes, one of them, got steps={steps} and episodes={episodes}"
        )
    if reference is not None and not reference[0] < reference[1]:
        raise ValueError(
            f"expected the returns of (random, expert), the first below the second, got {reference}"
        )
    seed = one_seed(seed)
    record = _record(env, env_kwargs)

    def make() -> Any:
        return make_env(record, trust_in(env, ()))

    with closing_environment(make()) as environment:
        require_boxes(environment)
        if remembered := memory_of(environment):
            raise ValueError(f"expected an environment that forgets: {words(remembered)}")
        space = environment.action_space
    behaviours = load_behaviours(
        policies, Loading(seed, space, deterministic, device, trust_pickle, tuple(trust))
    )
    plan = Collection(
        env=record,
        policies=tuple(
            Player(name=one.name, share=one.share, fingerprint=one.fingerprint)
            for one in behaviours
        ),
        steps=steps,
        episodes=episodes,
        seed=seed,
        noise=noise,
        epsilon=epsilon,
        deterministic=deterministic,
        versions=versions(PACKAGES),
    )
    if has_dataset(dataset_id):
        _require_same(dataset_id, plan)
        return dataset_id
    # How much is asked for is left out, so that a collection that was stopped can go on to
    # another end.
    work = entry("collection", plan.digest(without=("steps", "episodes")))
    work.describe(
        {
            "stage": "collection",
            "parts": [dataset_id],
            "steps": steps or 0,
            "seed": seed,
            "data": plan.text,
        }
    )
    played = _played(make, behaviours, plan, Parts(work.folder), progress)
    _write(dataset_id, played, plan, reference)
    shutil.rmtree(work.folder)
    return dataset_id


def _require_same(dataset_id: str, plan: Collection) -> None:
    """Raises ValueError unless the dataset that is there came from this plan, whatever the
    versions of the packages then.
    """
    made = dataset_metadata(dataset_id).get(METADATA_KEY, {})
    wanted = plan.model_dump(mode="json")
    if differ := [name for name in wanted if name != "versions" and made.get(name) != wanted[name]]:
        raise ValueError(
            f"a dataset {dataset_id!r} exists already, with other {', '.join(differ)}: give "
            f"another id, or run `minari delete {dataset_id}`"
        )


def _record(env: Any, env_kwargs: Mapping[str, Any] | None) -> EnvRecord:
    import gymnasium

    if not isinstance(env, str):
        if env_kwargs:
            raise ValueError(
                "expected env_kwargs with the id of an environment only: give them to "
                "gymnasium.make instead"
            )
        return record_of(env)
    register_robotics()
    try:
        made = gymnasium.make(env, **(env_kwargs or {}))
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise ValueError(
            f"expected an environment that can be made, got {env!r} with "
            f"{dict(env_kwargs or {})}: {error}"
        ) from error
    with closing_environment(made):
        return record_of(made)


def _played(
    make: Callable[[], Any],
    behaviours: Sequence[Behaviour],
    plan: Collection,
    parts: Parts,
    progress: bool,
) -> list[Episode]:
    """All episodes: those that an earlier call kept, then new ones, each in an environment that
    `make` makes for it, which are kept too, however this ends.
    """
    kept, played = parts.load(), list[Episode]()
    saved, noise = len(kept), ActionNoise(plan.noise, plan.epsilon)
    shares, steps, total = (
        np.array([one.share for one in behaviours]),
        np.zeros(len(behaviours)),
        0.0,
    )
    unit, target = ("step", plan.steps) if plan.episodes is None else ("episode", plan.episodes)
    bar = tqdm(
        total=target,
        desc=plan.env.id,
        unit=unit,
        unit_scale=True,
        disable=not progress,
        mininterval=0.5,
        dynamic_ncols=True,
    )
    try:
        while (steps.sum() if plan.episodes is None else len(played)) < (target or 0):
            index = len(played)
            if index < len(kept):
                episode = kept[index]
            else:
                policy = int(np.argmin(steps / shares))
                act = behaviours[policy].begin(index)
                # Another one for every episode, because an environment may remember the last.
                with closing_environment(make()) as environment:
                    episode = play(
                        environment, act, noise, seed=plan.seed, index=index, policy=policy
                    )
            played.append(episode)
            steps[episode.policy] += len(episode)
            total += float(episode.rewards.sum())
            bar.set_postfix({"mean return": f"{total / len(played):.4g}"}, refresh=False)
            bar.update(len(episode) if unit == "step" else 1)
            if sum(map(len, played[saved:])) >= PART:
                parts.save(saved, played[saved:])
                saved = len(played)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped with {len(played)} episodes, {steps.sum():,.0f} steps, which are kept: "
            "the same command goes on"
        ) from None
    finally:
        bar.close()
        if len(played) > saved:
            parts.save(saved, played[saved:])
    return played


def _write(
    dataset_id: str,
    played: Sequence[Episode],
    plan: Collection,
    reference: tuple[float, float] | None,
) -> None:
    write_dataset(
        dataset_id,
        list(_native(played, plan)),
        env_spec_json=plan.env.spec,
        eval_env_spec_json=plan.env.spec,
        reference_scores=bundled_reference(plan.env) if reference is None else reference,
        description=(
            f"{plan.env.id}, {len(played)} episodes, seed {plan.seed}, collected by ddice: "
            f"{plan.text}."
        ),
        algorithm=plan.text,
        author="ddice",
        metadata={METADATA_KEY: plan.model_dump(mode="json")},
    )


def _native(played: Sequence[Episode], plan: Collection) -> Iterator[dict[str, Any]]:
    """Episodes as `write_dataset` takes them; only the last step of an episode can end it."""
    for episode in played:
        last = np.arange(len(episode)) == len(episode) - 1
        yield {
            "observations": episode.observations,
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminations": last & episode.terminated,
            "truncations": last & episode.truncated,
            "seed": episode.seed,
            "metadata": {"policy": plan.policies[episode.policy].name},
        }
