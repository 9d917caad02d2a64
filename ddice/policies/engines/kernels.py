"""The Triton kernel that computes one phase. Imported only where the engine "fused" is made, since
it imports triton.

A phase arrives as a constant: a tree of numbers, so that every phase is a kernel of its own with
nothing to decide while it runs. Blocks of all tasks of the phase stand side by side in one grid.
The numbers at hand are float32 whatever the values and weights are stored as.
"""

from __future__ import annotations

import linecache

import triton
import triton.language as tl

from ddice.policies.engines import kernel_text, layout


@triton.constexpr_function
def child(tree, index):
    return tree[index]


@triton.constexpr_function
def count(tree):
    return len(tree)


@triton.constexpr_function
def across(task):
    """The blocks of a task for as many candidates as a tile has rows."""
    return -(-task[2] // task[4]) * task[5]


NONE = tl.constexpr(layout.NONE)
VALUE = tl.constexpr(layout.VALUE)
CONSTANT = tl.constexpr(layout.CONSTANT)
UNROLLED = tl.constexpr(layout.UNROLLED)
SETUP = tl.constexpr(layout.SETUP)
STORE = tl.constexpr(layout.STORE)
COMBINE = tl.constexpr(layout.COMBINE)


def function(text: str, name: str):
    """The Triton function of a text, which Triton reads again through `linecache`."""
    file = f"<{name} of {__name__}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = {"tl": tl, "__name__": __name__}
    exec(compile(text, file, "exec"), namespace)
    return triton.jit(namespace[name])


# The operations as they are when this module is imported; `STEPS` tells later ones apart.
STEPS = frozenset(kernel_text.step_name(op, role) for op, role in kernel_text.steps())
formula = function(kernel_text.function_text(), "formula")


@triton.jit
def columns_of(
    OPERAND: tl.constexpr, values, constants, setup, x, i, m, n, k, rows, columns, inside
):
    """Columns of an operand for rows (BM, 1), columns (1, BN), as float32 that broadcast to (BM,
    BN); 0 outside.
    """
    where: tl.constexpr = child(OPERAND, 0)
    offset: tl.constexpr = child(OPERAND, 1)
    size: tl.constexpr = child(OPERAND, 2)
    times: tl.constexpr = child(OPERAND, 5)
    member = m * child(OPERAND, 4)
    time = i if times > 1 else 0
    if child(OPERAND, 6) == 0:  # one number for all columns
        column = tl.zeros_like(columns) + child(OPERAND, 3)
        width = columns >= 0
    else:
        column = columns + child(OPERAND, 3)
        width = columns < child(OPERAND, 6)
    if where == CONSTANT:
        return tl.load(
            constants + offset + (member * times + time) * size + column, mask=width, other=0.0
        )
    elif where == SETUP:
        states = n // k
        start = setup + states.to(tl.int64) * (offset + (member * times + time) * size)
        return tl.load(start + (rows // k) * size + column, mask=inside & width, other=0.0)
    elif where == VALUE:
        start = values + n.to(tl.int64) * (offset + member * size)
        return tl.load(
            start + rows.to(tl.int64) * size + column, mask=inside & width, other=0.0
        ).to(tl.float32)
    else:
        return tl.load(x + rows * size + column, mask=inside & width, other=0.0)


@triton.jit
def rounded(y, PRECISION: tl.constexpr):
    """y as a factor of products: tensor cores cut a float32 down to tf32, so that it is rounded
    before; float16 rounds as it is stored.
    """
    if PRECISION == "tf32":
        y = ((y.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return y


@triton.jit
def add_product(
    TERM: tl.constexpr,
    y,
    values,
    weights,
    constants,
    setup,
    x,
    i,
    m,
    n,
    k,
    rows,
    columns,
    PRECISION: tl.constexpr,
):
    """y (BM, BN) plus an operand times its weight."""
    depth: tl.constexpr = child(TERM, 1)
    step: tl.constexpr = child(TERM, 2)
    stored: tl.constexpr = child(TERM, 5)
    where: tl.constexpr = child(child(TERM, 0), 0)
    start = weights + child(TERM, 3) + m * (child(TERM, 4) * depth * stored)
    for d in range(0, depth, step):
        inner = d + tl.arange(0, step)
        a = columns_of(
            child(TERM, 0), values, constants, setup, x, i, m, n, k, rows, inner[None, :], rows < n
        )
        if where != VALUE:
            a = rounded(a, PRECISION)
        a = tl.broadcast_to(a, (y.shape[0], step)).to(weights.dtype.element_ty)
        b = tl.load(
            start + inner[:, None] * stored + columns,
            mask=(inner[:, None] < depth) & (columns < stored),
            other=0.0,
        )
        y = tl.dot(a, b, y, input_precision=PRECISION)
    return y


@triton.jit
def run_step(
    STEP: tl.constexpr,
    size: tl.constexpr,
    y,
    values,
    constants,
    setup,
    x,
    history,
    matrix,
    out,
    i,
    m,
    n,
    k,
    rows,
    columns,
    PRECISION: tl.constexpr,
):
    """The numbers at hand y (BM, BN) after one step. NaN stays NaN."""
    op: tl.constexpr = child(STEP, 0)
    inside, width = rows < n, columns < size
    if op == STORE:
        FIRST: tl.constexpr = child(STEP, 1)
        start = values + n.to(tl.int64) * (child(FIRST, 1) + m * child(FIRST, 2)) + child(FIRST, 3)
        kept = rounded(y, PRECISION).to(values.dtype.element_ty)
        tl.store(start + rows.to(tl.int64) * child(FIRST, 2) + columns, kept, mask=inside & width)
    elif op == COMBINE:
        finish(
            child(child(STEP, 1), 1),
            size,
            y,
            x,
            history,
            matrix,
            out,
            i,
            m,
            n,
            rows * size + columns,
            inside & width,
        )
    else:
        a, b, c = y, y, y  # where the formula has fewer operands
        if count(STEP) > 1:
            a = columns_of(
                child(STEP, 1), values, constants, setup, x, i, m, n, k, rows, columns, inside
            )
        if count(STEP) > 2:
            b = columns_of(
                child(STEP, 2), values, constants, setup, x, i, m, n, k, rows, columns, inside
            )
        if count(STEP) > 3:
            c = columns_of(
                child(STEP, 3), values, constants, setup, x, i, m, n, k, rows, columns, inside
            )
        y = formula(op, y, a, b, c, width, size)
    return y


@triton.jit
def finish(steps: tl.constexpr, size: tl.constexpr, y, x, history, matrix, out, i, m, n, at, mask):
    """The output as a prediction of the solver, whose next point follows from all predictions so
    far; steps = 0: the output itself.
    """
    stride = (n * size).to(tl.int64)
    if steps == 0:
        tl.store(out + m * stride + at, y, mask=mask)
    else:
        tl.store(history + (i + 1) * stride + at, y, mask=mask)
        following = y * tl.load(matrix + (i + 1) * steps + i + 1)
        if steps <= UNROLLED:
            for j in tl.static_range(0, steps - 1):  # all loads at once
                following += earlier(history, matrix, i, j, steps, stride, at, mask)
        else:
            for j in range(0, steps - 1):
                following += earlier(history, matrix, i, j, steps, stride, at, mask)
        tl.store(x + at, following, mask=mask)


@triton.jit
def earlier(history, matrix, i, j, steps: tl.constexpr, stride, at, mask):
    """What the noise (j = 0) or prediction j - 1 adds to the point after evaluation i; 0 for
    what is not there yet.
    """
    return tl.load(matrix + (i + 1) * steps + j) * tl.load(
        history + j * stride + at, mask=mask & (j <= i), other=0.0
    )


@triton.jit
def run_task(
    TASK: tl.constexpr,
    block,
    values,
    weights,
    constants,
    setup,
    x,
    history,
    matrix,
    out,
    i,
    n,
    k,
    PRECISION: tl.constexpr,
):
    """One tile of one task."""
    size: tl.constexpr = child(TASK, 2)
    bm: tl.constexpr = child(TASK, 3)
    bn: tl.constexpr = child(TASK, 4)
    wide: tl.constexpr = (size + bn - 1) // bn
    down = tl.cdiv(n, bm)
    m = block // (down * wide)
    rows = (block // wide % down * bm + tl.arange(0, bm))[:, None]
    columns = (block % wide * bn + tl.arange(0, bn))[None, :]
    TERMS: tl.constexpr = child(TASK, 0)
    if count(TERMS) > 0:
        y = tl.zeros((bm, bn), tl.float32)
        for t in tl.static_range(count(TERMS)):
            y = add_product(
                child(TERMS, t),
                y,
                values,
                weights,
                constants,
                setup,
                x,
                i,
                m,
                n,
                k,
                rows,
                columns,
                PRECISION,
            )
    else:
        y = tl.broadcast_to(
            columns_of(
                child(TASK, 1), values, constants, setup, x, i, m, n, k, rows, columns, rows < n
            ),
            (bm, bn),
        )
    STEPS: tl.constexpr = child(TASK, 6)
    for s in tl.static_range(count(STEPS)):
        y = run_step(
            child(STEPS, s),
            size,
            y,
            values,
            constants,
            setup,
            x,
            history,
            matrix,
            out,
            i,
            m,
            n,
            k,
            rows,
            columns,
            PRECISION,
        )


@triton.jit(do_not_specialize=["i", "n", "k"])
def phase(
    values,
    weights,
    constants,
    setup,
    x,
    history,
    matrix,
    out,
    i,
    n,
    k,
    PHASE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All tasks of a phase for n = B * K candidates at evaluation i.

    values: one array of (M, n, size) for every stored value. weights: (M, in, out), with columns of
    0 up to a multiple of 16. constants, setup: rows (M, T or 1, 1 or B, size). x (n, A): the point
    of this evaluation, then of the next. history (T + 1, n, A) and matrix (T + 1, T + 1): the
    solver's. out (M, n, size).
    """
    block = tl.program_id(0)
    first = 0
    for t in tl.static_range(count(PHASE)):
        blocks = tl.cdiv(n, child(child(PHASE, t), 3)) * across(child(PHASE, t))
        if (block >= first) & (block < first + blocks):
            run_task(
                child(PHASE, t),
                block - first,
                values,
                weights,
                constants,
                setup,
                x,
                history,
                matrix,
                out,
                i,
                n,
                k,
                PRECISION,
            )
        first += blocks
