"""Write benchmarks/README.md and its plot from the committed results of `make bench`, `make gpu` and
`python benchmarks/steps.py NAME`.

python benchmarks/render_speed.py .benchmarks/bench.json   # take a new result in, then render
python benchmarks/render_speed.py                          # render what is committed
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed"
STEP_RESULTS = HERE / "results" / "steps"
GPU_RESULTS = HERE / "results" / "gpu"
TEXT = """\
# How fast it is

Written by `make bench` from the results in [results/speed](results/speed); `python benchmarks/render_speed.py` writes it again.

**What is measured.** One decision: observation -> K guided candidates -> selection by Q -> action, transfers included, one thread, float32 unless
said. The yardstick is [plain_eager.py](plain_eager.py): the same policy as research code samples it (torch modules, the state repeated for every
candidate, guidance by autograd, a round trip to the host before selection), always with the published solver, 15 evaluations of singlestep
DPM-Solver++(2S). Each round times the yardstick and then the engine, each after a call that does not count; the median over rounds of the *ratio*
is what to read: how many times faster.

"x floor" is the time over the least time that the linear layers need: the larger of multiply-adds over the measured rate of a matrix product, and
bytes of weights over the measured rate of reading them: near 1, nothing but fewer evaluations is faster on that machine. "p99/p50" shows the spread.
"peak MiB" is what compiling and one decision take, at the peak, beyond what the policy itself takes, in a process of their own: weights that are
copied and laid out anew, and values in between. "cold start" is all up to the first answer: compiling, exporting, first call. Nothing of it is kept
for the next process but the kernels of `fused`, which Triton keeps in its own cache.

Networks: "published" are those of Diffusion-DICE (1.6 M parameters, guidance 4 x 256, ten Q), "default" those of the preset `default`. Solvers: 2S-15
is the published setting, 2M-8 is `FEW_STEPS`, 2M-5 that with 5 evaluations: other solvers give other actions, so compare their returns too.
"""


STEPS_TEXT = """\
## Training steps

Written by `python benchmarks/steps.py NAME` from the results in [results/steps](results/steps), one thread of a CPU. Default configurations, sizes of
Hopper, the batch drawn within the step. The yardstick is [plain_steps.py](plain_steps.py): the same networks and losses as research code writes them
(a loader that collates row by row, an optimiser for each network, autograd everywhere, `.item()` at every step). It, the step and the matrix products
of the step alone, their operands ready, are timed in turn by the time of the processor; read the ratios, medians over rounds.

Extractors read their ratios from the table that a stage makes where it pays: its cost, one pass of the backend over the data, is not in a step. The
plain loop computes them for each batch. "checkpoints" is their share of all time, at one for every {every} steps.
"""


def take_in(path: Path) -> list[Path]:
    """Keep what matters of a pytest-benchmark result, a file for each device under the name of
    its machine.
    """
    content, rows = json.loads(path.read_text()), list[dict[str, Any]]()
    for entry in content["benchmarks"]:
        row = {
            "test": entry["name"].partition("[")[0],
            "group": entry["group"],
            **entry["extra_info"],
        }
        if "p50_ms" not in row:
            row |= {"p50_ms": 1e3 * entry["stats"]["median"]}
        rows.append(
            {
                key: float(f"{value:.4g}") if isinstance(value, float) else value
                for key, value in row.items()
            }
        )
    if not rows:
        raise ValueError(f"{path} holds no measurement")
    kept = []
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        target = (
            RESULTS
            / f"{device}-{re.sub(r'[^a-z0-9]+', '-', own[0]['machine'].lower()).strip('-')}.json"
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            json.dumps({"measured": content["datetime"][:10], "rows": own}, indent=1) + "\n"
        )
        kept.append(target)
    return kept


def decision_table(rows: list[dict[str, Any]]) -> list[str]:
    columns = (
        "| states x K | networks | solver | engine | dtype | times faster | decisions/s | "
        "p99/p50 | x floor | peak MiB | cold start, s |"
    )
    lines = [columns, "|" + "---|" * columns.count("| ")]
    for row in rows:
        memory = "" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:.1f}"
        cells = [
            f"{row['batch']} x {row['candidates']}", row["networks"], row["solver"], row["engine"], row["dtype"], f"**{row['ratio_to_plain']:.2f}**",
            f"{row['decisions_per_second']:,.0f}", f"{row['p99_ms'] / row['p50_ms']:.2f}", f"{row['times_the_floor']:.1f}", memory,
            f"{row['cold_start_s']:.2f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def step_table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| part | preset | batch | ms a step |", "|---|---|---|---|"]
    return lines + [
        f"| {row['stage']} | {row['preset']} | {row['batch']} | {row['p50_ms']:.1f} |"
        for row in rows
    ]


def against_plain_table(parts: dict[str, dict[str, float]]) -> list[str]:
    columns = (
        "| part | times faster than the plain loop | step over its matrix products | ms a step "
        "| of which products, ms | checkpoints, % |"
    )
    lines = [columns, "|" + "---|" * columns.count("| ")]
    return lines + [
        f"| {part} | **{row['times_faster']:.2f}** | {row['over_products']:.2f} | {row['ms']:.2f} "
        f"| {row['products_ms']:.2f} | {row['checkpoint_percent']:.2f} |"
        for part, row in parts.items()
    ]


def against_plain(results: list[dict[str, Any]]) -> list[str]:
    """The section about training steps, the oldest result first."""
    if not results:
        return []
    results = sorted(results, key=lambda result: result["measured"])
    sections = [STEPS_TEXT.format(every=results[-1]["checkpoint_every"])]
    for result in results:
        about = result["machine"]
        title = (
            f"{result['name']}: {about['machine']}, {result['measured']}, python "
            f"{about['python']}, torch {about['torch']}."
        )
        sections.append(f"{title}\n\n" + "\n".join(against_plain_table(result["parts"])) + "\n")
    return sections


def plot(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """How many times faster, for every shape of the published networks."""
    import matplotlib.pyplot as plt

    panels = [
        (name, [row for row in rows if row["networks"] == "published"])
        for name, rows in results.items()
    ]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(8.5 * len(panels), 4.2), squeeze=False, layout="constrained"
    )
    for axis, (name, rows) in zip(axes[0], panels, strict=True):
        shapes = list(dict.fromkeys((row["batch"], row["candidates"]) for row in rows))
        series = list(dict.fromkeys((row["engine"], row["solver"], row["dtype"]) for row in rows))
        width = 0.84 / len(series)
        for j, key in enumerate(series):
            chosen = {
                (r["batch"], r["candidates"]): r["ratio_to_plain"]
                for r in rows
                if (r["engine"], r["solver"], r["dtype"]) == key
            }
            places = [shapes.index(shape) + (j - (len(series) - 1) / 2) * width for shape in chosen]
            label = " ".join(part for part in key if part != "float32")
            color = plt.get_cmap("cividis")(j / max(len(series) - 1, 1))
            bars = axis.bar(places, list(chosen.values()), width * 0.92, label=label, color=color)
            axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_xticks(range(len(shapes)), [f"{b} x {k}" for b, k in shapes])
        axis.set(
            xlabel="states x candidates",
            ylabel="times faster than the plain sampler",
            title=f"{name}, published networks",
        )
        axis.legend(frameon=False, fontsize=8, ncols=2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def render() -> None:
    parts, decisions = [TEXT], {}
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        rows = content["rows"]
        about = next(row for row in rows if "engine" in row)
        versions = ", ".join(
            f"{name} {about[name]}"
            for name in ("python", "torch", "onnxruntime", "triton")
            if name in about
        )
        device = about["device"].upper()
        parts.append(
            f"## {device}: {about['machine']}\n\n{content['measured']}, {about['threads']} "
            f"thread, {versions}.\n"
        )
        found = [row for row in rows if row["test"] == "test_decisions"]
        decisions[f"{device} ({about['machine']})"] = found
        parts.append("\n".join(decision_table(found)) + "\n")
        if steps := [row for row in rows if row["test"] == "test_steps"]:
            title = (
                "One training step, batch drawn (shared machine: compare rows of this table only):"
            )
            parts.append(f"{title}\n\n" + "\n".join(step_table(steps)) + "\n")
        if batches := [row for row in rows if row["test"] == "test_batches"]:
            told = ", ".join(
                f"{row['ratio_to_loader']:.0f} times faster for {row['batch']} rows"
                for row in batches
            )
            parts.append(f"`data.sample` against a DataLoader that collates row by row: {told}.\n")
    on_devices = [path.read_text() for path in sorted(GPU_RESULTS.glob("*/tables.md"))]
    if on_devices:
        parts += ["## CUDA\n\nWritten by `make gpu`.\n", *on_devices]
    elif not any(name.startswith("CUDA") for name in decisions):
        parts.append(
            "## CUDA\n\nNot yet measured: `make gpu` on a machine with an NVIDIA GPU takes eight "
            "minutes, and its tables come here.\n"
        )
    step_results = [json.loads(path.read_text()) for path in STEP_RESULTS.glob("*.json")]
    parts += against_plain(step_results)
    plot(decisions, HERE / "speed.png")
    parts.insert(1, "![how many times faster than the plain sampler](speed.png)\n")
    (HERE / "README.md").write_text("\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", nargs="?", type=Path, help="JSON of pytest --benchmark-json")
    options = parser.parse_args()
    if options.result is not None:
        for path in take_in(options.result):
            print(f"kept in {path}")
    render()
    print(f"written: {HERE / 'README.md'}")


if __name__ == "__main__":
    main()
