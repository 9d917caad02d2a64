"""The two tables of a diagnosis: policies, and backends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddice.core.reading import read_json
from ddice.data import Transitions
from ddice.policies.evaluation import Evaluation
from ddice.policies.policy import Policy, load_policy
from ddice.runs.comparison.grid import BEHAVIOUR, Comparison
from ddice.runs.comparison.store import Results
from ddice.runs.diagnosis.backends import backend_numbers
from ddice.runs.diagnosis.policies import Judged, candidates, policy_numbers
from ddice.runs.recipe import Recipe
from ddice.runs.training import Training

STATES = 512
WHOLE = ("score", "length")  # numbers with fewer digits


@dataclass(frozen=True)
class Saved:
    """A policy in a run folder."""

    dataset: str | None
    backend: str | None
    extractor: str
    seed: int
    folder: Path
    scores: Evaluation | None


def diagnosis(run: Path, *, trust: Sequence[str] = (), trust_env: Sequence[str] = ()) -> str:
    """The tables of a run folder of `ddice compare` or `ddice train`, in Markdown; trust and
    trust_env: as for `ddice.load_policy` and `ddice.load_dataset`.

    Raises FileNotFoundError where the folder holds no run, and where parts that are needed are in
    the cache no more; ValueError for what cannot be read.
    """
    comparison, policies = _comparison(run, trust) or _recipe(run, trust)
    texts = []
    for task in comparison.tasks:
        own = [one for one in policies if one.dataset == task.name]
        title = "" if task.name is None else f"**{task.name}**\n\n"
        if own or task.name is None:
            text = _diagnosis(comparison.of_task(task), own, trust=trust, trust_env=trust_env)
            texts.append(f"{title}{text}")
    return "\n\n".join(texts)


def _diagnosis(
    comparison: Comparison,
    policies: Sequence[Saved],
    *,
    trust: Sequence[str],
    trust_env: Sequence[str],
) -> str:
    """The tables of one dataset."""
    data = comparison.recipe.data.load(trust_env)
    observations = data.sample(STATES, seed=0, step=0).observations
    # Of each seed, once: every policy of that seed is compared with it.
    behaviour = {
        seed: candidates(
            _saved_behaviour(policies, seed, trust)
            or _behaviour(comparison, data, seed, trust_env),
            observations,
        )
        for seed in dict.fromkeys(one.seed for one in policies)
    }
    groups: dict[tuple[str, ...], list[Judged]] = {}
    for one in policies:
        policy = load_policy(one.folder, device="cpu", trust=trust)
        judged = Judged(policy, one.scores, behaviour[one.seed])
        groups.setdefault((one.backend or "", one.extractor), []).append(judged)
    rows = {group: policy_numbers(judged, observations) for group, judged in groups.items()}
    return f"{table(('backend', 'extractor'), rows)}\n\n{_backends(comparison, data)}"


def _comparison(run: Path, trust: Sequence[str]) -> tuple[Comparison, list[Saved]] | None:
    """None where the folder is none of `ddice compare`."""
    path = run / "comparison.json"
    if not path.exists():
        return None
    results = Results(run / "results.jsonl").rows
    policies = [
        Saved(row.dataset, row.backend, row.extractor, row.seed, run / row.folder, row.evaluation)
        for row in results
    ]
    return Comparison.read(read_json(path), trust=trust), policies


def _recipe(run: Path, trust: Sequence[str]) -> tuple[Comparison, list[Saved]]:
    """The run of one recipe, as a comparison of one policy."""
    path = run / "recipe.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{run} holds no run: expected a folder that was given as --run to ddice train or "
            "ddice compare"
        )
    recipe = Recipe.read(read_json(path), trust=trust)
    backend, extractor = recipe.backend.kind, recipe.extractor.kind
    comparison = Comparison(
        recipe=recipe,
        backends={backend: recipe.backend},
        extractors={extractor: recipe.extractor},
        seeds=(recipe.seed,),
    )
    scores = run / "evaluation.json"
    found = Evaluation.model_validate(read_json(scores)) if scores.exists() else None
    return comparison, [Saved(None, backend, extractor, recipe.seed, run / "policy", found)]


def _saved_behaviour(policies: Sequence[Saved], seed: int, trust: Sequence[str]) -> Policy | None:
    """The behaviour policy of a seed, where the run has one."""
    for one in policies:
        if one.extractor == BEHAVIOUR and one.seed == seed:
            return load_policy(one.folder, device="cpu", trust=trust)
    return None


def _behaviour(
    comparison: Comparison, data: Transitions, seed: int, trust_env: Sequence[str]
) -> Policy:
    """The behaviour policy of a seed, from the prior in the cache."""
    cell = next(one for one in comparison.cells() if one.backend is None and one.seed == seed)
    return _found(cell.recipe, data, trust_env).train(with_backend=False).policy


def _found(recipe: Recipe, data: Transitions, trust_env: Sequence[str] = ()) -> Training:
    return Training(
        recipe,
        data,
        progress=False,
        say=lambda text: None,
        only_found=True,
        trust_env=trust_env,
    )


def _backends(comparison: Comparison, data: Transitions) -> str:
    """Their table: the mean over the seeds; what a joint training left is in no cache."""
    found: dict[tuple[str, ...], dict[int, dict[str, float]]] = {}
    try:
        for cell in comparison.cells():
            if cell.backend is not None and cell.recipe.schedule == "staged":
                seeds = found.setdefault((cell.backend,), {})
                if cell.seed not in seeds:
                    seeds[cell.seed] = backend_numbers(_found(cell.recipe, data))
    except FileNotFoundError as error:
        return f"backends: {error}"
    if not found:
        return "backends: those of joint training are not kept apart"
    means = {name: _means(list(seeds.values())) for name, seeds in found.items()}
    return table(("backend",), means)


def _means(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in numbers) / len(numbers) for name in numbers[0]}


def table(head: tuple[str, ...], rows: Mapping[tuple[str, ...], Mapping[str, float]]) -> str:
    """A table in Markdown; what is NaN is left empty."""
    columns = [*head, *next(iter(rows.values()))]
    lines = [_line(columns), "|" + "---|" * len(columns)]
    lines += [
        _line([*names, *(_cell(name, number) for name, number in numbers.items())])
        for names, numbers in rows.items()
    ]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(name: str, number: float) -> str:
    if math.isnan(number):
        return ""
    if name in WHOLE:
        return f"{number:.{0 if name == 'length' else 1}f}"
    return f"{number:.2f}"
