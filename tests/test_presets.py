"""The presets against the numbers of the public implementation of Diffusion-DICE, written out
here a second time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from ddice.data import load_dataset
from ddice.runs.folder import differences
from ddice.runs.presets import DOMAINS, PRESETS, REASONS, TASKS, describe, reason, unpublished
from ddice.runs.recipe import Recipe
from ddice.runs.training import train

OFFICIAL, PAPER = PRESETS["official"], PRESETS["paper"]

# Settings of the public implementation (arXiv 2407.20109), by dotted name.
PUBLISHED: dict[str, Any] = {
    # prior: VP with beta 0.1 .. 20, t in [1e-3, 1]; Adam 1e-4, batch 4096, 600k steps, no average,
    # nothing normalised
    "prior.schedule.kind": "vp",
    "prior.schedule.beta_min": 0.1,
    "prior.schedule.beta_max": 20.0,
    "prior.schedule.t_min": 1e-3,
    "prior.optimizer.learning_rate": 1e-4,
    "prior.optimizer.weight_decay": 0.0,
    "prior.optimizer.decay": "constant",
    "prior.batch_size": 4096,
    "prior.ema": 0.0,
    "prior.encoder.normalize": False,
    "prior.network.kind": "published",
    "prior.network.widths": (512, 256, 128),
    "prior.network.condition": 128,
    "prior.network.embedding": 32,
    "prior.network.time.kind": "fourier",
    "prior.network.time.size": 32,
    "prior.network.time.scale": 30.0,
    "steps.prior": 600_000,
    # critic and guidance: one million joint steps, batch 512, AdamW 3e-4 with decay 1e-4, gamma
    # 0.99, Polyak 0.005
    "schedule": "joint",
    "steps.backend": 1_000_000,
    "extractor.guidance.batch_size": 512,
    "backend.kind": "piecewise_f",
    "backend.optimizer.learning_rate": 3e-4,
    "backend.optimizer.weight_decay": 1e-4,
    "backend.optimizer.decay": "constant",
    "extractor.guidance.optimizer.learning_rate": 3e-4,
    "extractor.guidance.optimizer.weight_decay": 1e-4,
    "extractor.guidance.optimizer.decay": "constant",
    "backend.discount": 0.99,
    "backend.polyak": 0.005,
    "backend.encoder.normalize": False,
    # twin Q 256 x 2 relu; V 256 x 2 relu with layer norm; ten members for selection; g 4 x 256 silu
    # on a Fourier embedding of 32
    "backend.critic_members": 2,
    "backend.reduction.kind": "minimum",
    "backend.critic.hidden": (256, 256),
    "backend.critic.activation": "relu",
    "backend.critic.layer_norm": False,
    "backend.value.hidden": (256, 256),
    "backend.value.activation": "relu",
    "backend.value.layer_norm": True,
    "backend.selector.kind": "ensemble",
    "backend.selector.members": 10,
    "extractor.guidance.network.hidden": (256, 256, 256, 256),
    "extractor.guidance.network.activation": "silu",
    "extractor.guidance.network.layer_norm": False,
    "extractor.guidance.time.kind": "fourier",
    "extractor.guidance.time.size": 32,
    # V: coefficient 1; ratios in [1e-40, 100], not normalised; 16 noises; rescaled by the batch's
    # maximum with a cap of 80
    "backend.value_weight": 1.0,
    "backend.warm_start_steps": 0,
    "extractor.guidance.normalize": False,
    "extractor.guidance.noises_per_action": 16,
    "extractor.guidance.time_power": 1.0,
    "extractor.guidance.rescale.kind": "batch_max",
    "extractor.guidance.exponent_cut": 80.0,
    # acting: temperature 0.5 and K = 1 of the command line, scale 4 (medium), argmax of the mean,
    # candidates not clipped before scoring
    "backend.temperature": 0.5,
    "extractor.kind": "guide_then_select",
    "extractor.candidates": 1,
    "extractor.guidance_scale": 4.0,
    "extractor.selection.rule": "mean",
    "extractor.clip_candidates": "after_scoring",
    "extractor.clip_denoised": False,
    "extractor.solver.kind": "single_step",
    "extractor.solver.evaluations": 15,
    "extractor.solver.spacing": "uniform",
    "evaluation.episodes": 10,
}


def value(recipe: Recipe, name: str) -> Any:
    found: Any = recipe
    for key in name.split("."):
        found = getattr(found, key)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_official_has_the_published_number(name: str) -> None:
    assert value(OFFICIAL, name) == PUBLISHED[name]


def test_official_clamps_ratios_as_published_and_scales_rewards_of_locomotion() -> None:
    guidance = OFFICIAL.extractor.guidance
    assert math.exp(guidance.log_floor) == pytest.approx(1e-40)
    assert math.exp(guidance.log_cap) == pytest.approx(100)
    assert [transform.kind for transform in OFFICIAL.backend.rewards] == ["return_range"]


def test_paper_differs_from_official_in_the_printed_equations_only() -> None:
    """c = 1 - gamma instead of 1, no rescaling of the loss, and the theory's guidance scale."""
    found = differences(OFFICIAL.model_dump(mode="json"), PAPER.model_dump(mode="json"))
    assert found == [
        "backend.value_weight",
        "extractor.guidance.rescale.kind",
        "extractor.guidance_scale",
    ]
    assert PAPER.backend.value_weight == 1 - PAPER.backend.discount == 1 - 0.99
    assert PAPER.extractor.guidance.rescale.kind == "none"
    assert PAPER.extractor.guidance_scale == 1.0


def test_default_is_the_recipe_without_arguments() -> None:
    assert PRESETS["default"] == Recipe()
    assert list(PRESETS)[: len(DOMAINS) + 3] == ["default", *DOMAINS, "official", "paper"]
    assert set(PRESETS) == {
        "default",
        *DOMAINS,
        "official",
        "paper",
        *(f"official/{name}" for name in PUBLISHED_TASKS),
    }


# task -> guidance scale, score of Diffusion-DICE, best other score: the public implementation, and
# table 1 of the paper
PUBLISHED_TASKS: dict[str, tuple[float, float, float]] = {
    "halfcheetah-medium-v2": (4, 60.0, 54.1),
    "halfcheetah-medium-replay-v2": (4, 49.2, 47.8),
    "halfcheetah-medium-expert-v2": (2, 97.3, 96.8),
    "hopper-medium-v2": (4, 100.2, 98.0),
    "hopper-medium-replay-v2": (4, 102.3, 101.3),
    "hopper-medium-expert-v2": (2, 112.2, 111.8),
    "walker2d-medium-v2": (4, 89.3, 87.0),
    "walker2d-medium-replay-v2": (4, 90.8, 95.5),
    "walker2d-medium-expert-v2": (2, 114.1, 112.7),
    "antmaze-umaze-v2": (1, 98.1, 96.4),
    "antmaze-umaze-diverse-v2": (1, 82.0, 85.3),
    "antmaze-medium-play-v2": (2, 91.3, 86.0),
    "antmaze-medium-diverse-v2": (2, 85.7, 84.8),
    "antmaze-large-play-v2": (4, 68.6, 66.6),
    "antmaze-large-diverse-v2": (4, 72.0, 67.9),
}
LOCOMOTION = {
    "noises": 16,
    "rewards": "return_range",
    "rule": "mean",
    "selector": "ensemble",
    "episodes": 10,
}
ANTMAZE = {
    "noises": 32,
    "rewards": "minus_one_zero",
    "rule": "softmax",
    "selector": "critic",
    "episodes": 50,
}


@pytest.mark.parametrize("task", PUBLISHED_TASKS)
def test_a_task_has_its_published_settings_and_nothing_else(task: str) -> None:
    scale, *scores = PUBLISHED_TASKS[task]
    expected = ANTMAZE if task.startswith("antmaze") else LOCOMOTION
    recipe = PRESETS[f"official/{task}"]
    got = {
        "noises": recipe.extractor.guidance.noises_per_action,
        "rewards": recipe.backend.rewards[0].kind,
        "rule": recipe.extractor.selection.rule,
        "selector": recipe.backend.selector.kind,
        "episodes": recipe.evaluation.episodes,
    }
    assert (recipe.extractor.guidance_scale, got) == (scale, expected)
    assert [TASKS[task].score, TASKS[task].best_other] == scores
    assert recipe.data.source == f"{task}.hdf5"
    assert (TASKS[task].temperature, TASKS[task].candidates) == (None, None)
    assert (recipe.backend.temperature, recipe.extractor.candidates) == (0.5, 1)
    set_by_tasks = {"data", "backend.rewards", "backend.selector", "evaluation.episodes"}
    set_by_tasks |= {
        "extractor.selection",
        "extractor.guidance_scale",
        "extractor.guidance.noises_per_action",
    }
    assert {
        reason(field) for field in fields_that_differ("official", f"official/{task}")
    } <= set_by_tasks


def test_the_published_scores_have_the_published_averages() -> None:
    """Of the paper's table: locomotion 90.6, AntMaze 83.0."""
    antmaze = [task.score for name, task in TASKS.items() if name.startswith("antmaze")]
    locomotion = [task.score for name, task in TASKS.items() if not name.startswith("antmaze")]
    assert (len(locomotion), len(antmaze)) == (9, 6)
    assert sum(locomotion) / 9 == pytest.approx(90.6, abs=0.051)
    assert sum(antmaze) / 6 == pytest.approx(83.0, abs=0.051)


def fields_that_differ(one: str, two: str) -> list[str]:
    return differences(PRESETS[one].model_dump(mode="json"), PRESETS[two].model_dump(mode="json"))


def test_every_difference_has_a_reason_and_every_reason_a_difference() -> None:
    pairs = [
        ("official", "default"),
        ("official", "paper"),
        *(("official", name) for name in PRESETS if name.startswith("official/")),
    ]
    fields = {field for pair in pairs for field in fields_that_differ(*pair)}
    assert {reason(field) for field in fields} == set(REASONS)
    with pytest.raises(KeyError, match=r"expected one reason for 'backend\.polyak' .*found 0"):
        reason("backend.polyak")
    for text in REASONS.values():
        assert text.endswith(".")


Run = Callable[..., tuple[int, str, str]]


def test_the_list_has_one_line_for_each(run: Run) -> None:
    status, output, errors = run("presets")
    assert (status, errors) == (0, "")
    lines = output.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert [line.split(maxsplit=1)[1] for line in lines] == [describe(name) for name in PRESETS]
    assert "published score 100.2, best other method 98.0 (arXiv 2407.20109, table 1)" in describe(
        "official/hopper-medium-v2"
    )


@pytest.mark.parametrize("name", ["default", "official/antmaze-large-play-v2"])
def test_what_is_shown_can_be_read_back(name: str, run: Run) -> None:
    status, output, errors = run("presets", "show", name)
    assert status == 0
    assert Recipe.model_validate_json(output) == PRESETS[name]
    assert errors.splitlines()[0] == f"{name}: {describe(name)}"
    assert errors.count("never published") == (0 if name == "default" else 2)


def test_a_diff_says_every_field_both_values_and_why(run: Run) -> None:
    status, output, _ = run("presets", "diff", "official", "paper")
    assert status == 0
    blocks = [
        block.splitlines()
        for block in output.removeprefix("official -> paper\n").strip().split("\n\n")
    ]
    assert [block[:-1] for block in blocks] == [
        ["backend.value_weight: 1.0 -> 0.010000000000000009"],
        ["extractor.guidance_scale: 4.0 -> 1.0"],
        ['extractor.guidance.rescale.kind: "batch_max" -> "none"'],
    ]
    assert [block[-1].strip() for block in blocks] == [
        REASONS[name]
        for name in (
            "backend.value_weight",
            "extractor.guidance_scale",
            "extractor.guidance.rescale",
        )
    ]
    _, output, _ = run("presets", "diff", "official", "default")
    shown = {
        line.split(": ")[0] for line in output.splitlines()[1:] if line and not line.startswith(" ")
    }
    assert shown == set(fields_that_differ("official", "default"))
    assert "prior.network.blocks: (no such field) -> 3\n" in output
    assert "extractor.guidance.log_cap: 4.605170185988092 -> null\n" in output
    assert run("presets", "diff", "paper", "paper")[1] == "paper -> paper\n"


def test_training_says_which_settings_are_not_the_papers(run: Run) -> None:
    recipe = PRESETS["official/hopper-medium-v2"]
    assert unpublished("default", PRESETS["default"]) == []
    assert unpublished("official/hopper-medium-v2", recipe) == [
        "official/hopper-medium-v2: --backend.temperature 0.5 is not the paper's: the "
        "temperature of each task was never published; 0.5 is the default of the public "
        "command line",
        "official/hopper-medium-v2: --extractor.candidates 1 is not the paper's: K of each "
        "task was never published; 1 is the default of the public command line",
    ]
    status, _, errors = run(
        "train", "--preset", "official/hopper-medium-v2", "--backend.temperature", "2"
    )
    assert status == 1
    first, second = errors.splitlines()
    assert first.startswith(
        "official/hopper-medium-v2: --extractor.candidates 1 is not the paper's"
    )
    assert second.startswith("error: ")
    assert "hopper-medium-v2.hdf5" in second


@pytest.fixture(scope="module")
def locomotion() -> Any:
    """A set of the shape of halfcheetah's, S = 17 and A = 6, whose episodes have different
    returns.
    """
    generator = torch.Generator().manual_seed(0)
    rows = 120
    arrays = {
        "observations": torch.randn(rows, 17, generator=generator).numpy(),
        "actions": (2 * torch.rand(rows, 6, generator=generator) - 1).numpy(),
        "rewards": torch.randn(rows, generator=generator).numpy(),
        "terminations": torch.arange(rows).remainder(10).eq(9).numpy(),
    }
    return load_dataset(
        {**arrays, "episode_ids": torch.arange(rows).div(10, rounding_mode="floor").numpy()},
        action_bounds=(-1, 1),
    )


def test_official_networks_have_the_published_sizes(locomotion: Any) -> None:
    prior = OFFICIAL.prior.build(locomotion.spec)
    trained = sum(
        parameter.numel() for parameter in prior.network.parameters() if parameter.requires_grad
    )
    assert round(trained / 1e6, 2) == 1.63
    guidance = OFFICIAL.extractor.build(locomotion.spec, prior=prior).network
    trained = sum(
        parameter.numel() for parameter in guidance.parameters() if parameter.requires_grad
    )
    # inputs 17 + 6 + 32, four layers of 256, one output
    assert trained == (55 * 256 + 256) + 3 * (256 * 256 + 256) + 257
    assert round(trained / 1e6, 2) == 0.21


@pytest.mark.parametrize("name", ["official", "paper"])
def test_presets_train_a_few_steps_with_their_own_networks(
    name: str, locomotion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path))
    changes = {
        "steps": {"prior": 1, "backend": 2},
        "evaluation": {"episodes": 0},
        "prior": {"batch_size": 64},
        "extractor": {"candidates": 3},
    }
    recipe = Recipe.model_validate(small.merge(PRESETS[name].model_dump(mode="json"), changes))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained, _ = train(
            recipe, tmp_path / "run", data=locomotion, progress=False, say=lambda _: None
        )
    about_value_weight = [str(one.message) for one in caught if "value_weight" in str(one.message)]
    assert len(about_value_weight) == (1 if name == "paper" else 0)
    assert all(
        "value_weight 0.01 forces a mean ratio of 0.01 in every state and adds about" in message
        and "here 461: values are then no returns" in message
        for message in about_value_weight
    )
    assert (trained.prior.step, trained.backend.step, trained.extractor.step) == (1, 2, 2)
    assert trained.policy.q.config.members == 10
    actions = trained.policy.act(locomotion.observations[:2], seed=0)
    assert actions.shape == (2, 6)
    assert bool((actions.abs() <= 1).all())
    lines = (tmp_path / "run" / "metrics" / "joint.jsonl").read_text()
    expected = 1.0 if name == "official" else 0.01
    assert f'"backend/mean_ratio_expected": {torch.tensor(expected).item()}' in lines
