"""`masked_contrastive_loss` on Triton: one read of the correlation forward; one read and one write backward."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from ..reference.contrastive import kept as counted
from . import configs
from .launch import empty_gradient, kernel_dtype, on_device, options, reads_source_fast, scalars, source_is_fast
from .loss import (
    LOSS_FLOATS,
    finish_loss,
    gather_goal,
    goal_norms_kernel,
    goal_weight,
    load_labels,
    load_slope,
    loss_factor,
    loss_origin,
    merge_losses,
    merge_losses_kernel,
    probability,
)


@triton.jit(do_not_specialize=["splits", "width", "height", "rx", "ry"])
def contrastive_fwd_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    labels_ptr, mask_ptr, weight_ptr,  # [B, kept]; the last two may be None
    loss_ptr, logsumexp_ptr,  # results [B, kept]
    partial_ptr,  # None, or states [B, splits, 4, kept] instead of results
    reduced, kept, stride_b, stride_r, stride_k, width, height, rx, ry, splits, cells_per_program,
    sigma_scale, temperature, scale,
    ACC: tl.constexpr, SMOOTH: tl.constexpr, REDUCED_FAST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over one of `splits` ranges of the reduced side.

    Tiles lie as in `match_one.match_fwd_kernel`.
    """
    AXIS: tl.constexpr = 1 if REDUCED_FAST else 0  # of the reduced side in a tile
    blocks = tl.cdiv(kept, BLOCK_K)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    scale = tl.full([], scale, ACC)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    ok = cell < kept
    at = batch * kept + cell
    label, keep, beyond = load_labels(labels_ptr, mask_ptr, at, ok, reduced)
    k = tl.expand_dims(cell, AXIS)
    # Not `keep`: a mask that may change from cell to cell would keep the compiler from joining loads. What does not
    # count is dropped at the end, and a block in which nothing counts is not read.
    k_ok = tl.expand_dims(ok, AXIS)
    end = tl.where(tl.max(keep.to(tl.int32), 0) > 0, end, start)
    r = tl.expand_dims(start + tl.arange(0, BLOCK_R), 1 - AXIS)
    corr_ptr += batch * stride_b
    pointer = corr_ptr + r.to(tl.int64) * stride_r + k.to(tl.int64) * stride_k  # a tile
    if REDUCED_FAST:
        best = tl.full([BLOCK_K, BLOCK_R], float("-inf"), ACC)
    else:
        best = tl.full([BLOCK_R, BLOCK_K], float("-inf"), ACC)
    total = tl.zeros(best.shape, ACC)
    for _ in range(start, end, BLOCK_R * UNROLL):
        tiles = ()
        top = best
        for _u in tl.static_range(UNROLL):
            c = tl.load(pointer, mask=(r < end) & k_ok, other=float("-inf")).to(ACC)
            top = tl.where(c > top, c, top)  # never for NaN
            tiles += (c,)
            pointer += tl.full([], BLOCK_R, tl.int64) * stride_r
            r += BLOCK_R
        total *= loss_factor(best, top, scale)
        zero = loss_origin(top)
        for u in tl.static_range(UNROLL):
            total += tl.exp2((tiles[u] - zero) * scale)
        best = top
    best, total = merge_losses(best, total, scale, AXIS)  # [BLOCK_K]
    if partial_ptr is None:
        goal, _ = gather_goal(
            corr_ptr + cell.to(tl.int64) * stride_k, label, keep, stride_r, width, height, rx, ry, sigma_scale,
            ACC, SMOOTH,
        )  # fmt: skip
        finish_loss(best, total, goal, beyond, keep, loss_ptr, logsumexp_ptr, weight_ptr, at, ok, temperature)
    else:
        partial_ptr += (batch * splits + split) * LOSS_FLOATS * kept
        tl.store(partial_ptr + cell, best, ok)
        tl.store(partial_ptr + kept + cell, total, ok)


@triton.jit(do_not_specialize=["width", "height", "rx", "ry", "grad_b", "grad_k"])
def contrastive_bwd_kernel(
    corr_ptr,  # [B, reduced, kept] in any strides
    labels_ptr, mask_ptr, weight_ptr, logsumexp_ptr,  # [B, kept]; mask and weight may be None
    count_ptr,  # one number, or None unless the loss is a mean
    grad_ptr,  # [B, kept] in any strides
    norms_ptr,  # [B, kept] of `goal_norms_kernel`, None unless SMOOTH
    grad_corr_ptr,  # [B, reduced, kept], contiguous in corr's order of the two sides
    reduced, kept, stride_b, stride_r, stride_k, grad_stride_r, grad_stride_k, grad_b, grad_k,
    width, height, rx, ry, cells_per_program, sigma_scale, temperature,
    ACC: tl.constexpr, SMOOTH: tl.constexpr, REDUCED_FAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry, over one range of the reduced side; one read, one write."""
    AXIS: tl.constexpr = 1 if REDUCED_FAST else 0
    blocks = tl.cdiv(kept, BLOCK_K)
    splits = tl.cdiv(reduced, cells_per_program)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    batch = (program // (blocks * splits)).to(tl.int64)
    start = split * cells_per_program
    end = tl.minimum(start + cells_per_program, reduced)
    cell = (program % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    label, keep, logsumexp, factor = load_slope(
        labels_ptr, mask_ptr, weight_ptr, logsumexp_ptr, count_ptr, grad_ptr, grad_b, grad_k,
        batch, cell, kept, reduced, temperature, ACC,
    )  # fmt: skip
    if SMOOTH:
        label_row = label // width
        label_column = label - label_row * width
        norm = tl.load(norms_ptr + batch * kept + cell, mask=cell < kept, other=1.0)
        label_row = tl.expand_dims(label_row, AXIS)
        label_column = tl.expand_dims(label_column, AXIS)
        norm = tl.expand_dims(norm, AXIS)
    k = tl.expand_dims(cell, AXIS)
    label = tl.expand_dims(label, AXIS)
    keep = tl.expand_dims(keep, AXIS)
    logsumexp = tl.expand_dims(logsumexp, AXIS)
    factor = tl.expand_dims(factor, AXIS)
    r = tl.expand_dims(start + tl.arange(0, BLOCK_R), 1 - AXIS)
    pointer = corr_ptr + batch * stride_b + r.to(tl.int64) * stride_r + k.to(tl.int64) * stride_k  # a tile
    grad_pointer = grad_corr_ptr + batch * reduced * kept
    grad_pointer += r.to(tl.int64) * grad_stride_r + k.to(tl.int64) * grad_stride_k  # a tile
    for _ in range(start, end, BLOCK_R):
        ok = (r < end) & (k < kept)
        c = tl.load(pointer, mask=ok, other=0.0).to(ACC)
        p = probability(c, logsumexp, temperature)
        if SMOOTH:
            row = r // width
            weight = goal_weight(r - row * width - label_column, row - label_row, rx, ry, sigma_scale, ACC)
            p -= tl.where(c == float("-inf"), 0.0, weight * norm)
        else:
            p -= tl.where(r == label, 1.0, 0.0)
        tl.store(grad_pointer, tl.where(keep, p * factor, 0.0), mask=ok)
        r += BLOCK_R
        pointer += tl.full([], BLOCK_R, tl.int64) * stride_r
        grad_pointer += tl.full([], BLOCK_R, tl.int64) * grad_stride_r


def per_cell(like: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None) -> tuple[Tensor | None, ...]:
    """Labels, mask and weight [B,N] as the kernels take them."""
    if weight is not None:
        weight = weight.detach().to(accumulate_dtype(like.dtype)).contiguous()
    return labels.contiguous(), None if mask is None else mask.contiguous().view(torch.uint8), weight


def smoothing(cells: int, width: int, sigma: float, radius: int) -> tuple[dict[str, int], dict[str, float | bool]]:
    """The grid and the window (no larger than it), and the factor of the Gaussian's exponent."""
    height = cells // width
    window = {"width": width, "height": height, "rx": min(radius, width - 1), "ry": min(radius, height - 1)}
    return window, {"sigma_scale": math.log2(math.e) / (2 * sigma * sigma) if sigma else 0.0, "SMOOTH": sigma != 0}


def reduced_loss(
    like: Tensor, labels: Tensor, mask: Tensor | None, reduction: str, run: Callable[[Tensor, Tensor], None]
) -> tuple[Tensor, Tensor, Tensor]:
    """The three results; ``run`` writes loss and log-sum-exp [B,N] of each cell."""
    dtype = accumulate_dtype(like.dtype)
    loss, logsumexp = (torch.empty(labels.shape, dtype=dtype, device=like.device) for _ in range(2))
    if labels.numel():
        with on_device(like):
            run(loss, logsumexp)
    count = counted(labels, mask).sum()
    if reduction != "none":
        loss = loss.sum()
    return loss / count.clamp(min=1) if reduction == "mean" else loss, logsumexp, count


def upstream(grad: Tensor, count: Tensor, reduction: str) -> tuple[Tensor | None, Tensor, tuple[int, int]]:
    """Pointers of count and gradient, and the strides of that: 0 for the gradient of a number."""
    strides = grad.stride() if reduction == "none" else (0, 0)
    return count if reduction == "mean" else None, grad, strides  # type: ignore[return-value]


def goal_norms(
    like: Tensor, excluded: Tensor, cells: int, strides: tuple[int, ...], labels: Tensor, window: dict, smooth: dict
) -> Tensor:  # fmt: skip
    """One over the sums [B,kept] of the weights of smoothed goals over the entries that are not -inf in ``excluded``
    [B,cells,kept]."""
    batch, kept = labels.shape
    tile = configs.architecture(like.device).merge
    norms = torch.empty(labels.shape, dtype=accumulate_dtype(like.dtype), device=like.device)
    if labels.numel():
        with on_device(like):
            goal_norms_kernel[(batch * triton.cdiv(kept, tile.kept),)](
                excluded, labels.contiguous(), norms, cells, kept, *strides, **window,
                sigma_scale=smooth["sigma_scale"],
                ACC=kernel_dtype(like), BLOCK_K=tile.kept, **options(tile.num_warps),
            )  # fmt: skip
    return norms


def merge(
    partials: Tensor, corr: Tensor | None, sizes: tuple[int, int], strides: tuple[int, ...], per_cell: tuple,
    results: tuple[Tensor, Tensor], window: dict, smooth: dict, temperature: float,
) -> None:  # fmt: skip
    """Second stage: merge ``partials`` [B,parts,4,kept] into ``results``."""
    batch, parts, _, kept = partials.shape
    tile = configs.architecture(partials.device).merge
    merge_losses_kernel[(batch * triton.cdiv(kept, tile.kept),)](
        partials, corr, *per_cell, *results, parts, *sizes, *strides, **window, **smooth, **scalars(temperature),
        ACC=kernel_dtype(partials), BLOCK_PARTS=tile.reduced, BLOCK_K=tile.kept, **options(tile.num_warps),
    )  # fmt: skip


def masked_contrastive_loss(
    corr: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, temperature: float, reduction: str,
    width: int, sigma: float, radius: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss, log-sum-exp and count of ``corr`` [B,S,T] (any strides), as the reference has them."""
    batch, sources, targets = corr.shape
    window, smooth = smoothing(sources, width, sigma, radius)

    def run(loss: Tensor, logsumexp: Tensor) -> None:
        arch = configs.architecture(corr.device)
        reduced_fast = reads_source_fast(corr)
        tile = configs.tile(arch.forward, reduced_fast, corr.element_size(), sources, targets)
        programs = batch * triton.cdiv(targets, tile.kept)
        splits, cells = configs.split(programs, arch.programs, sources, tile.step, tile.min_cells)
        cellwise = per_cell(corr, labels, weight, mask)
        partials = loss.new_empty((batch, splits, LOSS_FLOATS.value, targets)) if splits > 1 else None
        contrastive_fwd_kernel[(programs * splits,)](
            corr, *cellwise, loss, logsumexp, partials, sources, targets, *corr.stride(),
            splits=splits, cells_per_program=cells, **window, **smooth, **scalars(temperature),
            ACC=kernel_dtype(corr), REDUCED_FAST=reduced_fast,
            BLOCK_R=tile.reduced, BLOCK_K=tile.kept, UNROLL=tile.unroll, **options(tile.num_warps),
        )  # fmt: skip
        if partials is not None:
            sizes, results = (sources, targets), (loss, logsumexp)
            merge(partials, corr, sizes, corr.stride(), cellwise, results, window, smooth, temperature)

    return reduced_loss(corr, labels, mask, reduction, run)


def masked_contrastive_loss_backward(
    corr: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, temperature: float, reduction: str,
    width: int, sigma: float, radius: int, logsumexp: Tensor, count: Tensor, grad: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient by ``corr`` [B,S,T], in its dtype and its order of the two sides; ``grad`` [B,T] or a scalar."""
    batch, sources, targets = corr.shape
    out = empty_gradient(corr)
    if out.numel() == 0:
        return out.to(corr.dtype)
    window, smooth = smoothing(sources, width, sigma, radius)
    arch = configs.architecture(corr.device)
    reduced_fast = source_is_fast(corr)
    tile = configs.tile(arch.backward, reduced_fast, corr.element_size(), sources, targets)
    programs = batch * triton.cdiv(targets, tile.kept)
    splits, cells = configs.split(programs, arch.programs, sources, tile.step, tile.min_cells)
    count_ptr, grad, grad_strides = upstream(grad, count, reduction)
    cellwise = per_cell(corr, labels, weight, mask)
    norms = goal_norms(corr, corr, sources, corr.stride(), labels, window, smooth) if sigma else None
    with on_device(corr):
        contrastive_bwd_kernel[(programs * splits,)](
            corr, *cellwise, logsumexp.contiguous(), count_ptr, grad, norms, out,
            sources, targets, *corr.stride(), *out.stride()[1:], *grad_strides, cells_per_program=cells,
            **window, **smooth, temperature=float(temperature), ACC=kernel_dtype(corr), REDUCED_FAST=reduced_fast,
            BLOCK_R=tile.reduced, BLOCK_K=tile.kept, **options(tile.num_warps),
        )  # fmt: skip
    return out.to(corr.dtype)
