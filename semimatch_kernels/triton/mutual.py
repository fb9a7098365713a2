"""`mutual_filter` on Triton: maxima of the rows and of the columns of each tile, then one pass over the entries that
merges them; where there are many tiles a line, the merge is a launch of its own."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .launch import INTERPRETED, kernel_dtype, on_device, options
from .online_softmax import NO_INDEX, divide

ZERO = tl.constexpr(1e-30)  # stands for a maximum of exactly 0, as in the reference
#: Up to this many tiles a line, every program merges their maxima by itself: less than a quarter of what it reads then.
FEW_PARTS = 8


@triton.jit
def largest(c, cell, there, AXIS: tl.constexpr):
    """Largest of a tile along AXIS and the lowest cell that holds it; a NaN is larger than all, as torch.max has it."""
    # Order: not there < -inf < ... < +inf < NaN.
    nan = tl.max(tl.where(there & (c != c), 1, 0), AXIS)
    top = tl.max(tl.where(there & (c == c), c, float("-inf")), AXIS)
    holds = tl.where(tl.expand_dims(nan, AXIS) != 0, c != c, c == tl.expand_dims(top, AXIS))
    at = tl.min(tl.where(holds & there, cell, NO_INDEX), AXIS)
    return tl.where(nan != 0, float("nan"), top), at


@triton.jit
def better(a, b, a_at, b_at):
    """Whether b, whose cell is b_at, goes before a."""
    larger = (b > a) | ((b != b) & (a == a))
    same = (b == a) | ((b != b) & (a != a))
    return larger | (same & (b_at < a_at))


@triton.jit
def maxima_kernel(
    corr_ptr,  # [B / levels, levels, rows, columns] in any strides
    row_ptr, row_partial_index_ptr,  # [B, column blocks, rows]
    column_ptr, column_partial_index_ptr,  # [B, row blocks, columns]
    levels, rows, columns, stride_b, stride_level, stride_row, stride_column,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """First stage: one program, one tile; the maxima of its rows and of its columns, from one read."""
    row_blocks = tl.cdiv(rows, BLOCK_R)
    column_blocks = tl.cdiv(columns, BLOCK_C)
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    batch = (program // (column_blocks * row_blocks)).to(tl.int64)
    row = row_block * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    column = column_block * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    ok = (row < rows)[:, None] & (column < columns)[None, :]
    pointer = corr_ptr + (batch // levels) * stride_b + (batch % levels) * stride_level  # [BLOCK_R, BLOCK_C]
    pointer += row.to(tl.int64)[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
    c = tl.load(pointer, mask=ok, other=0.0).to(ACC)
    top, at = largest(c, column[None, :], ok, 1)
    out = (batch * column_blocks + column_block) * rows + row
    tl.store(row_ptr + out, top, row < rows)
    tl.store(row_partial_index_ptr + out, at, row < rows)
    top, at = largest(c, row[:, None], ok, 0)
    out = (batch * row_blocks + row_block) * columns + column
    tl.store(column_ptr + out, top, column < columns)
    tl.store(column_partial_index_ptr + out, at, column < columns)


@triton.jit
def merge_parts(
    partial_ptr, partial_index_ptr, batch, parts, cell, cells, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Largest entry and its index of the lines ``cell`` [BLOCK], over all of [B, parts, cells] in their order."""
    ok = cell < cells
    at = batch * parts * cells + cell
    top = tl.full([BLOCK], float("-inf"), ACC)
    index = tl.full([BLOCK], NO_INDEX, tl.int32)
    for _ in range(0, parts):
        more = tl.load(partial_ptr + at, mask=ok, other=0.0)
        more_index = tl.load(partial_index_ptr + at, mask=ok, other=0)
        take = better(top, more, index, more_index)
        top = tl.where(take, more, top)
        index = tl.where(take, more_index, index)
        at += cells
    return top, index


@triton.jit(do_not_specialize=["parts"])
def merge_maxima_kernel(
    partial_ptr, partial_index_ptr,  # [B, parts, cells]
    top_ptr, index_ptr,  # [B, cells]
    parts, cells, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program, BLOCK cells of one batch entry."""
    blocks = tl.cdiv(cells, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    top, index = merge_parts(partial_ptr, partial_index_ptr, batch, parts, cell, cells, ACC, BLOCK)
    tl.store(top_ptr + batch * cells + cell, top, cell < cells)
    tl.store(index_ptr + batch * cells + cell, index.to(tl.int64), cell < cells)


@triton.jit
def divisor(top, eps, HAS_EPS: tl.constexpr):
    """What entries are divided by: the maximum plus eps, or `ZERO` in the place of 0."""
    if HAS_EPS:
        return top + tl.full(top.shape, eps, top.dtype)
    return tl.where(top == 0, tl.full(top.shape, ZERO, top.dtype), top)


@triton.jit
def filter_kernel(
    corr_ptr,  # [B / levels, levels, rows, columns] in any strides
    filtered_grad_ptr,  # the same, or None: forward
    row_ptr, column_ptr,  # maxima [B, rows], [B, columns]; or of the tiles, as `maxima_kernel` leaves them, with
    row_partial_index_ptr, column_partial_index_ptr,  # their indices, which are None for the former; then also written:
    row_index_ptr, column_index_ptr,  # [B, rows], [B, columns]
    row_sum_ptr, column_sum_ptr,  # backward: [B, column blocks, rows], [B, row blocks, columns]
    out_ptr,  # [B, rows, columns] contiguous: the result, or the gradient but for what goes through the maxima
    levels, rows, columns, stride_b, stride_level, stride_row, stride_column,
    grad_b, grad_level, grad_row, grad_column, eps,
    HAS_EPS: tl.constexpr, ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program, one tile: c (c / row) (c / column), or its derivative by c times the gradient, and the sums along
    rows and columns of what the maxima get."""
    row_blocks = tl.cdiv(rows, BLOCK_R)
    column_blocks = tl.cdiv(columns, BLOCK_C)
    program = tl.program_id(0)
    column_block = program % column_blocks
    row_block = (program // column_blocks) % row_blocks
    batch = (program // (column_blocks * row_blocks)).to(tl.int64)
    row = row_block * BLOCK_R + tl.arange(0, BLOCK_R)  # [BLOCK_R]
    column = column_block * BLOCK_C + tl.arange(0, BLOCK_C)  # [BLOCK_C]
    ok = (row < rows)[:, None] & (column < columns)[None, :]
    pointer = corr_ptr + (batch // levels) * stride_b + (batch % levels) * stride_level  # [BLOCK_R, BLOCK_C]
    pointer += row.to(tl.int64)[:, None] * stride_row + column.to(tl.int64)[None, :] * stride_column
    c = tl.load(pointer, mask=ok, other=0.0).to(ACC)
    if row_partial_index_ptr is None:
        row_top = tl.load(row_ptr + batch * rows + row, mask=row < rows, other=1.0)
        column_top = tl.load(column_ptr + batch * columns + column, mask=column < columns, other=1.0)
    else:
        row_top, at = merge_parts(row_ptr, row_partial_index_ptr, batch, column_blocks, row, rows, ACC, BLOCK_R)
        # The same numbers in every program of the line; one writes.
        tl.store(row_index_ptr + batch * rows + row, at.to(tl.int64), (row < rows) & (column_block == 0))
        column_top, at = merge_parts(
            column_ptr, column_partial_index_ptr, batch, row_blocks, column, columns, ACC, BLOCK_C
        )
        tl.store(column_index_ptr + batch * columns + column, at.to(tl.int64), (column < columns) & (row_block == 0))
    by_row = tl.broadcast_to(divisor(row_top, eps, HAS_EPS)[:, None], c.shape)  # [BLOCK_R, BLOCK_C]
    by_column = tl.broadcast_to(divisor(column_top, eps, HAS_EPS)[None, :], c.shape)
    ratio = divide(c, by_row) * divide(c, by_column)
    out_ptr += batch * rows * columns + row.to(tl.int64)[:, None] * columns + column[None, :]
    if filtered_grad_ptr is None:
        tl.store(out_ptr, c * ratio, mask=ok)
    else:
        filtered_grad_ptr += (batch // levels) * grad_b + (batch % levels) * grad_level  # [BLOCK_R, BLOCK_C]
        filtered_grad_ptr += row.to(tl.int64)[:, None] * grad_row + column.to(tl.int64)[None, :] * grad_column
        g = tl.load(filtered_grad_ptr, mask=ok, other=0.0).to(ACC)
        tl.store(out_ptr, 3.0 * g * ratio, mask=ok)
        product = tl.where(ok, g * (c * ratio), 0.0)
        at = (batch * column_blocks + column_block) * rows + row
        tl.store(row_sum_ptr + at, tl.sum(divide(product, by_row), 1), row < rows)
        at = (batch * row_blocks + row_block) * columns + column
        tl.store(column_sum_ptr + at, tl.sum(divide(product, by_column), 0), column < columns)


@triton.jit(do_not_specialize=["parts"])
def take_from_maxima_kernel(
    partial_ptr,  # [B, parts, cells]
    index_ptr,  # [B, cells]
    out_ptr,  # [B, rows, columns], contiguous
    parts, cells, entries, stride_cell, stride_index, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program, BLOCK rows (or columns) of one batch entry: takes the sum of their parts from their maximum. No
    two rows share a maximum, and rows and columns are two launches: no program meets another."""
    blocks = tl.cdiv(cells, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    ok = cell < cells
    at = batch * parts * cells + cell
    total = tl.zeros([BLOCK], ACC)
    for _ in range(0, parts):
        total += tl.load(partial_ptr + at, mask=ok, other=0.0)
        at += cells
    index = tl.load(index_ptr + batch * cells + cell, mask=ok, other=0)
    out_ptr += batch * entries + cell.to(tl.int64) * stride_cell + index * stride_index
    tl.store(out_ptr, tl.load(out_ptr, mask=ok, other=0.0) - total, mask=ok)


class TileGrid:
    """The tiles of a correlation [outer,levels,S,T] or [B,S,T]: their programs, and the partial results of rows and of
    columns."""

    def __init__(self, corr: Tensor, tile: configs.NormTile | None = None):
        *outer, self.rows, self.columns = corr.shape
        self.batch, self.levels = math.prod(outer), outer[-1]
        arch = configs.architecture(corr.device)
        self.tile, self.merge = tile or arch.mutual, arch.merge
        # Read along the side that is contiguous.
        fast_rows = corr.stride(-2) < corr.stride(-1)
        long, short = self.tile.cells, self.tile.channels
        self.block = (long, short) if fast_rows else (short, long)
        self.parts = triton.cdiv(self.columns, self.block[1]), triton.cdiv(self.rows, self.block[0])
        self.programs = self.batch * self.parts[0] * self.parts[1]
        self.wide, self.device = accumulate_dtype(corr.dtype), corr.device
        self.constants = {"ACC": kernel_dtype(corr), "BLOCK_R": self.block[0], "BLOCK_C": self.block[1]}
        self.constants |= options(self.tile.num_warps)

    def partials(self, dtype: torch.dtype) -> list[Tensor]:
        """[B, parts, rows] and [B, parts, columns]."""
        sizes = zip(self.parts, (self.rows, self.columns), strict=True)
        return [torch.empty((self.batch, parts, n), dtype=dtype, device=self.device) for parts, n in sizes]

    def lines(self, dtype: torch.dtype) -> list[Tensor]:
        """[B, rows] and [B, columns]."""
        return [torch.empty((self.batch, n), dtype=dtype, device=self.device) for n in (self.rows, self.columns)]

    def maxima(self, corr: Tensor, at: list[Tensor]) -> tuple[list[Tensor], list[Tensor] | tuple[None, None]]:
        """Maxima of rows and columns by tiles, and their indices; or, where a line has more than `FEW_PARTS` tiles,
        its own, their indices written to ``at``."""
        partials, indices = self.partials(self.wide), self.partials(torch.int32)
        maxima_kernel[(self.programs,)](
            corr, partials[0], indices[0], partials[1], indices[1], self.levels, self.rows, self.columns,
            *corr.stride(), **self.constants,
        )  # fmt: skip
        if max(self.parts) <= FEW_PARTS:
            return partials, indices
        tops = self.lines(self.wide)
        for i, cells in enumerate((self.rows, self.columns)):
            merge_maxima_kernel[(self.batch * triton.cdiv(cells, self.tile.cells),)](
                partials[i], indices[i], tops[i], at[i], self.parts[i], cells,
                ACC=self.constants["ACC"], BLOCK=self.tile.cells, **options(self.tile.num_warps),
            )  # fmt: skip
        return tops, (None, None)


def _empty_like(corr: Tensor, shape: torch.Size) -> Tensor:
    # float32 where bfloat16 is interpreted, as in `launch.empty_gradient`.
    dtype = torch.float32 if INTERPRETED and corr.dtype == torch.bfloat16 else corr.dtype
    return torch.empty(shape, dtype=dtype, device=corr.device)


def _four_dims(corr: Tensor) -> Tensor:
    """``corr`` [...,S,T] as [outer,levels,S,T]: a view where the outer dimensions, if there are several, lie together
    in memory, as they nearly always do."""
    return corr[None] if corr.dim() == 3 else corr.flatten(0, -4)


def mutual_filter(corr: Tensor, eps: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """``corr`` [...,S,T] filtered, and the indices of the maxima of its rows [...,S] and columns [...,T]."""
    flat = _four_dims(corr)
    out = _empty_like(corr, flat.shape)
    small = flat.shape[2] * flat.shape[3] <= configs.SMALL_ENTRIES
    tiles = TileGrid(flat, configs.architecture(corr.device).sides["small"] if small else None)
    at = tiles.lines(torch.int64)
    if flat.numel():
        with on_device(corr):
            tops, parts = tiles.maxima(flat, at)
            filter_kernel[(tiles.programs,)](
                flat, None, *tops, *parts, *at, None, None, out,
                tiles.levels, tiles.rows, tiles.columns, *flat.stride(), 0, 0, 0, 0, eps or 0.0,
                HAS_EPS=eps is not None, **tiles.constants,
            )  # fmt: skip
    rows, columns = corr.shape[:-1], (*corr.shape[:-2], corr.shape[-1])
    return out.to(corr.dtype).view(corr.shape), at[0].view(rows), at[1].view(columns)


def mutual_filter_backward(
    corr: Tensor, eps: float | None, row_index: Tensor, column_index: Tensor, grad: Tensor
) -> Tensor:
    """Gradient by ``corr``, contiguous, through both maxima too; ``grad`` in any strides.

    Summed in float32 and rounded once: entries that are a maximum take three summands.
    """
    flat, g = _four_dims(corr), _four_dims(grad)
    tiles = TileGrid(flat)
    out = torch.empty(flat.shape, dtype=tiles.wide, device=corr.device)
    if flat.numel():
        outer, levels, rows, columns = flat.shape
        indices = [i.contiguous().view(outer, levels, -1) for i in (row_index, column_index)]
        # The maxima again, by their indices.
        tops = (
            flat.gather(3, indices[0].unsqueeze(3)).squeeze(3).to(tiles.wide),
            flat.gather(2, indices[1].unsqueeze(2)).squeeze(2).to(tiles.wide),
        )
        with on_device(corr):
            sums = tiles.partials(tiles.wide)
            filter_kernel[(tiles.programs,)](
                flat, g, *tops, None, None, None, None, *sums, out,
                levels, rows, columns, *flat.stride(), *g.stride(), eps or 0.0,
                HAS_EPS=eps is not None, **tiles.constants,
            )  # fmt: skip
            for i, (cells, strides) in enumerate(((rows, (columns, 1)), (columns, (1, columns)))):
                take_from_maxima_kernel[(tiles.batch * triton.cdiv(cells, tiles.tile.cells),)](
                    sums[i], indices[i], out, tiles.parts[i], cells, rows * columns, *strides,
                    ACC=tiles.constants["ACC"], BLOCK=tiles.tile.cells, **options(tiles.tile.num_warps),
                )  # fmt: skip
    return out.to(corr.dtype).view(corr.shape)
