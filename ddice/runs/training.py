"""From a recipe to a policy: every stage is found again by its fingerprint, or trained."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddice.core import cache
from ddice.core.reading import read_bytes, require_regular
from ddice.core.storage import load_tensors, save_tensors, write_bytes, write_json
from ddice.data import Transitions
from ddice.dice_backends.base import BackendConfig
from ddice.dice_backends.discount import HORIZON
from ddice.diffusion.prior import Prior
from ddice.extractors import Extractor
from ddice.parts import loop
from ddice.parts.ratio_source import RatioSource
from ddice.parts.stage import Stage, run_stage
from ddice.parts.watcher import looks
from ddice.policies.evaluation import Evaluation, Moment
from ddice.policies.policy import Policy
from ddice.runs.alarms.report import LABELS, lines, verdicts
from ddice.runs.folder import check_run, claim_run, note_of
from ddice.runs.made_with import record_made_with
from ddice.runs.metrics import Curves, own_looks, read_metrics
from ddice.runs.recipe import Recipe
from ddice.runs.split import Split
from ddice.runs.stages import Stages
from ddice.runs.status import hold, require_free

Say = Callable[[str], None]
# of the training code: raised when the same recipe would train something else, or is saved in
# another way, so that old parts are not found
VERSION = 3
STATE = "trained part"
CHECKPOINT_EVERY = 1000  # steps


@dataclass(frozen=True)
class Trained:
    """What a recipe gave."""

    policy: Policy
    prior: Prior | None
    backend: RatioSource | None
    extractor: Extractor


class Training(Stages):
    """The stages of one recipe over one dataset. Every stage is found in the cache, resumed from
    its checkpoint, or trained.

    only_found: raise FileNotFoundError in place of training, for those who only look.
    wait_for: the stages that are waited for while another process trains them, None for all; of
    the others `cache.Busy` is raised.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Transitions | Split,
        *,
        run: Path | None = None,
        progress: bool = True,
        checkpoint_every: int = CHECKPOINT_EVERY,
        say: Say = print,
        only_found: bool = False,
        wait_for: Collection[str] | None = None,
        listeners: Sequence[loop.Listener] = (),
        trust_env: Sequence[str] = (),
    ):
        if checkpoint_every < 1:
            raise ValueError(
                f"expected checkpoint_every of at least 1 step, got {checkpoint_every}"
            )
        super().__init__(recipe, data, trust_env)
        self.folder = run
        self.progress = progress
        self.checkpoint_every = checkpoint_every
        self.say = say
        self.only_found = only_found
        self.wait_for = wait_for
        self.listeners = listeners
        self.on_warning: Say = lambda text: None
        self._heard: Curves = {}

    def train(self, *, with_backend: bool = True) -> Trained:
        """All stages, then the policy. The behaviour policy needs no backend."""
        self.check(with_backend=with_backend)
        prior, backend, extractor = self.all(with_backend=with_backend)
        notes = {"data": self.data.spec.fingerprint, **note_of(self.recipe)}
        if backend is None:
            return Trained(extractor.policy(notes=notes), prior, None, extractor)
        notes |= {"backend": backend.kind, "ratio": backend.ratio_kind}
        if backend.discount is not None:
            notes["discount"] = f"{backend.discount:g}"
        return Trained(extractor.policy(q=backend.q, notes=notes), prior, backend, extractor)

    def _untrained_backend(self) -> RatioSource:
        backend = super()._untrained_backend()
        config, horizon = self.recipe.backend, self.data.spec.horizon
        if isinstance(config, BackendConfig) and config.discount == HORIZON and horizon is not None:
            self.say(f"backend: discount {horizon.discount:g}, {horizon.reason}")
        return backend

    def do(self, stage: Stage) -> None:
        """Find the stage in the cache, or train it."""
        if stage.start == stage.stop:
            return
        entry = cache.entry(stage.name, self._key(stage))
        # Without the lock: what is whole stays as it is, and its folder may be read-only.
        if self._restored(stage, entry):
            return
        if self.only_found:
            raise FileNotFoundError(
                f"the trained {stage.name} is not in the cache {cache.cache_folder()}: run the "
                "recipe again with ddice train"
            )
        with entry.held(lambda: self._on_busy(stage)):
            if not self._restored(stage, entry):  # by whom we have waited for
                self._discard_damaged(stage.name, entry.checkpoint, loop.CHECKPOINT)
                self._run(stage, entry)

    def _on_busy(self, stage: Stage) -> None:
        if self.wait_for is not None and stage.name not in self.wait_for:
            raise cache.Busy(stage.name)
        self.say(f"{stage.name}: another process trains it at this moment, which is waited for")

    def _restored(self, stage: Stage, entry: cache.Entry) -> bool:
        """Whether the trained stage was in the cache, from where it is then taken."""
        self._discard_damaged(stage.name, entry.state, STATE)
        found = entry.state.exists()
        if found:
            self._restore(stage, entry)
        return found

    def seen(self) -> Curves:
        """The metrics so far: of the run folder, which an interrupted run left there too, else of
        this process.
        """
        return self._heard if self.folder is None else read_metrics(self.folder / "metrics")

    def _hear(self, stage: str, step: int, steps: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            if name in LABELS:
                self._heard.setdefault((stage, name), []).append((step, value))

    def _judge(self, stage: Stage) -> None:
        """Say what the alarms of a trained stage ask for."""
        for text in verdicts(stage, self.seen(), self.recipe):
            warnings.warn(f"{stage.name}: {text}", UserWarning, stacklevel=2)
            self.on_warning(f"{stage.name}: {text}")

    def _key(self, stage: Stage) -> str:
        """Names the outcome of a stage on this kind of device, by this version of the code."""
        # Kinds of device draw other random numbers and round otherwise, so that one's part is not
        # the other's.
        text = f"{stage.key(self.data)}/{self.device.type}/{VERSION}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _metrics(self, stage: Stage) -> Path | None:
        return None if self.folder is None else self.folder / "metrics" / f"{stage.name}.jsonl"

    def _restore(self, stage: Stage, entry: cache.Entry) -> None:
        tensors, _ = load_tensors(entry.state, STATE)
        stage.load_state({name: value.to(self.device) for name, value in tensors.items()})
        self.say(f"{stage.name}: found trained ({stage.stop:,} steps, {entry.folder.name[:8]})")
        entry.checkpoint.unlink(missing_ok=True)  # of a run that was killed just before this line
        metrics = self._metrics(stage)
        if metrics is not None and entry.metrics.exists():
            _copy(entry.metrics, metrics)
        self._say_unseen(stage)
        stage.check_trained(self.data)
        self._judge(stage)

    def _run(self, stage: Stage, entry: cache.Entry) -> None:
        # First, so that `ddice cache list` can say what a half trained part is.
        entry.describe(
            {
                "stage": stage.name,
                "steps": stage.stop,
                "seed": self.recipe.seed,
                "data": self.recipe.data.source,
                "parts": [part.kind for part in stage.parts.values()],
            }
        )
        metrics = self._metrics(stage)
        if entry.metrics.is_symlink():
            entry.metrics.unlink()  # what is appended would go to where it leads
        # The same training may have been watched otherwise.
        for path in (entry.metrics, metrics):
            _keep_own_looks(stage, path)
        if metrics is None:
            history = loop.MetricsFile(entry.metrics, stage.name)
        else:
            history = loop.MetricsFile(metrics, stage.name, beside=entry.metrics)
        run_stage(
            stage,
            self.data,
            progress=self.progress,
            checkpoint=entry.checkpoint,
            checkpoint_every=self.checkpoint_every,
            metrics=history,
            listeners=(self._hear, *self.listeners),
        )
        self._say_unseen(stage)
        # Without what only other watchers had seen; not there where nothing was logged.
        if metrics is not None and metrics.exists():
            _copy(metrics, entry.metrics)
        # After the metrics, because an entry with a state counts as whole. The checkpoint goes
        # last: a kill before that loses no training.
        save_tensors(entry.state, STATE, stage.state(), {"key": entry.folder.name})
        entry.checkpoint.unlink(missing_ok=True)
        self._judge(stage)

    def _say_unseen(self, stage: Stage) -> None:
        """Say what the watchers of a trained stage have not seen: nothing is trained again for it,
        because the training is the same.
        """
        seen = _keep_own_looks(stage, self._metrics(stage))
        if self.folder is None:
            return
        for watcher in stage.watchers:
            asked = looks(watcher, stage.start, stage.stop)
            missing = sorted(set(asked) - set(seen.get(watcher.name, ())))
            if missing:
                self.say(
                    f"{stage.name}: {watcher.name} is missing at {len(missing)} of {len(asked)} "
                    f"steps, the first {missing[0]:,}: these were trained before it was asked for, "
                    "and are not trained again (another DDICE_CACHE trains anew)"
                )

    def _discard_damaged(self, stage: str, path: Path, kind: str) -> None:
        """Delete a file of the cache that cannot be read, so that it is made again: a cache is a
        shortcut, never an obstacle.
        """
        if not path.exists():
            return
        try:
            load_tensors(path, kind)
        except ValueError as error:
            self.say(f"{stage}: made again, because what the cache holds is damaged: {error}")
            path.unlink()


def train(
    recipe: Recipe,
    run: str | Path | None = None,
    *,
    data: Transitions | None = None,
    progress: bool = True,
    checkpoint_every: int = CHECKPOINT_EVERY,
    say: Say = print,
    listeners: Sequence[loop.Listener] = (),
    trust_env: Sequence[str] = (),
    look: Callable[[Transitions], None] | None = None,
) -> tuple[Trained, Evaluation | None]:
    """Train and evaluate a recipe. With `run`, that folder gets recipe.json, metrics, policy and
    evaluation.json; a killed call resumes exactly.

    The folder is claimed only when the data are there and the parts fit together, so that a mistake
    in the recipe can be mended in the same folder. One process at a time works in a folder: a
    second one is refused with OSError. listeners: called with stage, steps done, of steps, metrics.
    trust_env: as for `ddice.evaluate` and `ddice.load_dataset`.
    look: called with the data before anything is trained.
    """
    folder = None if run is None else Path(run)
    if folder is None and recipe.evaluation.every is not None and not listeners:
        raise ValueError(
            "evaluation.every writes the learning curve into the run folder: give run (--run), or "
            "leave it out"
        )
    if folder is not None:
        # Refused before the data are read, which can take minutes. What counts is asked again
        # below, by `hold` and `claim_run`.
        require_free(folder)
        check_run(folder, recipe)
    data = recipe.data.load(trust_env) if data is None else data
    training = Training(
        recipe,
        data,
        run=folder,
        progress=progress,
        checkpoint_every=checkpoint_every,
        say=say,
        listeners=listeners,
        trust_env=trust_env,
    )
    training.check()
    if look is not None:
        look(data)
    if folder is None:
        trained = training.train()
        _say_alarms(training)
        scores = recipe.evaluation.evaluate(trained.policy, progress=progress, trust_env=trust_env)
        return trained, scores
    with hold(folder) as reporter:
        claim_run(folder, recipe)
        record_made_with(folder, training.device)
        training.listeners = (reporter, *listeners)
        training.on_warning = reporter.warn
        trained = training.train()
        _say_alarms(training)
        # Before it is scored, so that an environment that fails costs no trained policy.
        trained.policy.save(folder / "policy")
        scores = recipe.evaluation.evaluate(
            trained.policy,
            progress=progress,
            on_step=episodes_over(reporter, recipe.evaluation.episodes),
            trust_env=trust_env,
        )
        if scores is not None:
            write_json(folder / "evaluation.json", scores.model_dump(mode="json"))
    return trained, scores


def _say_alarms(training: Training) -> None:
    for line in lines(training.seen()):
        training.say(line)


def _keep_own_looks(stage: Stage, path: Path | None) -> dict[str, list[int]]:
    """Remove from the metrics of a stage what was seen by others than its watchers; the steps at
    which those looked, by their names.
    """
    if path is None or not path.exists():
        return {}
    content = read_bytes(path, loop.METRICS_LIMIT)
    own, steps = own_looks(content, stage.watchers)
    if own != content:
        write_bytes(path, own)
    return steps


def _copy(source: Path, target: Path) -> None:
    """A link at `target` is replaced: what it leads to, perhaps a foreign file, stays."""
    require_regular(source)
    write_bytes(target, source.read_bytes())


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
