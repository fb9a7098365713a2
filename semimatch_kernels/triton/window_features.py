"""`soft_argmax` with a window from features, on Triton: the products of features twice, none of them stored.

The first pass finds the best cells, the second takes the windowed scores round them; with "exclude" it forms no more
tiles than the squares of its kept cells reach. The gradient takes the second pass again, then goes the way of
`match_features`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .features import Block, Sides, feature_tile, gradient, half_gain, precision
from .gradient import load_side_of_features, slope, snapped
from .launch import contiguous, empty_partials, empty_results, merge_partials, on_device, options, scalars
from .mutual import better, largest, merge_maxima_kernel
from .online_softmax import cell_xy, finish, store_partial
from .tiles import absorb_tile, column_parts, empty_states, entries, factors, feature_products, offsets, tile_xy
from .window import scaled, window_weight, windowed


@triton.jit(do_not_specialize=["splits"])
def best_features_kernel(
    kept_ptr, reduced_ptr,  # features [B, C, kept] and [B, C, reduced] in any strides
    kept_factor_ptr, reduced_factor_ptr,  # [B, kept], [B, reduced] of `tiles.factors`; each may be None
    top_ptr, part_index_ptr,  # [B, splits, kept], int32
    kept, reduced, channels, kept_stride_b, kept_stride_c, kept_stride_n,
    reduced_stride_b, reduced_stride_c, reduced_stride_n, splits, cells_per_program,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Largest entry and its cell, as `best_cell.best_cell_kernel`; programs as `match_features_fwd_kernel`."""
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    first_kept = (program % blocks) * BLOCK_K
    k = first_kept + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    kept_factor = factors(kept_factor_ptr, batch * kept, k, kept, ACC)
    top = tl.full([BLOCK_K], float("-inf"), ACC)
    index = tl.zeros([BLOCK_K], tl.int32) + start
    for first in range(start, end, BLOCK_R):
        acc = feature_products(
            kept_ptr, reduced_ptr, batch, first_kept, first, kept, reduced, channels,
            (kept_stride_b, kept_stride_c, kept_stride_n), (reduced_stride_b, reduced_stride_c, reduced_stride_n),
            ACC, DOT, PRECISION, NARROW, BLOCK_K, BLOCK_R, BLOCK_C,
        )  # fmt: skip
        parts = column_parts(acc, PARTS)
        for i in tl.static_range(PARTS):
            r = first + i * (BLOCK_R // PARTS) + tl.arange(0, BLOCK_R // PARTS)
            c = entries(parts[i], kept_factor, factors(reduced_factor_ptr, batch * reduced, r, reduced, ACC))
            more, at = largest(c, r[None, :], (k >= 0)[:, None] & (r < reduced)[None, :], 1)
            take = better(top, more, index, at)
            top = tl.where(take, more, top)
            index = tl.where(take, at, index)
    there = (kept_factor < 0) == 0
    at = (batch * splits + split) * kept + k
    tl.store(top_ptr + at, tl.where(there, top, float("-inf")), k < kept)
    tl.store(part_index_ptr + at, tl.where(there, index, start), k < kept)


@triton.jit(do_not_specialize=["width", "height", "splits", "radius"])
def window_features_fwd_kernel(
    kept_ptr, reduced_ptr, kept_factor_ptr, reduced_factor_ptr,  # as above
    index_ptr,  # best cells [B, kept]
    # Of the windowed scores: results of `match` [B, kept(, 2)].
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr,
    partial_ptr, partial_index_ptr,  # None, or states [B, splits, 5, kept], [B, splits, kept] instead of results
    kept, reduced, channels, kept_stride_b, kept_stride_c, kept_stride_n,
    reduced_stride_b, reduced_stride_c, reduced_stride_n,
    width, height, splits, cells_per_program, radius, window, temperature, scale,
    GAUSSIAN: tl.constexpr, EXCLUDE: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """`match_features.match_features_fwd_kernel` of the scores in a window."""
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    window = tl.full([], window, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    first_kept = (program % blocks) * BLOCK_K
    k = first_kept + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    kept_factor = factors(kept_factor_ptr, batch * kept, k, kept, ACC)
    there = (kept_factor < 0) == 0
    centre = tl.load(index_ptr + batch * kept + k, mask=k < kept, other=0).to(tl.int32)
    centre_x, centre_y = cell_xy(centre, width, height, ACC)
    if EXCLUDE:  # the rows of the grid from the uppermost square to the lowest
        row = centre // width
        lowest = tl.max(tl.where(there, row, 0), 0)
        uppermost = tl.min(tl.where(there, row, height), 0)
        start = tl.maximum(start, (uppermost - radius) * width // BLOCK_R * BLOCK_R)
        end = tl.minimum(end, (lowest + radius + 1) * width)
    state = empty_states(BLOCK_K, ACC)
    for first in range(start, end, BLOCK_R):
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
            c = in_window(c, x, y, centre_x, centre_y, window, GAUSSIAN, EXCLUDE)[0]
            best, total, _, sum_x, sum_y, index = absorb_tile(state, c, r, x, y, scale)
            state = (best, total, tl.zeros([BLOCK_K], ACC), sum_x, sum_y, index)  # no entropy: fewer registers
    # A kept cell that is not there has seen nothing, whatever its features are.
    best = tl.where(there, state[0], float("-inf"))
    total = tl.where(there, state[1], 0.0)
    x = tl.where(there, state[3], 0.0)
    y = tl.where(there, state[4], 0.0)
    state = (best, total, state[2], x, y, tl.where(there, state[5], 0))
    if partial_ptr is None:
        finish(
            state, coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr,
            batch * kept + k, k < kept, width, height, temperature,
        )  # fmt: skip
    else:
        store_partial(state, partial_ptr, partial_index_ptr, batch * splits + split, kept, k, k < kept)


@triton.jit
def in_window(c, x, y, centre_x, centre_y, window, GAUSSIAN: tl.constexpr, EXCLUDE: tl.constexpr):
    """Windowed scores and weights [M, N] of entries c; x, y [N] of the columns, centres [M] of the rows."""
    weight = window_weight(x[None, :], y[None, :], centre_x[:, None], centre_y[:, None], window, GAUSSIAN)
    if EXCLUDE:
        c = tl.where(weight == 0, float("-inf"), c)
    else:
        c = windowed(c, weight)
    return c, weight


@triton.jit(do_not_specialize=["width", "height", "first_batch", "first_kept", "coords_b", "coords_k", "coords_xy"])
def window_features_slopes_kernel(
    kept_ptr, reduced_ptr, kept_factor_ptr, reduced_factor_ptr,  # as above
    index_ptr,  # best cells [B, kept]
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr,  # of the windowed scores, as above
    grad_coords_ptr,  # [B, kept, 2] in any strides
    gain_ptr,  # one number, or None
    slopes_ptr,  # [batches of this launch, kept cells of this launch, reduced]
    coords_b, coords_k, coords_xy,
    kept, reduced, channels, kept_stride_b, kept_stride_c, kept_stride_n,
    reduced_stride_b, reduced_stride_c, reduced_stride_n,
    here, first_batch, first_kept, slopes_stride_b, slopes_stride_k,
    width, height, window, temperature, scale,
    GAUSSIAN: tl.constexpr, EXCLUDE: tl.constexpr,
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
    window = tl.full([], window, ACC)
    k = first_kept + local_k
    ok = local_k < here
    acc = feature_products(
        kept_ptr, reduced_ptr, batch, first_kept + local_first, first, kept, reduced, channels,
        (kept_stride_b, kept_stride_c, kept_stride_n), (reduced_stride_b, reduced_stride_c, reduced_stride_n),
        ACC, DOT, PRECISION, NARROW, BLOCK_K, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    kept_factor = factors(kept_factor_ptr, batch * kept, k, kept, ACC)
    side = load_side_of_features(
        coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr, (grad_coords_ptr, None, None, None),
        (coords_b, coords_k, coords_xy, 0, 0, 0, 0, 0, 0), batch, k, kept, width, height, temperature, ACC,
    )  # fmt: skip
    centre = tl.load(index_ptr + batch * kept + k, mask=k < kept, other=0).to(tl.int32)
    centre_x, centre_y = cell_xy(centre, width, height, ACC)
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
        x, y = tile_xy(first + i * (BLOCK_R // PARTS), width, height, BLOCK_R // PARTS, ACC)
        c, weight = in_window(c, x, y, centre_x, centre_y, window, GAUSSIAN, EXCLUDE)
        c = snapped(c, side)
        value = weight * slope(side, 1, c, r[None, :], x[None, :], y[None, :], scale)
        # Not a product with 0: the factor of an excluded entry may be infinite, or NaN that of the other side.
        value = tl.where(c == float("-inf"), 0.0, value * to_products[:, None] * factor[None, :])
        tl.store(slopes_ptr + i * (BLOCK_R // PARTS) + at, value, mask=ok[:, None] & (r < reduced)[None, :])


def _split(tile: configs.FeatureTile, trg: Tensor, sources: int) -> tuple[int, int, int]:
    """Programs of a range of the source side, ranges, and cells of a range."""
    programs = trg.shape[0] * triton.cdiv(trg.shape[2], tile.kept)
    wanted = configs.architecture(trg.device).product_programs
    return programs, *configs.split(programs, wanted, sources, tile.reduced, tile.min_cells)


def _best_cells(sides: Sides) -> Tensor:
    """The best cell [B,T] of the reduced side for each cell of the kept one."""
    trg, sources = sides.kept, sides.reduced.shape[2]
    batch, _, targets = trg.shape
    tile = feature_tile("forward", trg, sides.reduced)
    programs, splits, cells = _split(tile, trg, sources)
    tops = trg.new_empty((batch, splits, targets), dtype=accumulate_dtype(trg.dtype))
    parts = tops.new_empty(tops.shape, dtype=torch.int32)
    index = parts.new_empty((batch, targets), dtype=torch.int64)
    how, merge = precision(trg), configs.architecture(trg.device).merge
    with on_device(trg):
        best_features_kernel[(programs * splits,)](
            *sides.pointers, tops, parts, *sides.sizes, *sides.strides, splits, cells,
            **how, NARROW=sides.narrow(tile), **tile.constants, num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip
        merge_maxima_kernel[(batch * triton.cdiv(targets, merge.kept),)](
            tops, parts, tops.new_empty((batch, targets)), index, splits, targets,
            ACC=how["ACC"], BLOCK=merge.kept, **options(merge.num_warps),
        )  # fmt: skip
    return index


def _windowed_match(
    sides: Sides, grid: tuple[int, int], temperature: float, window: str, width: float, index: Tensor
) -> tuple[Tensor, ...]:
    """The five results of `match` for the windowed scores."""
    trg, sources = sides.kept, sides.reduced.shape[2]
    results = empty_results(trg, trg.shape[2])
    tile = feature_tile("windowed", trg, sides.reduced)
    programs, splits, cells = _split(tile, trg, sources)
    partials = empty_partials(trg, splits, trg.shape[2]) if splits > 1 else (None, None)
    with on_device(trg):
        window_features_fwd_kernel[(programs * splits,)](
            *sides.pointers, index, *results, *partials, *sides.sizes, *sides.strides, grid[1], grid[0], splits, cells,
            min(int(width), grid[0]), **scaled(window, width), EXCLUDE=window == "exclude",
            **scalars(temperature), **precision(trg), NARROW=sides.narrow(tile),
            **tile.constants, num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip
        if splits > 1:
            merge_partials(partials, results, grid, temperature)
    return results


def soft_argmax_features(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: tuple[int, int],
    temperature: float, window: str, width: float, normalize: str, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`window.soft_argmax` of the correlation of ``src`` [B,C,S] and ``trg`` [B,C,T] (any strides)."""
    if trg.shape[0] == 0 or trg.shape[2] == 0:
        coords, *_, index = empty_results(trg, trg.shape[2])
        return coords, index
    sides = Sides.of(trg, src, target_mask, source_mask, normalize, eps)
    index = _best_cells(sides)
    return _windowed_match(sides, grid, temperature, window, width, index)[0], index


def soft_argmax_features_backward(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: tuple[int, int],
    temperature: float, window: str, width: float, normalize: str, eps: float,
    coords: Tensor, index: Tensor, grad_coords: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients by ``src`` and ``trg``, contiguous, in their dtype; ``grad_coords`` in any strides."""
    tile = feature_tile("slopes", trg, src)
    sides = Sides.of(trg, src, target_mask, source_mask, normalize, eps)
    gain, seen = None, ()
    if trg.numel():
        coords, index = contiguous(coords, index)
        seen = (coords, *_windowed_match(sides, grid, temperature, window, width, index)[1:])
        if trg.dtype == torch.float16:
            gain = half_gain(sides, temperature, grad_coords)

    def slopes(block: Block) -> None:
        window_features_slopes_kernel[(block.programs(tile),)](
            *sides.pointers, index, *seen, grad_coords, gain, block.slopes, *grad_coords.stride(),
            *sides.sizes, *sides.strides, *block.arguments, grid[1], grid[0],
            **scaled(window, width), EXCLUDE=window == "exclude",
            **scalars(temperature), **precision(trg), NARROW=sides.narrow(tile),
            **tile.constants, num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip

    grad_trg, grad_src = gradient(sides, tile, slopes, gain)
    return grad_src, grad_trg
