"""Collections with known answers: an environment whose episodes follow from the seeds, played by
policies that can be worked out by hand.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch

import ddice
from ddice.cli import main
from ddice.collection import collect, collecting
from ddice.collection.behaviour import Loading, load_behaviours
from ddice.collection.episodes import ActionNoise, play
from ddice.collection.parts import Parts
from ddice.core.cache import entries
from ddice.core.randomness import derived_seed
from ddice.data.environment import close_environment
from ddice.data.minari_store import has_dataset
from ddice.diffusion.networks import MLP
from ddice.diffusion.samplers import Gaussian, Sampler, Selection
from ddice.policies.policy import Policy, make_policy

LOW, HIGH = np.array([-2.0, 0.0]), np.array([4.0, 0.5])
COUNTER = "ddice-test/Counter-v0"


class Counter(gymnasium.Env[Any, Any]):
    """The clock t and the sum of the first actions; reward 10 t + first action. The seed draws the
    length, 2 to 6; a second action of 0.5 makes it 2.

    Ends by termination at 2 and 4, by truncation at 3, by both at 5 and 6.
    It writes its observations into the same arrays again and again.
    """

    steps: ClassVar[int] = 0
    stop: ClassVar[int | None] = None

    def __init__(self, fault: str | None = None) -> None:
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {
                "total": box(-np.inf, np.inf, (1,), np.float32),
                "inner": gymnasium.spaces.Dict({"clock": box(0, np.inf, (1,), np.float64)}),
            }
        )
        self.action_space = box(LOW.astype(np.float32), HIGH.astype(np.float32))
        if fault == "discrete":
            self.action_space = gymnasium.spaces.Discrete(2)
        if fault == "unbounded":
            self.action_space = box(-np.inf, np.inf, (2,), np.float32)
        if fault == "image":
            self.observation_space = box(0, 255, (8, 8, 3), np.uint8)
        if fault == "text":
            self.observation_space = gymnasium.spaces.Text(3)
        self.fault, self.seen = (
            fault,
            {"total": np.zeros(1, np.float32), "inner": {"clock": np.zeros(1)}},
        )

    @staticmethod
    def length_of(seed: int) -> int:
        return 2 + seed % 5

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.length = self.length_of(seed)
        self.seen["total"][:], self.seen["inner"]["clock"][:] = 0, 0
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if Counter.steps == Counter.stop:
            raise KeyboardInterrupt
        Counter.steps += 1
        assert action.dtype == np.float32
        clock = self.seen["inner"]["clock"]
        if clock[0] == 1 and self.fault == "crash":
            raise RuntimeError("the wheels came off")
        reward = 10 * clock[0] + float(action[0])
        if clock[0] == 1 and self.fault in ("nan", "blind"):
            reward, self.seen["total"][:] = (
                (math.nan, 0) if self.fault == "nan" else (0.0, math.inf)
            )
        clock += 1
        self.seen["total"] += action[0]
        length = 2 if action[1] == 0.5 else self.length
        over = clock[0] >= length and self.fault != "endless"
        action[:] = 0  # what an environment does to its argument is its own business
        return self.seen, reward, over and length in (2, 4, 5, 6), over and length in (3, 5, 6), {}


gymnasium.register(
    COUNTER, entry_point=f"{__name__}:Counter", disable_env_checker=True, order_enforce=False
)


def steady(observation: Any, generator: np.random.Generator) -> list[float]:
    """1, 2, 3 and 4, whatever happens."""
    return [min(1.0 + float(observation["inner"]["clock"][0]), 4.0), 0.25]


def hasty(observation: Any, generator: np.random.Generator) -> np.ndarray:
    """Ends every episode after two steps."""
    return np.array([0.0, 0.5])


def drawing(observation: Any, generator: np.random.Generator) -> np.ndarray:
    """As `random` draws, in the lower half of the second action."""
    return generator.uniform(LOW, [4.0, 0.25])


class Remembering:
    """Counts its own steps, and forgets them between episodes."""

    def __init__(self) -> None:
        self.count = 100.0

    def reset(self) -> None:
        self.count = 0.0

    def __call__(self, observation: Any, generator: np.random.Generator) -> list[float]:
        self.count += 1
        return [min(self.count, 4.0), 0.25]


remembering = Remembering()
broken = 3


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counter, "stop", None)
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def make(
    name: str = "test/counter-v0", policies: Any = "test_collect:steady", **settings: Any
) -> Any:
    """The dataset as Minari reads it."""
    import minari

    amount = {} if "steps" in settings or "episodes" in settings else {"episodes": 6}
    return minari.load_dataset(
        collect(name, COUNTER, policies, progress=False, **amount, **settings)
    )


def contents(dataset: Any) -> list[Any]:
    """Everything that is recorded of every episode."""
    facts = dataset.storage.get_episode_metadata(dataset.episode_indices)
    return [
        {
            "total": one.observations["total"].tolist(),
            "clock": one.observations["inner"]["clock"].tolist(),
            "actions": one.actions.tolist(),
            "rewards": one.rewards.tolist(),
            "terminations": one.terminations.tolist(),
            "truncations": one.truncations.tolist(),
            "facts": fact,
        }
        for one, fact in zip(dataset.iterate_episodes(), facts, strict=True)
    ]


def by_hand(index: int, seed: int = 0) -> dict[str, Any]:
    """Episode `index` of `steady`."""
    reset = derived_seed(seed, "environment", index)
    length = Counter.length_of(reset)
    first = [1.0, 2.0, 3.0, 4.0, 4.0, 4.0][:length]
    last = [False] * (length - 1)
    return {
        "total": [[total] for total in itertools.accumulate([0.0, *first])],
        "clock": [[float(clock)] for clock in range(length + 1)],
        "actions": [[action, 0.25] for action in first],
        "rewards": [10.0 * clock + action for clock, action in enumerate(first)],
        "terminations": [*last, length != 3],
        "truncations": [*last, length in (3, 5, 6)],
        "facts": {
            "id": index,
            "seed": reset,
            "total_steps": length,
            "policy": "test_collect:steady",
        },
    }


@pytest.mark.parametrize("policy", ["test_collect:steady", steady, "test_collect:remembering"])
def test_arrays_are_those_worked_out_by_hand(policy: Any) -> None:
    found = contents(make(policies=policy, seed=3, episodes=12))
    expected = [by_hand(index, seed=3) for index in range(12)]
    for one in expected:
        one["facts"]["policy"] = policy if isinstance(policy, str) else "test_collect:steady"
    assert found == expected
    assert {len(one["actions"]) for one in expected} == {2, 3, 4, 5, 6}


def test_steps_are_reached_by_whole_episodes() -> None:
    lengths = [len(by_hand(index)["actions"]) for index in range(50)]
    for steps in (1, 20, 47):
        count = next(n for n in range(50) if sum(lengths[:n]) >= steps)
        assert contents(make(f"test/steps-{steps}-v0", steps=steps)) == [
            by_hand(index) for index in range(count)
        ]


def test_the_set_knows_how_it_was_made_and_where_to_evaluate() -> None:
    dataset = make(
        policies={"test_collect:steady": 3, "random": 1},
        noise=0.25,
        epsilon=0.125,
        seed=5,
        reference=(10, 60),
        episodes=40,
    )
    metadata = dataset.storage.metadata
    plan = metadata["ddice_collection"]
    assert [(player["name"], player["share"]) for player in plan["policies"]] == [
        ("test_collect:steady", 0.75),
        ("random", 0.25),
    ]
    assert (plan["seed"], plan["noise"], plan["epsilon"], plan["episodes"], plan["steps"]) == (
        5,
        0.25,
        0.125,
        40,
        None,
    )
    assert plan["versions"]["gymnasium"] == gymnasium.__version__
    text = (
        "test_collect:steady 75 %, random 25 %; Gaussian action noise 0.25; uniform actions "
        "with probability 0.125"
    )
    assert metadata["algorithm_name"] == text
    assert text in metadata["description"]
    data = ddice.load_dataset(dataset.id)
    assert data.spec.reference is not None
    assert (data.spec.reference.random, data.spec.reference.expert) == (10, 60)
    assert data.spec.actions.low == tuple(LOW)
    assert len(data) == sum(len(one["actions"]) for one in contents(dataset))
    # The environment that the dataset recorded is made again, and played.
    result = ddice.evaluate(policy_for(data.spec), episodes=3, seed=5, progress=False)
    assert result.env_id == COUNTER
    assert result.lengths == tuple(len(by_hand(index, seed=5)["actions"]) for index in range(3))
    assert result.reference is not None


def test_arguments_of_the_environment_are_recorded(tmp_path: Path) -> None:
    import minari

    short = collect(
        "test/short-v0",
        COUNTER,
        steady,
        episodes=3,
        env_kwargs={"max_episode_steps": 2},
        progress=False,
    )
    same = collect(
        "test/same-v0",
        gymnasium.make(COUNTER, max_episode_steps=2),
        steady,
        episodes=3,
        progress=False,
    )
    assert contents(minari.load_dataset(short)) == contents(minari.load_dataset(same))
    assert all(
        len(one["actions"]) == 2 and one["truncations"][-1]
        for one in contents(minari.load_dataset(short))
    )
    spec = ddice.load_dataset(short).spec
    assert spec.env is not None
    assert json.loads(spec.env.spec)["max_episode_steps"] == 2
    # A module that registers on import, as Gymnasium names it.
    (tmp_path / "registering.py").write_text(
        f"import gymnasium\ngymnasium.register('Mine-v0', '{__name__}:Counter', "
        "disable_env_checker=True)\n"
    )
    sys.path.insert(0, str(tmp_path))
    assert (
        ddice.load_dataset(
            collect("test/mine-v0", "registering:Mine-v0", steady, episodes=1, progress=False)
        ).spec.env.id
        == "Mine-v0"
    )


class Ageing(Counter):
    """Its second action pays with every episode that it has played before."""

    ages: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.age = -1

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        self.age += 1
        return super().reset(**arguments)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, reward + self.age, *rest

    def close(self) -> None:
        Ageing.ages.append(self.age)


def test_no_episode_finds_what_an_earlier_one_left_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import minari

    Ageing.ages.clear()
    gymnasium.register(
        "ddice-test/Ageing-v0", f"{__name__}:Ageing", disable_env_checker=True, order_enforce=False
    )
    monkeypatch.setattr(collecting, "PART", 1)
    made = collect("test/ageing-v0", "ddice-test/Ageing-v0", steady, episodes=6, progress=False)
    found, expected = contents(minari.load_dataset(made)), [by_hand(index) for index in range(6)]
    assert [one["rewards"] for one in found] == [one["rewards"] for one in expected]
    assert Ageing.ages.count(0) == 6  # closed, each after its one episode
    assert set(Ageing.ages) == {-1, 0}


def test_bundled_references_are_found_by_the_environment() -> None:
    pytest.importorskip("mujoco")
    reference = ddice.load_dataset(
        collect("test/hopper-v0", "Hopper-v5", "random", episodes=1, progress=False)
    ).spec.reference
    assert reference is not None
    assert (reference.random, reference.expert) == (-20.272305, 3234.3)


def test_who_plays_next_is_who_lags_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counter, "length_of", staticmethod(lambda seed: 3))
    episodes = contents(
        make(policies={"test_collect:hasty": 0.5, "test_collect:steady": 0.5}, episodes=9)
    )
    # Steps so far (hasty, steady): (0, 0) (2, 0) (2, 3) (4, 3) (4, 6) (6, 6): the first of equals
    # (8, 6) (8, 9) (10, 9).
    order = ["hasty", "steady", "hasty", "steady", "hasty", "hasty", "steady", "hasty", "steady"]
    assert [one["facts"]["policy"].partition(":")[2] for one in episodes] == order


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (1, 2, 5), (0.98, 0.01, 0.01)])
def test_shares_of_the_steps_are_met_at_any_time_but_for_one_episode(
    shares: tuple[float, ...],
) -> None:
    names = ("test_collect:steady", "test_collect:hasty", "test_collect:drawing")
    shared = dict(zip(names, shares, strict=False))
    played = dict.fromkeys(shared, 0)
    for one in contents(make(policies=shared, steps=300)):
        played[one["facts"]["policy"]] += len(one["actions"])
        total = sum(played.values())
        for name, share in shared.items():
            assert played[name] - share / sum(shares) * total <= 6
    assert sum(played.values()) >= 300
    assert {name: count / total for name, count in played.items()} == pytest.approx(
        {name: share / sum(shares) for name, share in shared.items()}, abs=6 * len(shares) / 300
    )


def test_policies_draw_from_a_generator_of_their_episode() -> None:
    found = contents(make(policies=drawing, seed=7, episodes=5))
    for index, one in enumerate(found):
        generator = np.random.default_rng(derived_seed(7, "policy", index))
        expected = [
            generator.uniform(LOW, [4.0, 0.25]).astype(np.float32).tolist() for _ in one["actions"]
        ]
        assert one["actions"] == expected
    # Noise draws elsewhere: the same policy, and the sum of both within the bounds.
    noisy = contents(make("test/noisy-v0", policies=drawing, seed=7, episodes=5, noise=0.01))
    for plain, other in zip(found, noisy, strict=True):
        difference = np.subtract(other["actions"], plain["actions"])[
            : min(len(plain["actions"]), len(other["actions"]))
        ]
        assert 0 < np.abs(difference).max() < 0.01 * 5 * 3


def test_noise_has_its_formula() -> None:
    generator, count, scale, epsilon = np.random.default_rng(0), 8_000, 0.8, 0.3
    centre = (LOW + HIGH) / 2
    plain = np.array(
        [ActionNoise(scale, 0.0).add(centre, LOW, HIGH, generator) for _ in range(count)]
    )
    unit = (plain - centre) / ((HIGH - LOW) / 2)
    # A standard normal is beyond 1 / 0.8 with probability erfc(1.25 / sqrt 2); inside it has the
    # deviation of a cut one.
    clipped = math.erfc(1 / scale / math.sqrt(2))
    assert np.mean(np.abs(unit) == 1, axis=0) == pytest.approx(
        [clipped] * 2, abs=4 * math.sqrt(clipped / count)
    )
    cut, density = 1 / scale, math.exp(-0.5 / scale**2) / math.sqrt(2 * math.pi)
    variance = scale**2 * (1 - clipped - 2 * cut * density) + clipped
    assert np.var(unit, axis=0) == pytest.approx([variance] * 2, rel=0.06)
    assert abs(np.corrcoef(unit.T)[0, 1]) < 0.05
    mixed = np.array(
        [ActionNoise(0.0, epsilon).add(centre, LOW, HIGH, generator) for _ in range(count)]
    )
    explored = (mixed != centre).all(1)
    assert explored.mean() == pytest.approx(epsilon, abs=4 * math.sqrt(epsilon / count))
    assert mixed[explored].mean(0) == pytest.approx(centre, abs=0.1)
    assert mixed[explored].var(0) == pytest.approx((HIGH - LOW) ** 2 / 12, rel=0.08)
    assert (mixed >= LOW).all()
    assert (mixed <= HIGH).all()


MIXTURE: dict[str, Any] = {
    "policies": {"test_collect:drawing": 0.6, "random": 0.4},
    "noise": 0.3,
    "epsilon": 0.1,
    "seed": 2,
    "episodes": 40,
}


@pytest.mark.parametrize("part", [1, 17, 5_000])
def test_an_interrupted_collection_goes_on_as_if_nothing_had_happened(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(make("test/whole-v0", **MIXTURE))
    monkeypatch.setattr(collecting, "PART", part)
    for stop in (31, 55):
        Counter.steps, Counter.stop = 0, stop
        with pytest.raises(KeyboardInterrupt, match=r"\d+ episodes, \d+ steps, which are kept"):
            make("test/stopped-v0", **MIXTURE)
        assert not has_dataset("test/stopped-v0")
    Counter.steps, Counter.stop = 0, None
    assert contents(make("test/stopped-v0", **MIXTURE)) == whole
    # Only the episodes that were cut short are played a second time.
    total = sum(len(one["actions"]) for one in whole)
    assert total - 31 - 55 <= Counter.steps <= total - 31 - 55 + 2 * 6
    assert entries() == []


def test_a_killed_collection_goes_on_too_and_to_another_end() -> None:
    program = (
        "import os, ddice, test_collect\nfrom ddice.collection import collecting\nstep, "
        "collecting.PART = test_collect.Counter.step, 10\ntest_collect.Counter.step = lambda "
        "*arguments: os._exit(9) if test_collect.Counter.steps == 41 else step(*arguments)\n"
        "test_collect.make('test/killed-v0', **{**test_collect.MIXTURE, 'episodes': 1000})\n"
    )
    tests = str(Path(__file__).parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([tests, str(Path(ddice.__file__).parents[1])]),
    }
    assert (
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True
        ).returncode
        == 9
    )
    (work,) = entries()
    kept = Parts(work.folder).load()
    assert 41 - 10 - 6 <= sum(map(len, kept)) <= 41
    Counter.steps = 0
    found = contents(make("test/killed-v0", **MIXTURE))
    assert Counter.steps == sum(len(one["actions"]) for one in found) - sum(map(len, kept))
    assert found == contents(make("test/whole-v0", **MIXTURE))


def test_what_is_there_already_is_left_as_it_is_and_nothing_else_is_replaced() -> None:
    make()
    Counter.steps = 0
    make()
    assert Counter.steps == 0
    with pytest.raises(
        ValueError, match=r"'test/counter-v0' exists already, with other seed: give another id"
    ):
        make(seed=1)
    with pytest.raises(ValueError, match="exists already, with other policies"):
        make(policies="random")


class Fixed(Sampler):
    """A sampler whose one candidate is known: noise / 10, so that seeds can be told from
    actions.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config, self.unit = Gaussian(), torch.nn.Parameter(torch.full((), 0.1))

    def forward(self, observations: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.unit * noise - 0.5

    def latents(self, candidates: int, actions: int) -> torch.Tensor:
        return torch.ones(candidates, actions)


def policy_for(spec: Any) -> Policy:
    return make_policy(spec, Fixed(spec.actions.size), candidates=1, selection=Selection(), q=None)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_policy_plays_the_episodes_that_its_evaluation_plays(deterministic: bool) -> None:
    policy = policy_for(ddice.load_dataset(make().id).spec)
    found = contents(
        make("test/policy-v0", policies=policy, seed=4, episodes=20, deterministic=deterministic)
    )
    result = ddice.evaluate(
        policy, episodes=20, seed=4, parallel=7, deterministic=deterministic, progress=False
    )
    assert [len(one["actions"]) for one in found] == list(result.lengths)
    np.testing.assert_allclose([sum(one["rewards"]) for one in found], result.returns, rtol=1e-6)
    if deterministic:
        np.testing.assert_allclose(
            found[0]["actions"][0], [1 - 0.4 * 3, 0.25 - 0.4 * 0.25], rtol=1e-6
        )
    else:
        assert len({tuple(action) for one in found for action in one["actions"]}) == sum(
            result.lengths
        )


def test_a_saved_policy_and_a_run_are_found_by_their_folders(tmp_path: Path) -> None:
    data = ddice.load_dataset(make().id)
    policy = (
        ddice.extractors.GaussianBC(network=MLP(hidden=(8,)))
        .build(data.spec, seed=0)
        .policy(q=None)
    )
    policy.save(tmp_path / "run" / "policy")
    places = {
        "object": policy,
        "folder": str(tmp_path / "run" / "policy"),
        "run": str(tmp_path / "run"),
    }
    same = [contents(make(f"test/{name}-v0", policies=which)) for name, which in places.items()]
    for one in itertools.chain(*same):
        del one["facts"]["policy"]
    assert same[0] == same[1] == same[2]
    prints = [load_behaviours(which, loading()) for which in (policy, str(tmp_path / "run"))]
    assert prints[0][0].fingerprint == prints[1][0].fingerprint
    with torch.no_grad():
        next(policy.sampler.parameters()).add_(1)
    assert load_behaviours(policy, loading())[0].fingerprint != prints[0][0].fingerprint


def loading() -> Loading:
    return Loading(
        0,
        gymnasium.spaces.Box(LOW.astype(np.float32), HIGH.astype(np.float32)),
        False,
        "cpu",
        False,
    )


FAULTS = {
    "discrete": r"continuous actions.*Discrete\(2\).*not supported yet",
    "unbounded": r"finite action bounds.*RescaleAction",
    "image": "image observations are not supported yet",
    "text": r"boxes, or dicts of boxes, as observations, got Text",
    "crash": (
        r"the environment failed with RuntimeError: the wheels came off \(episode 0, step 1, "
        r"reset seed \d+\)"
    ),
    "nan": r"expected finite rewards, got nan.*\(episode 0, step 1,",
    "blind": r"expected finite observations.*diverged \(episode 0, step 2,",
    "endless": (
        r"does not end: give the environment a horizon.*max_episode_steps.*\(episode 0, step "
        r"50,"
    ),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.items(), ids=FAULTS.keys())
def test_environments_that_cannot_be_recorded_are_refused(
    fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddice.collection.episodes.LONGEST", 50)
    with pytest.raises(ValueError, match=message):
        make(env_kwargs={"fault": fault}, seed=1)


def outside(observation: Any, generator: np.random.Generator) -> list[float]:
    return [4.1, 0.25]


def nowhere(observation: Any, generator: np.random.Generator) -> list[float]:
    return [math.nan, 0.25]


def short(observation: Any, generator: np.random.Generator) -> list[float]:
    return [0.25]


def careless(observation: Any) -> list[float]:
    return [0.25, 0.25]


POLICIES: dict[str, tuple[Any, type[Exception], str]] = {
    "out of bounds": (
        outside,
        ValueError,
        r"actions within .* got \[4.1.*clip them in the policy \(episode 0, step 0",
    ),
    "not finite": (nowhere, ValueError, r"finite actions of shape \(2,\).*nan"),
    "shape": (short, ValueError, r"actions of shape \(2,\) from the policy, got \[0.25\]"),
    "arguments": (
        careless,
        TypeError,
        r"careless to be a function\(observation, generator\) -> action, but too many",
    ),
    "class": ("test_collect:Remembering", TypeError, "make the object, and name that"),
    "number": (
        "test_collect:broken",
        TypeError,
        r"function\(observation, generator\) -> action, got 3",
    ),
    "unknown": ("randum", ValueError, "got 'randum', which is none of them and no folder"),
    "module": (
        "nowhere_at_all:act",
        ValueError,
        "policy = 'nowhere_at_all:act' cannot be imported",
    ),
    "share": ({"random": 0.0}, ValueError, "positive shares"),
    "none": ({}, ValueError, "at least one policy"),
    "zip": ("nowhere.zip", FileNotFoundError, r"nowhere.zip does not exist"),
}


@pytest.mark.parametrize(("policies", "error", "message"), POLICIES.values(), ids=POLICIES.keys())
def test_policies_that_cannot_play_are_refused(
    policies: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(policies=policies)
    assert not has_dataset("test/counter-v0")


def test_rounding_over_a_bound_is_clipped() -> None:
    env = gymnasium.make(COUNTER)
    episode = play(env, lambda _: [4.0 + 1e-6, -1e-6], ActionNoise(0, 0), seed=0, index=0, policy=0)
    assert episode.actions.tolist() == [[4.0, 0.0]] * len(episode)
    close_environment(env)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3, "episodes": 3}, "one of them, got steps=3 and episodes=3"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"noise": -0.1}, "greater than or equal to 0"),
        ({"epsilon": 1.1}, "less than or equal to 1"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"reference": (3, 3)}, "the first below the second"),
        ({"env_kwargs": {"colour": 1}}, "colour"),
        ({"name": "no id"}, "expected a Minari id"),
    ],
)
def test_settings_are_checked_before_the_first_step(settings: dict[str, Any], message: str) -> None:
    Counter.steps = 0
    with pytest.raises(ValueError, match=message):
        make(**settings)
    assert Counter.steps == 0


def test_an_unpickled_policy_has_to_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.zip").write_bytes(b"never read")
    with pytest.raises(ValueError, match=r"runs whatever code its author put in.*--trust-pickle"):
        make(policies=str(tmp_path / "model.zip"))
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.save_util", None)
    with pytest.raises(ImportError, match=r"pip install 'ddice\[sb3\]'"):
        make(policies=str(tmp_path / "model.zip"), trust_pickle=True)


@pytest.mark.parametrize("algorithm", ["PPO", "SAC"])
def test_a_model_of_stable_baselines_plays(algorithm: str, tmp_path: Path) -> None:
    baselines = pytest.importorskip("stable_baselines3")
    import minari

    model = getattr(baselines, algorithm)(
        "MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, device="cpu", seed=0
    )
    model.save(tmp_path / "model.zip")
    settings: dict[str, Any] = {
        "episodes": 1,
        "trust_pickle": True,
        "progress": False,
        "env_kwargs": {"max_episode_steps": 5},
    }
    before = torch.get_rng_state()
    for name, deterministic in (("fixed", True), ("drawn", False)):
        made = collect(
            f"test/{name}-v0",
            "Pendulum-v1",
            str(tmp_path / "model.zip"),
            deterministic=deterministic,
            **settings,
        )
        (episode,) = minari.load_dataset(made).iterate_episodes()
        for step, (observation, action) in enumerate(
            zip(episode.observations, episode.actions, strict=False)
        ):
            with torch.random.fork_rng():
                torch.manual_seed(derived_seed(0, "policy", 0, step))
                np.testing.assert_allclose(
                    action, model.predict(observation, deterministic=deterministic)[0], rtol=1e-6
                )
    assert torch.equal(before, torch.get_rng_state())


def test_the_command_collects_resumes_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    import minari

    policies = ["--policy", "test_collect:drawing=3", "--policy", "random"]
    command = [
        "data",
        "collect",
        "test/command-v0",
        "--env",
        COUNTER,
        *policies,
        "--steps",
        "50",
        "--noise",
        "0.1",
        "--no-progress",
    ]
    Counter.steps, Counter.stop = 0, 30
    assert main(command) == 130
    assert "which are kept: the same command goes on" in capsys.readouterr().err
    Counter.stop = None
    assert main(["cache", "list"]) == 0
    assert "test/command-v0" in capsys.readouterr().out
    assert main([*command, "--reference", "1", "2"]) == 0
    assert "ddice.load_dataset('test/command-v0')" in capsys.readouterr().out
    python = make(
        "test/python-v0", policies={"test_collect:drawing": 3.0, "random": 1.0}, steps=50, noise=0.1
    )
    assert contents(minari.load_dataset("test/command-v0")) == contents(python)
    for wrong, message in (
        (["--policy", "random=many"], "expected --policy POLICY or POLICY=SHARE with a number"),
        (["--policy", "random", "--policy", "random"], "--policy random is given twice"),
        (["--policy", "random", "--env-kwargs", "{"], "--env-kwargs { is not valid JSON"),
        (["--policy", "random", "--env-kwargs", "[1]"], "--env-kwargs must be a JSON object"),
        (["--policy", "random", "--step", "3"], "did you mean 'steps'"),
    ):
        assert (
            main(["data", "collect", "test/wrong-v0", "--env", COUNTER, "--episodes", "1", *wrong])
            == 1
        )
        assert message in capsys.readouterr().err


SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not SHARED.exists(), reason="the published policies are not here")
def test_a_published_policy_from_plain_arrays_is_a_short_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same actions as the script that comes with the arrays, an independent second writing,
    in the same environment.
    """
    import minari

    pytest.importorskip("mujoco")
    with np.load(SHARED / "policies" / "sb3_sac_Hopper.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}

    def medium(observation: Any, generator: np.random.Generator) -> np.ndarray:
        features = np.asarray(observation, np.float32)
        depth = sum(name[0] == "W" and name[1:].isdigit() for name in arrays) - 1
        for layer in range(depth):
            features = np.maximum(arrays[f"W{layer}"] @ features + arrays[f"b{layer}"], 0)
        mean = arrays[f"W{depth}"] @ features + arrays[f"b{depth}"]
        std = np.exp(np.clip(arrays["Wstd"] @ features + arrays["bstd"], -20, 2))
        return np.tanh(mean + std * generator.standard_normal(mean.shape))

    found = importlib.util.spec_from_file_location("make_datasets", SHARED / "make_datasets.py")
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    made = collect(
        "test/medium-v0",
        "Hopper-v5",
        {medium: 0.5, "random": 0.5},
        env_kwargs={"max_episode_steps": 40},
        steps=100,
        progress=False,
    )
    dataset = minari.load_dataset(made)
    env = gymnasium.make("Hopper-v5", max_episode_steps=40)
    low, high = env.action_space.low, env.action_space.high
    facts_of = list(dataset.storage.get_episode_metadata(dataset.episode_indices))
    for index, (episode, facts) in enumerate(
        zip(dataset.iterate_episodes(), facts_of, strict=True)
    ):
        generator = np.random.default_rng(derived_seed(0, "policy", index))
        published: Callable[[Any], Any] = script.Published("sb3_sac_Hopper", generator)
        observation, _ = env.reset(seed=int(facts["seed"]))
        for step, action in enumerate(episode.actions):
            np.testing.assert_array_equal(episode.observations[step], observation)
            wanted = (
                generator.uniform(low, high)
                if facts["policy"] == "random"
                else published(observation)
            )
            np.testing.assert_array_equal(action, wanted.astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(action)
            assert (reward, terminated, truncated) == (
                episode.rewards[step],
                episode.terminations[step],
                episode.truncations[step],
            )
        assert terminated or truncated
    env.close()
    # The reference scores of Hopper belong to episodes of 1,000 steps; these have 40.
    assert ddice.load_dataset(made).spec.reference is None
