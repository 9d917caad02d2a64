"""What goes wrong outside: full disks, folders that cannot be written, signals, damaged files.
Nothing is lost, nothing damaged is trusted.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from ddice import load_policy
from ddice.cli import main
from ddice.core.storage import load_tensors, save_tensors
from ddice.parts import loop
from ddice.parts.loop import Checkpoint, MetricsFile
from ddice.runs.status import read_status

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")
KILL_AT = ("extractor", 4)


def terminate(stage: str, step: int, steps: int, metrics: dict[str, Any]) -> None:
    """A hook that sends this process SIGTERM in the middle of a stage."""
    if (stage, step) == KILL_AT:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ddice.cli.train.plot_metrics", lambda *_: True)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


def options(npz: Path, run: Path) -> list[str]:
    return [
        "train",
        *small.flags(npz),
        "--data.env",
        small.ENV,
        "--evaluation.episodes",
        "0",
        "--device",
        "cpu",
        "--no-progress",
        "--run",
        str(run),
    ]


def flip(path: Path, offset: int) -> None:
    """One bit, counted from the end where the tensors are."""
    content = bytearray(path.read_bytes())
    content[-offset] ^= 4
    path.write_bytes(content)


@pytest.mark.gate
def test_sigterm_saves_says_how_to_go_on_and_exits_with_143(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process of its own, stopped in its last stage; going on ends as if nothing had happened,
    bit for bit.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = [
        sys.executable,
        "-m",
        "ddice.cli",
        *options(npz, cut),
        "--checkpoint-every",
        "4",
        "--hook",
        "test_faults:terminate",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        # As many threads as here: how sums are split decides about their last bits.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    stopped = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert stopped.returncode == 143, stopped.stderr
    assert "extractor stopped at step 5: saved in" in stopped.stderr
    assert "run the same command again to go on" in stopped.stderr
    assert read_status(cut).state == "stopped"
    steps: list[int] = []
    update = loop.run

    def spy(step_function: Any, thing: Any, **named: Any) -> None:
        update(lambda step: (steps.append(step), step_function(step))[1], thing, **named)

    monkeypatch.setattr(loop, "run", spy)
    assert main(options(npz, cut)) == 0
    assert steps == [5, 6, 7]
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "other"))
    assert main(options(npz, whole)) == 0
    assert small.digests(cut / "policy") == small.digests(whole / "policy")


@pytest.mark.parametrize("failing", [1, 3])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write number `failing` fails half way: what was there stays, no scrap is left, and the
    message names file and remedy.
    """

    class Counter:
        value = torch.zeros(1000)

        def state(self) -> dict[str, torch.Tensor]:
            return {"value": self.value}

        def load_state(self, state: Any) -> None:
            self.value = state["value"]

        def step(self, number: int) -> dict[str, torch.Tensor]:
            self.value = self.value + 1
            return {"loss": self.value.mean()}

    writes, sync = [], os.fsync

    def full(descriptor: int) -> None:
        writes.append(descriptor)
        if len(writes) == failing:
            os.ftruncate(descriptor, 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    checkpoint, thing = Checkpoint(tmp_path / "checkpoint", "mine"), Counter()
    with pytest.raises(
        OSError, match="No space left on device; what was there before is unchanged"
    ) as caught:
        loop.run(
            thing.step,
            thing,
            start=0,
            stop=50,
            name="toy",
            progress=False,
            checkpoint=checkpoint,
            checkpoint_every=10,
        )
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(checkpoint.path)
    assert [path.name for path in tmp_path.iterdir()] == (["checkpoint"] if failing > 1 else [])
    again = Counter()
    assert checkpoint.load(again) == (None if failing == 1 else 10 * (failing - 1))
    assert torch.equal(again.value, torch.full((1000,), 10.0 * (failing - 1)))


class Full:
    """A file on a full disk: it takes half of what is written, and then no more."""

    def __init__(self, file: Any):
        self.file = file

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, text: str) -> None:
        self.file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_in_the_middle_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of metrics: the message names the file, no line before is lost, and the half one goes when
    the run goes on.
    """
    path = tmp_path / "metrics" / "prior.jsonl"
    metrics = MetricsFile(path, "prior")
    metrics.write(100, {"loss": 1.5})
    opened = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r": Full(opened(self, mode)))
        with pytest.raises(
            OSError,
            match=r"No space left on device; what was there before is unchanged\. Free space",
        ) as caught:
            metrics.write(200, {"loss": 1.25})
    assert caught.value.filename == str(path)
    first = '{"stage": "prior", "step": 100, "loss": 1.5}\n'
    assert path.read_text().startswith(first)
    assert path.read_text() > first
    with pytest.warns(UserWarning, match=r"prior\.jsonl, line 2 cannot be read and is removed"):
        metrics.rewind(100)
    metrics.write(200, {"loss": 1.25})
    assert path.read_text() == first + '{"stage": "prior", "step": 200, "loss": 1.25}\n'


def test_lines_of_metrics_that_say_nothing_are_named_and_removed(tmp_path: Path) -> None:
    good = [b'{"stage": "prior", "step": 100}', b'{"stage": "other", "step": 900}']
    bad = [b"[1]", b'{"stage": 3, "step": 1}', b'{"step": 1}', b"[" * 100_000, b"\xff", b'{"st']
    path = tmp_path / "prior.jsonl"
    path.write_bytes(b"\n".join([*bad, *good, b'{"stage": "prior", "step": 200}']) + b"\n")
    with pytest.warns(UserWarning, match="cannot be read and is removed") as said:
        MetricsFile(path, "prior").rewind(100)
    assert [str(one.message).partition(" cannot")[0] for one in said] == [
        f"{path}, line {number}" for number in range(1, len(bad) + 1)
    ]
    assert path.read_bytes().splitlines() == good


def test_a_cache_that_cannot_be_written(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file lies where its folder should be: the message names the place and the remedy, and
    nothing lies in the way of the next try.
    """
    (tmp_path / "file").write_text("mine")
    with monkeypatch.context() as patch:
        patch.setenv("DDICE_CACHE", str(tmp_path / "file"))
        assert main(options(npz, tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert "choose another folder, then run the command again" in error
    assert str(tmp_path / "file" / "prior") in error
    assert (tmp_path / "file").read_text() == "mine"
    assert read_status(tmp_path / "run").state == "failed"
    assert main(options(npz, tmp_path / "run")) == 0


def test_a_run_folder_that_cannot_be_made(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file lies where the folder should be; nothing is trained."""
    (tmp_path / "file").write_text("mine")
    command = options(npz, tmp_path / "file" / "run")
    assert main([*command, "--preset", "default"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write into the run folder {tmp_path / 'file' / 'run'}")
    assert "give another --run" in error
    assert not list((tmp_path / "cache").glob("prior/*"))
    assert (tmp_path / "file").read_text() == "mine"


def test_one_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    """A bit of every byte of a small file: of its tensors, of their names and shapes, and of
    what is said about them, such as the step.
    """
    path = tmp_path / "a.safetensors"
    save_tensors(
        path,
        "part",
        {"a": torch.arange(5.0), "b": torch.arange(2)},
        {"identity": "mine", "step": 30},
    )
    assert load_tensors(path, "part")[1] == {
        "kind": "part",
        "schema": 1,
        "identity": "mine",
        "step": 30,
    }
    good, noticed = path.read_bytes(), 0
    for byte in range(len(good)):
        content = bytearray(good)
        content[byte] ^= 1 << byte % 8
        path.write_bytes(content)
        with pytest.raises(
            ValueError,
            match=r"damaged|cannot be read|not one of ddice|expected .* to hold a part|has schema",
        ):
            load_tensors(path, "part")
        noticed += 1
    assert noticed > 300


def test_a_damaged_part_of_the_cache_is_made_again_and_that_is_said(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(npz, tmp_path / "first")) == 0
    (state,) = (tmp_path / "cache" / "backend").glob("*/state.safetensors")
    good = state.read_bytes()
    flip(state, 500)
    capsys.readouterr()
    assert main(options(npz, tmp_path / "second")) == 0
    said = capsys.readouterr().out
    assert "backend: made again, because what the cache holds is damaged" in said
    assert "prior: found trained" in said
    assert state.read_bytes() == good
    assert small.digests(tmp_path / "second" / "policy") == small.digests(
        tmp_path / "first" / "policy"
    )


def test_a_damaged_policy_is_not_loaded(npz: Path, tmp_path: Path) -> None:
    assert main(options(npz, tmp_path / "run")) == 0
    flip(tmp_path / "run" / "policy" / "policy.safetensors", 50)
    with pytest.raises(ValueError, match="is damaged"):
        load_policy(tmp_path / "run" / "policy")
