"""A decision as an ONNX model: the whole of it, guidance gradient and selection included, with
the evaluations as a loop over shared weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ddice.diffusion.samplers import (
    LowerBoundSelection,
    MeanSelection,
    MinimumSelection,
    Selection,
    SoftmaxSelection,
)
from ddice.diffusion.samplers.reference import LOG_STD
from ddice.policies.engines.decision import ActorProgram, DecisionProgram, DiffusionProgram
from ddice.policies.engines.onnx_writer import Writer
from ddice.policies.engines.program import Instruction, NotCovered, Program
from ddice.policies.exported import SCHEMA

OPSET = 18
IR_VERSION = 9
ARGMAX = -1.0  # a uniform number that asks for the argmax instead of a softmax sample


class _Rows:
    """Setup values and constants of one program without members: (T or 1, B or 1, n) in the
    graph.
    """

    def __init__(self, writer: Writer, program: Program):
        self.writer, self.program = writer, program
        self.names: dict[str, str] = {
            "observations": writer.node("Unsqueeze", ("observations", writer.integers(0)))
        }
        self.times = {name: value.shape[-3] for name, value in program.constants.items()} | {
            "observations": 1
        }
        self.shared = {name: value.shape[-2] == 1 for name, value in program.constants.items()} | {
            "observations": False
        }
        for step in program.setup:
            self._add(step)

    def __getitem__(self, name: str) -> str:
        if name not in self.names:
            self.names[name] = self.writer.tensor(self.program.constants[name])
        return self.names[name]

    def _add(self, step: Instruction) -> None:
        used = (*step.inputs, *(() if step.row is None else (step.row,)))
        self.times[step.output] = max(self.times[name] for name in used)
        self.shared[step.output] = all(self.shared[name] for name in used)
        inputs = [self[name] for name in step.inputs]
        if step.op != "linear":
            self.names[step.output] = self.writer.operation(step, inputs)
            return
        y = None if step.row is None else self[step.row]
        for x, weight in zip(inputs, step.weights, strict=True):
            product = self.writer.node("MatMul", (x, self.writer.tensor(weight)))
            y = product if y is None else self.writer.node("Add", (product, y))
        assert y is not None
        self.names[step.output] = y

    def stacks(self, names: Iterable[str]) -> list[tuple[str, list[str]]]:
        """The values that depend on time side by side, (T, B or 1, sum of n), so that one gather
        an evaluation serves them all; with their names.
        """
        timed = sorted(name for name in names if self.times[name] > 1)
        groups = (
            [timed]
            if self.writer.batch == 1
            else [[n for n in timed if self.shared[n]], [n for n in timed if not self.shared[n]]]
        )
        return [
            (self.writer.node("Concat", [self[n] for n in group], axis=-1), group)
            for group in groups
            if group
        ]

    def first(self, name: str) -> str:
        """A value without times, (B or 1, n)."""
        return self.writer.node(
            "Gather", (self[name], self.writer.array(np.array(0, dtype=np.int64)))
        )


def _body(
    writer: Writer, program: Program, rows: _Rows, x: str, candidates: int, found: dict[str, str]
) -> str:
    """The output (B * K, n) of a body without members for x (B * K, A); `found`: the setup
    values (B or 1, n) of this evaluation.
    """
    values = {"x": x}

    def direct(name: str) -> bool:
        """Whether one row serves all candidates: it broadcasts as it is."""
        return rows.shared[name] or writer.batch == 1

    def beside(name: str) -> str:
        """Any value beside body values (B * K, n)."""
        if name in program.in_body:
            return values[name]
        if direct(name):
            return found[name]
        spread = writer.node("Unsqueeze", (found[name], writer.integers(-2)))
        spread = writer.node("Expand", (spread, writer.integers(1, candidates, 1)))
        return writer.node("Reshape", (spread, writer.integers(-1, program.sizes[name])))

    for step in program.body:
        if step.op != "linear":
            values[step.output] = writer.operation(step, [beside(name) for name in step.inputs])
            continue
        inside = step.row is not None and direct(step.row)
        y = found[step.row] if inside and step.row is not None else None
        for name, weight in zip(step.inputs, step.weights, strict=True):
            if y is None:
                y = writer.node("MatMul", (beside(name), writer.tensor(weight)))
            else:
                y = writer.node("Gemm", (beside(name), writer.tensor(weight), y))
        assert y is not None
        if step.row is not None and not inside:
            by_state = writer.node(
                "Reshape", (y, writer.integers(-1, candidates, program.sizes[step.output]))
            )
            by_state = writer.node(
                "Add", (by_state, writer.node("Unsqueeze", (found[step.row], writer.integers(-2))))
            )
            y = writer.node("Reshape", (by_state, writer.integers(-1, program.sizes[step.output])))
        values[step.output] = y
    return beside(program.output)


def _diffusion(writer: Writer, generator: DiffusionProgram, candidates: int, actions: int) -> str:
    """The loop over evaluations; it carries the noise and all predictions so far, (T + 1, B * K
    * A).
    """
    from onnx import TensorProto, helper

    count, outer = len(generator.times), writer
    rows = _Rows(outer, generator.network)
    flat = outer.node("Reshape", ("noise", outer.integers(1, -1)))
    width = outer.node(
        "Slice", (outer.node("Shape", (flat,)), outer.integers(1), outer.integers(2))
    )
    later = outer.node(
        "Expand", (outer.floats(0.0), outer.node("Concat", (outer.integers(count), width), axis=0))
    )
    start = outer.node("Concat", (flat, later), axis=0)
    matrix = outer.tensor(generator.matrix)
    places = outer.array(np.eye(count + 1, dtype=np.float32)[1:, :, None])
    names = generator.network.rows()
    stacks = rows.stacks(names)
    found = {name: rows.first(name) for name in sorted(names) if rows.times[name] == 1}

    with outer.inner() as inside:
        coefficients = outer.node(
            "Gather", (matrix, outer.node("Unsqueeze", ("i", outer.integers(0))))
        )
        x = outer.node(
            "Reshape",
            (outer.node("MatMul", (coefficients, "history")), outer.integers(-1, actions)),
        )
        for stack, members in stacks:
            sizes = [generator.network.sizes[name] for name in members]
            found |= dict(
                zip(members, outer.split(outer.node("Gather", (stack, "i")), sizes), strict=True)
            )
        prediction = _body(outer, generator.network, rows, x, candidates, found)
        placed = outer.node(
            "Mul",
            (
                outer.node("Gather", (places, "i")),
                outer.node("Reshape", (prediction, outer.integers(1, -1))),
            ),
        )
        outer.node("Add", ("history", placed), "history_out")
        outer.node("Identity", ("go_on",), "go_on_out")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        inside,
        "evaluation",
        [
            value("i", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("history", TensorProto.FLOAT, [count + 1, None]),
        ],
        [
            value("go_on_out", TensorProto.BOOL, []),
            value("history_out", TensorProto.FLOAT, [count + 1, None]),
        ],
    )
    yes = outer.array(np.array(True))
    history = outer.node(
        "Loop", (outer.array(np.array(count, dtype=np.int64)), yes, start), body=graph
    )
    last = outer.node("Gather", (matrix, outer.integers(count)))
    return outer.node(
        "Reshape",
        (outer.node("MatMul", (last, history)), outer.integers(-1, candidates, actions)),
        "candidates",
    )


def _gaussian(writer: Writer, program: Program, actions: int) -> str:
    rows = _Rows(writer, program)
    numbers = rows.first(program.output)
    low, high = LOG_STD

    def half(start: int) -> str:
        part = writer.node(
            "Slice",
            (
                numbers,
                writer.integers(start),
                writer.integers(start + actions),
                writer.integers(-1),
            ),
        )
        return writer.node("Unsqueeze", (part, writer.integers(1)))

    mean = writer.node("Tanh", (half(0),))
    scaled = writer.node(
        "Mul", (writer.node("Sigmoid", (half(actions),)), writer.floats(high - low))
    )
    deviation = writer.node("Exp", (writer.node("Add", (scaled, writer.floats(low))),))
    return writer.node("Add", (writer.node("Mul", (deviation, "noise")), mean), "candidates")


def _actor(writer: Writer, program: Program) -> str:
    action = writer.node("Tanh", (_Rows(writer, program).first(program.output),))
    # One candidate: (B, A) -> (B, 1, A).
    return writer.node("Unsqueeze", (action, writer.integers(1)), "candidates")


def _chosen(writer: Writer, decision: DecisionProgram, candidates: str) -> str:
    """Indices (B,) of the chosen candidates."""
    count = decision.candidates
    if decision.q is None:
        first = writer.node(
            "Slice", (writer.node("Shape", ("noise",)), writer.integers(0), writer.integers(1))
        )
        return writer.node("Expand", (writer.integers(0), first), "chosen")
    x = writer.node("Reshape", (candidates, writer.integers(-1, decision.actions)))
    found = []
    for member in (
        decision.q.members()
    ):  # one after the other: weights of several at once would be laid out anew at every call
        rows = _Rows(writer, member)
        q = _body(
            writer,
            member,
            rows,
            x,
            count,
            {name: rows.first(name) for name in sorted(member.rows())},
        )
        found.append(writer.node("Reshape", (q, writer.integers(1, -1, count))))
    q = writer.node("Concat", found, axis=0)
    selection = decision.selection
    scores = _scores(writer, q, selection, members=len(found))
    if not isinstance(selection, SoftmaxSelection):
        return writer.node("ArgMax", (scores,), "chosen", axis=-1, keepdims=0)
    best = writer.node("ArgMax", (scores,), axis=-1, keepdims=0)
    weights = writer.node(
        "Softmax",
        (writer.node("Div", (scores, writer.floats(selection.temperature))),),
        axis=-1,
    )
    cumulative = writer.node("CumSum", (weights, writer.integers(-1)))
    total = writer.node(
        "Slice",
        (cumulative, writer.integers(count - 1), writer.integers(count), writer.integers(-1)),
    )
    limit = writer.node("Mul", (writer.node("Unsqueeze", ("uniform", writer.integers(-1))), total))
    below = writer.node("Cast", (writer.node("Less", (cumulative, limit)),), to=7)
    sampled = writer.node("ReduceSum", (below, writer.integers(-1)), keepdims=0)
    return writer.node(
        "Where", (writer.node("Less", ("uniform", writer.floats(0.0))), best, sampled), "chosen"
    )


def _scores(writer: Writer, q: str, selection: Selection, *, members: int) -> str:
    """What a rule ranks candidates by, (B, K), from q (M, B, K). Raises NotCovered for a rule of
    your own.
    """

    def over_members(operation: str, values: str) -> str:
        return writer.node(operation, (values, writer.integers(0)), keepdims=0)

    if isinstance(selection, MinimumSelection):
        return over_members("ReduceMin", q)
    mean = over_members("ReduceMean", q)
    if isinstance(selection, MeanSelection | SoftmaxSelection):
        return mean
    if not isinstance(selection, LowerBoundSelection):
        raise NotCovered(f"not covered: the selection rule {selection.rule!r}")
    distance = writer.node("Sub", (q, mean))
    squares = over_members("ReduceSum", writer.node("Mul", (distance, distance)))
    variance = writer.node("Div", (squares, writer.floats(members - 1)))  # as the sample deviation
    deviation = writer.node("Sqrt", (variance,))
    below = writer.node("Mul", (deviation, writer.floats(selection.coefficient)))
    return writer.node("Sub", (mean, below))


def onnx_model(
    decision: DecisionProgram,
    *,
    batch: int | None,
    low: Sequence[float],
    high: Sequence[float],
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """The ModelProto of a decision.

    Inputs: observations (B, S), noise (B, K, A) standard normal, uniform (B,) in [0, 1), or -1 for
    the argmax (read by a softmax selection only). Outputs: actions (B, A) in [low, high],
    unit_actions (B, A) in [-1, 1], candidates (B, K, A) as sampled, chosen (B,). batch: the number
    of states, None for any; a fixed 1 is faster. Needs the package onnx. Raises NotCovered for an
    unknown operation.
    """
    from onnx import TensorProto, helper

    writer, size = Writer(batch), decision.actions
    generator = decision.generator
    if isinstance(generator, DiffusionProgram):
        raw = _diffusion(writer, generator, decision.candidates, size)
    elif isinstance(generator, ActorProgram):
        raw = _actor(writer, generator.network)
    else:
        raw = _gaussian(writer, generator.network, size)
    bounds = writer.floats(-1.0), writer.floats(1.0)
    inside = writer.node("Clip", (raw, *bounds)) if decision.clip_before_scoring else raw
    chosen = _chosen(writer, decision, inside)
    picked = writer.node(
        "GatherND", (inside, writer.node("Unsqueeze", (chosen, writer.integers(-1)))), batch_dims=1
    )
    unit = writer.node("Clip", (picked, *bounds), "unit_actions")
    shares = [
        writer.node(
            "Mul",
            (
                writer.node(op, (writer.floats(1.0), unit)),
                writer.array((np.asarray(bound) / 2).astype(np.float32)),
            ),
        )
        for op, bound in (("Sub", low), ("Add", high))
    ]
    writer.node("Add", shares, "actions")  # as BoxActions.from_unit: exact at the bounds
    rows, value = batch or "B", helper.make_tensor_value_info
    inputs = [
        value("observations", TensorProto.FLOAT, [rows, decision.observations]),
        value("noise", TensorProto.FLOAT, [rows, decision.candidates, size]),
        value("uniform", TensorProto.FLOAT, [rows]),
    ]
    outputs = [
        value("actions", TensorProto.FLOAT, [rows, size]),
        value("unit_actions", TensorProto.FLOAT, [rows, size]),
        value("candidates", TensorProto.FLOAT, [rows, decision.candidates, size]),
        value("chosen", TensorProto.INT64, [rows]),
    ]
    graph = helper.make_graph(writer.nodes, "decision", inputs, outputs, writer.initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ddice",
    )
    helper.set_model_props(
        model, {"ddice.schema": str(SCHEMA), "ddice": json.dumps(dict(metadata or {}))}
    )
    return model
