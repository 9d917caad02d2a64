"""Where everything of a program's phases lies in memory, and the phases as trees of numbers that
a kernel is compiled for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddice.policies.engines.kernel_text import step_name
from ddice.policies.engines.phases import Phases, Task, Term, View
from ddice.policies.engines.program import NotCovered

NONE, VALUE, CONSTANT, SETUP, X = range(5)  # where an operand lies
# steps that are no formulas: a value is kept for later phases, the output joins the solver's sum
STORE, COMBINE = "store", "combine"
ALIGNED = 16  # offsets are multiples of it, so that loads can be wide
SMALLEST = 16  # side of a product that tensor cores take
UNROLLED = 33  # numbers of the solver's history whose sum is written out
FEW_ROWS = 1024  # up to here a launch waits for memory: small tiles, many blocks


class Tile(NamedTuple):
    """Candidates x columns of one block, the depth of one step of a product, and the warps of a
    block.
    """

    rows: int
    columns: int
    depth: int
    warps: int


FEW = Tile(32, 16, 128, 4)
MANY = {
    torch.float16: Tile(128, 128, 64, 16),
    torch.float32: Tile(64, 64, 32, 4),
}  # by the type of weights and stored values
LARGEST_TILE = 4096  # numbers of a tile with whole rows
WIDE_ROW, WIDE_WARPS = (
    64,
    8,
)  # whole rows above the one take at least the other: their numbers stay in registers
SHALLOWEST = 32  # step of a product


class Tree:
    """Numbers and trees in order; hashable, with a text that a compiler takes into a name."""

    def __init__(self, *items: Any):
        self.items = items

    def __getitem__(self, index: int) -> Any:
        return self.items[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.items == other.items

    def __hash__(self) -> int:
        return hash(self.items)

    def __repr__(self) -> str:
        return f"T{'_'.join(map(str, self.items))}E"


class Launch(NamedTuple):
    """A phase as a tree, and the warps of its blocks."""

    phase: Tree
    warps: int


@dataclass(frozen=True)
class Layout:
    """The constants and weights of a program in one array each, how many columns its values and its
    setup rows take, and its phases as trees.

    `setup`: the rows (name, members, times, size) that a call puts side by side, each as (M, T or
    1, B, size). `members` of the output.
    """

    weights: Tensor
    constants: Tensor
    setup: tuple[str, ...]
    columns: int
    members: int
    few: tuple[Launch, ...]
    many: tuple[Launch, ...]

    def steps(self) -> set[str]:
        """The names of the steps of all tasks."""
        return {step[0] for launch in self.few for task in launch.phase for step in task[6]}

    def launches(self, rows: int) -> tuple[Launch, ...]:
        return self.few if rows <= FEW_ROWS else self.many


def blocks(phase: Tree, rows: int) -> int:
    """How many blocks a phase is for so many candidates."""
    return sum(math.ceil(rows / task[3]) * math.ceil(task[2] / task[4]) * task[5] for task in phase)


def layout(
    phases: Phases,
    sizes: Mapping[str, int],
    setup: Mapping[str, tuple[int, ...]],
    evaluations: int | None,
    dtype: torch.dtype,
    tf32: bool = False,
) -> Layout:
    """setup: the shapes (*M, T or 1, B, size) of the setup values. evaluations: of the solver that
    follows; None for an output that is kept. dtype: of the weights; with tf32 these are float32
    rounded to its 10 bits.
    """
    return _Layout(phases, sizes, setup, evaluations).finish(dtype, tf32)


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNED) * ALIGNED


def _power(size: int) -> int:
    return max(SMALLEST, 1 << math.ceil(math.log2(size)))


class _Layout:
    def __init__(
        self,
        phases: Phases,
        sizes: Mapping[str, int],
        setup: Mapping[str, tuple[int, ...]],
        evaluations: int | None,
    ):
        self.phases, self.sizes, self.steps = (
            phases,
            sizes,
            0 if evaluations is None else evaluations + 1,
        )
        self.tasks = [task for phase in phases.phases for task in phase]
        self.shapes = {
            **{name: tuple(value.shape) for name, value in phases.constants.items()},
            **setup,
        }
        self.members: dict[str, int] = {}
        for task in self.tasks:
            self.members.update(dict.fromkeys(task.outputs(), self._count(task)))
        self.places, self.columns = self._values()
        self.rows: dict[
            str, tuple[int, int]
        ] = {}  # of constants and setup values: where, and the offset
        self.kept: dict[str, list[str]] = {"constants": [], "setup": []}
        self._place_rows(setup)
        self.weights: list[Tensor] = []
        self.offsets: dict[int, int] = {}
        self._place_weights()

    def _count(self, task: Task) -> int:
        """The members of what a task computes: those of its weights and operands."""
        counts = {term.weight.shape[0] for term in task.terms if term.weight.ndim == 3}
        for view in task.reads():
            shape = self.shapes.get(view.name)
            if shape is None:
                counts |= {
                    self.members.get(part, 1)
                    for part in self.phases.joined.get(view.name, (view.name,))
                }
            elif len(shape) > 4:
                raise NotCovered("not covered: two axes of members")
            else:
                counts.add(shape[0] if len(shape) == 4 else 1)
        counts -= {1}
        if len(counts) > 1:
            raise NotCovered(f"not covered: members of different numbers, {sorted(counts)}")
        return counts.pop() if counts else 1

    def _values(self) -> tuple[dict[str, tuple[int, int, int]], int]:
        """(offset in columns, columns of the array, first column) of every stored value, and the
        columns of all.
        """
        places: dict[str, tuple[int, int, int]] = {}
        total = 0
        for name, parts in self.phases.joined.items():
            if any(part in self.phases.stored for part in parts):
                if len({self.members[part] for part in parts}) > 1:
                    raise NotCovered("not covered: a concat of members and others")
                self.members[name], start = self.members[parts[0]], 0
                places[name] = total, self.sizes[name], 0
                for part in parts:
                    places[part] = total, self.sizes[name], start
                    start += self.sizes[part]
                total += _aligned(self.sizes[name] * self.members[name])
        for name in sorted(self.phases.stored - set(places)):
            places[name] = total, self.sizes[name], 0
            total += _aligned(self.sizes[name] * self.members[name])
        return places, total

    def _place_rows(self, setup: Mapping[str, tuple[int, ...]]) -> None:
        ends = dict.fromkeys(self.kept, 0)
        for name in dict.fromkeys(
            view.name for task in self.tasks for view in task.reads() if view.name in self.shapes
        ):
            kind = "setup" if name in setup else "constants"
            *others, _, size = self.shapes[name]
            self.rows[name] = (SETUP if kind == "setup" else CONSTANT), ends[kind]
            self.kept[kind].append(name)
            count = math.prod(others) * size
            ends[kind] += count if kind == "setup" else _aligned(count)

    def _place_weights(self) -> None:
        end = 0
        for task in self.tasks:
            for term in task.terms:
                self.offsets[id(term)] = end
                padded = torch.nn.functional.pad(
                    term.weight, (0, _aligned(task.size) - task.size)
                ).reshape(-1)  # rows that wide loads can read
                self.weights.append(padded)
                end += len(padded)

    def _operand(self, view: View, wanted: int) -> Tree:
        """(where, offset, columns of the array, first column, 1 with members, times, columns or
        0 for one number that stands for all `wanted`).
        """
        width = 0 if view.size == 1 < wanted else view.size
        if view.name == "x":
            return Tree(X, 0, self.sizes["x"], view.start, 0, 1, width)
        if view.name in self.rows:
            where, offset = self.rows[view.name]
            *members, times, _, size = self.shapes[view.name]
            return Tree(
                where, offset, size, view.start, int(members not in ([], [1])), times, width
            )
        offset, size, start = self.places[view.name]
        return Tree(
            VALUE, offset, size, start + view.start, int(self.members[view.name] > 1), 1, width
        )

    def _steps(self, task: Task) -> Iterator[Tree]:
        """Steps with their operands, and in between what is stored."""
        last = task.tail == self.phases.output
        for step in (None, *task.steps):
            if step is not None:
                operands = [self._operand(view, task.size) for view in step.operands]
                yield Tree(step_name(step.op, step.role), *operands)
            name = task.first if step is None else step.output
            if name in self.phases.stored:
                yield Tree(STORE, Tree(VALUE, *self.places[name], 0, 1, 0))
        if last:
            yield Tree(COMBINE, Tree(NONE, self.steps, 0, 0, 0, 1, 0))

    def _term(self, term: Term, depth: int) -> Tree:
        """(operand, rows of the weight, depth of one step, offset of the weight, 1 with members,
        columns of the weight as it is stored).
        """
        view, weight = term
        stored = _aligned(weight.shape[-1])
        return Tree(
            self._operand(view, view.size),
            view.size,
            min(depth, _power(view.size)),
            self.offsets[id(term)],
            int(weight.ndim == 3),
            stored,
        )

    def _task(self, task: Task, tile: Tile) -> Tree:
        """(terms, start, columns, rows and columns of a tile, members, steps)."""
        columns = _power(task.size) if task.whole else min(tile.columns, _power(task.size))
        rows = max(SMALLEST, min(tile.rows, LARGEST_TILE // columns)) if task.whole else tile.rows
        depth = min(
            max(tile.depth * tile.columns // columns, SHALLOWEST), 2 * tile.depth
        )  # the wider a tile, the shallower
        terms = Tree(*(self._term(term, depth) for term in task.terms))
        start = Tree() if task.start is None else self._operand(task.start, task.size)
        return Tree(
            terms, start, task.size, rows, columns, self._count(task), Tree(*self._steps(task))
        )

    def _launch(self, phase: tuple[Task, ...], tile: Tile) -> Launch:
        wide = any(task.whole and task.size > WIDE_ROW for task in phase)
        return Launch(
            Tree(*(self._task(task, tile) for task in phase)),
            max(tile.warps, WIDE_WARPS if wide else 0),
        )

    def finish(self, dtype: torch.dtype, tf32: bool) -> Layout:
        few, many = (
            tuple(self._launch(phase, tile) for phase in self.phases.phases)
            for tile in (FEW, MANY[dtype])
        )
        constants = []
        for name in self.kept["constants"]:
            value = self.phases.constants[name]
            constants.append(
                torch.nn.functional.pad(
                    value.reshape(-1), (0, _aligned(value.numel()) - value.numel())
                )
            )
        packed = (
            torch.cat(constants)
            if constants
            else torch.zeros(1, device=self.weights[0].device, dtype=torch.float32)
        )
        weights = torch.cat(self.weights).to(dtype)
        if tf32:
            weights = ((weights.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)
        return Layout(
            weights,
            packed,
            tuple(self.kept["setup"]),
            self.columns,
            self.members[self.phases.output],
            few,
            many,
        )
