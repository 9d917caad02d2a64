from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from oracles import run_plan
from torch import Tensor
from torch.nn import functional

from ddice.diffusion.networks import (
    MLP,
    FlattenEncoder,
    FourierTime,
    Network,
    PublishedScore,
    ResidualScore,
    SmoothTime,
)

F, A, T = 5, 3, 4  # features, actions, time
Seed = int | Sequence[int]
INPUTS = {"features": F, "actions": A, "time": T}


def mlp(seed: Seed, members: tuple[int, ...] = (), **fields) -> Network:
    return MLP(hidden=(16, 8), **fields).build(INPUTS, 2, seed=seed, stream="test", members=members)


FAMILIES: dict[str, Callable[[Seed], Network]] = {
    "affine": lambda seed: MLP(hidden=()).build(INPUTS, 2, seed=seed, stream="test"),
    "relu": mlp,
    "silu": lambda seed: mlp(seed, activation="silu"),
    "silu kaiming": lambda seed: mlp(seed, activation="silu", initialisation="kaiming"),
    "relu norm": lambda seed: mlp(seed, layer_norm=True),
    "silu norm": lambda seed: mlp(seed, activation="silu", layer_norm=True),
    "relu members": lambda seed: mlp(seed, (3,)),
    "silu norm members": lambda seed: mlp(seed, (2, 3), activation="silu", layer_norm=True),
    "residual": lambda seed: ResidualScore(width=16, blocks=2).build(
        F, A, seed=seed, stream="test"
    ),
    "residual fourier": lambda seed: ResidualScore(
        width=16, blocks=2, time=FourierTime(size=8, scale=0.5)
    ).build(F, A, seed=seed, stream="test"),
    "published": lambda seed: PublishedScore(widths=(24, 12, 6), condition=10, embedding=8).build(
        F, A, seed=seed, stream="test"
    ),
    "published smooth": lambda seed: PublishedScore(
        widths=(24, 12, 6), condition=10, time=SmoothTime()
    ).build(F, A, seed=seed, stream="test"),
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
one_seed_or_two = pytest.mark.parametrize("seed", [4, (4, 9)], ids=["one seed", "two seeds"])


def perturbed(network: Network) -> Network:
    """In double precision and with no parameter left at its special initial value (zero biases,
    unit scales).
    """
    generator = torch.Generator().manual_seed(1)
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                )
    return network


def inputs(*batch: int, members: tuple[int, ...] = (), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*members, *batch, size, generator=generator, dtype=torch.float64)
        for size in INPUTS.values()
    ]


def single(network: Network, index: tuple[int, ...]) -> list[tuple]:
    """The plan of one member, in numpy."""

    def pick(tensor: Tensor | None) -> np.ndarray | None:
        return None if tensor is None else tensor.detach().numpy()[index]

    return [
        (layer.op, layer.inputs, layer.output, pick(layer.weight), pick(layer.bias))
        for layer in network.plan()
    ]


@pytest.mark.oracle
@one_seed_or_two
@every_family
def test_an_independent_interpreter_of_the_plan_reproduces_forward(family, seed: Seed) -> None:
    network = perturbed(family(seed))
    arguments = inputs(4, 7, members=network.members)
    output = network(*arguments)
    assert output.shape[:-1] == (*network.members, 4, 7)
    for index in np.ndindex(network.members):
        expected = run_plan(
            single(network, index),
            {name: x.numpy()[index] for name, x in zip(INPUTS, arguments, strict=True)},
        )
        np.testing.assert_allclose(output[index].detach().numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.oracle
@one_seed_or_two
@every_family
def test_the_gradient_by_hand_is_that_of_autograd(family, seed: Seed) -> None:
    network = perturbed(family(seed))
    arguments = inputs(4, 7, members=network.members)
    arguments[1].requires_grad_()
    output = network(*arguments).sum(-1)
    (expected,) = torch.autograd.grad(output.sum(), arguments[1])
    with torch.no_grad():
        value, gradient = network.value_and_gradient(*arguments, wrt="actions")
    torch.testing.assert_close(value, output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


@every_family
def test_the_gradient_in_the_features_too(family) -> None:
    network = perturbed(family(4))
    arguments = inputs(6, members=network.members)
    arguments[0].requires_grad_()
    (expected,) = torch.autograd.grad(network(*arguments).sum(), arguments[0])
    with torch.no_grad():
        _, gradient = network.value_and_gradient(*arguments, wrt="features")
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_no_gradient_is_written_through_fourier_features() -> None:
    with pytest.raises(ValueError, match="no gradient is written for a 'fourier' layer"):
        FAMILIES["residual fourier"](0).double().value_and_gradient(*inputs(2), wrt="time")


@every_family
def test_features_of_one_state_serve_all_its_candidates(family) -> None:
    """(B, 1, F) beside (B, K, A) equals the features repeated K times, forwards and backwards."""
    network = perturbed(family(4))
    members, (_, actions, _) = network.members, inputs(4, 6, members=network.members)
    features, _, time = inputs(4, 1, members=members, seed=1)
    repeated = [features.expand(*members, 4, 6, F), actions, time.expand(*members, 4, 6, T)]
    torch.testing.assert_close(
        network(features, actions, time), network(*repeated), rtol=1e-12, atol=1e-12
    )
    with torch.no_grad():
        for got, expected in zip(
            network.value_and_gradient(features, actions, time, wrt="actions"),
            network.value_and_gradient(*repeated, wrt="actions"),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@every_family
def test_several_seeds_are_the_single_seeds_side_by_side(family) -> None:
    """The axis of the seeds comes first, and initial values and outputs of seed i are those that
    seed i has alone.
    """
    together, seeds = family((4, 9, 0)), (4, 9, 0)
    arguments = inputs(5, members=together.members)
    output = together.double()(*arguments)
    for i, seed in enumerate(seeds):
        alone = family(seed)
        for (name, mine), (other_name, theirs) in zip(
            alone.named_parameters(), together.named_parameters(), strict=True
        ):
            assert name == other_name
            assert torch.equal(mine, theirs[i].float())
        torch.testing.assert_close(
            output[i], alone.double()(*(x[i] for x in arguments)), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize(
    "fields", [{}, {"layer_norm": True, "activation": "silu"}], ids=["plain", "norm"]
)
def test_a_member_is_a_network_of_its_own(fields) -> None:
    ensemble, one = perturbed(mlp(3, (4,), **fields)), mlp(0, **fields).double()
    arguments = inputs(5)
    output = ensemble(*(x[None] for x in arguments))  # a member axis of 1 is shared by all
    repeated = ensemble(*(x.expand(4, *x.shape) for x in arguments))
    torch.testing.assert_close(output, repeated, rtol=1e-12, atol=1e-12)
    for i in range(4):
        one.load_state_dict({name: value[i] for name, value in ensemble.state_dict().items()})
        torch.testing.assert_close(output[i], one(*arguments), rtol=1e-12, atol=1e-12)


def test_members_start_different_and_streams_differ() -> None:
    ensemble = mlp(3, (4,))
    for weight in ensemble.parameters():
        assert len({tuple(member.flatten().tolist()) for member in weight}) == 4
    other = MLP(hidden=(16, 8)).build(INPUTS, 2, seed=3, stream="other", members=(4,))
    assert not torch.equal(next(ensemble.parameters()), next(other.parameters()))
    square = MLP(hidden=(8, 8, 8)).build({"x": 8}, 8, seed=0, stream="test")
    weights = [layer.weight for layer in square.plan() if layer.op == "linear"]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def fill(network: Network, **values: list) -> None:
    with torch.no_grad():
        for name, value in values.items():
            network.get_parameter(name).copy_(torch.tensor(value))


@pytest.mark.oracle
def test_affine_by_hand() -> None:
    """(1, 2) beside (3): 1*1 + 2*2 + 3*3 + 10 = 24; the gradient in the second input is its row
    of the weight.
    """
    network = MLP(hidden=()).build({"a": 2, "b": 1}, 1, seed=0, stream="test")
    fill(network, linear_0_weight=[[1.0], [2.0], [3.0]], linear_0_bias=[10.0])
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]])
    assert network(a, b).tolist() == [[24.0]]
    assert [x.tolist() for x in network.value_and_gradient(a, b, wrt="b")] == [[24.0], [[3.0]]]
    assert [x.tolist() for x in network.value_and_gradient(a, b, wrt="a")] == [[24.0], [[1.0, 2.0]]]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("activation", "norm", "expected"),
    [
        ("relu", False, 2 * 5 + 0 + 1),  # hidden (5, -4) -> (5, 0)
        ("silu", False, 2 * 5 / (1 + math.exp(-5)) - 3 * 4 / (1 + math.exp(4)) + 1),
        (
            "relu",
            True,
            2 * 4.5 / math.sqrt(4.5**2 + 1e-5) + 1,
        ),  # (5, -4) has mean 0.5 and deviation 4.5
    ],
)
def test_two_layers_by_hand(activation: str, norm: bool, expected: float) -> None:
    network = MLP(hidden=(2,), activation=activation, layer_norm=norm).build(
        {"x": 2}, 1, seed=0, stream="test"
    )
    last = "linear_3" if norm else "linear_2"
    fill(network, linear_0_weight=[[1.0, -1.0], [2.0, -2.0]], linear_0_bias=[0.0, 1.0])
    fill(network, **{f"{last}_weight": [[2.0], [3.0]], f"{last}_bias": [1.0]})
    assert network(torch.tensor([1.0, 2.0])).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.oracle
def test_fourier_features_by_hand() -> None:
    """(sin, cos) of W t for the first number of the time input, with frozen W."""
    network = Network({"time": T}, seed=0, stream="test")
    network.fourier("time", 4, 30.0)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    with torch.no_grad():
        network.get_parameter("fourier_0_weight").copy_(torch.tensor([math.pi, 2.0]))
    got = network(torch.tensor([0.5, 99.0, 99.0, 99.0]))
    assert got.tolist() == pytest.approx([1.0, math.sin(1), 0.0, math.cos(1)], abs=1e-6)


def layers_of(network: Network) -> Iterator[Callable[[Tensor], Tensor]]:
    """The layers with parameters, in the order in which they were added, each as a function."""
    for layer in network.plan():
        if layer.op == "linear":
            yield lambda *x, w=layer.weight, b=layer.bias: torch.cat(x, -1) @ w + b
        elif layer.op == "layer_norm":
            yield lambda x, w=layer.weight, b=layer.bias: functional.layer_norm(x, w.shape, w, b)
        elif layer.op == "fourier":
            yield lambda t, w=layer.weight: torch.cat(
                [torch.sin(t[..., :1] * w), torch.cos(t[..., :1] * w)], -1
            )


@pytest.mark.oracle
def test_the_residual_network_written_out() -> None:
    network = perturbed(ResidualScore(width=16, blocks=2).build(F, A, seed=0, stream="test"))
    features, actions, time = inputs(7)
    layer, silu = layers_of(network), functional.silu
    x = next(layer)(features, actions, time)
    for _ in range(2):
        norm, first, second = next(layer), next(layer), next(layer)
        x = x + second(silu(first(norm(x))))
    norm, last = next(layer), next(layer)
    torch.testing.assert_close(
        network(features, actions, time), last(silu(norm(x))), rtol=1e-12, atol=1e-12
    )
    assert not list(layer)


@pytest.mark.oracle
def test_the_published_network_written_out() -> None:
    """The state and the frozen frequencies of time make the condition; it shifts each block of a
    U-net whose skips are concatenated.
    """
    network = perturbed(
        PublishedScore(
            widths=(24, 12, 6), condition=10, embedding=8, time=FourierTime(size=6)
        ).build(F, A, seed=0, stream="test")
    )
    features, actions, time = inputs(7)
    layer, silu = layers_of(network), functional.silu
    state = silu(next(layer)(features))
    frequencies, embed = next(layer), next(layer)
    into, out = next(layer), next(layer)
    condition = out(silu(into(state, embed(frequencies(time)))))

    def block(x: Tensor, width: int) -> Tensor:
        shift, first, second = next(layer), next(layer), next(layer)
        inner = silu(second(silu(first(x)) + shift(silu(condition))))
        return inner + (x if x.shape[-1] == width else next(layer)(x))

    down_1 = block(actions, 24)
    down_2 = block(down_1, 12)
    down_3 = block(down_2, 6)
    up_3 = block(down_3, 6)
    up_2 = block(torch.cat([down_3, up_3], -1), 12)
    up_1 = block(torch.cat([down_2, up_2], -1), 24)
    expected = next(layer)(down_1, up_1)
    torch.testing.assert_close(network(features, actions, time), expected, rtol=1e-12, atol=1e-12)
    assert not list(layer)


def test_uniform_initialisation() -> None:
    network = MLP(hidden=(400,)).build({"a": 100, "b": 44}, 300, seed=0, stream="test")
    for layer, fan_in in zip(
        (x for x in network.plan() if x.op == "linear"), (144, 400), strict=True
    ):
        bound = 1 / math.sqrt(fan_in)
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound
            assert values.abs().max() > 0.95 * bound
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.02 * bound)
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_kaiming_initialisation() -> None:
    network = MLP(hidden=(400,), initialisation="kaiming").build(
        {"x": 144}, 300, seed=0, stream="test", members=(2,)
    )
    for layer, fan_in in zip(
        (x for x in network.plan() if x.op == "linear"), (144, 400), strict=True
    ):
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.02 * math.sqrt(2 / fan_in))
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.02)
        assert not layer.bias.any()


def test_fourier_initialisation() -> None:
    network = Network({"time": T}, seed=0, stream="test")
    network.fourier("time", 8000, 30.0)
    (weight,) = network.parameters()
    assert weight.std().item() == pytest.approx(2 * math.pi * 30, rel=0.04)


def test_layer_norm_starts_as_the_identity() -> None:
    layers = [layer for layer in mlp(0, (2,), layer_norm=True).plan() if layer.op == "layer_norm"]
    assert len(layers) == 2
    for layer in layers:
        assert (layer.weight == 1).all()
        assert (layer.bias == 0).all()


def test_the_published_network_has_the_published_size() -> None:
    """1.63 M parameters for the 17 observations and 6 actions of HalfCheetah, the 16 frozen
    frequencies among them.
    """
    network = PublishedScore().build(17, 6, seed=0, stream="prior")
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert (trained + frozen, frozen) == (1_634_294, 16)


def test_a_wrong_number_of_inputs_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"expected the inputs \('features', 'actions', 'time'\), got 2 tensors"
    ):
        mlp(0)(*(x.float() for x in inputs(2)[:2]))


def test_the_encoder_normalises_with_frozen_statistics() -> None:
    encoder = FlattenEncoder().build((1.0, 2.0), (2.0, 4.0))
    assert encoder(torch.tensor([[3.0, 10.0], [1.0, -2.0]])).tolist() == [[1.0, 2.0], [0.0, -1.0]]
    assert encoder.size == 2
    assert not list(encoder.parameters())
    assert set(encoder.state_dict()) == {"mean", "std"}


def test_the_encoder_may_leave_observations_as_they_are() -> None:
    encoder = FlattenEncoder(normalize=False).build((1.0, 2.0), (2.0, 4.0))
    assert encoder(torch.tensor([3.0, 10.0])).tolist() == [3.0, 10.0]
