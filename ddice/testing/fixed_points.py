"""Backends on finite problems: tables for networks, one exact batch, and how far the learned ratios
are from the exact ones.

problem = random_problem(0, states=50, actions=5, terminate=0.3) backend = FDice(divergence="kl",
critic=TABLE, **table_settings(temperature=1.0, discount=0.9)).build(problem.data().spec)
train(backend, problem.data().full(), 2000) relative_error(backend.ratio(problem.data().full()),
semi_gradient(problem, "kl", 1.0, 0.9).w[problem.s, problem.a])
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddice.core.config import Config
from ddice.data import Batch, Transitions
from ddice.data.batch import InitialBatch
from ddice.dice_backends import AdvantageHead, OrthogonalDice
from ddice.diffusion.networks import MLP, FlattenEncoder
from ddice.ope import ActionCache
from ddice.parts.part import Optimizer, Part
from ddice.testing.exact import (
    dual,
    occupancy,
    orthogonal_dual,
    policy_of,
    policy_value,
    semi_gradient,
    state_action_ratio,
)
from ddice.testing.tabular import Array, Problem

TABLE = MLP(hidden=())
RAW = FlattenEncoder(normalize=False)
C = TypeVar("C", bound=Config)


def quick(learning_rate: float = 0.05) -> Optimizer:
    """A learning rate that falls to 0 along a cosine: what tables are trained with."""
    return Optimizer(learning_rate=learning_rate, decay="cosine")


def table_settings(
    *, temperature: float, discount: float, learning_rate: float = 0.1, pair: bool = True
) -> dict[str, Any]:
    """The fields that make any backend a table: `pair` for those with a critic, else for those
    with an advantage head.
    """
    head = AdvantageHead(network=TABLE, members=1, clip_deviations=1000)
    fields = {
        "value": TABLE,
        "encoder": RAW,
        "temperature": temperature,
        "discount": discount,
        "optimizer": quick(learning_rate),
        "polyak": 0.3,
    }
    return fields | ({"critic": TABLE} if pair else {"advantage": head})


def as_table(config: C, *, temperature: float, discount: float, learning_rate: float = 0.1) -> C:
    """The same backend with tables for its networks, raw observations and rewards, and a learning
    rate that falls to 0.
    """
    head = AdvantageHead(network=TABLE, members=1, clip_deviations=1000)
    by_type: dict[type, object] = {
        MLP: TABLE,
        FlattenEncoder: RAW,
        AdvantageHead: head,
        Optimizer: quick(learning_rate),
    }
    by_name: dict[str, object] = {
        "temperature": temperature,
        "discount": discount,
        "polyak": 0.3,
        "rewards": (),
    }
    fields = {name: by_type.get(type(value), by_name.get(name, value)) for name, value in config}
    return type(config)(**fields)


def stacked(problems: Sequence[Problem]) -> Batch:
    """Problems of the same sizes along the axis of the seeds, to be trained all at once."""
    batches = [problem.data().full() for problem in problems]
    initial = [batch.initial for batch in batches]
    fields = {
        f.name: torch.stack([getattr(b, f.name) for b in batches])
        for f in dataclasses.fields(Batch)
        if f.name != "initial"
    }
    first = InitialBatch(
        *(torch.stack([getattr(i, name) for i in initial]) for name in ("observations", "weights"))
    )
    return Batch(**fields, initial=first)


def train(part: Part, batch: Batch, steps: int) -> dict[str, Array]:
    """Steps on one and the same batch, with the learning rate falling to 0; the last metrics."""
    part.until(part.step + steps)
    for step in range(part.step, part.step + steps):
        metrics = part.update(batch, step=step)
    return {name: value.numpy() for name, value in metrics.items()}


def _numpy(values: Tensor | Array) -> Array:
    return np.asarray(
        values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64
    )


def error(got: Tensor | Array, expected: Array) -> float:
    """The largest |got - expected|, as a share of the largest |expected|."""
    return float(np.abs(_numpy(got) - expected).max() / np.abs(expected).max())


def relative_error(got: Tensor | Array, expected: Array) -> float:
    """The median of |got - expected| / expected over the entries where `expected` is positive."""
    positive = expected > 0
    return float(np.median(np.abs(_numpy(got) - expected)[positive] / expected[positive]))


def train_orthogonal_limit(config: OrthogonalDice, problem: Problem, steps: int) -> Array:
    """w per outcome (N,) after `steps` steps of Adam along the mean of the backend's own gradients
    of *single* transitions.

    With features that are orthogonal and of one length, eta = 1, no self-loops and no averaging,
    each projected gradient is the true one, so that this ends in `orthogonal_dual`. (The projection
    of a whole batch at once is another method.) Raises ValueError for self-loops.
    """
    if (problem.following == problem.s)[~problem.d].any():
        raise ValueError(
            "expected a problem without transitions of a state to itself: there the projection "
            "removes the whole backward gradient"
        )
    count = len(problem.s)
    basis = np.linalg.qr(
        np.column_stack(
            [
                np.ones(problem.states),
                np.random.default_rng(0).normal(size=(problem.states, problem.states - 1)),
            ]
        )
    )[0]
    features = torch.from_numpy(
        np.sqrt(problem.states) * basis[:, 1:]
    ).float()  # orthogonal to the bias's 1, and as long
    full, spec = problem.data().full(), problem.data().spec
    spec = spec.model_copy(
        update={
            "normalizer": spec.normalizer.model_copy(
                update=dict.fromkeys(("mean", "std"), (0.0,) * (problem.states - 1))
            )
        }
    )
    whole = dataclasses.replace(
        full,
        observations=features[problem.s],
        next_observations=features[problem.following],
        initial=None,
    )
    single = Batch(
        **{
            f.name: getattr(whole, f.name).unsqueeze(1)
            for f in dataclasses.fields(whole)
            if f.name != "initial"
        }
    )
    config = config.model_copy(
        update={"polyak": 1.0, "orthogonal_weight": 1.0, "value": TABLE, "encoder": RAW}
    )
    backend = config.build(spec, seed=tuple(range(count)))  # one copy per transition, kept equal
    master = [
        torch.zeros(p.shape[1:], dtype=torch.float32, device="cpu")
        for p in backend.value_network.parameters()
    ]
    adam, p = (
        torch.optim.Adam(master, lr=config.optimizer.learning_rate),
        torch.from_numpy(problem.p).float(),
    )
    for step in range(steps + 1):
        for network in (backend.value_network, backend.target):
            for own, shared in zip(network.parameters(), master, strict=True):
                own.detach().copy_(shared.expand_as(own))
        if step == steps:
            break
        backend.update(single, step=step)
        for shared, own in zip(master, backend.value_network.parameters(), strict=True):
            assert own.grad is not None
            shared.grad = torch.tensordot(p, own.grad, dims=1)
        adam.param_groups[0]["lr"] = config.optimizer.learning_rate * (
            0.5 + 0.5 * np.cos(np.pi * step / steps)
        )
        adam.step()
    return backend.ratio(single)[:, 0].numpy().astype(np.float64)


def exact_actions(problem: Problem, policy: Array, data: Transitions) -> ActionCache:
    """All actions with their probabilities under `policy` (S, A) in place of samples: fitted Q
    evaluation without sampling error.
    """
    next_state, first_state = (x.argmax(-1) for x in (data.next_observations, _initial(data)))
    table, actions = (
        torch.from_numpy(policy).float(),
        torch.eye(problem.states * problem.actions, dtype=torch.float32, device="cpu").view(
            problem.states, problem.actions, -1
        ),
    )
    return ActionCache(
        actions[next_state], table[next_state], actions[first_state], table[first_state]
    )


def _initial(data: Transitions) -> Tensor:
    if data.initial_observations is None:
        raise ValueError("expected data with initial observations")
    return data.initial_observations


@dataclasses.dataclass(frozen=True)
class Difference:
    """One notion of the ratio on one problem; w normalised to E_D[w (1 - gamma (1 - d))] = 1 -
    gamma.
    """

    name: str
    state_mean_low: float  # the smallest and largest E[w | s]
    state_mean_high: float
    flow: (
        float  # the largest violation of the Bellman flow from mu0, as a share of the largest d(s)
    )
    naive_value: float  # E_D[w r] / (1 - gamma)
    policy_value: float  # the return of pi proportional to pi_D w
    distance: float  # the median relative distance to the OptiDICE ratio


def differences(
    problem: Problem, kind: str = "soft_chi2", *, temperature: float = 0.5, discount: float = 0.9
) -> list[Difference]:
    """What the backends' *exact* fixed points say about one problem at one temperature: they solve
    different problems.

    Rows: the action ratio of the semi-gradient pairs, the same corrected to a state-action ratio,
    OptiDICE's state-action ratio, and the true-gradient limit of the orthogonal one (trade_off 1/2;
    on outcomes where dynamics are stochastic), whose flow starts from the data's states.
    """
    action, optidice = (
        semi_gradient(problem, kind, temperature, discount),
        dual(problem, kind, temperature, discount),
    )
    limit = orthogonal_dual(problem.by_outcome(), kind, temperature, discount, 0.5)
    outcomes = problem.by_outcome()
    ratios = {
        "semi-gradient pair: action": action.w,
        "the same, corrected": state_action_ratio(problem, policy_of(problem, action.w), discount),
        "OptiDICE: state-action": optidice.w,
        "orthogonal, true gradient": problem.expectation(limit.w[outcomes.s, outcomes.a]),
    }
    reference = _normalised(problem, optidice.w, discount)
    return [
        _difference(problem, name, _normalised(problem, w, discount), reference, discount)
        for name, w in ratios.items()
    ]


def _normalised(problem: Problem, w: Array, discount: float) -> Array:
    stays = 1 - discount * ~problem.d
    mass = float((problem.p * w[problem.s, problem.a] * stays).sum())
    return w * (1 - discount) / mass


def _difference(
    problem: Problem, name: str, w: Array, reference: Array, discount: float
) -> Difference:
    flow, policy = problem.p * w[problem.s, problem.a], policy_of(problem, w)
    violation = np.bincount(problem.s, flow, problem.states) - (1 - discount) * problem.mu0
    violation -= discount * np.bincount(problem.following, flow * ~problem.d, problem.states)
    means = (problem.behaviour * w).sum(1)
    return Difference(
        name=name,
        state_mean_low=float(means.min()),
        state_mean_high=float(means.max()),
        flow=float(np.abs(violation).max() / occupancy(problem, policy, discount).max()),
        naive_value=float((flow * problem.r).sum() / (1 - discount)),
        policy_value=policy_value(problem, policy, discount),
        distance=relative_error(w, reference),
    )


def difference_table(rows: Sequence[Difference]) -> str:
    """The rows as a table in Markdown."""
    head = (
        "| ratio | mean per state | flow violation | E[w r]/(1-gamma) | return of pi | "
        "distance to OptiDICE |\n|---|---|---|---|---|---|"
    )
    lines = []
    for r in rows:
        means = f"{r.state_mean_low:.2f} .. {r.state_mean_high:.2f}"
        lines.append(
            f"| {r.name} | {means} | {r.flow:.4f} | {r.naive_value:.3f} | {r.policy_value:.3f} "
            f"| {r.distance:.1%} |"
        )
    return "\n".join([head, *lines])
