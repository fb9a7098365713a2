"""Gradient of `correlation` on Triton: three launches, whatever the number of levels.

With f the factors of `norms`, c the correlation before ReLU and power and g' the gradient by it, the gradient by the
source features x_s is sum_t slope_st x_t + along_s x_s, with slope_st = g' f_s f_t and along_s = (2 f'/f)_s sum_t g' c:
the second term is what the length of x_s does. The first launch forms c again, writes the slopes, and sums g' c over
the rows and columns of its tile; one launch a side multiplies the slopes by the features of the other and adds the
second term. So no gradient of a normalised feature is ever stored, and read again to be projected: that would move five
times the features, while forming c reads them once (6 S T C flops in all, also without ReLU and power). Without
normalisation, ReLU and power the slopes are the gradient that came in, and the first launch falls away.

Slopes are stored in the dtype that the products are defined in. Those of float16 would leave its range (a mean over
many cells, short or long features): they are kept in float32 and multiplied as tf32, which has the digits of float16,
at half its rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .correlation import Group, raised, scaling, tile_products
from .features import aligned, narrow_offsets, precision
from .launch import INTERPRETED, on_device, options
from .levels import channels_of, groups, lines_of, pick, place, side_of
from .tiles import column_parts, offsets, products


@triton.jit
def correlation_slopes_kernel(
    src, trg, channels, squares_ptr, batches, sources, targets, eps,  # as `correlation_kernel`
    grad_ptr,  # [B, levels, S, T] in any strides
    grad_stride_b, grad_stride_level, grad_stride_s, grad_stride_t,
    slopes_ptr,  # [B, levels, S, T] contiguous
    source_along_ptr, target_along_ptr,  # [B, levels, blocks of the other side, S or T], or None
    NORMALIZE: tl.constexpr, SCALE: tl.constexpr, RELU: tl.constexpr, POWER: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: a tile of the gradient by the plain products, and its part of the sums along rows and columns."""
    source_blocks, target_blocks = tl.cdiv(sources, BLOCK_S), tl.cdiv(targets, BLOCK_T)
    level, batch, block = place(tl.program_id(0), source_blocks * target_blocks, batches)
    source_block, target_block = block // target_blocks, block % target_blocks
    first_source, first_target = source_block * BLOCK_S, target_block * BLOCK_T
    acc, rows, columns = tile_products(
        src, trg, channels, squares_ptr, level, batch, first_source, first_target, batches, sources, targets, eps,
        NORMALIZE, SCALE, ACC, DOT, PRECISION, NARROW, BLOCK_S, BLOCK_T, BLOCK_C,
    )  # fmt: skip
    grad_ptr += batch * grad_stride_b + level.to(tl.int64) * grad_stride_level
    grad_ptr += first_source.to(tl.int64) * grad_stride_s + first_target.to(tl.int64) * grad_stride_t
    matrix = batch * len(channels) + level
    slopes_ptr += (matrix * sources + first_source) * targets + first_target
    WIDTH: tl.constexpr = BLOCK_T // PARTS
    grad_at = offsets(BLOCK_S, WIDTH, grad_stride_s, grad_stride_t, NARROW)
    at = offsets(BLOCK_S, WIDTH, targets, 1, NARROW)
    s_ok = tl.arange(0, BLOCK_S) < sources - first_source
    source_along = tl.zeros([BLOCK_S], ACC)
    parts = column_parts(acc, PARTS)
    factors, t_slopes = column_parts(columns[0], PARTS), column_parts(columns[1], PARTS)
    for i in tl.static_range(PARTS):
        t_ok = tl.arange(0, WIDTH) < targets - first_target - i * WIDTH
        ok = s_ok[:, None] & t_ok[None, :]
        step = tl.full([], i * WIDTH, tl.int64)
        g = tl.load(grad_ptr + step * grad_stride_t + grad_at, mask=ok, other=0.0).to(ACC)
        c = parts[i] * rows[0] * factors[i]
        if POWER > 1:
            g *= POWER * raised(c, POWER - 1)
        if RELU:
            g = tl.where(c <= 0, 0.0, g)  # NaN passes
        tl.store(slopes_ptr + i * WIDTH + at, g * rows[0] * factors[i], mask=ok)
        if source_along_ptr is not None:
            length = tl.where(ok, g * c, 0.0)  # not NaN where nothing is
            source_along += tl.sum(length, 1)
            target_along = tl.sum(length, 0)[None, :] * t_slopes[i]
            pointer = target_along_ptr + (matrix * source_blocks + source_block) * targets + first_target + i * WIDTH
            tl.store(pointer + tl.arange(0, WIDTH)[None, :], target_along, mask=t_ok[None, :])
    if source_along_ptr is not None:
        pointer = source_along_ptr + (matrix * target_blocks + target_block) * sources + first_source
        tl.store(pointer + tl.arange(0, BLOCK_S)[:, None], source_along[:, None] * rows[1], mask=s_ok[:, None])


@triton.jit
def correlation_product_kernel(
    features, own,  # of the other side, [B, C_l, terms], and of this one, [B, C_l, cells]; see `levels.side_of`
    grads,  # pointers, each [B, C_l, cells] contiguous
    channels,  # C_l
    slopes_ptr,  # [B, levels, terms, cells] in any strides
    slopes_stride_b, slopes_stride_level, slopes_stride_term, slopes_stride_cell,
    along_ptr,  # [B, levels, blocks, cells], or None
    batches, cells, terms, along_blocks,
    SCALE: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TERMS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: the gradient by BLOCK_C channels of BLOCK_N cells, of one level and batch entry."""
    blocks = tl.cdiv(cells, BLOCK_N)
    # Levels one after the other, each of as many programs as its channels need.
    program = tl.program_id(0)
    level = 0
    first = 0
    last = 0
    for i in tl.static_range(len(channels)):
        begin = last
        last += tl.cdiv(channels[i], BLOCK_C) * blocks * batches
        level = tl.where(program >= begin, i, level)
        first = tl.where(program >= begin, begin, first)
    program -= first
    # Neighbours share the slopes, and have all of the features between them.
    level_channels = tl.cast(pick(channels, level), tl.int32)
    channel_blocks = tl.cdiv(level_channels, BLOCK_C)
    first_channel = (program % channel_blocks) * BLOCK_C
    first_cell = ((program // channel_blocks) % blocks) * BLOCK_N
    batch = (program // (channel_blocks * blocks)).to(tl.int64)
    channel_ok = tl.arange(0, BLOCK_C) < level_channels - first_channel
    pointer, stride_c, stride_n = lines_of(features, level, batch, tl.cast(0, tl.int32))
    slopes_ptr += batch * slopes_stride_b + level.to(tl.int64) * slopes_stride_level
    acc = products(
        pointer + first_channel.to(tl.int64) * stride_c, slopes_ptr + first_cell.to(tl.int64) * slopes_stride_cell,
        None, channel_ok, tl.arange(0, BLOCK_N) < cells - first_cell, terms,
        stride_c, stride_n, slopes_stride_cell, slopes_stride_term,
        tl.zeros([BLOCK_C, BLOCK_N], ACC), DOT, PRECISION, NARROW, BLOCK_TERMS,
    )  # fmt: skip
    factor = scaling(level_channels, SCALE, ACC)
    own_ptr, own_stride_c, own_stride_n = lines_of(own, level, batch, first_cell)
    own_ptr += first_channel.to(tl.int64) * own_stride_c
    grad_ptr = pick(grads, level) + (batch * level_channels + first_channel) * cells + first_cell
    WIDTH: tl.constexpr = BLOCK_N // PARTS
    own_at = offsets(BLOCK_C, WIDTH, own_stride_c, own_stride_n, NARROW)
    at = offsets(BLOCK_C, WIDTH, cells, 1, NARROW)
    parts = column_parts(acc, PARTS)
    for i in tl.static_range(PARTS):
        cell = i * WIDTH + tl.arange(0, WIDTH)
        cell_ok = cell < cells - first_cell
        ok = channel_ok[:, None] & cell_ok[None, :]
        grad = parts[i] * factor
        if along_ptr is not None:
            line = along_ptr + (batch * len(channels) + level) * along_blocks * cells + first_cell
            along = tl.zeros([WIDTH], ACC)
            for _ in range(along_blocks):
                along += tl.load(line + cell, mask=cell_ok, other=0.0)
                line += cells
            step = tl.full([], i * WIDTH, tl.int64)
            grad += along[None, :] * tl.load(own_ptr + step * own_stride_n + own_at, mask=ok, other=0.0).to(ACC)
        tl.store(grad_ptr + i * WIDTH + at, grad, mask=ok)


def _slopes(group: Group, grad: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Slopes [B,L,S,T] of these levels in ``dtype``, and what the source and the target features get along themselves,
    [B,L,blocks,S] and [B,L,blocks,T], None without normalisation."""
    tile = group.tile("forward")
    slopes, along = torch.empty(grad.shape, dtype=dtype, device=grad.device), (None, None)
    if group.normalize != "none":
        batch, levels, sources, targets = grad.shape
        shapes = (triton.cdiv(targets, tile.reduced), sources), (triton.cdiv(sources, tile.kept), targets)
        wide = accumulate_dtype(torch.promote_types(group.src[0].dtype, grad.dtype))
        along = tuple(torch.empty((batch, levels, *shape), dtype=wide, device=grad.device) for shape in shapes)
    group.launch(correlation_slopes_kernel, tile, grad, grad, *grad.stride(), slopes, *along)
    return slopes, *along


def _multiply(
    features: Sequence[Tensor], own: Sequence[Tensor], slopes: Tensor, along: Tensor | None, scale: str, how: dict
) -> list[Tensor]:  # fmt: skip
    """Gradients by the levels of ``own`` [B,C_l,N], from ``slopes`` [B,L,terms,N] in any strides."""
    batch, _, terms, cells = slopes.shape
    read = [slopes[:, 0], slopes[0], *features, *own]
    size = "ieee, levels" if how["PRECISION"] == "ieee" and how["DOT"] == tl.float32 and not INTERPRETED else "odd"
    if size == "odd" and all(aligned(t) for t in read):
        size = "even"
    tile = configs.architecture(slopes.device).products[size, min(how["DOT"].primitive_bitwidth // 8, 4)]
    programs = sum(triton.cdiv(c, tile.channels) for c in channels_of(own)) * batch * triton.cdiv(cells, tile.cells)
    # As in `correlation`.
    dtype = torch.float32 if INTERPRETED and own[0].dtype == torch.bfloat16 else own[0].dtype
    grads = [torch.empty(f.shape, dtype=dtype, device=f.device) for f in own]
    correlation_product_kernel[(programs,)](
        side_of(features), side_of(own), tuple(grads), channels_of(own), slopes, *slopes.stride(), along,
        batch, cells, terms, 0 if along is None else along.shape[2],
        SCALE=scale, **how, NARROW=narrow_offsets(tile, *(t.stride() for t in read), (0, cells, 1)),
        **tile.constants, num_stages=tile.num_stages, **options(tile.num_warps),
    )  # fmt: skip
    return [g.to(f.dtype) for g, f in zip(grads, own, strict=True)]


def _stored(wide: torch.dtype) -> tuple[torch.dtype, dict]:
    """The dtype of slopes whose products are defined in ``wide``, and how they are multiplied."""
    if wide == torch.float16 and not INTERPRETED:
        return torch.float32, {**precision(torch.empty(0)), "PRECISION": "tf32"}
    dtype = accumulate_dtype(wide) if INTERPRETED else wide
    return dtype, precision(torch.empty(0, dtype=dtype))


def correlation_backward(
    src: Sequence[Tensor], trg: Sequence[Tensor], normalize: str, eps: float, scale: str, relu: bool, power: int,
    out_dtype: torch.dtype, grad: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Gradients by the levels of ``src`` and ``trg``, contiguous, in their dtype, given ``grad`` [B,L,S,T] in any
    strides."""
    if not grad.numel():
        return tuple([torch.zeros(f.shape, dtype=f.dtype, device=f.device) for f in side] for side in (src, trg))
    dtype, how = _stored(torch.promote_types(src[0].dtype, out_dtype))
    by_src, by_trg = [], []
    with on_device(grad):
        for part in groups(len(src)):
            slopes = grad[:, part]
            group = Group(src[part], trg[part], normalize, eps, scale, relu, power, out_dtype)
            source_along, target_along, left = None, None, scale
            if normalize != "none" or relu or power != 1:
                slopes, source_along, target_along = _slopes(group, slopes, dtype)
                left = "none"  # the slopes have it
            by_src += _multiply(group.trg, group.src, slopes.transpose(2, 3), source_along, left, how)
            by_trg += _multiply(group.src, group.trg, slopes, target_along, left, how)
    return by_src, by_trg
