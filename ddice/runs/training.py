"""From a recipe to a policy: what is trained when, and what is found again by fingerprint."""

from __future__ import annotations

import itertools
import json
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ddice.core import cache
from ddice.parts import loop
from ddice.data import Batch, Transitions
from ddice.policies import evaluation
from ddice.policies.evaluation import Evaluation, Moment
from ddice.extractors import Extractor
from ddice.policies.policy import Policy
from ddice.diffusion.prior import Prior
from ddice.runs.recipe import Recipe
from ddice.runs.status import hold, require_free
from ddice.core.storage import load_tensors, save_tensors, write_json

Say = Callable[[str], None]
Update = Callable[[Batch, int], loop.Metrics]
# of the training code: raised when the same recipe would train something else, so that old parts
# are not found
VERSION = 1
STATE = "trained part"
CHECKPOINT_EVERY = 1000  # steps


@dataclass(frozen=True)
class Trained:
    """What a recipe gave."""

    policy: Policy
    prior: Prior | None
    backend: Any
    extractor: Extractor


class Pair:
    """Backend and extractor trained together, as one thing that the loop can checkpoint."""

    def __init__(self, backend: Any, extractor: Extractor):
        self.backend, self.extractor = backend, extractor

    def state(self) -> dict[str, Tensor]:
        parts = {"backend": self.backend, "extractor": self.extractor}
        return {
            f"{name}.{key}": value
            for name, part in parts.items()
            for key, value in part.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, part in (("backend", self.backend), ("extractor", self.extractor)):
            part.load_state(
                {
                    key.removeprefix(f"{name}."): value
                    for key, value in state.items()
                    if key.startswith(f"{name}.")
                }
            )

    def update(self, batch: Batch, step: int) -> loop.Metrics:
        """One step of the backend, then one of the extractor with the ratios of the updated
        backend.
        """
        metrics = {
            f"backend/{name}": value
            for name, value in self.backend.update(batch, step=step).items()
        }
        guided = self.extractor.update(batch, step=step, log_ratio=self.backend.log_ratio(batch))
        return metrics | {f"extractor/{name}": value for name, value in guided.items()}


class Training:
    """The stages of one recipe over one dataset. Every stage is found in the cache, resumed from
    its checkpoint, or trained.

    only_found: raise FileNotFoundError in place of training, for those who only look.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Transitions,
        *,
        run: Path | None = None,
        progress: bool = True,
        checkpoint_every: int = CHECKPOINT_EVERY,
        say: Say = print,
        only_found: bool = False,
        listeners: Sequence[loop.Listener] = (),
    ):
        self.recipe, self.folder, self.progress, self.checkpoint_every, self.say = (
            recipe,
            run,
            progress,
            checkpoint_every,
            say,
        )
        self.only_found, self.listeners = only_found, listeners
        if checkpoint_every < 1:
            raise ValueError(
                f"expected checkpoint_every of at least 1 step, got {checkpoint_every}"
            )
        self.device = loop.resolve_device(recipe.device)
        self.data = data.to(self.device)

    def check(self, *, with_backend: bool = True) -> None:
        """Raise ValueError, before anything is trained, when the parts do not fit together or
        there is nowhere to play.
        """
        recipe, spec = self.recipe, self.data.spec
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what parts warn of is said when they are trained
            prior = recipe.prior.build(spec, recipe.seed) if recipe.extractor.needs_prior else None
            backend: Any = recipe.backend.build(spec, recipe.seed) if with_backend else None
            recipe.extractor.check(prior, backend)
        if recipe.evaluation.episodes and spec.env is None:
            raise ValueError(
                "the data record no environment to play in: give its id as data.env, or train "
                "without evaluation.episodes (0)"
            )
        if recipe.evaluation.episodes:
            evaluation.require_playable(spec)

    def train(self, *, with_backend: bool = True) -> Trained:
        """Prior, then backend, then extractor (or the last two together), then the policy. The
        behaviour policy needs no backend.
        """
        self.check(with_backend=with_backend)
        recipe = self.recipe
        prior = self.prior() if recipe.extractor.needs_prior else None
        if not with_backend:
            extractor = self.extractor(prior, None)
            return Trained(
                extractor.policy(notes={"data": self.data.spec.fingerprint}), prior, None, extractor
            )
        if recipe.schedule == "joint":
            backend, extractor = self.joint(prior)
        else:
            backend = self.backend()
            extractor = self.extractor(prior, backend)
        notes = {
            "backend": recipe.backend.kind,
            "ratio": backend.ratio_kind,
            "data": self.data.spec.fingerprint,
        }
        return Trained(extractor.policy(q=backend.q, notes=notes), prior, backend, extractor)

    def prior(self) -> Prior:
        """The trained prior."""
        part = self.recipe.prior.build(self.data.spec, self.recipe.seed).to(self.device)
        key = self.recipe.prior.digest(
            data=self.data.spec.behaviour_fingerprint, **self._common(self.recipe.steps.prior)
        )
        self._stage(
            "prior", key, part, own_update(part), part.batch_size, self.recipe.steps.prior, [part]
        )
        return part

    def backend(self) -> Any:
        """The trained backend."""
        part: Any = self.recipe.backend.build(self.data.spec, self.recipe.seed).to(self.device)
        if part.trains:
            part.prepare(self.data)
            key = self.recipe.backend.digest(
                data=self.data.spec.fingerprint, **self._common(self.recipe.steps.backend)
            )
            self._stage(
                "backend",
                key,
                part,
                own_update(part),
                part.batch_size,
                self.recipe.steps.backend,
                [part],
            )
            part.check_trained(self.data)
        return part

    def extractor(self, prior: Prior | None, backend: Any) -> Extractor:
        """The trained extractor."""
        config, steps = self.recipe.extractor, self.recipe.steps
        config.check(prior, backend)
        part = config.build(self.data.spec, self.recipe.seed, prior).to(self.device)
        if part.trains:
            given = [
                (part.identity(self.data), count)
                for part, count in ((prior, steps.prior), (backend, steps.backend))
                if part is not None
            ]
            key = config.digest(
                without=config.acting_fields, used=given, **self._common(steps.extractor)
            )
            self._stage(
                "extractor",
                key,
                part,
                part.step_function(backend),
                part.batch_size,
                steps.extractor,
                [part],
            )
        return part

    def joint(self, prior: Prior | None) -> tuple[Any, Extractor]:
        """Backend and extractor, trained on the same batches."""
        recipe = self.recipe
        backend: Any = recipe.backend.build(self.data.spec, recipe.seed).to(self.device)
        recipe.extractor.check(prior, backend)
        backend.prepare(self.data)
        extractor = recipe.extractor.build(self.data.spec, recipe.seed, prior).to(self.device)
        pair, size = Pair(backend, extractor), recipe.batch_size or extractor.batch_size
        used = [
            None if prior is None else [prior.identity(self.data), recipe.steps.prior],
            backend.identity(self.data),
        ]
        key = recipe.extractor.digest(
            without=recipe.extractor.acting_fields,
            used=used,
            joint=size,
            **self._common(recipe.steps.backend),
        )
        self._stage(
            "joint", key, pair, pair.update, size, recipe.steps.backend, [backend, extractor]
        )
        backend.check_trained(self.data)
        return backend, extractor

    def _common(self, steps: int) -> dict[str, Any]:
        return {
            "seed": self.recipe.seed,
            "steps": steps,
            "device": self.device.type,
            "version": VERSION,
        }

    def _stage(
        self,
        stage: str,
        key: str,
        thing: Any,
        update: Update,
        batch_size: int,
        steps: int,
        parts: list[Any],
    ) -> None:
        entry = cache.entry(stage, key)
        metrics = None if self.folder is None else self.folder / "metrics" / f"{stage}.jsonl"
        if not steps:
            return
        for path, kind in ((entry.state, STATE), (entry.checkpoint, loop.CHECKPOINT)):
            self._discard_damaged(stage, path, kind)
        if entry.state.exists():
            tensors, _ = load_tensors(entry.state, STATE)
            thing.load_state({name: value.to(self.device) for name, value in tensors.items()})
            self.say(f"{stage}: found trained ({steps:,} steps, {key[:8]})")
            entry.checkpoint.unlink(
                missing_ok=True
            )  # of a run that was killed just before this line
            if metrics is not None and entry.metrics.exists():
                metrics.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(entry.metrics, metrics)
            return
        if self.only_found:
            raise FileNotFoundError(
                f"the trained {stage} is not in the cache {cache.cache_folder()}: run the "
                "recipe again with ddice train"
            )
        for part in parts:
            part.horizon = steps
        entry.describe(
            {
                "stage": stage,
                "steps": steps,
                "seed": self.recipe.seed,
                "data": self.recipe.data.source,
                "parts": self._names(stage),
            }
        )
        loop.run(
            lambda step: update(
                self.data.sample(batch_size, seed=self.recipe.seed, step=step), step
            ),
            thing,
            start=0,
            stop=steps,
            name=stage,
            progress=self.progress,
            checkpoint=loop.Checkpoint(entry.checkpoint, key),
            checkpoint_every=self.checkpoint_every,
            metrics=None if metrics is None else loop.MetricsFile(metrics, stage),
            listeners=self.listeners,
        )
        if (
            metrics is not None and metrics.exists()
        ):  # not when the last step was done in another run folder
            shutil.copyfile(metrics, entry.metrics)
        save_tensors(entry.state, STATE, thing.state(), {"key": key})
        entry.checkpoint.unlink(missing_ok=True)

    def _discard_damaged(self, stage: str, path: Path, kind: str) -> None:
        """Delete a file of the cache that cannot be read, so that it is made again: a cache is a
        shortcut, never an obstacle.
        """
        if path.exists():
            try:
                load_tensors(path, kind)
            except ValueError as error:
                self.say(f"{stage}: made again, because what the cache holds is damaged: {error}")
                path.unlink()

    def _names(self, stage: str) -> list[str]:
        recipe = self.recipe
        kinds: dict[str, list[str]] = {
            "prior": [recipe.prior.kind],
            "backend": [recipe.backend.kind],
            "extractor": [recipe.extractor.kind],
        }
        return kinds.get(stage, [recipe.backend.kind, recipe.extractor.kind])


def check_run(folder: Path, recipe: Recipe) -> None:
    """Raise ValueError when the run folder holds another recipe, naming what differs."""
    path = folder / "recipe.json"
    content = recipe.model_dump(mode="json")
    if path.exists():
        try:
            there = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is not valid JSON ({error}): delete the folder {folder}, or give "
                "another one"
            ) from error
        if there != content:
            raise ValueError(
                f"{folder} holds another recipe, which differs in "
                f"{', '.join(differences(there, content))}: give another --run"
            )


def claim_run(folder: Path, recipe: Recipe) -> None:
    """Write `recipe.json` into a run folder. Raises ValueError when another recipe is there,
    OSError when the folder cannot be written.
    """
    check_run(folder, recipe)
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))


def differences(one: Any, two: Any, path: str = "") -> list[str]:
    """The dotted names at which two trees of JSON differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = sorted(set(one) | set(two))
        found: list[str] = []
        for key in keys:
            found += differences(one.get(key), two.get(key), f"{path}.{key}" if path else key)
        return found
    return [] if one == two else [path]


def train(
    recipe: Recipe,
    run: str | Path | None = None,
    *,
    data: Transitions | None = None,
    progress: bool = True,
    checkpoint_every: int = CHECKPOINT_EVERY,
    say: Say = print,
    listeners: Sequence[loop.Listener] = (),
) -> tuple[Trained, Evaluation | None]:
    """Train and evaluate a recipe. With `run`, that folder gets recipe.json, metrics, policy and
    evaluation.json; a killed call resumes exactly.

    The folder is claimed only when the data are there and the parts fit together, so that a mistake
    in the recipe can be mended in the same folder. One process at a time works in a folder: a
    second one is refused with OSError. listeners: called with stage, steps done, of steps, metrics.
    """
    folder = None if run is None else Path(run)
    if folder is not None:
        require_free(folder)
        check_run(folder, recipe)
    data = recipe.data.load() if data is None else data
    training = Training(
        recipe,
        data,
        run=folder,
        progress=progress,
        checkpoint_every=checkpoint_every,
        say=say,
        listeners=listeners,
    )
    training.check()
    if folder is None:
        trained = training.train()
        return trained, recipe.evaluation.evaluate(trained.policy, progress=progress)
    with hold(folder) as reporter:
        claim_run(folder, recipe)
        training.listeners = (reporter, *listeners)
        trained = training.train()
        trained.policy.save(folder / "policy")
        scores = recipe.evaluation.evaluate(
            trained.policy,
            progress=progress,
            on_step=episodes_over(reporter, recipe.evaluation.episodes),
        )
        if scores is not None:
            write_json(folder / "evaluation.json", scores.model_dump(mode="json"))
    return trained, scores


def episodes_over(listener: loop.Listener, episodes: int) -> Callable[[Moment], None]:
    """Tell a listener that an evaluation begins, as the stage "evaluation"; the `on_step` that
    tells it how many of its episodes are over.
    """
    over = itertools.count(1)
    if episodes:
        listener("evaluation", 0, episodes, {})

    def on_step(moment: Moment) -> None:
        if moment.over:
            listener("evaluation", next(over), episodes, {})

    return on_step


def own_update(part: Any) -> Update:
    """`part.update` as a function of batch and step."""
    return lambda batch, step: part.update(batch, step=step)


@dataclass(frozen=True)
class Forecast:
    """What one stage costs: trained parameters, and seconds from measured steps."""

    stage: str
    parameters: int
    steps: int
    seconds: float


def forecast(recipe: Recipe, data: Transitions, *, steps: int = 20) -> list[Forecast]:
    """Time `steps` steps of each stage on the real data, after a few that are not counted;
    nothing is kept.
    """
    training = Training(recipe, data, progress=False)
    training.check()
    device, spec = training.device, data.spec
    prior = recipe.prior.build(spec, recipe.seed).to(device)
    backend: Any = recipe.backend.build(spec, recipe.seed).to(device)
    backend.prepare(training.data)
    extractor = recipe.extractor.build(spec, recipe.seed, prior).to(device)
    found = []
    stages: list[tuple[str, Any, Update, int]] = []
    if recipe.extractor.needs_prior:
        stages.append(("prior", prior, own_update(prior), recipe.steps.prior))
    if backend.trains:
        stages.append(("backend", backend, own_update(backend), recipe.steps.backend))
    if extractor.trains:
        count = recipe.steps.backend if recipe.schedule == "joint" else recipe.steps.extractor
        stages.append(("extractor", extractor, extractor.step_function(backend), count))
    for stage, part, update, count in stages:
        part.step = warm = getattr(part.config, "warm_start_steps", 0)
        started = 0.0
        for step in range(warm, warm + steps + 3):
            if step == warm + 3:
                started = time.perf_counter()
            metrics = update(
                training.data.sample(part.batch_size, seed=recipe.seed, step=step), step
            )
            _ = [float(value) for value in metrics.values()]  # waits for the device
        parameters = sum(
            parameter.numel() for parameter in part.parameters() if parameter.requires_grad
        )
        found.append(
            Forecast(stage, parameters, count, (time.perf_counter() - started) / steps * count)
        )
    return found
