"""Learning curves: the policy of a recipe is played while it trains, in the last stage that changes
it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ddice.data import Spec, Transitions
from ddice.diffusion.prior import Prior
from ddice.extractors import Extractor
from ddice.parts.ratio_source import RatioSource
from ddice.policies.evaluation import Evaluation
from ddice.policies.policy import Policy
from ddice.runs.recipe import Recipe

StageName = Literal["backend", "extractor", "joint"]


class NoCurve(ValueError):
    """No stage of a recipe changes the policy that was to be played."""


@dataclass(frozen=True)
class LearningCurve:
    """A watcher that plays a policy: `policy` gives what has been learned so far, `play` its
    scores.
    """

    every: int
    identity: str
    policy: Callable[[], Policy]
    play: Callable[[Policy], Evaluation]
    name: str = "evaluation"

    def look(self, step: int) -> Mapping[str, float]:
        """Means over the episodes; `success_rate` where the environment reports success."""
        with warnings.catch_warnings():
            # What a half trained policy warns of is said of the trained one.
            warnings.simplefilter("ignore")
            policy = self.policy()
        scores = self.play(policy)
        count = len(scores.returns)
        found = {
            "score": scores.mean,
            "return": sum(scores.returns) / count,
            "length": sum(scores.lengths) / count,
            "seconds": scores.seconds,
        }
        if scores.success_rate is not None:
            found["success_rate"] = scores.success_rate
        return found


def last_stage(extractor: Extractor, backend: RatioSource, schedule: str) -> StageName:
    """The last stage that changes the policy of an extractor. Raises NoCurve where none does."""
    if schedule == "joint":
        return "joint"
    if extractor.trains:
        return "extractor"
    if backend.trains:
        return "backend"
    raise NoCurve(
        f"evaluation.every plays a policy while it trains, and neither {backend.kind} nor "
        f"{extractor.kind} is trained: leave it out"
    )


def require_curve(
    recipe: Recipe, spec: Spec, prior: Prior | None, backend: RatioSource | None
) -> StageName | None:
    """The stage in which the policy is to be played; None where no curve is asked for.

    Raises NoCurve where no stage changes that policy, ValueError where the stage is shorter than
    from one point to the next.
    """
    settings = recipe.evaluation
    if settings.every is None:
        return None
    if backend is None:
        raise NoCurve("evaluation.every: the behaviour policy is played as it is")
    try:
        config = settings.curve.played(recipe.extractor)
        config.check(prior, backend)
    except ValueError as error:
        raise NoCurve(f"evaluation.every: {error}") from error
    stage = last_stage(config.build(spec, recipe.seed, prior), backend, recipe.schedule)
    steps = recipe.steps.extractor if stage == "extractor" else recipe.steps.backend
    if settings.every > steps:
        raise ValueError(
            f"evaluation.every = {settings.every:,} is more than the {steps:,} steps of the stage "
            f"{stage!r}, in which the policy is played: give fewer, or leave it out"
        )
    return stage


def learning_curve(
    recipe: Recipe,
    data: Transitions,  # on the device of the parts
    stage: str,
    *,
    prior: Prior | None,
    backend: RatioSource | None,
    extractor: Extractor | None,
    trust_env: Sequence[str] = (),
) -> LearningCurve | None:
    """What plays the policy of a recipe in a stage, with the live parts; None in other stages than
    the one, and where no curve is asked for. trust_env: as in `ddice.evaluate`.
    """
    settings = recipe.evaluation
    if settings.every is None or backend is None:
        return None
    config = settings.curve.played(recipe.extractor)
    if config.needs_prior and prior is None:  # who asks for the backend alone wants no curve
        return None
    if extractor is None or config != recipe.extractor:
        extractor = config.build(data.spec, recipe.seed, prior).to(backend.device)
    if last_stage(extractor, backend, recipe.schedule) != stage:
        return None
    live = extractor
    few = settings.model_copy(update={"episodes": settings.curve.episodes})
    return LearningCurve(
        every=settings.every,
        # Of all that a score depends on, training names the parts that it trains: not how they act,
        # nor where, nor the prior on which a Q chooses.
        identity=config.digest(
            spec=data.spec.model_dump(mode="json"),
            prior=None if prior is None else f"{prior.identity(data)}@{prior.step}",
            evaluation=few.model_dump(mode="json", exclude={"every", "parallel"}),
        ),
        policy=lambda: live.policy(q=backend.q),
        play=lambda policy: few.play(policy, progress=False, trust_env=trust_env),
    )
