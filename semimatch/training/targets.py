"""Supervision from keypoints: the flow of every cell that an annotated point falls into."""

from __future__ import annotations

import torch
from torch import Tensor

# Side of the square that a cell answers for, in strides: 35 px at stride 16, so that a point supervises 4 to 9 cells.
REACH = 35 / 32


def flow_from_keypoints(
    source_points: Tensor, target_points: Tensor, valid: Tensor, grid: tuple[int, int], stride: int
) -> tuple[Tensor, Tensor]:
    """Flow in cells on the target grid, and which cells have one.

    A target cell whose square of 35 px (at stride 16) round its centre holds annotated target points gets the flow
    (source position of the last of them - mean target position of them) / stride, as in CATs and SemiMatch.

    Args:
        source_points, target_points: [B,P,2] (x, y) px. valid: [B,P] bool. grid: (H, W). stride: px.

    Returns: flow [B,2,H,W] float32, 0 where there is none; mask [B,H,W] bool.
    """
    height, width = grid
    device = target_points.device
    centre_x = (torch.arange(width, device=device) + 0.5) * stride  # [W]
    centre_y = (torch.arange(height, device=device) + 0.5) * stride
    reach = round(REACH * stride * 2 - 1) / 2  # 17 px at stride 16
    near_x = (target_points[..., 0, None] - centre_x).abs() <= reach  # [B,P,W]
    near_y = (target_points[..., 1, None] - centre_y).abs() <= reach  # [B,P,H]
    holds = near_y[..., :, None] & near_x[..., None, :] & valid[..., None, None]  # [B,P,H,W]
    count = holds.sum(1)  # [B,H,W]
    # A sum, not a matrix product: autocast would round the coordinates.
    total = (holds[:, :, None] * target_points[..., None, None]).sum(1)  # [B,2,H,W]
    mean = total / count.clamp(min=1)[:, None]
    order = torch.arange(1, holds.shape[1] + 1, device=device)[:, None, None]
    last = (holds * order).amax(1).sub(1).clamp(min=0)  # [B,H,W], index of the last point held
    picked = source_points.gather(1, last.flatten(1)[..., None].expand(-1, -1, 2))  # [B,H*W,2]
    mask = count > 0
    flow = (picked.transpose(1, 2).unflatten(2, grid) - mean) / stride
    return torch.where(mask[:, None], flow, 0), mask
