"""Run a comparison, one policy after the other; what was trained or scored before is found
again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ddice.core.storage import write_json
from ddice.data import Transitions
from ddice.parts.loop import Listener, resolve_device
from ddice.parts.part import effective_sample_size
from ddice.parts.ratio_source import RatioSource
from ddice.runs.comparison.grid import BEHAVIOUR, Cell, Comparison
from ddice.runs.comparison.store import Result, Results, cell_key
from ddice.runs.learning_curve import NoCurve, StageName
from ddice.runs.made_with import record_made_with
from ddice.runs.status import hold, require_free
from ddice.runs.training import CHECKPOINT_EVERY, Say, Training, episodes_over

DIAGNOSED_ROWS = 16_384  # enough for three digits of a mean ratio, and instant


def compare(
    comparison: Comparison,
    run: str | Path,
    *,
    data: Transitions | None = None,
    progress: bool = True,
    checkpoint_every: int = CHECKPOINT_EVERY,
    say: Say = print,
    listeners: Callable[[Path], Sequence[Listener]] = lambda folder: (),
    trust_env: Sequence[str] = (),
) -> list[Result]:
    """All results of a comparison in the order of its cells; the run folder gets comparison.json,
    results.jsonl and a folder for each policy.

    One process at a time works in a folder: a second one is refused with OSError. listeners: made
    for the folder of each policy, and called with stage, steps done, of steps, metrics. trust_env:
    as for `ddice.evaluate` and `ddice.load_dataset`.

    Raises ValueError, before anything is trained, when a backend and an extractor do not fit
    together, nothing is to be played, or no policy can have the learning curve that was asked for.
    """
    comparison.require_episodes()
    folder = Path(run)
    require_free(folder)
    data = (comparison.recipe.data.load(trust_env) if data is None else data).to(
        resolve_device(comparison.recipe.device)
    )  # once for all cells
    split = comparison.recipe.data.split(data)
    trainings = [
        Training(
            cell.recipe,
            split,
            run=folder / cell.folder,
            progress=progress,
            checkpoint_every=checkpoint_every,
            say=say,
            trust_env=trust_env,
        )
        for cell in comparison.cells()
    ]
    cells = list(zip(comparison.cells(), trainings, strict=True))
    stages = check_all(cells, say)
    # The policies that are played while a backend trains come before those that find it trained.
    order = sorted(
        range(len(cells)),
        key=lambda place: cells[place][0].backend is not None and stages[place] != "backend",
    )
    found: dict[int, Result] = {}
    with hold(folder) as reporter:
        write_json(folder / "comparison.json", comparison.model_dump(mode="json"))
        record_made_with(folder, resolve_device(comparison.recipe.device))
        results = Results(folder / "results.jsonl")
        for number, place in enumerate(order, 1):
            cell, training = cells[place]
            key = cell_key(cell, data)
            result = results.find(key)
            if result is None:
                reporter.policy(f"{_title(cell)}: {number} of {len(trainings)}")
                training.listeners = (reporter, *listeners(folder / cell.folder))
                training.on_warning = reporter.warn
                result = _run_cell(cell, key, training, reporter)
                results.append(result)
            else:
                _say_other_curve(cell, result, training)
            # names may have changed since
            found[place] = result.model_copy(
                update={"backend": cell.backend, "extractor": cell.extractor}
            )
    return [found[place] for place in range(len(cells))]


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
            if _name(cell) not in said:
                say(f"{_name(cell)}: no learning curve ({error})")
            said.add(_name(cell))
            training.recipe = training.recipe.without_curve
            stages.append(training.check(with_backend=cell.backend is not None))
    return stages


def _say_other_curve(cell: Cell, result: Result, training: Training) -> None:
    asked = training.recipe.evaluation.learning_curve
    if asked is not None and asked != result.learning_curve:
        training.say(
            f"{_title(cell)}: found, with another learning curve than is asked for now, or without "
            "one; it is not trained again for that"
        )


def _name(cell: Cell) -> str:
    return cell.extractor if cell.backend is None else f"{cell.backend} + {cell.extractor}"


def _title(cell: Cell) -> str:
    return f"{_name(cell)}, seed {cell.seed}"


def _run_cell(cell: Cell, key: str, training: Training, listener: Listener) -> Result:
    folder, progress, say = training.folder, training.progress, training.say
    assert folder is not None
    say(f"\n{_title(cell)}")
    started = time.perf_counter()
    trained = training.train(with_backend=cell.backend is not None)
    seconds = time.perf_counter() - started
    trained.policy.save(folder / "policy")
    settings = cell.recipe.evaluation
    scores = settings.evaluate(
        trained.policy,
        progress=progress,
        on_step=episodes_over(listener, settings.episodes),
        trust_env=training.trust_env,
    )
    assert scores is not None
    write_json(folder / "evaluation.json", scores.model_dump(mode="json"))
    say(f"  score {scores.mean:.1f}, clip rate {trained.policy.clip_rate:.2f}")
    return Result(
        key=key,
        backend=cell.backend,
        extractor=cell.extractor,
        seed=cell.seed,
        evaluation=scores,
        clip_rate=trained.policy.clip_rate,
        diagnostics={} if trained.backend is None else diagnose(trained.backend, training.data),
        train_seconds=seconds,
        learning_curve=training.recipe.evaluation.learning_curve,
    )


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
