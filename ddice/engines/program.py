"""Decisions as programs: what depends on nothing, on the state, and on the candidate, taken apart once, for every engine.

A network's plan is split by partial evaluation. Values that depend on time alone become `constants`; values that depend on the state (and time) are
computed by `setup`, once per call and for all times together; `body` is what remains for every candidate at every evaluation. The gradient of the
guidance is part of the body, written by hand from the same plan. Every solver is linear in the noise and the predictions, so it is one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ddice.dice_backends.base import QFunction
from ddice.networks import NORM_EPS, Encoder, Layer, Network, Operation
from ddice.samplers import DiffusionSampler, GaussianSampler, Sampler, Selection
from ddice.schedule import NoiseSchedule
from ddice.solvers import Solver

Op = Literal[
    "linear", "layer_norm", "fourier", "add", "concat", "relu", "silu",
    "slice", "standardize", "clean", "relu_backward", "silu_backward", "layer_norm_backward",
]  # fmt: skip
CHECK_TOLERANCE = 1e-6  # of the check that a solver is linear, in float64


class NotCovered(ValueError):
    """An engine cannot run this policy; the message names the layer, the solver or the Q that stands in the way."""


class Instruction(NamedTuple):
    """One step: `output` = op(`inputs`).

    linear: sum_i inputs[i] @ weights[i] + row; weights[i] is (*M, in_i, out). layer_norm: weights = (gain, shift), each (*M, n).
    layer_norm_backward: inputs (x, gradient), weights = (gain,). silu_backward, relu_backward: inputs (x, gradient).
    clean: x / alpha - noise * sigma / alpha within [-1, 1], inputs (noise, x, 1 / alpha, sigma / alpha).
    standardize: (input - weights[0]) / weights[1]. fourier: (sin, cos) of input[..., :1] * weights[0]. slice: the `columns` of the input.
    """

    op: Op
    inputs: tuple[str, ...]
    output: str
    weights: tuple[Tensor, ...] = ()
    row: str | None = None
    columns: tuple[int, int] = (0, 0)


@dataclass
class Program:
    """A partially evaluated network. Setup values and constants are (*M, T or 1, B or 1, n), body values (*M, B, K, n).

    The inputs are "observations" (1, B, S) of the setup and "x" (B, K, A) of the body. A body instruction of evaluation i sees of a setup value v
    its v[..., i, :, None, :], i = 0 where v has no times. `output` may be the name of a setup value or of a constant.
    """

    constants: dict[str, Tensor] = field(default_factory=dict)
    setup: list[Instruction] = field(default_factory=list)
    body: list[Instruction] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    in_body: set[str] = field(default_factory=set)
    output: str = ""
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def emit(
        self,
        op: Op,
        inputs: tuple[str, ...],
        size: int,
        *,
        weights: tuple[Tensor, ...] = (),
        row: str | None = None,
        columns: tuple[int, int] = (0, 0),
    ) -> str:
        """Add an instruction where it belongs, unless it is there; the name of its output."""
        key = op, inputs, columns
        if not weights and key in self._known:
            return self._known[key]
        name = f"{op}_{len(self.sizes)}"
        if not weights:
            self._known[key] = name
        self.sizes[name] = size
        instruction = Instruction(op, inputs, name, weights, row, columns)
        used = inputs if row is None else (*inputs, row)
        if any(value in self.in_body for value in used):
            self.body.append(instruction)
            self.in_body.add(name)
        elif all(value in self.constants for value in used):
            self.constants[name] = evaluate(instruction, [self.constants[value] for value in inputs], None if row is None else self.constants[row])
        else:
            self.setup.append(instruction)
        return name

    def constant(self, value: Tensor) -> str:
        """A constant (*M, T or 1, 1, n)."""
        name = f"constant_{len(self.sizes)}"
        self.sizes[name], self.constants[name] = value.shape[-1], value
        return name

    def rows(self) -> set[str]:
        """The constants and setup values that the body reads."""
        used = {name for step in self.body for name in (*step.inputs, step.row) if name is not None}
        return {name for name in (*used, self.output) if name not in self.in_body}

    def members(self) -> Iterator[Program]:
        """The programs of the members, without the axis that holds them; only itself where there is none."""
        count = max((len(weight) for step in (*self.setup, *self.body) for weight in step.weights if weight.ndim > _rank(step)), default=1)
        for m in range(count):
            constants = {name: value[m] if value.ndim > 3 else value for name, value in self.constants.items()}
            setup, body = (
                [step._replace(weights=tuple(w[m] if w.ndim > _rank(step) else w for w in step.weights)) for step in steps]
                for steps in (self.setup, self.body)
            )
            yield Program(constants, setup, body, self.sizes, self.in_body, self.output)

    def prune(self) -> Program:
        """The same without what the output does not need."""
        needed = {self.output}
        body: list[Instruction] = []
        setup: list[Instruction] = []
        for kept, instructions in ((body, self.body), (setup, self.setup)):
            for instruction in reversed(instructions):
                if instruction.output in needed:
                    kept.append(instruction)
                    needed.update(instruction.inputs, () if instruction.row is None else (instruction.row,))
        constants = {name: value for name, value in self.constants.items() if name in needed}
        return Program(constants, setup[::-1], body[::-1], self.sizes, self.in_body, self.output)


def _rank(step: Instruction) -> int:
    """The axes of a step's weights without members."""
    return 2 if step.op == "linear" else 1


def evaluate(instruction: Instruction, inputs: list[Tensor], row: Tensor | None) -> Tensor:
    """One instruction on tensors that broadcast against each other: what every engine must compute."""
    op, x, weights = instruction.op, inputs[0], instruction.weights
    if op == "linear":
        bias = row.flatten() if row is not None and weights[0].ndim == 2 and row.numel() == row.shape[-1] else None  # inside the product
        y = x @ _matrix(weights[0]) if bias is None else functional.linear(x, weights[0].mT, bias)
        y = sum((value @ _matrix(weight) for value, weight in zip(inputs[1:], weights[1:], strict=True)), y)
        return y if row is None or bias is not None else y + row
    if op == "add":
        return sum(inputs[1:], x)
    if op == "concat":
        if len({value.shape[:-1] for value in inputs}) > 1:
            shape = torch.broadcast_shapes(*(value.shape[:-1] for value in inputs))
            inputs = [value.expand(*shape, value.shape[-1]) for value in inputs]
        return torch.cat(inputs, dim=-1)
    if op == "slice":
        return x[..., instruction.columns[0] : instruction.columns[1]]
    if op == "silu":
        return functional.silu(x)
    if op == "relu":
        return torch.relu(x)
    if op == "silu_backward":
        gate = torch.sigmoid(x)
        return inputs[1] * gate * (1 + x * (1 - gate))
    if op == "relu_backward":
        return inputs[1] * (x > 0)
    if op == "layer_norm":
        return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * _vector(weights[0]) + _vector(weights[1])
    if op == "layer_norm_backward":
        gradient = inputs[1] * _vector(weights[0])
        centred = x - x.mean(-1, keepdim=True)
        inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + NORM_EPS)
        normal = centred * inverse
        return inverse * (gradient - gradient.mean(-1, keepdim=True) - normal * (gradient * normal).mean(-1, keepdim=True))
    if op == "clean":
        _, actions, inverse, factor = inputs
        return (actions * inverse - x * factor).clamp_(-1, 1)
    if op == "standardize":
        return (x - weights[0]) / weights[1]
    if op == "fourier":
        angles = x[..., :1] * _vector(weights[0])
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)
    raise NotCovered(f"not covered: {op}")


def _matrix(weight: Tensor) -> Tensor:
    """(*M, in, out) -> the same against (*M, T or B, B or K, in)."""
    return weight if weight.ndim == 2 else weight.unsqueeze(-3)


def _vector(weight: Tensor) -> Tensor:
    """(*M, n) -> the same against (*M, T or B, B or K, n)."""
    return weight if weight.ndim == 1 else weight[..., None, None, :]


def add_network(program: Program, network: Network, inputs: Mapping[str, str]) -> tuple[dict[str, str], list[Layer]]:
    """Append a network whose inputs are these values; where each of its values is found in the program, and its plan."""
    names, plan = dict(inputs), network.plan()
    for layer in plan:
        if layer.op not in get_args(Operation):
            raise NotCovered(f"not covered: {layer.op}")
        size = network.sizes[layer.output]
        values = tuple(names[name] for name in layer.inputs)
        if layer.op == "linear":
            names[layer.output] = _linear(program, layer, values, size)
        elif layer.op in ("add", "concat", "relu", "silu"):
            names[layer.output] = program.emit(layer.op, values, size)
        else:
            weights = tuple(weight.detach() for weight in (layer.weight, layer.bias) if weight is not None)
            names[layer.output] = program.emit(layer.op, values, size, weights=weights)
    return names, plan


def _linear(program: Program, layer: Layer, values: tuple[str, ...], size: int) -> str:
    """An affine layer; the part of its inputs that are no candidates' becomes a row."""
    assert layer.weight is not None
    assert layer.bias is not None
    weights = layer.weight.detach().split([program.sizes[name] for name in values], dim=-2)
    row = program.constant(layer.bias.detach()[..., None, None, :])
    for inside in ([n for n in values if n in program.constants], [n for n in values if n not in program.constants and n not in program.in_body]):
        if inside:
            row = program.emit("linear", tuple(inside), size, weights=tuple(w for n, w in zip(values, weights, strict=True) if n in inside), row=row)
    rest = [(n, w) for n, w in zip(values, weights, strict=True) if n in program.in_body]
    if not rest:
        return row
    return program.emit("linear", tuple(n for n, _ in rest), size, weights=tuple(w for _, w in rest), row=row)


def add_gradient(program: Program, network: Network, inputs: Mapping[str, str], wrt: str, factor: Tensor) -> str:
    """Append factor (T) times the gradient of the network's summed outputs in its input `wrt`; the name of the gradient."""
    names, plan = add_network(program, network, inputs)
    depends = {wrt}
    for layer in plan:
        if depends & set(layer.inputs):
            depends.add(layer.output)
    seed = program.constant(factor[:, None, None].expand(-1, 1, network.sizes[plan[-1].output]).contiguous())
    gradients = {plan[-1].output: [seed]}
    for layer in reversed(plan):
        if layer.output not in gradients or layer.output not in depends:
            continue
        gradient = _total(program, gradients.pop(layer.output))
        start = 0
        for name in layer.inputs:
            columns = (start, start + network.sizes[name])
            start = columns[1]
            if name in depends:
                gradients.setdefault(name, []).append(_backward(program, layer, names[name], gradient, columns))
    if wrt not in gradients:
        return program.constant(factor.new_zeros(1, 1, network.sizes[wrt]))
    return _total(program, gradients[wrt])


def _total(program: Program, terms: list[str]) -> str:
    return terms[0] if len(terms) == 1 else program.emit("add", tuple(terms), program.sizes[terms[0]])


def _backward(program: Program, layer: Layer, x: str, gradient: str, columns: tuple[int, int]) -> str:
    """The gradient in one input x of one layer, from the gradient in its output."""
    size = columns[1] - columns[0]
    if layer.op == "linear":
        assert layer.weight is not None
        return program.emit("linear", (gradient,), size, weights=(layer.weight.detach()[..., columns[0] : columns[1], :].mT.contiguous(),))
    if layer.op == "concat":
        return program.emit("slice", (gradient,), size, columns=columns)
    if layer.op == "add":
        return gradient
    if layer.op == "silu":
        return program.emit("silu_backward", (x, gradient), size)
    if layer.op == "relu":
        return program.emit("relu_backward", (x, gradient), size)
    if layer.op == "layer_norm":
        assert layer.weight is not None
        return program.emit("layer_norm_backward", (x, gradient), size, weights=(layer.weight.detach(),))
    raise NotCovered(f"not covered: the gradient of {layer.op}")


def solver_matrix(solver: Solver, schedule: NoiseSchedule, *, clean: bool) -> tuple[Tensor, Tensor]:
    """The times (T) of the evaluations and the matrix (T + 1, T + 1) of a solver, lower triangular, float64.

    Predictions are of noise, or `clean`: of clean actions. With h = (noise, prediction 0, ..., prediction T - 1): row i times h is the x of
    evaluation i, and row T times h the action. Found by integrating with coordinates in place of numbers. Raises NotCovered for a solver whose
    steps are not linear.
    """
    times: list[Tensor] = []
    rows: list[Tensor] = []
    size = solver.evaluations + 1

    def coordinate(index: int) -> Tensor:
        return torch.eye(size, dtype=torch.float64)[index]

    def noise(x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return (x - schedule.alpha(t) * prediction) / schedule.sigma(t) if clean else prediction

    def record(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        rows.append(x)
        return noise(x, coordinate(len(rows)), t)

    rows.append(solver.integrate(record, coordinate(0), schedule))
    matrix = torch.stack(rows)
    known = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    answers = iter(known[1:])
    if not torch.allclose(solver.integrate(lambda x, t: noise(x, next(answers), t), known[0], schedule), matrix[-1] @ known, rtol=CHECK_TOLERANCE):
        raise NotCovered(f"not covered: the solver {solver.kind!r}, whose steps are not linear in noise and predictions")
    return torch.stack(times), matrix


def _start(encoders: Mapping[str, Encoder]) -> tuple[Program, dict[str, str]]:
    """A program that reads observations, and the features of each encoder."""
    program = Program(in_body={"x"})
    features = {}
    for name, encoder in encoders.items():
        program.sizes["observations"] = encoder.size
        features[name] = program.emit("standardize", ("observations",), encoder.size, weights=(encoder.mean, encoder.std))
    return program, features


@dataclass(frozen=True)
class DiffusionProgram:
    """`network` gives the guided prediction of evaluation i, of noise or of clipped clean actions;
    `matrix` (T + 1, T + 1) is the solver's, see `solver_matrix`."""

    network: Program
    matrix: Tensor
    times: Tensor


@dataclass(frozen=True)
class GaussianProgram:
    """`network` gives, from observations alone, the numbers (1, B, 2A) that `GaussianSampler` turns into mean and log deviation."""

    network: Program


@dataclass(frozen=True)
class Decision:
    """A whole decision: observations (B, S) and noise (B, K, A) -> candidates -> the bounds -> selection by q -> actions (B, A) in [-1, 1]."""

    generator: DiffusionProgram | GaussianProgram
    q: Program | None  # (M, B, K, 1) of candidates, up to a constant per state; None where K = 1
    selection: Selection
    clip_before_scoring: bool
    candidates: int
    observations: int
    actions: int


def diffusion_program(sampler: DiffusionSampler) -> DiffusionProgram:
    """The sampler's guided denoiser and solver. Raises NotCovered for a layer or a solver that cannot be taken apart."""
    config, schedule = sampler.config, sampler.config.prior.schedule
    times, matrix = solver_matrix(config.solver, schedule, clean=config.clip_denoised)
    t = times.to(sampler.encoder.mean)
    program, features = _start({"features": sampler.encoder})
    program.sizes["x"] = sampler.network.sizes["actions"]
    inputs = {**features, "actions": "x", "time": program.constant(schedule.features(t)[:, None])}
    names, plan = add_network(program, sampler.network, inputs)
    program.output = names[plan[-1].output]
    if sampler.guidance is not None:
        gradient = add_gradient(program, sampler.guidance, inputs, "actions", -config.guidance_scale * schedule.sigma(t))
        program.output = program.emit("add", (program.output, gradient), program.sizes["x"])
    if config.clip_denoised:
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        levels = (program.constant(level[:, None, None].to(t)) for level in (1 / alpha, sigma / alpha))
        program.output = program.emit("clean", (program.output, "x", *levels), program.sizes["x"])
    return DiffusionProgram(program.prune(), matrix.to(t), t)


def gaussian_program(sampler: GaussianSampler) -> GaussianProgram:
    """The sampler's network, which reads observations alone."""
    program, features = _start({"features": sampler.encoder})
    names, plan = add_network(program, sampler.network, features)
    program.output = names[plan[-1].output]
    return GaussianProgram(program.prune())


def q_program(q: QFunction) -> Program:
    """The critic of a QFunction, without V(s) and the offset: they are the same for all candidates of a state."""
    program, features = _start({"features": q.encoder})
    program.sizes["x"] = q.critic.sizes["actions"]
    names, plan = add_network(program, q.critic, {**features, "actions": "x"})
    program.output = names[plan[-1].output]
    return program.prune()


def decision(sampler: Sampler, q: object, *, candidates: int, selection: Selection, clip_before_scoring: bool) -> Decision:
    """A policy's parts as a program. Raises NotCovered, naming what cannot be taken apart."""
    if q is not None and not isinstance(q, QFunction):
        raise NotCovered("not covered: a Q that is a callable of your own")
    generator: DiffusionProgram | GaussianProgram
    if isinstance(sampler, DiffusionSampler):
        generator, actions = diffusion_program(sampler), sampler.network.sizes["actions"]
    else:
        generator = gaussian_program(sampler)
        actions = generator.network.sizes[generator.network.output] // 2
    program = None if candidates == 1 or q is None else q_program(q)
    return Decision(generator, program, selection, clip_before_scoring, candidates, sampler.encoder.size, actions)
