"""Run a comparison, one policy after the other; what was trained or scored before is found again."""

from __future__ import annotations

import time
from pathlib import Path

from ddice.comparison.grid import Cell, Comparison
from ddice.comparison.store import Result, Results, cell_key
from ddice.data import Transitions
from ddice.part import effective_sample_size
from ddice.storage import write_json
from ddice.training import Say, Training

DIAGNOSED_ROWS = 16_384  # enough for three digits of a mean ratio, and instant


def compare(
    comparison: Comparison, run: str | Path, *, data: Transitions | None = None, progress: bool = True, say: Say = print
) -> list[Result]:
    """All results of a comparison in the order of its cells; the run folder gets comparison.json, results.jsonl and a folder for each policy."""
    folder = Path(run)
    data = comparison.recipe.data.load() if data is None else data
    write_json(folder / "comparison.json", comparison.model_dump(mode="json"))
    results = Results(folder / "results.jsonl")
    found = []
    for cell in comparison.cells():
        key = cell_key(cell, data.spec.fingerprint)
        result = results.find(key)
        if result is None:
            result = _run_cell(cell, key, data, folder / _name(cell), progress, say)
            results.append(result)
        found.append(result)
    return found


def _name(cell: Cell) -> Path:
    return Path(f"seed-{cell.seed}") / "-".join(filter(None, (cell.backend, cell.extractor))).replace(" ", "-")


def _run_cell(cell: Cell, key: str, data: Transitions, folder: Path, progress: bool, say: Say) -> Result:
    say(f"\n{cell.backend + ' + ' if cell.backend else ''}{cell.extractor}, seed {cell.seed}")
    started = time.perf_counter()
    training = Training(cell.recipe, data, run=folder, progress=progress, say=say)
    trained = training.train(with_backend=cell.backend is not None)
    seconds = time.perf_counter() - started
    trained.policy.save(folder / "policy")
    scores = cell.recipe.evaluation.evaluate(trained.policy, progress=progress)
    if scores is None:
        raise ValueError("a comparison needs evaluation.episodes >= 1")
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
    )


def diagnose(backend: object, data: Transitions) -> dict[str, float]:
    """Mean and effective sample size of a backend's ratios on a fixed sample of the data, and its mean value where it has one."""
    batch = data.sample(min(DIAGNOSED_ROWS, len(data)), seed=0, step=0)
    log_ratio = backend.log_ratio(batch)  # type: ignore[attr-defined]
    found = {
        "mean_ratio": float(log_ratio.exp().mean()),
        "effective_sample_size": float(effective_sample_size(log_ratio, batch.weights)),
    }
    if backend.has_value:  # type: ignore[attr-defined]
        found["value"] = float(backend.value(batch.observations).mean())  # type: ignore[attr-defined]
        found["temperature"] = float(backend.temperature)  # type: ignore[attr-defined]
    return found
