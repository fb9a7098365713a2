"""From matches to a flow field, and from a flow field to keypoints."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: How a keypoint is read off the flow: at its exact place, or at its truncated pixel as the release does.
ROUNDINGS = ("bilinear", "trunc")


def flow_from_coords(coords: Tensor, grid: Sequence[int]) -> Tensor:
    """Displacement of every cell to its match, in cells.

    Args:
        coords: floating [B,T,2], the match (x, y) in [-1,1] on the other side's grid; -1 is the centre of
            cell 0, +1 of the last cell.
        grid: (H, W) of both sides, H * W = T.

    Returns:
        [B,2,H,W] (x, y) in the dtype of ``coords``: match minus own cell. Gradient: to ``coords``.

    Source: CATs (Cho et al., NeurIPS 2021).
    """
    height, width = (int(n) for n in grid)
    if coords.dim() != 3 or coords.shape[1:] != (height * width, 2):
        raise ValueError(
            f"coords: expected [B,{height * width},2] for grid {height} x {width}, got {list(coords.shape)}"
        )
    last = coords.new_tensor([width - 1, height - 1])
    cell = torch.arange(height * width, device=coords.device)
    own = torch.stack([cell % width, cell // width], -1)
    flow = (coords + 1) * (last / 2) - own
    return flow.transpose(1, 2).unflatten(2, (height, width))


def predict_points(flow: Tensor, points: Tensor, stride: int, rounding: str = "bilinear") -> Tensor:
    """Where points of one image lie in the other: q + stride * flow(q).

    The flow is read bilinearly at the cell coordinates (q + .5) / stride - .5, clamped to the grid.

    Args:
        flow: floating [B,2,H,W] (x, y), in cells.
        points: floating [B,P,2] (x, y), pixels of the image that carries the flow's grid.
        stride: pixels a cell.
        rounding: "bilinear" reads at the point itself. "trunc" first sets the point to its pixel, truncated
            towards 0 and clamped to the image, and starts from that, as the release of SemiMatch does.

    Returns:
        [B,P,2] pixels of the other image, in the dtype of ``points``. What is at padding is meaningless.
        Gradient: to ``flow``; to ``points`` too with "bilinear".
    """
    if flow.dim() != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow: expected [B,2,H,W], got {list(flow.shape)}")
    if points.dim() != 3 or points.shape[2] != 2 or points.shape[0] != flow.shape[0]:
        raise ValueError(f"points: expected [{flow.shape[0]},P,2] as flow has it, got {list(points.shape)}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding is {rounding!r}; expected one of {', '.join(ROUNDINGS)}")
    height, width = flow.shape[2:]
    size = points.new_tensor([width, height])
    if rounding == "trunc":
        points = torch.minimum(points.trunc().clamp(min=0), size * stride - 1)
    place = torch.minimum(((points + 0.5) / stride - 0.5).clamp(min=0), size - 1)  # [B,P,2] cells
    low = torch.minimum(place.detach().floor(), (size - 2).clamp(min=0))
    share = place - low  # of the cell to the right and below
    x, y = low.long().unbind(-1)
    right, below = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
    rows = flow.to(points.dtype).flatten(2).transpose(1, 2)  # [B,HW,2]

    def at(y: Tensor, x: Tensor) -> Tensor:
        return rows.gather(1, (y * width + x)[..., None].expand(-1, -1, 2))

    u, v = share.split(1, -1)
    top = at(y, x) * (1 - u) + at(y, right) * u
    bottom = at(below, x) * (1 - u) + at(below, right) * u
    return points + stride * (top * (1 - v) + bottom * v)
