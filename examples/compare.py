"""Compare backends and extractors over several seeds: the table, and paired differences.

python examples/compare.py
What is trained is kept: a second call, or one with another extractor, trains only what is new.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from reach import ENV, record

import ddice
from ddice.policies.evaluation import PairedEvaluation, evaluate_pair
from ddice.runs.comparison import Comparison, compare, render_table


def main(steps: int = 1000, episodes: int = 30, out: str = "runs/compare") -> PairedEvaluation:
    """The difference of two of the policies on the same starts."""
    run = Path(out)
    run.mkdir(parents=True, exist_ok=True)
    np.savez(run / "data.npz", **record())
    comparison = Comparison.model_validate(
        {
            "recipe": {
                "data": {"source": str(run / "data.npz"), "env": ENV},
                "steps": {"prior": steps, "backend": steps, "extractor": steps},
                "evaluation": {"episodes": episodes},
            },
            "backends": {"piecewise_f": {"temperature": "ess:0.3"}},
            "extractors": ["weighted_bc", "guide_then_select"],
            "seeds": [0, 1],
        }
    )
    print(render_table(compare(comparison, run)))
    first, second = (
        ddice.load_policy(run / "seed-0" / f"piecewise_f-{name}" / "policy")
        for name in ("guide_then_select", "weighted_bc")
    )
    difference = evaluate_pair(first, second, episodes=episodes, seed=1)
    print(difference)
    return difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="of each training")
    parser.add_argument("--episodes", type=int, default=30, help="of each evaluation")
    parser.add_argument("--out", default="runs/compare", help="run folder")
    options = parser.parse_args()
    main(options.steps, options.episodes, options.out)
