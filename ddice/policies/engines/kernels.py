"""The Triton kernel that computes one phase. Imported only where the engine "fused" is made, since
it imports triton.

A phase arrives as a constant: a tree of numbers, so that every phase is a kernel of its own with
nothing to decide while it runs. Blocks of all tasks of the phase stand side by side in one grid.
The numbers at hand are float32 whatever the values and weights are stored as.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ddice.policies.engines import layout


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
ADD = tl.constexpr(layout.ADD)
SILU = tl.constexpr(layout.SILU)
RELU = tl.constexpr(layout.RELU)
SILU_GRADIENT = tl.constexpr(layout.SILU_GRADIENT)
SILU_OF = tl.constexpr(layout.SILU_OF)
RELU_GRADIENT = tl.constexpr(layout.RELU_GRADIENT)
RELU_OF = tl.constexpr(layout.RELU_OF)
LAYER_NORM = tl.constexpr(layout.LAYER_NORM)
LAYER_NORM_GRADIENT = tl.constexpr(layout.LAYER_NORM_GRADIENT)
CLEAN = tl.constexpr(layout.CLEAN)
STORE = tl.constexpr(layout.STORE)
COMBINE = tl.constexpr(layout.COMBINE)
EPS = tl.constexpr(layout.NORM_EPS)


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
def silu_slope(x):
    gate = tl.sigmoid(x)
    return gate * (1 + x * (1 - gate))


@triton.jit
def centre(y, width, SIZE: tl.constexpr):
    """Rows less their mean, 0 outside, and 1 / deviation (BM, 1)."""
    y = tl.where(width, y, 0.0)
    centred = tl.where(width, y - tl.sum(y, 1)[:, None] / SIZE, 0.0)
    return centred, 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / SIZE + EPS)


@triton.jit
def normalised_gradient(x, gradient, width, SIZE: tl.constexpr):
    centred, inverse = centre(x, width, SIZE)
    normal = centred * inverse
    gradient = tl.where(width, gradient, 0.0)
    mean = tl.sum(gradient, 1)[:, None] / SIZE
    return inverse * (gradient - mean - normal * (tl.sum(gradient * normal, 1)[:, None] / SIZE))


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
    FIRST: tl.constexpr = child(STEP, 1)
    inside, width = rows < n, columns < size
    if op == SILU:
        y = y * tl.sigmoid(y)
    elif op == RELU:
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif op == STORE:
        start = values + n.to(tl.int64) * (child(FIRST, 1) + m * child(FIRST, 2)) + child(FIRST, 3)
        kept = rounded(y, PRECISION).to(values.dtype.element_ty)
        tl.store(start + rows.to(tl.int64) * child(FIRST, 2) + columns, kept, mask=inside & width)
    elif op == COMBINE:
        finish(
            child(FIRST, 1),
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
        a = columns_of(FIRST, values, constants, setup, x, i, m, n, k, rows, columns, inside)
        if op == ADD:
            y = y + a
        elif op == SILU_GRADIENT:
            y = y * silu_slope(a)
        elif op == SILU_OF:
            y = a * silu_slope(y)
        elif op == RELU_GRADIENT:
            y = tl.where(a > 0, y, 0.0)
        elif op == RELU_OF:
            y = tl.where(y > 0, a, 0.0)
        else:
            b = columns_of(
                child(STEP, 2), values, constants, setup, x, i, m, n, k, rows, columns, inside
            )
            if op == LAYER_NORM:
                centred, inverse = centre(y, width, size)
                y = centred * inverse * a + b
            elif op == LAYER_NORM_GRADIENT:
                y = normalised_gradient(a, y * b, width, size)
            elif op == CLEAN:
                c = columns_of(
                    child(STEP, 3), values, constants, setup, x, i, m, n, k, rows, columns, inside
                )
                y = tl.clamp(a * b - y * c, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
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
