"""Percentage of correct keypoints (PCK): what counts as correct. In float32, as in the public evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Rule -> what the threshold is relative to; always of the source image, where points are predicted.
RULES = {
    "img": "side of the resized image",
    "bbox": "longer side of the source box",
    "bbox-kp": "longer side of the tight box of the source keypoints",
    "bbox-kp-padded": "longer side of the box of source keypoints padded to 40 with -1, as the released "
    "PF-WILLOW evaluation has it (about 1.28 times bbox-kp)",
}
PADDED_COUNT = 40
PADDING = -1.0


def threshold(rule: str, points: Tensor, valid: Tensor, box: Tensor, size: int) -> Tensor:
    """Length L of each pair that alpha multiplies, pixels of the resized image.

    Args:
        rule: key of `RULES`.
        points: float32 [B,P,2], source keypoints; valid: bool [B,P], which of them exist.
        box: float32 [B,4] x1, y1, x2, y2, source box.
        size: side of the resized image.

    Returns:
        float32 [B]; 0 for "bbox-kp" where a pair has no point.
    """
    if rule == "img":
        return points.new_full((len(points),), float(size))
    if rule == "bbox":
        return (box[:, 2:] - box[:, :2]).amax(1)
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; expected one of {', '.join(RULES)}")
    if not points.shape[1]:
        return points.new_zeros(len(points))
    low = points.masked_fill(~valid[..., None], torch.inf).amin(1)  # [B,2]
    high = points.masked_fill(~valid[..., None], -torch.inf).amax(1)
    if rule == "bbox-kp-padded":
        padded = (valid.sum(1) < PADDED_COUNT)[:, None]
        low = torch.where(padded, low.clamp(max=PADDING), low)
        high = torch.where(padded, high.clamp(min=PADDING), high)
    return (high - low).amax(1).clamp(min=0)


def hits(predicted: Tensor, points: Tensor, valid: Tensor, length: Tensor, alphas: Sequence[float]) -> Tensor:
    """Which keypoints are within alpha * L of the truth, border included.

    Args:
        predicted, points: float32 [B,P,2], pixels. valid: bool [B,P]. length: float32 [B], see `threshold`.
        alphas: A fractions.

    Returns:
        bool [A,B,P]; False where a point does not exist or its prediction is NaN.
    """
    error = (predicted.float() - points.float()).square().sum(-1).sqrt()  # [B,P]
    limit = length.float() * torch.tensor(alphas, dtype=torch.float32, device=length.device)[:, None]  # [A,B]
    return (error <= limit[..., None]) & valid
