"""Random numbers as a pure function of (seed, stream name, step).

Nothing random is ever checkpointed: a generator is seeded anew from the three names each time it is
needed, so a resumed run, another order of parts, or one seed out of several trained together draws
exactly the same numbers. A sequence of seeds adds a leading axis; its slice i equals what seed i
draws alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Seed = int | Sequence[int]


def seed_shape(seed: Seed) -> tuple[int, ...]:
    """() for one seed, (R,) for a sequence of R seeds."""
    return () if isinstance(seed, int) else (len(seed),)


def derived_seed(seed: int, name: str, *index: int) -> int:
    """A seed below 2^56 that depends on `seed`, `name` and `index` alone."""
    digest = hashlib.blake2b(
        "/".join(map(str, (seed, name, *index))).encode(), digest_size=7
    ).digest()
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
    if isinstance(seed, int):
        return one(generator(seed, stream, step, device))
    return torch.stack([one(generator(s, stream, step, device)) for s in seed])


def randn(
    seed: Seed, stream: str, step: int, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers, (*seeds, *shape)."""
    return _draw(
        seed, stream, step, device, lambda g: torch.randn(tuple(shape), generator=g, device=device)
    )


def rand(
    seed: Seed, stream: str, step: int, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform numbers in [0, 1), (*seeds, *shape)."""
    return _draw(
        seed, stream, step, device, lambda g: torch.rand(tuple(shape), generator=g, device=device)
    )


def randint(
    seed: Seed,
    stream: str,
    step: int,
    high: int,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform integers in [0, high), int64, (*seeds, *shape)."""
    return _draw(
        seed,
        stream,
        step,
        device,
        lambda g: torch.randint(high, tuple(shape), generator=g, device=device),
    )
