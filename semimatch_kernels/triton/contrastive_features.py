"""`masked_contrastive_loss_features` on Triton: the loss over the tiles of a correlation that is never stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .contrastive import counted, goal_norms, merge, per_cell, reduced_loss, smoothing, upstream
from .features import Block, Sides, feature_tile, gradient, half_gain, precision
from .launch import options, scalars
from .loss import LOSS_FLOATS, absorb_columns, finish_loss, goal_weight, load_labels, load_slope, probability
from .online_softmax import cell_xy, divide
from .tiles import column_parts, entries, factors, feature_products, offsets, tile_xy


@triton.jit(do_not_specialize=["width", "height", "rx", "ry", "splits"])
def contrastive_features_fwd_kernel(
    kept_ptr, reduced_ptr,  # features [B, C, kept] and [B, C, reduced] in any strides
    kept_factor_ptr, reduced_factor_ptr,  # [B, kept], [B, reduced] of `tiles.factors`; each may be None
    labels_ptr, mask_ptr, weight_ptr,  # [B, kept]; the last two may be None
    loss_ptr, logsumexp_ptr,  # results [B, kept]
    partial_ptr,  # None, or states [B, splits, 4, kept] instead of results
    kept, reduced, channels, kept_stride_b, kept_stride_c, kept_stride_n,
    reduced_stride_b, reduced_stride_c, reduced_stride_n,
    width, height, rx, ry, splits, cells_per_program, sigma_scale, temperature, scale, SMOOTH: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over one of `splits` ranges of the reduced side."""
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    first_kept = (program % blocks) * BLOCK_K
    k = first_kept + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    ok = k < kept
    at = batch * kept + k
    label, keep, beyond = load_labels(labels_ptr, mask_ptr, at, ok, reduced)
    kept_factor = factors(kept_factor_ptr, batch * kept, k, kept, ACC)
    label_x, label_y = cell_xy(label, width, height, ACC)
    best = tl.full([BLOCK_K], float("-inf"), ACC)
    total = tl.zeros([BLOCK_K], ACC)
    weighted = tl.zeros([BLOCK_K], ACC)
    weights = tl.zeros([BLOCK_K], ACC)
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
            best, total = absorb_columns(best, total, c, scale, 1)
            if SMOOTH:
                x, y = tile_xy(first + i * (BLOCK_R // PARTS), width, height, BLOCK_R // PARTS, ACC)
                dx, dy = (x[None, :] - label_x[:, None]) * 0.5, (y[None, :] - label_y[:, None]) * 0.5
                weight = goal_weight(dx, dy, rx, ry, sigma_scale, ACC)
                weight = tl.where(c == float("-inf"), 0.0, weight)
                weights += tl.sum(weight, 1)
                weighted += tl.sum(tl.where(weight == 0, 0.0, weight * c), 1)  # 0 * inf must not be formed
                c = tl.where(c == float("-inf"), c, 0.0)  # a label on an excluded entry makes all of it -inf
            weighted += tl.sum(tl.where(r[None, :] == label[:, None], c, 0.0), 1)
    if not SMOOTH:
        weights += tl.where((label >= start) & (label < end), 1.0, 0.0).to(ACC)
    if partial_ptr is None:
        goal = divide(weighted, tl.where(weights == 0, 1.0, weights))
        finish_loss(best, total, goal, beyond, keep, loss_ptr, logsumexp_ptr, weight_ptr, at, ok, temperature)
    else:
        partial_ptr += (batch * splits + split) * LOSS_FLOATS * kept + k
        tl.store(partial_ptr, best, ok)
        tl.store(partial_ptr + kept, total, ok)
        tl.store(partial_ptr + 2 * kept, weighted, ok)
        tl.store(partial_ptr + 3 * kept, weights, ok)


@triton.jit(do_not_specialize=["width", "height", "rx", "ry", "grad_b", "grad_k", "first_batch", "first_kept"])
def contrastive_features_slopes_kernel(
    kept_ptr, reduced_ptr, kept_factor_ptr, reduced_factor_ptr,  # as above
    labels_ptr, weight_ptr, logsumexp_ptr,  # [B, kept]; the weight may be None
    count_ptr,  # one number, or None unless the loss is a mean
    loss_grad_ptr,  # [B, kept] in any strides
    norms_ptr,  # [B, kept] of `loss.goal_norms_kernel`, None unless SMOOTH
    gain_ptr,  # one number, or None
    slopes_ptr,  # [batches of this launch, kept cells of this launch, reduced]
    kept, reduced, channels, kept_stride_b, kept_stride_c, kept_stride_n,
    reduced_stride_b, reduced_stride_c, reduced_stride_n,
    here, first_batch, first_kept, slopes_stride_b, slopes_stride_k, grad_b, grad_k,
    width, height, rx, ry, sigma_scale, temperature, SMOOTH: tl.constexpr,
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
    k = first_kept + local_k
    ok = local_k < here
    acc = feature_products(
        kept_ptr, reduced_ptr, batch, first_kept + local_first, first, kept, reduced, channels,
        (kept_stride_b, kept_stride_c, kept_stride_n), (reduced_stride_b, reduced_stride_c, reduced_stride_n),
        ACC, DOT, PRECISION, NARROW, BLOCK_K, BLOCK_R, BLOCK_C,
    )  # fmt: skip
    kept_factor = factors(kept_factor_ptr, batch * kept, k, kept, ACC)
    label, _, logsumexp, slope = load_slope(
        labels_ptr, None, weight_ptr, logsumexp_ptr, count_ptr, loss_grad_ptr, grad_b, grad_k,
        batch, k, kept, reduced, temperature, ACC,
    )  # fmt: skip
    slope *= kept_factor
    if gain_ptr is not None:
        slope *= tl.load(gain_ptr)
    if SMOOTH:
        label_x, label_y = cell_xy(label, width, height, ACC)
        norm = tl.load(norms_ptr + batch * kept + k, mask=k < kept, other=1.0)
    slopes_ptr += local_batch * slopes_stride_b + local_first.to(tl.int64) * slopes_stride_k + first
    at = offsets(BLOCK_K, BLOCK_R // PARTS, slopes_stride_k, 1, NARROW)
    parts = column_parts(acc, PARTS)
    for i in tl.static_range(PARTS):
        r = first + i * (BLOCK_R // PARTS) + tl.arange(0, BLOCK_R // PARTS)
        factor = factors(reduced_factor_ptr, batch * reduced, r, reduced, ACC)
        p = probability(entries(parts[i], kept_factor, factor), logsumexp[:, None], temperature)
        if SMOOTH:
            x, y = tile_xy(first + i * (BLOCK_R // PARTS), width, height, BLOCK_R // PARTS, ACC)
            dx, dy = (x[None, :] - label_x[:, None]) * 0.5, (y[None, :] - label_y[:, None]) * 0.5
            weight = goal_weight(dx, dy, rx, ry, sigma_scale, ACC)
            p -= weight * norm[:, None]  # excluded entries are dropped below
        else:
            p -= tl.where(r[None, :] == label[:, None], 1.0, 0.0)
        # Source cells that are not there take no part, whatever the goal says; nor do cells that do not count.
        value = tl.where((factor < 0)[None, :], 0.0, p * slope[:, None] * factor[None, :])
        value = tl.where((kept_factor < 0)[:, None], 0.0, value)
        tl.store(slopes_ptr + i * (BLOCK_R // PARTS) + at, value, mask=ok[:, None] & (r < reduced)[None, :])


def masked_contrastive_loss_features(
    src: Tensor, trg: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, source_mask: Tensor | None,
    temperature: float, reduction: str, width: int, sigma: float, radius: int, normalize: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, log-sum-exp and count of the correlation of ``src`` [B,C,S] and ``trg`` [B,C,T] (any strides)."""
    batch, _, targets = trg.shape
    sources = src.shape[2]
    window, smooth = smoothing(sources, width, sigma, radius)

    def run(loss: Tensor, logsumexp: Tensor) -> None:
        tile = feature_tile("forward", trg, src, crowded=sigma != 0)
        programs = batch * triton.cdiv(targets, tile.kept)
        wanted = configs.architecture(trg.device).product_programs
        splits, cells = configs.split(programs, wanted, sources, tile.reduced, tile.min_cells)
        cellwise = per_cell(trg, labels, weight, mask)
        partials = loss.new_empty((batch, splits, LOSS_FLOATS.value, targets)) if splits > 1 else None
        sides = Sides.of(trg, src, None, source_mask, normalize, eps)
        contrastive_features_fwd_kernel[(programs * splits,)](
            *sides.pointers, *cellwise, loss, logsumexp, partials, *sides.sizes, *sides.strides,
            splits=splits, cells_per_program=cells, **window, **smooth, **scalars(temperature),
            **precision(trg), NARROW=sides.narrow(tile), **tile.constants,
            num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip
        if partials is not None:
            sizes, results = (sources, targets), (loss, logsumexp)
            merge(partials, None, sizes, (0, 0, 0), cellwise, results, window, smooth, temperature)

    return reduced_loss(trg, labels, mask, reduction, run)


def masked_contrastive_loss_features_backward(
    src: Tensor, trg: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, source_mask: Tensor | None,
    temperature: float, reduction: str, width: int, sigma: float, radius: int, normalize: str, eps: float,
    logsumexp: Tensor, count: Tensor, grad: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients by ``src`` and ``trg``, contiguous, in their dtype; ``grad`` [B,T] or a scalar."""
    window, smooth = smoothing(src.shape[2], width, sigma, radius)
    tile = feature_tile("slopes", trg, src, crowded=sigma != 0)
    # Cells that do not count are not there: whatever their features are, they reach no gradient.
    sides = Sides.of(trg, src, counted(labels, mask), source_mask, normalize, eps)
    labels, _, weight = per_cell(trg, labels, weight, mask)
    logsumexp = logsumexp.contiguous()
    count_ptr, grad, grad_strides = upstream(grad, count, reduction)
    gain, norms = None, None
    if trg.dtype == torch.float16:
        share = 1 / count.clamp(min=1) if reduction == "mean" else None
        gain = half_gain(sides, temperature, grad, weight, share)
    if smooth["SMOOTH"]:
        there, sources = sides.there[1], src.shape[2]
        excluded, strides = (trg.new_zeros(1), (0, 0, 0)) if there is None else (there, (sources, 1, 0))
        norms = goal_norms(trg, excluded, sources, strides, labels, window, smooth)

    def slopes(block: Block) -> None:
        contrastive_features_slopes_kernel[(block.programs(tile),)](
            *sides.pointers, labels, weight, logsumexp, count_ptr, grad, norms, gain, block.slopes,
            *sides.sizes, *sides.strides, *block.arguments, *grad_strides,
            **window, **smooth, temperature=float(temperature), **precision(trg), NARROW=sides.narrow(tile),
            **tile.constants, num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip

    grad_trg, grad_src = gradient(sides, tile, slopes, gain)
    return grad_src, grad_trg
