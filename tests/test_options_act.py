"""Every field of every configuration acts: another value of it gives another result (a trained
state, a ratio, an action) or is refused. A field without an entry in `OTHER` fails by name.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from ddice.core.config import Config, kind_of, tag_of
from ddice.data import Transitions
from ddice.dice_backends import AdvantageHead, AnyBackend, CriticEnsemble, GivenRatio
from ddice.dice_backends.divergences import Divergence
from ddice.dice_backends.rewards import Rewards, Scale
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP, FlattenEncoder, ResidualScore
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import AnySelection, Selection
from ddice.diffusion.solvers import DDIM
from ddice.extractors import AnyExtractor
from ddice.parts.part import Optimizer
from ddice.testing.example import example_data

NET = MLP(hidden=(8,), activation="silu")
OTHER_NET = MLP(hidden=(8,), activation="relu")
RAW = FlattenEncoder(normalize=False)
SLOW = Optimizer(learning_rate=1e-4)
HEAD = AdvantageHead(network=NET)
PRIOR = DiffusionPrior(network=ResidualScore(width=8, blocks=1), batch_size=16)
GUIDANCE = Guidance(network=NET, batch_size=16, noises_per_action=2)
STEPS = 4


def with_pole(x: Tensor) -> Tensor:
    return -torch.log(x)


def ratio(batch: Any) -> Tensor:
    return 1.0 + (batch.actions[..., 0] > 0).float()


def flat_ratio(batch: Any) -> Tensor:
    return torch.ones_like(batch.rewards)


def critic(observations: Tensor, actions: Tensor) -> Tensor:
    return torch.stack([actions.sum(-1), 2 * actions.sum(-1)])


# the fields of small examples that differ from the defaults, for quickness or because they are
# required, by the kind of the configuration
EXAMPLES: dict[str, dict[str, Any]] = {
    "piecewise_f": {"value": NET, "critic": NET, "batch_size": 16, "selector": HEAD},
    "f_dice": {"value": NET, "critic": NET, "batch_size": 16, "divergence": "kl"},
    "deterministic": {"value": NET, "advantage": HEAD, "batch_size": 16},
    "orthogonal": {"value": NET, "advantage": HEAD, "batch_size": 16},
    "optidice": {"value": NET, "advantage": HEAD, "batch_size": 16},
    "given": {"source": ratio, "q": critic},
    "guide_then_select": {"guidance": GUIDANCE, "candidates": 3, "solver": DDIM(evaluations=3)},
    "weighted_bc": {"candidates": 3, "batch_size": 16, "solver": DDIM(evaluations=3)},
    "gaussian_bc": {"candidates": 3, "batch_size": 16, "network": NET},
    "select_only": {"candidates": 3, "solver": DDIM(evaluations=3)},
    # before a pole: elsewhere max_ratio has nothing to do
    "numeric": {"function": with_pole},
    "alpha": {"order": 0.5},
}
# field -> another value; by "kind.field" where kinds differ
OTHER: dict[str, Any] = {
    "temperature": 0.3,
    "discount": 0.5,
    "rewards": (Scale(factor=3.0),),
    "value": OTHER_NET,
    "encoder": RAW,
    "optimizer": SLOW,
    "batch_size": 17,
    "polyak": 0.5,
    "warm_start_steps": 3,
    "value_weight": 0.5,
    "critic": OTHER_NET,
    "critic_members": 3,
    "selector": CriticEnsemble(members=3),
    "divergence": "soft_chi2",
    "orthogonal.divergence": "pearson",
    "optidice.divergence": "half_pearson",
    "advantage": AdvantageHead(network=OTHER_NET),
    "trade_off": 0.3,
    "orthogonal_weight": 0.2,
    "expectation": "sample",
    "source": flat_ratio,
    "q": lambda observations, actions: -critic(observations, actions),
    "ratio_kind": "state-action",
    "candidates": 2,
    "selection": Selection(rule="softmax", temperature=1e-3),
    "clip_candidates": "after_scoring",
    "guidance_scale": 3.0,
    "guidance": GUIDANCE.model_copy(update={"noises_per_action": 3}),
    "solver": DDIM(evaluations=2),
    "clip_denoised": False,
    "init": "fresh",
    "log_cap": 0.1,
    "network": OTHER_NET,
    "max_ratio": 2.0,
    "order": 0.7,
    "smoothing": 0.5,
    "function": lambda x: 5 * (x - 1) ** 2,
    "factor": 2.0,
    "coefficient": 3.0,
}
# not the numbers of a small training, but what is reported or refused, is seen by these
REASONS: dict[str, str] = {
    "given.ratio_kind": "says what the user's weights mean: it is noted in the policy, and decides "
    "whether ddice.ope and StateCorrection take them (tests/test_given.py)",
}


@cache
def data() -> Transitions:
    return example_data()


def members(union: Any) -> tuple[type[Config], ...]:
    """The final classes of a union, however deep it is annotated."""
    while typing.get_origin(union) is typing.Annotated:
        union = typing.get_args(union)[0]
    return tuple(m for m in typing.get_args(union) if not getattr(m, "is_abstract", False))


def example(cls: type[Config]) -> Config:
    return cls(**EXAMPLES.get(str(kind_of(cls)), {}))


def tensors(*values: Any) -> Tensor:
    return torch.cat([torch.as_tensor(value).detach().double().flatten() for value in values])


def backend(config: Any) -> Tensor:
    """Ratios, Q and metrics after a few steps."""
    part = config.build(data().spec)
    part.prepare(data())
    metrics: dict[str, Tensor] = {}
    for step in range(STEPS):
        size = getattr(part, "batch_size", 16)
        metrics = part.update(data().sample(size, seed=0, step=step), step=step)
    full = data().full()
    q = part.q(full.observations, full.actions)
    return tensors(part.log_ratio(full), q.amin(0), *metrics.values())


@cache
def trained_prior() -> Any:
    return PRIOR.fit(data(), steps=STEPS, progress=False, device="cpu")


def extractor(config: Any) -> Tensor:
    """Actions after a few steps: far from the bounds, and with noise for the candidates."""
    ratios = GivenRatio(source=ratio, q=critic).build(data().spec)
    policy = config.fit(
        data(), prior=trained_prior(), backend=ratios, steps=20, progress=False, device="cpu"
    )
    observations = 3 * torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(64, policy.config.candidates, 2, generator=torch.Generator().manual_seed(1))
    choice = policy.decide(observations, 3 * noise, torch.linspace(0, 0.99, 64))
    return tensors(choice.actions, choice.candidates)


def divergence(config: Any) -> Tensor:
    y = torch.linspace(-3, 3, 61)
    return tensors(config.log_ratio(y).exp(), config.conjugate(y))


def reward(config: Any) -> Tensor:
    return tensors(Rewards((config,), data().spec.rewards)(data().rewards))


def selection(config: Any) -> Tensor:
    q = torch.randn(5, 200, 4, generator=torch.Generator().manual_seed(0))
    return tensors(config.select(q, torch.linspace(0, 0.99, 200)))


UNIONS: dict[str, tuple[Any, Any]] = {
    "backends": (AnyBackend, backend),
    "extractors": (AnyExtractor, extractor),
    "divergences": (Divergence, divergence),
    "selections": (AnySelection, selection),
}


def fields() -> Iterator[Any]:
    for union, outcome in UNIONS.values():
        for cls in members(union):
            for name in cls.model_fields:
                if name != tag_of(cls):
                    yield pytest.param(cls, name, outcome, id=f"{kind_of(cls)}.{name}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("cls", "name", "outcome"), list(fields()))
def test_a_field_acts(cls: type[Config], name: str, outcome: Any) -> None:
    key = f"{kind_of(cls)}.{name}"
    if key in REASONS:
        return
    assert key in OTHER or name in OTHER, f"{key} is new: give OTHER another value of it"
    config = example(cls)
    value = OTHER.get(key, OTHER.get(name))
    changed = cls(**{**dict(config), name: value})
    assert getattr(changed, name) != getattr(config, name)
    before, after = outcome(config), outcome(changed)
    assert before.shape != after.shape or not torch.equal(before, after), f"{key} changes nothing"
