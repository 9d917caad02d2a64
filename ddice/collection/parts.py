"""The finished episodes of a collection that is not done, in files that are written whole or not
at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ddice.collection.episodes import Episode
from ddice.core.storage import load_tensors, save_tensors

KIND = "part of a collection"


@dataclass(frozen=True)
class Parts:
    """A folder of files, each with some episodes that follow one another; named by the index of
    the first.
    """

    folder: Path

    def load(self) -> list[Episode]:
        """The episodes from the first on, up to the first gap. Raises ValueError for a file that
        is truncated or foreign.
        """
        episodes: list[Episode] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            if int(path.stem) == len(episodes):
                episodes += _read(path)
        return episodes

    def save(self, first: int, episodes: Sequence[Episode]) -> None:
        """Write the episodes first, first + 1, ..."""
        arrays = {
            f"observations/{path}": np.concatenate([one.leaves[path] for one in episodes])
            for path in episodes[0].leaves
        }
        arrays |= {
            name: np.concatenate([getattr(one, name) for one in episodes])
            for name in ("actions", "rewards")
        }
        meta = {
            name: [getattr(one, name) for one in episodes]
            for name in ("terminated", "truncated", "policy", "seed")
        }
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        save_tensors(
            self.folder / f"{first:09d}.safetensors",
            KIND,
            tensors,
            {"lengths": [len(one) for one in episodes], **meta},
        )


def _read(path: Path) -> Iterator[Episode]:
    tensors, meta = load_tensors(path, KIND)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    start = 0
    facts = zip(
        *(meta[name] for name in ("lengths", "terminated", "truncated", "policy", "seed")),
        strict=True,
    )
    for number, (length, terminated, truncated, policy, seed) in enumerate(facts):
        rows, steps = (
            slice(start + number, start + number + length + 1),
            slice(start, start + length),
        )
        leaves = {
            name.removeprefix("observations/"): array[rows]
            for name, array in arrays.items()
            if name.startswith("observations/")
        }
        yield Episode(
            leaves,
            arrays["actions"][steps],
            arrays["rewards"][steps],
            terminated,
            truncated,
            policy,
            seed,
        )
        start += length
