from __future__ import annotations

import hashlib

import pytest
import torch

from ddice.core.randomness import generator, rand, randint, randn, seed_shape

DRAWS = {
    "randn": lambda seed, stream, step: randn(seed, stream, step, (5, 3)),
    "rand": lambda seed, stream, step: rand(seed, stream, step, (5, 3)),
    "randint": lambda seed, stream, step: randint(seed, stream, step, 1000, (5, 3)),
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())


@every_draw
def test_a_draw_depends_on_its_three_names_alone(draw) -> None:
    first = draw(7, "noise", 11)
    torch.manual_seed(12345)
    draw(8, "other", 3)
    torch.randn(100)
    assert torch.equal(draw(7, "noise", 11), first)


@every_draw
def test_the_global_generator_is_left_alone(draw) -> None:
    before = torch.get_rng_state()
    draw(0, "noise", 0)
    assert torch.equal(torch.get_rng_state(), before)


@every_draw
def test_each_of_the_three_names_matters(draw) -> None:
    base = draw(1, "a", 2)
    for other in (
        draw(2, "a", 2),
        draw(1, "b", 2),
        draw(1, "a", 3),
        draw(12, "a", 2),
        draw(-1, "a", 2),
    ):
        assert not torch.equal(other, base)


@every_draw
def test_a_sequence_of_seeds_is_the_single_seeds_stacked(draw) -> None:
    seeds = (3, 0, 41)
    together = draw(seeds, "noise", 5)
    assert together.shape == (3, 5, 3)
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(row, draw(seed, "noise", 5))
    assert draw([3], "noise", 5).shape == (1, 5, 3)


def test_seed_shape() -> None:
    assert seed_shape(4) == ()
    assert seed_shape([4]) == (1,)
    assert seed_shape((1, 2, 3)) == (3,)


def test_the_numbers_behind_a_name_never_change() -> None:
    """A checkpoint of today must resume in a later release: the derivation of the seed is part
    of the format.
    """
    digest = hashlib.blake2b(b"3/batch/17", digest_size=7).digest()
    assert generator(3, "batch", 17).initial_seed() == int.from_bytes(digest, "little") == PINNED


PINNED = 15174908728707327


@pytest.mark.oracle
def test_streams_and_steps_are_uncorrelated() -> None:
    count = 4000
    names = [
        (0, "a", 0),
        (0, "a", 1),
        (0, "a", 2),
        (0, "b", 0),
        (0, "b", 1),
        (1, "a", 0),
        (1, "a", 1),
        (1, "b", 0),
        (2, "a", 0),
        (0, "aa", 0),
    ]
    numbers = torch.stack([randn(*name, (count,)).double() for name in names])
    correlation = torch.corrcoef(numbers) - torch.eye(len(names))
    assert correlation.abs().max() < 5 / count**0.5
    assert numbers.mean(1).abs().max() < 5 / count**0.5
    assert (numbers.var(1) - 1).abs().max() < 5 * (2 / count) ** 0.5


@pytest.mark.oracle
def test_steps_of_one_stream_make_one_good_sample() -> None:
    """One number from each of 4000 steps is again a sample of the distribution."""
    steps = range(4000)
    normal = torch.cat([randn(0, "noise", step, (1,)) for step in steps]).double()
    uniform = torch.cat([rand(0, "time", step, (1,)) for step in steps]).double()
    assert abs(normal.mean()) < 5 / 4000**0.5
    assert abs(normal.var() - 1) < 5 * (2 / 4000) ** 0.5
    assert abs(torch.corrcoef(torch.stack([normal[1:], normal[:-1]]))[0, 1]) < 5 / 4000**0.5
    assert abs(uniform.mean() - 0.5) < 5 / (12 * 4000) ** 0.5
    counts = torch.histc(uniform, 10, 0, 1)
    assert ((counts - 400).abs() < 5 * (4000 * 0.1 * 0.9) ** 0.5).all()


def test_ranges_and_types() -> None:
    integers = randint(0, "batch", 0, 7, (5000,))
    assert integers.dtype == torch.int64
    assert integers.unique().tolist() == list(range(7))
    uniform = rand(0, "time", 0, (5000,))
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
