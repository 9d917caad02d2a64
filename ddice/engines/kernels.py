"""The Triton kernel that computes one phase. Imported only where the engine "fused" is made, since it imports triton.

A phase arrives as a constant: a tree of numbers, so that every phase is a kernel of its own with nothing to decide while it runs. Blocks of all tasks of
the phase stand side by side in one grid. The numbers at hand are float32 whatever the values and weights are stored as.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ddice.engines import layout


@triton.constexpr_function
def child(tree, index):  # type: ignore[no-untyped-def]
    return tree[index]


@triton.constexpr_function
def count(tree):  # type: ignore[no-untyped-def]
    return len(tree)


NONE = tl.constexpr(layout.NONE)
VALUE = tl.constexpr(layout.VALUE)
CONSTANT = tl.constexpr(layout.CONSTANT)
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
def columns_of(OPERAND: tl.constexpr, values, constants, setup, x, i, m, n, k, rows, columns, inside):  # type: ignore[no-untyped-def]
    """Columns of an operand for rows (BM, 1), columns (1, BN), as float32 that broadcast to (BM, BN); 0 outside."""
    where: tl.constexpr = child(OPERAND, 0)
    offset: tl.constexpr = child(OPERAND, 1)
    size: tl.constexpr = child(OPERAND, 2)
    times: tl.constexpr = child(OPERAND, 5)
    column = columns + child(OPERAND, 3)
    member = m * child(OPERAND, 4)
    width = columns < child(OPERAND, 6)
    time = i if times > 1 else 0
    if where == CONSTANT:
        return tl.load(constants + offset + (member * times + time) * size + column, mask=width, other=0.0)
    elif where == SETUP:
        states = n // k
        start = setup + states.to(tl.int64) * (offset + (member * times + time) * size)
        return tl.load(start + (rows // k) * size + column, mask=inside & width, other=0.0)
    elif where == VALUE:
        start = values + n.to(tl.int64) * (offset + member * size)
        return tl.load(start + rows.to(tl.int64) * size + column, mask=inside & width, other=0.0).to(tl.float32)
    else:
        return tl.load(x + rows * size + column, mask=inside & width, other=0.0)


@triton.jit
def silu_slope(x):  # type: ignore[no-untyped-def]
    gate = tl.sigmoid(x)
    return gate * (1 + x * (1 - gate))


@triton.jit
def centre(y, width, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows less their mean, 0 outside, and 1 / deviation (BM, 1)."""
    y = tl.where(width, y, 0.0)
    centred = tl.where(width, y - tl.sum(y, 1)[:, None] / SIZE, 0.0)
    return centred, 1 / tl.sqrt(tl.sum(centred * centred, 1)[:, None] / SIZE + EPS)


@triton.jit
def normalised_gradient(x, gradient, width, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    centred, inverse = centre(x, width, SIZE)
    normal = centred * inverse
    gradient = tl.where(width, gradient, 0.0)
    mean = tl.sum(gradient, 1)[:, None] / SIZE
    return inverse * (gradient - mean - normal * (tl.sum(gradient * normal, 1)[:, None] / SIZE))


@triton.jit
def products(TASK: tl.constexpr, values, weights, constants, setup, x, i, m, n, k, rows, columns, inside, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of the products of a task, (BM, BN)."""
    size: tl.constexpr = child(TASK, 2)
    TERMS: tl.constexpr = child(TASK, 0)
    y = tl.zeros((child(TASK, 3), child(TASK, 4)), tl.float32)
    for t in tl.static_range(count(TERMS)):
        TERM: tl.constexpr = child(TERMS, t)
        OPERAND: tl.constexpr = child(TERM, 0)
        depth: tl.constexpr = child(TERM, 1)
        step: tl.constexpr = child(TERM, 2)
        start = weights + child(TERM, 3) + m * (child(TERM, 4) * depth * size)
        for d in range(0, depth, step):
            inner = d + tl.arange(0, step)
            a = columns_of(OPERAND, values, constants, setup, x, i, m, n, k, rows, inner[None, :], inside)
            a = tl.broadcast_to(a, (child(TASK, 3), step)).to(weights.dtype.element_ty)
            b = tl.load(start + inner[:, None] * size + columns, mask=(inner[:, None] < depth) & (columns < size), other=0.0)
            y = tl.dot(a, b, y, input_precision=PRECISION)
    return y


@triton.jit
def run_task(
    TASK: tl.constexpr, block, values, weights, constants, setup, x, history, matrix, out, i, n, k, PRECISION: tl.constexpr
):  # type: ignore[no-untyped-def]
    """One tile of one task."""
    size: tl.constexpr = child(TASK, 2)
    bm: tl.constexpr = child(TASK, 3)
    bn: tl.constexpr = child(TASK, 4)
    across: tl.constexpr = (size + bn - 1) // bn
    down = tl.cdiv(n, bm)
    m = block // (down * across)
    rows = (block // across % down * bm + tl.arange(0, bm))[:, None]
    columns = (block % across * bn + tl.arange(0, bn))[None, :]
    inside, width = rows < n, columns < size
    mask = inside & width
    START: tl.constexpr = child(TASK, 1)
    if count(child(TASK, 0)) > 0:
        y = products(TASK, values, weights, constants, setup, x, i, m, n, k, rows, columns, inside, PRECISION)
    else:
        y = tl.broadcast_to(columns_of(START, values, constants, setup, x, i, m, n, k, rows, columns, inside), (bm, bn))
    STEPS: tl.constexpr = child(TASK, 6)
    for s in tl.static_range(count(STEPS)):
        STEP: tl.constexpr = child(STEPS, s)
        op: tl.constexpr = child(STEP, 0)
        FIRST: tl.constexpr = child(STEP, 1)
        SECOND: tl.constexpr = child(STEP, 2)
        THIRD: tl.constexpr = child(STEP, 3)
        if op == SILU:
            y = y * tl.sigmoid(y)
        elif op == RELU:
            y = tl.maximum(y, 0.0)
        elif op == STORE:
            start = values + n.to(tl.int64) * (child(FIRST, 1) + m * child(FIRST, 2)) + child(FIRST, 3)
            tl.store(start + rows.to(tl.int64) * child(FIRST, 2) + columns, y.to(values.dtype.element_ty), mask=mask)
        elif op == COMBINE:
            steps: tl.constexpr = child(FIRST, 1)  # evaluations + 1
            at = rows * size + columns
            stride = (n * size).to(tl.int64)
            if steps == 0:  # no solver: the output itself
                tl.store(out + m * stride + at, y, mask=mask)
            else:
                tl.store(history + (i + 1) * stride + at, y, mask=mask)
                y = y * tl.load(matrix + (i + 1) * steps + i + 1)
                for j in range(0, steps - 1):
                    y += tl.load(matrix + (i + 1) * steps + j) * tl.load(history + j * stride + at, mask=mask & (j <= i), other=0.0)
                tl.store(x + at, y, mask=mask)
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
                b = columns_of(SECOND, values, constants, setup, x, i, m, n, k, rows, columns, inside)
                if op == LAYER_NORM:
                    centred, inverse = centre(y, width, size)
                    y = centred * inverse * a + b
                elif op == LAYER_NORM_GRADIENT:
                    y = normalised_gradient(tl.broadcast_to(a, (bm, bn)), y * b, width, size)
                elif op == CLEAN:
                    c = columns_of(THIRD, values, constants, setup, x, i, m, n, k, rows, columns, inside)
                    y = tl.minimum(tl.maximum(a * b - y * c, -1.0), 1.0)


@triton.jit(do_not_specialize=["i", "n", "k"])
def phase(
    values, weights, constants, setup, x, history, matrix, out, i, n, k, PHASE: tl.constexpr, PRECISION: tl.constexpr
):  # type: ignore[no-untyped-def]
    """All tasks of a phase for n = B * K candidates at evaluation i.

    values: one array of (M, n, size) for every stored value. weights: (M, in, out). constants, setup: rows (M, T or 1, 1 or B, size).
    x (n, A): the point of this evaluation, then of the next. history (T + 1, n, A) and matrix (T + 1, T + 1): the solver's. out (M, n, size).
    """
    block = tl.program_id(0)
    first = 0
    for t in tl.static_range(count(PHASE)):
        TASK: tl.constexpr = child(PHASE, t)
        size: tl.constexpr = child(TASK, 2)
        blocks = tl.cdiv(n, child(TASK, 3)) * tl.cdiv(size, child(TASK, 4)) * child(TASK, 5)
        if (block >= first) & (block < first + blocks):
            run_task(TASK, block - first, values, weights, constants, setup, x, history, matrix, out, i, n, k, PRECISION)
        first += blocks
