"""Alarms while a stage trains: which rows are looked at, what is computed on them, what it asks
for, and where it is said.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from torch import Tensor

from ddice.cli import main
from ddice.core.randomness import randn
from ddice.data import Transitions
from ddice.dice_backends import FDice
from ddice.diffusion.networks import MLP
from ddice.diffusion.prior import DiffusionPrior, Prior
from ddice.diffusion.solvers import FEW_STEPS
from ddice.extractors import SelectOnly
from ddice.parts.part import Optimizer
from ddice.runs import status
from ddice.runs.alarms import report, verdicts, watching
from ddice.runs.alarms.looked import SEED, STATES, Looked, some_rows
from ddice.runs.alarms.watching import BackendWatcher, CandidatesWatcher, PriorWatcher
from ddice.runs.comparison import Comparison, compare
from ddice.runs.recipe import Recipe
from ddice.runs.training import Training, train
from ddice.testing.example import example_data

pytestmark = pytest.mark.filterwarnings("ignore:.*rows dropped")


class Source:
    """A backend whose Q is a function of the action alone, with two members, and V = 3 s."""

    has_q = has_value = True
    discount = 0.5

    def __init__(self, *members: Any):
        self.members = members

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([member(actions) for member in self.members])

    def value(self, observations: Tensor) -> Tensor:
        return 3 * observations[..., 0]

    def rewards(self, rewards: Tensor) -> Tensor:
        return rewards


def first(actions: Tensor) -> Tensor:
    return actions[..., 0]


def inner(actions: Tensor) -> Tensor:
    """Least at the bounds, greatest in the middle, where the data lie."""
    return -actions.square().sum(-1)


@pytest.fixture(scope="module")
def data() -> Transitions:
    return example_data()


@pytest.fixture(scope="module")
def prior(data: Transitions) -> Prior:
    network = {"width": 8, "blocks": 1}
    return DiffusionPrior(network=network).build(data.spec, 0)


def looked(data: Transitions, share: float = 0.25) -> Looked:
    held_out, training = data.split(share, 0)
    return Looked(training, held_out)


@torch.no_grad()
def look(watcher: Any) -> dict[str, float]:
    return dict(watcher.look(0))


def rows_of(data: Transitions) -> Tensor:
    return data.at(some_rows(data)).rows


# -- which rows, and what


def test_held_out_rows_are_looked_at_where_there_are_any(data: Transitions) -> None:
    split = looked(data)
    assert set(rows_of(split.unseen).tolist()) <= set(split.held_out.rows.tolist())
    assert Looked(data, None).unseen is data
    assert split.identity == split.held_out.spec.fingerprint
    assert Looked(data, None).identity == "none"


def test_a_backend_is_looked_at_on_them(data: Transitions) -> None:
    """Q = a, so that each number is one of the data's first coordinate and of uniform ones; V is
    the first observation three times.
    """
    split = looked(data)
    numbers = look(BackendWatcher(Source(first, first), split, 100))
    batch = split.held_out.at(some_rows(split.held_out))
    taken = batch.actions[:, 0]
    # the largest of 8 uniform numbers in [-1, 1] is 7/9 in the mean, and has a deviation of 0.2
    deviation = taken.std(correction=0).item()
    expected = (7 / 9 - taken.mean().item()) / deviation
    assert numbers["uniform_above_data"] == pytest.approx(expected, abs=0.03 / deviation)
    below = ((taken + 1) / 2) ** 8  # the chance that all 8 are smaller
    assert numbers["uniform_above_data_share"] == pytest.approx(1 - below.mean().item(), abs=0.05)
    trained = split.training.at(some_rows(split.training))
    for rows, name in ((trained, "td_error"), (batch, "td_error_held_out")):
        goes_on = ~rows.terminations
        target = rows.rewards + 1.5 * rows.next_observations[:, 0]
        errors = (rows.actions[:, 0] - target).abs()[goes_on]
        assert numbers[name] == pytest.approx(errors.mean().item(), rel=1e-5)


def test_v_is_compared_with_the_returns_of_the_same_rows(data: Transitions) -> None:
    """Against a walk through the episodes; -1/2 of the returns correlates by -1."""
    source = Source(first, first)
    place = {int(row): index for index, row in enumerate(data.rows)}
    found = {}
    for index in range(len(data)):
        total, factor, at = 0.0, 1.0, index
        while True:
            total, factor = total + factor * data.rewards[at].item(), factor / 2
            if data.terminations[at]:
                break
            if at + 1 == len(data) or data.episode[at + 1] != data.episode[at]:
                total += factor * 3 * data.next_observations[at, 0].item()
                break
            at += 1
        found[int(data.rows[index])] = total
    returns = torch.tensor([found[int(row)] for row in rows_of(data)], dtype=torch.float64)
    numbers = look(BackendWatcher(source, Looked(data, None), 100))
    values = 3 * data.observations[[place[int(row)] for row in rows_of(data)], 0].double()
    gap = (values - returns).mean() / returns.std(correction=0)
    assert numbers["value_bias"] == pytest.approx(gap.item(), rel=1e-4)
    both = torch.corrcoef(torch.stack([values, returns]))[0, 1].item()
    assert numbers["value_correlation"] == pytest.approx(both, rel=1e-4)
    assert "td_error_held_out" not in numbers


def test_candidates_are_those_that_a_policy_of_the_prior_selects_among(
    data: Transitions, prior: Prior
) -> None:
    watcher = CandidatesWatcher(Source(first, first), prior, Looked(data, None), 100)
    numbers = look(watcher)
    policy = (
        SelectOnly(candidates=watching.ACTIONS, solver=FEW_STEPS)
        .build(data.spec, 0, prior)
        .policy(q=lambda observations, actions: actions[None, ..., 0])
    )
    batch = data.at(some_rows(data))
    shape = (STATES, watching.ACTIONS, 2)
    noise = randn(SEED, "alarms/candidates", 0, shape)
    chosen = policy.decide(batch.observations, noise).actions
    taken = batch.actions[:, 0]
    margin = (chosen[:, 0] - taken).mean() / taken.std(correction=0)
    assert numbers["prior_above_data"] == pytest.approx(margin.item(), rel=1e-4)
    share = (chosen[:, 0] > taken).float().mean().item()
    assert numbers["prior_above_data_share"] == pytest.approx(share)
    at_edge = (chosen.abs() > 0.99).float().mean().item()
    assert numbers["choices_at_edge"] == pytest.approx(at_edge)
    assert numbers["member_agreement"] == pytest.approx(1)
    turned = CandidatesWatcher(
        Source(first, lambda actions: -first(actions)), prior, Looked(data, None), 100
    )
    assert look(turned)["member_agreement"] == pytest.approx(-1)
    # a single member agrees with nobody: no number rather than a wrong one
    alone = CandidatesWatcher(Source(first), prior, Looked(data, None), 100)
    assert "member_agreement" not in look(alone)


def test_v_is_compared_with_what_balances_the_ratios_of_a_state(
    data: Transitions, prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With KL, T log E[e^(q / T)] over the data's action and those of the prior: V three
    temperatures above it everywhere is off by 3.
    """
    network = MLP(hidden=(8,))
    config = FDice(divergence="kl", temperature=0.2, value=network, critic=network)
    backend = config.build(data.spec, 0)
    watcher = CandidatesWatcher(backend, prior, Looked(data, None), 100)
    batch = data.at(some_rows(data))
    policy = SelectOnly(candidates=watching.ACTIONS, solver=FEW_STEPS).build(data.spec, 0, prior)
    noise = randn(SEED, "alarms/candidates", 0, (STATES, watching.ACTIONS, 2))
    with torch.no_grad():
        candidates = policy.sampler()(batch.observations, noise).clamp(-1, 1)
        actions = [batch.actions, *candidates.unbind(1)]
        q = torch.stack([backend.reduced_q(batch.observations, action) for action in actions], -1)
    exact = 0.2 * (torch.logsumexp(q / 0.2, -1) - math.log(len(actions)))
    monkeypatch.setattr(type(backend), "value", lambda self, observations: exact + 0.6)
    assert look(watcher)["value_error"] == pytest.approx(3, abs=1e-3)


def test_a_prior_is_looked_at_with_the_same_noise_each_time(
    data: Transitions, prior: Prior
) -> None:
    """A network that predicts 0 has the error |noise|^2: of the noise that is drawn, near 2."""
    network = {"width": 8, "blocks": 1}
    silent = DiffusionPrior(network=network, prediction="noise").build(data.spec, 0)
    for parameter in silent.averaged.parameters():
        parameter.zero_()
    split = looked(data)
    numbers = look(PriorWatcher(silent, split, 100))
    shape = (watching.TIMES, STATES // watching.TIMES, 2)
    noise = randn(SEED, "alarms/noise", 0, shape)
    squared = noise.square().sum(-1).mean().item()
    assert numbers == pytest.approx(
        {"denoising_error": squared, "denoising_error_held_out": squared}, rel=1e-5
    )
    watcher = PriorWatcher(prior, split, 100)
    assert look(watcher) == look(watcher) != numbers
    assert list(look(PriorWatcher(prior, Looked(data, None), 100))) == ["denoising_error"]


@pytest.mark.parametrize(("steps", "pace"), [(0, 100), (2500, 100), (2501, 101), (20_000, 800)])
def test_looks_are_rare(steps: int, pace: int, data: Transitions, prior: Prior) -> None:
    (watcher,) = watching.alarms("prior", steps, looked(data), prior, None)
    assert watcher.every == pace


# -- what they ask for


def curve(*values: float, every: int = 100) -> list[tuple[int, float]]:
    return [(every * number, value) for number, value in enumerate(values, 1)]


def test_the_last_fifth_of_learning_is_that_of_the_summed_rates(data: Transitions) -> None:
    steps = 10_000
    for decay, share in verdicts.LAST_FIFTH.items():
        optimizer = Optimizer(learning_rate=1e-3, decay=decay)
        part = DiffusionPrior(optimizer=optimizer).build(data.spec, 0).until(steps)
        rates = torch.tensor([part.learning_rate(step) for step in range(0, steps, 10)])
        done = rates.double().cumsum(0) / rates.double().sum()
        assert share == pytest.approx((done < 0.8).sum().item() * 10 / steps, abs=2e-3)


def test_a_fall_is_read_between_two_looks() -> None:
    """At step 250 the line is at 0.7: from there to 0.35 is a half."""
    assert verdicts.fall(curve(1.0, 0.8, 0.6, 0.35), 250) == pytest.approx(0.5)
    assert verdicts.fall(curve(1.0, 0.8, 0.6, 0.35), 50) is None
    assert verdicts.fall([], 50) is None


def test_a_prior_that_still_learns_is_to_be_trained_longer() -> None:
    """As on Hopper: 6,000 steps, an error of 0.364 in their middle and 0.344 at the end."""
    hopper = curve(0.434, 0.402, 0.385, 0.374, 0.364, 0.356, 0.352, 0.347, 0.345, 0.344, every=600)
    (text,) = verdicts.of_prior(hopper, [], 6000, "cosine")
    assert "on the rows that it trains on fell by 6.0%" in text
    assert "steps.prior above 6,000" in text
    (text,) = verdicts.of_prior(curve(*[0.3] * 10), hopper, 6000, "cosine")
    assert "on held-out episodes fell by 6.0%" in text
    flat = curve(*[0.35] * 9, 0.35 * (1 - verdicts.STILL_FALLS) + 1e-3, every=600)
    assert verdicts.of_prior(flat, [], 6000, "constant") == []
    # 0.347 to 0.344: the last fifth of the steps alone would not have shown it
    assert verdicts.of_prior(hopper, [], 6000, "constant") == []


def test_a_prior_that_overfits_is_to_be_stopped() -> None:
    falling = curve(*torch.linspace(0.5, 0.1, 10).tolist())
    held_out = curve(0.5, 0.4, 0.32, 0.3, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36)
    (text,) = verdicts.of_prior(falling, held_out, 1000, "cosine")
    assert "overfits" in text
    assert "least at step 400 and has risen by 20.0% since" in text
    assert "steps.prior=400" in text
    wobbles = curve(0.5, 0.4, 0.32, *[0.3] * 6, 0.3 * (1 + verdicts.RISES) - 1e-3)
    assert verdicts.of_prior(falling, wobbles, 1000, "cosine") == []


# measured: the last look at a critic on Hopper medium-expert, and on a maze
HOPPER = {
    "alarms/uniform_above_data": 0.0170,
    "alarms/uniform_above_data_share": 0.8262,
    "alarms/value_bias": 0.0466,
    "candidates/prior_above_data": 0.0116,
    "candidates/member_agreement": 0.2359,
}
MAZE = {
    "alarms/uniform_above_data": 0.0380,
    "alarms/uniform_above_data_share": 0.7754,
    "alarms/value_bias": 0.2642,
    "candidates/prior_above_data": 0.0366,
    "candidates/member_agreement": 0.8185,
    "mean_ratio": 1.02,
    "mean_ratio_expected": 1.0,
}


def test_a_critic_that_can_be_trusted_is_not_complained_of() -> None:
    assert verdicts.of_backend(MAZE, candidates=4) == []
    assert verdicts.of_backend({}, candidates=4) == []


def test_selection_that_cannot_be_trusted_is_complained_of_once_and_with_every_reason() -> None:
    (text,) = verdicts.of_backend(HOPPER, candidates=4)
    assert text.startswith("selection among 4 candidates cannot be trusted: in 83% of the states")
    assert "by 0.017 deviations of Q, and the best of 8 of the prior by 0.012 only" in text
    assert "agree in their ranks of candidates by 0.24 only" in text
    for advice in ("candidates=1", '"lcb"', "LayerNorm", "critic_members"):
        assert advice in text
    assert verdicts.of_backend(HOPPER, candidates=1) == []


@pytest.mark.parametrize(
    ("changes", "trips"),
    [
        ({"candidates/member_agreement": 0.49}, "agree"),
        ({"candidates/member_agreement": 0.51}, ""),
        ({"alarms/uniform_above_data": 0.0366 * 1.26}, "blind"),
        ({"alarms/uniform_above_data": 0.0366 * 1.24}, ""),
        # a few states alone
        ({"alarms/uniform_above_data": 1.0, "alarms/uniform_above_data_share": 0.5}, ""),
        # the prior's best falls below the data
        ({"candidates/prior_above_data": -0.1}, "blind"),
        ({"candidates/prior_above_data": -0.1, "alarms/uniform_above_data": -0.05}, ""),
        ({"alarms/value_bias": 1.1}, "V stands 1.1 deviations above"),
        ({"alarms/value_bias": 0.9}, ""),
        ({"alarms/value_bias": -3.0}, ""),
        ({"candidates/value_error": 1.1}, "V is 1.1 temperatures off"),
        ({"candidates/value_error": 0.9}, ""),
        ({"mean_ratio": 6.1}, "the mean ratio is 6.1 where it should be 1"),
        ({"mean_ratio": 1.9}, ""),
        ({"mean_ratio": 0.4}, "mean ratio"),
        ({"mean_ratio": 0.0101, "mean_ratio_expected": 0.01}, ""),
    ],
    ids=str,
)
def test_each_threshold(changes: dict[str, float], trips: str) -> None:
    found = verdicts.of_backend({**MAZE, **changes}, candidates=2)
    assert len(found) == bool(trips)
    assert not trips or trips in found[0]


def test_what_a_calibration_mends_is_not_complained_of() -> None:
    numbers = {**MAZE, "candidates/value_error": 9.0, "mean_ratio": 6.0}
    assert len(verdicts.of_backend(numbers, candidates=1)) == 2
    assert verdicts.of_backend(numbers, candidates=1, calibrated=True) == []


def test_v_is_complained_of_whatever_is_selected() -> None:
    (text,) = verdicts.of_backend({**MAZE, "alarms/value_bias": 2.0}, candidates=1)
    for advice in ("temperature", "pessimism", "discount"):
        assert advice in text


# -- where it is said


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write_npz(tmp_path_factory.mktemp("data") / "small.npz")


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDICE_CACHE", str(tmp_path / "cache"))


def recipe(npz: Path, **changes: Any) -> Recipe:
    quick = {"device": "cpu", "evaluation": {"episodes": 0}, "data": {"validation": 0.25}}
    return small.recipe(npz, **small.merge(quick, changes))


@pytest.fixture
def distrustful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No members agree enough."""
    monkeypatch.setattr(verdicts, "MEMBERS_AGREE", math.inf)


def said(recipe: Recipe, run: Path | None) -> tuple[list[str], list[str]]:
    """What a training says, and of what it warns."""
    heard: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(recipe, run, progress=False, say=heard.append)
    texts = [str(warning.message) for warning in caught]
    return heard, [text for text in texts if "cannot be trusted" in text]


@pytest.mark.parametrize("schedule", ["staged", "joint"])
@pytest.mark.usefixtures("distrustful")
def test_a_run_says_its_alarms_at_its_end_and_in_its_status(
    schedule: str, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """When it is trained, and again when it is found trained by another run."""
    stage = "backend" if schedule == "staged" else "joint"
    settings = recipe(npz, schedule=schedule)
    for run in (tmp_path / "first", tmp_path / "again"):
        heard, warned = said(settings, run)
        assert len(warned) == 1
        assert warned[0].startswith(f"{stage}: selection among 2 candidates cannot be trusted")
        assert heard.count(f"alarms of the stage {stage}") == 1
        assert main(["status", str(run)]) == 0
        shown = capsys.readouterr().out.splitlines()
        assert sum(line == f"warning     {warned[0]}" for line in shown) == 1
        lines = heard[heard.index("alarms of the stage prior") :]
        assert shown[-len(lines) :] == lines
        assert main(["status", "--json", str(run)]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["warnings"] == warned
        assert set(content["alarms"]) == {"prior", stage}
        assert {*content["alarms"]["prior"], *content["alarms"][stage]} == set(report.LABELS)
        assert not set(content["metrics"]) & set(report.LABELS) or schedule == "joint"


@pytest.mark.usefixtures("distrustful")
def test_without_a_run_folder_they_are_said_too(npz: Path) -> None:
    """When it is trained: what is found trained has left nothing to judge by."""
    for trained in (True, False):
        heard, warned = said(recipe(npz), None)
        assert len(warned) == trained
        assert ("alarms of the stage backend" in heard) is trained


@pytest.mark.usefixtures("distrustful")
@pytest.mark.filterwarnings("ignore:.*cannot be trusted")
def test_a_comparison_tells_its_status(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the policy that it is at; what was seen for one policy is found again for the next."""
    written: list[status.Status] = []

    def change(self: status.Reporter, **fields: Any) -> None:
        change_of_before(self, **fields)
        written.append(self.status)

    change_of_before = status.Reporter._change
    monkeypatch.setattr(status.Reporter, "_change", change)
    comparison = Comparison(
        recipe=recipe(npz, evaluation={"episodes": 1}),
        backends={"piecewise_f": small.BACKENDS["piecewise_f"]},
        extractors={name: small.EXTRACTORS[name] for name in ("select_only", "gaussian_bc")},
        seeds=(0,),
    )
    heard: list[str] = []
    compare(comparison, tmp_path / "run", progress=False, say=heard.append)
    # Before the first and after the last the grid is at no policy.
    texts = {one.policy.split(",")[0]: one.warnings for one in written if one.policy}
    assert {policy: len(found) for policy, found in texts.items()} == {
        "behaviour policy": 0,
        "piecewise_f + select_only": 1,
        "piecewise_f + gaussian_bc": 0,  # it has one candidate
    }
    assert sum("found trained" in text for text in heard) >= 2
    assert not [text for text in heard if "missing" in text]


def test_training_is_the_same_with_and_without_alarms(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for folder in ("with", "without"):
        monkeypatch.setenv("DDICE_CACHE", str(tmp_path / folder))
        if folder == "without":
            monkeypatch.setattr("ddice.runs.stages.alarms", lambda *_: ())
        settings = recipe(npz, data={"validation": 0.0})
        trained = Training(settings, settings.data.load(), progress=False, say=lambda text: None)
        part = trained.train()
        states = [part.prior.state(), part.backend.state(), part.extractor.state()]
        found.append(torch.cat([x.double().flatten() for one in states for x in one.values()]))
    assert torch.equal(*found)
