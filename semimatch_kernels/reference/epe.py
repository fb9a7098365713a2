"""Reference of the sparse end-point error."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype


def sparse_epe(flow: Tensor, target: Tensor, mask: Tensor, reduction: str) -> Tensor:
    """Distance of ``flow`` and ``target`` [B,2,H,W] where ``mask`` [B,H,W], with gradient 0 at distance 0."""
    dtype = accumulate_dtype(flow.dtype)
    difference = torch.where(mask[:, None], flow.to(dtype) - target.to(dtype), 0)
    squared = difference.square().sum(1)
    exact = squared == 0  # the gradient of the root at 0 is taken as 0
    distance = torch.where(exact, 0, torch.where(exact, 1, squared).sqrt())
    if reduction == "none":
        return distance
    return distance.sum() if reduction == "sum" else distance.sum() / mask.sum().clamp(min=1)
