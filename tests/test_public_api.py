"""The public names as documented: the long example, the loop below it, and what every `fit`
takes.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch

import ddice
from ddice.core.plugins import members
from ddice.data import Transitions
from ddice.dice_backends import AnyBackend, GivenRatio, PiecewiseF
from ddice.extractors import AnyExtractor, GaussianBC, GuideThenSelect, SelectOnly, WeightedBC
from ddice.runs.recipe import Recipe

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*rows dropped", "ignore:the guidance network is constant"
)

EXAMPLE = """
import ddice
from ddice.dice_backends import PiecewiseF, FDice, OrthogonalDice, OptiDice, GivenRatio
from ddice.extractors import GuideThenSelect, WeightedBC, SelectOnly

data    = ddice.load_dataset("D4RL/pointmaze/umaze-v2")
prior   = ddice.DiffusionPrior().fit(data, steps=20_000, seed=0)                 # trained once, shared by every extractor
backend = PiecewiseF(temperature=0.5).fit(data, steps=20_000, seed=0)            # -> ratios, values, Q
policy  = GuideThenSelect(candidates=16).fit(data, prior=prior, backend=backend, steps=20_000, seed=0)

action  = policy.act(observation)
action, _ = policy.predict(observation, deterministic=True)   # the Stable-Baselines3 habit
result  = ddice.evaluate(policy, episodes=100, seed=0)        # env=None: the evaluation env recorded with the dataset
policy.save("runs/umaze/policy"); policy = ddice.load_policy("runs/umaze/policy", device="cuda")
"""
LOOP = """
prior     = DiffusionPrior().build(spec, seed=0)              # config -> trainable part
backend   = PiecewiseF().build(spec, seed=0)
extractor = GuideThenSelect().build(spec, seed=0, prior=prior)
for step in range(n):
    batch = data.sample(512, seed=0, step=step)
    prior.update(batch, step=step); backend.update(batch, step=step)
    extractor.update(batch, log_ratio=backend.log_ratio(batch), step=step)
policy = extractor.policy(q=backend.q)
"""
MAZE = "ddice/pointmaze-umaze-2k-v0"


@pytest.fixture(scope="module")
def data() -> Transitions:
    return ddice.load_dataset(small.arrays(), env=small.SHORT)


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gymnasium_robotics")
    from ddice.collection import make_pointmaze

    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        assert make_pointmaze("umaze", steps=2000, progress=False) == MAZE
    return folder


@pytest.fixture(scope="module")
def parts(data: Transitions) -> tuple[Any, Any]:
    return of_seed(0, data)


def configurations() -> list[Any]:
    """The prior, every backend and every extractor, small."""
    made: list[Any] = [small.recipe("unused").prior]
    for name, fields in small.BACKENDS.items():
        made.append(Recipe.model_validate({"backend": {"kind": name, **fields}}).backend)
    for name, fields in small.EXTRACTORS.items():
        made.append(Recipe.model_validate({"extractor": {"kind": name, **fields}}).extractor)
    return made


EVERY = configurations()
NAMES = [config.kind for config in EVERY]
OTHERS = -len(small.EXTRACTORS)  # prior and backends, before the extractors


def test_no_kind_is_forgotten_here() -> None:
    known = [
        cls.model_fields["kind"].default
        for union in (AnyBackend, AnyExtractor)
        for cls in members(union)
    ]
    assert ["diffusion", *known] == NAMES


def test_the_public_names() -> None:
    assert sorted(ddice.__all__) == [
        "DiffusionPrior",
        "Policy",
        "evaluate",
        "load_dataset",
        "load_policy",
    ]
    assert all(getattr(ddice, name).__doc__ for name in ddice.__all__)
    assert Path(ddice.__file__).with_name("py.typed").exists()


@pytest.mark.gate
def test_the_example(maze: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As written, but for the dataset's name, fewer steps and episodes, and a device that is
    there.
    """
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(maze))
    monkeypatch.chdir(tmp_path)
    changes = {
        "D4RL/pointmaze/umaze-v2": MAZE,
        "20_000": "3",
        "episodes=100": "episodes=1",
        '"cuda"': '"cpu"',
    }
    code = EXAMPLE
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    observation = {
        "observation": np.zeros(4),
        "achieved_goal": np.zeros(2),
        "desired_goal": np.zeros(2),
    }
    names: dict[str, Any] = {"observation": observation}
    exec(code, names)
    assert names["action"].shape == (2,)
    assert names["action"].dtype == np.float32
    assert names["result"].lengths == (300,)
    np.testing.assert_array_equal(
        names["policy"].act(observation, deterministic=True), names["action"]
    )
    assert (tmp_path / "runs" / "umaze" / "policy" / "policy.json").exists()
    # the same numbers by the same seeds, in a part that the example does not name
    again = ddice.DiffusionPrior().fit(names["data"], steps=3, seed=0, device="cpu", progress=False)
    assert all(
        torch.equal(value, again.state()[name]) for name, value in names["prior"].state().items()
    )


def test_the_low_level_loop(data: Transitions) -> None:
    from ddice import DiffusionPrior

    names: dict[str, Any] = {
        "data": data,
        "spec": data.spec,
        "n": 3,
        "DiffusionPrior": DiffusionPrior,
    }
    names |= {"PiecewiseF": PiecewiseF, "GuideThenSelect": GuideThenSelect}
    with pytest.warns(UserWarning, match=r"say it with build\(spec, seed=0\)\.until\(steps\)"):
        exec(LOOP, names)
    assert (names["prior"].step, names["backend"].step, names["extractor"].step) == (3, 3, 3)
    actions = names["policy"].act(data.observations[:5].numpy(), seed=0)
    assert actions.shape == (5, 1)
    assert bool((abs(actions) <= 2).all())
    # The policy keeps what it was made of: training on changes neither its sampler nor its Q.
    batch = data.sample(512, seed=0, step=3)
    names["prior"].update(batch, step=3)
    names["backend"].update(batch, step=3)
    names["extractor"].update(batch, log_ratio=names["backend"].log_ratio(batch), step=3)
    np.testing.assert_array_equal(
        names["policy"].act(data.observations[:5].numpy(), seed=0), actions
    )


@pytest.mark.parametrize("config", EVERY, ids=NAMES)
def test_every_fit_takes_the_same_arguments(config: Any) -> None:
    parameters = inspect.signature(config.fit).parameters
    assert next(iter(parameters)) == "data"
    expected = {"seed": 0, "device": "auto", "progress": True, "on_step": None, "checkpoint": None}
    assert {name: parameters[name].default for name in expected} == expected
    assert parameters["steps"].default is None  # needed by what is trained: TypeError without
    assert all(
        parameter.kind is inspect.Parameter.KEYWORD_ONLY
        for name, parameter in parameters.items()
        if name != "data"
    )


def fit(config: Any, data: Transitions, parts: tuple[Any, Any], **options: Any) -> Any:
    given = {"prior": parts[0], "backend": parts[1]} if config.kind in small.EXTRACTORS else {}
    return config.fit(data, device="cpu", **{"progress": False, **given, **options})


def numbers(trained: Any, data: Transitions) -> np.ndarray:
    """What a trained part says about some of the data."""
    batch = data.sample(6, seed=9, step=0)
    if isinstance(trained, ddice.Policy):
        return trained.act(batch.observations, seed=4).numpy()
    if hasattr(trained, "log_ratio"):
        return trained.log_ratio(batch).numpy()
    return trained.loss(batch, 0).detach().numpy()


@pytest.mark.parametrize("config", EVERY, ids=NAMES)
def test_every_fit_calls_on_step_and_shows_progress(
    config: Any, data: Transitions, parts: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, list[str]]] = []
    fit(
        config,
        data,
        parts,
        steps=3,
        on_step=lambda step, metrics: seen.append((step, list(metrics))),
        progress=True,
    )
    trains = config.kind not in ("given", "select_only")
    assert [step for step, _ in seen] == ([0, 1, 2] if trains else [])
    assert all(any(name.endswith("loss") for name in names) for _, names in seen)
    assert ("3/3" in capsys.readouterr().err) == trains
    fit(config, data, parts, steps=1)
    assert "1/1" not in capsys.readouterr().err


@pytest.mark.parametrize("config", EVERY, ids=NAMES)
def test_every_fit_resumes_from_its_checkpoint(
    config: Any, data: Transitions, parts: tuple[Any, Any], tmp_path: Path
) -> None:
    if config.kind in ("given", "select_only"):
        pytest.skip("nothing is trained")
    expected = numbers(fit(config, data, parts, steps=6), data)
    path = tmp_path / "checkpoint"

    def stop(step: int, _: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        from ddice.parts import loop

        run = loop.run
        patch.setattr(
            loop, "run", lambda *args, **options: run(*args, **{**options, "checkpoint_every": 2})
        )
        with pytest.raises(KeyboardInterrupt):
            fit(config, data, parts, steps=6, checkpoint=path, on_step=stop)
    steps: list[int] = []
    again = fit(
        config, data, parts, steps=6, checkpoint=path, on_step=lambda step, _: steps.append(step)
    )
    assert steps == [2, 3, 4, 5]
    np.testing.assert_array_equal(numbers(again, data), expected)
    for change in ({"seed": 1}, {"steps": 7}):
        given = of_seed(1, data) if "seed" in change else parts
        with pytest.raises(
            ValueError,
            match=(
                "belongs to another run: its configuration, data, seed or number of steps differs"
            ),
        ):
            fit(config, data, given, **{"steps": 6, "checkpoint": path, **change})


def of_seed(seed: Any, data: Transitions) -> tuple[Any, Any]:
    """A prior and a backend, tiny."""
    recipe = small.recipe("unused")
    options: dict[str, Any] = {"steps": 3, "seed": seed, "device": "cpu", "progress": False}
    return recipe.prior.fit(data, **options), recipe.backend.fit(data, **options)


@pytest.mark.parametrize(
    "kind", ["guide_then_select", "weighted_bc", "gaussian_bc", "policy_gradient"]
)
def test_a_checkpoint_of_other_ratios_is_foreign(
    kind: str, data: Transitions, parts: tuple[Any, Any], tmp_path: Path
) -> None:
    """The same extractor after another backend would otherwise be taken for trained."""
    config = EVERY[NAMES.index(kind)]
    fit(config, data, parts, steps=3, checkpoint=tmp_path / "c")
    backend = parts[1].config
    for other in (
        backend.model_copy(update={"temperature": 0.1}).fit(data, steps=3, progress=False),
        backend.fit(data, steps=4, progress=False),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            fit(config, data, (parts[0], other), steps=3, checkpoint=tmp_path / "c")
    steps: list[int] = []
    fit(
        config,
        data,
        (parts[0], backend.fit(data, steps=3, progress=False)),
        steps=3,
        checkpoint=tmp_path / "c",
        on_step=lambda *_: steps.append(1),
    )
    assert steps == []


@pytest.mark.parametrize("config", EVERY[:OTHERS], ids=NAMES[:OTHERS])
def test_a_part_goes_on(config: Any, data: Transitions, parts: tuple[Any, Any]) -> None:
    if config.kind == "diffusion":
        config = config.model_copy(
            update={"optimizer": config.optimizer.model_copy(update={"decay": "constant"})}
        )  # cosine ends with each fit
    whole = fit(config, data, parts, steps=5)
    halves = fit(config, data, parts, steps=2)
    assert halves.fit(data, steps=3, progress=False) is halves
    np.testing.assert_array_equal(numbers(halves, data), numbers(whole, data))


@pytest.mark.parametrize("config", EVERY, ids=NAMES)
def test_several_seeds_at_once_are_each_alone(config: Any, data: Transitions) -> None:
    seeds = (3, 5)
    many = fit(config, data, of_seed(seeds, data), steps=3, seed=seeds)
    if config.kind in small.EXTRACTORS:
        assert isinstance(many, list)
        assert len(many) == 2
    for index, seed in enumerate(seeds):
        one = many[index] if isinstance(many, list) else many.select(index)
        alone = fit(config, data, of_seed(seed, data), steps=3, seed=seed)
        np.testing.assert_allclose(numbers(one, data), numbers(alone, data), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("backend", [None, "without q"])
@pytest.mark.parametrize(
    "config",
    [
        WeightedBC(candidates=1),
        GaussianBC(candidates=1),
        GuideThenSelect(candidates=1),
        SelectOnly(candidates=1),
    ],
)
def test_one_candidate_needs_no_q(
    config: Any, backend: str | None, data: Transitions, parts: tuple[Any, Any]
) -> None:
    given = None if backend is None else GivenRatio(source=np.ones(data.spec.source_rows)).fit(data)
    call = {"prior": parts[0], "backend": given, "steps": 1, "progress": False}
    if given is None and config.needs_ratio:
        with pytest.raises(ValueError, match="needs a backend for its ratios"):
            config.fit(data, **call)
        return
    policy = config.fit(data, **call)
    assert policy.q is None
    assert policy.act(np.zeros(3)).shape == (1,)
    with pytest.raises(
        ValueError, match="candidates = 2 needs a Q to choose among them and there is none"
    ):
        config.model_copy(update={"candidates": 2}).fit(data, **call)


def test_what_every_backend_offers(data: Transitions) -> None:
    batch = data.sample(9, seed=0, step=0)
    for config in EVERY[1:OTHERS]:
        backend = fit(config, data, (None, None), steps=2)
        log_ratio = backend.log_ratio(batch)
        assert log_ratio.shape == (9,)
        torch.testing.assert_close(backend.ratio(batch), log_ratio.exp())
        assert backend.ratio_kind in ("action", "state-action")
        q = backend.q(batch.observations, batch.actions)
        assert q.shape[1:] == (9,)
        assert backend.has_value == (config.kind != "given")
        if backend.has_value:
            assert backend.value(batch.observations).shape == (9,)


def test_arrays_and_tensors_one_and_many(data: Transitions, parts: tuple[Any, Any]) -> None:
    policy = fit(EVERY[NAMES.index("guide_then_select")], data, parts, steps=2)
    observations = data.observations[:4]
    several = policy.act(observations.numpy(), deterministic=True)
    assert isinstance(several, np.ndarray)
    assert isinstance(policy.act(observations, deterministic=True), torch.Tensor)
    for row in range(4):
        np.testing.assert_allclose(
            policy.act(observations[row].numpy(), deterministic=True), several[row], atol=1e-5
        )
        np.testing.assert_allclose(
            policy.predict(observations[row].numpy(), deterministic=True)[0],
            several[row],
            atol=1e-5,
        )
    assert policy.predict(observations.numpy())[1] is None


def test_save_load_and_evaluate(data: Transitions, parts: tuple[Any, Any], tmp_path: Path) -> None:
    policy = fit(EVERY[NAMES.index("weighted_bc")], data, parts, steps=2)
    policy.save(tmp_path / "p")
    again = ddice.load_policy(tmp_path / "p", device="cpu")
    mine, theirs = (
        ddice.evaluate(one, episodes=3, seed=1, progress=False) for one in (policy, again)
    )
    assert mine.returns == theirs.returns
    assert mine.lengths == (20, 20, 20)
    assert ddice.evaluate(
        policy, episodes=3, seed=1, parallel=1, progress=False
    ).returns == pytest.approx(mine.returns, rel=1e-4)
