"""`match` on Triton, one direction: one side is kept, the other reduced; either may be the contiguous one."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .gradient import STRIDES, load_side, slope
from .launch import (
    contiguous,
    empty_gradient,
    empty_partials,
    empty_results,
    gradient_strides,
    kernel_dtype,
    merge_partials,
    on_device,
    options,
    reads_source_fast,
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


@triton.jit(do_not_specialize=["width", "height", "splits"])
def match_fwd_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,  # results [B, kept(, 2)]
    partial_ptr, partial_index_ptr,  # None, or states [B, splits, 5, kept], [B, splits, kept] instead of results
    reduced, kept, width, height, stride_b, stride_r, stride_k, splits, cells_per_program, temperature, scale,
    ACC: tl.constexpr, REDUCED_FAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over one of `splits` ranges of the reduced side.

    Tiles lie with the side of the smaller stride last (REDUCED_FAST: the reduced side), so that loads are
    coalesced whichever it is.
    """
    AXIS: tl.constexpr = 1 if REDUCED_FAST else 0  # of the reduced side in a tile
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    kept_cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    k = tl.expand_dims(kept_cell, AXIS)
    r = tl.expand_dims(start + tl.arange(0, BLOCK_R), 1 - AXIS)
    pointer = corr_ptr + batch * stride_b + r.to(tl.int64) * stride_r + k.to(tl.int64) * stride_k  # a tile
    x, y = cell_xy(r, width, height, ACC)
    xy_stride = cell_stride(BLOCK_R, width, ACC)
    if REDUCED_FAST:
        state = empty_state(BLOCK_K, BLOCK_R, ACC)
    else:
        state = empty_state(BLOCK_R, BLOCK_K, ACC)
    for _ in range(start, end, BLOCK_R * UNROLL):
        state, pointer, r, x, y = absorb(
            state, pointer, r, end, k < kept, x, y, stride_r, xy_stride, scale, BLOCK_R, UNROLL
        )
    state = merge(state, scale, AXIS)  # [BLOCK_K]
    ok = kept_cell < kept
    if partial_ptr is None:
        finish(
            state, coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,
            batch * kept + kept_cell, ok, width, height, temperature,
        )  # fmt: skip
    else:
        store_partial(state, partial_ptr, partial_index_ptr, batch * splits + split, kept, kept_cell, ok)


@triton.jit(do_not_specialize=["width", "height", *STRIDES])
def match_bwd_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    coords_ptr, score_ptr, entropy_ptr, index_ptr,  # saved results [B, kept(, 2)]
    grad_coords_ptr, grad_score_ptr, grad_entropy_ptr, grad_logsumexp_ptr,  # any strides, each may be None
    grad_corr_ptr,  # [B, reduced, kept], contiguous in corr's order of the two sides
    coords_b, coords_k, coords_xy, score_b, score_k, entropy_b, entropy_k, logsumexp_b, logsumexp_k,
    reduced, kept, width, height, stride_b, stride_r, stride_k, grad_stride_r, grad_stride_k,
    cells_per_program, temperature, scale,
    ACC: tl.constexpr, REDUCED_FAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over one range of the reduced side; one read, one
    write.

    Tiles lie as in `match_fwd_kernel`.
    """
    AXIS: tl.constexpr = 1 if REDUCED_FAST else 0  # of the reduced side in a tile
    blocks = tl.cdiv(kept, BLOCK_K)
    splits = tl.cdiv(reduced, cells_per_program)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    kept_cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    corr_ptr += batch * stride_b
    side = load_side(
        corr_ptr, coords_ptr, score_ptr, entropy_ptr, index_ptr,
        (grad_coords_ptr, grad_score_ptr, grad_entropy_ptr, grad_logsumexp_ptr),
        (coords_b, coords_k, coords_xy, score_b, score_k, entropy_b, entropy_k, logsumexp_b, logsumexp_k),
        batch, kept_cell, kept, width, height, stride_r, stride_k, temperature, ACC,
    )  # fmt: skip
    k = tl.expand_dims(kept_cell, AXIS)
    r = tl.expand_dims(start + tl.arange(0, BLOCK_R), 1 - AXIS)
    pointer = corr_ptr + r.to(tl.int64) * stride_r + k.to(tl.int64) * stride_k  # a tile
    grad_pointer = grad_corr_ptr + batch * reduced * kept
    grad_pointer += r.to(tl.int64) * grad_stride_r + k.to(tl.int64) * grad_stride_k  # a tile
    x, y = cell_xy(r, width, height, ACC)
    xy_stride = cell_stride(BLOCK_R, width, ACC)
    for _ in range(start, end, BLOCK_R):
        ok = (r < end) & (k < kept)
        c = tl.load(pointer, mask=ok, other=float("-inf")).to(ACC)  # a tile
        tl.store(grad_pointer, slope(side, AXIS, c, r, x, y, scale), mask=ok)
        x, y = next_xy(x, y, xy_stride)
        r += BLOCK_R
        pointer += tl.full([], BLOCK_R, tl.int64) * stride_r
        grad_pointer += tl.full([], BLOCK_R, tl.int64) * grad_stride_r


def match(corr: Tensor, grid: tuple[int, int], temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For each target cell over the source cells of ``corr`` [B,S,T] (any strides): the five results."""
    batch, sources, targets = corr.shape
    results = empty_results(corr, targets)
    if batch == 0 or targets == 0:
        return results
    arch = configs.architecture(corr.device)
    reduced_fast = reads_source_fast(corr)
    tile = configs.tile(arch.forward, reduced_fast, corr.element_size(), sources, targets)
    programs = batch * triton.cdiv(targets, tile.kept)
    splits, cells = configs.split(programs, arch.programs, sources, tile.step, tile.min_cells)
    partials = empty_partials(corr, splits, targets) if splits > 1 else (None, None)
    with on_device(corr):
        match_fwd_kernel[(programs * splits,)](
            corr, *results, *partials,
            sources, targets, grid[1], grid[0], *corr.stride(), splits, cells, **scalars(temperature),
            ACC=kernel_dtype(corr), REDUCED_FAST=reduced_fast,
            BLOCK_R=tile.reduced, BLOCK_K=tile.kept, UNROLL=tile.unroll, **options(tile.num_warps),
        )  # fmt: skip
        if splits > 1:
            merge_partials(partials, results, grid, temperature)
    return results


def match_backward(
    corr: Tensor, grid: tuple[int, int], temperature: float,
    coords: Tensor, score: Tensor, entropy: Tensor, logsumexp: Tensor, index: Tensor,
    grad_coords: Tensor | None, grad_score: Tensor | None,
    grad_entropy: Tensor | None, grad_logsumexp: Tensor | None,
) -> Tensor:  # fmt: skip
    """Gradient of ``corr`` [B,S,T], in its dtype and its order of the two sides.

    The results are those of `match`; their gradients may have any strides, or be None.
    """
    batch, sources, targets = corr.shape
    grad = empty_gradient(corr)
    grads = (grad_coords, grad_score, grad_entropy, grad_logsumexp)
    if grad.numel() == 0 or all(g is None for g in grads):
        return grad.zero_().to(corr.dtype)
    arch = configs.architecture(corr.device)
    reduced_fast = source_is_fast(corr)
    tile = configs.tile(arch.backward, reduced_fast, corr.element_size(), sources, targets)
    programs = batch * triton.cdiv(targets, tile.kept)
    splits, cells = configs.split(programs, arch.programs, sources, tile.step, tile.min_cells)
    with on_device(corr):
        match_bwd_kernel[(programs * splits,)](
            corr, *contiguous(coords, score, entropy, index), *grads, grad, *gradient_strides(*grads),
            sources, targets, grid[1], grid[0], *corr.stride(), *grad.stride()[1:], cells,
            **scalars(temperature), ACC=kernel_dtype(corr), REDUCED_FAST=reduced_fast,
            BLOCK_R=tile.reduced, BLOCK_K=tile.kept, **options(tile.num_warps),
        )  # fmt: skip
    return grad.to(corr.dtype)
