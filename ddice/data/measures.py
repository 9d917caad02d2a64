"""Numbers read off the flat table of a dataset: normaliser, reward statistics, returns,
fingerprints. All on the CPU.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddice.core.config import Config
from ddice.data.spec import Normalizer, RewardSummary

CHUNK = 1 << 17
"""Rows handled at a time, so that float64 accumulators never need a second copy of the dataset."""

CONSTANT = 1e-6
"""A dimension whose deviation is below this share of its largest value is constant up to float32
rounding.
"""


def normalizer_of(observations: Tensor) -> Normalizer:
    """Mean and deviation of (N, S) observations, accumulated in float64; constant dimensions get
    a deviation of 1.
    """
    chunks = torch.split(observations, CHUNK)
    count = len(observations)
    mean = torch.stack([chunk.sum(0, dtype=torch.float64) for chunk in chunks]).sum(0) / count
    square = (
        torch.stack([(chunk.double() - mean).square().sum(0) for chunk in chunks]).sum(0) / count
    )
    largest = torch.stack([chunk.abs().amax(0) for chunk in chunks]).amax(0).double()
    std = square.sqrt()
    std = torch.where(std <= CONSTANT * largest, torch.ones_like(std), std)
    # Rounded to float32, so that the last bits of a sum, which differ between machines, do not
    # reach the fingerprint.
    return Normalizer(mean=tuple(mean.float().tolist()), std=tuple(std.float().tolist()))


def episode_returns(rewards: Tensor, episode: Tensor) -> NDArray[np.float64]:
    """Undiscounted sum of (N,) rewards per episode, (E,)."""
    return np.bincount(episode.numpy(), weights=rewards.double().numpy()).astype(np.float64)


@dataclass(frozen=True)
class EpisodeTotals:
    """Of E recorded episodes, whether or not all of their steps became transitions: returns,
    lengths, and steps with a reward <= 0; and which K of them have transitions.
    """

    returns: NDArray[np.float64]  # (E,)
    lengths: NDArray[np.int64]  # (E,)
    nonpositive: NDArray[np.int64]  # (E,)
    kept: NDArray[np.int64]  # (K,)

    @classmethod
    def of(
        cls,
        rewards: Tensor,  # (R,)
        episode: Tensor,  # (R,)
        kept: NDArray[np.int64] | None = None,  # (K,), all by default
    ) -> EpisodeTotals:
        """Added up over the steps of each episode, in float64."""
        numbers = episode.numpy()
        returns = episode_returns(rewards, episode)
        least = (rewards <= 0).double().numpy()
        return cls(
            returns=returns,
            lengths=np.bincount(numbers).astype(np.int64),
            nonpositive=np.bincount(numbers, weights=least).astype(np.int64),
            kept=np.arange(len(returns)) if kept is None else kept,
        )

    def take(self, units: NDArray[np.int64]) -> EpisodeTotals:
        """Of some of those that have transitions; of all of them, nothing is left out."""
        if len(units) == len(self.kept):
            return self
        chosen = self.kept[units]
        parts = (self.returns[chosen], self.lengths[chosen], self.nonpositive[chosen])
        return EpisodeTotals(*parts, kept=np.arange(len(chosen)))

    def tensors(self) -> tuple[Tensor, ...]:
        """For fingerprints."""
        parts = (self.returns, self.lengths, self.nonpositive)
        return tuple(torch.from_numpy(part) for part in parts)


def reward_summary(rewards: Tensor, totals: EpisodeTotals | None) -> RewardSummary:
    """Statistics of raw rewards (N,); the numbers over episodes are None for independent
    transitions.
    """
    values = rewards.double()
    common = {
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "positive_share": (values > 0).double().mean().item(),
    }
    if totals is None:
        return RewardSummary(**common)
    return RewardSummary(
        **common,
        min_return=float(totals.returns.min()),
        max_return=float(totals.returns.max()),
        min_nonpositive=int(totals.nonpositive.min()),
        max_nonpositive=int(totals.nonpositive.max()),
    )


@dataclass(frozen=True)
class Pieces:
    """Runs of rows that belong together, such as episodes: what sums along them need to know."""

    remaining: Tensor  # (N,), how many rows of its piece follow each row
    longest: int  # rows of a piece

    @classmethod
    def of(
        cls,
        number: Tensor,  # (N,), of the piece of each row: another one begins where it changes
    ) -> Pieces:
        """The runs of equal numbers."""
        _, lengths = torch.unique_consecutive(number, return_counts=True)
        last = torch.repeat_interleave(lengths.cumsum(0) - 1, lengths)
        position = torch.arange(len(number), dtype=torch.int64, device=number.device)
        return cls(last - position, int(lengths.max()))

    def to_go(
        self,
        values: Tensor,  # (..., N)
        discount: float,
    ) -> Tensor:
        """G_t = v_t + discount * G_{t+1} within each piece, (..., N), in the dtype of `values`.

        Sums over 1, 2, 4, ... steps are doubled until they span the longest piece: as many passes
        as its logarithm, in float64.
        """
        total, span, factor = values.double().clone(), 1, float(discount)
        while span < self.longest:
            further = factor * total[..., span:]
            # Filled, not multiplied: a number of another piece may be infinite.
            further.masked_fill_(self.remaining[:-span] < span, 0.0)
            total[..., :-span] += further
            span, factor = 2 * span, factor * factor
        return total.to(values.dtype)


def fingerprint(header: Iterable[Config | str], arrays: Iterable[Tensor | None]) -> str:
    """32 hexadecimal digits over configurations and the bytes of arrays, their shapes and dtypes
    included.
    """
    digest = hashlib.blake2b(digest_size=16)
    for item in header:
        text = (
            item
            if isinstance(item, str)
            else json.dumps(item.model_dump(mode="json"), sort_keys=True)
        )
        digest.update(text.encode() + b"\0")
    for array in arrays:
        if array is None:
            digest.update(b"none\0")
            continue
        digest.update(f"{tuple(array.shape)} {array.dtype}\0".encode())
        for chunk in torch.split(array, CHUNK):
            digest.update(chunk.contiguous().numpy().data)
    return digest.hexdigest()
