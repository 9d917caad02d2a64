"""The recipes behind the names."""

from __future__ import annotations

import math

from ddice.core.config import merge
from ddice.dice_backends import CriticEnsemble, Minimum, PiecewiseF
from ddice.dice_backends.rewards import ReturnRange
from ddice.diffusion.guidance import BatchMaximum, Guidance, Unscaled
from ddice.diffusion.networks import MLP, FlattenEncoder, FourierTime, PublishedScore
from ddice.diffusion.prediction import NoisePrediction
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.solvers import PUBLISHED
from ddice.extractors import GuideThenSelect
from ddice.parts.part import Optimizer
from ddice.runs.presets.choices import recipe_of
from ddice.runs.presets.domains import ABOUT, DOMAINS
from ddice.runs.presets.reasons import REASONS, reason
from ddice.runs.presets.tasks import SOURCE, TASKS, Task
from ddice.runs.recipe import EvaluationSettings, Recipe, Steps

_RAW = FlattenEncoder(normalize=False)
_DISCOUNT = 0.99  # published
_PUBLISHED_OPTIMIZER = Optimizer(learning_rate=3e-4, weight_decay=1e-4)

_OFFICIAL = Recipe(
    prior=DiffusionPrior(
        network=PublishedScore(),
        prediction=NoisePrediction(),
        encoder=_RAW,
        optimizer=Optimizer(learning_rate=1e-4),
        batch_size=4096,
        ema=0.0,
    ),
    backend=PiecewiseF(
        temperature=0.5,
        discount=_DISCOUNT,
        rewards=(ReturnRange(),),
        encoder=_RAW,
        optimizer=_PUBLISHED_OPTIMIZER,
        critic=MLP(hidden=(256, 256), layer_norm=False),
        critic_members=2,
        reduction=Minimum(),
        selector=CriticEnsemble(members=10),
    ),
    extractor=GuideThenSelect(
        candidates=1,
        guidance_scale=4.0,
        clip_candidates="after_scoring",
        clip_denoised=False,
        solver=PUBLISHED,
        guidance=Guidance(
            network=MLP(hidden=(256, 256, 256, 256), activation="silu"),
            time=FourierTime(),
            optimizer=_PUBLISHED_OPTIMIZER,
            batch_size=512,
            noises_per_action=16,
            log_floor=-40 * math.log(10),
            log_cap=math.log(100),
            normalize=False,
            exponent_cut=80.0,
            rescale=BatchMaximum(),
        ),
    ),
    steps=Steps(prior=600_000, backend=1_000_000, extractor=1_000_000),
    schedule="joint",
    evaluation=EvaluationSettings(episodes=10),
)


def _paper() -> Recipe:
    guidance = _OFFICIAL.extractor.guidance.model_copy(update={"rescale": Unscaled()})  # type: ignore[attr-defined]
    return _OFFICIAL.model_copy(
        update={
            "backend": _OFFICIAL.backend.model_copy(update={"value_weight": 1 - _DISCOUNT}),
            "extractor": _OFFICIAL.extractor.model_copy(
                update={"guidance": guidance, "guidance_scale": 1.0}
            ),
        }
    )


def _of_tasks() -> dict[str, Recipe]:
    base = _OFFICIAL.model_dump(mode="json")
    return {
        f"official/{name}": Recipe.model_validate(merge(base, task.changes()))
        for name, task in TASKS.items()
    }


PRESETS: dict[str, Recipe] = {
    "default": Recipe(),
    **{name: recipe_of(choices) for name, choices in DOMAINS.items()},
    "official": _OFFICIAL,
    "paper": _paper(),
    **_of_tasks(),
}
_ABOUT = {
    "default": "ddice's own: minutes on a CPU, any continuous task",
    **ABOUT,
    "official": (
        "the public implementation of Diffusion-DICE, meant for a GPU, with the settings of "
        "locomotion's medium tasks"
    ),
    "paper": (
        "the same with the paper's printed equations where the implementation departs from them"
    ),
}


_UNPUBLISHED = (("backend", "temperature"), ("extractor", "candidates"))


def describe(name: str) -> str:
    """One line about a preset."""
    if name in _ABOUT:
        return _ABOUT[name]
    task = TASKS[name.removeprefix("official/")]
    return (
        f"official with the settings of this D4RL task; published score {task.score}, best "
        f"other method {task.best_other} ({SOURCE})"
    )


def unpublished(name: str, recipe: Recipe) -> list[str]:
    """One line per setting that `recipe` takes from preset `name` although nobody published it:
    its results then say nothing about the paper's.
    """
    lines = []
    own = name == "default" or name in DOMAINS
    for part, field in () if own else _UNPUBLISHED:
        value = getattr(getattr(recipe, part), field, None)
        if value == getattr(getattr(PRESETS[name], part), field):
            lines.append(
                f"{name}: --{part}.{field} {value} is not the paper's: "
                f"{Task.model_fields[field].description}"
            )
    return lines


def why(field: str, *names: str) -> str:
    """Why these presets differ in a dotted field: what the preset of a domain says of its own
    choice, else what holds of the published recipe.
    """
    for name in names:
        for choice in DOMAINS.get(name, ()):
            if choice.covers(field):
                return choice.reason
    return REASONS[reason(field)]
