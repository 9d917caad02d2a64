"""What holds for every backend and every extractor: a new one enters by its line in
`ddice.testing.catalogue`, which has all of the unions (tests/test_conformance.py).
"""

from __future__ import annotations

import signal
import typing
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

import ddice
from ddice.core.config import Config
from ddice.data import Batch, Transitions
from ddice.dice_backends import (
    AdvantageHead,
    AnyBackend,
    CriticEnsemble,
    DeterministicDice,
    FDice,
    GivenRatio,
    OptiDice,
    OrthogonalDice,
    PiecewiseF,
)
from ddice.diffusion.networks import MLP, ResidualScore
from ddice.diffusion.prior import DiffusionPrior, Prior
from ddice.diffusion.solvers import PUBLISHED
from ddice.extractors import AnyExtractor, GuideThenSelect, SelectOnly, WeightedBC
from ddice.policies.policy import load_policy
from ddice.testing import catalogue
from ddice.testing.catalogue import Example

NET = MLP(hidden=(8,), activation="silu")
HEAD = AdvantageHead(network=NET)


def weights(batch: Batch) -> Tensor:
    return (batch.rewards > 0).float() + 0.1


def critic(observations: Tensor, actions: Tensor) -> Tensor:
    return torch.stack([actions.sum(-1), observations.sum(-1) - actions.sum(-1)])


Table = dict[type[Config], typing.Any]


def table(examples: typing.Iterable[Example], changes: dict[type[Config], typing.Any]) -> Table:
    """The examples of the catalogue, where a class is named in `changes` with these fields."""
    return {
        example.part: example.part.model_validate(
            {**example.fields, **changes.get(example.part, {})}
        )
        for example in examples
    }


# what the examples do not have: a temperature that is found, members of many kinds, a warm start
# that ends within the tests, averages that move, a Q of two members, the published solver
BACKENDS = table(
    catalogue.BACKENDS,
    {
        PiecewiseF: {
            "selector": CriticEnsemble(members=3),
            "temperature": "ess:0.5",
            "polyak": 0.1,
        },
        FDice: {"divergence": "pearson", "selector": HEAD, "warm_start_steps": 4, "polyak": 0.1},
        DeterministicDice: {"polyak": 0.1},
        OrthogonalDice: {"polyak": 0.1},
        OptiDice: {"warm_start_steps": 2},
        GivenRatio: {"source": weights, "q": critic},
    },
)
EXTRACTORS = table(
    catalogue.EXTRACTORS,
    {
        GuideThenSelect: {"candidates": 3, "solver": PUBLISHED},
        WeightedBC: {"candidates": 1, "solver": PUBLISHED},
        SelectOnly: {"candidates": 3, "solver": PUBLISHED},
    },
)
PRIOR = DiffusionPrior(network=ResidualScore(width=8, blocks=1), batch_size=16, ema=0.9)


every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda kind: kind.__name__)
every_extractor = pytest.mark.parametrize("extractor", EXTRACTORS, ids=lambda kind: kind.__name__)


@cache
def data() -> Transitions:
    """Episodes of a random walk on dict observations; every second one is cut by time, the
    others end.
    """
    rng = np.random.default_rng(0)
    count = 90
    ends = np.arange(count) % 9 == 8
    terminations = ends & (np.arange(count) // 9 % 2 == 0)
    position, actions = rng.normal(size=(count, 2)).cumsum(0), rng.uniform(-2, 2, (count, 2))
    observations = {"position": position, "clock": rng.normal(size=(count, 1))}
    following = {
        "position": np.roll(position, -1, 0),
        "clock": np.roll(observations["clock"], -1, 0),
    }
    arrays = {
        "observations": observations,
        "next_observations": following,
        "actions": actions,
        "rewards": rng.normal(size=count),
    }
    return ddice.load_dataset(
        {**arrays, "terminations": terminations, "truncations": ends & ~terminations},
        action_bounds=(-2, 2),
    )


@cache
def prior() -> Prior:
    return PRIOR.fit(data(), steps=10, progress=False)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing


@every_extractor
@every_backend
def test_every_backend_meets_every_extractor(backend, extractor, tmp_path: Path) -> None:
    ratios = BACKENDS[backend].fit(data(), steps=8, progress=False)
    policy = EXTRACTORS[extractor].fit(
        data(), prior=prior(), backend=ratios, steps=6, progress=False
    )
    observations = {
        "position": np.random.default_rng(1).normal(size=(5, 2)),
        "clock": np.zeros((5, 1)),
    }
    actions = policy.act(observations, seed=3)
    assert actions.shape == (5, 2)
    assert actions.dtype == np.float32
    assert np.isfinite(actions).all()
    assert (np.abs(actions) <= 2).all()
    single = {name: leaf[2] for name, leaf in observations.items()}
    everyone = policy.act(observations, deterministic=True)
    np.testing.assert_allclose(
        policy.act(single, deterministic=True), everyone[2], rtol=1e-3, atol=1e-3
    )
    policy.save(tmp_path)
    loaded = load_policy(
        tmp_path,
        device="cpu",
        q=critic if backend is GivenRatio and policy.config.candidates > 1 else None,
    )
    assert np.array_equal(loaded.act(observations, seed=3), actions)
    assert np.array_equal(loaded.act(observations, deterministic=True), everyone)
    assert not any(path.suffix not in (".json", ".safetensors") for path in tmp_path.iterdir())


@every_backend
def test_the_interface_of_a_backend(backend) -> None:
    config = BACKENDS[backend]
    part = config.fit(data(), steps=8, progress=False)
    batch = data().full()
    log_ratio = part.log_ratio(batch)
    assert log_ratio.shape == (len(data()),)
    assert not log_ratio.requires_grad
    assert not torch.isnan(log_ratio).any()
    torch.testing.assert_close(part.ratio(batch), log_ratio.exp())
    assert part.ratio_kind in ("action", "state-action")
    assert part.has_q
    q = part.q(batch.observations, batch.actions)
    assert q.ndim == 2
    assert q.shape[1] == len(data())
    if part.has_value:
        assert part.value(batch.observations).shape == (len(data()),)
    metrics = part.update(batch, step=part.step)
    for name, value in metrics.items():
        assert not value.requires_grad, name
        assert torch.isfinite(value).all(), name
    assert {"mean_ratio", "effective_sample_size", "zero_rate", "largest_weight"} <= metrics.keys()
    adapter = TypeAdapter(AnyBackend)
    if backend is not GivenRatio:
        assert adapter.validate_json(config.model_dump_json()) == config


@every_extractor
def test_configurations_of_extractors_survive_json(extractor) -> None:
    config = EXTRACTORS[extractor]
    assert TypeAdapter(AnyExtractor).validate_json(config.model_dump_json()) == config


@every_backend
def test_a_backend_goes_on_from_its_state(backend) -> None:
    """State after 7 steps, loaded into a new part, then 7 more: bit for bit the uninterrupted 14
    steps. The warm start ends in between.
    """
    config = BACKENDS[backend]
    whole, first, second = (config.build(data().spec, seed=1) for _ in range(3))
    for part in (whole, first, second):
        part.prepare(data())
    for step in range(14):
        batch = data().sample(16, seed=1, step=step)
        whole.update(batch, step=step)
        if step == 7:
            second.load_state({name: value.clone() for name, value in first.state().items()})
        (first if step < 7 else second).update(batch, step=step)
    same(whole.state(), second.state())
    assert torch.equal(whole.log_ratio(data().full()), second.log_ratio(data().full()))


@every_extractor
def test_an_extractor_goes_on_from_its_state(extractor) -> None:
    config = EXTRACTORS[extractor]
    ratios = GivenRatio(source=weights, q=critic).build(data().spec)
    whole, first, second = (config.build(data().spec, seed=1, prior=prior()) for _ in range(3))
    for step in range(14):
        batch = data().sample(16, seed=1, step=step)
        whole.learn_from(batch, ratios, step=step)
        if step == 7:
            second.load_state({name: value.clone() for name, value in first.state().items()})
        (first if step < 7 else second).learn_from(batch, ratios, step=step)
    same(whole.state(), second.state())


def interrupt(step: int, metrics: typing.Any) -> None:
    if step == 6:
        signal.raise_signal(signal.SIGINT)


@every_backend
def test_a_backend_is_killed_and_resumed(backend, tmp_path: Path) -> None:
    config = BACKENDS[backend]
    if not config.build(data().spec).trains:
        return
    whole = config.fit(data(), steps=12, progress=False)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 7"):
        config.fit(
            data(), steps=12, progress=False, on_step=interrupt, checkpoint=tmp_path / "checkpoint"
        )
    resumed = config.fit(data(), steps=12, progress=False, checkpoint=tmp_path / "checkpoint")
    same(whole.state(), resumed.state())


@every_extractor
def test_an_extractor_is_killed_and_resumed(extractor, tmp_path: Path) -> None:
    config = EXTRACTORS[extractor]
    if not config.build(data().spec, prior=prior()).trains:
        return
    parts = {
        "prior": prior(),
        "backend": GivenRatio(source=weights, q=critic).fit(data()),
        "steps": 12,
        "progress": False,
    }
    whole = config.fit(data(), **parts)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 7"):
        config.fit(data(), **parts, on_step=interrupt, checkpoint=tmp_path / "checkpoint")
    resumed = config.fit(data(), **parts, checkpoint=tmp_path / "checkpoint")
    for mine, theirs in zip(whole.sampler.parameters(), resumed.sampler.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@every_backend
def test_several_seeds_of_a_backend_are_the_single_ones(backend) -> None:
    config = BACKENDS[backend]
    together = config.fit(data(), steps=10, seed=(0, 5), progress=False)
    batch = data().full()
    for i, seed in enumerate((0, 5)):
        alone, selected = (
            config.fit(data(), steps=10, seed=seed, progress=False),
            together.select(i),
        )
        torch.testing.assert_close(
            selected.log_ratio(batch), alone.log_ratio(batch), rtol=1e-3, atol=1e-4
        )
        torch.testing.assert_close(
            selected.q(batch.observations, batch.actions),
            alone.q(batch.observations, batch.actions),
            rtol=1e-3,
            atol=1e-4,
        )


@every_extractor
def test_several_seeds_of_an_extractor_are_the_single_ones(extractor) -> None:
    config = EXTRACTORS[extractor]
    priors = PRIOR.fit(data(), steps=5, seed=(0, 5), progress=False)
    backends = BACKENDS[PiecewiseF].fit(data(), steps=5, seed=(0, 5), progress=False)
    together = config.fit(
        data(), prior=priors, backend=backends, steps=10, seed=(0, 5), progress=False
    )
    for i, seed in enumerate((0, 5)):
        alone = config.fit(
            data(),
            prior=priors.select(i),
            backend=backends.select(i),
            steps=10,
            seed=seed,
            progress=False,
        )
        for mine, theirs in zip(
            together[i].sampler.parameters(), alone.sampler.parameters(), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@every_backend
def test_updates_do_not_depend_on_who_else_draws(backend) -> None:
    """Nothing random is left to the order in which parts are trained."""
    config = BACKENDS[backend]
    parts = [config.build(data().spec, seed=2) for _ in range(2)]
    for part in parts:
        part.prepare(data())
    for step in range(6):
        parts[0].update(data().sample(16, seed=2, step=step), step=step)
    torch.manual_seed(99)
    other = PRIOR.build(data().spec, seed=2)
    for step in range(6):
        other.update(data().sample(16, seed=2, step=step), step=step)
        torch.randn(7)
        parts[1].update(data().sample(16, seed=2, step=step), step=step)
    same(parts[0].state(), parts[1].state())
