"""Reference of the forward-backward consistency check."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .._checks import Grid


def cell_xy(index: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Column and row (float32) of flat cell indices."""
    return (index % grid[1]).float(), torch.div(index, grid[1], rounding_mode="floor").float()


def flow_of(index: Tensor, own: Grid, other: Grid) -> Tensor:
    """Flow [B,2,N] (x, y) in cells of the own grid: position of the match ``index`` [B,N] minus the cell's own
    position.

    Cells of the other grid are carried to the own one corner to corner (no change for equal grids).
    """
    there = cell_xy(index, other)
    here = cell_xy(torch.arange(own[0] * own[1], device=index.device), own)
    scale = [(own[axis] - 1) / (other[axis] - 1) if other[axis] > 1 else 1.0 for axis in (1, 0)]
    return torch.stack([there[a] * scale[a] - here[a] for a in (0, 1)], 1)


def sample_released(flow: Tensor, position: Tensor) -> Tensor:
    """``flow`` [B,2,H,W] read as the release does at corner-aligned positions [B,N,2] in [-1,1]: the sampler takes them
    as cell-centred, a shift of up to half a cell, with zero padding. Returns [B,2,N]."""
    return grid_sample(flow, position[:, None], align_corners=False).squeeze(2)


def consistent(flow: Tensor, back: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """|flow + back|^2 <= alpha1 (|flow|^2 + |back|^2) + alpha2 for flows [B,2,...]; bool [B,...]."""
    sizes = flow.square().sum(1) + back.square().sum(1)
    return (flow + back).square().sum(1) <= alpha1 * sizes + alpha2


def forward_backward_mask(
    index_own: Tensor,
    index_other: Tensor,
    own: Grid,
    other: Grid,
    alpha1: float,
    alpha2: float,
    sampling: str,
) -> Tensor:
    """Consistency [B,N] of each own cell: ``index_own`` [B,N] names its match on the other side, ``index_other`` the
    way back.

    The way back starts in the cell that was matched ("gather"), or is sampled as the release does ("bilinear").
    """
    flow = flow_of(index_own, own, other)
    # The other side's flow, in cells of the own grid as well: where it points minus where it starts.
    start = cell_xy(torch.arange(other[0] * other[1], device=index_own.device), other)
    goal = cell_xy(index_other, own)
    scale = [(own[axis] - 1) / (other[axis] - 1) if other[axis] > 1 else 1.0 for axis in (1, 0)]
    flow_other = torch.stack([goal[a] - start[a] * scale[a] for a in (0, 1)], 1)  # [B,2,M]
    if sampling == "gather":
        back = flow_other.gather(2, index_own[:, None].expand(-1, 2, -1))
    else:
        x, y = cell_xy(index_own, other)
        position = torch.stack([2 * x / max(other[1] - 1, 1) - 1, 2 * y / max(other[0] - 1, 1) - 1], -1)
        back = sample_released(flow_other.unflatten(2, other), position)
    return consistent(flow, back, alpha1, alpha2)
