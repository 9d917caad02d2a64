"""What every engine is: observations and noise in, one action per state out."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Choice(NamedTuple):
    """What a decision gives: actions (B, A) in [-1, 1], all candidates (B, K, A) as the sampler made them, and which were chosen (B)."""

    actions: Tensor
    candidates: Tensor
    chosen: Tensor


class Engine(ABC):
    """Runs whole decisions of one policy. Calls from several threads wait for each other: an engine owns its buffers."""

    name: ClassVar[str]

    def __init__(self, rows_per_call: int):
        self.rows_per_call = rows_per_call
        self._lock = threading.Lock()

    @abstractmethod
    def run(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        """One call: observations (B, S), noise (B, K, A), uniform numbers (B,) for a softmax sample; B * K <= rows_per_call unless B = 1.

        The tensors of the choice may be buffers of the engine that the next call overwrites.
        """

    def decide(self, observations: Tensor, noise: Tensor, uniform: Tensor | None) -> Choice:
        """`run` in chunks of at most `rows_per_call` candidates, so that memory stays bounded; tensors that nobody overwrites."""
        size = max(1, self.rows_per_call // noise.shape[1])
        chunks = []
        with self._lock, torch.inference_mode():
            for start in range(0, len(observations), size):
                rows = slice(start, start + size)
                chosen = self.run(observations[rows], noise[rows], None if uniform is None else uniform[rows])
                chunks.append(Choice(*(tensor.clone() for tensor in chosen)))
        return chunks[0] if len(chunks) == 1 else Choice(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
