"""Networks as they train: the way back by hand against autograd, operation by operation."""

from __future__ import annotations

import pytest
import torch
from test_networks import (
    FAMILIES,
    INPUTS,
    A,
    F,
    T,
    every_family,
    inputs,
    one_seed_or_two,
    perturbed,
)
from torch import Tensor

from ddice.diffusion.networks import MLP, OPERATIONS, Network, Operation, training
from ddice.diffusion.networks.plan import OnTensors, run_forward

EXACT = {"rtol": 1e-9, "atol": 1e-11}


def by_autograd(network: Network, arguments: list[Tensor], batch: int) -> Tensor:
    """The output, each operation of the plan on tensors that autograd follows."""
    plan = network.plan()
    named = dict(zip(network.inputs, arguments, strict=True))
    return run_forward(plan, named, OnTensors(batch))[plan[-1].output]


def gradients(output: Tensor, network: Network, arguments: list[Tensor]) -> list[Tensor]:
    """Of a sum with unequal weights, in every trained parameter and every input that has one."""
    scale = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    leaves = [x for x in (*network.parameters(), *arguments) if x.requires_grad]
    return list(torch.autograd.grad((scale * output).sum(), leaves, materialize_grads=True))


@pytest.mark.oracle
@one_seed_or_two
@every_family
@pytest.mark.parametrize("wide", [True, False], ids=["all rows", "shared rows"])
@pytest.mark.parametrize("large", [0, 10**9], ids=["one by one", "together"])
def test_gradients_are_those_of_autograd(
    family, seed, wide: bool, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every parameter and input; `shared rows`: features (B, 1, F) beside actions (B, K, A).
    Members run one by one from this size on.
    """
    monkeypatch.setattr(training, "LARGE", large)
    network = perturbed(family(seed))
    arguments = inputs(4, 3, members=network.members)
    if not wide:
        arguments[0] = arguments[0][..., :1, :]
    # The frequencies of time are frozen, and no part of ddice asks for a gradient in time.
    arguments[0].requires_grad_()
    arguments[1].requires_grad_()
    expected = by_autograd(network, arguments, 2)
    output = network(*arguments)
    torch.testing.assert_close(output, expected, **EXACT)
    for got, right in zip(
        gradients(output, network, arguments),
        gradients(expected, network, arguments),
        strict=True,
    ):
        torch.testing.assert_close(got, right, **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(network(*arguments), expected.detach(), **EXACT)


@pytest.mark.oracle
def test_one_layer_by_hand() -> None:
    """y = relu(1 x + 2 z - 1) at (x, z) = (3, -1) and (1, 2), and 5 at the second: the first is
    at the kink, where the slope is 0.
    """
    network = Network({"x": 1, "z": 1}, seed=0, stream="test")
    network.activation(network.linear(("x", "z"), 1), "relu")
    with torch.no_grad():
        network.get_parameter("linear_0_weight").copy_(torch.tensor([[1.0], [2.0]]))
        network.get_parameter("linear_0_bias").copy_(torch.tensor([-1.0]))
    x = torch.tensor([[3.0], [1.0]], requires_grad=True)
    z = torch.tensor([[-1.0], [2.0]], requires_grad=True)
    output = network(x, z)
    assert output.tolist() == [[0.0], [4.0]]
    (output * torch.tensor([[7.0], [10.0]])).sum().backward()
    assert network.get_parameter("linear_0_weight").grad.tolist() == [[10.0], [20.0]]
    assert network.get_parameter("linear_0_bias").grad.tolist() == [10.0]
    assert x.grad.tolist() == [[0.0], [10.0]]
    assert z.grad.tolist() == [[0.0], [20.0]]


@pytest.mark.oracle
def test_what_others_read_is_not_overwritten() -> None:
    """h + relu(h) and relu(h) + h: relu works in place only where nobody else reads h."""
    for first, second in (("linear_0", "relu_1"), ("relu_1", "linear_0")):
        network = Network({"x": F}, seed=0, stream="test")
        network.activation(network.linear("x", 6), "relu")
        network.add(first, second)
        perturbed(network)
        x = inputs(5)[0].requires_grad_()
        kept = x.detach().clone()
        expected = by_autograd(network, [x], 1)
        output = network(x)
        torch.testing.assert_close(output, expected, **EXACT)
        assert torch.equal(x, kept)
        for got, right in zip(
            gradients(output, network, [x]), gradients(expected, network, [x]), strict=True
        ):
            torch.testing.assert_close(got, right, **EXACT)
    network = Network({"x": F}, seed=0, stream="test")
    network.activation("x", "relu")
    x = inputs(5)[0]
    kept = x.clone()
    assert torch.equal(network(x), kept.clamp(min=0))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("op", ["softly", "scaled"])
@pytest.mark.parametrize("large", [0, 10**9], ids=["one by one", "together"])
def test_an_operation_without_a_kernel_is_left_to_autograd(
    op: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An activation of one's own, and an operation with parameters, in the middle of a plan."""
    monkeypatch.setattr(training, "LARGE", large)
    softly = Operation(inputs=1, torch=torch.nn.functional.softplus)
    scaled = Operation(inputs=1, parameters=2, torch=lambda x, gain, shift: x.sin() * gain + shift)
    monkeypatch.setitem(OPERATIONS, op, {"softly": softly, "scaled": scaled}[op])
    for members in ((), (3,)):
        network = Network(INPUTS, seed=0, stream="test", members=members)
        hidden = network.linear(tuple(INPUTS), 6)
        parameters = [torch.ones(*members, 6)] * 2 if op == "scaled" else []
        network.linear(network._add(op, (hidden,), 6, *parameters), 2)
        perturbed(network)
        arguments = inputs(4, members=members)
        arguments[1].requires_grad_()
        output, expected = network(*arguments), by_autograd(network, arguments, 1)
        torch.testing.assert_close(output, expected, **EXACT)
        for got, right in zip(
            gradients(output, network, arguments),
            gradients(expected, network, arguments),
            strict=True,
        ):
            torch.testing.assert_close(got, right, **EXACT)


def test_the_way_back_can_be_gone_twice() -> None:
    """As for the two halves of a gradient; after a step in between it is refused."""
    network = perturbed(FAMILIES["residual"](0))
    arguments = inputs(4)
    output = network(*arguments).sum()
    parameters = list(network.parameters())
    first = torch.autograd.grad(output, parameters, retain_graph=True)
    again = torch.autograd.grad(output, parameters, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    with torch.no_grad():
        parameters[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(output, parameters)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["silu norm members", "residual", "published"])
def test_gradients_have_gradients(name: str) -> None:
    """Of a penalty |d output / d actions|^2, in all that is trained."""
    network = perturbed(FAMILIES[name](0))
    arguments = inputs(4, members=network.members)
    arguments[1].requires_grad_()
    found = []
    for output in (network(*arguments), by_autograd(network, arguments, 1)):
        (slope,) = torch.autograd.grad(output.sum(), arguments[1], create_graph=True)
        found.append(gradients(slope, network, arguments))
    for got, right in zip(*found, strict=True):
        torch.testing.assert_close(got, right, **EXACT)


def test_frozen_parameters_have_no_gradient() -> None:
    """A target network has none at all, and passes one on to its inputs."""
    network = perturbed(
        MLP(hidden=(8,), layer_norm=True).build(
            {"features": F, "actions": A, "time": T}, 1, seed=0, stream="test"
        )
    ).requires_grad_(False)
    arguments = inputs(4)
    assert not network(*arguments).requires_grad
    arguments[1].requires_grad_()
    (got,) = gradients(network(*arguments), network, arguments)
    (expected,) = gradients(by_autograd(network, arguments, 1), network, arguments)
    torch.testing.assert_close(got, expected, **EXACT)
    layer = network.plan()[0]
    layer.bias.requires_grad_()
    (bias, actions) = gradients(network(*arguments), network, arguments)
    (right, _) = gradients(by_autograd(network, arguments, 1), network, arguments)
    torch.testing.assert_close(bias, right, **EXACT)
    torch.testing.assert_close(actions, expected, **EXACT)
