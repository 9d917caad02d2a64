"""Grids over datasets and processes: equal to one process bit for bit, whatever is killed, and
every part trained once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from ddice.cli import main
from ddice.core import cache
from ddice.parts import loop
from ddice.runs.comparison import CellsFailed, Comparison, Result, Results, compare
from ddice.runs.comparison import outlook as outlook_module
from ddice.runs.comparison import pool as pool_module
from ddice.runs.comparison.cells import Job
from ddice.runs.comparison.datasets import by_name
from ddice.runs.comparison.executors import Process, Serial
from ddice.runs.comparison.outlook import Outlook
from ddice.runs.comparison.pool import _Queue, affordable
from ddice.runs.presets import PRESETS
from ddice.runs.status import GridStatus, Status, WorkerStatus, describe, read_status
from ddice.runs.training import Training

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
FAR_TOO_FAST = {"optimizer": {"learning_rate": 1e25}}  # diverges in its second step


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


def quiet(_: str) -> None:
    pass


def grid(npz: Path, **fields: Any) -> Comparison:
    """Two policies of one backend and the behaviour policy; workers know this environment too."""
    recipe = small.recipe(
        npz,
        steps={"prior": 4, "backend": 4, "extractor": 4},
        evaluation={"episodes": 1},
        device="cpu",
    )
    chosen = {
        "recipe": recipe.model_dump(mode="json"),
        "backends": {"piecewise_f": small.BACKENDS["piecewise_f"]},
        "extractors": {name: small.EXTRACTORS[name] for name in ("weighted_bc", "select_only")},
        **fields,
    }
    return Comparison.model_validate(chosen)


def go(comparison: Comparison, run: Path, **options: Any) -> list[Result]:
    return compare(comparison, run, progress=False, **{"say": quiet, **options})


def numbers(results: list[Result]) -> list[Any]:
    """All of a result that is not time."""
    timed = {"train_seconds", "train_cpu_seconds", "made_on", "evaluation"}
    return [
        (row.model_dump(exclude=timed), row.evaluation.returns, row.evaluation.lengths)
        for row in results
    ]


# -- datasets


def test_a_dataset_changes_the_recipe_and_keeps_the_rest(npz: Path) -> None:
    changes = {"evaluation": {"episodes": 3}, "steps": {"prior": 9}}
    comparison = grid(npz, datasets={"one": "a.hdf5", "two": {"recipe": changes}})
    one, two = (task.recipe for task in comparison.tasks)
    base = comparison.recipe
    source = base.data.model_copy(update={"source": "a.hdf5"})
    assert one == base.model_copy(update={"data": source})
    assert two == base.model_copy(
        update={
            "evaluation": base.evaluation.model_copy(update={"episodes": 3}),
            "steps": base.steps.model_copy(update={"prior": 9}),
        }
    )
    cells = list(comparison.cells())
    assert [cell.dataset for cell in cells] == ["one"] * 3 + ["two"] * 3
    assert cells[4].folder == Path("two/seed-0/piecewise_f-weighted_bc")
    assert cells[4].title == "two: piecewise_f + weighted_bc, seed 0"
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_a_dataset_may_begin_with_the_preset_of_its_domain() -> None:
    """Its own parts are then those of that preset, where the comparison names none."""
    datasets = {"walk": {"preset": "locomotion", "recipe": {"data": {"source": "w"}}}, "maze": "m"}
    walk, maze = Comparison.model_validate({"datasets": datasets}).tasks
    preset = PRESETS["locomotion"]
    assert walk.recipe.data.source == "w"
    assert (walk.recipe.steps, walk.backends) == (preset.steps, {"piecewise_f": preset.backend})
    assert walk.extractors == {"guide_then_select": preset.extractor}
    assert maze.backends == {"piecewise_f": PRESETS["default"].backend}
    named = Comparison.model_validate({"datasets": datasets, "backends": "iql"})
    assert [list(task.backends) for task in named.tasks] == [["iql"], ["iql"]]


def test_a_recipe_that_no_dataset_reads_is_refused() -> None:
    """Else its steps would be said and not done."""
    datasets = {"walk": {"preset": "locomotion"}}
    with pytest.raises(ValueError, match="recipe is read by no dataset"):
        Comparison.model_validate({"datasets": datasets, "recipe": {"steps": {"prior": 5}}})
    both = {**datasets, "maze": "m"}
    Comparison.model_validate({"datasets": both, "recipe": {"steps": {"prior": 5}}})


def test_names_of_sources() -> None:
    assert {
        name: one["recipe"]["data"]["source"]
        for name, one in by_name("my/umaze-v0, data/hopper-v2.hdf5").items()
    } == {"my-umaze-v0": "my/umaze-v0", "hopper-v2": "data/hopper-v2.hdf5"}


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"a": {"recipe": {"stepz": {}}}}, r"datasets\.a\.recipe: .*did you mean 'steps'"),
        ({"a": {"recipe": {"steps": {"prio": 1}}}}, r"datasets\.a\.recipe\.steps: .*'prior'"),
        ({"a": {"preset": "mase"}}, r"datasets\.a\.preset: unknown preset 'mase': .*'maze'"),
        ({"a/b": "x"}, "which a folder can have, got 'a/b'"),
        (["x/a.npz", "y/a.npz"], r"different names, got \['a', 'a'\]"),
    ],
)
def test_datasets_that_cannot_be(datasets: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison.model_validate({"datasets": datasets})


def test_a_dataset_without_episodes_is_named(npz: Path, tmp_path: Path) -> None:
    none = {"recipe": {"evaluation": {"episodes": 0}}}
    with pytest.raises(ValueError, match=r"needs datasets\.b\.recipe\.evaluation\.episodes"):
        go(grid(npz, datasets={"a": {}, "b": none}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- one trains, the others wait


def test_who_finds_a_stage_in_work_waits_or_takes_something_else(npz: Path, tmp_path: Path) -> None:
    recipe = grid(npz).recipe
    data = recipe.data.load()
    said: list[str] = []

    def training(**options: Any) -> Training:
        return Training(recipe, data, progress=False, **{"say": quiet, **options})

    begun, go_on = threading.Event(), threading.Event()

    def hold_up(stage: str, step: int, steps: int, metrics: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    first = threading.Thread(target=training(listeners=[hold_up]).prior)
    first.start()
    assert begun.wait(60)
    with pytest.raises(cache.Busy, match="prior"):
        training(wait_for=["backend"]).prior()
    second = threading.Thread(
        target=training(say=said.append, wait_for=["prior"], listeners=[pytest.fail]).prior
    )
    second.start()
    while not said:
        time.sleep(0.01)
    assert said == ["prior: another process trains it at this moment, which is waited for"]
    assert second.is_alive()
    go_on.set()
    first.join()
    second.join()
    assert said[1].startswith("prior: found trained (4 steps")


def jobs(comparison: Comparison) -> list[Job]:
    return [Job(n, cell, str(n), leads=False) for n, cell in enumerate(comparison.cells())]


def test_what_needs_the_same_steps_aside(npz: Path) -> None:
    backends = {name: small.BACKENDS[name] for name in ("piecewise_f", "optidice")}
    all_jobs = jobs(grid(npz, backends=backends, seeds=[0, 1]))
    left = _Queue(deque(all_jobs))
    first = left.take()
    assert first == (all_jobs[0], "")
    second = left.take()
    assert second is not None
    assert second[0].cell.seed == 1
    # another process trains the prior of seed 1: whatever needs it goes after the others
    left.block(second[0], "prior")
    assert {job.cell.seed for job in left.pending} == {0}
    taken, stage = left.take() or (None, None)
    assert (taken, stage) == (all_jobs[2], "")
    left.block(all_jobs[2], "backend")
    assert {job.cell.backend for job in left.pending} == {"optidice"}
    assert left.take() == (all_jobs[6], "")
    assert left.take() == (all_jobs[8], "")
    # nothing else is left: now the first of those is waited for, and for that stage alone
    assert left.take() == (all_jobs[1], "prior")
    left.free()
    assert left.blocked == deque()
    assert left.take() == (all_jobs[3], "")


def test_a_curve_of_a_backend_is_drawn_before_others_find_it_trained(npz: Path) -> None:
    _, weighted, select = jobs(grid(npz))
    leads = Job(2, select.cell, "2", leads=True)
    left = _Queue(deque([weighted, leads]), leading=[leads])
    assert left.take() == (leads, "")
    assert left.take() is None
    left.leading = []
    assert left.take() == (weighted, "")


# -- processes


@pytest.mark.gate
def test_workers_give_what_one_process_gives(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with one thread in each; listeners hear the same steps; nothing is trained
    twice, and of a second call nothing at all.
    """
    datasets = {"a": {}, "b": {"recipe": {"evaluation": {"seed": 3}}}}
    heard: dict[str, set[Any]] = {"serial": set(), "process": set()}
    found, said = {}, []
    for kind in ("serial", "process"):
        monkeypatch.setenv("DDICE_CACHE", str(tmp_path / f"cache-{kind}"))

        def listeners(folder: Path, into: set[Any] = heard[kind]) -> list[Any]:
            name = folder.relative_to(tmp_path).parts[1:]
            return [lambda stage, step, steps, metrics: into.add((name, stage, step, *metrics))]

        asked = grid(npz, datasets=datasets, executor={"kind": kind})
        found[kind] = go(asked, tmp_path / kind, say=said.append, listeners=listeners)
    assert numbers(found["process"]) == numbers(found["serial"])
    # which of two datasets with the same parts trains them is chance
    assert {what[1:] for what in heard["process"]} == {what[1:] for what in heard["serial"]}
    assert [row.train_cpu_seconds > 0 for row in found["process"]] == [True] * 6
    assert {row.made_on.threads for row in found["process"]} == {1}
    assert not list((tmp_path / "process").glob(".worker*"))
    status = read_status(tmp_path / "process")
    assert (status.state, status.grid) == ("finished", GridStatus(done=6, failed=0, of=6))
    monkeypatch.setattr(pool_module.Pool, "work", lambda self: pytest.fail("nothing is left"))
    assert go(asked, tmp_path / "process") == found["process"]


def test_data_in_memory_are_not_those_of_workers(npz: Path, tmp_path: Path) -> None:
    asked = grid(npz, executor="process")
    with pytest.raises(ValueError, match="workers read them themselves"):
        go(asked, tmp_path / "run", data=asked.recipe.data.load())
    with pytest.raises(ValueError, match="names its datasets: leave data out"):
        go(grid(npz, datasets={"a": {}}), tmp_path / "run", data=asked.recipe.data.load())
    assert not (tmp_path / "run").exists()


def test_workers_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process held 2 GB at most, so that a worker counts 2.5: 6 GB are enough for two."""
    said: list[str] = []
    monkeypatch.setattr(pool_module, "cores", lambda: 8)
    monkeypatch.setattr(pool_module, "peak_memory", lambda: 2 * 2**30)
    monkeypatch.setattr(pool_module, "memory_available", lambda: 6 * 2**30)
    assert affordable(Process(), 20, said.append) == 2
    assert said == ["memory for 2 of 8 workers: each takes about 2.5 GB, and 6.0 GB are free"]
    assert affordable(Process(workers=3), 20, said.append) == 3
    assert said[1].startswith("memory may be too short for 3 workers")
    assert affordable(Process(threads=4), 20, said.append) == 2
    assert affordable(Process(), 1, said.append) == 1
    monkeypatch.setattr(pool_module, "memory_available", lambda: 2**30)
    assert affordable(Process(), 20, said.append) == 1
    monkeypatch.setattr(pool_module, "memory_available", lambda: None)
    assert affordable(Process(), 20, said.append) == 8


# -- failures


@pytest.mark.gate
@pytest.mark.parametrize("kind", ["serial", "process"])
def test_a_policy_that_fails_is_said_and_the_others_are_there(
    kind: str, npz: Path, tmp_path: Path
) -> None:
    bad = {"kind": "piecewise_f", **small.BACKENDS["piecewise_f"], **FAR_TOO_FAST}
    backends = {"bad": bad, "good": {"kind": "piecewise_f", **small.BACKENDS["piecewise_f"]}}
    only = {"weighted_bc": small.EXTRACTORS["weighted_bc"]}
    asked = grid(npz, backends=backends, extractors=only, executor={"kind": kind})
    with pytest.raises(CellsFailed, match=r"1 of 3 policies failed:\n  bad \+ weighted_bc") as got:
        go(asked, tmp_path / "run")
    assert [row.backend for row in got.value.results] == [None, "good"]
    (cause,) = got.value.causes.values()
    assert cause.startswith("TrainingDiverged: backend: ")
    (line,) = (tmp_path / "run" / "failures.jsonl").read_text().splitlines()
    failure = json.loads(line)
    assert (failure["backend"], failure["cause"]) == ("bad", cause)
    assert "Traceback" in failure["trace"]
    status = read_status(tmp_path / "run")
    assert status.state == "finished"
    assert (status.grid.done, status.grid.failed, status.grid.of) == (2, 1, 3)
    assert "policies    2 of 3 done, 1 failed" in describe(status)


def test_only_what_failed(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cause is gone by then; what was never begun is left out."""
    run, ran, causes = loop.run, [], [OSError("the disk is full")]

    def flaky(*args: Any, **options: Any) -> None:
        ran.append(options["name"])
        if options["name"] == "extractor" and causes:
            raise causes.pop()
        run(*args, **options)

    monkeypatch.setattr(loop, "run", flaky)
    with pytest.raises(CellsFailed, match="weighted_bc, seed 0: OSError: the disk is full"):
        go(grid(npz), tmp_path / "run")
    del ran[:]
    results = go(grid(npz, seeds=[0, 1]), tmp_path / "run", only_failed=True)
    assert ran == ["extractor"]
    assert [(row.extractor, row.seed) for row in results] == [
        ("behaviour policy", 0),
        ("weighted_bc", 0),
        ("select_only", 0),
    ]
    with pytest.raises(ValueError, match=r"nothing in .* failed that is not done"):
        go(grid(npz), tmp_path / "run", only_failed=True)


def test_the_command_prints_what_is_there_and_what_failed(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("plot_metrics", "plot_scores", "plot_curves"):
        monkeypatch.setattr(f"ddice.cli.compare.{name}", lambda *_: True)
    bad = {"kind": "piecewise_f", **small.BACKENDS["piecewise_f"], **FAR_TOO_FAST}
    config = tmp_path / "grid.json"
    asked = grid(npz, backends={"bad": bad}, datasets={"a": {}})
    config.write_text(asked.model_dump_json())
    command = ["compare", "--config", str(config), "--run", str(tmp_path / "run"), "--no-progress"]
    assert main(command) == 1
    output, errors = capsys.readouterr()
    table = output[output.index("**a**") :]
    assert [line.split("|")[2] for line in table.splitlines() if line.startswith("|  |")] == [
        " behaviour policy "
    ]
    assert "error: 2 of 3 policies failed:" in errors
    assert "a: bad + weighted_bc, seed 0: TrainingDiverged: backend" in errors
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "policies    1 of 3 done, 2 failed" in capsys.readouterr().out


# -- the time left


def test_the_time_left_by_hand(npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prior 4 steps, backend 4, two extractors of which one trains 4, three times one episode. The
    prior takes 2 s for each of two steps: 2 x 2 s are left of it, and 8 steps at the mean pace of
    what is trained; nobody has played yet.
    """
    now = [0.0]
    monkeypatch.setattr(outlook_module.time, "monotonic", lambda: now[0])
    todo = jobs(grid(npz))
    outlook = Outlook(todo)
    assert outlook.seconds_left(1) is None
    outlook.hear(0, todo[0], "prior", 0, 4)
    now[0] = 4.0
    outlook.hear(0, todo[0], "prior", 2, 4)
    assert outlook.seconds_left(1) == 2 * 2 + 8 * 2
    assert outlook.seconds_left(2) == 10
    # its evaluation takes 3 s, and the two others as long
    outlook.hear(0, todo[0], "evaluation", 0, 1)
    now[0] = 7.0
    outlook.hear(0, todo[0], "evaluation", 1, 1)
    outlook.over(todo[0])
    assert outlook.seconds_left(1) == 8 * 2 + 2 * 3
    outlook.over(todo[1])
    assert outlook.seconds_left(1) == 3
    outlook.over(todo[2])
    assert outlook.seconds_left(1) == 0


def test_the_status_of_a_grid() -> None:
    workers = {
        "0": WorkerStatus(policy="a: x + y, seed 1", stage="backend", step=300, steps=1000),
        "1": WorkerStatus(policy="b: x + y, seed 0"),
    }
    grid = GridStatus(done=3, failed=1, of=12, seconds_left=1200.0, workers=workers)
    status = Status(state="running", pid=1, started=0.0, updated=time.time(), grid=grid)
    assert describe(status).splitlines()[1:] == [
        "policies    3 of 12 done, 1 failed, 20 min left",
        "worker 0    a: x + y, seed 1: backend, step 300 of 1,000",
        "worker 1    b: x + y, seed 0",
    ]


# -- whatever is killed

DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from ddice.runs.comparison import Comparison, compare
asked = Comparison.model_validate_json(Path(sys.argv[2]).read_text())
compare(asked, sys.argv[3], progress=False, checkpoint_every=20)
"""


def _children(pid: int) -> list[int]:
    """The processes that a process started."""
    found = subprocess.run(
        ["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="finds workers by ps, as Linux has it")
def test_a_grid_that_is_killed_at_random_ends_complete_and_as_if_it_had_not_been(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36 cells over two datasets, the driver killed three times, a worker twice: no cell is lost or
    there twice, and every number is that of one process, bit for bit.
    """
    steps = {"prior": 150, "backend": 150, "extractor": 150}
    fields: dict[str, Any] = {
        "datasets": {
            "a": {"recipe": {"steps": steps}},
            "b": {"recipe": {"evaluation": {"seed": 3}, "steps": steps}},
        },
        "backends": {name: small.BACKENDS[name] for name in ("piecewise_f", "optidice")},
        "extractors": {
            name: small.EXTRACTORS[name] for name in ("weighted_bc", "select_only", "gaussian_bc")
        },
        "seeds": [0, 1, 2],
    }
    fields["pairs"] = {"optidice": ["weighted_bc", "gaussian_bc"]}
    expected = go(grid(npz, **fields), tmp_path / "serial")
    assert len(expected) == 36
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other-cache"))
    asked = grid(npz, **fields, executor={"kind": "process", "workers": 2})
    config, run = tmp_path / "grid.json", tmp_path / "run"
    config.write_text(asked.model_dump_json())
    command = [sys.executable, "-c", DRIVER, str(Path(__file__).parent), str(config), str(run)]
    rows = run / "results.jsonl"

    def scored() -> int:
        return len(rows.read_bytes().splitlines()) if rows.exists() else 0

    for round_ in range(4):
        goal = scored() + 4
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if round_ < 2:
            while scored() < goal - 2 and driver.poll() is None:
                time.sleep(0.05)
            os.kill(_children(driver.pid)[0], signal.SIGKILL)
        while scored() < goal and driver.poll() is None:
            time.sleep(0.05)
        if round_ < 3:
            assert driver.poll() is None
            driver.kill()
        driver.wait()
    assert driver.returncode == 0
    keys = [row.key for row in Results(rows).rows]
    assert len(keys) == len(set(keys)) == 36
    assert numbers(go(asked, run)) == numbers(expected)


@pytest.mark.gate
def test_a_worker_that_dies_again_and_again_fails_its_policy(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One policy kills whoever works at it; the other one is there in the end."""
    monkeypatch.setattr(pool_module, "MOST_DEATHS", 2)
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, signal\n"
        "def ratio(batch):\n"
        f"    if os.getpid() == {os.getpid()}:\n"  # the driver, which builds it to look at
        "        return batch.rewards * 0 + 1\n"
        "    print('short of memory', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    asked = grid(
        npz,
        backends={"deadly": {"kind": "given", "source": "killer:ratio"}},
        extractors={"gaussian_bc": {**small.EXTRACTORS["gaussian_bc"], "candidates": 1}},
        executor={"kind": "process", "workers": 2},
    )
    said: list[str] = []
    with pytest.raises(CellsFailed) as got:
        go(asked, tmp_path / "run", say=said.append)
    assert [row.extractor for row in got.value.results] == ["behaviour policy"]
    (cause,) = got.value.causes.values()
    assert cause.startswith("2 workers died of it, the last one was killed by SIGKILL (as the")
    assert "short of memory" in cause
    assert sum("it goes on in another one" in line for line in said) == 1


def test_executors_by_name() -> None:
    assert Comparison.model_validate({"executor": "process"}).executor == Process()
    assert Comparison.model_validate({}).executor == Serial()
    with pytest.raises(ValueError, match="executor"):
        Comparison.model_validate({"executor": "prozess"})


def test_the_serial_executor_uses_the_threads_of_this_process(npz: Path, tmp_path: Path) -> None:
    (behaviour, *_) = go(grid(npz, extractors=["select_only"]), tmp_path / "run")
    assert behaviour.made_on.threads == torch.get_num_threads()
