"""`forward_backward_mask` on Triton: one launch; and the rule of the check, which `pseudo_labels` shares.

In float32, rounded step by step as the reference does it, since a sum that meets its bound exactly is common: kernels
that call these functions are compiled without fused multiply-add (`OPTIONS`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device, options
from .online_softmax import divide

BLOCK = 256
OPTIONS = options(num_warps=8) | {"enable_fp_fusion": False}


@triton.jit
def column_row(cell, width):
    """Column and row of cells, float32."""
    row = cell // width
    return (cell - row * width).to(tl.float32), row.to(tl.float32)


@triton.jit
def released_position(at, cells):
    """Where the release reads the flow of cell `at` of `cells` in a row: corner-aligned, but taken for cell-centred."""
    corner = divide(2.0 * at, tl.broadcast_to(tl.maximum(cells - 1, 1).to(tl.float32), at.shape)) - 1.0
    return (corner + 1.0) * (cells.to(tl.float32) * 0.5) - 0.5


@triton.jit
def corner_of(match, i: tl.constexpr, width, height, BILINEAR: tl.constexpr):
    """The i-th cell of the other grid from which the flow back of its cells `match` [N] is read: (cell, its weight,
    whether it is inside; the flow is 0 outside). One of weight 1, or four round the place where the release reads."""
    if BILINEAR:
        column, row = column_row(match, width)
        x = released_position(column, width)
        y = released_position(row, height)
        left = tl.floor(x)
        top = tl.floor(y)
        at_x = left.to(tl.int32) + i % 2
        at_y = top.to(tl.int32) + i // 2
        weight = (x - left if i % 2 else 1.0 - (x - left)) * (y - top if i // 2 else 1.0 - (y - top))
        inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
        cell = tl.where(inside, at_y * width + at_x, 0)
    else:
        cell = match
        weight = tl.full(match.shape, 1.0, tl.float32)
        inside = match == match
    return cell, weight, inside


@triton.jit
def flow_back(start, goal, own_width, other_width, scale_x, scale_y):
    """Flow of the cells `start` of the other grid, whose matches are the own cells `goal`, in cells of the own grid."""
    from_x, from_y = column_row(start, other_width)
    to_x, to_y = column_row(goal, own_width)
    return to_x - from_x * scale_x, to_y - from_y * scale_y


@triton.jit
def consistent(cell, match, back_x, back_y, own_width, other_width, scale_x, scale_y, alpha1, alpha2):
    """Whether the flow of the own cells `cell`, matched to `match`, and the flow back cancel."""
    here_x, here_y = column_row(cell, own_width)
    there_x, there_y = column_row(match, other_width)
    x = there_x * scale_x - here_x
    y = there_y * scale_y - here_y
    sizes = (x * x + y * y) + (back_x * back_x + back_y * back_y)
    sum_x = x + back_x
    sum_y = y + back_y
    bound = tl.full([], alpha1, tl.float32) * sizes + tl.full([], alpha2, tl.float32)
    return sum_x * sum_x + sum_y * sum_y <= bound


@triton.jit(do_not_specialize=["own_width", "other_width", "other_height"])
def forward_backward_kernel(
    own_index_ptr, other_index_ptr,  # [B, own cells], [B, other cells] in any strides
    mask_ptr,  # [B, own cells]
    own_cells, own_width, other_width, other_height, own_stride_b, own_stride_n, other_stride_b, other_stride_n,
    scale_x, scale_y, alpha1, alpha2, BILINEAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK own cells of one batch entry."""
    blocks = tl.cdiv(own_cells, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    ok = cell < own_cells
    scale_x = tl.full([], scale_x, tl.float32)
    scale_y = tl.full([], scale_y, tl.float32)
    own_index_ptr += batch * own_stride_b + cell.to(tl.int64) * own_stride_n
    match = tl.load(own_index_ptr, mask=ok, other=0).to(tl.int32)
    back_x = tl.zeros([BLOCK], tl.float32)
    back_y = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(4 if BILINEAR else 1):
        start, weight, inside = corner_of(match, i, other_width, other_height, BILINEAR)
        goal_ptr = other_index_ptr + batch * other_stride_b + start.to(tl.int64) * other_stride_n
        goal = tl.load(goal_ptr, mask=ok & inside, other=0).to(tl.int32)
        x, y = flow_back(start, goal, own_width, other_width, scale_x, scale_y)
        back_x += tl.where(inside, x * weight, 0.0)
        back_y += tl.where(inside, y * weight, 0.0)
    fits = consistent(cell, match, back_x, back_y, own_width, other_width, scale_x, scale_y, alpha1, alpha2)
    tl.store(mask_ptr + batch * own_cells + cell, fits.to(tl.int8), mask=ok)


def scales(own: tuple[int, int], other: tuple[int, int]) -> dict[str, float]:
    """Cells of the own grid in one of the other, corner to corner."""
    y, x = ((a - 1) / (b - 1) if b > 1 else 1.0 for a, b in zip(own, other, strict=True))
    return {"scale_x": x, "scale_y": y}


def forward_backward_mask(
    index_own: Tensor, index_other: Tensor, own: tuple[int, int], other: tuple[int, int],
    alpha1: float, alpha2: float, sampling: str,
) -> Tensor:  # fmt: skip
    """Consistency [B,N] of each own cell; indices [B,N] and [B,M] in any strides."""
    mask = torch.empty(index_own.shape, dtype=torch.bool, device=index_own.device)
    batch, cells = index_own.shape
    if mask.numel():
        with on_device(index_own):
            forward_backward_kernel[(batch * triton.cdiv(cells, BLOCK),)](
                index_own, index_other, mask.view(torch.int8), cells, own[1], other[1], other[0],
                *index_own.stride(), *index_other.stride(), **scales(own, other), alpha1=alpha1, alpha2=alpha2,
                BILINEAR=sampling == "bilinear", BLOCK=BLOCK, **OPTIONS,
            )  # fmt: skip
    return mask
