"""`match_both` on Triton: the matches of both sides from one read of the correlation, their gradient in one
more.

In these kernels rows are the side of the larger stride and columns that of the smaller, whichever is the
source.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .gradient import STRIDES, load_side, reload_side, slope, store_side
from .launch import (
    contiguous,
    empty_gradient,
    empty_partials,
    empty_results,
    empty_side,
    gradient_strides,
    kernel_dtype,
    merge_partials,
    on_device,
    options,
    scalars,
    source_is_fast,
)
from .online_softmax import (
    absorb,
    cell_stride,
    cell_xy,
    empty_state,
    finish,
    merge,
    next_xy,
    store_partial,
)

SIZES = ["row_width", "row_height", "column_width", "column_height"]  # specialising on these gains nothing


@triton.jit(do_not_specialize=[*SIZES, "splits"])
def match_both_fwd_kernel(
    corr_ptr,  # [B, rows, columns] in any strides
    # results [B, rows(, 2)]
    row_coords_ptr, row_score_ptr, row_entropy_ptr, row_logsumexp_ptr, row_index_ptr,
    row_partial_ptr, row_partial_index_ptr,  # None, or states [B, splits, 5, rows], ... instead of results
    column_partial_ptr, column_partial_index_ptr,  # states [B, strips, 5, columns], [B, strips, columns]
    rows, columns, row_width, row_height, column_width, column_height,
    stride_b, stride_row, stride_column, splits, columns_per_program, temperature, scale,
    ACC: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
    VECTOR: tl.constexpr, ROW_UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: a strip of ROWS rows of one batch entry, over one of `splits` ranges of the columns.

    The strip is worked off in blocks of BLOCK_C columns, each twice. First for the columns: threads lie
    along the columns, the loop goes down the rows, and each column's state over this strip is stored as a
    partial. Then for the rows: one thread a row takes in VECTOR columns at a time, and its state stays in
    registers for the whole range. The second pass finds the block in the L1 cache. So neither loop moves data
    between threads, which is what a sum over the other axis of a tile would cost.
    """
    strips = tl.cdiv(rows, ROWS)
    program = tl.program_id(0)
    split = program % splits
    strip = (program // splits) % strips
    batch = (program // (splits * strips)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    corr_ptr += batch * stride_b
    first_row = strip * ROWS
    row_end = tl.minimum(first_row + ROWS, rows)
    start = split * columns_per_program
    end = tl.minimum(start + columns_per_program, columns)

    tile_row = first_row + tl.arange(0, BLOCK_R)[:, None]  # [BLOCK_R, 1]
    tile_row_x, tile_row_y = cell_xy(tile_row, row_width, row_height, ACC)
    row_stride = cell_stride(BLOCK_R, row_width, ACC)
    tile_row_ptr = corr_ptr + tile_row.to(tl.int64) * stride_row

    row = first_row + tl.arange(0, ROWS)  # [ROWS]
    lane = tl.arange(0, VECTOR)[None, :]  # [1, VECTOR]
    row_ptr = corr_ptr + row.to(tl.int64)[:, None] * stride_row  # [ROWS, 1]
    row_ptr += lane.to(tl.int64) * stride_column  # [ROWS, VECTOR]
    row_ok = (row < rows)[:, None]
    # A group of VECTOR columns lies in one row of their grid: x and y are those of its first column, and what
    # the others are further right is added at the end.
    x, y = cell_xy(start, column_width, column_height, ACC)
    group_stride = cell_stride(VECTOR, column_width, ACC)
    row_state = empty_state(ROWS, VECTOR, ACC)

    for block in range(start, end, BLOCK_C):
        column = block + tl.arange(0, BLOCK_C)  # [BLOCK_C]
        pointer = tile_row_ptr + column.to(tl.int64)[None, :] * stride_column  # [BLOCK_R, BLOCK_C]
        column_ok = column < end
        state = empty_state(BLOCK_R, BLOCK_C, ACC)
        r = tile_row
        rx = tile_row_x
        ry = tile_row_y
        for _ in range(0, ROWS, BLOCK_R * UNROLL):
            state, pointer, r, rx, ry = absorb(
                state, pointer, r, row_end, column_ok[None, :], rx, ry,
                stride_row, row_stride, scale, BLOCK_R, UNROLL,
            )  # fmt: skip
        store_partial(
            merge(state, scale, 0), column_partial_ptr, column_partial_index_ptr,
            batch * strips + strip, columns, column, column_ok,
        )  # fmt: skip
        group_ptr = row_ptr + tl.cast(block, tl.int64) * stride_column
        c = block + lane  # [1, VECTOR]
        for _ in range(block, tl.minimum(block + BLOCK_C, end), VECTOR * ROW_UNROLL):
            row_state, group_ptr, c, x, y = absorb(
                row_state, group_ptr, c, end, row_ok, x, y,
                stride_column, group_stride, scale, VECTOR, ROW_UNROLL,
            )  # fmt: skip

    best, total, drift, sum_x, sum_y, index = row_state
    sum_x += total * (2 * lane).to(ACC)
    merged = merge((best, total, drift, sum_x, sum_y, index), scale, 1)  # [ROWS]
    ok = row < rows
    if row_partial_ptr is None:
        finish(
            merged, row_coords_ptr, row_score_ptr, row_entropy_ptr, row_logsumexp_ptr, row_index_ptr,
            batch * rows + row, ok, column_width, column_height, temperature,
        )  # fmt: skip
    else:
        store_partial(merged, row_partial_ptr, row_partial_index_ptr, batch * splits + split, rows, row, ok)


@triton.jit(do_not_specialize=[*SIZES, *(f"{side}_{name}" for side in ("row", "column") for name in STRIDES)])
def match_both_sides_kernel(
    corr_ptr,  # [B, rows, columns] in any strides
    row_coords_ptr, row_score_ptr, row_entropy_ptr, row_index_ptr,  # saved results [B, rows(, 2)]
    column_coords_ptr, column_score_ptr, column_entropy_ptr, column_index_ptr,  # and [B, columns(, 2)]
    grad_row_coords_ptr, grad_row_score_ptr, grad_row_entropy_ptr, grad_row_logsumexp_ptr,  # each may be None
    grad_column_coords_ptr, grad_column_score_ptr, grad_column_entropy_ptr, grad_column_logsumexp_ptr,
    row_side_ptr, row_side_index_ptr, column_side_ptr, column_side_index_ptr,  # [B, 7, rows], [B, rows], ...
    row_coords_b, row_coords_k, row_coords_xy,
    row_score_b, row_score_k, row_entropy_b, row_entropy_k, row_logsumexp_b, row_logsumexp_k,
    column_coords_b, column_coords_k, column_coords_xy,
    column_score_b, column_score_k, column_entropy_b, column_entropy_k,
    column_logsumexp_b, column_logsumexp_k,
    rows, columns, row_width, row_height, column_width, column_height,
    stride_b, stride_row, stride_column, temperature,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: what `slope` needs of BLOCK rows or BLOCK columns of one batch entry."""
    row_blocks = tl.cdiv(rows, BLOCK)
    blocks = row_blocks + tl.cdiv(columns, BLOCK)
    block = tl.program_id(0) % blocks
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    corr_ptr += batch * stride_b
    if block < row_blocks:
        row = block * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        side = load_side(
            corr_ptr, row_coords_ptr, row_score_ptr, row_entropy_ptr, row_index_ptr,
            (grad_row_coords_ptr, grad_row_score_ptr, grad_row_entropy_ptr, grad_row_logsumexp_ptr),
            (row_coords_b, row_coords_k, row_coords_xy, row_score_b, row_score_k,
             row_entropy_b, row_entropy_k, row_logsumexp_b, row_logsumexp_k),
            batch, row, rows, column_width, column_height, stride_column, stride_row, temperature, ACC,
        )  # fmt: skip
        store_side(side, row_side_ptr, row_side_index_ptr, batch, row, rows)
    else:
        column = (block - row_blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
        side = load_side(
            corr_ptr, column_coords_ptr, column_score_ptr, column_entropy_ptr, column_index_ptr,
            (grad_column_coords_ptr, grad_column_score_ptr,
             grad_column_entropy_ptr, grad_column_logsumexp_ptr),
            (column_coords_b, column_coords_k, column_coords_xy, column_score_b, column_score_k,
             column_entropy_b, column_entropy_k, column_logsumexp_b, column_logsumexp_k),
            batch, column, columns, row_width, row_height, stride_row, stride_column, temperature, ACC,
        )  # fmt: skip
        store_side(side, column_side_ptr, column_side_index_ptr, batch, column, columns)


@triton.jit(do_not_specialize=SIZES)
def match_both_bwd_kernel(
    corr_ptr,  # [B, rows, columns] in any strides
    row_side_ptr, row_side_index_ptr, column_side_ptr, column_side_index_ptr,  # from match_both_sides_kernel
    grad_corr_ptr,  # [B, rows, columns], contiguous
    rows, columns, row_width, row_height, column_width, column_height,
    stride_b, stride_row, stride_column, columns_per_program, scale,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_R rows of one batch entry over a range of columns; both gradients in one write."""
    strips = tl.cdiv(rows, BLOCK_R)
    splits = tl.cdiv(columns, columns_per_program)
    program = tl.program_id(0)
    split = program % splits
    strip = (program // splits) % strips
    batch = (program // (splits * strips)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    row = strip * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    row_side = reload_side(row_side_ptr, row_side_index_ptr, batch, row, rows)
    row_cell = row[:, None]  # [BLOCK_R, 1]
    row_x, row_y = cell_xy(row_cell, row_width, row_height, ACC)
    row_ptr = corr_ptr + batch * stride_b + row_cell.to(tl.int64) * stride_row
    grad_row_ptr = grad_corr_ptr + (batch * rows + row_cell) * columns
    start = split * columns_per_program
    end = tl.minimum(start + columns_per_program, columns)
    column_cell = start + tl.arange(0, BLOCK_C)[None, :]  # [1, BLOCK_C]
    column_x, column_y = cell_xy(column_cell, column_width, column_height, ACC)
    xy_stride = cell_stride(BLOCK_C, column_width, ACC)
    for block in range(start, end, BLOCK_C):
        column = block + tl.arange(0, BLOCK_C)  # [BLOCK_C]
        column_side = reload_side(column_side_ptr, column_side_index_ptr, batch, column, columns)
        column_cell = column[None, :]  # [1, BLOCK_C]
        ok = (row_cell < rows) & (column_cell < end)  # [BLOCK_R, BLOCK_C]
        pointer = row_ptr + column_cell.to(tl.int64) * stride_column
        c = tl.load(pointer, mask=ok, other=float("-inf")).to(ACC)  # [BLOCK_R, BLOCK_C]
        gradient = slope(column_side, 0, c, row_cell, row_x, row_y, scale)
        gradient += slope(row_side, 1, c, column_cell, column_x, column_y, scale)
        tl.store(grad_row_ptr + column_cell, gradient, mask=ok)
        column_x, column_y = next_xy(column_x, column_y, xy_stride)


def match_both_one_read(
    corr: Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int], temperature: float
) -> tuple[Tensor, ...]:
    """The five results for each target cell, then for each source cell; one read of ``corr`` [B,S,T]."""
    batch, sources, targets = corr.shape
    for_targets, for_sources = empty_results(corr, targets), empty_results(corr, sources)
    if corr.numel() == 0:
        return *for_targets, *for_sources
    if source_is_fast(corr):
        view, row_grid, column_grid, row_results, column_results = (
            corr.transpose(1, 2), target_grid, source_grid, for_targets, for_sources,
        )  # fmt: skip
    else:
        view, row_grid, column_grid, row_results, column_results = (
            corr, source_grid, target_grid, for_sources, for_targets,
        )  # fmt: skip
    rows, columns = view.shape[1:]
    arch = configs.architecture(corr.device)
    tile = arch.both_forward
    vector = configs.row_vector(tile, column_grid[1], corr.element_size())
    strips = triton.cdiv(rows, tile.rows)
    step = tile.block_columns
    splits, each = configs.split(batch * strips, arch.programs, columns, step, 4 * step)
    column_partials = empty_partials(corr, strips, columns)
    row_partials = empty_partials(corr, splits, rows) if splits > 1 else (None, None)
    with on_device(corr):
        match_both_fwd_kernel[(batch * strips * splits,)](
            view, *row_results, *row_partials, *column_partials,
            rows, columns, row_grid[1], row_grid[0], column_grid[1], column_grid[0], *view.stride(),
            splits, each, **scalars(temperature), ACC=kernel_dtype(corr), ROWS=tile.rows,
            BLOCK_R=tile.block_rows, BLOCK_C=tile.block_columns, UNROLL=tile.unroll,
            VECTOR=vector, ROW_UNROLL=tile.row_step // vector, **options(tile.num_warps),
        )  # fmt: skip
        if splits > 1:
            merge_partials(row_partials, row_results, column_grid, temperature)
        merge_partials(column_partials, column_results, row_grid, temperature)
    return *for_targets, *for_sources


def match_both_backward(
    corr: Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int], temperature: float,
    t_coords: Tensor, t_score: Tensor, t_entropy: Tensor, t_logsumexp: Tensor, t_index: Tensor,
    s_coords: Tensor, s_score: Tensor, s_entropy: Tensor, s_logsumexp: Tensor, s_index: Tensor,
    grad_t_coords: Tensor | None, grad_t_score: Tensor | None,
    grad_t_entropy: Tensor | None, grad_t_logsumexp: Tensor | None,
    grad_s_coords: Tensor | None, grad_s_score: Tensor | None,
    grad_s_entropy: Tensor | None, grad_s_logsumexp: Tensor | None,
) -> Tensor:  # fmt: skip
    """Gradient of ``corr`` [B,S,T], in its dtype and its order of the two sides.

    The results are those of `match_both`; their gradients may have any strides, or be None.
    """
    grad = empty_gradient(corr)
    target_grads = (grad_t_coords, grad_t_score, grad_t_entropy, grad_t_logsumexp)
    source_grads = (grad_s_coords, grad_s_score, grad_s_entropy, grad_s_logsumexp)
    if grad.numel() == 0 or all(g is None for g in target_grads + source_grads):
        return grad.zero_().to(corr.dtype)
    target_side = contiguous(t_coords, t_score, t_entropy, t_index), target_grads, target_grid
    source_side = contiguous(s_coords, s_score, s_entropy, s_index), source_grads, source_grid
    if source_is_fast(corr):
        view, out, rows, columns = corr.transpose(1, 2), grad.transpose(1, 2), target_side, source_side
    else:
        view, out, rows, columns = corr, grad, source_side, target_side
    (row_saved, row_grads, row_grid), (column_saved, column_grads, column_grid) = rows, columns
    batch, row_cells, column_cells = view.shape
    arch = configs.architecture(corr.device)
    tile = arch.both_backward
    dtype = kernel_dtype(corr)
    sides = *empty_side(corr, row_cells), *empty_side(corr, column_cells)
    sizes = row_cells, column_cells, row_grid[1], row_grid[0], column_grid[1], column_grid[0], *view.stride()
    side_blocks = triton.cdiv(row_cells, tile.side_cells) + triton.cdiv(column_cells, tile.side_cells)
    strips = batch * triton.cdiv(row_cells, tile.block_rows)
    splits, each = configs.split(strips, arch.programs, column_cells, tile.block_columns, tile.block_columns)
    constants = scalars(temperature)
    with on_device(corr):
        match_both_sides_kernel[(batch * side_blocks,)](
            view, *row_saved, *column_saved, *row_grads, *column_grads, *sides,
            *gradient_strides(*row_grads), *gradient_strides(*column_grads), *sizes, constants["temperature"],
            ACC=dtype, BLOCK=tile.side_cells, **options(tile.num_warps),
        )  # fmt: skip
        match_both_bwd_kernel[(strips * splits,)](
            view, *sides, out, *sizes, each, constants["scale"],
            ACC=dtype, BLOCK_R=tile.block_rows, BLOCK_C=tile.block_columns, **options(tile.num_warps),
        )  # fmt: skip
    return grad.to(corr.dtype)
