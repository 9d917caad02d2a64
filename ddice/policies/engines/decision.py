"""Decisions as programs.

The plans of a policy's networks become instructions by partial evaluation. The gradient of the
guidance is part of the body, written by hand from the same plan. Every solver is linear in the
noise and the predictions, so it is one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ddice.core.config import class_name
from ddice.dice_backends.q_function import QFunction
from ddice.diffusion.networks import Encoder, Layer, Network, StandardEncoder
from ddice.diffusion.networks.operations import operation
from ddice.diffusion.networks.plan import run_backward, run_forward
from ddice.diffusion.prediction import NoisePrediction, VelocityPrediction
from ddice.diffusion.prior import PriorConfig
from ddice.diffusion.samplers import (
    ActorSampler,
    DiffusionSampler,
    GaussianSampler,
    Selection,
)
from ddice.diffusion.schedule import NoiseSchedule
from ddice.diffusion.solvers import Solver
from ddice.policies.engines.base import Procedure
from ddice.policies.engines.program import NotCovered, Program

CHECK_TOLERANCE = 1e-6  # of the check that a solver is linear, in float64


class Instructions:
    """A target of plans: their operations become instructions of a program."""

    def __init__(self, program: Program):
        self.program = program

    def emit(
        self,
        op: str,
        inputs: tuple[str, ...],
        size: int,
        parameters: tuple[Tensor, ...] = (),
        *,
        bias: Tensor | None = None,
        columns: tuple[int, ...] = (),
    ) -> str:
        operation(op)  # raises for what no table states
        weights = tuple(weight.detach().contiguous() for weight in parameters)
        if op == "linear":
            return self._linear(inputs, size, weights, bias)
        return self.program.emit(op, inputs, size, weights=weights, columns=columns)

    def _linear(
        self,
        inputs: tuple[str, ...],
        size: int,
        weights: tuple[Tensor, ...],
        bias: Tensor | None,
    ) -> str:
        """An affine layer; what its inputs of time and of states alone add becomes a row."""
        program = self.program
        row = None if bias is None else program.constant(bias.detach()[..., None, None, :])
        constant = [name for name in inputs if name in program.constants]
        of_candidates = [name for name in inputs if name in program.in_body]
        of_states = [name for name in inputs if name not in (*constant, *of_candidates)]
        for names in (constant, of_states, of_candidates):
            if names:
                used = tuple(w for n, w in zip(inputs, weights, strict=True) if n in names)
                row = program.emit("linear", tuple(names), size, weights=used, row=row)
        assert row is not None
        return row


def add_network(
    program: Program, network: Network, inputs: Mapping[str, str]
) -> tuple[dict[str, str], list[Layer]]:
    """Append a network whose inputs are these values; where each of its values is found in the
    program, and its plan.
    """
    if type(network) is not Network:  # a subclass may compute something else than its plan
        raise NotCovered(f"not covered: the network {class_name(type(network))}")
    plan = network.plan()
    return run_forward(plan, inputs, Instructions(program)), plan


def add_gradient(
    program: Program, network: Network, inputs: Mapping[str, str], wrt: str, factor: Tensor
) -> str:
    """Append factor (T) times the gradient of the network's summed outputs in its input `wrt`;
    the name of the gradient.
    """
    names, plan = add_network(program, network, inputs)
    seed = program.constant(factor[:, None, None].expand(-1, 1, plan[-1].size).contiguous())
    gradient = run_backward(plan, names, seed, wrt, Instructions(program))
    if gradient is None:
        return program.constant(factor.new_zeros(1, 1, network.sizes[wrt]))
    return gradient


def solver_matrix(
    solver: Solver, schedule: NoiseSchedule, *, clean: bool, clip: bool
) -> tuple[Tensor, Tensor]:
    """The times (T) of the evaluations and the matrix (T + 1, T + 1) of a solver, lower triangular,
    float64.

    Predictions are of noise, or `clean`: of clean actions, within the bounds where `clip`. With
    h = (noise, prediction 0, ..., prediction T - 1): row i times h is the x of evaluation i, and
    row T times h the action. Found by integrating with coordinates in place of numbers. Raises
    NotCovered for a solver whose steps are not linear.
    """
    times: list[Tensor] = []
    rows: list[Tensor] = []
    size = solver.evaluations + 1
    refusal = f"not covered: the solver {class_name(type(solver))}"

    def coordinate(index: int) -> Tensor:
        return torch.eye(size, dtype=torch.float64, device="cpu")[index]

    def noise(x: Tensor, prediction: Tensor, t: Tensor) -> Tensor:
        return (x - schedule.alpha(t) * prediction) / schedule.sigma(t) if clean else prediction

    def record(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        rows.append(x)
        if len(rows) == size:
            raise NotCovered(f"{refusal}, which evaluates more often than `evaluations` says")
        return noise(x, coordinate(len(rows)), t)

    rows.append(solver.integrate(record, coordinate(0), schedule))
    if len(rows) != size:
        raise NotCovered(f"{refusal}, which evaluates less often than `evaluations` says")
    matrix = torch.stack(rows)
    # Deviation 2: some clean predictions lie outside of the bounds, so that clipping acts.
    source = torch.Generator("cpu").manual_seed(0)
    known = 2 * torch.randn(size, generator=source, dtype=torch.float64, device="cpu")
    answers = iter(known[1:])
    action = solver.integrate(
        lambda x, t: noise(x, next(answers), t), known[0], schedule, clip=clip
    )
    used = torch.cat([known[:1], known[1:].clamp(-1, 1)]) if clip else known
    if not torch.allclose(action, matrix[-1] @ used, rtol=CHECK_TOLERANCE):
        raise NotCovered(f"{refusal}, whose steps are not linear in noise and predictions")
    return torch.stack(times), matrix


def _standard(encoder: Encoder) -> StandardEncoder:
    """The encoder, where it is the one that engines know."""
    if type(encoder) is not StandardEncoder:
        raise NotCovered(f"not covered: the encoder {class_name(type(encoder))}")
    return encoder


def _start(encoders: Mapping[str, Encoder]) -> tuple[Program, dict[str, str]]:
    """A program that reads observations, and the features of each encoder."""
    program = Program(in_body={"x"})
    features = {}
    for name, encoder in encoders.items():
        standard = _standard(encoder)
        statistics = (standard.mean, standard.std)
        program.sizes["observations"] = standard.size
        features[name] = program.emit(
            "standardize", ("observations",), standard.size, weights=statistics
        )
    return program, features


@dataclass(frozen=True)
class DiffusionProgram:
    """`network` gives the guided prediction of evaluation i, of noise or of clean actions;
    `matrix` (T + 1, T + 1) is the solver's, see `solver_matrix`."""

    network: Program
    matrix: Tensor
    times: Tensor


@dataclass(frozen=True)
class GaussianProgram:
    """`network` gives, from observations alone, the numbers (1, B, 2A) that `GaussianSampler`
    turns into mean and log deviation.
    """

    network: Program


@dataclass(frozen=True)
class ActorProgram:
    """`network` gives, from observations alone, the numbers (1, B, A) whose tanh is the action."""

    network: Program


@dataclass(frozen=True)
class DecisionProgram:
    """A whole decision: observations (B, S) and noise (B, K, A) -> candidates -> the bounds ->
    selection by q -> actions (B, A) in [-1, 1].
    """

    generator: DiffusionProgram | GaussianProgram | ActorProgram
    q: Program | None  # (M, B, K, 1) of candidates, up to a constant per state; None where K = 1
    selection: Selection
    clip_before_scoring: bool
    candidates: int
    observations: int
    actions: int


def diffusion_program(sampler: DiffusionSampler) -> DiffusionProgram:
    """The sampler's guided denoiser and solver. Raises NotCovered for a layer or a solver that
    cannot be taken apart.
    """
    config, schedule = sampler.config, sampler.config.prior.schedule
    # Noise near t = 1 is x but for little, and the matrix would multiply what rounding left of it:
    # clean actions, which a velocity gives without that, are the better predictions.
    clip = config.clip_denoised
    clean = clip or isinstance(config.prior.prediction, VelocityPrediction)
    times, matrix = solver_matrix(config.solver, schedule, clean=clean, clip=clip)
    t = times.to(_standard(sampler.encoder).mean)
    program, features = _start({"features": sampler.encoder})
    program.sizes["x"] = sampler.network.sizes["actions"]
    inputs = {**features, "actions": "x", "time": program.constant(schedule.features(t)[:, None])}
    names, plan = add_network(program, sampler.network, inputs)
    program.output = _noise(program, names[plan[-1].output], config.prior, times, t)
    if sampler.guidance is not None and config.guidance_scale:
        gradient = add_gradient(
            program, sampler.guidance, inputs, "actions", -config.guidance_scale * schedule.sigma(t)
        )
        program.output = program.emit("add", (program.output, gradient), program.sizes["x"])
    if clean:
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        levels = (
            program.constant(level[:, None, None].to(t)) for level in (1 / alpha, sigma / alpha)
        )
        name = "clean" if clip else "denoised"
        program.output = program.emit(name, (program.output, "x", *levels), program.sizes["x"])
    return DiffusionProgram(_of_candidates(program), matrix.to(t), t)


def _noise(program: Program, output: str, prior: PriorConfig, times: Tensor, like: Tensor) -> str:
    """Append what reads the noise in x from the output of a prior's network at these times (T),
    on the device of `like` and in its dtype.
    """
    prediction, schedule = prior.prediction, prior.schedule
    if isinstance(prediction, NoisePrediction):
        return output
    if not isinstance(prediction, VelocityPrediction):
        raise NotCovered(f"not covered: the prediction {class_name(type(prediction))}")
    # In double precision first: what sigma loses near 1 is divided by alpha in the clean action.
    levels = (
        program.constant(level[:, None, None].to(like))
        for level in (schedule.alpha(times), schedule.sigma(times))
    )
    return program.emit("velocity", (output, "x", *levels), program.sizes["x"])


def program_of_states(sampler: GaussianSampler | ActorSampler) -> Program:
    """The sampler's network, which reads observations alone."""
    program, features = _start({"features": sampler.encoder})
    names, plan = add_network(program, sampler.network, features)
    program.output = names[plan[-1].output]
    return program.prune()


def q_program(q: QFunction) -> Program:
    """The critic of a QFunction, without V(s) and the offset: they are the same for all
    candidates of a state.
    """
    program, features = _start({"features": q.encoder})
    program.sizes["x"] = q.critic.sizes["actions"]
    names, plan = add_network(program, q.critic, {**features, "actions": "x"})
    program.output = names[plan[-1].output]
    return _of_candidates(program)


def _of_candidates(program: Program) -> Program:
    """The same, pruned; its output is a number of every candidate."""
    if program.output not in program.in_body:
        raise NotCovered("not covered: an output that does not depend on the candidates")
    return program.prune()


def decision_program(procedure: Procedure) -> DecisionProgram:
    """A procedure as programs. Raises NotCovered, naming what cannot be taken apart."""
    sampler, q, candidates, selection, clip_before_scoring = procedure
    if candidates > 1 and q is not None and not isinstance(q, QFunction):
        raise NotCovered("not covered: a Q that is a callable of your own")
    generator: DiffusionProgram | GaussianProgram | ActorProgram
    if isinstance(sampler, DiffusionSampler):
        generator, actions = diffusion_program(sampler), sampler.network.sizes["actions"]
    elif isinstance(sampler, GaussianSampler):
        generator = GaussianProgram(program_of_states(sampler))
        actions = generator.network.sizes[generator.network.output] // 2
    elif isinstance(sampler, ActorSampler):
        generator = ActorProgram(program_of_states(sampler))
        actions = generator.network.sizes[generator.network.output]
    else:
        raise NotCovered(f"not covered: the sampler {class_name(type(sampler.config))}")
    program = q_program(q) if candidates > 1 and isinstance(q, QFunction) else None
    return DecisionProgram(
        generator,
        program,
        selection,
        clip_before_scoring,
        candidates,
        sampler.encoder.size,
        actions,
    )
