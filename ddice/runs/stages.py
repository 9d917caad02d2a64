"""From a recipe to its stages: what is trained in which order, and with whose ratios."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ddice.data import Batch, Transitions
from ddice.dice_backends.semi_gradient import PairBackend
from ddice.diffusion.prior import Prior
from ddice.extractors import Extractor
from ddice.parts import loop
from ddice.parts.ratio_source import RatioSource
from ddice.parts.stage import Stage, Update, alone, whole
from ddice.parts.watcher import Watcher
from ddice.policies import evaluation
from ddice.runs.alarms.looked import Looked
from ddice.runs.alarms.watching import alarms
from ddice.runs.learning_curve import StageName, learning_curve, require_curve
from ddice.runs.recipe import Recipe
from ddice.runs.split import Split


def jointly(backend: RatioSource, extractor: Extractor) -> Update:
    """One step of the backend, then one of the extractor, which reads the updated backend."""

    def update(batch: Batch, step: int) -> loop.Metrics:
        of_backend = backend.update(batch, step=step)
        of_extractor = extractor.learn_from(batch, backend, step=step)
        return {f"backend/{name}": value for name, value in of_backend.items()} | {
            f"extractor/{name}": value for name, value in of_extractor.items()
        }

    return update


class Stages(ABC):
    """The stages of one recipe over one dataset. `do` gets each of them as soon as the parts that
    it reads are there: an extractor may begin as a copy of the trained prior.

    `data` are those that parts are trained on: without the episodes that the recipe holds out,
    `held_out`. Where they are split already, they are not split again.
    """

    def __init__(self, recipe: Recipe, data: Transitions | Split, trust_env: Sequence[str] = ()):
        self.recipe = recipe
        self.trust_env = trust_env
        self.device = loop.resolve_device(recipe.device)
        split = data if isinstance(data, Split) else recipe.data.split(data)
        self.data = split.training.to(self.device)
        self.held_out = None if split.held_out is None else split.held_out.to(self.device)

    @abstractmethod
    def do(self, stage: Stage) -> None:
        """Bring the parts of the stage to its end."""

    def watchers(
        self,
        stage: str,
        *,
        prior: Prior | None = None,
        backend: RatioSource | None = None,
        extractor: Extractor | None = None,
    ) -> tuple[Watcher, ...]:
        """Who watches a stage; the parts are those that are there by then, the live ones of the
        stage among them.
        """
        steps = self.recipe.steps.prior if stage == "prior" else self.recipe.steps.backend
        watching = alarms(stage, steps, Looked(self.data, self.held_out), prior, backend)
        curve = learning_curve(
            self.recipe,
            self.data,
            stage,
            prior=prior,
            backend=backend,
            extractor=extractor,
            trust_env=self.trust_env,
        )
        return watching if curve is None else (*watching, curve)

    def check(self, *, with_backend: bool = True) -> StageName | None:
        """Raise ValueError, before anything is trained, when the parts do not fit together, there
        is nowhere to play, or the learning curve that was asked for cannot be had. The stage of
        the learning curve, if there is one.
        """
        recipe, spec = self.recipe, self.data.spec
        prior: Prior | None = None
        backend: RatioSource | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what parts warn of is said when they are trained
            # Built to be looked at only. Random numbers follow from seed and name, so that these
            # parts change nothing in those that are trained.
            if recipe.needs_prior:
                prior = recipe.prior.build(spec, recipe.seed)
            if with_backend:
                backend = recipe.backend.build(spec, recipe.seed)
            recipe.extractor.check(prior, backend)
            stage_of_curve = require_curve(recipe, spec, prior, backend)
        for message in self._untrained(backend):
            warnings.warn(message, UserWarning, stacklevel=2)
        if recipe.evaluation.episodes and spec.env is None:
            raise ValueError(
                "the data record no environment to play in: give its id as data.env, or train "
                "without evaluation.episodes (0) and evaluation.every"
            )
        if recipe.evaluation.episodes:
            evaluation.require_playable(spec, self.trust_env)
        return stage_of_curve

    def _untrained(self, backend: RatioSource | None) -> list[str]:
        """What is to be used without a step of training, in sentences."""
        recipe = self.recipe
        steps, extractor = recipe.steps, recipe.extractor
        together = recipe.schedule == "joint"
        asked = {
            "prior": recipe.needs_prior,
            "backend": backend is not None and backend.trains,
            "extractor": extractor.needs_ratio and not together,
        }
        return [
            f"steps.{stage} = 0: the {stage} stays as it was initialised, and what comes after "
            "uses it untrained"
            for stage, is_used in asked.items()
            if is_used and getattr(steps, stage) == 0
        ]

    def all(
        self, *, with_backend: bool = True
    ) -> tuple[Prior | None, RatioSource | None, Extractor]:
        """Do every stage: prior, then backend, then extractor (or the last two together). The
        behaviour policy needs no backend.
        """
        prior = self.prior() if self.recipe.needs_prior else None
        if not with_backend:
            return prior, None, self.extractor(prior, None)
        if self.recipe.schedule == "joint":
            return prior, *self.joint(prior)
        backend = self.calibrated(self.backend(prior), prior)
        return prior, backend, self.extractor(prior, backend)

    def prior(self) -> Prior:
        """The prior, after its stage."""
        recipe = self.recipe
        part = recipe.prior.build(self.data.spec, recipe.seed).to(self.device)
        stage = alone(part, name="prior", steps=recipe.steps.prior)
        self.do(dataclasses.replace(stage, watchers=self.watchers("prior", prior=part)))
        return part

    def backend(self, prior: Prior | None = None) -> RatioSource:
        """The backend, after its stage; it knows nothing of the prior, which watchers may."""
        part = self._untrained_backend()
        stage = alone(part, name="backend", steps=self.recipe.steps.backend)
        watchers = self.watchers("backend", prior=prior, backend=part)
        self.do(dataclasses.replace(stage, watchers=watchers))
        return part

    def calibrated(self, backend: RatioSource, prior: Prior | None) -> RatioSource:
        """The ratios of the backend, calibrated where its configuration asks for it."""
        if not isinstance(backend, PairBackend) or backend.config.calibration is None:
            return backend
        assert prior is not None  # `needs_prior`
        part = backend.config.calibration.build(
            self.data.spec, self.recipe.seed, backend=backend, prior=prior
        )
        self.do(whole(part, self.data))
        return part

    def extractor(self, prior: Prior | None, backend: RatioSource | None) -> Extractor:
        """The extractor, after its stage."""
        part = self._untrained_extractor(prior, backend)
        stage = part.stage(backend, name="extractor", steps=self.recipe.steps.extractor)
        watchers = self.watchers("extractor", prior=prior, backend=backend, extractor=part)
        self.do(dataclasses.replace(stage, watchers=watchers))
        return part

    def joint(self, prior: Prior | None) -> tuple[RatioSource, Extractor]:
        """Backend and extractor, after the stage that trains them on the same batches."""
        recipe = self.recipe
        backend = self._untrained_backend()
        extractor = self._untrained_extractor(prior, backend)
        stage = Stage(
            name="joint",
            parts={"backend": backend, "extractor": extractor},
            update=jointly(backend, extractor),
            batch_size=recipe.batch_size or extractor.batch_size,
            seed=recipe.seed,
            start=0,
            stop=recipe.steps.backend,
            watchers=self.watchers("joint", prior=prior, backend=backend, extractor=extractor),
        )
        self.do(stage)
        return backend, extractor

    def _untrained_backend(self) -> RatioSource:
        backend: RatioSource = self.recipe.backend.build(self.data.spec, self.recipe.seed)
        return backend.to(self.device)

    def _untrained_extractor(self, prior: Prior | None, backend: RatioSource | None) -> Extractor:
        config = self.recipe.extractor
        config.check(prior, backend)
        return config.build(self.data.spec, self.recipe.seed, prior).to(self.device)
