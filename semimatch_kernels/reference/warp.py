"""Reference of the geometric warps: affine, thin-plate spline (3x3 control points) and their composition."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from .._checks import Grid, accumulate_dtype
from .correlation import without_autocast

# A warped pixel counts as valid when its whole 2x2 support lies inside; the margin absorbs float32 rounding.
FULL_SUPPORT = 0.9999


def output_positions(
    grid: Grid, corner_aligned: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalised x [W] and y [H] of the output pixels: pixel centres, or corner-aligned (first -1, last +1)."""

    def axis(n: int) -> Tensor:
        if corner_aligned:
            return torch.linspace(-1, 1, n, dtype=dtype, device=device)
        return (2 * torch.arange(n, dtype=dtype, device=device) + 1) / n - 1

    return axis(grid[1]), axis(grid[0])


def affine_positions(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Image of the points (x, y) under the affine map ``theta`` [B,6]; ``x``, ``y`` broadcast with [B,1,1]."""
    a = [theta[:, i, None, None] for i in range(6)]
    return a[0] * x + a[1] * y + a[2], a[3] * x + a[4] * y + a[5]


def _control_points() -> np.ndarray:
    """The control points [9,2] (x, y), x slow and y fast."""
    steps = (-1.0, 0.0, 1.0)
    return np.array([(x, y) for x in steps for y in steps])


@cache
def _tps_inverse() -> np.ndarray:
    """Inverse [12,12] of the interpolation system of the control points, which never move.

    NumPy, so that what is cached does not depend on the tensor modes of the first call.
    """
    points = _control_points()
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    system = np.zeros((12, 12))
    system[:9, :9] = squared * np.log(np.where(squared > 0, squared, 1))
    system[:9, 9:] = np.concatenate([np.ones((9, 1)), points], 1)
    system[9:, :9] = system[:9, 9:].T
    return np.linalg.inv(system)


def _radial(squared: Tensor) -> Tensor:
    """U(r^2) = r^2 ln r^2, and 0 at 0."""
    return torch.xlogy(squared, squared)


def tps_positions(theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Image [B,H,W] of the points (x [1,W], y [H,1]) under the spline that takes control point k to (theta[k],
    theta[9+k]).

    In float64: the basis cancels, and autocast must not touch the product.
    """
    goal = theta.double().unflatten(1, (2, 9))  # [B,2,9]
    weights = goal @ torch.tensor(_tps_inverse()[:9], device=theta.device)  # [B,2,12]
    points = torch.tensor(_control_points(), device=theta.device)  # [9,2]
    x, y = torch.broadcast_tensors(x.double(), y.double())  # [H,W]
    squared = (x[..., None] - points[:, 0]).square() + (y[..., None] - points[:, 1]).square()
    basis = torch.cat([_radial(squared), torch.ones_like(x)[..., None], x[..., None], y[..., None]], -1)  # [H,W,12]
    mapped = torch.einsum("hwk,bdk->dbhw", basis, weights).to(theta.dtype)
    return mapped[0], mapped[1]


def sampling_grid(theta: Tensor, size: Grid, kind: str, corner_aligned: bool) -> Tensor:
    """Where each output pixel is read, [B,H,W,2] (x, y) normalised; ``theta`` [B,6], [B,18] or [B,24] by ``kind``."""
    theta = theta.to(accumulate_dtype(theta.dtype))
    x, y = output_positions(size, corner_aligned, theta.dtype, theta.device)
    x, y = x[None, :], y[:, None]
    if kind != "affine":
        x, y = tps_positions(theta[:, -18:], x, y)
    if kind != "tps":
        x, y = affine_positions(theta[:, :6], x, y)
    return torch.stack(torch.broadcast_tensors(x, y), -1)


def _stages(theta: Tensor, size: Grid, kind: str, released: bool) -> list[Tensor]:
    """The sampling grids of the resamplings to do one after the other, first first."""
    if not released:
        return [sampling_grid(theta, size, kind, corner_aligned=False)]
    parts = {"affine": theta[:, :6], "tps": theta[:, -18:]}
    kinds = ["affine", "tps"] if kind == "affine_tps" else [kind]
    return [sampling_grid(parts[k], size, k, corner_aligned=k == "tps") for k in kinds]


def warp(image: Tensor, theta: Tensor, kind: str, interpolation: str, released: bool) -> tuple[Tensor, Tensor]:
    """``image`` [B,C,H,W] warped, zero where not valid, and the validity [B,H,W]."""
    with without_autocast(image.device):
        return _warp(image, theta, kind, interpolation, released)


def _warp(image: Tensor, theta: Tensor, kind: str, interpolation: str, released: bool) -> tuple[Tensor, Tensor]:
    dtype, size = image.dtype, (image.shape[2], image.shape[3])
    image = image.to(accumulate_dtype(dtype))  # half precision has too few digits for a position on a picture
    valid = torch.ones(image.shape[0], 1, *size, dtype=image.dtype, device=image.device)
    for positions in _stages(theta, size, kind, released):
        positions = positions.to(image.dtype)
        inside = grid_sample(torch.ones_like(valid), positions, align_corners=False) >= FULL_SUPPORT
        if interpolation == "nearest" and not released:
            inside = (positions.abs() < 1).all(-1)[:, None]
        image = grid_sample(image, positions, mode=interpolation, align_corners=False) * inside
        valid = grid_sample(valid, positions, mode="nearest", align_corners=False) * inside
    return image.to(dtype), valid[:, 0] > 0


def warp_lookup(theta: Tensor, grid: Grid, kind: str, released: bool) -> tuple[Tensor, Tensor]:
    """Nearest lookup as indices: cell [B,H*W] int64 that each output cell is read from (0 where invalid), valid
    [B,H*W] bool."""
    batch, (height, width) = theta.shape[0], grid
    cell = torch.arange(height * width, device=theta.device).expand(batch, -1)
    valid = torch.ones_like(cell, dtype=torch.bool)
    for positions in _stages(theta, grid, kind, released):
        # half to even, as the sampler rounds
        read_x, read_y = (
            (((positions[..., i] + 1) * n - 1) / 2).round().long().clamp(0, n - 1) for i, n in ((0, width), (1, height))
        )
        read = (read_y * width + read_x).flatten(1)
        if released:  # the bilinear support must lie inside, in nearest mode too
            ones = torch.ones(batch, 1, height, width, dtype=positions.dtype, device=theta.device)
            inside = (grid_sample(ones, positions, align_corners=False) >= FULL_SUPPORT).flatten(1)
        else:
            inside = (positions.abs() < 1).all(-1).flatten(1)
        cell, valid = cell.gather(1, read), valid.gather(1, read) & inside
    return torch.where(valid, cell, 0), valid
