"""The presets by domain: every field with its reason and source, and the one that fits the data.
No test asks for a particular value, so that values can follow what is measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from pydantic import ValidationError

import ddice
from ddice.cli.data import preset
from ddice.data.description import Description
from ddice.data.horizon import Horizon
from ddice.dice_backends import CalibratedRatio
from ddice.runs.folder import differences
from ddice.runs.presets import DOMAINS, PRESETS, REASONS, Choice, describe, fitting_preset, why
from ddice.runs.presets.choices import recipe_of, value_at
from ddice.runs.presets.fitting import LONG, ROWS, RULES
from ddice.runs.recipe import Recipe
from ddice.runs.training import train

ROOT = Path(__file__).parents[1]
DEFAULT = Recipe().model_dump(mode="json")
Run = Callable[..., tuple[int, str, str]]


# -- choices


@pytest.mark.parametrize("name", DOMAINS)
def test_every_difference_is_one_choice_and_every_choice_a_difference(name: str) -> None:
    found = differences(DEFAULT, PRESETS[name].model_dump(mode="json"))
    covering = {field: [c for c in DOMAINS[name] if c.covers(field)] for field in found}
    assert all(len(choices) == 1 for choices in covering.values()), covering
    acting = {choices[0].field for choices in covering.values()}
    assert acting == {choice.field for choice in DOMAINS[name]}, "a choice equals the default"


@pytest.mark.parametrize("name", DOMAINS)
def test_every_choice_says_why_and_from_where(name: str) -> None:
    for choice in DOMAINS[name]:
        assert choice.reason.endswith(".")
        assert re.search(r"arXiv \d{4}\.\d{5}|measured here", choice.source), choice.field
        for page in re.findall(r"docs/\w+\.md", choice.source):
            assert (ROOT / page).exists()


def test_choices_make_a_recipe() -> None:
    """A number, a tree of fields and another kind over the default, by hand."""
    about = {"reason": "Because.", "source": "measured here"}
    recipe = recipe_of(
        [
            Choice(field="backend.batch_size", value=7, **about),
            Choice(field="steps", value={"prior": 3}, **about),
            Choice(field="extractor", value={"kind": "select_only"}, **about),
        ]
    )
    expected = Recipe(
        backend={"batch_size": 7}, steps={"prior": 3}, extractor={"kind": "select_only"}
    )
    assert recipe == expected
    assert value_at(recipe.model_dump(mode="json"), "steps.prior") == 3
    with pytest.raises(ValidationError, match="unknown field of PiecewiseF 'batch'"):
        recipe_of([Choice(field="backend.batch", value=7, **about)])
    with pytest.raises(KeyError, match="batch"):
        value_at(DEFAULT, "backend.batch")


def test_a_choice_covers_what_lies_below_it() -> None:
    choice = Choice(field="backend.critic", value={}, reason="Because.", source="measured here")
    assert choice.covers("backend.critic")
    assert choice.covers("backend.critic.hidden")
    assert not choice.covers("backend.critic_members")


@pytest.mark.parametrize("pair", list(itertools.permutations(["default", "official", *DOMAINS], 2)))
def test_a_reason_stands_for_every_difference_of_two_presets(pair: tuple[str, str]) -> None:
    one, two = (PRESETS[name].model_dump(mode="json") for name in pair)
    own = [choice.reason for name in pair for choice in DOMAINS.get(name, ())]
    for field in differences(one, two):
        assert why(field, *pair) in [*own, *REASONS.values()]


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", DOMAINS)
def test_a_preset_prints_field_value_reason_and_source(name: str, run: Run) -> None:
    status, output, errors = run("presets", name)
    assert (status, errors) == (0, "")
    assert output.startswith(f"{name}: {describe(name)}\n")
    blocks = output.split("\n\n")[1:-1]
    assert len(blocks) == len(DOMAINS[name])
    for choice, block in zip(DOMAINS[name], blocks, strict=True):
        head, *text = block.splitlines()
        assert head.startswith(f"{choice.field}: ")
        assert plain(" ".join(text)) == f"{choice.reason} Source: {choice.source}."
        if not isinstance(choice.value, dict):
            assert f": {json.dumps(choice.value)} (default: " in head
    assert f"ddice train --preset {name} " in output


def test_published_presets_print_what_differs_from_the_default(run: Run) -> None:
    _, output, _ = run("presets", "official")
    _, difference, _ = run("presets", "diff", "default", "official")
    assert difference in output
    status, output, _ = run("presets", "default")
    assert status == 0
    assert "->" not in output
    with pytest.raises(SystemExit):
        run("presets", "moze")


# -- the preset that fits


@pytest.fixture(scope="module")
def description() -> Description:
    return ddice.load_dataset(small.arrays(), action_bounds=(-2, 2)).describe()


DENSE = Horizon(usual_share=0.01, path=None, length=500, hazard=0.0, terminated=0.0)
SPARSE = Horizon(usual_share=0.95, path=120, length=300, hazard=0.0, terminated=0.0)
SHORT = DENSE.model_copy(update={"length": LONG - 1})


@pytest.mark.parametrize(
    ("rows", "size", "horizon", "expected"),
    [
        (100_000, 3, DENSE, "locomotion"),
        (100_000, 3, SHORT, "default"),
        (100_000, 3, SHORT.model_copy(update={"terminated": 0.5}), "locomotion"),
        (100_000, 2, SPARSE, "maze"),
        # the goal ends an episode: what matters is the path
        (100_000, 8, SPARSE.model_copy(update={"terminated": 0.9}), "maze"),
        (100_000, 2, SPARSE.model_copy(update={"usual_share": 0.5}), "locomotion"),
        (6_700, 28, DENSE, "dexterous"),
        (6_700, 28, SPARSE, "dexterous"),
        (6_700, 3, DENSE, "locomotion"),
        (ROWS * 3, 3, DENSE, "locomotion"),
        (ROWS * 3 - 1, 3, DENSE, "dexterous"),
        (100_000, 3, None, "default"),
    ],
)
def test_the_table_of_rules(
    rows: int, size: int, horizon: Horizon | None, expected: str, description: Description
) -> None:
    """Whatever the data and their environment are called."""
    for name in ("door-human", "antmaze", "hopper"):
        made = dataclasses.replace(
            description,
            name=name,
            env=name,
            steps=rows,
            action_low=(-1.0,) * size,
            horizon=horizon,
        )
        found, reasons = fitting_preset(made)
        assert found == expected
        assert reasons
        assert preset(made).startswith(f"preset         {expected}: {reasons[0]}")


def test_every_rule_names_a_preset_and_every_domain_has_a_rule() -> None:
    assert {rule.preset for rule in RULES} == {"default", *DOMAINS}


def episodes(length: int, count: int, size: int, rewards: Any, *, ends: bool) -> Description:
    """Of episodes of one length, which terminate or are cut, with `size` action dimensions."""
    rows = length * count
    random = np.random.default_rng(0)
    walk = random.normal(size=(rows + 1, 2))
    last = np.arange(rows) % length == length - 1
    arrays = {
        "observations": walk[:-1],
        "next_observations": walk[1:],
        "actions": random.uniform(-1, 1, size=(rows, size)),
        "rewards": rewards(np.arange(rows) % length),
        "terminations": last & ends,
        "truncations": last & ~np.bool_(ends),
    }
    return ddice.load_dataset(arrays, action_bounds=(-1, 1)).describe()


def test_loaded_data_fit_what_they_are_like() -> None:
    falls = episodes(60, 40, 2, lambda step: 1.0 + 0.01 * step, ends=True)
    assert fitting_preset(falls) == (
        "locomotion",
        (
            "rewards come all the time",
            "100% of the episodes terminate, so survival decides about returns",
        ),
    )
    goal = episodes(100, 30, 2, lambda step: (step == 99) * 1.0, ends=True)
    assert fitting_preset(goal) == (
        "maze",
        (
            "rewards are sparse: 99.0% of the rows have the same one",
            "a path to another takes 100 steps",
        ),
    )
    hand = episodes(250, 25, 28, lambda step: 0.1 * step, ends=False)
    assert fitting_preset(hand) == (
        "dexterous",
        ("6,250 rows for 28 action dimensions: fewer than 1,000 for each",),
    )


def test_a_generated_maze_fits_the_preset_of_mazes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddice.collection import make_pointmaze

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    data = ddice.load_dataset(make_pointmaze("umaze", steps=3000, progress=False))
    assert fitting_preset(data.describe())[0] == "maze"


# -- training


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of everything that it names, on data of one action dimension."""
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path))
    changes = {"steps": {"prior": 1, "backend": 2, "extractor": 1}, "evaluation": {"episodes": 0}}
    recipe = Recipe.model_validate(small.merge(PRESETS[name].model_dump(mode="json"), changes))
    data = ddice.load_dataset(small.arrays(), action_bounds=(-2, 2))
    trained, _ = train(recipe, data=data, progress=False, say=lambda _: None)
    found = trained.backend
    backend = found.backend if isinstance(found, CalibratedRatio) else found
    assert backend is not None
    assert (backend.step, trained.extractor.step) == (2, 1)
    assert np.abs(trained.policy.act(np.zeros((3, 3)), seed=0)).max() <= 2


def test_training_names_the_preset_that_fits_to_those_who_asked_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    source = small.write_npz(tmp_path / "a.npz")
    command = ["train", *small.flags(source), "--evaluation.episodes", "0", "--no-progress"]
    says = "--preset dexterous fits these data: 112 rows for one action dimension: fewer than"
    status, _, errors = run(*command, "--run", "a")
    assert (status, says in errors) == (0, True)
    _, _, errors = run(*command, "--preset", "default")
    assert "fits these data" not in errors
    _, _, errors = run("train", "--config", "a/recipe.json", "--no-progress")
    assert "fits these data" not in errors
