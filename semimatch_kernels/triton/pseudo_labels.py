"""`pseudo_labels` on Triton in two launches: the statistics of both sides from one read of the correlation, then all
that follows from them, each target cell for itself.

With `entropy_eps` the second launch reads the correlation again, because the entropy then is no sum that can be merged.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .consistency import OPTIONS, consistent, corner_of, flow_back, scales
from .launch import kernel_dtype, on_device, scalars
from .online_softmax import LN2, divide, origin
from .statistics import merge_best, merge_sums, tile_statistics


@triton.jit
def half_to_even(x):
    """float64 numbers rounded to whole ones, a half to the even one."""
    low = tl.floor(x)
    above = x - low
    odd = low - 2.0 * tl.floor(low * 0.5) != 0
    return tl.where((above > 0.5) | ((above == 0.5) & odd), low + 1.0, low)


@triton.jit
def in_box(cell, width, box_ptr, stride):
    """Whether cells lie in a box (x1, y1, x2, y2), rounded, its ends included."""
    row = cell // width
    x = (cell - row * width).to(tl.float64)
    y = row.to(tl.float64)
    x1 = half_to_even(tl.load(box_ptr).to(tl.float64))
    y1 = half_to_even(tl.load(box_ptr + stride).to(tl.float64))
    x2 = half_to_even(tl.load(box_ptr + 2 * stride).to(tl.float64))
    y2 = half_to_even(tl.load(box_ptr + 3 * stride).to(tl.float64))
    return (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)


@triton.jit
def entropy_with_eps(
    corr_ptr, cell, ok, best, score, sources, stride_s, stride_t, scale, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """-sum((p + eps) log(p + eps)) of the target cells `cell` [N], whose best entry has probability `score`."""
    entropy = tl.zeros(best.shape, best.dtype)
    eps = tl.full([], eps, best.dtype)
    pointer = corr_ptr + cell.to(tl.int64)[None, :] * stride_t
    for first in range(0, sources, BLOCK):
        s = first + tl.arange(0, BLOCK)[:, None]  # [BLOCK, 1]
        there = (s < sources) & ok[None, :]
        c = tl.load(pointer + s.to(tl.int64) * stride_s, mask=there, other=float("-inf")).to(best.dtype)
        p = tl.exp2((c - origin(best)[None, :]) * scale) * score[None, :] + eps  # [BLOCK, N]
        entropy -= tl.sum(tl.where(s < sources, p * tl.log(p), 0.0), 0)
    return entropy


@triton.jit(do_not_specialize=["source_width", "source_height", "target_width", "target_parts", "source_parts"])
def labels_kernel(
    corr_ptr,  # [B, sources, targets] in any strides; read with eps only
    # Parts of `statistics`, [B, target parts, targets] and [B, source parts, sources]; the last two may be None.
    best_ptr, target_partial_index_ptr, total_ptr, drift_ptr, source_best_ptr, source_partial_index_ptr,
    source_box_ptr, target_box_ptr,  # [B, 4] in any strides and dtype; each may be None
    cell_ptr, valid_ptr,  # [B, targets] in any strides, or None: the lookup
    labels_ptr, weight_ptr, mask_ptr, score_ptr, entropy_ptr,  # results [B, targets]
    sources, targets, stride_b, stride_s, stride_t, target_parts, source_parts,
    source_width, source_height, target_width,
    source_box_b, source_box_n, target_box_b, target_box_n, cell_b, cell_n, valid_b, valid_n,
    scale_x, scale_y, alpha1, alpha2, threshold, uncertainty, eps, scale,
    EPS: tl.constexpr, BILINEAR: tl.constexpr, ACC: tl.constexpr,
    BLOCK_PARTS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK results of one batch entry, each by the statistics of the target cell that it looks up."""
    blocks = tl.cdiv(targets, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    out = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    ok = out < targets
    scale = tl.full([], scale, ACC)
    cell = out
    seen = ok
    if cell_ptr is not None:
        at = out.to(tl.int64)
        cell = tl.load(cell_ptr + batch * cell_b + at * cell_n, mask=ok, other=0).to(tl.int32)
        seen = tl.load(valid_ptr + batch * valid_b + at * valid_n, mask=ok, other=0) != 0

    best, label = merge_best(
        best_ptr, target_partial_index_ptr, batch, target_parts, targets, cell, ok, ACC, BLOCK_PARTS
    )  # fmt: skip
    total, drift = merge_sums(
        best_ptr, total_ptr, drift_ptr, batch, target_parts, targets, cell, ok, best, scale, BLOCK_PARTS
    )  # fmt: skip
    nothing = total == 0  # every entry -inf; False for NaN
    total = tl.where(nothing, 1.0, total)
    score = tl.where(nothing, 0.0, divide(tl.full(best.shape, 1.0, ACC), total))
    if EPS:
        entropy = entropy_with_eps(
            corr_ptr + batch * stride_b, cell, ok, best, score, sources, stride_s, stride_t, scale, eps, BLOCK_S
        )  # fmt: skip
    else:
        entropy = tl.log(total) - divide(drift, total) * LN2

    # A cell with no admissible match has score 0, which a threshold of 0 would let pass.
    mask = seen & (nothing == 0) & (score >= tl.full([], threshold, ACC))
    if source_box_ptr is not None:
        mask = mask & in_box(label, source_width, source_box_ptr + batch * source_box_b, source_box_n)
    if target_box_ptr is not None:
        mask = mask & in_box(cell, target_width, target_box_ptr + batch * target_box_b, target_box_n)
    if source_best_ptr is not None:
        scale_x = tl.full([], scale_x, tl.float32)
        scale_y = tl.full([], scale_y, tl.float32)
        back_x = tl.zeros([BLOCK], tl.float32)
        back_y = tl.zeros([BLOCK], tl.float32)
        for i in tl.static_range(4 if BILINEAR else 1):
            start, weight, inside = corner_of(label, i, source_width, source_height, BILINEAR)
            _, goal = merge_best(
                source_best_ptr, source_partial_index_ptr, batch, source_parts, sources, start, ok & inside,
                ACC, BLOCK_PARTS,
            )  # fmt: skip
            x, y = flow_back(start, goal, target_width, source_width, scale_x, scale_y)
            back_x += tl.where(inside, x * weight, 0.0)
            back_y += tl.where(inside, y * weight, 0.0)
        mask = mask & consistent(
            cell, label, back_x, back_y, target_width, source_width, scale_x, scale_y, alpha1, alpha2
        )  # fmt: skip

    at = batch * targets + out
    tl.store(labels_ptr + at, tl.where(seen, label, -1).to(tl.int64), ok)
    tl.store(weight_ptr + at, tl.exp(entropy * tl.full([], -uncertainty, ACC)), ok)
    tl.store(mask_ptr + at, mask.to(tl.int8), ok)
    tl.store(score_ptr + at, score, ok)
    tl.store(entropy_ptr + at, entropy, ok)


def _strides(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else tensor.stride()  # type: ignore[return-value]


def pseudo_labels(
    corr: Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int], temperature: float, threshold: float,
    uncertainty: float, src_box: Tensor | None, trg_box: Tensor | None, forward_backward: bool,
    alpha1: float, alpha2: float, sampling: str, entropy_eps: float, cell: Tensor | None, valid: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Labels, weight, mask, score and entropy [B,T] of ``corr`` [B,S,T] (any strides), read at ``cell`` [B,T] where
    ``valid``, if given."""
    batch, sources, targets = corr.shape
    wide = accumulate_dtype(corr.dtype)
    labels, weight, mask, score, entropy = results = tuple(
        corr.new_empty((batch, targets), dtype=dtype) for dtype in (torch.int64, wide, torch.bool, wide, wide)
    )
    if mask.numel() == 0:
        return results
    rows, columns = tile_statistics(
        corr, temperature, ("best", "index") if forward_backward else (), ("best", "index", "total", "drift")
    )
    arch = configs.architecture(corr.device)
    merge = arch.merge
    valid = None if valid is None else valid.view(torch.int8)
    with on_device(corr):
        labels_kernel[(batch * triton.cdiv(targets, merge.kept),)](
            corr, *columns.pointers, rows.best, rows.index, src_box, trg_box, cell, valid,
            labels, weight, mask.view(torch.int8), score, entropy,
            sources, targets, *corr.stride(), columns.sizes[0], rows.sizes[0],
            source_grid[1], source_grid[0], target_grid[1],
            *_strides(src_box), *_strides(trg_box), *_strides(cell), *_strides(valid),
            **scales(target_grid, source_grid), alpha1=alpha1, alpha2=alpha2, threshold=threshold,
            uncertainty=uncertainty, eps=entropy_eps, scale=scalars(temperature)["scale"],
            EPS=entropy_eps != 0, BILINEAR=sampling == "bilinear", ACC=kernel_dtype(corr),
            BLOCK_PARTS=merge.reduced, BLOCK_S=arch.sides["small"].cells, BLOCK=merge.kept, **OPTIONS,
        )  # fmt: skip
    return results
