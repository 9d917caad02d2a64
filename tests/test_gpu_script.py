"""benchmarks/gpu.py: stages that fail, hang or are stopped, what is trained, and the tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import gpu_stages, render_gpu
from benchmarks.gpu import run_stage
from benchmarks.gpu_stages import FULL, SMALL, STAGES, Options
from benchmarks.render_gpu import NEEDS_CUDA, rows_of

ROOT = Path(__file__).parent.parent
# In the place of a training: leaves a file when it is asked to stop, and a process behind it.
HANGS = """
import pathlib, signal, subprocess, sys, time
behind = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def stop(number, frame):
    pathlib.Path("saved").write_text(str(behind.pid))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
time.sleep(600)
"""
# Imported by Python itself before all else: what a machine with a GPU need not have is not found.
BARE = """
import sys
from importlib.machinery import PathFinder
ABSENT = {"gymnasium", "minari", "h5py", "matplotlib", "mujoco", "onnx", "onnxruntime", "scipy"}
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in ABSENT:
            return super().find_spec(name, path, target)
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("code", "outcome", "said"),
    [
        ("print('as it should')", "done", None),
        (f"raise SystemExit({NEEDS_CUDA})", "needs CUDA", None),
        ("print('a'); raise ValueError('no such kernel')", "failed", "ValueError: no such kernel"),
    ],
)
def test_how_a_stage_ends(code: str, outcome: str, said: str | None, tmp_path: Path) -> None:
    found = run_stage("some", python(code), tmp_path, 60)
    assert (found["stage"], found["outcome"], found.get("said")) == ("some", outcome, said)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux for a process")
def test_a_stage_that_hangs_is_stopped_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seconds = 1.0
    while not (tmp_path / "saved").exists() and seconds < 60:  # longer on a busy machine
        found = run_stage("some", python(HANGS), tmp_path, seconds, grace=20)
        seconds *= 4
    assert found["outcome"] == "out of time"
    behind = int((tmp_path / "saved").read_text())
    for _ in range(200):
        if not is_running(behind):
            break
        time.sleep(0.05)
    assert not is_running(behind)


def test_all_stages_together_take_eight_minutes() -> None:
    assert sum(seconds for seconds, _ in STAGES.values()) == 8 * 60


def test_what_cannot_be_measured_says_why_and_costs_nothing_else() -> None:
    rows: list[Any] = []
    options = Options(SMALL, Path(), None, None)
    gpu_stages.decisions(("graph", "float32"), ("reference", "float32"))(options, rows.append)
    (graph, reference) = rows
    assert "CUDA" in graph["error"]
    assert (graph["engine"], graph["batch"], graph["candidates"]) == ("graph", 1, 4)
    assert "error" not in reference
    assert reference["p50_ms"] * reference["decisions_per_second"] == pytest.approx(1000)


def test_what_is_trained(tmp_path: Path) -> None:
    def chosen(data: Path | None = None, config: Path | None = None, sizes: Any = FULL) -> Any:
        return gpu_stages.chosen_recipe(Options(sizes, tmp_path, data, config))

    published = chosen()
    assert (published.steps.prior, published.steps.backend) == (600_000, 1_000_000)
    assert (published.schedule, published.device) == ("joint", "cuda")
    assert published.evaluation.episodes == 0
    on_maze = chosen(data=tmp_path / "maze.npz")
    assert on_maze.data.source == str(tmp_path / "maze.npz")
    assert on_maze.data.action_bounds == "data"
    config = tmp_path / "recipe.json"
    config.write_text(
        json.dumps({"data": {"source": "x.npz", "action_bounds": [-2, 2]}, "seed": 3})
    )
    given = chosen(data=tmp_path / "maze.npz", config=config)
    assert given.data.source == str(tmp_path / "maze.npz")
    assert given.data.action_bounds == (-2, 2)
    assert (given.seed, given.evaluation.episodes) == (3, 100)
    assert chosen(sizes=SMALL).steps.prior == 200


def test_tables_say_what_was_found(tmp_path: Path) -> None:
    def write(name: str, *rows: dict[str, Any], rest: str = "") -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text + rest)

    about = {"machine": "A GPU", "measured": "2026-11-28", "python": "3.11", "torch": "2.9"}
    (tmp_path / "machine.json").write_text(json.dumps(about))
    write(
        "stages",
        {"stage": "steps", "outcome": "failed", "seconds": 3.0, "said": "once"},
        {"stage": "graph", "outcome": "failed", "seconds": 4.4, "said": "RuntimeError: no"},
        {"stage": "steps", "outcome": "out of time", "seconds": 45.2},
    )
    write("tests", {"test": "a", "found": "passed"}, {"test": "b", "found": "failed"})
    training = {"preset": "default", "part": "prior", "mode": "eager"}
    write(
        "steps",
        training | {"batch": 256, "steps_per_second": 2500.0, "ms": 0.4, "cold_start_s": 1.5},
        training | {"part": "backend", "error": "OutOfMemoryError: of 1 GiB"},
        rest='{"preset": "defa',  # the process was killed
    )
    metrics = {"part": "joint", "of": 1000, "extractor/loss": 0.5}
    numbers = {"batch": 512, "steps_per_second": 500.0, "ms": 2.0, "cold_start_s": 31.0}
    compiled = {"mode": "compiled", "frames": "3 of 4", "largest_difference": 1e-07}
    write("compiled", training | numbers | compiled | {"peak_memory_mib": 64.0})
    write(
        "recipe",
        metrics | {"step": 100, "seconds": 6.0},
        metrics | {"step": 300, "seconds": 10.0, "extractor/loss": 0.25},
        {"part": "evaluation", "seconds": 20.0, "score": 61.25},
    )
    lines = render_gpu.render(tmp_path).splitlines()
    for line in (
        "### A GPU",
        "2026-11-28, python 3.11, torch 2.9.",
        "| steps | out of time | 45 |",
        "| graph | failed: RuntimeError: no | 4 |",
        "`pytest -m gpu`: 1 failed, 1 passed.",
        "- b",
        "| prior | default | 256 | eager | 2500 | 0.4 |  | 1.5 |  |  |",
        "| prior | default | 512 | compiled | 500 | 2 | 64 | 31 | 3 of 4 | 1e-07 |",
        "- backend default eager: OutOfMemoryError: of 1 GiB",
        "| part | step | of | minutes | steps/s | loss |",
        "| joint | 100 | 1000 | 0.1 |  | 0.5 |",
        "| joint | 300 | 1000 | 0.1667 | 50 | 0.25 |",
        "Score: 61.2.",
    ):
        assert line in lines, line
    assert not any("once" in line for line in lines)


@pytest.mark.slow
def test_the_rehearsal(tmp_path: Path) -> None:
    """On the CPU, without what a machine with a GPU need not have: every stage that needs no GPU
    ends well, finds something, and goes into the page.
    """
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE)
    out, path = tmp_path / "out", os.pathsep.join([str(tmp_path / "bare"), str(ROOT)])
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--rehearse", "--out", str(out)]
    limits = ["--limit", *(f"{name}=600" for name in STAGES)]
    done = subprocess.run(
        [*command, *limits], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ended = {row["stage"]: row["outcome"] for row in rows_of(out / "stages.jsonl")}
    assert ended == dict.fromkeys(STAGES, "done") | {"unknowns": "needs CUDA"}
    found = {name: rows_of(out / f"{name}.jsonl") for name in STAGES}
    assert {row["found"] for row in found["tests"]} == {"skipped"}
    assert ["error" in row for row in found["eager"]] == [False, False]
    assert all("CUDA" in row["error"] for row in (*found["graph"], *found["fused"]))
    assert [row["steps_per_second"] > 0 for row in found["steps"]] == [True] * 3
    # Dynamo's own backend calls the same kernels in the same order.
    assert [row["largest_difference"] for row in found["compiled"]] == [0, 0, 0]
    assert [row["part"] for row in found["recipe"]][-1] == "extractor"
    page = (out / "tables.md").read_text()
    assert page.count("####") == 6  # all but that of the device itself
