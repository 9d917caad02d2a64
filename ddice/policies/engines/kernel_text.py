"""The formulas of the table of operations as the text of one Triton function.

A step of a task changes the numbers at hand y. The step "silu_backward_1" is the operation
silu_backward with y as its input 1; its other inputs and its parameters are the operands a, b, c,
in order. Text rather than a kernel, so that nothing here imports triton.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from ddice.diffusion.networks.operations import (
    Function,
    NotCovered,
    Operation,
    Sign,
    Symbol,
    formulas,
    operation,
)

OPERANDS = ("a", "b", "c")
INDENT = " " * 8


def step_name(op: str, role: int) -> str:
    return f"{op}_{role}"


class Lines(NamedTuple):
    """What a formula computes, line by line, and the name of its result. rows: whether it sees
    whole rows.
    """

    lines: tuple[str, ...]
    result: str
    rows: bool


class _Text:
    """Lines that are being written: an expression is computed once."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self.rows = False

    def name(self, expression: str) -> LineSymbol:
        return LineSymbol(self, self.names.setdefault(expression, f"t{len(self.names)}"))


class LineSymbol(Symbol):
    """A value of a formula as the name of a line's result."""

    def __init__(self, text: _Text, name: str):
        self.text, self.name = text, name

    def combine(self, sign: Sign, left: Symbol | float, right: Symbol | float) -> LineSymbol:
        return self.text.name(f"{_shown(left)} {sign} {_shown(right)}")

    def call(self, function: Function) -> LineSymbol:
        self.text.rows = self.text.rows or function.rows
        return self.text.name(function.triton.format(x=self.name))


def _shown(value: Symbol | float) -> str:
    return value.name if isinstance(value, LineSymbol) else repr(float(value))  # type: ignore[arg-type]


def lines(op: str, role: int = 0) -> Lines:
    """Raises NotCovered, naming the operation, for what is no formula of few enough values."""
    return _lines(op, operation(op), role)


@cache
def _lines(op: str, found: Operation, role: int) -> Lines:
    if found.formula is None:
        raise NotCovered(f"not covered: {op} of candidates")
    count = found.inputs + found.parameters
    if count > 1 + len(OPERANDS):
        raise NotCovered(
            f"not covered: {op} of {count} values, where a step of a kernel has at most "
            f"{1 + len(OPERANDS)}"
        )
    names = list(OPERANDS[: count - 1])
    names.insert(role, "y")
    text = _Text()
    written = found.formula(*(LineSymbol(text, name) for name in names))
    assert isinstance(written, LineSymbol)
    computed = tuple(f"{name} = {expression}" for expression, name in text.names.items())
    return Lines(computed, written.name, text.rows)


def sees_rows(op: str) -> bool:
    return lines(op).rows


def steps() -> list[tuple[str, int]]:
    """The operation and the role of every step that the table of operations allows."""
    return [
        (op, role)
        for op, found in formulas().items()
        for role in range(found.inputs)
        if found.inputs + found.parameters <= 1 + len(OPERANDS)
    ]


def function_text() -> str:
    """formula(STEP, y, a, b, c, width, SIZE) -> y after the step of that name."""
    text = ["def formula(STEP: tl.constexpr, y, a, b, c, width, SIZE: tl.constexpr):"]
    for op, role in steps():
        text.append(f'    {"el" if len(text) > 1 else ""}if STEP == "{step_name(op, role)}":')
        found = lines(op, role)
        text += [INDENT + line for line in (*found.lines, f"y = {found.result}")]
    return "\n".join([*text, "    return y", ""])
