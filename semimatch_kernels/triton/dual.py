"""`dual_softmax` on Triton: the statistics of both sides from one read of the entries, then one read and one write.

The gradient takes the same statistics again (one read), then the sums along rows and columns of what comes back (a read
of the entries and of their gradients), then a read of both and a write. It does not start from the saved log-sum-exps:
those have lost the digits of a large score.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import empty_gradient, kernel_dtype, on_device, options, scalars
from .mutual import TileGrid
from .online_softmax import divide, origin
from .statistics import load_tile, merge_best, merge_sums, place, tile_statistics


@triton.jit
def merge_line(
    part_best_ptr, part_total_ptr, best_ptr, score_ptr, logsumexp_ptr, batch, parts, cells, cell, temperature, scale,
    ACC: tl.constexpr, BLOCK_PARTS: tl.constexpr,
):  # fmt: skip
    ok = cell < cells
    best, _ = merge_best(part_best_ptr, None, batch, parts, cells, cell, ok, ACC, BLOCK_PARTS)
    total, _ = merge_sums(part_best_ptr, part_total_ptr, None, batch, parts, cells, cell, ok, best, scale, BLOCK_PARTS)
    nothing = total == 0  # every entry -inf; False for NaN
    total = tl.where(nothing, 1.0, total)
    at = batch * cells + cell
    tl.store(best_ptr + at, origin(best), ok)
    tl.store(score_ptr + at, tl.where(nothing, 0.0, divide(tl.full(best.shape, 1.0, ACC), total)), ok)
    tl.store(logsumexp_ptr + at, divide(best, tl.full(best.shape, temperature, ACC)) + tl.log(total), ok)


@triton.jit(do_not_specialize=["row_parts", "column_parts"])
def merge_lines_kernel(
    # Parts of `statistics`, [B, row parts, rows] and [B, column parts, columns].
    row_part_best_ptr, row_part_total_ptr, column_part_best_ptr, column_part_total_ptr,
    row_best_ptr, row_score_ptr, row_logsumexp_ptr,  # results [B, rows]: largest entry, its probability
    column_best_ptr, column_score_ptr, column_logsumexp_ptr,  # results [B, columns]
    row_parts, rows, column_parts, columns, temperature, scale,
    ACC: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Second stage. One program: the parts of BLOCK rows, or of BLOCK columns, of one batch entry."""
    row_blocks = tl.cdiv(rows, BLOCK)
    blocks = row_blocks + tl.cdiv(columns, BLOCK)
    block = tl.program_id(0) % blocks
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    scale = tl.full([], scale, ACC)
    if block < row_blocks:
        merge_line(
            row_part_best_ptr, row_part_total_ptr, row_best_ptr, row_score_ptr, row_logsumexp_ptr,
            batch, row_parts, rows, block * BLOCK + tl.arange(0, BLOCK), temperature, scale, ACC, BLOCK_PARTS,
        )  # fmt: skip
    else:
        merge_line(
            column_part_best_ptr, column_part_total_ptr, column_best_ptr, column_score_ptr, column_logsumexp_ptr,
            batch, column_parts, columns, (block - row_blocks) * BLOCK + tl.arange(0, BLOCK), temperature, scale,
            ACC, BLOCK_PARTS,
        )  # fmt: skip


@triton.jit
def load_line(best_ptr, score_ptr, batch, cell, cells):
    """Largest entry of the lines `cell` [N] and its probability."""
    at = batch * cells + cell
    ok = cell < cells
    return tl.load(best_ptr + at, mask=ok, other=0.0), tl.load(score_ptr + at, mask=ok, other=0.0)


@triton.jit
def dual_fwd_kernel(
    corr_ptr,  # [B, rows, columns] in any strides
    row_best_ptr, row_score_ptr, column_best_ptr, column_score_ptr,  # [B, rows], [B, columns]
    out_ptr,  # [B, rows, columns], contiguous
    rows, columns, stride_b, stride_row, stride_column, temperature, scale,
    LOG: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program, one tile: the probability along the row times that along the column, or its logarithm."""
    batch, _, row, _, column = place(rows, columns, BLOCK_R, BLOCK_C)
    c = load_tile(corr_ptr, batch, row, column, rows, columns, stride_b, stride_row, stride_column, ACC)
    row_best, row_score = load_line(row_best_ptr, row_score_ptr, batch, row, rows)
    column_best, column_score = load_line(column_best_ptr, column_score_ptr, batch, column, columns)
    below = (c - row_best[:, None]) + (c - column_best[None, :])  # [BLOCK_R, BLOCK_C]
    if LOG:
        value = below / tl.full([], temperature, ACC) + (tl.log(row_score)[:, None] + tl.log(column_score)[None, :])
        value = tl.where(c == float("-inf"), float("-inf"), value)
    else:
        value = tl.exp2(below * tl.full([], scale, ACC)) * (row_score[:, None] * column_score[None, :])
        value = tl.where(c == float("-inf"), 0.0, value)
    out_ptr += batch * rows * columns + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(out_ptr, value, mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit(do_not_specialize=["grad_b", "grad_row", "grad_column"])
def dual_bwd_kernel(
    corr_ptr, dual_grad_ptr,  # [B, rows, columns] in any strides: the entries, and the gradient of the result
    row_best_ptr, row_score_ptr, column_best_ptr, column_score_ptr,  # [B, rows], [B, columns]
    row_h_ptr, column_h_ptr,  # first pass: their parts, [B, column blocks, rows], [B, row blocks, columns]
    grad_corr_ptr,  # None in the first pass; [B, rows, columns] in any strides, with sums [B, rows], [B, columns]
    rows, columns, stride_b, stride_row, stride_column, grad_b, grad_row, grad_column,
    out_stride_b, out_stride_row, out_stride_column, temperature, scale,
    LOG: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program, one tile.

    With h the gradient by the log-probability, that by an entry is 2 h - p_row sum(h of its row) - p_column sum(h of
    its column), divided by the temperature; the first pass makes the sums.
    """
    batch, row_block, row, column_block, column = place(rows, columns, BLOCK_R, BLOCK_C)
    scale = tl.full([], scale, ACC)
    c = load_tile(corr_ptr, batch, row, column, rows, columns, stride_b, stride_row, stride_column, ACC)
    h = load_tile(dual_grad_ptr, batch, row, column, rows, columns, grad_b, grad_row, grad_column, ACC)
    row_best, row_score = load_line(row_best_ptr, row_score_ptr, batch, row, rows)
    column_best, column_score = load_line(column_best_ptr, column_score_ptr, batch, column, columns)
    p_row = tl.exp2((c - row_best[:, None]) * scale) * row_score[:, None]  # [BLOCK_R, BLOCK_C]
    p_column = tl.exp2((c - column_best[None, :]) * scale) * column_score[None, :]
    if not LOG:
        h *= p_row * p_column
    h = tl.where(c == float("-inf"), 0.0, h)
    if grad_corr_ptr is None:
        row_h_ptr += (batch * tl.cdiv(columns, BLOCK_C) + column_block) * rows
        column_h_ptr += (batch * tl.cdiv(rows, BLOCK_R) + row_block) * columns
        tl.store(row_h_ptr + row, tl.sum(h, 1), mask=row < rows)
        tl.store(column_h_ptr + column, tl.sum(h, 0), mask=column < columns)
    else:
        row_sum = tl.load(row_h_ptr + batch * rows + row, mask=row < rows, other=0.0)
        column_sum = tl.load(column_h_ptr + batch * columns + column, mask=column < columns, other=0.0)
        value = 2.0 * h - p_row * row_sum[:, None] - p_column * column_sum[None, :]
        value = tl.where(c == float("-inf"), 0.0, value / tl.full([], temperature, ACC))
        grad_corr_ptr += batch * out_stride_b + row.to(tl.int64)[:, None] * out_stride_row
        grad_corr_ptr += column.to(tl.int64)[None, :] * out_stride_column
        tl.store(grad_corr_ptr, value, mask=(row < rows)[:, None] & (column < columns)[None, :])


def _lines(grid: TileGrid, corr: Tensor, temperature: float) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Largest entry and its probability of each row, the same of each column; log-sum-exps of rows and of columns."""
    rows, columns = tile_statistics(corr, temperature, ("best", "total"), ("best", "total"))
    (row_best, column_best), (row_score, column_score), (row_lse, column_lse) = (
        grid.lines(grid.wide) for _ in range(3)
    )
    merge = grid.merge
    blocks = sum(triton.cdiv(n, merge.kept) for n in corr.shape[1:])
    with on_device(corr):
        merge_lines_kernel[(grid.batch * blocks,)](
            rows.best, rows.total, columns.best, columns.total,
            row_best, row_score, row_lse, column_best, column_score, column_lse,
            *rows.sizes, *columns.sizes, **scalars(temperature),
            ACC=kernel_dtype(corr), BLOCK_PARTS=merge.reduced, BLOCK=merge.kept, **options(merge.num_warps),
        )  # fmt: skip
    return (row_best, row_score, column_best, column_score), row_lse, column_lse


def dual_softmax(corr: Tensor, temperature: float, log: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Dual softmax of ``corr`` [B,S,T] (any strides), contiguous in the accumulate dtype, or its logarithm; the
    log-sum-exp of each target cell and of each source cell."""
    grid = TileGrid(corr, configs.architecture(corr.device).sides["small"])
    out = corr.new_empty(corr.shape, dtype=grid.wide)
    if corr.numel() == 0:
        return out, *grid.lines(grid.wide)[::-1]
    lines, row_logsumexp, column_logsumexp = _lines(grid, corr, temperature)
    with on_device(corr):
        dual_fwd_kernel[(grid.programs,)](
            corr, *lines, out, grid.rows, grid.columns, *corr.stride(), **scalars(temperature), LOG=log,
            **grid.constants,
        )  # fmt: skip
    return out, column_logsumexp, row_logsumexp


def dual_softmax_backward(
    corr: Tensor, temperature: float, log: bool, target_logsumexp: Tensor, source_logsumexp: Tensor, grad: Tensor
) -> Tensor:
    """Gradient by ``corr`` [B,S,T], in its dtype and its order of the two sides; ``grad`` in any strides."""
    out = empty_gradient(corr)
    if corr.numel() == 0:
        return out.to(corr.dtype)
    grid = TileGrid(corr, configs.architecture(corr.device).sides["small"])
    lines, _, _ = _lines(grid, corr, temperature)
    sums = grid.partials(grid.wide)
    sizes = (grid.rows, grid.columns, *corr.stride(), *grad.stride())
    constants = {**scalars(temperature), "LOG": log, **grid.constants}
    with on_device(corr):
        dual_bwd_kernel[(grid.programs,)](corr, grad, *lines, *sums, None, *sizes, 0, 0, 0, **constants)
        sums = [parts.sum(1) for parts in sums]  # in an order that follows from the shape alone
        dual_bwd_kernel[(grid.programs,)](corr, grad, *lines, *sums, out, *sizes, *out.stride(), **constants)
    return out.to(corr.dtype)
