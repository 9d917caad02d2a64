"""Results of other people's methods, of a CSV with columns of ours, beside ours."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddice.core.reading import parse_json, read_bytes
from ddice.data.spec import ReferenceScores
from ddice.policies.evaluation import Evaluation
from ddice.policies.evaluation.scores import scores_of
from ddice.runs.comparison.columns import COLUMNS
from ddice.runs.comparison.groups import by_dataset
from ddice.runs.comparison.store import Result

NEEDED = ("dataset", "extractor", "seed", "returns", "reference_random", "reference_expert")
# what makes no difference to a mean over hundreds of episodes
TOLERANCE = 1e-6
# of an evaluation that does not say: none of ours, so that nothing is paired with its episodes
UNKNOWN_SEED = -1


def foreign_results(path: Path, ours: Sequence[Result]) -> list[Result]:
    """The rows of a CSV, each a method (`extractor`) with a seed on one of our datasets, on the
    scale of ours: 100 (return - random) / (expert - random), or the return itself where neither
    number is given.

    Raises ValueError, which says what to do, for columns that are missing or unknown, a cell that
    cannot be read, a dataset that is none of ours, and scores on another scale.
    """
    reader = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig", "replace")))
    columns = list(reader.fieldnames or ())
    if missing := [name for name in NEEDED if name not in columns]:
        raise ValueError(
            f"{path} lacks the columns {', '.join(missing)}: expected those that ddice results "
            f"--csv writes, at least {', '.join(NEEDED)}"
        )
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(
            f"{path} has the columns {', '.join(map(repr, unknown))}, which nobody reads: leave "
            "them out"
        )
    likes = {name or "": rows[0] for name, rows in by_dataset(ours).items()}
    found = [
        _result(f"{path}, row {number}", row, likes) for number, row in enumerate(reader, start=2)
    ]
    if not found:
        raise ValueError(f"{path} has no rows below its columns")
    return found


def _result(where: str, row: dict[str, Any], likes: dict[str, Result]) -> Result:
    dataset = row["dataset"] or ""
    if dataset not in likes:
        names = ", ".join(map(repr, likes))
        raise ValueError(f"{where}: the dataset {dataset!r} is none of ours: there are {names}")
    like = likes[dataset]
    if not row["extractor"]:
        raise ValueError(f"{where}: extractor is empty: expected the name of the method")
    return Result(
        key=where,
        foreign=True,
        dataset=like.dataset,
        backend=row.get("backend") or None,
        extractor=row["extractor"],
        seed=_whole(where, row["seed"]),
        evaluation=_evaluation(where, row, like.evaluation),
        clip_rate=_number(where, "clip_rate", row.get("clip_rate")) or 0.0,
        diagnostics={},
        train_seconds=_number(where, "train_seconds", row.get("train_seconds")) or 0.0,
    )


def _evaluation(where: str, row: dict[str, Any], like: Evaluation) -> Evaluation:
    returns = _numbers(where, "returns", row["returns"])
    reference = _reference(where, row)
    if not _same(reference, like.reference):
        raise ValueError(
            f"{where}: its scores are {_scale(reference)}, ours {_scale(like.reference)}: give "
            "reference_random and reference_expert of ours, and the returns as the environment "
            "gave them"
        )
    scores = scores_of(returns, like.reference)
    given = _numbers(where, "scores", row["scores"]) if row.get("scores") else scores
    if len(given) != len(scores) or not np.allclose(given, scores, rtol=1e-4, atol=1e-4):
        raise ValueError(
            f"{where}: its scores, on average {np.mean(given):.4g}, are not those of its returns, "
            f"{np.mean(scores):.4g}: they are on another scale than {_scale(reference)}"
        )
    lengths = row.get("lengths")
    steps = [int(n) for n in _numbers(where, "lengths", lengths)] if lengths else [1] * len(returns)
    if len(steps) != len(returns):
        raise ValueError(f"{where}: {len(steps)} lengths for {len(returns)} returns")
    pace = _number(where, "decision_ms", row.get("decision_ms"))
    return like.model_copy(
        update={
            "seed": _whole(where, row.get("evaluation_seed") or UNKNOWN_SEED),
            "returns": returns,
            "scores": scores,
            "lengths": tuple(steps),
            "successes": None,
            "final_successes": None,
            "success_note": "not given",
            "seconds": _number(where, "evaluation_seconds", row.get("evaluation_seconds")) or 0.0,
            "policy_seconds": (pace or 0.0) / 1000 * sum(steps),
        }
    )


def _reference(where: str, row: dict[str, Any]) -> ReferenceScores | None:
    low = _number(where, "reference_random", row["reference_random"])
    high = _number(where, "reference_expert", row["reference_expert"])
    if low is None or high is None:
        if low is not high:
            raise ValueError(f"{where}: give both reference_random and reference_expert, or none")
        return None
    return ReferenceScores(random=low, expert=high, source=where)


def _same(one: ReferenceScores | None, two: ReferenceScores | None) -> bool:
    if one is None or two is None:
        return one is two
    pairs = ((one.random, two.random), (one.expert, two.expert))
    return all(math.isclose(*pair, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for pair in pairs)


def _scale(reference: ReferenceScores | None) -> str:
    if reference is None:
        return "raw returns"
    return f"normalised with random {reference.random:g}, expert {reference.expert:g}"


def _whole(where: str, text: Any) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected a whole number as a seed, got {text!r}") from None


def _number(where: str, column: str, text: Any) -> float | None:
    """None where it is empty."""
    if text is None or not str(text).strip():
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a number as {column}, got {text!r}")
    return number


def _numbers(where: str, column: str, text: Any) -> tuple[float, ...]:
    try:
        values = parse_json(text or "")
        found = tuple(float(value) for value in values)
    except (ValueError, TypeError, json.JSONDecodeError):
        found = ()
    if not found or not all(map(math.isfinite, found)):
        raise ValueError(
            f"{where}: expected {column} as a list of numbers, one per episode, such as "
            f"[71.5, 80.25], got {text!r}"
        )
    return found
