"""Error against evaluations for every solver, spacing and guidance scale, on a guided mixture whose
flow is known exactly.

    python benchmarks/solver_error.py        # writes benchmarks/solver_error.json and
    docs/solver_error.png

Errors are those of the actions, whose two peaks have a deviation of 0.2, over 201 quantiles of the
noise. Nothing is random and nothing is learned.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import DDIM, FEW_STEPS, PUBLISHED, MultiStep, SingleStep
from ddice.testing import solver_error

ROOT = Path(__file__).parent.parent
SOLVERS = {"DDIM": DDIM, "DPM-Solver++(2S)": SingleStep, "DPM-Solver++(2M)": MultiStep}
SPACINGS = {"uniform": "--", "quadratic": "-", "log_snr": ":"}  # and how its lines are drawn
SCALES, COUNTS = (0.0, 1.0, 2.0, 4.0), (3, 5, 8, 10, 15, 20, 30, 50, 100, 200)


def measure() -> list[dict[str, Any]]:
    """One row per solver, spacing, scale and number of evaluations."""
    rows = []
    for (name, solver), spacing, scale, count in product(SOLVERS.items(), SPACINGS, SCALES, COUNTS):
        rms, largest = solver_error(
            solver(evaluations=count, spacing=spacing), scale, VariancePreserving()
        )
        setting = {"solver": name, "spacing": spacing, "scale": scale, "evaluations": count}
        rows.append({**setting, "rms": float(f"{rms:.3g}"), "max": float(f"{largest:.3g}")})
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel per scale; the named settings are marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SCALES), figsize=(15, 4), sharey=True)
    for axis, scale in zip(axes, SCALES, strict=True):
        for (index, name), spacing in product(enumerate(SOLVERS), SPACINGS):
            chosen = [
                r for r in rows if (r["solver"], r["spacing"], r["scale"]) == (name, spacing, scale)
            ]
            label = f"{name}, {spacing}"
            axis.loglog(
                [r["evaluations"] for r in chosen],
                [r["rms"] for r in chosen],
                SPACINGS[spacing],
                color=f"C{index}",
                label=label,
            )
        for setting, marker, label in (
            (PUBLISHED, "s", "PUBLISHED"),
            (FEW_STEPS, "o", "FEW_STEPS"),
        ):
            error = solver_error(setting, scale, VariancePreserving())[0]
            axis.plot(
                setting.evaluations,
                error,
                marker,
                color="black",
                markersize=7,
                fillstyle="none",
                label=label,
            )
        axis.set(title=f"guidance scale {scale:g}", xlabel="evaluations")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("root mean square error of actions")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=6, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    rows = measure()
    (ROOT / "benchmarks" / "solver_error.json").write_text(
        "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    )
    plot(rows, ROOT / "docs" / "solver_error.png")
    for scale in SCALES:
        found = [
            f"{name} {solver_error(s, scale, VariancePreserving())[0]:.3f}"
            for name, s in (("FEW_STEPS", FEW_STEPS), ("PUBLISHED", PUBLISHED))
        ]
        print(f"scale {scale:g}: " + ", ".join(found))


if __name__ == "__main__":
    main()
