"""Stages: `fit` against a loop written by hand, the steps of a part, keys, and what every source of
ratios has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import small
import torch
from typing_extensions import get_protocol_members

from ddice import load_dataset
from ddice.data import Transitions
from ddice.dice_backends import GivenRatio, StateCorrection
from ddice.diffusion.networks import MLP
from ddice.extractors import GaussianBC
from ddice.parts.part import Optimizer, Part
from ddice.parts.ratio_source import RatioSource
from ddice.parts.stage import Stage, Trainable, alone, run_stage
from ddice.runs.recipe import Recipe

STEPS = 8
COSINE = {"optimizer": {"learning_rate": 1e-2, "decay": "cosine"}}
QUIET: dict[str, Any] = {"device": "cpu", "progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


@pytest.fixture(scope="module")
def data() -> Transitions:
    return load_dataset(small.arrays(), env=small.ENV)


@pytest.fixture(scope="module")
def prior(data: Transitions) -> Any:
    return small.recipe("unused").prior.fit(data, steps=3, **QUIET)


@pytest.fixture(scope="module")
def backend(data: Transitions) -> Any:
    return small.recipe("unused").backend.fit(data, steps=3, **QUIET)


def backends() -> dict[str, Any]:
    """Every backend, with a learning rate that falls where it is trained."""
    made = {}
    for kind, fields in small.BACKENDS.items():
        falling = {} if kind == "given" else COSINE
        made[kind] = Recipe.model_validate({"backend": {"kind": kind, **fields, **falling}}).backend
    return made


def extractors() -> dict[str, Any]:
    return {
        kind: Recipe.model_validate({"extractor": {"kind": kind, **fields}}).extractor
        for kind, fields in small.EXTRACTORS.items()
    }


def assert_same_state(one: Any, other: Any) -> None:
    assert one.state().keys() == other.state().keys()
    for name, value in one.state().items():
        assert torch.equal(value, other.state()[name]), name


@pytest.fixture
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- a loop written by hand


@pytest.mark.usefixtures("no_warnings")
def test_a_prior_by_hand(data: Transitions) -> None:
    config = small.recipe("unused").prior
    assert config.optimizer.decay == "cosine"
    part = config.build(data.spec, seed=1).until(STEPS)
    for step in range(STEPS):
        part.update(data.sample(config.batch_size, seed=1, step=step), step=step)
    assert_same_state(part, config.fit(data, steps=STEPS, seed=1, **QUIET))


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("config", backends().values(), ids=backends().keys())
def test_a_backend_by_hand(config: Any, data: Transitions) -> None:
    part = config.build(data.spec, seed=1).until(STEPS)
    fitted = config.fit(data, steps=STEPS, seed=1, **QUIET)
    if fitted.trains:
        for step in range(STEPS):
            part.update(data.sample(config.batch_size, seed=1, step=step), step=step)
    assert_same_state(part, fitted)


def by_hand(part: Any, batch: Any, backend: Any, step: int) -> Any:
    """One step of an extractor with what it says that it needs."""
    if part.config.needs_q:
        return part.update(batch, q=backend.q, step=step)
    return part.update(batch, log_ratio=backend.log_ratio(batch), step=step)


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("config", extractors().values(), ids=extractors().keys())
def test_an_extractor_by_hand(config: Any, data: Transitions, prior: Any, backend: Any) -> None:
    """The loop, `fit` of the configuration and `fit` of the part, all the same."""
    part = config.build(data.spec, seed=0, prior=prior)
    if part.trains:
        part.until(STEPS)
        for step in range(STEPS):
            batch = data.sample(part.batch_size, seed=0, step=step)
            by_hand(part, batch, backend, step)
    at_once = config.build(data.spec, seed=0, prior=prior)
    assert at_once.fit(data, backend=backend, steps=STEPS, progress=False) is at_once
    assert_same_state(part, at_once)
    policy = config.fit(data, prior=prior, backend=backend, steps=STEPS, **QUIET)
    observations = data.observations[:5].numpy()
    np.testing.assert_array_equal(
        policy.act(observations, seed=3),
        part.policy(q=backend.q).act(observations, seed=3),
    )


def test_a_learning_rate_that_cannot_fall_warns_once_and_says_how(data: Transitions) -> None:
    config = small.recipe("unused").prior
    part = config.build(data.spec)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            part.update(data.sample(16, seed=0, step=step), step=step)
    assert len(caught) == 1
    assert "build(spec, seed=0).until(steps)" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert part.optimizer.rate == config.optimizer.learning_rate


@pytest.mark.usefixtures("no_warnings")
def test_a_constant_learning_rate_needs_to_know_nothing(data: Transitions) -> None:
    part = small.recipe("unused").backend.build(data.spec)
    part.update(data.sample(16, seed=0, step=0), step=0)
    assert part.optimizer.rate == part.config.optimizer.learning_rate


def test_the_rate_of_every_step_is_on_the_cosine(data: Transitions) -> None:
    config = small.recipe("unused").prior
    part, rates = config.build(data.spec), []
    run_stage(
        alone(part, steps=5),
        data,
        progress=False,
        on_step=lambda step, metrics: rates.append(part.optimizer.rate),
    )
    expected = config.optimizer.learning_rate * (1 + np.cos(np.pi * np.arange(5) / 5)) / 2
    assert rates == pytest.approx(expected.tolist(), rel=1e-12)


def test_past_the_end_nothing_is_learned_and_that_is_said(data: Transitions) -> None:
    part = small.recipe("unused").prior.fit(data, steps=2, **QUIET)
    batch = data.sample(16, seed=0, step=2)
    with pytest.raises(ValueError, match=r"fallen to 0 at step 2, and this is step 2.*until"):
        part.update(batch, step=2)
    part.until(4).update(batch, step=2)
    assert part.step == 3


# -- the step of a part


def updates(data: Transitions, prior: Any, backend: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every part with its update, as a function of the step."""
    batch = data.sample(16, seed=0, step=0)
    parts = {"prior": small.recipe("unused").prior.build(data.spec)}
    parts |= {kind: config.build(data.spec) for kind, config in backends().items()}
    for name, part in parts.items():
        yield name, part, lambda step, part=part: part.update(batch, step=step)
    for name, config in extractors().items():
        extractor = config.build(data.spec, prior=prior)
        yield (
            name,
            extractor,
            lambda step, part=extractor: by_hand(part, batch, backend, step),
        )


def test_another_step_than_the_next_is_refused_and_changes_nothing(
    data: Transitions, prior: Any, backend: Any
) -> None:
    names = []
    for name, part, update in updates(data, prior, backend):
        part.until(9)
        for step in range(2):
            update(step)
        before = {key: value.clone() for key, value in part.state().items()}
        for wrong in (0, 1, 3, 50):
            with pytest.raises(ValueError, match=rf"expected update\(batch, step=2\).*{wrong}"):
                update(wrong)
        for key, value in part.state().items():
            assert torch.equal(value, before[key]), (name, key)
        update(2)
        assert part.step == 3
        names.append(name)
    assert names == ["prior", *small.BACKENDS, *small.EXTRACTORS]


def test_a_checkpoint_behind_the_part_is_gone_on_from(data: Transitions, tmp_path: Any) -> None:
    """Its state and its step belong together."""
    config = small.recipe("unused").backend

    def stop(step: int, _: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    whole = config.fit(data, steps=6, **QUIET)
    interrupted = alone(config.build(data.spec), steps=6)
    path = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run_stage(
            interrupted, data, progress=False, checkpoint=path, checkpoint_every=2, on_step=stop
        )
    ahead = config.fit(data, steps=5, **QUIET)
    ahead.fit(data, steps=1, checkpoint=path, progress=False)
    assert_same_state(ahead, whole)


# -- steps


def test_what_is_trained_needs_its_steps(data: Transitions, prior: Any, backend: Any) -> None:
    recipe = small.recipe("unused")
    with pytest.raises(TypeError, match=r"diffusion is trained: say for how many steps"):
        recipe.prior.fit(data, **QUIET)
    with pytest.raises(TypeError, match=r"piecewise_f is trained: say for how many steps"):
        recipe.backend.fit(data, **QUIET)
    with pytest.raises(TypeError, match=r"guide_then_select is trained: say for how many steps"):
        recipe.extractor.fit(data, prior=prior, backend=backend, **QUIET)
    assert recipe.prior.fit(data, steps=0, **QUIET).step == 0


def test_what_is_not_trained_needs_none(data: Transitions, prior: Any, backend: Any) -> None:
    given = GivenRatio(source=np.ones(data.spec.source_rows)).fit(data)
    assert given.step == 0
    assert given.fit(data) is given
    extractors()["select_only"].fit(data, prior=prior, backend=backend, **QUIET)


# -- keys


def test_a_key_names_all_that_the_outcome_depends_on(data: Transitions, backend: Any) -> None:
    config = GaussianBC(network=MLP(hidden=(8,)))
    other_data = load_dataset(small.arrays(seed=1), env=small.ENV)
    ones = GivenRatio(source=np.ones(data.spec.source_rows)).build(data.spec)
    part = config.build(data.spec)

    def key(part: Any = part, ratios: Any = ones, data: Transitions = data, steps: int = 5) -> str:
        return part.stage(ratios, steps=steps).key(data)

    seen = [
        key(),
        key(steps=6),
        key(ratios=backend),
        key(part=config.build(data.spec, seed=1)),
        key(part=config.model_copy(update={"log_cap": 1.0}).build(data.spec)),
        key(data=other_data),  # the same ratios for other actions
    ]
    assert len(set(seen)) == len(seen)
    assert key(part=config.model_copy(update={"candidates": 3}).build(data.spec)) == key()


def test_a_key_knows_how_long_what_is_read_was_trained(data: Transitions) -> None:
    config = small.recipe("unused").backend
    extractor = GaussianBC(network=MLP(hidden=(8,))).build(data.spec)
    keys = {
        extractor.stage(config.fit(data, steps=steps, **QUIET), steps=5).key(data)
        for steps in (1, 2)
    }
    assert len(keys) == 2


def test_the_state_of_a_stage_is_that_of_its_parts(data: Transitions, prior: Any) -> None:
    def stage() -> Stage:
        parts: dict[str, Trainable] = {
            "a": small.recipe("unused").backend.build(data.spec, seed=1),
            "b": small.recipe("unused").prior.build(data.spec, seed=1),
        }

        def update(batch: Any, step: int) -> Any:
            for part in parts.values():
                metrics = part.update(batch, step=step)
            return metrics

        return Stage("both", parts, update, batch_size=16, seed=1, start=0, stop=2)

    first, second = stage(), stage()
    run_stage(first, data, progress=False)
    assert {name.split(".")[0] for name in first.state()} == {"a", "b"}
    second.load_state(first.state())
    for name in ("a", "b"):
        assert_same_state(first.parts[name], second.parts[name])
        assert second.parts[name].step == 2


# -- sources of ratios


def test_every_source_of_ratios_has_all_that_is_asked_of_one(data: Transitions) -> None:
    correction = StateCorrection(
        potential=MLP(hidden=(8,)), factor=MLP(hidden=(8,)), optimizer=Optimizer()
    )
    sources = [config.build(data.spec) for config in backends().values()]
    action = next(source for source in sources if source.ratio_kind == "action" and source.trains)
    sources.append(correction.build(data.spec, backend=action))
    members = get_protocol_members(RatioSource)
    assert {"log_ratio", "ratio", "q", "value", "update", "select", "identity"} <= members
    for source in sources:
        missing = [name for name in sorted(members) if not hasattr(source, name)]
        assert not missing, (source.kind, missing)
        assert source.discount is None or 0 <= source.discount < 1
        raw = torch.tensor([0.0, 1.0])
        assert source.rewards(raw).shape == raw.shape
        assert (source.temperature is None) == (not source.has_value)
        assert isinstance(source, Part) == source.trains
