"""The phases of a program, carried out here one by one: what they compute is the program's body,
and no phase waits for itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_engines import GUIDANCES, SCORES, cases, inputs, make
from torch import Tensor
from torch.nn import functional

from ddice.diffusion.networks import NORM_EPS
from ddice.diffusion.prediction import NoisePrediction
from ddice.diffusion.prior import DiffusionPrior
from ddice.diffusion.samplers import Diffusion
from ddice.diffusion.solvers import DDIM
from ddice.policies.engines import NotCovered
from ddice.policies.engines.decision import decision_program
from ddice.policies.engines.eager import Body, run_setup
from ddice.policies.engines.phases import FUSED_ROW, Phases, Step, Task, View, phases
from ddice.policies.engines.products import Products
from ddice.policies.engines.program import Program
from ddice.policies.policy import Policy


def programs(policy: Policy) -> list[Program]:
    found = decision_program(policy.procedure)
    return [
        program
        for program in (found.generator.network, found.q)
        if program is not None and program.body
    ]


def slope(kind: str, x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate)) if kind == "silu" else (x > 0).to(x)


def apply(step: Step, y: Tensor, others: list[Tensor]) -> Tensor:
    """Written from the meaning of the operations, not from the table."""
    given = [*others[: step.role], y, *others[step.role :]]
    if step.op == "add":
        return given[0] + given[1]
    if step.op in ("silu", "relu"):
        return y * torch.sigmoid(y) if step.op == "silu" else y.clamp(min=0)
    if step.op in ("silu_backward", "relu_backward"):
        return given[0] * slope(step.op[:4], given[1])
    if step.op == "layer_norm":
        return functional.layer_norm(y, y.shape[-1:], eps=NORM_EPS) * given[1] + given[2]
    if step.op == "layer_norm_backward":
        gradient, x, gain = given
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            normal = functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
            return torch.autograd.grad(normal, x, (gradient * gain).expand_as(x))[0]
    if step.op == "velocity":
        velocity, x, alpha, sigma = given
        return alpha * velocity + sigma * x
    noise, x, inverse, factor = given
    clean = x * inverse - noise * factor
    if step.op == "denoised":
        return clean
    assert step.op == "clean"
    return clean.clamp(-1, 1)


def carry_out(found: Phases, x: Tensor, rows: dict[str, Tensor]) -> Tensor:
    """The output (*M, N, n) for x (N, A) and the rows (*M, N or 1, n) of this evaluation. A
    phase reads what phases before it stored, and x.
    """
    stored: dict[str, Tensor] = {"x": x}

    def read(view: View) -> Tensor:
        if view.name in found.joined:
            value = torch.cat([stored[part] for part in found.joined[view.name]], -1)
        else:
            value = stored[view.name] if view.name in stored else rows[view.name]
        return value[..., view.start : view.start + view.size]

    for phase in found.phases:
        now: dict[str, Tensor] = {}
        for task in phase:
            known = carry_out_task(task, read)
            now |= {
                name: value
                for name, value in known.items()
                if name in found.stored or name == found.output
            }
        stored |= now
    return stored[found.output]


def carry_out_task(task: Task, read: Callable[[View], Tensor]) -> dict[str, Tensor]:
    """Everything that a task knows by a name."""
    y = (
        sum((read(term.view) @ term.weight for term in task.terms), torch.zeros(()))
        if task.start is None
        else read(task.start)
    )
    known = {task.first: y}
    for step in task.steps:
        y = apply(step, y, [read(view) for view in step.operands])
        known[step.output] = y
    return {name: value for name, value in known.items() if name is not None}


@pytest.mark.parametrize(("name", "policy"), [pytest.param(*case, id=case[0]) for case in cases()])
def test_phases_compute_the_body(name: str, policy: Policy) -> None:
    observations, noise, _ = inputs(policy, 3)
    x = noise.reshape(-1, noise.shape[-1])
    for program in programs(policy):
        found, setup = phases(program), run_setup(program, observations)
        body = Body(program, *noise.shape[:2], Products())
        times = max(value.shape[-3] for value in setup.values())
        for i in {0, times - 1}:
            values = {**setup, **found.constants}
            at = {
                key: value[..., i if value.shape[-3] > 1 else 0, :, :]
                for key, value in values.items()
            }
            rows = {
                key: v if v.shape[-2] == 1 else v.repeat_interleave(noise.shape[1], -2)
                for key, v in at.items()
            }
            expected = body.run(x, body.rows(setup), i)
            scale = float(expected.abs().max().clamp(min=1))
            torch.testing.assert_close(
                carry_out(found, x, rows), expected, rtol=0, atol=5e-5 * scale
            )  # clipping hides larger numbers


def text(task: Task) -> str:
    read = "+".join(str(term.view.size) for term in task.terms)
    return f"{read}>{task.size} " + " ".join(
        step.op + ("" if step.role == 0 else f" of {step.role}") for step in task.steps
    )


def test_the_published_networks_in_thirteen_phases() -> None:
    """Two layers a block, six blocks and the last layer; the guidance, four layers forwards and
    four backwards, goes beside them.
    """
    sampler = Diffusion(
        prior=DiffusionPrior(prediction=NoisePrediction(), network=SCORES["published"]),
        guidance=GUIDANCES["published"],
        solver=DDIM(evaluations=2),
        clip_denoised=False,
    )
    found = phases(programs(make(sampler))[0])
    assert [[text(task) for task in phase] for phase in found.phases] == [
        ["2>16 add silu add", "2>16 add", "2>16 add silu"],
        ["16>16 add silu add", "16>16 add silu"],
        ["16>12 add silu add", "16>12 add", "16>16 add silu"],
        ["12>12 add silu add", "16>16 add silu_backward of 1"],
        ["12>8 add silu add", "12>8 add", "16>16 silu_backward"],
        ["8>8 add silu add", "16>16 silu_backward"],
        ["8>8 add silu add", "16>16 silu_backward"],
        ["8>8 add silu add"],
        ["16>12 add silu add", "16>12 add"],
        ["12>12 add silu add"],
        ["24>16 add silu add", "24>16 add"],
        ["16>16 add silu add"],
        ["16+16+16>2 add"],
    ]


def linear(program: Program, name: str, size: int) -> str:
    return program.emit("linear", (name,), size, weights=(torch.eye(program.sizes[name], size),))


def start(size: int = 2) -> Program:
    return Program(sizes={"x": size}, in_body={"x"})


def test_a_wide_normalisation_is_a_task_of_its_own() -> None:
    def of(size: int) -> int:
        program = start(size)
        hidden = linear(program, linear(program, "x", 2), size)
        program.output = program.emit(
            "layer_norm", (hidden,), size, weights=(torch.ones(size), torch.zeros(size))
        )
        return len(phases(program).phases)

    assert (of(FUSED_ROW), of(FUSED_ROW + 1)) == (2, 3)
    with pytest.raises(NotCovered, match=r"layer_norm of 2000 numbers \(at most 1024\)"):
        of(2000)


def test_what_is_not_covered_is_said() -> None:
    program = start()
    program.output = program.emit("fourier", ("x",), 4, weights=(torch.ones(2),))
    with pytest.raises(NotCovered, match="not covered: fourier of candidates"):
        phases(program)
    program = start()
    program.output = program.emit(
        "silu", (program.emit("concat", ("x", program.constant(torch.ones(1, 1, 2))), 4),), 4
    )
    with pytest.raises(NotCovered, match="not covered: silu of a concat"):
        phases(program)
    program = start()
    program.output = program.emit("linear", ("x",), 2, weights=(torch.ones(2, 3, 2, 2),))
    with pytest.raises(NotCovered, match="not covered: two axes of members"):
        phases(program)
    program = start()
    program.output = program.emit("concat", (linear(program, "x", 2), linear(program, "x", 1)), 3)
    with pytest.raises(NotCovered, match="put together from parts"):
        phases(program)
    program = start()
    program.output = program.emit("silu", ("x",), 2)
    with pytest.raises(NotCovered, match="without products"):
        phases(program)
    program = start()
    program.output = program.emit("silu", (linear(program, "x", 2),), 2)
    with pytest.raises(
        NotCovered, match="a last layer that reads the candidates, which it also replaces"
    ):
        phases(program)
    assert len(phases(program, moves_x=False).phases) == 1  # a Q does not replace them


def test_a_sum_forgets_no_value_that_is_read_again() -> None:
    """a = l(x), e = (a + x) + m(x), output = n(e, silu(a)): a stays known where sums of products
    become one task.
    """
    program = start()
    a = linear(program, "x", 2)
    e = program.emit("add", (program.emit("add", (a, "x"), 2), linear(program, "x", 2)), 2)
    program.output = program.emit(
        "linear", (e, program.emit("silu", (a,), 2)), 2, weights=(torch.eye(2), torch.eye(2))
    )
    x = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    torch.testing.assert_close(carry_out(phases(program), x, {}), 3 * x + functional.silu(x))


def test_a_value_may_meet_itself() -> None:
    """h + h, silu(h) silu'(h), and slices of one value: nothing reads numbers of its own chain
    before they are stored.
    """
    program = start()
    h = linear(program, "x", 2)
    twice = program.emit("add", (h, h), 2)
    product = program.emit("silu_backward", (program.emit("silu", (h,), 2), h), 2)
    halves = [program.emit("slice", (twice,), 1, columns=(i, i + 1)) for i in range(2)]
    both = program.emit("add", tuple(halves), 1)
    program.output = program.emit(
        "linear", (both, product), 2, weights=(torch.ones(1, 2), torch.eye(2))
    )
    x = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    expected = 2 * x.sum(-1, keepdim=True) + functional.silu(x) * slope("silu", x)
    torch.testing.assert_close(carry_out(phases(program), x, {}), expected)
