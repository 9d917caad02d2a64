from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddice.core import randomness
from ddice.parts.loop import Checkpoint, MetricsFile, TrainingDiverged, resolve_device, run


class Toy:
    """Momentum descent towards a target that moves at random: each step depends on the state and
    on the step's own noise.
    """

    def __init__(self) -> None:
        self.x, self.momentum = torch.ones(3), torch.zeros(3)
        self.steps: list[int] = []

    def step(self, step: int) -> dict[str, Tensor]:
        self.steps.append(step)
        gradient = self.x - randomness.randn(0, "target", step, (3,))
        self.momentum = 0.9 * self.momentum + gradient
        self.x = self.x - 0.01 * self.momentum
        return {"loss": gradient.square().sum(), "each": gradient.abs()}

    def state(self) -> dict[str, Tensor]:
        return {"x": self.x, "momentum": self.momentum}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.x, self.momentum = state["x"].clone(), state["momentum"].clone()


STEPS = 60


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, list[dict]]:
    """The state after all steps, and the metrics on the way, of a run that nothing disturbs."""
    toy, path = Toy(), tmp_path_factory.mktemp("loop") / "metrics.jsonl"
    run(
        toy.step,
        toy,
        start=0,
        stop=STEPS,
        name="toy",
        progress=False,
        metrics=MetricsFile(path, "toy"),
        log_every=5,
    )
    return toy, records(path)


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def go(toy: Toy, folder: Path, step=None, **options) -> None:
    """The same run with a checkpoint every 10 steps and metrics every 5, both in `folder`."""
    settings = {
        "checkpoint_every": 10,
        "log_every": 5,
        "start": 0,
        "stop": STEPS,
        "progress": False,
        **options,
    }
    checkpoint = Checkpoint(folder / "checkpoint", "toy")
    run(
        step or toy.step,
        toy,
        name="toy",
        checkpoint=checkpoint,
        metrics=MetricsFile(folder / "metrics.jsonl", "toy"),
        **settings,
    )


def assert_same(toy: Toy, folder: Path, uninterrupted: tuple[Toy, list[dict]]) -> None:
    expected, metrics = uninterrupted
    assert torch.equal(toy.x, expected.x)
    assert torch.equal(toy.momentum, expected.momentum)
    assert records(folder / "metrics.jsonl") == metrics


def failing(toy: Toy, at: int):
    def step(number: int) -> dict[str, Tensor]:
        if number == at:
            raise RuntimeError("the machine is gone")
        return toy.step(number)

    return step


def test_metrics_are_written_at_the_log_points(uninterrupted: tuple[Toy, list[dict]]) -> None:
    toy, metrics = uninterrupted
    assert toy.steps == list(range(STEPS))
    assert [record["step"] for record in metrics] == list(range(5, STEPS + 1, 5))
    assert {record["stage"] for record in metrics} == {"toy"}
    again = Toy()
    losses = [again.step(step) for step in range(STEPS)]
    for record in metrics:
        assert record["loss"] == losses[record["step"] - 1]["loss"].item()
        assert record["each"] == losses[record["step"] - 1]["each"].tolist()


@pytest.mark.parametrize("at", [0, 3, 10, 37, 59])
def test_a_run_that_breaks_goes_on_from_its_checkpoint(
    at: int, tmp_path: Path, uninterrupted: tuple[Toy, list[dict]]
) -> None:
    broken = Toy()
    with pytest.raises(RuntimeError, match="gone"):
        go(broken, tmp_path, failing(broken, at))
    toy = Toy()
    go(toy, tmp_path)
    assert toy.steps == list(range(at - at % 10, STEPS))
    assert_same(toy, tmp_path, uninterrupted)


def test_kill_and_resume(tmp_path: Path, uninterrupted: tuple[Toy, list[dict]]) -> None:
    code = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_loop import Toy, go
toy = Toy()
def step(number):
    if number == 37:
        os.kill(os.getpid(), signal.SIGKILL)
    return toy.step(number)
go(toy, Path(sys.argv[2]), step)
"""
    process = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert [record["step"] for record in records(tmp_path / "metrics.jsonl")][
        -1
    ] == 35  # five steps past the checkpoint
    toy = Toy()
    go(toy, tmp_path)
    assert toy.steps[0] == 30
    assert_same(toy, tmp_path, uninterrupted)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
@pytest.mark.parametrize("at", [0, 23, STEPS - 1])
def test_a_signal_stops_between_two_steps_and_loses_nothing(
    number: signal.Signals,
    error: type[BaseException],
    at: int,
    tmp_path: Path,
    uninterrupted: tuple[Toy, list[dict]],
) -> None:
    toy = Toy()

    def step(current: int) -> dict[str, Tensor]:
        if current == at:
            os.kill(os.getpid(), number)
        return toy.step(current)

    before = signal.getsignal(number)
    with pytest.raises(
        error,
        match=(
            rf"toy stopped at step {at + 1}: saved in .*checkpoint; run the same command again "
            r"to go on"
        ),
    ):
        go(toy, tmp_path, step)
    assert signal.getsignal(number) is before
    assert toy.steps[-1] == at
    toy = Toy()
    go(toy, tmp_path)
    assert toy.steps == list(range(at + 1, STEPS))
    assert_same(toy, tmp_path, uninterrupted)


@pytest.mark.parametrize("at", [20, STEPS])
def test_a_signal_while_saving_is_not_lost_and_not_misreported(
    at: int, tmp_path: Path, uninterrupted: tuple[Toy, list[dict]]
) -> None:
    """It comes after the loop has looked for signals: the message may only name a step whose
    state is in the file.
    """

    class Interrupted(Toy):
        saves = 0

        def state(self) -> dict[str, Tensor]:
            self.saves += 1
            if self.saves == at // 10:
                os.kill(os.getpid(), signal.SIGINT)
            return super().state()

    toy = Interrupted()
    with pytest.raises(KeyboardInterrupt, match=rf"stopped at step {min(at + 1, STEPS)}: saved"):
        go(toy, tmp_path)
    assert Checkpoint(tmp_path / "checkpoint", "toy").load(Toy()) == min(at + 1, STEPS)
    toy = Toy()
    go(toy, tmp_path)
    assert_same(toy, tmp_path, uninterrupted)


def test_a_signal_while_metrics_are_written_is_saved_before_it_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = MetricsFile.write

    def interrupted(self: MetricsFile, step: int, values: Mapping) -> None:
        if step == 25:
            os.kill(os.getpid(), signal.SIGINT)
        write(self, step, values)

    monkeypatch.setattr(MetricsFile, "write", interrupted)
    toy = Toy()
    with pytest.raises(KeyboardInterrupt, match="saved"):
        go(toy, tmp_path)
    saved = Toy()
    assert Checkpoint(tmp_path / "checkpoint", "toy").load(saved) == len(toy.steps)
    assert torch.equal(saved.x, toy.x)


def test_a_second_interrupt_acts_at_once(tmp_path: Path) -> None:
    toy, reached = Toy(), []

    def step(current: int) -> dict[str, Tensor]:
        if current == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(current)
        return toy.step(current)

    with pytest.raises(KeyboardInterrupt):
        go(toy, tmp_path, step)
    assert not reached


def test_an_interrupt_without_a_checkpoint_says_so() -> None:
    toy = Toy()

    def step(current: int) -> dict[str, Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return toy.step(current)

    with pytest.raises(
        KeyboardInterrupt, match="toy stopped at step 1: no checkpoint was asked for"
    ):
        run(step, toy, start=0, stop=5, name="toy", progress=False)


def test_outside_the_main_thread(tmp_path: Path, uninterrupted: tuple[Toy, list[dict]]) -> None:
    """Signal handlers can be set in the main thread only; elsewhere the loop leaves them alone."""
    toy = Toy()
    thread = threading.Thread(target=go, args=(toy, tmp_path))
    thread.start()
    thread.join()
    assert_same(toy, tmp_path, uninterrupted)


@pytest.mark.parametrize(
    "bad",
    [torch.tensor(torch.nan), torch.tensor(torch.inf), torch.tensor([1.0, -torch.inf])],
    ids=["nan", "inf", "one seed"],
)
def test_a_metric_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    bad: Tensor, tmp_path: Path
) -> None:
    """It turns bad between two log points: what was saved before stays, nothing is saved after,
    nothing is logged.
    """
    toy = Toy()

    def step(current: int) -> dict[str, Tensor]:
        values = toy.step(current)
        return {**values, "td_error": bad} if current >= 17 else values

    message = (
        r"toy: td_error is .* at step 19; the last good checkpoint is .*checkpoint\. Usual "
        r"causes: a learning rate"
    )
    with pytest.raises(TrainingDiverged, match=message):
        go(toy, tmp_path, step, log_every=10)
    assert toy.steps[-1] == 19
    assert [record["step"] for record in records(tmp_path / "metrics.jsonl")] == [10]
    saved, good = Toy(), Toy()
    assert Checkpoint(tmp_path / "checkpoint", "toy").load(saved) == 10
    for current in range(10):
        good.step(current)
    assert torch.equal(saved.x, good.x)


def test_metrics_are_checked_before_every_save(tmp_path: Path) -> None:
    toy = Toy()
    with pytest.raises(TrainingDiverged, match="at step 9; no checkpoint was written yet"):
        go(toy, tmp_path, lambda step: {"loss": torch.tensor(torch.nan)}, log_every=1000)
    assert not (tmp_path / "checkpoint").exists()


def test_metrics_are_looked_at_only_when_needed() -> None:
    """Between the log points the loop never waits for the device."""
    looked: list[int] = []

    class Watched(dict):
        def items(self):
            looked.append(toy.steps[-1])
            return super().items()

    toy, seen = Toy(), list[int]()
    options = {"start": 0, "stop": 25, "name": "toy", "progress": False, "log_every": 10}
    run(
        lambda step: Watched(toy.step(step)),
        toy,
        on_step=lambda step, _: seen.append(step),
        **options,
    )
    assert looked == [9, 19, 24]
    assert seen == list(range(25))


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    toy = Toy()
    go(toy, tmp_path, stop=10)
    content = (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(
        ValueError,
        match=(
            r"belongs to another run: its configuration, data, seed or number of steps "
            r"differs\. Give another path, or"
        ),
    ):
        run(
            toy.step,
            toy,
            start=0,
            stop=20,
            name="toy",
            progress=False,
            checkpoint=Checkpoint(tmp_path / "checkpoint", "other"),
        )
    assert toy.steps == list(range(10))
    assert (tmp_path / "checkpoint").read_bytes() == content


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    go(Toy(), tmp_path, stop=10)
    (tmp_path / "checkpoint").write_bytes((tmp_path / "checkpoint").read_bytes()[:-3])
    toy = Toy()
    with pytest.raises(ValueError, match="truncated"):
        go(toy, tmp_path)
    assert not toy.steps


def test_a_full_disk_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: tuple[Toy, list[dict]]
) -> None:
    toy, replace = Toy(), os.replace

    def full(source: str, target: str) -> None:
        if toy.steps[-1] >= 25:
            raise OSError("No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        go(toy, tmp_path)
    monkeypatch.undo()
    toy = Toy()
    go(toy, tmp_path)
    assert toy.steps[0] == 20
    assert_same(toy, tmp_path, uninterrupted)


def test_a_finished_run_does_nothing(tmp_path: Path, uninterrupted: tuple[Toy, list[dict]]) -> None:
    go(Toy(), tmp_path)
    toy = Toy()
    go(toy, tmp_path)
    assert not toy.steps
    assert_same(toy, tmp_path, uninterrupted)


def test_a_run_can_be_made_longer(tmp_path: Path, uninterrupted: tuple[Toy, list[dict]]) -> None:
    go(Toy(), tmp_path, stop=20)
    toy = Toy()
    go(toy, tmp_path)
    assert toy.steps == list(range(20, STEPS))
    assert_same(toy, tmp_path, uninterrupted)


def test_a_start_past_the_checkpoint_wins(tmp_path: Path) -> None:
    """Training that goes on in memory is not thrown back."""
    toy = Toy()
    run(
        toy.step,
        toy,
        start=40,
        stop=45,
        name="toy",
        progress=False,
        checkpoint=Checkpoint(tmp_path / "checkpoint", "toy"),
    )
    assert toy.steps == list(range(40, 45))
    assert Checkpoint(tmp_path / "checkpoint", "toy").load(Toy()) == 45


@pytest.fixture
def half_written(tmp_path: Path) -> Path:
    broken = Toy()
    with pytest.raises(RuntimeError):
        go(broken, tmp_path, failing(broken, 37))
    return tmp_path / "metrics.jsonl"


@pytest.mark.parametrize(
    "rest", ['{"stage": "toy", "st', "", "\x00\x00"], ids=["half a line", "nothing", "zeros"]
)
def test_a_half_written_last_line_is_dropped(
    rest: str, half_written: Path, uninterrupted: tuple[Toy, list[dict]]
) -> None:
    with half_written.open("a") as file:
        file.write(rest)
    toy = Toy()
    go(toy, half_written.parent)
    assert_same(toy, half_written.parent, uninterrupted)


def test_a_lost_newline_does_not_join_two_lines(
    half_written: Path, uninterrupted: tuple[Toy, list[dict]]
) -> None:
    lines = half_written.read_text().splitlines()[:6]  # up to step 30, the step of the checkpoint
    half_written.write_text("\n".join(lines))
    toy = Toy()
    go(toy, half_written.parent)
    assert_same(toy, half_written.parent, uninterrupted)


def test_lines_of_other_stages_stay(tmp_path: Path, uninterrupted: tuple[Toy, list[dict]]) -> None:
    other = {"stage": "prior", "step": 999, "loss": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(other) + "\n")
    broken = Toy()
    with pytest.raises(RuntimeError):
        go(broken, tmp_path, failing(broken, 37))
    go(Toy(), tmp_path)
    assert records(tmp_path / "metrics.jsonl") == [other, *uninterrupted[1]]


def test_the_progress_bar_shows_where_a_resumed_run_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(Toy(), tmp_path, stop=30, progress=True)
    assert "30/30" in capsys.readouterr().err
    go(Toy(), tmp_path, stop=30, progress=False)
    assert capsys.readouterr().err == ""


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


def test_a_cuda_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for device in ("cuda", "cuda:1", torch.device("cuda")):
        with pytest.raises(ValueError, match=r'sees no CUDA device: use device="auto" or "cpu"'):
            resolve_device(device)
