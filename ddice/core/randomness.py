"""Random numbers as a pure function of (seed, stream name, step).

Nothing random is ever checkpointed: a generator is seeded anew from the three names each time it is
needed, so a resumed run, another order of parts, or one seed out of several trained together draws
exactly the same numbers. A sequence of seeds adds a leading axis; its slice i equals what seed i
draws alone.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Seed = int | Sequence[int]


def plain_seed(seed: Any) -> int | tuple[int, ...]:
    """One seed as an int, several as a tuple of ints, whatever integers and whatever sequence came:
    numpy's, a range, an array or a tensor of them.

    Raises TypeError for what is no integer, ValueError for a sequence without any.
    """
    try:
        if not isinstance(seed, Sequence) and not np.ndim(seed):
            return operator.index(seed)
        seeds = tuple(operator.index(one) for one in seed)
    except TypeError:
        raise TypeError(
            f"expected an integer, or a sequence of them, as the seed, got {seed!r}"
        ) from None
    if not seeds:
        raise ValueError("expected at least one seed, got an empty sequence")
    return seeds


def one_seed(seed: Any) -> int:
    """A seed as an int, where several make no sense. Raises TypeError for several."""
    plain = plain_seed(seed)
    if not isinstance(plain, int):
        raise TypeError(f"expected one integer as the seed, got the {len(plain)} of {seed!r}")
    return plain


def seed_shape(seed: Seed) -> tuple[int, ...]:
    """() for one seed, (R,) for a sequence of R seeds."""
    plain = plain_seed(seed)
    return () if isinstance(plain, int) else (len(plain),)


def derived_seed(seed: int, name: str, *index: int) -> int:
    """A seed below 2^56 that depends on `seed`, `name` and `index` alone."""
    # A hash, not seed + index: else episode 1 of seed 0 would be episode 0 of seed 1.
    text = "/".join(map(str, (one_seed(seed), name, *index)))
    # Seven bytes stay non-negative in the int64 that torch, numpy and environments take.
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def generator(
    seed: int, stream: str, step: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator whose numbers depend on `seed`, `stream` and `step` alone (and on the kind of
    device).
    """
    return torch.Generator(device).manual_seed(derived_seed(seed, stream, step))


def _draw(
    seed: Seed,
    stream: str,
    step: int,
    device: torch.device | str,
    one: Callable[[torch.Generator], Tensor],
) -> Tensor:
    plain = plain_seed(seed)
    if isinstance(plain, int):
        return one(generator(plain, stream, step, device))
    return torch.stack([one(generator(each, stream, step, device)) for each in plain])


def randn(
    seed: Seed, stream: str, step: int, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers, (*seeds, *shape), float32."""
    size = tuple(shape)

    def one(source: torch.Generator) -> Tensor:
        return torch.randn(size, generator=source, dtype=torch.float32, device=device)

    return _draw(seed, stream, step, device, one)


def rand(
    seed: Seed, stream: str, step: int, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform numbers in [0, 1), (*seeds, *shape), float32."""
    size = tuple(shape)

    def one(source: torch.Generator) -> Tensor:
        return torch.rand(size, generator=source, dtype=torch.float32, device=device)

    return _draw(seed, stream, step, device, one)


def randint(
    seed: Seed,
    stream: str,
    step: int,
    high: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform integers in [0, high), int64, (*seeds, *shape)."""
    size = tuple(shape)

    def one(source: torch.Generator) -> Tensor:
        return torch.randint(high, size, generator=source, device=device)

    return _draw(seed, stream, step, device, one)
