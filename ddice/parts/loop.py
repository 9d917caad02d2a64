"""The one training loop: progress, metrics, checkpoints, resume. It knows only things with
`state` and `load_state`, and a step to call.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ddice.core.reading import parse_json, read_bytes
from ddice.core.storage import append_line, load_tensors, save_tensors, write_bytes
from ddice.parts.watcher import Watcher, WatcherFailed, due

Metrics = Mapping[str, Tensor]
OnStep = Callable[[int, Metrics], None]
# stage, steps done, of steps, metrics as numbers
Listener = Callable[[str, int, int, Mapping[str, Any]], None]
CHECKPOINT = "checkpoint"
# in the metrics of a look: who looked, and what its numbers depend on beyond the training
WATCHER, IDENTITY = "watcher", "identity"
# Two numbers for each of a dozen metrics every 100 steps: a million steps take 20 MB.
METRICS_LIMIT = 1 << 30
# beside the bar; the metrics file has all
SHOWN = (
    "loss", "v_loss", "mean_ratio", "effective_sample_size", "temperature", "evaluation/score",
)  # fmt: skip


class Stateful(Protocol):
    """What the loop can checkpoint: all tensors out, all tensors in."""

    def state(self) -> dict[str, Tensor]: ...

    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


class Terminated(SystemExit):
    """SIGTERM came, and all was saved. The exit status is what a shell expects of that signal."""

    def __init__(self, message: str):
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


class TrainingDiverged(RuntimeError):
    """A metric is no longer finite; the last good checkpoint, if there is one, is kept."""


class Checkpoint:
    """One file that holds the state of a run of the loop and whom it belongs to (`identity`: any
    change of it makes the file foreign).
    """

    def __init__(self, path: str | Path, identity: str):
        self.path = Path(path)
        self.identity = identity

    def load(self, thing: Stateful) -> int | None:
        """Restore `thing` and return its step; None when there is no file. Raises ValueError for a
        truncated or foreign file.
        """
        if not self.path.exists():
            return None
        tensors, meta = load_tensors(self.path, CHECKPOINT)
        if meta["identity"] != self.identity:
            raise ValueError(
                f"{self.path} belongs to another run: its configuration, data, seed or number "
                "of steps differs. Give another path, or delete it to start anew"
            )
        thing.load_state(tensors)
        return int(meta["step"])

    def save(self, thing: Stateful, step: int) -> None:
        save_tensors(
            self.path, CHECKPOINT, thing.state(), {"identity": self.identity, "step": step}
        )


class MetricsFile:
    """JSON lines, one per log point and one per look of a watcher, which it names; after a resume,
    lines past the resumed step are removed so that none is there twice. A line that cannot be read
    goes too, and is named in a warning.

    beside: a copy that lies beside the checkpoint, so that who goes on from there in another folder
    has the whole history: where there is one, it counts.
    """

    def __init__(self, path: Path, stage: str, beside: Path | None = None):
        self.path = path
        self.stage = stage
        self.beside = beside

    @property
    def _files(self) -> tuple[Path, ...]:
        """The one that counts first."""
        return (self.path,) if self.beside is None else (self.beside, self.path)

    def rewind(self, step: int) -> None:
        """Keep what was written up to a step."""
        found = next((path for path in self._files if path.exists()), None)
        if found is None:
            return
        kept = self._kept(found, step)
        for path in self._files:
            if not path.exists() or read_bytes(path, METRICS_LIMIT) != kept:
                write_bytes(path, kept)

    def _kept(self, path: Path, step: int) -> bytes:
        content = read_bytes(path, METRICS_LIMIT)
        kept = []
        for number, line in enumerate(content.splitlines(), 1):
            try:
                stage, done = read_place(parse_json(line))
            except ValueError as error:
                warnings.warn(
                    f"{path}, line {number} cannot be read and is removed ({error}): the last "
                    "line of a killed run may be half a line, which is written again",
                    UserWarning,
                    stacklevel=3,
                )
                continue
            # Metrics are written more often than checkpoints: what lies past the checkpoint is done
            # again.
            if stage != self.stage or done <= step:
                kept.append(line + b"\n")
        return b"".join(kept)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        line = json.dumps({"stage": self.stage, "step": step, **values})
        for path in self._files:
            append_line(path, line)

    def write_look(self, step: int, watcher: Watcher, values: Mapping[str, float]) -> None:
        """A line of its own, so that the other lines are those of a run that nobody watches."""
        self.write(step, {WATCHER: watcher.name, IDENTITY: watcher.identity, **values})


def read_place(record: Any) -> tuple[str, int]:
    """The stage and the step of a line of metrics. Raises ValueError for one that names none."""
    fields = record if isinstance(record, dict) else {}
    stage, step = fields.get("stage"), fields.get("step")
    if not isinstance(stage, str) or not isinstance(step, int):
        raise ValueError("it names no stage and step")
    return stage, step


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM, so that the loop stops between two steps; a second Ctrl-C acts
    at once.
    """
    received: list[int] = []
    # Python lets only the main thread set signal handlers.
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handler(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


def _as_numbers(metrics: Metrics) -> dict[str, Any]:
    return {name: value.tolist() if value.ndim else value.item() for name, value in metrics.items()}


def _beside_the_bar(numbers: Mapping[str, Any]) -> dict[str, str]:
    return {key: f"{numbers[key]:.3g}" for key in SHOWN if isinstance(numbers.get(key), float)}


def _kept(checkpoint: Checkpoint | None) -> str:
    if checkpoint and checkpoint.path.exists():
        return f"the last good checkpoint is {checkpoint.path}"
    return "no checkpoint was written yet"


def _look(
    watcher: Watcher, name: str, step: int, checkpoint: Checkpoint | None
) -> dict[str, float]:
    """The numbers of a look, by their full names. Raises WatcherFailed for whatever goes wrong."""
    try:
        found = {f"{watcher.name}/{key}": float(n) for key, n in watcher.look(step).items()}
        if unknown := [key for key, number in found.items() if not math.isfinite(number)]:
            raise ValueError(f"{unknown[0]} is {found[unknown[0]]}, expected a finite number")
    except Exception as error:
        raise WatcherFailed(
            f"{name}: the watcher {watcher.name!r} failed at step {step} "
            f"({type(error).__name__}: {error}); {_kept(checkpoint)}. The same call goes on from "
            "there and looks again"
        ) from error
    return found


def _check_finite(
    values: Mapping[str, Any], name: str, step: int, checkpoint: Checkpoint | None
) -> None:
    for metric, value in values.items():
        each = value if isinstance(value, list) else [value]  # one per seed
        if not all(math.isfinite(number) for number in each):
            raise TrainingDiverged(
                f"{name}: {metric} is {value} at step {step}; {_kept(checkpoint)}. Usual causes: a "
                "learning rate that is too high, a temperature that is too low for the scale of "
                "the rewards, or a divergence whose ratios explode (try 'piecewise' or "
                "'soft_chi2')"
            )


def _stop(number: int, name: str, step: int, checkpoint: Checkpoint | None) -> None:
    kept = (
        f"saved in {checkpoint.path}; run the same command again to go on"
        if checkpoint
        else "no checkpoint was asked for"
    )
    message = f"{name} stopped at step {step}: {kept}"
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise Terminated(message)


def run(
    step_function: Callable[[int], Metrics],
    thing: Stateful,
    *,
    start: int,
    stop: int,
    name: str,
    progress: bool = True,
    on_step: OnStep | None = None,
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 1000,
    metrics: MetricsFile | None = None,
    log_every: int = 100,
    listeners: Sequence[Listener] = (),
    watchers: Sequence[Watcher] = (),
) -> None:
    """Call `step_function(step)` for step = start .. stop - 1, going on from the checkpoint if its
    file exists.

    Metrics are looked at (which waits for the device) every `log_every` steps only, and when a
    watcher looks: all must be finite, and a checkpoint is written only after they were. `listeners`
    are called at the same times. Ctrl-C and SIGTERM stop between two steps, after a checkpoint.
    Raises TrainingDiverged for a metric that is not finite, WatcherFailed where a watcher raises:
    what was trained since the last checkpoint is then done again, and its look too.
    """
    resumed = None if checkpoint is None else checkpoint.load(thing)
    if resumed is not None:
        start = resumed
    if metrics is not None:
        metrics.rewind(start)
    bar = tqdm(
        total=stop,
        initial=min(start, stop),
        desc=name,
        unit="step",
        disable=not progress,
        mininterval=0.5,
        dynamic_ncols=True,
    )
    shown: dict[str, str] = {}
    with bar, _deferred_signals() as signals:
        for step in range(start, stop):
            values = step_function(step)
            bar.update()
            if on_step is not None:
                on_step(step, values)
            done = step + 1
            # Read once: a signal that comes while saving acts after the next step, or at the end.
            stopping = bool(signals)
            logging = done % log_every == 0 or done == stop
            saving = checkpoint is not None and (
                done % checkpoint_every == 0 or done == stop or stopping
            )
            looking = [watcher for watcher in watchers if due(watcher, done, stop)]
            if logging or saving or looking:
                numbers = _as_numbers(values)
                _check_finite(numbers, name, step, checkpoint)
                # Before the checkpoint: after a kill between the two, `rewind` drops the surplus
                # lines. In the other order a line would be missing for good.
                if metrics is not None and logging:
                    metrics.write(done, numbers)
                for watcher in looking:
                    seen = _look(watcher, name, done, checkpoint)
                    if metrics is not None:
                        metrics.write_look(done, watcher, seen)
                    numbers |= seen
                shown |= _beside_the_bar(numbers)
                bar.set_postfix(shown, refresh=False)
                for listener in listeners:
                    listener(name, done, stop, numbers)
            if saving:
                assert checkpoint is not None
                checkpoint.save(thing, done)
            if stopping:
                _stop(signals[0], name, done, checkpoint)
        if signals:
            _stop(signals[0], name, stop, checkpoint)


def resolve_device(device: str | torch.device) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU. Raises ValueError for an unknown device,
    and for a CUDA device that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f'expected a device such as "auto", "cpu", "cuda" or "cuda:1", got {device!r}'
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            'device "cuda" was asked for, but this PyTorch sees no CUDA device: use '
            'device="auto" or "cpu"'
        )
    return device
