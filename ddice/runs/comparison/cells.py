"""The work of a comparison, cell by cell: what is to be done in which order, and one cell of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ddice.core.storage import write_json
from ddice.data import Transitions
from ddice.parts.loop import Listener, resolve_device
from ddice.parts.part import effective_sample_size
from ddice.parts.ratio_source import RatioSource
from ddice.runs.comparison.grid import BEHAVIOUR, Cell, Comparison
from ddice.runs.comparison.store import MadeOn, Result, cell_key
from ddice.runs.learning_curve import NoCurve, StageName
from ddice.runs.made_with import made_with
from ddice.runs.recipe import DataSource, Recipe
from ddice.runs.split import Split
from ddice.runs.training import CHECKPOINT_EVERY, Say, Training, episodes_over

DIAGNOSED_ROWS = 16_384  # enough for three digits of a mean ratio, and instant
PACKAGE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Job:
    """One cell to train and play; its recipe asks for no learning curve that it cannot have.

    leads: it is played while its backend trains, so that it comes before those of the same backend,
    which then find that trained.
    """

    number: int  # among the cells
    cell: Cell
    key: str
    leads: bool


@dataclass(frozen=True)
class Data:
    """Data of a recipe on its device: all of them, and as they are split for training."""

    whole: Transitions
    split: Split


class Shelf:
    """The data of the recipes of a comparison; those asked for last stay in memory."""

    def __init__(self, trust_env: Sequence[str], given: Transitions | None = None):
        self.trust_env = trust_env
        self.given = given
        self._last: tuple[DataSource, str, Data] | None = None

    def of(self, recipe: Recipe) -> Data:
        """Read, unless they were given."""
        if self._last is not None and self._last[:2] == (recipe.data, recipe.device):
            return self._last[2]
        self._last = None  # before others are read: not both in memory
        found = recipe.data.load(self.trust_env) if self.given is None else self.given
        whole = found.to(resolve_device(recipe.device))
        data = Data(whole, recipe.data.split(whole))
        self._last = recipe.data, recipe.device, data
        return data


def plan_jobs(comparison: Comparison, shelf: Shelf, say: Say) -> list[Job]:
    """All cells in the order of the work, checked: what cannot work is raised before anything is
    trained.
    """
    cells = list(comparison.cells())
    jobs: list[Job] = []
    for task in comparison.tasks:
        own = [number for number, cell in enumerate(cells) if cell.dataset == task.name]
        data = shelf.of(task.recipe)
        pairs = [
            (cells[n], Training(cells[n].recipe, data.split, say=say, trust_env=shelf.trust_env))
            for n in own
        ]
        stages = check_all(pairs, say)
        of_task = [
            Job(
                number,
                replace(cell, recipe=training.recipe),
                cell_key(cell, data.whole),
                leads=cell.backend is not None and stage == "backend",
            )
            for number, (cell, training), stage in zip(own, pairs, stages, strict=True)
        ]
        # The policies that are played while a backend trains come before those that find it
        # trained.
        jobs += sorted(of_task, key=lambda job: job.cell.backend is not None and not job.leads)
    return jobs


def check_all(cells: Sequence[tuple[Cell, Training]], say: Say) -> list[StageName | None]:
    """Check all trainings -> the stages of their learning curves. Those that cannot have the one
    that was asked for go without, which is said; NoCurve where that are all of them.
    """
    stages: list[StageName | None] = []
    without = 0
    said = {BEHAVIOUR}  # of which nobody expects one
    for cell, training in cells:
        try:
            stages.append(training.check(with_backend=cell.backend is not None))
        except NoCurve as error:
            without += 1
            if without == len(cells):
                raise
            if cell.extractor not in said and cell.name not in said:
                say(f"{cell.name}: no learning curve ({error})")
            said.add(cell.name)
            training.recipe = training.recipe.without_curve
            stages.append(training.check(with_backend=cell.backend is not None))
    return stages


def run_cell(
    job: Job,
    data: Data,
    folder: Path,
    *,
    progress: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
    say: Say = print,
    on_warning: Say = lambda text: None,
    reporter: Listener,
    trust_env: Sequence[str] = (),
    wait_for: Collection[str] | None = None,
) -> Result:
    """Train and play one policy into its own folder; wait_for: as for `Training`. `reporter` is
    told of steps and of episodes.
    """
    cell = job.cell
    alarms: list[str] = []
    training = Training(
        cell.recipe,
        data.split,
        run=folder,
        progress=progress,
        checkpoint_every=checkpoint_every,
        say=say,
        listeners=(reporter,),
        trust_env=trust_env,
        wait_for=wait_for,
    )

    def warned(text: str) -> None:
        alarms.append(text)
        on_warning(text)

    training.on_warning = warned
    started, cpu = time.perf_counter(), time.process_time()
    trained = training.train(with_backend=cell.backend is not None)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    trained.policy.save(folder / "policy")
    settings = cell.recipe.evaluation
    scores = settings.evaluate(
        trained.policy,
        progress=progress,
        on_step=episodes_over(reporter, settings.episodes),
        trust_env=trust_env,
    )
    assert scores is not None  # `require_episodes` has seen to it
    write_json(folder / "evaluation.json", scores.model_dump(mode="json"))
    say(f"  score {scores.mean:.1f}, clip rate {trained.policy.clip_rate:.2f}")
    return Result(
        key=job.key,
        dataset=cell.dataset,
        backend=cell.backend,
        extractor=cell.extractor,
        seed=cell.seed,
        evaluation=scores,
        clip_rate=trained.policy.clip_rate,
        diagnostics={} if trained.backend is None else diagnose(trained.backend, training.data),
        train_seconds=seconds,
        train_cpu_seconds=cpu,
        learning_curve=cell.recipe.evaluation.learning_curve,
        source=cell.recipe.data.source,
        fingerprint=data.whole.spec.fingerprint,
        recipe=cell.recipe.model_dump(mode="json"),
        made_on=_made_on(training.device),
        alarms=tuple(alarms),
    )


def _made_on(device: torch.device) -> MadeOn:
    found = asdict(made_with(device))
    return MadeOn.model_validate(
        {"code": _code()} | {name: found[name] for name in MadeOn.model_fields if name != "code"}
    )


@cache
def _code() -> str:
    """A digest of the source text of the package."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


@torch.no_grad()
def diagnose(backend: RatioSource, data: Transitions) -> dict[str, float]:
    """Mean and effective sample size of a backend's ratios on a fixed sample of the data, and
    its mean value where it has one.
    """
    batch = data.sample(min(DIAGNOSED_ROWS, len(data)), seed=0, step=0)
    log_ratio = backend.log_ratio(batch)
    found = {
        "mean_ratio": float(log_ratio.exp().mean()),
        "effective_sample_size": float(effective_sample_size(log_ratio, batch.weights)),
    }
    if backend.has_value:
        found["value"] = float(backend.value(batch.observations).mean())
    if backend.temperature is not None:
        found["temperature"] = float(backend.temperature)
    return found
