"""The presets against the numbers of the public implementation of Diffusion-DICE, written out here a second time."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from ddice.data import load_dataset
from ddice.presets import PRESETS
from ddice.recipe import Recipe
from ddice.training import differences, train

OFFICIAL, PAPER = PRESETS["official"], PRESETS["paper"]

# Settings of the public implementation (arXiv 2407.20109), by dotted name.
PUBLISHED: dict[str, Any] = {
    # prior: VP with beta 0.1 .. 20, t in [1e-3, 1]; Adam 1e-4, batch 4096, 600k steps, no average, nothing normalised
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
    # critic and guidance: one million joint steps, batch 512, AdamW 3e-4 with decay 1e-4, gamma 0.99, Polyak 0.005
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
    # twin Q 256 x 2 relu; V 256 x 2 relu with layer norm; ten members for selection; g 4 x 256 silu on a Fourier embedding of 32
    "backend.critic_members": 2,
    "backend.critic.hidden": (256, 256),
    "backend.critic.activation": "relu",
    "backend.critic.layer_norm": False,
    "backend.value.hidden": (256, 256),
    "backend.value.activation": "relu",
    "backend.value.layer_norm": True,
    "backend.selector": "ensemble",
    "backend.ensemble_members": 10,
    "extractor.guidance.network.hidden": (256, 256, 256, 256),
    "extractor.guidance.network.activation": "silu",
    "extractor.guidance.network.layer_norm": False,
    "extractor.guidance.time.kind": "fourier",
    "extractor.guidance.time.size": 32,
    # V: coefficient 1; ratios in [1e-40, 100], not normalised; 16 noises; rescaled by the batch's maximum with a cap of 80
    "backend.value_weight": 1.0,
    "backend.warm_start_steps": 0,
    "extractor.guidance.normalize": False,
    "extractor.guidance.noises_per_action": 16,
    "extractor.guidance.time_power": 1.0,
    "extractor.guidance.rescale": "batch_max",
    "extractor.guidance.exponent_cut": 80.0,
    # acting: temperature 0.5 and K = 1 of the command line, scale 4 (medium), argmax of the mean, candidates not clipped before scoring
    "backend.temperature": 0.5,
    "extractor.kind": "guide_then_select",
    "extractor.candidates": 1,
    "extractor.guidance_scale": 4.0,
    "extractor.selection.rule": "mean",
    "extractor.clip_candidates": "after_scoring",
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
    assert found == ["backend.value_weight", "extractor.guidance.rescale", "extractor.guidance_scale"]
    assert PAPER.backend.value_weight == "one_minus_discount"
    assert PAPER.extractor.guidance.rescale == "none"
    assert PAPER.extractor.guidance_scale == 1.0


def test_default_is_the_recipe_without_arguments() -> None:
    assert PRESETS["default"] == Recipe()
    assert list(PRESETS) == ["default", "official", "paper"]


@pytest.fixture(scope="module")
def locomotion() -> Any:
    """A set of the shape of halfcheetah's, S = 17 and A = 6, whose episodes have different returns."""
    generator = torch.Generator().manual_seed(0)
    rows = 120
    arrays = {
        "observations": torch.randn(rows, 17, generator=generator).numpy(),
        "actions": (2 * torch.rand(rows, 6, generator=generator) - 1).numpy(),
        "rewards": torch.randn(rows, generator=generator).numpy(),
        "terminations": torch.arange(rows).remainder(10).eq(9).numpy(),
    }
    return load_dataset({**arrays, "episode_ids": torch.arange(rows).div(10, rounding_mode="floor").numpy()}, action_bounds=(-1, 1))


def test_official_networks_have_the_published_sizes(locomotion: Any) -> None:
    prior = OFFICIAL.prior.build(locomotion.spec)
    trained = sum(parameter.numel() for parameter in prior.network.parameters() if parameter.requires_grad)
    assert round(trained / 1e6, 2) == 1.63
    guidance = OFFICIAL.extractor.build(locomotion.spec, prior=prior).network
    trained = sum(parameter.numel() for parameter in guidance.parameters() if parameter.requires_grad)
    # inputs 17 + 6 + 32, four layers of 256, one output
    assert trained == (55 * 256 + 256) + 3 * (256 * 256 + 256) + 257
    assert round(trained / 1e6, 2) == 0.21


@pytest.mark.parametrize("name", ["official", "paper"])
def test_presets_train_a_few_steps_with_their_own_networks(
    name: str, locomotion: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path))
    changes = {"steps": {"prior": 1, "backend": 2}, "evaluation": {"episodes": 0}, "prior": {"batch_size": 64}, "extractor": {"candidates": 3}}
    recipe = Recipe.model_validate(small.merge(PRESETS[name].model_dump(mode="json"), changes))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained, _ = train(recipe, tmp_path / "run", data=locomotion, progress=False, say=lambda _: None)
    about_value_weight = [str(one.message) for one in caught if "value_weight" in str(one.message)]
    assert len(about_value_weight) == (1 if name == "paper" else 0)
    assert all("value_weight 1 - discount forces a mean ratio of 0.01 in every state" in message for message in about_value_weight)
    assert (trained.prior.step, trained.backend.step, trained.extractor.step) == (1, 2, 2)
    assert trained.policy.q.config.members == 10
    actions = trained.policy.act(locomotion.observations[:2], seed=0)
    assert actions.shape == (2, 6)
    assert bool((actions.abs() <= 1).all())
    lines = (tmp_path / "run" / "metrics" / "joint.jsonl").read_text()
    expected = 1.0 if name == "official" else 0.01
    assert f'"backend/mean_ratio_expected": {torch.tensor(expected).item()}' in lines

