"""Tiles of a correlation formed from features, which the from-features kernels share: `products`, `entries`, `tile_xy`.

A tile has the kept cells as rows and the reduced cells as columns, so that in the accumulator of the tensor cores the
four threads of a quad share a row: sums along a row stay mostly inside a thread.

Features are read where they lie, [B,C,N] in any strides; Triton orders the loads by the stride that is 1, and the
tensor cores take 16-bit operands of either order from shared memory. They are multiplied as they are: the norms go on
the tile as factors of its rows and columns, which saves a normalised copy of the features and its rounding.
"""

import triton
import triton.language as tl

from .online_softmax import LOWEST_LOG2, NO_INDEX, log2_factor, origin

#: In the place of a factor: the cell is not there. Factors are not negative (or NaN, which is not below 0 either).
NOT_THERE = tl.constexpr(float("-inf"))


@triton.jit
def offsets(rows: tl.constexpr, columns: tl.constexpr, row_stride, column_stride, NARROW: tl.constexpr):
    """Offsets [rows, columns] inside a tile: 32 bits where the launcher knows that those hold them, which takes half
    the registers; the tile's own place is a scalar of 64."""
    row = tl.arange(0, rows)[:, None]
    column = tl.arange(0, columns)[None, :]
    if NARROW:
        inside = row * row_stride + column * column_stride
    else:
        inside = row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
    return inside


@triton.jit
def products(
    a_ptr, b_ptr, there_ptr, a_ok, b_ok, terms, a_stride, a_stride_term, b_stride, b_stride_term, acc,
    DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr, BLOCK_TERMS: tl.constexpr,
):  # fmt: skip
    """acc [M,N] plus the products of M lines of one matrix with N lines of another, each of `terms` terms.

    a_ptr, b_ptr: the first line of each. there_ptr: `factors` of the terms, or None; a term that is not there is 0
    whatever a holds, which a NaN times a 0 of b would not be. DOT: the dtype that is multiplied; that of the features,
    but ACC in the interpreter, which has no products of bfloat16.
    """
    term = tl.arange(0, BLOCK_TERMS)
    a_offsets = offsets(acc.shape[0], BLOCK_TERMS, a_stride, a_stride_term, NARROW)  # [M, BLOCK_TERMS]
    b_offsets = offsets(BLOCK_TERMS, acc.shape[1], b_stride_term, b_stride, NARROW)  # [BLOCK_TERMS, N]
    for start in range(0, terms, BLOCK_TERMS):
        ok = term < terms - start
        x = tl.load(a_ptr + a_offsets, mask=a_ok[:, None] & ok[None, :], other=0.0).to(DOT)  # [M, BLOCK_TERMS]
        if there_ptr is not None:
            there = tl.load(there_ptr + start + term, mask=ok, other=NOT_THERE)
            x = tl.where((there < 0)[None, :], 0.0, x).to(DOT)
        y = tl.load(b_ptr + b_offsets, mask=ok[:, None] & b_ok[None, :], other=0.0).to(DOT)  # [BLOCK_TERMS, N]
        acc = tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=acc.dtype)
        a_ptr += tl.full([], BLOCK_TERMS, tl.int64) * a_stride_term
        b_ptr += tl.full([], BLOCK_TERMS, tl.int64) * b_stride_term
    return acc


@triton.jit
def factors(pointer, offset, cell, cells, ACC: tl.constexpr):
    """Factors [N] that normalise the cells, `NOT_THERE` where a cell is out of range or masked out; ones in range where
    there are none (`pointer` is None)."""
    if pointer is None:
        vector = tl.where(cell < cells, 1.0, NOT_THERE).to(ACC)
    else:
        vector = tl.load(pointer + offset + cell, mask=cell < cells, other=NOT_THERE)
    return vector


@triton.jit
def feature_products(
    kept_ptr, reduced_ptr, batch, first_kept, first_reduced, kept, reduced, channels, kept_strides, reduced_strides,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Products [BLOCK_K, BLOCK_R] of the features of a block of kept cells and one of reduced cells, of a batch entry.

    Strides: (batch, channel, cell).
    """
    kept_ptr += batch * kept_strides[0] + tl.cast(first_kept, tl.int64) * kept_strides[2]
    reduced_ptr += batch * reduced_strides[0] + tl.cast(first_reduced, tl.int64) * reduced_strides[2]
    kept_ok = tl.arange(0, BLOCK_K) < kept - first_kept
    reduced_ok = tl.arange(0, BLOCK_R) < reduced - first_reduced
    return products(
        kept_ptr, reduced_ptr, None, kept_ok, reduced_ok, channels,
        kept_strides[2], kept_strides[1], reduced_strides[2], reduced_strides[1],
        tl.zeros([BLOCK_K, BLOCK_R], ACC), DOT, PRECISION, NARROW, BLOCK_C,
    )  # fmt: skip


@triton.jit
def column_parts(tile, PARTS: tl.constexpr):
    """A tile [M, N] as a tuple of PARTS (a power of two) tiles [M, N / PARTS], in order of the columns.

    What comes after a product takes one part after the other, so that it needs few registers beside the accumulator.
    """
    if PARTS == 1:
        parts = (tile,)
    else:
        M: tl.constexpr = tile.shape[0]
        N: tl.constexpr = tile.shape[1]
        left, right = tl.split(tl.permute(tl.reshape(tile, [M, 2, N // 2]), [0, 2, 1]))
        parts = column_parts(left, PARTS // 2) + column_parts(right, PARTS // 2)
    return parts


@triton.jit
def entries(acc, kept_factor, factor):
    """Entries [M, N] of the products `acc`, given the factors of both sides; -inf where a reduced cell is not there.
    Rows of kept cells that are not there hold anything."""
    return tl.where((factor < 0)[None, :], float("-inf"), acc * kept_factor[:, None] * factor[None, :])


@triton.jit
def tile_xy(first, width, height, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """`online_softmax.cell_xy` of the cells first .. first + BLOCK: one division for all of them.

    The rest by a product with 1 / width, which is exact to the row up to a million cells in a row of the grid: a
    half keeps it away from whole numbers.
    """
    first_row = first // width
    cell = (first - first_row * width + tl.arange(0, BLOCK)).to(ACC)  # [BLOCK], counted from that row's start
    columns = width.to(ACC)
    row = tl.floor((cell + 0.5) * (1.0 / columns))
    x = 2.0 * (cell - row * columns) - (columns - 1.0)
    return x, 2.0 * row + (2 * first_row - (height - 1)).to(ACC)


@triton.jit
def empty_states(N: tl.constexpr, ACC: tl.constexpr):
    """States [N] of `online_softmax` that have seen nothing."""
    zero = tl.zeros([N], ACC)
    return tl.full([N], float("-inf"), ACC), zero, zero, zero, zero, tl.zeros([N], tl.int32)


@triton.jit
def absorb_tile(state, c, cell, x, y, scale):
    """Take a tile c [M, N] into the states [M] of its rows; cell, x, y [N] of its columns."""
    best, total, drift, sum_x, sum_y, index = state
    top = tl.max(c, 1)  # [M]; NaN is passed over
    better = top > best  # not for a tie: the lowest cell stays
    at = tl.min(tl.where(c == top[:, None], cell[None, :], NO_INDEX), 1)
    index = tl.where(better, at, index)
    top = tl.where(better, top, best)
    log2_f = log2_factor(best, top, scale)
    f = tl.exp2(log2_f)
    log2_e = (c - origin(top)[:, None]) * scale  # [M, N]
    e = tl.exp2(log2_e)
    drift = f * (drift + total * log2_f) + tl.sum(e * tl.maximum(log2_e, LOWEST_LOG2), 1)
    total = f * total + tl.sum(e, 1)
    sum_x = f * sum_x + tl.sum(e * x[None, :], 1)
    sum_y = f * sum_y + tl.sum(e * y[None, :], 1)
    return top, total, drift, sum_x, sum_y, index
