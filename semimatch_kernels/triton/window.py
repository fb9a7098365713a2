"""`soft_argmax` with a window on Triton: the best cells first, then the soft-argmax of the windowed scores round them.

Two reads of the correlation ("exclude": one, and the squares). The gradient takes the statistics of the windowed scores
again, because only their coordinates are saved, then reads and writes once.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .best_cell import best_cells
from .gradient import load_vector
from .launch import (
    contiguous,
    empty_gradient,
    empty_partials,
    empty_results,
    kernel_dtype,
    merge_partials,
    on_device,
    options,
    reads_source_fast,
    scalars,
    source_is_fast,
)
from .online_softmax import (
    LOWEST_LOG2,
    cell_stride,
    cell_xy,
    empty_state,
    finish,
    log2_factor,
    merge,
    merge_two,
    next_xy,
    origin,
    store_partial,
)


@triton.jit
def window_weight(x, y, centre_x, centre_y, width, GAUSSIAN: tl.constexpr):
    """Weight of the cells at x, y round the centre, all in the whole numbers of `cell_xy`: half cells. See `scaled`."""
    dx = x - centre_x
    dy = y - centre_y
    if GAUSSIAN:
        weight = tl.exp2(-(dx * dx + dy * dy) * width)
    else:
        weight = tl.where((tl.abs(dx) <= width) & (tl.abs(dy) <= width), 1.0, 0.0).to(dx.dtype)
    return weight


@triton.jit
def load_centre(index_ptr, at, ok, width, height, AXIS: tl.constexpr, ACC: tl.constexpr):
    """Place of the best cell of the kept cells at `at` [N], along a tile."""
    index = tl.load(index_ptr + at, mask=ok, other=0).to(tl.int32)
    x, y = cell_xy(index, width, height, ACC)
    return tl.expand_dims(x, AXIS), tl.expand_dims(y, AXIS)


@triton.jit
def windowed(c, weight):
    """Scores times the weights of the window; an excluded one stays so."""
    return tl.where(c == float("-inf"), float("-inf"), c * weight)


@triton.jit(do_not_specialize=["width", "height", "splits"])
def window_fwd_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    index_ptr,  # best cells [B, kept]
    # Of the windowed scores: results of `match` [B, kept(, 2)].
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr,
    partial_ptr, partial_index_ptr,  # None, or states [B, splits, 5, kept], [B, splits, kept] instead of results
    reduced, kept, width, height, stride_b, stride_r, stride_k, splits, cells_per_program,
    window, temperature, scale,
    GAUSSIAN: tl.constexpr, ACC: tl.constexpr, REDUCED_FAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`match_one.match_fwd_kernel` of the scores times the weights of a window; the entropy is not summed."""
    AXIS: tl.constexpr = 1 if REDUCED_FAST else 0  # of the reduced side in a tile
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    window = tl.full([], window, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    ok = cell < kept
    centre_x, centre_y = load_centre(index_ptr, batch * kept + cell, ok, width, height, AXIS, ACC)
    k = tl.expand_dims(cell, AXIS)
    r = tl.expand_dims(start + tl.arange(0, BLOCK_R), 1 - AXIS)
    pointer = corr_ptr + batch * stride_b + r.to(tl.int64) * stride_r + k.to(tl.int64) * stride_k  # a tile
    x, y = cell_xy(r, width, height, ACC)
    xy_stride = cell_stride(BLOCK_R, width, ACC)
    if REDUCED_FAST:
        state = empty_state(BLOCK_K, BLOCK_R, ACC)
    else:
        state = empty_state(BLOCK_R, BLOCK_K, ACC)
    best, total, drift, sum_x, sum_y, index = state
    for _ in range(start, end, BLOCK_R * UNROLL):
        tiles = ()
        top = best
        ahead_x = x
        ahead_y = y
        for _u in tl.static_range(UNROLL):
            c = tl.load(pointer, mask=(r < end) & (k < kept), other=float("-inf")).to(ACC)
            c = windowed(c, window_weight(ahead_x, ahead_y, centre_x, centre_y, window, GAUSSIAN))
            better = c > top  # never for NaN
            top = tl.where(better, c, top)
            index = tl.where(better, r, index)
            tiles += (c,)
            ahead_x, ahead_y = next_xy(ahead_x, ahead_y, xy_stride)
            pointer += tl.full([], BLOCK_R, tl.int64) * stride_r
            r += BLOCK_R
        f = tl.exp2(log2_factor(best, top, scale))
        total *= f
        sum_x *= f
        sum_y *= f
        zero = origin(top)
        for u in tl.static_range(UNROLL):
            e = tl.exp2((tiles[u] - zero) * scale)
            total += e
            sum_x += e * x
            sum_y += e * y
            x, y = next_xy(x, y, xy_stride)
        best = top
    state = merge((best, total, drift, sum_x, sum_y, index), scale, AXIS)  # [BLOCK_K]
    if partial_ptr is None:
        finish(
            state, coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr,
            batch * kept + cell, ok, width, height, temperature,
        )  # fmt: skip
    else:
        store_partial(state, partial_ptr, partial_index_ptr, batch * splits + split, kept, cell, ok)


@triton.jit(do_not_specialize=["width", "height", "radius_x", "radius_y"])
def square_fwd_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    index_ptr,  # best cells [B, kept]
    # Of the scores in the squares: results of `match` [B, kept(, 2)].
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr,
    kept, width, height, radius_x, radius_y, stride_b, stride_r, stride_k, temperature, scale,
    ACC: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over the squares round their best cells; nothing else is
    read. The last dimension of tiles lies along the kept cells."""
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    batch = (program // blocks).to(tl.int64)
    scale = tl.full([], scale, ACC)
    cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    ok = cell < kept
    centre = tl.load(index_ptr + batch * kept + cell, mask=ok, other=0).to(tl.int32)
    row = centre // width
    left = tl.maximum(centre - row * width - radius_x, 0)[None, :]
    right = tl.minimum(centre - row * width + radius_x, width - 1)[None, :]
    top = tl.maximum(row - radius_y, 0)[None, :]
    bottom = tl.minimum(row + radius_y, height - 1)[None, :]
    # Of a square cut off by the border the cells are counted on beyond it, and not read.
    columns = tl.minimum(2 * radius_x + 1, width)
    cells = columns * tl.minimum(2 * radius_y + 1, height)
    corr_ptr += batch * stride_b + cell.to(tl.int64)[None, :] * stride_k
    state = empty_state(BLOCK_R, BLOCK_K, ACC)
    for first in range(0, cells, BLOCK_R):
        i = first + tl.arange(0, BLOCK_R)[:, None]  # [BLOCK_R, 1]
        down = i // columns
        r_row = top + down  # [BLOCK_R, BLOCK_K]
        r_column = left + (i - down * columns)
        there = (i < cells) & (r_row <= bottom) & (r_column <= right) & ok[None, :]
        r = r_row * width + r_column
        c = tl.load(corr_ptr + r.to(tl.int64) * stride_r, mask=there, other=float("-inf")).to(ACC)
        x, y = cell_xy(r, width, height, ACC)
        # A state of one entry; c - c hands on NaN, and makes one of an infinity.
        total = tl.where(c == float("-inf"), 0.0, 1.0 + (c - c))
        state = merge_two(state, (c, total, tl.zeros(c.shape, ACC), total * x, total * y, r), scale)
    finish(
        merge(state, scale, 0), coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, window_index_ptr,
        batch * kept + cell, ok, width, height, temperature,
    )  # fmt: skip


@triton.jit(do_not_specialize=["width", "height", "coords_b", "coords_k", "coords_xy"])
def window_bwd_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    index_ptr, coords_ptr,  # saved: best cells [B, kept], coords [B, kept, 2]
    score_ptr, window_index_ptr,  # of the windowed scores: probability and cell of the best, [B, kept]
    grad_coords_ptr,  # [B, kept, 2] in any strides
    grad_corr_ptr,  # [B, reduced, kept], contiguous in corr's order of the two sides
    coords_b, coords_k, coords_xy, reduced, kept, width, height,
    stride_b, stride_r, stride_k, grad_stride_r, grad_stride_k, cells_per_program, window, temperature, scale,
    GAUSSIAN: tl.constexpr, EXCLUDE: tl.constexpr, ACC: tl.constexpr, REDUCED_FAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over one range of the reduced side; one read (EXCLUDE: of the
    squares alone), one write: weight * p / temperature * (grad . (position - coords))."""
    AXIS: tl.constexpr = 1 if REDUCED_FAST else 0  # of the reduced side in a tile
    blocks = tl.cdiv(kept, BLOCK_K)
    splits = tl.cdiv(reduced, cells_per_program)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    window = tl.full([], window, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    cell_ok = cell < kept
    at = batch * kept + cell
    corr_ptr += batch * stride_b
    centre_x, centre_y = load_centre(index_ptr, at, cell_ok, width, height, AXIS, ACC)
    best_index = tl.load(window_index_ptr + at, mask=cell_ok, other=0)
    best_ptr = corr_ptr + best_index * stride_r + cell.to(tl.int64) * stride_k
    best = tl.expand_dims(tl.load(best_ptr, mask=cell_ok, other=float("-inf")).to(ACC), AXIS)
    if not EXCLUDE:  # there the best cell of all is in the middle of the square
        best_x, best_y = cell_xy(tl.expand_dims(best_index.to(tl.int32), AXIS), width, height, ACC)
        best = windowed(best, window_weight(best_x, best_y, centre_x, centre_y, window, GAUSSIAN))
    best = origin(best)
    x_scale = tl.maximum(width - 1, 1).to(ACC)
    y_scale = tl.maximum(height - 1, 1).to(ACC)
    grad_at = batch * coords_b + cell.to(tl.int64) * coords_k
    gx = load_vector(grad_coords_ptr, grad_at, cell_ok, ACC)
    gy = load_vector(grad_coords_ptr, grad_at + coords_xy, cell_ok, ACC)
    x = tl.load(coords_ptr + 2 * at, mask=cell_ok, other=0.0)
    y = tl.load(coords_ptr + 2 * at + 1, mask=cell_ok, other=0.0)
    constant = tl.expand_dims(gx * x + gy * y, AXIS)
    gx = tl.expand_dims(gx / x_scale, AXIS)
    gy = tl.expand_dims(gy / y_scale, AXIS)
    score = tl.load(score_ptr + at, mask=cell_ok, other=0.0) / tl.full([], temperature, ACC)
    score = tl.expand_dims(score, AXIS)
    k = tl.expand_dims(cell, AXIS)
    r = tl.expand_dims(start + tl.arange(0, BLOCK_R), 1 - AXIS)
    pointer = corr_ptr + r.to(tl.int64) * stride_r + k.to(tl.int64) * stride_k  # a tile
    grad_pointer = grad_corr_ptr + batch * reduced * kept
    grad_pointer += r.to(tl.int64) * grad_stride_r + k.to(tl.int64) * grad_stride_k  # a tile
    x, y = cell_xy(r, width, height, ACC)
    xy_stride = cell_stride(BLOCK_R, width, ACC)
    for _ in range(start, end, BLOCK_R):
        ok = (r < end) & (k < kept)
        weight = window_weight(x, y, centre_x, centre_y, window, GAUSSIAN)  # a tile
        if EXCLUDE:
            c = tl.load(pointer, mask=ok & (weight != 0), other=float("-inf")).to(ACC)
        else:
            c = tl.load(pointer, mask=ok, other=float("-inf")).to(ACC)
            c = windowed(c, weight)
        # An excluded entry has e = 0, and gets 0; or NaN, as all of a column whose results are NaN.
        e = tl.exp2(tl.where(c == float("-inf"), LOWEST_LOG2, (c - best) * scale))
        tl.store(grad_pointer, weight * (e * score) * (gx * x + gy * y - constant), mask=ok)
        x, y = next_xy(x, y, xy_stride)
        r += BLOCK_R
        pointer += tl.full([], BLOCK_R, tl.int64) * stride_r
        grad_pointer += tl.full([], BLOCK_R, tl.int64) * grad_stride_r


def scaled(window: str, width: float) -> dict[str, float | bool]:
    """The window as `window_weight` takes it: half a square's side, or the factor of the exponent, in half cells."""
    if window in ("zero", "exclude"):
        return {"window": 2.0 * width, "GAUSSIAN": False}
    if window == "none":
        return {"window": 0.0, "GAUSSIAN": True}
    # Finite, as its product with a distance of 0 has to be 0.
    return {"window": min(math.log2(math.e) / 8 / max(width, 1e-30) ** 2, 1e30), "GAUSSIAN": True}


def _windowed_match(
    corr: Tensor, grid: tuple[int, int], temperature: float, window: str, width: float, index: Tensor
) -> tuple[Tensor, ...]:
    """The five results of `match` for the windowed scores; the entropy is not one of them."""
    batch, sources, targets = corr.shape
    results = empty_results(corr, targets)
    arch, dtype = configs.architecture(corr.device), kernel_dtype(corr)
    with on_device(corr):
        if window == "exclude":
            radii = (min(int(width), side - 1) for side in (grid[1], grid[0]))
            merge_tile = arch.merge
            square_fwd_kernel[(batch * triton.cdiv(targets, merge_tile.kept),)](
                corr, index, *results, targets, grid[1], grid[0], *radii, *corr.stride(), **scalars(temperature),
                ACC=dtype, BLOCK_R=merge_tile.reduced, BLOCK_K=merge_tile.kept, **options(merge_tile.num_warps),
            )  # fmt: skip
            return results
        reduced_fast = reads_source_fast(corr)
        tile = configs.tile(arch.forward, reduced_fast, corr.element_size(), sources, targets)
        programs = batch * triton.cdiv(targets, tile.kept)
        splits, cells = configs.split(programs, arch.programs, sources, tile.step, tile.min_cells)
        partials = empty_partials(corr, splits, targets) if splits > 1 else (None, None)
        window_fwd_kernel[(programs * splits,)](
            corr, index, *results, *partials, sources, targets, grid[1], grid[0], *corr.stride(), splits, cells,
            **scaled(window, width), **scalars(temperature), ACC=dtype, REDUCED_FAST=reduced_fast,
            BLOCK_R=tile.reduced, BLOCK_K=tile.kept, UNROLL=tile.unroll, **options(tile.num_warps),
        )  # fmt: skip
        if splits > 1:
            merge_partials(partials, results, grid, temperature)
    return results


def soft_argmax(
    corr: Tensor, grid: tuple[int, int], temperature: float, window: str, width: float
) -> tuple[Tensor, Tensor]:
    """Coords [B,T,2] of the windowed scores ``corr`` [B,S,T] (any strides), and the best cell [B,T] in the middle."""
    if corr.numel() == 0:
        coords, *_, index = empty_results(corr, corr.shape[2])
        return coords, index
    index = best_cells(corr)
    return _windowed_match(corr, grid, temperature, window, width, index)[0], index


def soft_argmax_backward(
    corr: Tensor, grid: tuple[int, int], temperature: float, window: str, width: float,
    coords: Tensor, index: Tensor, grad_coords: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient by ``corr`` [B,S,T], in its dtype and its order of the two sides; ``grad_coords`` in any strides."""
    batch, sources, targets = corr.shape
    grad = empty_gradient(corr)
    if grad.numel() == 0:
        return grad.to(corr.dtype)
    coords, index = contiguous(coords, index)
    _, score, _, _, window_index = _windowed_match(corr, grid, temperature, window, width, index)
    arch = configs.architecture(corr.device)
    reduced_fast = source_is_fast(corr)
    tile = configs.tile(arch.backward, reduced_fast, corr.element_size(), sources, targets)
    programs = batch * triton.cdiv(targets, tile.kept)
    splits, cells = configs.split(programs, arch.programs, sources, tile.step, tile.min_cells)
    with on_device(corr):
        window_bwd_kernel[(programs * splits,)](
            corr, index, coords, score, window_index, grad_coords, grad, *grad_coords.stride(),
            sources, targets, grid[1], grid[0], *corr.stride(), *grad.stride()[1:], cells,
            **scaled(window, width), **scalars(temperature), EXCLUDE=window == "exclude",
            ACC=kernel_dtype(corr), REDUCED_FAST=reduced_fast,
            BLOCK_R=tile.reduced, BLOCK_K=tile.kept, **options(tile.num_warps),
        )  # fmt: skip
    return grad.to(corr.dtype)
