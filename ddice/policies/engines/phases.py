"""The body of a program as phases: what one kernel launch can compute, with nothing in it that
waits for anything else in it.

A task is a sum of matrix products, or a value that is read again, and a chain of steps on the
numbers while they are at hand. Chains take up every element-wise instruction that follows, so that
activations, their derivatives, sums and clipping need no launch of their own. Tasks without a path
between them share a phase: the layers of the score and of the guidance stand side by side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ddice.policies.engines.kernel_text import lines, sees_rows
from ddice.policies.engines.program import Instruction, NotCovered, Program

# a normalisation joins the task before it up to this width: one tile must then hold whole rows
FUSED_ROW = 128
WIDEST_ROW = 1024  # that a normalisation of its own can hold


class View(NamedTuple):
    """Columns start, ..., start + size - 1 of a body value, of a row or of x."""

    name: str
    start: int
    size: int


class Term(NamedTuple):
    """view @ weight (*M, size, n)."""

    view: View
    weight: Tensor


class Step(NamedTuple):
    """The number at hand y becomes op(inputs, parameters), with y as input `role` and the operands
    as the others in order; known as `output` (None: known to nobody).
    """

    op: str
    role: int
    operands: tuple[View, ...]
    output: str | None


@dataclass(eq=False)
class Task:
    """The sum of `terms`, or else `start`, known as `first`; then the steps. `size` columns;
    `whole`: steps that see whole rows.
    """

    size: int
    terms: list[Term] = field(default_factory=list)
    start: View | None = None
    first: str | None = None
    steps: list[Step] = field(default_factory=list)
    whole: bool = False

    @property
    def tail(self) -> str | None:
        return self.steps[-1].output if self.steps else self.first

    @property
    def sum_only(self) -> bool:
        return bool(self.terms) and all(step.op == "add" for step in self.steps)

    def reads(self) -> Iterator[View]:
        yield from (term.view for term in self.terms)
        yield from () if self.start is None else (self.start,)
        yield from (view for step in self.steps for view in step.operands)

    def outputs(self) -> list[str]:
        return [
            name for name in (self.first, *(step.output for step in self.steps)) if name is not None
        ]


@dataclass(frozen=True)
class Phases:
    """`phases` in order; `constants` are the program's and the gains and shifts that steps read;
    `stored`: values that a later phase reads.

    `joined`: values that are others side by side, so that these are stored as columns of them.
    """

    phases: tuple[tuple[Task, ...], ...]
    constants: dict[str, Tensor]
    stored: frozenset[str]
    joined: dict[str, tuple[str, ...]]
    output: str


def phases(program: Program, *, moves_x: bool = True) -> Phases:
    """moves_x: the last task puts the solver's next point in the place of x. Raises NotCovered,
    naming the instruction, for what no task can do.
    """
    builder = _Builder(program)
    for instruction in program.body:
        builder.add(instruction)
    tasks = builder.tasks
    if program.output not in {task.tail for task in tasks}:
        raise NotCovered("not covered: a prediction that is put together from parts")
    if not any(task.terms for task in tasks):
        raise NotCovered("not covered: a network without products of candidates")
    last = builder.makers(program.output)[0]
    if moves_x and (
        any(term.view.name == "x" for term in last.terms)
        or (last.whole and any(view.name == "x" for view in last.reads()))
    ):
        raise NotCovered(
            "not covered: a last layer that reads the candidates, which it also replaces"
        )
    stored = {
        part
        for task in tasks
        for view in task.reads()
        for part in builder.joined.get(view.name, (view.name,))
    }
    levels: dict[int, list[Task]] = {}
    known: dict[int, int] = {}
    for task in tasks:
        levels.setdefault(_level(task, builder.makers, known), []).append(task)
    made = {name for task in tasks for name in task.outputs()}
    in_order = tuple(tuple(levels[level]) for level in sorted(levels))
    return Phases(
        in_order, builder.constants, frozenset(stored & made), builder.joined, program.output
    )


def _level(task: Task, makers: Callable[[str], list[Task]], known: dict[int, int]) -> int:
    """The number of phases before this task's."""
    if id(task) not in known:
        before = [other for view in task.reads() for other in makers(view.name)]
        known[id(task)] = 1 + max((_level(other, makers, known) for other in before), default=-1)
    return known[id(task)]


class _Builder:
    """Instructions in, tasks out."""

    def __init__(self, program: Program):
        self.program, self.tasks, self.constants = program, list[Task](), dict(program.constants)
        self._segments: dict[str, list[View]] = {}  # of values that are put together from others
        self.joined: dict[str, tuple[str, ...]] = {}
        self._made_by: dict[str, Task] = {}
        self._uses = Counter(name for step in program.body for name in step.reads)
        self._uses[program.output] += 1

    def add(self, step: Instruction) -> None:
        if step.op == "concat":
            self._concat(step)
        elif step.op == "slice":
            self._segments[step.output] = self._columns(self._parts(step.inputs[0]), *step.columns)
        elif step.op == "linear":
            self._linear(step)
        elif step.op == "add":
            self._sum(step)
        else:
            self._chain(step)

    def _concat(self, step: Instruction) -> None:
        """Values that tasks make, each in one concat only, are stored side by side; others are
        read one by one.
        """
        taken = {name for names in self.joined.values() for name in names}
        if len(set(step.inputs)) == len(step.inputs) and all(
            name in self._made_by and name not in taken for name in step.inputs
        ):
            self.joined[step.output] = step.inputs
        else:
            self._segments[step.output] = [
                view for name in step.inputs for view in self._parts(name)
            ]

    def makers(self, name: str) -> list[Task]:
        """The tasks whose numbers a value is."""
        return [
            self._made_by[part] for part in self.joined.get(name, (name,)) if part in self._made_by
        ]

    def _parts(self, name: str) -> list[View]:
        return self._segments.get(name) or [View(name, 0, self.program.sizes[name])]

    def _view(self, name: str, op: str) -> View:
        """A value as columns of one other; what is put together is read by products only."""
        parts = self._parts(name)
        if len(parts) > 1:
            raise NotCovered(f"not covered: {op} of a concat")
        return parts[0]

    @staticmethod
    def _columns(parts: list[View], start: int, stop: int) -> list[View]:
        found, at = [], 0
        for view in parts:
            low, high = max(start, at), min(stop, at + view.size)
            if low < high:
                found.append(View(view.name, view.start + low - at, high - low))
            at += view.size
        return found

    def _linear(self, step: Instruction) -> None:
        terms = []
        for name, weight in zip(step.inputs, step.weights, strict=True):
            parts = self._parts(name)
            if weight.ndim > 3:
                raise NotCovered("not covered: two axes of members")
            pieces = weight.split([view.size for view in parts], dim=-2)
            terms += [Term(view, piece) for view, piece in zip(parts, pieces, strict=True)]
        task = Task(self.program.sizes[step.output], terms)
        if step.row is None:
            task.first = step.output
        else:
            task.steps.append(Step("add", 0, (self._view(step.row, "linear"),), step.output))
        self._keep(task, step.output)

    def _keep(self, task: Task, output: str) -> None:
        if task not in self.tasks:
            self.tasks.append(task)
        self._made_by[output] = task

    def _tail(self, name: str) -> Task | None:
        """The task whose numbers at hand are this value."""
        task = self._made_by.get(name)
        return task if task is not None and task.tail == name else None

    def _sum(self, step: Instruction) -> None:
        """Products that only this sum reads become one task; the rest joins the chain."""
        names = list(step.inputs)
        sums = [
            name
            for name in dict.fromkeys(names)
            if self._uses[name] == 1
            and (task := self._tail(name)) is not None
            and task.sum_only
            and task.outputs() == [name]
        ]
        if len(sums) < 2:
            return self._chain(step)
        merged, *others = (self._made_by[name] for name in sums)
        added = [step for task in (merged, *others) for step in task.steps]
        rest = [name for name in names if name not in sums]
        if any(self._depends(view, merged) for task in others for view in task.reads()) or rest:
            return self._chain(step)
        terms = [term for task in (merged, *others) for term in task.terms]
        for task in (merged, *others):
            self.tasks = [kept for kept in self.tasks if kept is not task]
        steps = [Step("add", 0, s.operands, None) for s in added]
        steps = [*steps[:-1], steps[-1]._replace(output=step.output)] if steps else []
        self._keep(
            Task(merged.size, terms, first=None if steps else step.output, steps=steps), step.output
        )
        return None

    def _depends(self, view: View, task: Task) -> bool:
        """Whether these numbers wait for a task."""
        waiting, seen = self.makers(view.name), set[int]()
        while waiting:
            current = waiting.pop()
            if current is task:
                return True
            if id(current) not in seen:
                seen.add(id(current))
                waiting += [other for read in current.reads() for other in self.makers(read.name)]
        return False

    def _chain(self, step: Instruction) -> None:
        """Into the chain of a task whose numbers are one of the inputs; where there is none, a task
        of its own reads the first of them again.
        """
        whole, size = sees_rows(step.op), self.program.sizes[step.output]
        if whole and size > WIDEST_ROW:
            raise NotCovered(f"not covered: {step.op} of {size} numbers (at most {WIDEST_ROW})")
        views = [self._view(name, step.op) for name in step.inputs]
        for role, name in enumerate(step.inputs):
            host = None if name in self._segments else self._tail(name)
            others = views[:role] + views[role + 1 :]
            waits = host is not None and any(self._depends(view, host) for view in others)
            if host is not None and not waits and not (whole and size > FUSED_ROW):
                return self._append(host, step, role, others)
        return self._append(Task(size, start=views[0]), step, 0, views[1:])

    def _append(self, task: Task, step: Instruction, role: int, others: list[View]) -> None:
        if step.op == "add":
            task.steps += [Step("add", 0, (view,), None) for view in others]
            task.steps[-1] = task.steps[-1]._replace(output=step.output)
        else:
            lines(step.op, role)  # raises for what no kernel computes
            operands = (*others, *self._weights(step))
            task.steps.append(Step(step.op, role, operands, step.output))
        task.whole = task.whole or sees_rows(step.op)
        self._keep(task, step.output)

    def _weights(self, step: Instruction) -> list[View]:
        """Gains and shifts (*M, n) as constants (*M, 1, 1, n)."""
        found = []
        for i, weight in enumerate(step.weights):
            name = f"{step.output}/{i}"
            self.constants[name] = weight[..., None, None, :]
            found.append(View(name, 0, weight.shape[-1]))
        return found
