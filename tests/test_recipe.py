"""Recipes: JSON in and out, what they refuse, and how they load data and evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from pydantic import ValidationError

from ddice.core.plugins import members
from ddice.dice_backends import AnyBackend, FDice, GivenRatio, OptiDice
from ddice.dice_backends.divergences import KL
from ddice.extractors import AnyExtractor, GaussianBC, SelectOnly, WeightedBC
from ddice.runs.presets import PRESETS
from ddice.runs.recipe import DataSource, EvaluationSettings, Recipe, Steps
from ddice.runs.training import Training

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json(name: str) -> None:
    recipe = PRESETS[name]
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe


@pytest.mark.parametrize("extractor", members(AnyExtractor), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("backend", members(AnyBackend), ids=lambda cls: cls.__name__)
def test_every_combination_round_trips_through_json(backend: Any, extractor: Any) -> None:
    made = GivenRatio(source="ratios.npy", q="mine:q") if backend is GivenRatio else backend()
    recipe = Recipe(backend=made, extractor=extractor(), seed=3)
    again = Recipe.read(json.loads(recipe.model_dump_json()), trust=["mine"])
    assert again == recipe
    assert (type(again.backend), type(again.extractor)) == (backend, extractor)
    assert again.digest() == recipe.digest()


def test_every_field_off_its_default_survives() -> None:
    recipe = Recipe(
        data=DataSource(
            source=("a.npz", "b.npz"),
            goal="observed",
            action_bounds=(-2, 2),
            out_of_bounds="clip",
            reference_scores=(0, 1),
        ),
        backend=FDice(
            divergence=KL(),
            temperature="ess:0.3",
            rewards=("standardize", {"kind": "scale", "factor": 2}),
        ),
        extractor=WeightedBC(candidates=3, init="fresh"),
        steps=Steps(prior=1, backend=2, extractor=3),
        schedule="joint",
        seed=7,
        device="cpu",
        evaluation=EvaluationSettings(episodes=0, deterministic=True),
        batch_size=5,
    )
    content = json.loads(recipe.model_dump_json())
    assert content["backend"]["rewards"] == [
        {"kind": "standardize"},
        {"kind": "scale", "factor": 2.0},
    ]
    assert content["backend"]["temperature"] == "ess:0.3"
    assert content["data"]["source"] == ["a.npz", "b.npz"]
    assert Recipe.model_validate(content) == recipe
    default = json.loads(Recipe().model_dump_json())
    assert [name for name in content if content[name] == default[name]] == ["prior"]


def test_joint_training_needs_an_extractor_that_learns_from_ratios() -> None:
    Recipe(schedule="joint", extractor=GaussianBC())
    with pytest.raises(
        ValidationError,
        match=(
            'joint training needs an extractor that learns from the backend: use schedule "staged" '
            "with select_only"
        ),
    ):
        Recipe(schedule="joint", extractor=SelectOnly())


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": {"prior": -1}},
        {"batch_size": 0},
        {"schedule": "both"},
        {"evaluation": {"episodes": -1}},
        {"evaluation": {"parallel": 0}},
        {"data": {"fraction": 1.5}},
        {"data": {"validation": 1.0}},
        {"data": {"validation": -0.1}},
        {"data": {"goal": "none"}},
        {"data": {"action_bounds": [1]}},
    ],
    ids=json.dumps,
)
def test_values_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    (path,) = [
        [name, *(value if isinstance(value, dict) else ())] for name, value in changes.items()
    ]
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(changes)
    assert {error["loc"][: len(path)] for error in caught.value.errors()} == {tuple(path)}


def test_recipes_are_frozen_and_compare_by_content() -> None:
    recipe = Recipe(seed=1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 2
    assert recipe == Recipe(seed=1) != Recipe()
    assert recipe.model_copy(update={"backend": OptiDice()}) == Recipe(seed=1, backend=OptiDice())


def test_the_data_are_loaded_as_the_fields_say(npz: Path, tmp_path: Path) -> None:
    data = DataSource(source=str(npz), env=small.ENV).load()
    assert data.spec.env is not None
    assert (data.spec.env.id, data.spec.actions.low, data.spec.actions.high) == (
        small.ENV,
        (-2.0,),
        (2.0,),
    )
    assert (
        len(data) == small.EPISODES * small.LENGTH - 8
    )  # eight of twelve episodes are cut and lose their last row
    both = DataSource(
        source=(str(npz), str(small.write_npz(tmp_path / "other.npz", seed=1))), env=small.ENV
    ).load()
    assert len(both) == 2 * len(data)
    half = DataSource(source=str(npz), env=small.ENV, fraction=0.5).load()
    assert half.spec.episodes == small.EPISODES // 2
    other = DataSource(source=str(npz), env=small.ENV, fraction=0.5, fraction_seed=1).load()
    assert half.spec.fingerprint != other.spec.fingerprint
    bounds = (
        DataSource(source=str(npz), action_bounds=(-4, 4), reference_scores=(-10, 30)).load().spec
    )
    assert (bounds.actions.low, bounds.actions.high) == ((-4.0,), (4.0,))
    assert bounds.reference is not None
    assert (bounds.reference.random, bounds.reference.expert) == (-10.0, 30.0)
    assert bounds.env is None


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_whole_episodes_are_held_out(npz: Path, share: float) -> None:
    """Every row is on one side, with all the rows of its episode; another seed, other episodes."""
    sources = [
        DataSource(source=str(npz), env=small.ENV, validation=share, validation_seed=seed)
        for seed in (0, 1)
    ]
    data = sources[0].load()
    splits = [source.split(data) for source in sources]
    for split in splits:
        assert split.held_out is not None
        assert split.held_out.spec.episodes == share * small.EPISODES
        both = torch.cat([split.training.rows, split.held_out.rows])
        assert torch.equal(both.sort().values, data.rows)
        sides = [
            set((part.rows // small.LENGTH).tolist()) for part in (split.training, split.held_out)
        ]
        assert not sides[0] & sides[1]
    assert splits[0].training.spec.fingerprint != splits[1].training.spec.fingerprint
    assert DataSource(source=str(npz)).split(data).training is data


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.01, "0.01 of 12 episodes is 0, so that no episode is held out"),
        (0.99, "0.99 of 12 episodes is 12, so that none is left to train on"),
    ],
)
def test_a_share_that_leaves_no_episode_is_refused_before_training(
    npz: Path, share: float, says: str
) -> None:
    recipe = small.recipe(npz, data={"validation": share})
    with pytest.raises(ValueError, match=says):
        Training(recipe, recipe.data.load(), progress=False)


def test_parts_are_trained_and_named_by_the_episodes_that_are_left(npz: Path) -> None:
    """As if the others had never been there."""
    recipe = small.recipe(npz, data={"validation": 0.25}, device="cpu")
    data = recipe.data.load()
    stages = Training(recipe, data, progress=False)
    left = recipe.data.split(data).training
    assert stages.data.spec == left.spec
    assert left.spec.behaviour_fingerprint != data.spec.behaviour_fingerprint
    assert Training(recipe, recipe.data.split(data), progress=False).data.spec == left.spec
    whole = Training(small.recipe(npz, device="cpu"), data, progress=False)
    assert whole.data.spec == data.spec
    assert whole.held_out is None


def test_evaluation_passes_every_setting_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        "ddice.policies.evaluation.evaluate",
        lambda *args, **options: seen.append((args, options)) or "scores",
    )
    settings = EvaluationSettings(episodes=3, seed=4, parallel=5, deterministic=True)
    policy: Any = object()
    given = {"progress": False, "on_step": seen.append, "trust_env": ["mine"]}
    assert settings.evaluate(policy, **given) == "scores"
    expected = {
        "episodes": 3,
        "seed": 4,
        "parallel": 5,
        "deterministic": True,
        "progress": False,
        "on_step": seen.append,
        "trust_env": ["mine"],
    }
    assert seen == [((policy,), expected)]
    assert EvaluationSettings(episodes=0).evaluate(policy) is None
    assert len(seen) == 1
