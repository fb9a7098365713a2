"""Statistics of the rows and of the columns of a correlation from one read: first stage by tiles, and the merge rules.

Best entry and its index (the lowest of equal ones; a NaN is larger than all, as `torch.argmax` has it), and the sums of
`online_softmax` that belong to it: total, drift. A NaN best makes the sums NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import on_device, scalars
from .mutual import TileGrid, better, largest
from .online_softmax import LOWEST_LOG2, NO_INDEX, log2_factor, origin


@triton.jit
def store_part(
    c, cell, there, AXIS: tl.constexpr, best_ptr, index_ptr, total_ptr, drift_ptr, at, ok, scale
):  # fmt: skip
    """Statistics of a tile c along AXIS, stored at `at` [N]; cell: the cells along AXIS, there: what lies inside."""
    if best_ptr is not None:
        best, index = largest(c, cell, there, AXIS)
        tl.store(best_ptr + at, best, ok)
        if index_ptr is not None:
            tl.store(index_ptr + at, index, ok)
        if total_ptr is not None:
            log2_e = (c - tl.expand_dims(origin(best), AXIS)) * scale
            e = tl.exp2(log2_e)
            tl.store(total_ptr + at, tl.sum(e, AXIS), ok)
            if drift_ptr is not None:
                tl.store(drift_ptr + at, tl.sum(e * tl.maximum(log2_e, LOWEST_LOG2), AXIS), ok)


@triton.jit
def tile_statistics_kernel(
    corr_ptr,  # [B, rows, columns] in any strides
    # Each may be None; [B, column blocks, rows] and [B, row blocks, columns].
    row_best_ptr, row_partial_index_ptr, row_total_ptr, row_drift_ptr,
    column_best_ptr, column_partial_index_ptr, column_total_ptr, column_drift_ptr,
    rows, columns, stride_b, stride_row, stride_column, scale,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program, one tile, read once and kept in registers."""
    scale = tl.full([], scale, ACC)
    batch, row_block, row, column_block, column = place(rows, columns, BLOCK_R, BLOCK_C)
    c = load_tile(corr_ptr, batch, row, column, rows, columns, stride_b, stride_row, stride_column, ACC)
    there = (row < rows)[:, None] & (column < columns)[None, :]
    row_at = (batch * tl.cdiv(columns, BLOCK_C) + column_block) * rows + row
    column_at = (batch * tl.cdiv(rows, BLOCK_R) + row_block) * columns + column
    store_part(
        c, column[None, :], there, 1, row_best_ptr, row_partial_index_ptr, row_total_ptr, row_drift_ptr,
        row_at, row < rows, scale,
    )  # fmt: skip
    store_part(
        c, row[:, None], there, 0, column_best_ptr, column_partial_index_ptr, column_total_ptr, column_drift_ptr,
        column_at, column < columns, scale,
    )  # fmt: skip


@triton.jit
def place(rows, columns, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """This program's tile: batch (int64), block and cells of the rows, block and cells of the columns."""
    row_blocks = tl.cdiv(rows, BLOCK_R)
    column_blocks = tl.cdiv(columns, BLOCK_C)
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    batch = (program // (column_blocks * row_blocks)).to(tl.int64)
    row = row_block * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    column = column_block * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    return batch, row_block, row, column_block, column


@triton.jit
def load_tile(pointer, batch, row, column, rows, columns, stride_b, stride_row, stride_column, ACC: tl.constexpr):
    """Entries [BLOCK_R, BLOCK_C] of a matrix [B, rows, columns]; -inf outside it."""
    pointer += batch * stride_b
    pointer += row.to(tl.int64)[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
    ok = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(pointer, mask=ok, other=float("-inf")).to(ACC)


@triton.jit
def merge_best(best_ptr, index_ptr, batch, parts, cells, cell, ok, ACC: tl.constexpr, BLOCK_PARTS: tl.constexpr):
    """Best entry and index (0 where `index_ptr` is None) of cells [N] over their parts [B, parts, cells]."""
    best = tl.full(cell.shape, float("-inf"), ACC)
    index = tl.full(cell.shape, NO_INDEX, tl.int32)
    for first in range(0, parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)[:, None]  # [BLOCK_PARTS, 1]
        there = (part < parts) & ok[None, :]  # [BLOCK_PARTS, N]
        at = (batch * parts + part) * cells + cell[None, :]
        more = tl.load(best_ptr + at, mask=there, other=float("-inf"))
        if index_ptr is None:
            more_index = tl.zeros(there.shape, tl.int32)
        else:
            more_index = tl.load(index_ptr + at, mask=there, other=0)
        more, more_index = largest(more, more_index, there, 0)
        take = better(best, more, index, more_index)
        best = tl.where(take, more, best)
        index = tl.where(take, more_index, index)
    return best, index


@triton.jit
def merge_sums(
    best_ptr, total_ptr, drift_ptr, batch, parts, cells, cell, ok, best, scale, BLOCK_PARTS: tl.constexpr
):  # fmt: skip
    """Total and drift (0 where `drift_ptr` is None) of the cells `cell` [N] over their parts, given their `best`."""
    total = tl.zeros(best.shape, best.dtype)
    drift = tl.zeros(best.shape, best.dtype)
    for first in range(0, parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)[:, None]  # [BLOCK_PARTS, 1]
        there = (part < parts) & ok[None, :]  # [BLOCK_PARTS, N]
        at = (batch * parts + part) * cells + cell[None, :]
        log2_f = log2_factor(tl.load(best_ptr + at, mask=there, other=float("-inf")), best[None, :], scale)
        f = tl.exp2(log2_f)
        more = tl.load(total_ptr + at, mask=there, other=0.0)
        total += tl.sum(f * more, 0)
        if drift_ptr is not None:
            more_drift = tl.load(drift_ptr + at, mask=there, other=0.0)
            drift += tl.sum(f * (more_drift + more * log2_f), 0)
    return total, drift


@dataclass(frozen=True)
class Parts:
    """Partial statistics of one side, [B, parts, cells] each; None = not wanted."""

    best: Tensor | None = None
    index: Tensor | None = None
    total: Tensor | None = None
    drift: Tensor | None = None

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        return self.best, self.index, self.total, self.drift

    @property
    def sizes(self) -> tuple[int, int]:
        """Parts and cells."""
        return (0, 0) if self.best is None else self.best.shape[1:]  # type: ignore[return-value]


def tile_statistics(
    corr: Tensor, temperature: float, rows: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[Parts, Parts]:
    """First stage: the wanted fields of `Parts` of the rows and of the columns of ``corr`` [B,S,T], any strides."""
    grid = TileGrid(corr, configs.side_tile(corr))
    made = []
    for names, parts, cells in zip((rows, columns), grid.parts, corr.shape[1:], strict=True):
        dtypes = {name: torch.int32 if name == "index" else grid.wide for name in names}
        shape = corr.shape[0], parts, cells
        made.append(Parts(**{name: corr.new_empty(shape, dtype=dtype) for name, dtype in dtypes.items()}))
    with on_device(corr):
        tile_statistics_kernel[(grid.programs,)](
            corr, *made[0].pointers, *made[1].pointers, grid.rows, grid.columns, *corr.stride(),
            scalars(temperature)["scale"], **grid.constants,
        )  # fmt: skip
    return made[0], made[1]
