"""The best cells of one side, as `torch.argmax` has them: the lowest of equal ones, and a NaN is larger than all."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .launch import kernel_dtype, on_device, options, reads_source_fast
from .mutual import largest, merge_maxima_kernel


@triton.jit(do_not_specialize=["splits"])
def best_cell_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    top_ptr,  # [B, splits, kept]
    index_ptr, partial_index_ptr,  # [B, kept], or [B, splits, kept] where the reduced side is split; the other is None
    reduced, kept, stride_b, stride_r, stride_k, splits, cells_per_program,
    ACC: tl.constexpr, REDUCED_FAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Largest entry and its cell. One program: BLOCK_K kept cells of one batch entry, over one range of the reduced
    side."""
    AXIS: tl.constexpr = 1 if REDUCED_FAST else 0  # of the reduced side in a tile
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    k = tl.expand_dims(cell, AXIS)
    r = tl.expand_dims(start + tl.arange(0, BLOCK_R), 1 - AXIS)
    pointer = corr_ptr + batch * stride_b + r.to(tl.int64) * stride_r + k.to(tl.int64) * stride_k  # a tile
    top = tl.full(pointer.shape, float("-inf"), ACC)
    index = tl.zeros(pointer.shape, tl.int32)
    for _ in range(start, end, BLOCK_R * UNROLL):
        for _u in tl.static_range(UNROLL):
            c = tl.load(pointer, mask=(r < end) & (k < kept), other=float("-inf")).to(ACC)
            better = (c > top) | ((c != c) & (top == top))  # not for a tie: the lowest cell stays
            top = tl.where(better, c, top)
            index = tl.where(better, r, index)
            pointer += tl.full([], BLOCK_R, tl.int64) * stride_r
            r += BLOCK_R
    top, index = largest(top, index, index >= 0, AXIS)
    ok = cell < kept
    tl.store(top_ptr + (batch * splits + split) * kept + cell, top, ok)
    if partial_index_ptr is None:
        tl.store(index_ptr + batch * kept + cell, index.to(tl.int64), ok)
    else:
        tl.store(partial_index_ptr + (batch * splits + split) * kept + cell, index, ok)


def best_cells(corr: Tensor) -> Tensor:
    """The best source cell [B,T] of each target cell of ``corr`` [B,S,T], any strides."""
    batch, sources, targets = corr.shape
    arch, reduced_fast, dtype = configs.architecture(corr.device), reads_source_fast(corr), kernel_dtype(corr)
    tile = configs.tile(arch.forward, reduced_fast, corr.element_size(), sources, targets)
    programs = batch * triton.cdiv(targets, tile.kept)
    splits, cells = configs.split(programs, arch.programs, sources, tile.step, tile.min_cells)
    index = corr.new_empty((batch, targets), dtype=torch.int64)
    tops = corr.new_empty((batch, splits, targets), dtype=accumulate_dtype(corr.dtype))
    parts = tops.new_empty(tops.shape, dtype=torch.int32) if splits > 1 else None
    with on_device(corr):
        best_cell_kernel[(programs * splits,)](
            corr, tops, index if parts is None else None, parts,
            sources, targets, *corr.stride(), splits, cells, ACC=dtype, REDUCED_FAST=reduced_fast,
            BLOCK_R=tile.reduced, BLOCK_K=tile.kept, UNROLL=tile.unroll, **options(tile.num_warps),
        )  # fmt: skip
        if parts is not None:
            block = arch.merge.kept
            merge_maxima_kernel[(batch * triton.cdiv(targets, block),)](
                tops, parts, tops.new_empty((batch, targets)), index, splits, targets, ACC=dtype, BLOCK=block,
                **options(arch.merge.num_warps),
            )  # fmt: skip
    return index
