"""The alarms of a run as it ended, or as it stands: numbers, and what they ask for."""

from __future__ import annotations

from collections.abc import Iterator

from ddice.dice_backends.semi_gradient import PairConfig
from ddice.extractors import SelectingConfig
from ddice.parts.stage import Stage
from ddice.runs.alarms.verdicts import of_backend, of_prior
from ddice.runs.alarms.watching import ACTIONS
from ddice.runs.metrics import Curves
from ddice.runs.recipe import Recipe

BLIND, OF_PRIOR = f"best of {ACTIONS} blind actions", f"best of {ACTIONS} of the prior"
# the full name of a number -> what it says
LABELS = {
    "alarms/denoising_error": "denoising error, rows of the training",
    "alarms/denoising_error_held_out": "denoising error, held-out rows",
    "alarms/value_bias": "V above observed returns, in their deviations",
    "alarms/value_correlation": "V and observed returns, correlation",
    "alarms/uniform_above_data": f"{BLIND} above the data's, in deviations of Q",
    "alarms/uniform_above_data_share": f"{BLIND} above the data's, share of states",
    "candidates/prior_above_data": f"{OF_PRIOR} above the data's, in deviations of Q",
    "candidates/prior_above_data_share": f"{OF_PRIOR} above the data's, share of states",
    "candidates/member_agreement": "rank agreement of the critic's members on candidates",
    "candidates/value_error": "V off from where ratios average 1, in temperatures",
    "candidates/choices_at_edge": "choices at the bounds, share of coordinates",
    "candidates/candidates_at_edge": "candidates at the bounds, share of coordinates",
    "alarms/td_error": "TD error, rows of the training",
    "alarms/td_error_held_out": "TD error, held-out rows",
}
WIDTH = max(map(len, LABELS.values())) + 2


def last_numbers(curves: Curves) -> dict[str, dict[str, float]]:
    """The last number of every alarm by its full name, by stage."""
    found: dict[str, dict[str, float]] = {}
    for stage in dict.fromkeys(stage for stage, _ in curves):
        own = {name: curves[stage, name] for name in LABELS if (stage, name) in curves}
        found |= {stage: {name: curve[-1][1] for name, curve in own.items()}} if own else {}
    return found


def lines(curves: Curves) -> Iterator[str]:
    """The last number of every alarm, a line each, stage by stage."""
    for stage, numbers in last_numbers(curves).items():
        yield f"alarms of the stage {stage}"
        for name, number in numbers.items():
            yield f"  {LABELS[name]:{WIDTH}}{number:.4g}"


def verdicts(stage: Stage, curves: Curves, recipe: Recipe) -> list[str]:
    """What the alarms of a trained stage ask for; nothing where they did not look at its end."""
    own = {name: curve for (of, name), curve in curves.items() if of == stage.name and curve}
    ended = {name: curve for name, curve in own.items() if curve[-1][0] == stage.stop}
    if stage.name == "prior":
        return of_prior(
            ended.get("alarms/denoising_error", []),
            ended.get("alarms/denoising_error_held_out", []),
            stage.stop,
            recipe.prior.optimizer.decay,
        )
    last = {name: curve[-1][1] for name, curve in ended.items()}
    extractor = recipe.extractor
    candidates = extractor.candidates if isinstance(extractor, SelectingConfig) else 1
    backend = recipe.backend
    calibrated = isinstance(backend, PairConfig) and backend.calibration is not None
    return of_backend(last, candidates, calibrated=calibrated)
