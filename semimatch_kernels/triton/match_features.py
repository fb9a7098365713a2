"""`match_features` on Triton: online softmax over the tiles of a correlation that is never stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .features import Block, Sides, feature_tile, gradient, half_gain, precision
from .gradient import STRIDES, load_side_of_features, slope, snapped
from .launch import (
    contiguous,
    empty_partials,
    empty_results,
    gradient_strides,
    merge_partials,
    on_device,
    options,
    scalars,
)
from .online_softmax import finish, store_partial
from .tiles import absorb_tile, column_parts, empty_states, entries, factors, feature_products, offsets, tile_xy


@triton.jit(do_not_specialize=["width", "height", "splits"])
def match_features_fwd_kernel(
    kept_ptr, reduced_ptr,  # features [B, C, kept] and [B, C, reduced] in any strides
    kept_factor_ptr, reduced_factor_ptr,  # [B, kept], [B, reduced] of `tiles.factors`; each may be None
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,  # results [B, kept(, 2)]
    partial_ptr, partial_index_ptr,  # None, or states [B, splits, 5, kept], [B, splits, kept] instead of results
    kept, reduced, channels, kept_stride_b, kept_stride_c, kept_stride_n,
    reduced_stride_b, reduced_stride_c, reduced_stride_n,
    width, height, splits, cells_per_program, temperature, scale,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over one of `splits` ranges of the reduced side.

    Programs that run together share a range, and so find its features in L2.
    """
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    first_kept = (program % blocks) * BLOCK_K
    k = first_kept + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    kept_factor = factors(kept_factor_ptr, batch * kept, k, kept, ACC)
    state = empty_states(BLOCK_K, ACC)
    for first in range(start, end, BLOCK_R):
        # A range ends with a tile, or with the side.
        acc = feature_products(
            kept_ptr, reduced_ptr, batch, first_kept, first, kept, reduced, channels,
            (kept_stride_b, kept_stride_c, kept_stride_n), (reduced_stride_b, reduced_stride_c, reduced_stride_n),
            ACC, DOT, PRECISION, NARROW, BLOCK_K, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        parts = column_parts(acc, PARTS)
        for i in tl.static_range(PARTS):
            r = first + i * (BLOCK_R // PARTS) + tl.arange(0, BLOCK_R // PARTS)
            c = entries(parts[i], kept_factor, factors(reduced_factor_ptr, batch * reduced, r, reduced, ACC))
            x, y = tile_xy(first + i * (BLOCK_R // PARTS), width, height, BLOCK_R // PARTS, ACC)
            state = absorb_tile(state, c, r, x, y, scale)
    # A kept cell that is not there has seen nothing, whatever its features are.
    there = (kept_factor < 0) == 0
    best = tl.where(there, state[0], float("-inf"))
    total = tl.where(there, state[1], 0.0)
    drift = tl.where(there, state[2], 0.0)
    x = tl.where(there, state[3], 0.0)
    y = tl.where(there, state[4], 0.0)
    state = (best, total, drift, x, y, tl.where(there, state[5], 0))
    if partial_ptr is None:
        finish(
            state, coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,
            batch * kept + k, k < kept, width, height, temperature,
        )  # fmt: skip
    else:
        store_partial(state, partial_ptr, partial_index_ptr, batch * splits + split, kept, k, k < kept)


@triton.jit(do_not_specialize=["width", "height", "first_batch", "first_kept", *STRIDES])
def match_features_slopes_kernel(
    kept_ptr, reduced_ptr, kept_factor_ptr, reduced_factor_ptr,  # as above
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,  # saved results [B, kept(, 2)]
    grad_coords_ptr, grad_score_ptr, grad_entropy_ptr, grad_logsumexp_ptr,  # any strides, each may be None
    gain_ptr,  # one number, or None
    slopes_ptr,  # [batches of this launch, kept cells of this launch, reduced]
    coords_b, coords_k, coords_xy, score_b, score_k, entropy_b, entropy_k, logsumexp_b, logsumexp_k,
    kept, reduced, channels, kept_stride_b, kept_stride_c, kept_stride_n,
    reduced_stride_b, reduced_stride_c, reduced_stride_n,
    here, first_batch, first_kept, slopes_stride_b, slopes_stride_k,
    width, height, temperature, scale,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: a tile of the gradient by the plain products of features, see `features.gradient`."""
    blocks = tl.cdiv(here, BLOCK_K)
    reduced_blocks = tl.cdiv(reduced, BLOCK_R)
    program = tl.program_id(0)
    local_first = (program % blocks) * BLOCK_K
    local_k = local_first + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    first = ((program // blocks) % reduced_blocks) * BLOCK_R
    local_batch = (program // (blocks * reduced_blocks)).to(tl.int64)
    batch = first_batch + local_batch
    scale = tl.full([], scale, ACC)
    k = first_kept + local_k
    ok = local_k < here
    acc = feature_products(
        kept_ptr, reduced_ptr, batch, first_kept + local_first, first, kept, reduced, channels,
        (kept_stride_b, kept_stride_c, kept_stride_n), (reduced_stride_b, reduced_stride_c, reduced_stride_n),
        ACC, DOT, PRECISION, NARROW, BLOCK_K, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    kept_factor = factors(kept_factor_ptr, batch * kept, k, kept, ACC)
    side = load_side_of_features(
        coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,
        (grad_coords_ptr, grad_score_ptr, grad_entropy_ptr, grad_logsumexp_ptr),
        (coords_b, coords_k, coords_xy, score_b, score_k, entropy_b, entropy_k, logsumexp_b, logsumexp_k),
        batch, k, kept, width, height, temperature, ACC,
    )  # fmt: skip
    to_products = kept_factor
    if gain_ptr is not None:
        to_products *= tl.load(gain_ptr)
    slopes_ptr += local_batch * slopes_stride_b + local_first.to(tl.int64) * slopes_stride_k + first
    at = offsets(BLOCK_K, BLOCK_R // PARTS, slopes_stride_k, 1, NARROW)
    parts = column_parts(acc, PARTS)
    for i in tl.static_range(PARTS):
        r = first + i * (BLOCK_R // PARTS) + tl.arange(0, BLOCK_R // PARTS)
        factor = factors(reduced_factor_ptr, batch * reduced, r, reduced, ACC)
        c = tl.where((kept_factor < 0)[:, None], float("-inf"), entries(parts[i], kept_factor, factor))
        c = snapped(c, side)
        x, y = tile_xy(first + i * (BLOCK_R // PARTS), width, height, BLOCK_R // PARTS, ACC)
        value = slope(side, 1, c, r[None, :], x[None, :], y[None, :], scale)
        # Not a product with 0: the factor of an excluded entry may be infinite, or NaN that of the other side.
        value = tl.where(c == float("-inf"), 0.0, value * to_products[:, None] * factor[None, :])
        tl.store(slopes_ptr + i * (BLOCK_R // PARTS) + at, value, mask=ok[:, None] & (r < reduced)[None, :])


def match_features(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: tuple[int, int],
    temperature: float, normalize: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """For each cell of ``trg`` [B,C,T] over the cells of ``src`` [B,C,S] (any strides): the five results of `match`."""
    batch, _, targets = trg.shape
    results = empty_results(trg, targets)
    if batch == 0 or targets == 0:
        return results
    sources = src.shape[2]
    tile = feature_tile("forward", trg, src)
    programs = batch * triton.cdiv(targets, tile.kept)
    wanted = configs.architecture(trg.device).product_programs
    splits, cells = configs.split(programs, wanted, sources, tile.reduced, tile.min_cells)
    partials = empty_partials(trg, splits, targets) if splits > 1 else (None, None)
    sides = Sides.of(trg, src, target_mask, source_mask, normalize, eps)
    with on_device(trg):
        match_features_fwd_kernel[(programs * splits,)](
            *sides.pointers, *results, *partials, *sides.sizes, *sides.strides, grid[1], grid[0], splits, cells,
            **scalars(temperature), **precision(trg), NARROW=sides.narrow(tile),
            **tile.constants, num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip
        if splits > 1:
            merge_partials(partials, results, grid, temperature)
    return results


def match_features_backward(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: tuple[int, int],
    temperature: float, normalize: str, eps: float,
    coords: Tensor, score: Tensor, entropy: Tensor, logsumexp: Tensor, index: Tensor,
    grad_coords: Tensor | None, grad_score: Tensor | None,
    grad_entropy: Tensor | None, grad_logsumexp: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients by ``src`` and ``trg``, contiguous, in their dtype. The results are those of `match_features`; their
    gradients may have any strides, or be None."""
    grads = (grad_coords, grad_score, grad_entropy, grad_logsumexp)
    used = [g for g in grads if g is not None]
    if not used:
        return tuple(torch.zeros(f.shape, dtype=f.dtype, device=f.device) for f in (src, trg))  # type: ignore
    tile = feature_tile("slopes", trg, src)
    sides = Sides.of(trg, src, target_mask, source_mask, normalize, eps)
    saved = contiguous(coords, score, entropy, logsumexp, index)
    gain = None
    if trg.dtype == torch.float16:
        gain = half_gain(sides, temperature, torch.cat([g.flatten() for g in used]))

    def slopes(block: Block) -> None:
        match_features_slopes_kernel[(block.programs(tile),)](
            *sides.pointers, *saved, *grads, gain, block.slopes, *gradient_strides(*grads),
            *sides.sizes, *sides.strides, *block.arguments, grid[1], grid[0],
            **scalars(temperature), **precision(trg), NARROW=sides.narrow(tile),
            **tile.constants, num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip

    grad_trg, grad_src = gradient(sides, tile, slopes, gain)
    return grad_src, grad_trg
