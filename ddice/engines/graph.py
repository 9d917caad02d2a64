"""A whole decision as one CUDA graph: its kernels are launched together, not one by one, so that small batches do not wait for the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddice.engines.base import Choice, Engine
from ddice.engines.eager import EagerEngine

Call = Callable[[], None]
Capture = Callable[[Call], Call]  # a call that reads and writes fixed tensors -> a call that does the same again
MakeRunner = Callable[[], EagerEngine]
WARM_UPS = 3  # calls before a capture: libraries choose their kernels and take their workspace in them


def buckets(batch_sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """The numbers of states that are prepared, ascending: those asked for, none above `most`."""
    if min(batch_sizes) < 1:
        raise ValueError(f"expected batch_sizes of at least 1, got {tuple(batch_sizes)}")
    return tuple(sorted({min(size, most) for size in batch_sizes}))


def pieces(states: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(start, stop, bucket) of the calls for so many states: chunks of the largest bucket, and the rest in the smallest that holds it."""
    for start in range(0, states, sizes[-1]):
        stop = min(start + sizes[-1], states)
        yield start, stop, next(size for size in sizes if size >= stop - start)


class CudaCapture:
    """Records a call as a CUDA graph. All graphs of one engine share their memory: they never run at the same time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> Call:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            call()
        return graph.replay


class Bucket(NamedTuple):
    """One recorded decision: its inputs (B, S), (B, K, A) and (B) or None, its choice, the call, and the buffers behind it."""

    inputs: tuple[Tensor, Tensor, Tensor | None]
    choice: Choice
    replay: Call
    runner: EagerEngine


class GraphEngine(Engine):
    """Replays recorded decisions. A number of states without a recording of its own is padded to the next one, or worked off in several.

    `runner` makes the engine that is recorded, one for each recording: a recording owns the buffers that it writes.
    """

    name: ClassVar[str] = "graph"

    def __init__(self, runner: MakeRunner, capture: Capture, *, batch_sizes: Sequence[int], rows_per_call: int, device: torch.device):
        super().__init__(rows_per_call)
        self._runner, self._capture, self._sizes, self.device = runner, capture, tuple(batch_sizes), device
        self._buckets: dict[tuple[int, bool], Bucket] = {}
        self._done = torch.cuda.Event() if device.type == "cuda" else None  # of the last call: the next may come on another stream
        decision = runner().decision
        for size in sorted(buckets(batch_sizes, max(batch_sizes)), reverse=True):
            noise = torch.zeros(size, decision.candidates, decision.actions, device=device)
            self.decide(noise.new_zeros(size, decision.observations), noise, None)

    def free(self) -> None:
        self._buckets.clear()

    def place(self, tensor: Tensor, device: torch.device) -> Tensor:
        """On the device of the recordings; from the host through pinned memory, without waiting."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.contiguous().pin_memory().to(self.device, non_blocking=True)
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
        sizes = buckets(self._sizes, max(1, self.rows_per_call // noise.shape[1]))
        found = []
        for start, stop, size in pieces(len(noise), sizes):
            bucket = self._bucket(size, observations, noise, uniform)
            for buffer, given in zip(bucket.inputs, (observations, noise, uniform), strict=True):
                if buffer is not None and given is not None:
                    buffer[: stop - start].copy_(given[start:stop])
            bucket.replay()
            found.append(Choice(*(tensor[: stop - start].clone() for tensor in bucket.choice)))
        return found[0] if len(found) == 1 else Choice(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _bucket(self, size: int, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Bucket:
        """The recording for so many states, with or without random numbers for the selection; made where it is missing."""
        key = size, uniform is not None
        if key not in self._buckets:
            inputs = (
                observations.new_zeros(size, *observations.shape[1:]),
                noise.new_zeros(size, *noise.shape[1:]),
                None if uniform is None else uniform.new_zeros(size),
            )
            runner = self._runner()
            choice = Choice(torch.empty_like(inputs[1][:, 0]), torch.empty_like(inputs[1]), inputs[1].new_empty(size, dtype=torch.int64))

            def call() -> None:
                for buffer, value in zip(choice, runner.run(*inputs), strict=True):
                    buffer.copy_(value)

            self._buckets[key] = Bucket(inputs, choice, self._capture(call), runner)
        return self._buckets[key]
