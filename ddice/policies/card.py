"""The model card of a policy that is shared: data, protocol, scores, licence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddice.core.machine import versions
from ddice.core.reading import read_json
from ddice.data.spec import Spec
from ddice.policies.evaluation.scores import Evaluation
from ddice.policies.saved import SavedPolicy

UNSCORED = "It was not played before it was shared: `ddice evaluate` scores a run."


def card(
    saved: SavedPolicy,
    repo: str,
    licence: str,
    *,
    recipe: Any = None,
    scores: Evaluation | None = None,
    digest: str | None = None,
) -> str:
    """The text of a README.md, its first lines in the form that the hub reads.

    recipe: the JSON of `recipe.json`, scores: what was measured, each of the run if there is one;
    digest: the SHA-256 of the file. Nothing but the name of a local file is told of where the data
    lie.
    """
    description = saved.description["policy"]
    sections = [
        _header(licence, description),
        f"# {repo.rpartition('/')[2]}",
        "A policy of offline reinforcement learning, made by ddice "
        f"{versions(['ddice']).get('ddice', '')}. It was trained from recorded data alone.",
        "## Data",
        _table(_data(Spec.model_validate(saved.description["spec"]), recipe)),
        "## Protocol",
        _table(_protocol(description)),
        *_recipe(recipe),
        "## Scores",
        UNSCORED if scores is None else f"```text\n{scores}\n```",
        "## Use",
        _use(repo, digest),
        "## Licence",
        f"Of the policy: {licence}. The data have a licence of their own, at their source.",
    ]
    return "\n\n".join(sections) + "\n"


def read_recipe_and_scores(run: Path) -> tuple[Any, Evaluation | None]:
    """What a run folder says of how its policy was made and how it scored; None for what is not
    there. Raises ValueError for files that cannot be read.
    """
    recipe, scores = run / "recipe.json", run / "evaluation.json"
    return (
        read_json(recipe) if recipe.exists() else None,
        Evaluation.model_validate(read_json(scores)) if scores.exists() else None,
    )


def _header(licence: str, policy: dict[str, Any]) -> str:
    tags = ["offline-rl", "ddice", str(policy["notes"].get("extractor", policy["sampler"]["kind"]))]
    lines = [
        f"license: {json.dumps(licence)}",
        "library_name: ddice",
        "pipeline_tag: reinforcement-learning",
        f"tags: {json.dumps(tags)}",
    ]
    return "\n".join(["---", *lines, "---"])


def _data(spec: Spec, recipe: Any) -> list[tuple[str, str]]:
    source = None if recipe is None else recipe["data"]["source"]
    sources = source if isinstance(source, list) else [source]
    rows = [
        ("source", ", ".join(_place(one) for one in sources if one is not None) or "not noted"),
        ("transitions", f"{spec.transitions:,}, of {spec.episodes:,} episodes"),
        ("observations", f"{spec.observations.size} numbers"),
        ("actions", f"{spec.actions.size} numbers in {_bounds(spec)}"),
        ("environment", "not noted" if spec.env is None else spec.env.id),
        ("fingerprint", spec.fingerprint),
    ]
    if spec.reference is not None:
        low, high = spec.reference.random, spec.reference.expert
        rows.append(("score 0 and 100", f"{low:g} and {high:g} ({spec.reference.source})"))
    return rows


def _place(source: Any) -> str:
    """A dataset by its id; a file by its name, because its folder names a user."""
    path = Path(str(source))
    return path.name if path.suffix or path.is_absolute() else str(source)


def _bounds(spec: Spec) -> str:
    pairs = sorted(set(zip(spec.actions.low, spec.actions.high, strict=True)))
    return ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs)


def _protocol(policy: dict[str, Any]) -> list[tuple[str, str]]:
    kept = "in the file" if isinstance(policy["q"], dict) else policy["q"]
    critic = {None: "none", "given": "of its author, not in the file"}.get(kept, kept)
    chosen_by = policy["selection"]["rule"] if policy["candidates"] > 1 else "no choice"
    return [
        ("sampler", policy["sampler"]["kind"]),
        ("candidates", f"{policy['candidates']}, {chosen_by}"),
        ("critic", critic),
        *((name, value) for name, value in policy["notes"].items() if name != "data"),
    ]


def _recipe(recipe: Any) -> list[str]:
    """The whole recipe, folded, without the folders of files."""
    if recipe is None:
        return []
    source = recipe["data"]["source"]
    short = [_place(one) for one in source] if isinstance(source, list) else _place(source)
    told = {**recipe, "data": {**recipe["data"], "source": short}}
    text = json.dumps(told, indent=1)
    return [f"<details><summary>recipe</summary>\n\n```json\n{text}\n```\n\n</details>"]


def _use(repo: str, digest: str | None) -> str:
    pinned = "" if digest is None else f" --digest {digest}"
    lines = [f"ddice pull {repo} policy{pinned}", "ddice evaluate policy"]
    note = "Loading and acting run no code of this repository."
    return "\n".join(["```sh", *lines, "```", "", note])


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
