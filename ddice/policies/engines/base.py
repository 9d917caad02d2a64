"""What every engine is: observations and noise in, one action per state out."""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ddice.diffusion.samplers import Sampler, Selection

QCallable = Callable[[Tensor, Tensor], Tensor]


class Procedure(NamedTuple):
    """What makes a decision: K = `candidates` of the sampler, within the bounds before q scores
    them or after, and one of them selected.
    """

    sampler: Sampler
    q: QCallable | None
    candidates: int
    selection: Selection
    clip_before_scoring: bool


class Choice(NamedTuple):
    """What a decision gives: actions (B, A) in [-1, 1], all candidates (B, K, A) as the sampler
    made them, and which were chosen (B).
    """

    actions: Tensor
    candidates: Tensor
    chosen: Tensor


class Engine(ABC):
    """Runs whole decisions of one policy. Calls from several threads wait for each other: an
    engine owns its buffers.
    """

    name: ClassVar[str]

    def __init__(self, rows_per_call: int):
        self.rows_per_call = rows_per_call
        self._lock = threading.Lock()
        self._warned = False

    @abstractmethod
    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        """One call: observations (B, S), noise (B, K, A), uniform numbers (B,) for a softmax
        sample; B * K <= rows_per_call unless B = 1.

        The tensors are on one device, and so are those of the choice, which nobody overwrites.
        """

    def free(self) -> None:  # noqa: B027
        """Let go of all buffers that can be made again."""

    def place(self, tensor: Tensor, device: torch.device) -> Tensor:
        """An input where `run` wants it: on the device of the noise."""
        return tensor.to(device)

    def decide(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        """`run` in chunks of at most `rows_per_call` candidates, so that memory stays bounded.

        Where the device runs out of memory, chunks become half as large, for good. Raises
        torch.OutOfMemoryError where one state does not fit, ValueError without states and for
        inputs of different numbers of states.
        """
        if not len(observations):
            raise ValueError("expected at least one observation, got an empty batch")
        for name, given in (("noise", noise), ("uniform numbers", uniform)):
            if given is not None and len(given) != len(observations):
                raise ValueError(
                    f"expected {name} for {len(observations)} states, got them for {len(given)}"
                )
        whole: Choice | None = None
        start = 0
        with self._lock, torch.inference_mode():
            observations, noise = (self.place(x, noise.device) for x in (observations, noise))
            uniform = None if uniform is None else self.place(uniform, noise.device)
            while start < len(noise):
                size = max(1, self.rows_per_call // noise.shape[1])
                rows = slice(start, start + size)
                try:
                    uniform_rows = None if uniform is None else uniform[rows]
                    choice = self.run(observations[rows], noise[rows], uniform_rows)
                except torch.OutOfMemoryError as error:
                    reason = str(
                        error
                        # not the error: it holds the frames, and these the tensors, of the call
                        # that failed
                    )
                else:
                    with torch.inference_mode(False):  # copies, which gradients may flow on from
                        if size >= len(noise):
                            return Choice(*(part.clone() for part in choice))
                        # At once: many small results that are kept would pin the memory between
                        # them.
                        whole = whole or Choice(
                            *(part.new_empty(len(noise), *part.shape[1:]) for part in choice)
                        )
                    for all_rows, part in zip(whole, choice, strict=True):
                        all_rows[rows] = part
                    start += size
                    continue
                self._halve(len(noise[rows]), noise.shape[1], reason)
        assert whole is not None
        return whole

    def _halve(self, states: int, candidates: int, reason: str) -> None:
        """Half as many rows in every later call, and all memory given back. Says so once; raises
        where there is nothing to halve.
        """
        self.free()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if states == 1:
            raise torch.OutOfMemoryError(
                f"one state with its {candidates} candidates does not fit into memory: use "
                f"fewer candidates, or free memory of the device ({reason})"
            )
        self.rows_per_call = states // 2 * candidates
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"out of memory with {states} states x {candidates} candidates: engine "
                f"{self.name!r} goes on with at most {states // 2} at once, and with fewer "
                f"where they do not fit; rows_per_call={self.rows_per_call} asks for that from "
                "the start",
                stacklevel=5,
            )
