"""Ratios whose mean in every state is what it should be: in closed form, by symmetry, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddice.core.config import Config
from ddice.data import Transitions
from ddice.dice_backends import Calibration, FDice, PiecewiseF
from ddice.dice_backends.calibration import CalibratedRatio
from ddice.dice_backends.divergences import KL, Piecewise, SoftChi2
from ddice.dice_backends.semi_gradient import balancing_values
from ddice.diffusion.networks import MLP, ResidualScore
from ddice.diffusion.prior import DiffusionPrior
from ddice.extractors import GaussianBC
from ddice.parts.part import effective_sample_size
from ddice.runs.forecast import forecast
from ddice.runs.recipe import Recipe, Steps
from ddice.runs.training import Training
from ddice.testing.example import example_data

pytestmark = pytest.mark.oracle

NET = MLP(hidden=(8,), layer_norm=True)
SMALL = {"value": NET, "critic": NET, "batch_size": 16}
PRIOR = DiffusionPrior(network=ResidualScore(width=8, blocks=1), batch_size=16)
QUICK = {"actions": 3, "solver": {"kind": "ddim", "evaluations": 2}, "batch_size": 50}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data() -> Transitions:
    return example_data()


@pytest.fixture(scope="module")
def prior(data: Transitions):
    return PRIOR.fit(data, steps=3, progress=False, device="cpu")


def calibrated(data: Transitions, prior, backend: Config, **changes) -> CalibratedRatio:
    trained = backend.fit(data, steps=3, progress=False, device="cpu")
    config = Calibration(**{**QUICK, **changes})
    return config.fit(data, backend=trained, prior=prior, progress=False)


def test_values_of_kl_are_a_logarithm_of_a_mean() -> None:
    """E[e^((q - V) / T)] = c has the solution V = T (log E[e^(q / T)] - log c)."""
    q, temperature = 5 * normal(40, 7), torch.tensor(0.7)
    for mean in (1.0, 0.1):
        exact = temperature * (
            torch.logsumexp(q / temperature, -1) - torch.log(torch.tensor(7.0 * mean))
        )
        found = balancing_values(q, temperature, KL(), mean)
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", [KL(), Piecewise(), SoftChi2()], ids=lambda f: f.kind)
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_ratios_average_what_they_should_in_every_state(divergence, temperature: float) -> None:
    q = 3 * normal(30, 5)
    values = balancing_values(q, torch.tensor(temperature), divergence, 0.5)
    ratio = divergence.log_ratio((q - values[:, None]) / temperature).exp().mean(-1)
    # Far below the scale of q the last bit of a value moves a ratio.
    torch.testing.assert_close(ratio, torch.full((30,), 0.5), rtol=2e-3, atol=0)


def test_one_of_equal_actions_has_the_mean_ratio() -> None:
    """By hand: y = 0 for all, and w = (f*)'(0) = 1."""
    values = balancing_values(torch.full((1, 4), 2.5), torch.tensor(0.1), Piecewise(), 1.0)
    assert values.item() == pytest.approx(2.5, abs=1e-6)


def test_what_is_solved_is_the_ratio_of_the_data(data: Transitions, prior) -> None:
    """The data's action beside those of the prior, in a loop over rows."""
    found = calibrated(data, prior, PiecewiseF(**SMALL, temperature=0.02))
    batch = data.at(torch.arange(5))
    q = found.state()["q"][batch.rows]
    own = found.backend.reduced_q(batch.observations, batch.actions)
    torch.testing.assert_close(q[:, 0], own)
    for row, log_ratio in zip(q, found.log_ratio(batch), strict=True):
        all_of_state = [
            Piecewise().log_ratio((row - shift) / 0.02).exp()
            for shift in torch.linspace(float(row.min()) - 1, float(row.max()) + 1, 4_001)
        ]
        nearest = min(all_of_state, key=lambda ratio: abs(float(ratio.mean()) - 1))
        assert float(log_ratio.exp()) == pytest.approx(float(nearest[0]), rel=0.03)
    # No action of four is worth more than all four together.
    assert float(found.ratio(data.at(torch.arange(len(data)))).max()) <= 4 + 1e-3


def test_an_offset_of_v_in_every_state_changes_nothing(data: Transitions, prior) -> None:
    trained = PiecewiseF(**SMALL, temperature=0.02).fit(data, steps=3, progress=False, device="cpu")
    config, batch = Calibration(**QUICK), data.at(torch.arange(len(data)))
    before = config.fit(data, backend=trained, prior=prior, progress=False).log_ratio(batch)
    raw = trained.log_ratio(batch)
    with torch.no_grad():
        for parameter in trained.value_network.parameters():
            parameter.add_(0.3)
    assert not torch.allclose(trained.log_ratio(batch), raw)
    after = config.fit(data, backend=trained, prior=prior, progress=False).log_ratio(batch)
    assert torch.equal(after, before)


def test_the_temperature_gives_the_sample_size_that_was_asked_for(data, prior) -> None:
    batch = data.at(torch.arange(len(data)))
    for target in (0.5, 0.8):
        found = calibrated(data, prior, FDice(**SMALL, temperature=f"ess:{target}"))
        size = effective_sample_size(found.log_ratio(batch), torch.ones(len(data)))
        assert float(size) == pytest.approx(target, abs=0.01)
    fixed = calibrated(data, prior, FDice(**SMALL, temperature=0.3))
    assert float(fixed.temperature) == pytest.approx(0.3)


def test_a_resumed_calibration_ends_the_same(data: Transitions, prior, tmp_path: Path) -> None:
    backend = PiecewiseF(**SMALL, temperature=0.02)
    whole = calibrated(data, prior, backend)
    part = Calibration(**QUICK).build(data.spec, backend=whole.backend, prior=prior)
    part.prepare(data)
    part.update(data.sample(1, seed=0, step=0), step=0)
    rest = Calibration(**QUICK).build(data.spec, backend=whole.backend, prior=prior)
    rest.load_state(part.state())
    rest.prepare(data)
    for step in range(1, rest.steps_over(data)):
        rest.update(data.sample(1, seed=0, step=step), step=step)
    assert torch.equal(rest.state()["q"], whole.state()["q"])
    assert whole.identity(data) == rest.identity(data)


def test_rows_of_other_data_are_refused(data: Transitions, prior) -> None:
    found = Calibration(**QUICK).build(
        data.spec, backend=PiecewiseF(**SMALL).build(data.spec), prior=prior
    )
    with pytest.raises(ValueError, match="those of the rows that were calibrated"):
        found.log_ratio(data.at(torch.arange(3)))
    held_out, training = data.split(0.5, 0)
    found.prepare(training)
    found.update(training.sample(1, seed=0, step=0), step=0)
    with pytest.raises(ValueError, match="those of the rows that were calibrated"):
        found.log_ratio(held_out.at(torch.arange(3)))


def test_it_is_forecast_as_a_stage_of_its_own(data: Transitions) -> None:
    recipe = Recipe(
        prior=PRIOR,
        backend=PiecewiseF(**SMALL, temperature="ess:0.5", calibration=QUICK),
        extractor=GaussianBC(network=NET, batch_size=16),
        steps=Steps(prior=30, backend=30, extractor=30),
        evaluation={"episodes": 0},
        device="cpu",
    )
    found = {stage.stage: stage.steps for stage in forecast(recipe, data, steps=2)}
    # 120 rows, 50 a step
    assert found == {"prior": 30, "backend": 30, "calibration": 3, "extractor": 30}


def test_several_seeds_are_refused(data: Transitions, prior) -> None:
    backend = PiecewiseF(**SMALL).build(data.spec, seed=(0, 1))
    with pytest.raises(ValueError, match=r"select\(i\)"):
        Calibration().build(data.spec, backend=backend, prior=prior)


def test_a_recipe_calibrates_between_backend_and_extractor(
    data: Transitions, prior, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Gaussian needs no prior, and here it is trained for the calibration; the backend is the one
    without it.
    """
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path))
    steps = Steps(prior=3, backend=3, extractor=3)
    backend = PiecewiseF(**SMALL, temperature=0.02, calibration=QUICK)
    evaluation = {"episodes": 0}
    recipe = Recipe(
        prior=PRIOR,
        backend=backend,
        extractor=GaussianBC(network=NET, batch_size=16),
        steps=steps,
        evaluation=evaluation,
        device="cpu",
    )
    trained = Training(recipe, data, progress=False, say=lambda text: None).train()
    assert isinstance(trained.backend, CalibratedRatio)
    by_hand = calibrated(data, prior, PiecewiseF(**SMALL, temperature=0.02))
    batch = data.at(torch.arange(len(data)))
    assert torch.equal(trained.backend.log_ratio(batch), by_hand.log_ratio(batch))
    assert trained.backend.backend.identity(data) == by_hand.backend.identity(data)
    with pytest.raises(ValueError, match="never stands still"):
        Recipe(backend=backend, schedule="joint")
