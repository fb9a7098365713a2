"""Geometric warps of images and of label maps: affine, thin-plate spline and their composition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from .backends import choose
from .reference import warp as _reference

__all__ = ["warp", "warp_lookup"]

_SIZES = {"affine": 6, "tps": 18, "affine_tps": 24}


def _check_theta(theta: Tensor, batch: int | None, kind: str, protocol: str) -> None:
    _checks.check_choice(kind, "kind", tuple(_SIZES))
    _checks.check_choice(protocol, "protocol", ("clean", "released"))
    if not isinstance(theta, Tensor) or theta.dim() != 2 or theta.shape[1] != _SIZES[kind]:
        raise ValueError(f"theta: expected [B,{_SIZES[kind]}] for kind={kind!r}, got {_checks.describe(theta)}")
    if batch is not None and theta.shape[0] != batch:
        raise ValueError(f"theta: expected one row an image, [{batch},{_SIZES[kind]}], got {tuple(theta.shape)}")


def warp(
    image: Tensor, theta: Tensor, kind: str = "affine_tps", interpolation: str = "bilinear", protocol: str = "clean",
    *, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Resample ``image`` where the map of each output pixel points.

    Args:
        image: [B,C,H,W] floating.
        theta: [B,6] affine (a, b, tx, c, d, ty), [B,18] spline (9 x, then 9 y, of the images of the 3x3 control points
            (-1,-1), (-1,0), (-1,1), (0,-1), ...), or [B,24] both; in normalised coordinates, edges of the image at -1
            and 1.
        kind: "affine", "tps" or "affine_tps" (the affine map of the spline of the position).
        interpolation: "bilinear" or "nearest" (half to even).
        protocol: "clean" = one composed lookup, one alignment, so that identity parameters change nothing; "released" =
            what the release of SemiMatch does: affine and spline one after the other, the spline on a corner-aligned
            grid.

    Returns: (warped [B,C,H,W], 0 where not valid; valid [B,H,W] bool). Valid: the whole 2x2 support lies inside the
        image (clean nearest: the position lies inside).
    Gradient: to ``image``. Source: spatial transformers (Jaderberg et al., 2015); Rocco et al., CVPR 2017 for the
    spline.
    """
    if not isinstance(image, Tensor) or image.dim() != 4 or image.dtype not in _checks.FLOATS:
        raise TypeError(f"image: expected floating [B,C,H,W], got {_checks.describe(image)}")
    _checks.check_choice(interpolation, "interpolation", ("bilinear", "nearest"))
    _check_theta(theta, image.shape[0], kind, protocol)
    _checks.check_device(theta, "theta", image, "image")
    choose("warp", backend, image)
    return _reference.warp(image, theta, kind, interpolation, protocol == "released")


def warp_lookup(
    theta: Tensor,
    grid: Sequence[int],
    kind: str = "affine_tps",
    protocol: str = "clean",
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The nearest-neighbour `warp` of a grid of cells as indices, to move labels, scores and masks.

    Args: theta, kind, protocol as in `warp`; grid: (H, W).
    Returns: (cell [B,H*W] int64 that each output cell reads, 0 where invalid; valid [B,H*W] bool). No gradient.
    """
    _check_theta(theta, None, kind, protocol)
    height, width = _checks.check_grid(grid, None)
    choose("warp_lookup", backend, theta)
    with torch.no_grad():
        return _reference.warp_lookup(theta, (height, width), kind, protocol == "released")
