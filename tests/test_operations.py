"""The table of operations: an entry is all that networks and engines need, and what it does not
state is said by name.
"""

from __future__ import annotations

import gelu
import pytest
import torch
from test_engines import agree, make
from torch import Tensor
from torch.nn import functional

from ddice.diffusion.networks import MLP, OPERATIONS, Network, Operation
from ddice.diffusion.networks.operations import formulas, mean, operation
from ddice.diffusion.networks.plan import evaluate
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Diffusion
from ddice.policies.engines import NotCovered
from ddice.policies.engines.decision import decision_program
from ddice.policies.engines.kernel_text import function_text, lines, sees_rows
from ddice.policies.engines.phases import phases


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_entry_is_a_new_activation() -> None:
    """Forwards against torch's gelu, backwards by hand against autograd, with and without
    members.
    """
    with gelu.stated():
        for members in ((), (3,)):
            network = MLP(hidden=(8,), activation="gelu").build(
                {"features": 2, "actions": 3}, 1, seed=0, stream="test", members=members
            )
            network.double()
            features, actions = numbers(*members, 5, 2), numbers(*members, 5, 3, seed=1)
            actions.requires_grad_()
            first, _, last = network.plan()
            joined = torch.cat([features, actions], -1)
            hidden = functional.gelu(joined @ first.weight + first.bias[..., None, :])
            expected = (hidden @ last.weight + last.bias[..., None, :])[..., 0]
            (slope,) = torch.autograd.grad(expected.sum(), actions)
            with torch.no_grad():
                value, gradient = network.value_and_gradient(features, actions, wrt="actions")
            torch.testing.assert_close(network(features, actions)[..., 0], expected)
            torch.testing.assert_close(value, expected)
            torch.testing.assert_close(gradient, slope)


@pytest.mark.parametrize("engine", ["eager", "onnx"])
def test_one_entry_runs_in_the_engines(engine: str) -> None:
    if engine == "onnx":
        pytest.importorskip("onnxruntime")
    with gelu.stated():
        policy = make(gelu.sampler())
        for batch in (1, 5):
            agree(policy, engine, batch)


def run_text(op: str, role: int, *values: Tensor) -> Tensor:
    """The step of a Triton kernel, carried out by torch."""

    class Language:  # what the text calls
        sigmoid, erf, exp, sqrt, where = (
            torch.sigmoid, torch.erf, torch.exp, torch.sqrt, torch.where,
        )  # fmt: skip
        constexpr = object
        PropagateNan = type("PropagateNan", (), {"ALL": None})

        @staticmethod
        def maximum(x: Tensor, low: float, propagate_nan: None) -> Tensor:
            return x.clamp(min=low)

        @staticmethod
        def clamp(x: Tensor, low: float, high: float, propagate_nan: None) -> Tensor:
            return x.clamp(low, high)

        @staticmethod
        def sum(x: Tensor, axis: int) -> Tensor:
            return x.sum(axis)

    y, rest = values[role], [*values[:role], *values[role + 1 :]]
    there = {"tl": Language}
    exec(function_text(), there)
    operands = (*rest, None, None, None)[:3]
    width = torch.ones(1, y.shape[1], dtype=torch.bool)
    return there["formula"](f"{op}_{role}", y, *operands, width, y.shape[1])  # type: ignore[operator]


def test_every_formula_as_text_is_itself() -> None:
    """With each of its inputs at hand; a kernel's text, line by line, against tensors."""
    with gelu.stated():
        for op, found in formulas().items():
            inputs = [numbers(4, 6, seed=i) for i in range(found.inputs)]
            parameters = [numbers(6, seed=10 + i).abs() + 1 for i in range(found.parameters)]
            expected = evaluate(op, inputs, parameters, batch=1)
            for role in range(found.inputs):
                got = run_text(op, role, *inputs, *(p[None] for p in parameters))
                torch.testing.assert_close(got, expected, msg=f"{op} of input {role}")


@pytest.mark.parametrize("name", ["relu", "silu", "layer_norm"])
def test_backward_formulas_are_the_gradients(name: str) -> None:
    """Of the forward formulas, and of the kernels that stand beside them, by autograd."""
    found = OPERATIONS[name]
    x = numbers(5, 7).requires_grad_()
    parameters = [numbers(7, seed=1 + i) for i in range(found.parameters)]
    gradient = numbers(5, 7, seed=9)
    for form in (found.formula, found.torch, found.fast):
        if form is None:
            continue
        (expected,) = torch.autograd.grad(form(x, *parameters), x, gradient)
        for fast in (False, True):
            with torch.no_grad():
                used = parameters[: found.backward.parameters]
                got = evaluate(f"{name}_backward", [gradient, x], used, batch=1, fast=fast)
            torch.testing.assert_close(got, expected)


def test_whole_rows_are_found_in_the_formula() -> None:
    assert {op for op in formulas() if sees_rows(op)} == {"layer_norm", "layer_norm_backward"}


def test_what_no_table_states_is_said_by_name() -> None:
    with pytest.raises(ValueError, match=r"activation, one of relu, silu; got 'tanh'"):
        MLP(activation="tanh")
    with pytest.raises(NotCovered, match="the operation 'tanh': state it in OPERATIONS"):
        operation("tanh")
    network = Network({"x": 2}, seed=0, stream="test")
    network.activation("x", "tanh")
    with pytest.raises(NotCovered, match="the operation 'tanh'"):
        network(torch.zeros(1, 2))
    with pytest.raises(NotCovered, match=r"not covered: fourier of candidates"):
        lines("fourier")


def test_a_form_that_is_missing_is_said_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation without a gradient guides nothing; a formula of five values has no kernel."""
    monkeypatch.setitem(OPERATIONS, "gelu", Operation(inputs=1, formula=gelu.gelu))
    with pytest.raises(NotCovered, match="no gradient is written for a 'gelu' layer: only for lin"):
        make(gelu.sampler()).compile("eager")
    with pytest.raises(NotCovered, match="gelu_backward, because 'gelu' states no backward"):
        operation("gelu_backward")
    five = Operation(inputs=5, formula=lambda a, b, c, d, e: a + b + c + d + e)
    monkeypatch.setitem(OPERATIONS, "five", five)
    with pytest.raises(NotCovered, match="five of 5 values, where a step of a kernel has at most"):
        lines("five")


def test_rows_of_a_formula_of_ones_own() -> None:
    """A normalisation that nobody knew is given whole rows by the planner of kernels."""
    centre = Operation(inputs=1, formula=lambda x: x - mean(x))
    OPERATIONS["centre"] = centre
    try:
        assert sees_rows("centre")
        policy = make(Diffusion(prior=DiffusionPrior()))
        network = Network({"features": 3, "actions": 2, "time": 4}, seed=0, stream="test")
        hidden = network.linear(("features", "actions", "time"), 8)
        network.linear(network.activation(hidden, "centre"), 2)
        policy.sampler.network = network
        agree(policy, "eager", 3)
        found = phases(decision_program(policy.procedure).generator.network)
        assert [task.whole for phase in found.phases for task in phase] == [True, False]
    finally:
        del OPERATIONS["centre"]
