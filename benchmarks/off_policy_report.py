"""Write docs/off_policy.md from the committed results of off-policy evaluation.

python benchmarks/ope_tabular.py --out benchmarks/results/ope-tabular.json
python benchmarks/ope_tabular.py --episodes 5 --out benchmarks/results/ope-tabular-5.json
python benchmarks/ope_pointmaze.py --out benchmarks/results/ope-pointmaze.json
python benchmarks/off_policy_report.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
INTRODUCTION = """# Choosing without an environment: how well the estimates rank

Written by `python benchmarks/off_policy_report.py` from the results in `benchmarks/results`, whose options it repeats. Spearman's rank correlation
with true returns: 1 is the same order, 0 none, -1 the opposite.

- `self_normalised` and `doubly_robust` value the *regularised optimum* of a backend through corrected ratios: they rank temperatures.
- `fitted_q` values a policy by its own sampled actions: it ranks candidates K and guidance scales too.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def finite(content: dict[str, Any]) -> str:
    """The rankings on finite problems, and how far the validity flag told good estimates from
    bad ones.
    """
    rankings = [
        [r["choice"], r["method"], f"{r['mean']:.2f}", f"{r['worst']:.2f}", f"{r['error']:.3f}"]
        for r in content["rankings"]
    ]
    rated = [row for row in content["rows"] if row["valid"] is not None]
    errors = {
        valid: [abs(r["self_normalised"] - r["truth"]) for r in rated if r["valid"] is valid]
        for valid in (True, False)
    }
    means = {
        valid: f" (mean absolute error {sum(e) / len(e):.2f})" if e else ""
        for valid, e in errors.items()
    }
    shares = [
        f"{len(errors[valid])} {name}{means[valid]}"
        for valid, name in ((True, "valid"), (False, "flagged"))
    ]
    title = f"## Finite problems, {content['options']['episodes']} held-out episodes"
    head = [
        "what is ranked",
        "by",
        "correlation, mean of 7 problems",
        "worst problem",
        "mean absolute error",
    ]
    return (
        f"{title}\n\n{table(head, rankings)}\n\nOf {len(rated)} ratio estimates: "
        f"{' and '.join(shares)}."
    )


def pointmaze(content: dict[str, Any]) -> str:
    """PointMaze: every policy and every temperature beside what the environment paid, and the
    rankings.
    """
    options = content["options"]
    policies = [
        [
            p["temperature"],
            p["candidates"],
            p["guidance_scale"],
            f"{p['fitted_q'][0]:.1f}",
            f"{p['return']:.1f}",
            f"{p['score']:.1f}",
        ]
        for row in content["rows"]
        for p in row["policies"]
    ]
    temperatures = [
        [
            row["temperature"],
            "-" if row["self_normalised"] is None else f"{row['self_normalised'][0]:.1f}",
            "-" if row["doubly_robust"] is None else f"{row['doubly_robust'][0]:.1f}",
            f"{row['effective_sample_size']:.2f}",
            f"{row['flow_residual']:.2f}",
            "; ".join(row["reasons"]) or "valid",
        ]
        for row in content["rows"]
    ]
    settings = ", ".join(
        f"{name.replace('_', ' ')} {value}"
        for name, value in options.items()
        if name not in ("device",)
    )
    return "\n\n".join(
        [
            f"## {options['dataset']}, goal {options['goal']}",
            "Backend `DeterministicDice`. Estimates are discounted and start where the data's "
            "episodes do; returns are not: only ranks compare.",
            table(["temperature", "K", "guidance scale", "fitted Q", "return", "score"], policies),
            table(
                [
                    "temperature",
                    "self-normalised",
                    "doubly robust",
                    "effective sample size",
                    "flow residual",
                    "verdict",
                ],
                temperatures,
            ),
            "\n".join(
                f"- {name}: rank correlation {value:.2f}"
                for name, value in content["rankings"].items()
            ),
            f"Options: {settings}.",
        ]
    )


def main() -> None:
    read = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("ope-tabular", "ope-tabular-5", "ope-pointmaze")
    }
    sections = [
        INTRODUCTION.rstrip(),
        finite(read["ope-tabular"]),
        finite(read["ope-tabular-5"]),
        pointmaze(read["ope-pointmaze"]),
    ]
    (ROOT / "docs" / "off_policy.md").write_text("\n\n".join(sections) + "\n")


if __name__ == "__main__":
    main()
