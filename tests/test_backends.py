from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from tabular import RAW, TABLE, bandit, error, quick, random_problem, ratio, train

import ddice
from ddice.dice_backends import (
    AdvantageHead,
    DeterministicDice,
    FDice,
    Iql,
    LowerBound,
    Minimum,
    OptiDice,
    OrthogonalDice,
    PiecewiseF,
    QConfig,
)
from ddice.dice_backends.advantage import clipped_targets
from ddice.dice_backends.diagnostics import ratio_metrics
from ddice.dice_backends.divergences import KL, HalfPearson, Piecewise
from ddice.dice_backends.optidice import dual_loss, envelope_loss
from ddice.dice_backends.semi_gradient import value_loss
from ddice.parts.part import effective_sample_size, weighted_mean

HEAD = AdvantageHead(network=TABLE, members=1, clip_deviations=1000)
TEMPERATURE = 0.6
ALL = {
    "value": TABLE,
    "encoder": RAW,
    "optimizer": quick(0.1),
    "temperature": TEMPERATURE,
    "discount": 0.0,
}
COMMON = {**ALL, "polyak": 0.3}


@pytest.mark.parametrize("given", ["ess:0", "ess:1", "ess:1.5", "ess:x", "low", 0, -1.0, "-2"])
def test_a_senseless_temperature(given) -> None:
    with pytest.raises(ValueError, match=r"temperature|effective sample size"):
        PiecewiseF(temperature=given)


def test_a_temperature_from_the_command_line() -> None:
    assert PiecewiseF(temperature="0.25").temperature == 0.25
    assert PiecewiseF(temperature="ess:.5").temperature == "ess:.5"


def test_value_loss_by_hand() -> None:
    """KL: f*(y) = e^y - 1, weights 1 and 3."""
    y, v = torch.tensor([0.0, math.log(2.0)]), torch.tensor([1.0, 4.0])
    loss = value_loss(y, v, torch.tensor(2.0), KL(), 0.5, torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((1 * (0 + 0.5 * 1 / 2) + 3 * (1 + 0.5 * 4 / 2)) / 4)


def test_dual_loss_by_hand() -> None:
    """Half Pearson: f*(y) = y^2 / 2 + y above -1, else -1/2."""
    advantage = torch.tensor([1.0, -9.0])
    weights = torch.tensor([3.0, 1.0])
    loss = dual_loss(
        advantage,
        torch.tensor(0.5),
        torch.tensor(0.3),
        weights,
        divergence=HalfPearson(),
        temperature=torch.tensor(2.0),
    )
    assert loss.item() == pytest.approx(0.3 + 2 * (3 * (0.25**2 / 2 + 0.25) + 1 * -0.5) / 4 + 0.5)


@pytest.mark.oracle
def test_the_envelope_has_the_gradient_of_the_dual() -> None:
    advantage, lam = (
        torch.randn(7, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        torch.tensor(0.2, requires_grad=True),
    )
    weights, initial = torch.rand(7, generator=torch.Generator().manual_seed(1)), torch.tensor(0.0)
    exact = dual_loss(
        advantage, lam, initial, weights, divergence=Piecewise(), temperature=torch.tensor(0.5)
    )
    w = torch.from_numpy(ratio("piecewise", ((advantage - lam) / 0.5).detach().numpy())).float()
    envelope = envelope_loss(advantage, w, lam, initial, weights)
    for one, other in zip(
        *(torch.autograd.grad(loss, (advantage, lam)) for loss in (exact, envelope)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_weighted_mean_by_hand() -> None:
    assert weighted_mean(torch.tensor([1.0, 5.0]), torch.tensor([3.0, 1.0])).item() == 2
    assert weighted_mean(
        torch.tensor([[1.0, 5.0], [0.0, 2.0]]), torch.tensor([3.0, 1.0])
    ).tolist() == [2, 0.5]


def test_effective_sample_size_by_hand() -> None:
    """(sum p w)^2 / sum p w^2, in logarithms: a row counted three times is three rows."""
    assert effective_sample_size(
        torch.tensor([0.3, 0.3, 0.3]), torch.ones(3)
    ).item() == pytest.approx(1)
    w = torch.tensor([1.0, 3.0])
    assert effective_sample_size(w.log(), torch.ones(2)).item() == pytest.approx(16 / 20)
    assert effective_sample_size(w.log(), torch.tensor([3.0, 1.0])).item() == pytest.approx(
        (6 / 4) ** 2 / (12 / 4)
    )
    repeated = torch.tensor([1.0, 1.0, 1.0, 3.0])
    assert effective_sample_size(repeated.log(), torch.ones(4)).item() == pytest.approx(
        (6 / 4) ** 2 / (12 / 4)
    )
    assert effective_sample_size(
        torch.tensor([-torch.inf, 0.0]), torch.ones(2)
    ).item() == pytest.approx(0.5)
    assert effective_sample_size(torch.tensor([-torch.inf, -torch.inf]), torch.ones(2)).item() == 0
    assert effective_sample_size(
        torch.tensor([-300.0, -300.0]), torch.ones(2)
    ).item() == pytest.approx(1)
    assert effective_sample_size(torch.tensor([0.0, 80.0]), torch.ones(2)).item() == pytest.approx(
        0.5, rel=1e-5
    )


def test_ratio_metrics_by_hand() -> None:
    metrics = ratio_metrics(torch.tensor([0.0, 2.0, 4.0]).log(), torch.tensor([2.0, 1.0, 1.0]))
    assert metrics["mean_ratio"].item() == pytest.approx(6 / 4)
    assert metrics["zero_rate"].item() == pytest.approx(0.5)
    assert metrics["largest_weight"].item() == pytest.approx(4 / 6)
    assert metrics["effective_sample_size"].item() == pytest.approx((6 / 4) ** 2 / (20 / 4))
    nothing = ratio_metrics(torch.full((3,), -torch.inf), torch.ones(3))
    assert {name: value.item() for name, value in nothing.items()} == {
        "mean_ratio": 0, "effective_sample_size": 0, "zero_rate": 1, "largest_weight": 0
    }  # fmt: skip


def test_clipped_targets_by_hand() -> None:
    """Mean 0 and variance (4 + 4 + 64) / 9 with the weights 4, 4, 1."""
    targets, weights = torch.tensor([-1.0, -1.0, 8.0]), torch.tensor([4.0, 4.0, 1.0])
    mean, deviation = 0.0, math.sqrt(8)
    clipped, share = clipped_targets(targets, weights, 2.0)
    assert clipped.tolist() == pytest.approx([-1, -1, mean + 2 * deviation])
    assert share.item() == pytest.approx(1 / 9)
    untouched, share = clipped_targets(targets, weights, 3.0)
    assert torch.equal(untouched, targets)
    assert share.item() == 0
    together, shares = clipped_targets(
        torch.stack([targets, 2 * targets]), torch.stack([weights, weights]), 2.0
    )
    torch.testing.assert_close(together, torch.stack([clipped, 2 * clipped]))
    torch.testing.assert_close(shares, torch.tensor([1 / 9, 1 / 9]))


def test_outliers_reach_the_advantage_head_clipped() -> None:
    problem = dataclasses.replace(
        bandit(0), r=np.r_[np.zeros(19), 100.0], p=np.r_[np.full(19, 0.999 / 19), 0.001]
    )
    head = AdvantageHead(network=TABLE, members=1, clip_deviations=3)
    backend = DeterministicDice(advantage=head, **COMMON).build(problem.data().spec)
    assert backend.update(problem.data().full(), step=0)[
        "advantage_clip_rate"
    ].item() == pytest.approx(0.001, rel=1e-3)


def chain() -> ddice.data.Transitions:
    """Two episodes: 0 -> 1 -> 2 -> end with rewards 1, 2, 4, and 3 -> 4 cut by time with rewards
    8, 16; actions that say nothing.
    """
    states = np.eye(6, dtype=np.float32)
    arrays = {
        "observations": states[:5],
        "next_observations": states[[1, 2, 5, 4, 5]],
        "actions": np.zeros((5, 1), np.float32),
        "rewards": np.array([1.0, 2.0, 4.0, 8.0, 16.0]),
        "terminations": np.array([0, 0, 1, 0, 0], bool),
        "truncations": np.array([0, 0, 0, 0, 1], bool),
    }
    return ddice.load_dataset(arrays, action_bounds=(-1, 1))


START = {
    "discount": 0.5,
    "warm_start_steps": 400,
    "rewards": ({"kind": "scale", "factor": 0.5},),
}
WARM = {**COMMON, **START}
RETURNS = 0.5 * np.array([1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4, 8 + 0.5 * 16, 16])


@pytest.mark.oracle
@pytest.mark.parametrize(
    "config",
    [
        PiecewiseF(critic=TABLE, **WARM),
        Iql(critic=TABLE, **WARM),
        DeterministicDice(**WARM),
        OrthogonalDice(**WARM),
        OptiDice(**{**ALL, **START}),
    ],
    ids=lambda c: c.kind,
)
def test_after_the_warm_start_values_are_returns_to_go(config) -> None:
    data = chain()
    config = config.model_copy(update={"optimizer": quick(0.2)})
    backend = config.build(data.spec)
    backend.prepare(data)
    train(backend, data.full(), 400)
    assert error(backend.value(torch.eye(6)[:5]), RETURNS) < 1e-3
    if config.kind in ("piecewise_f", "iql"):
        assert error(backend.q(torch.eye(6)[:5], torch.zeros(5, 1)).amin(0), RETURNS) < 1e-3
    elif config.kind != "optidice":  # which bootstraps from the live V
        assert torch.equal(backend.target(torch.eye(6)), backend.value_network(torch.eye(6)))
    before = backend.value_network(torch.eye(6)).detach().clone()
    backend.until(800)
    metrics = backend.update(data.full(), step=400)
    assert "mean_ratio" in metrics
    assert not torch.equal(before, backend.value_network(torch.eye(6)))


def test_a_warm_start_without_the_dataset() -> None:
    data = chain()
    backend = PiecewiseF(**WARM).build(data.spec)
    with pytest.raises(ValueError, match=r"call backend\.prepare\(data\)"):
        backend.update(data.full(), step=0)


def test_a_warm_start_needs_episodes() -> None:
    data = random_problem(0).data()
    with pytest.raises(ValueError, match="independent transitions"):
        PiecewiseF(**WARM).build(data.spec).prepare(data)


def test_a_warm_start_reads_returns_by_source_row() -> None:
    """In any order and of any part of the data."""
    data = chain()
    part = data.subset(0.5, seed=1)
    backend = DeterministicDice(**WARM).build(data.spec)
    backend.prepare(part)
    batch = part.sample(20, seed=0, step=0)
    np.testing.assert_allclose(
        backend.warm_start_target(batch, 0), RETURNS[batch.rows.numpy()], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("reduction", "reduced"),
    [
        ("minimum", lambda q: q.min(0)),
        (LowerBound(pessimism=1.5), lambda q: q.mean(0) - 1.5 * q.std(0, ddof=1)),
        (LowerBound(pessimism=0.0), lambda q: q.mean(0)),
    ],
)
def test_the_reduced_critic_enters_the_ratio_and_the_loss_of_values(reduction, reduced) -> None:
    """KL: w = e^y, and the loss of V is E[e^y - 1 + V / temperature]."""
    problem = bandit(0)
    config = FDice(divergence="kl", critic=TABLE, critic_members=3, reduction=reduction, **COMMON)
    backend, batch = config.build(problem.data().spec), problem.data().full()
    observations, actions = problem.query()
    q, v = backend.q(observations, actions).detach().numpy(), backend.value(observations)
    assert q.shape == (3, 20)
    v = v.detach().numpy()
    w = np.exp((reduced(q) - v) / TEMPERATURE)
    np.testing.assert_allclose(backend.ratio(batch), w[problem.pair], rtol=1e-5)
    loss = backend.until(1).update(batch, step=0)["v_loss"].item()
    assert loss == pytest.approx((problem.pairs * (w - 1 + v / TEMPERATURE)).sum(), rel=1e-5)


def test_reductions_by_hand() -> None:
    """Members 1, 4, 7: mean 4, sample deviation 3. The members' axis is the last but one."""
    q = torch.tensor([[1.0, 0.0], [4.0, 0.0], [7.0, 6.0]])
    torch.testing.assert_close(LowerBound(pessimism=0.5).reduce(q), torch.tensor([2.5, 2 - 3**0.5]))
    assert Minimum().reduce(q).tolist() == [1, 0]
    seeds = LowerBound(pessimism=1.0).reduce(torch.stack([q, q + 1]))
    torch.testing.assert_close(seeds[1], LowerBound(pessimism=1.0).reduce(q) + 1)
    assert LowerBound(pessimism=0.0).reduce(q[:1]).tolist() == Minimum().reduce(q[:1]).tolist()


@pytest.mark.parametrize("part", [PiecewiseF, FDice, Iql])
def test_pessimism_needs_members(part) -> None:
    with pytest.raises(ValueError, match=r"pessimism = 0.5 counts .* got critic_members = 1"):
        part(critic_members=1, reduction=LowerBound(pessimism=0.5))
    fields = {"critic_members": 1, "reduction": {"kind": "lower_bound", "pessimism": 0}}
    assert part.model_validate(fields).reduction == LowerBound(pessimism=0.0)
    assert part(reduction="minimum") == part()


@pytest.mark.parametrize(
    "config",
    [
        PiecewiseF(),
        FDice(selector="ensemble"),
        PiecewiseF(selector="advantage"),
        DeterministicDice(),
        OrthogonalDice(),
        OptiDice(),
        QConfig(),
    ],
    ids=lambda config: getattr(config, "kind", "q"),
)
def test_networks_that_score_actions_have_layer_norm(config) -> None:
    """One behind each of the two hidden layers, and none behind the output."""
    part = config.build(bandit(0).data().spec)
    q = part if isinstance(config, QConfig) else part.q
    operations = [layer.op for layer in q.critic.plan()]
    assert operations == ["linear", "layer_norm", "relu"] * 2 + ["linear"]


def test_optidice_needs_initial_observations() -> None:
    problem = random_problem(0)
    spec = problem.data().spec.model_copy(update={"has_initial": False})
    with pytest.raises(ValueError, match="needs initial observations"):
        OptiDice().build(spec)
    backend = OptiDice(rewards=()).build(problem.data().spec)
    with pytest.raises(ValueError, match=r"batch\.initial"):
        backend.update(next(problem.data().batches(4)), step=0)


def test_kinds_of_ratio() -> None:
    data = random_problem(0).data()
    kinds = {
        config.kind: config.build(data.spec).ratio_kind
        for config in (
            PiecewiseF(),
            FDice(divergence="kl"),
            Iql(),
            DeterministicDice(),
            OrthogonalDice(),
            OptiDice(),
        )
    }
    action = dict.fromkeys(("piecewise_f", "f_dice", "iql", "deterministic"), "action")
    assert kinds == {**action, "orthogonal": "state-action", "optidice": "state-action"}


def test_a_misspelt_field_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        PiecewiseF(temperatur=1.0)
    with pytest.raises(ValueError, match="did you mean 'pearson'"):
        FDice(divergence="pearso")


@pytest.mark.parametrize("discount", [1.0, -0.1, 1.5])
def test_a_senseless_discount(discount: float) -> None:
    with pytest.raises(ValueError, match="discount"):
        PiecewiseF(discount=discount)


@pytest.mark.oracle
def test_a_weight_is_a_number_of_copies() -> None:
    """A batch with weights 1, 2, 3 trains as the batch in which these rows stand once, twice and
    three times.
    """
    problem = random_problem(0, terminate=0.4)
    batch = problem.data().full()
    counts = torch.arange(len(batch.rows)) % 3 + 1
    copies = torch.repeat_interleave(torch.arange(len(counts)), counts)
    repeated = dataclasses.replace(
        batch,
        **{
            f.name: getattr(batch, f.name)[copies]
            for f in dataclasses.fields(batch)
            if f.name != "initial"
        },
    )
    repeated = dataclasses.replace(repeated, weights=torch.ones(len(copies)))
    for config in (
        PiecewiseF(critic=TABLE, **COMMON),
        OptiDice(advantage=HEAD, **ALL),
        OrthogonalDice(advantage=HEAD, **COMMON),
    ):
        weighted, plain = (config.build(problem.data().spec) for _ in range(2))
        one = weighted.update(dataclasses.replace(batch, weights=counts.float()), step=0)
        other = plain.update(repeated, step=0)
        for name in one.keys() - {"largest_weight"}:
            torch.testing.assert_close(
                one[name],
                other[name],
                rtol=1e-4,
                atol=1e-5,
                msg=lambda m, name=name: f"{name}: {m}",
            )
        gradients = [
            [p.grad for p in part.parameters() if p.grad is not None] for part in (weighted, plain)
        ]
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.oracle
def test_terminated_rows_never_read_their_next_observation() -> None:
    problem = random_problem(0, terminate=0.6)
    batch = problem.data().full()
    garbage = torch.where(batch.terminations[:, None], torch.tensor(1e6), batch.next_observations)
    for config in (
        PiecewiseF(critic=TABLE, **COMMON),
        Iql(critic=TABLE, **COMMON),
        DeterministicDice(**COMMON),
        OrthogonalDice(**COMMON),
        OptiDice(**ALL),
    ):
        config = config.model_copy(update={"discount": 0.9})
        one, other = (
            config.build(problem.data().spec).until(2).update(b, step=0)
            for b in (batch, dataclasses.replace(batch, next_observations=garbage))
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "config",
    [PiecewiseF(critic=TABLE, **COMMON), DeterministicDice(**COMMON), Iql(critic=TABLE, **COMMON)],
    ids=lambda c: c.kind,
)
def test_values_that_have_run_away(config) -> None:
    """Rewards between -1 and 2, discount 0.5: no return lies outside -2 .. 4, and 0.3 is allowed
    for, for one seed and for several.
    """
    problem = random_problem(0, branches=1)
    problem = dataclasses.replace(problem, r=np.linspace(-1, 2, len(problem.r)))
    config, data = config.model_copy(update={"discount": 0.5}), problem.data()
    cure = "Lower the expectile" if config.kind == "iql" else "Raise the temperature"
    advice = f"They have run away, and the ratios with them. {cure}".lower()
    for seed in (0, (0, 1)):
        backend = config.build(data.spec, seed=seed)
        for value, warns in ((4.2, False), (4.4, True), (-2.2, False), (-2.4, True)):
            with torch.no_grad():
                backend.value_network.linear_0_weight.zero_()
                backend.value_network.linear_0_bias.zero_()
                backend.value_network.linear_0_bias[-1:] = value  # of the last seed
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                backend.check_trained(data)
            assert (
                [str(w.message) for w in caught if advice in str(w.message).lower()] != []
                if warns
                else not caught
            )
