"""A whole decision as one CUDA graph: its kernels are launched together, not one by one, so that
small batches do not wait for the host.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddice.policies.engines.base import Choice, Engine
from ddice.policies.engines.eager import EagerEngine

Call = Callable[[], None]
Capture = Callable[
    [Call], Call
]  # a call that reads and writes fixed tensors -> a call that does the same again
MakeRunner = Callable[[], EagerEngine]
WARM_UPS = (
    3  # calls before a capture: libraries choose their kernels and take their workspace in them
)


def buckets(batch_sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """The numbers of states that are prepared, ascending: those asked for, none above `most`."""
    return tuple(sorted({min(size, most) for size in batch_sizes}))


class CudaCapture:
    """Records a call as a CUDA graph, which keeps the memory that the call took."""

    _one_at_a_time = threading.Lock()

    def __init__(self) -> None:
        self._stream = (
            torch.cuda.Stream()
        )  # one for all recordings: cuBLAS takes a workspace for each stream

    def __call__(self, call: Call) -> Call:
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        with self._one_at_a_time:
            stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        call()
            # what a call that failed still does must be over before its tensors are used again
            finally:
                torch.cuda.current_stream().wait_stream(stream)
            # "thread_local": what other threads do on the device meanwhile does not end the
            # recording
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                call()
        return graph.replay


class Bucket(NamedTuple):
    """One recorded decision: its inputs (B, S), (B, K, A) and (B) or None, its choice, the call,
    and the runner, which may own buffers of it.
    """

    inputs: tuple[Tensor, Tensor, Tensor | None]
    choice: Choice
    replay: Call
    runner: EagerEngine


class GraphEngine(Engine):
    """Replays recorded decisions. A number of states without a recording of its own is padded to
    the next one; above all of them, the next power of two is recorded, once.

    `runner` makes the engine that is recorded, one for each recording.
    """

    name: ClassVar[str] = "graph"

    def __init__(
        self,
        runner: MakeRunner,
        capture: Capture,
        *,
        batch_sizes: Sequence[int],
        rows_per_call: int,
        device: torch.device,
    ):
        super().__init__(rows_per_call)
        self._runner, self._capture, self.device = runner, capture, device
        self._buckets: dict[tuple[int, bool], Bucket] = {}
        self._done = (
            torch.cuda.Event() if device.type == "cuda" else None
        )  # of the last call: the next may come on another stream
        decision = runner().decision
        self._sampled = decision.selection.samples  # others read no uniform numbers
        self._shapes = (decision.observations,), (decision.candidates, decision.actions), ()
        self._sizes = buckets(batch_sizes, max(batch_sizes))
        for size in reversed(self._sizes):
            noise = torch.zeros(
                size, decision.candidates, decision.actions, device=device, dtype=torch.float32
            )
            for uniform in (None, noise.new_zeros(size)) if self._sampled else (None,):
                self.decide(noise.new_zeros(size, decision.observations), noise, uniform)

    def free(self) -> None:
        if self._done is not None:
            torch.cuda.synchronize(self.device)  # nothing that is let go of may still be read
        self._buckets.clear()

    def place(self, tensor: Tensor, device: torch.device) -> Tensor:
        """On the device of the recordings; from the host through pinned memory of its own,
        without waiting.
        """
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return (
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True, device="cpu")
                .copy_(tensor)
                .to(self.device, non_blocking=True)
            )
        return tensor.to(self.device)

    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        if self._done is None:
            return self._run(observations, noise, uniform)
        with torch.cuda.device(self.device):
            self._done.wait()
            choice = self._run(observations, noise, uniform)
            self._done.record()
        return choice

    def _run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        inputs = observations, noise, uniform if self._sampled else None
        for given, shape in zip(inputs, self._shapes, strict=True):
            if given is not None and given.shape[1:] != shape:
                raise ValueError(
                    f"expected a tensor of shape {(len(given), *shape)}, got {tuple(given.shape)}"
                )
        states, most = (
            len(noise),
            max(1, self.rows_per_call // noise.shape[1]),
        )  # never more states than that
        if states > self._sizes[-1]:
            self._sizes = (*self._sizes, 2 ** (states - 1).bit_length())
        bucket = self._bucket(
            next(size for size in buckets(self._sizes, most) if size >= states), *inputs
        )
        for buffer, given in zip(bucket.inputs, inputs, strict=True):
            if buffer is not None and given is not None:
                buffer[:states].copy_(given)
        bucket.replay()
        return Choice(*(tensor[:states].clone() for tensor in bucket.choice))

    def _bucket(
        self, size: int, observations: Tensor, noise: Tensor, uniform: Tensor | None
    ) -> Bucket:
        """The recording for so many states, with or without random numbers for the selection;
        made where it is missing.
        """
        key = size, uniform is not None
        if key not in self._buckets:
            inputs = (
                observations.new_zeros(size, *observations.shape[1:]),
                noise.new_zeros(size, *noise.shape[1:]),
                None if uniform is None else uniform.new_zeros(size),
            )
            runner = self._runner()
            choice = Choice(
                torch.empty_like(inputs[1][:, 0]),
                torch.empty_like(inputs[1]),
                inputs[1].new_empty(size, dtype=torch.int64),
            )

            def call() -> None:
                for buffer, value in zip(choice, runner.run(*inputs), strict=True):
                    buffer.copy_(value)

            self._buckets[key] = Bucket(inputs, choice, self._capture(call), runner)
        return self._buckets[key]
