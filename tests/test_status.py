"""Run folders in use: what their process says of itself, how it ended, that nobody else gets in,
and who listens to the metrics.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from filelock import FileLock

from ddice.cli import main
from ddice.policies.evaluation import Moment
from ddice.runs import status
from ddice.runs.status import Reporter, Status, describe, hold, read_status
from ddice.runs.training import episodes_over

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
HEARD: list[tuple[str, int, int, dict[str, Any], Status]] = []
FOLDER: list[Path] = []


def listen(stage: str, step: int, steps: int, metrics: dict[str, Any]) -> None:
    """A hook: what it is told, and what the run folder says meanwhile."""
    HEARD.append((stage, step, steps, dict(metrics), read_status(FOLDER[0])))


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    for name in ("train.plot_metrics", "compare.plot_metrics", "compare.plot_scores"):
        monkeypatch.setattr(f"ddice.cli.{name}", lambda *_: True)
    HEARD.clear()
    FOLDER[:] = [tmp_path / "run"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as the test says: that of day, and that of the clock that nobody sets."""
    now = [1000.0]
    monkeypatch.setattr(status.time, "time", lambda: now[0])
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    return now


def options(npz: Path) -> list[str]:
    return [*small.flags(npz), "--data.env", small.SHORT, "--device", "cpu", "--no-progress"]


def test_time_left_is_that_of_the_pace_in_this_stage(tmp_path: Path, clock: list[float]) -> None:
    """200 steps in 20 seconds, 700 to go: 70 seconds. Steps of before, which a resume did not
    repeat, do not count.
    """
    reporter = Reporter(tmp_path)
    clock[0] = 1010.0
    reporter("backend", 100, 1000, {"loss": 2.0})
    clock[0] = 1030.0
    reporter("backend", 300, 1000, {"loss": 1.5})
    with hold(tmp_path):
        pass
    found = reporter.status
    assert (found.stage, found.step, found.steps, found.seconds_left, found.metrics) == (
        "backend",
        300,
        1000,
        70.0,
        {"loss": 1.5},
    )
    assert (found.started, found.updated, found.pid) == (1000.0, 1030.0, os.getpid())
    clock[0] = 1035.0
    assert describe(found).splitlines() == [
        f"running (process {os.getpid()}), last word 5 s ago",
        "stage       backend, step 300 of 1,000, 70 s left",
        f"{'loss':32}1.5",
    ]


def test_a_clock_that_is_set_back_stops_nothing(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour: the status is written on, and its pace is that of the work."""
    reporter = Reporter(tmp_path)
    reporter("prior", 0, 400, {})
    monkeypatch.setattr(status.time, "time", lambda: clock[0] - 3600)
    clock[0] = 1010.0
    reporter("prior", 100, 400, {})
    found = read_status_without_lock(tmp_path)
    assert (found.step, found.seconds_left, found.updated) == (100, 30.0, 1010.0 - 3600)
    monkeypatch.setattr(status.time, "time", lambda: clock[0] - 7200)
    assert "last word 0 s ago" in describe(found)


@contextlib.contextmanager
def holding_open(holding: contextlib.AbstractContextManager[Reporter]) -> Iterator[None]:
    """The rest of what was entered before."""
    try:
        yield
    finally:
        holding.__exit__(None, None, None)


def told(path: Path) -> dict[str, Any]:
    """The lines of a metrics file, of one step, as one: without the names of who looked."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    both = {name: value for line in lines for name, value in line.items()}
    return {name: value for name, value in both.items() if name not in ("watcher", "identity")}


def read_status_without_lock(folder: Path) -> Status:
    content = json.loads((folder / status.FILE).read_text())
    return Status.model_validate({key: content[key] for key in content if key != status.DIGEST})


@pytest.mark.parametrize("number", ["ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK", "EINVAL"])
def test_a_file_system_without_locks(
    number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marker takes the place of the lock, which is said once; everything else is as before."""

    def unsupported(self: FileLock, *_: Any, **__: Any) -> None:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code), str(self.lock_file))

    monkeypatch.setattr(FileLock, "acquire", unsupported)
    monkeypatch.setattr(status, "GRACE", 0.05)
    holding = hold(tmp_path)
    with pytest.warns(UserWarning, match="has no locks"):
        holding.__enter__()
    with holding_open(holding):
        assert (tmp_path / status.MARKER).exists()
        assert read_status(tmp_path).state == "running"
        for enter in (lambda: status.require_free(tmp_path), lambda: hold(tmp_path).__enter__()):
            with pytest.raises(OSError, match=r"is in use by process .* delete .*\.lock\.marker"):
                enter()
    assert read_status(tmp_path).state == "finished"
    assert not (tmp_path / status.MARKER).exists()
    Reporter(tmp_path)
    assert read_status(tmp_path).state == "killed"


def test_a_status_of_a_stranger_is_text(tmp_path: Path) -> None:
    """No escape of it reaches the terminal."""
    clear = "\x1b[2J\x07\u202e"
    reporter = Reporter(tmp_path)
    reporter.policy(clear)
    reporter(clear, 1, 2, {clear: clear, "loss": 1.0})
    reporter.end("failed", clear + "\nsecond line")
    shown = describe(read_status(tmp_path))
    assert all(one.isprintable() or one == "\n" for one in shown)
    assert "\\x1b[2J\\x07\\u202e" in shown
    assert "second line" in shown


def test_a_status_that_was_changed_is_not_shown(tmp_path: Path) -> None:
    """Every digit of it, one at a time; a status of before carries no digest."""
    status.Reporter(tmp_path)("prior", 30, 100, {"loss": 0.5})
    path = tmp_path / status.FILE
    text = path.read_text()
    places = [place for place, one in enumerate(text) if one.isdigit()]
    assert len(places) > 40
    for place in places:
        path.write_text(f"{text[:place]}{(int(text[place]) + 5) % 10}{text[place + 1 :]}")
        with pytest.raises(ValueError, match="is damaged"):
            read_status(tmp_path)
    fields = {key: value for key, value in json.loads(text).items() if key != status.DIGEST}
    path.write_text(json.dumps(fields))
    assert read_status(tmp_path).step == 30


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_status_that_is_no_file_is_damaged(tmp_path: Path) -> None:
    """A pipe is not waited for, a device not read without an end, deep JSON not walked."""
    path = tmp_path / status.FILE
    for make in (
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_bytes(b" " * (status.LIMIT + 1)),
        os.mkdir,
    ):
        make(path)
        with pytest.raises(ValueError, match=r"\.status\.json is damaged"):
            read_status(tmp_path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_writes_at_most_once_a_second_but_never_misses_a_stage_or_its_end(
    tmp_path: Path, clock: list[float]
) -> None:
    reporter = Reporter(tmp_path)

    def written() -> tuple[str, int]:
        content = json.loads((tmp_path / status.FILE).read_text())
        return content["stage"], content["step"]

    seen = []
    for time, stage, step in (
        (0.1, "prior", 100),
        (0.2, "prior", 200),
        (1.3, "prior", 300),
        (1.4, "prior", 400),
        (1.5, "backend", 100),
    ):
        clock[0] = 1000 + time
        reporter(stage, step, 400 if stage == "prior" else 900, {})
        seen.append(written())
    assert seen == [
        ("prior", 100),
        ("prior", 100),
        ("prior", 300),
        ("prior", 400),
        ("backend", 100),
    ]


@pytest.mark.parametrize(
    ("error", "state", "says"),
    [
        (None, "finished", "finished 0 s ago"),
        (ValueError("no such thing"), "failed", "failed 0 s ago: no such thing"),
        (
            KeyboardInterrupt("prior stopped at step 7"),
            "stopped",
            "stopped 0 s ago: prior stopped at step 7",
        ),
    ],
)
def test_how_it_ended(error: BaseException | None, state: str, says: str, tmp_path: Path) -> None:
    def work() -> None:
        with hold(tmp_path) as reporter:
            reporter("prior", 5, 10, {})
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    found = read_status(tmp_path)
    assert (found.state, found.stage, found.step) == (state, "prior", 5)
    assert describe(found).splitlines()[0] == says


def test_a_full_disk_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last word cannot be written; the error that ended the run is the one that is raised,
    and the folder is free again.
    """

    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    def work() -> None:
        with hold(tmp_path):
            monkeypatch.setattr(status, "write_json", full)
            raise ValueError("what went wrong")

    with pytest.raises(ValueError, match="what went wrong"):
        work()
    assert read_status(tmp_path).state == "killed"


def test_a_killed_process_lets_go_and_is_known_to_be_gone(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from ddice.runs.status import hold\n"
    code += (
        "with hold(Path(sys.argv[1])) as reporter: reporter('prior', 5, 10, {}); "
        "os.kill(os.getpid(), 9)"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    found = read_status(tmp_path)
    assert (found.state, found.step) == ("killed", 5)
    assert "run the same command again to go on" in describe(found)
    with hold(tmp_path):
        assert read_status(tmp_path).state == "running"


def test_a_second_process_is_refused_and_readers_are_not(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with hold(run) as reporter:
        reporter("backend", 30, 90, {})
        for command in (
            ["train", *options(npz)],
            ["compare", *small.flags(npz, None, "recipe."), "--no-progress"],
        ):
            before = small.digests(run)
            assert main([*command, "--run", str(run)]) == 1
            assert (
                f"{run} is in use by process {os.getpid()}, which is at backend, step 30 of "
                "90: wait for it" in capsys.readouterr().err
            )
            assert small.digests(run) == before
        assert main(["status", str(run)]) == 0
        assert capsys.readouterr().out.startswith(f"running (process {os.getpid()})")
    assert main(["train", *options(npz), "--run", str(run)]) == 0


def test_a_second_process_is_refused_before_the_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are none, and it is not that which is said."""
    run = FOLDER[0]
    with hold(run):
        for command, prefix in (("train", ""), ("compare", "recipe.")):
            assert (
                main(
                    [
                        command,
                        f"--{prefix}data.source",
                        str(tmp_path / "missing.npz"),
                        "--run",
                        str(run),
                    ]
                )
                == 1
            )
            assert (
                f"{run} is in use by process {os.getpid()}, which is at its start"
                in capsys.readouterr().err
            )


def test_who_reads_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of a killed run is found by taking its lock for an instant; who starts in that
    instant gets it at the next try.
    """
    Reporter(tmp_path)
    reader = FileLock(tmp_path / status.LOCK)
    reader.acquire()
    tries: list[float] = []

    def sleep(seconds: float) -> None:
        tries.append(seconds)
        reader.release()

    monkeypatch.setattr("time.sleep", sleep)
    with hold(tmp_path):
        assert len(tries) == 1


def test_a_folder_of_somebody_else_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock cannot be opened."""
    Reporter(tmp_path)
    assert read_status(tmp_path).state == "killed"

    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", status.LOCK)

    monkeypatch.setattr(FileLock, "acquire", denied)
    assert read_status(tmp_path).state == "running"


def test_status_of_a_run_that_never_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 1
    assert (
        f"{tmp_path} holds no run: expected a folder that was given as --run"
        in capsys.readouterr().err
    )


def test_a_hook_hears_what_the_metrics_file_holds(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = FOLDER[0]
    assert main(["train", *options(npz), "--run", str(run), "--hook", "test_status:listen"]) == 0
    assert [(stage, step, steps) for stage, step, steps, *_ in HEARD] == [
        ("prior", 12, 12),
        ("backend", 10, 10),
        ("extractor", 8, 8),
    ]
    for stage, step, _, metrics, seen in HEARD:
        line = told(run / "metrics" / f"{stage}.jsonl")
        assert line == {"stage": stage, "step": step, **metrics}
        assert (seen.state, seen.stage, seen.step, seen.metrics) == (
            "running",
            stage,
            step,
            metrics,
        )
    capsys.readouterr()
    assert main(["status", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["stage"], found["step"], found["steps"]) == (
        "finished",
        "evaluation",
        2,
        2,
    )
    assert main(["train", *options(npz), "--run", str(run), "--hook", "test_status:nothing"]) == 1
    assert "hook = 'test_status:nothing' cannot be imported" in capsys.readouterr().err


def test_a_comparison_says_which_policy_it_is_at(npz: Path, tmp_path: Path) -> None:
    run = FOLDER[0]
    flags = [
        *small.flags(npz, None, "recipe."),
        "--recipe.data.env",
        small.SHORT,
        "--seeds",
        "0,1",
        "--recipe.evaluation.episodes",
        "1",
    ]
    flags += ["--no-progress", "--run", str(run), "--hook", "test_status:listen"]
    parts = {
        "extractors": {"weighted_bc": small.EXTRACTORS["weighted_bc"]},
        "backends": {"piecewise_f": small.FIELDS["backend"]},
    }
    config = tmp_path / "c.json"
    config.write_text(json.dumps(parts))
    assert main(["compare", "--config", str(config), *flags]) == 0
    assert [seen.policy for *_, seen in HEARD] == [
        "behaviour policy, seed 0: 1 of 4",
        "behaviour policy, seed 1: 2 of 4",
        *["piecewise_f + weighted_bc, seed 0: 3 of 4"] * 2,
        *["piecewise_f + weighted_bc, seed 1: 4 of 4"] * 2,
    ]


def test_episodes_that_are_over_are_steps_of_the_evaluation() -> None:
    """Two episodes at once, of two steps and of one."""
    told: list[tuple[str, int, int]] = []
    on_step = episodes_over(
        lambda stage, step, steps, metrics: told.append((stage, step, steps)), 2
    )
    for episode, step, over in ((0, 0, False), (1, 0, True), (0, 1, True)):
        on_step(Moment(episode, step, None, np.zeros(1), 0.0, None, None, over))
    assert told == [("evaluation", 0, 2), ("evaluation", 1, 2), ("evaluation", 2, 2)]
    told.clear()
    episodes_over(lambda stage, step, steps, metrics: told.append((stage, step, steps)), 0)
    assert told == []


def test_tensorboard_has_every_metric(npz: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = FOLDER[0]
    assert main(["train", *options(npz), "--run", str(run), "--tensorboard"]) == 0
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    expected = {}
    for stage in ("prior", "backend", "extractor"):
        record = told(run / "metrics" / f"{stage}.jsonl")
        expected |= {
            f"{stage}/{name}": (record["step"], value)
            for name, value in record.items()
            if name not in ("stage", "step")
        }
    assert set(events.Tags()["scalars"]) == set(expected)
    for name, (step, value) in expected.items():
        (event,) = events.Scalars(name)
        assert (event.step, event.value) == (step, pytest.approx(value, rel=1e-6))


def test_without_tensorboard_nothing_is_trained(
    npz: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", *options(npz), "--run", str(FOLDER[0]), "--tensorboard"]) == 1
    assert "pip install 'ddice[tensorboard]'" in capsys.readouterr().err
    assert not FOLDER[0].exists()
    assert main(["train", *options(npz), "--tensorboard"]) == 1
    assert "give --run" in capsys.readouterr().err


def test_what_is_measured_now_and_then_stays_with_its_step(
    tmp_path: Path, clock: list[float]
) -> None:
    reporter = Reporter(tmp_path)
    reporter("extractor", 100, 900, {"loss": 2.0, "evaluation/score": 40.0})
    reporter("extractor", 200, 900, {"loss": 1.5})
    reporter("extractor", 300, 900, {"loss": 1.25})
    assert reporter.status.earlier == {"evaluation/score": 100}
    assert describe(reporter.status).splitlines()[2:] == [
        f"{'loss':32}1.25",
        f"{'evaluation/score':32}40  at step 100",
    ]
    reporter("extractor", 400, 900, {"loss": 1.0, "evaluation/score": 50.0})
    assert reporter.status.metrics == {"loss": 1.0, "evaluation/score": 50.0}
    assert reporter.status.earlier == {}
    reporter("extractor", 500, 900, {"loss": 1.0})
    reporter("evaluation", 1, 5, {})
    assert (reporter.status.metrics, reporter.status.earlier) == ({}, {})
