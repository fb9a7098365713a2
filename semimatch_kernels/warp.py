"""Geometric warps of images and of label maps: affine, thin-plate spline and their composition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _checks, library
from .backends import choose

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
    r"""Resample ``image`` where the map of each output pixel points.

    :math:`I'(x) = I(A(\phi(x)))`, with A the affine map, :math:`\phi` the thin-plate spline with the kernel
    :math:`U(r) = r^2 \ln r^2` on 3 x 3 control points, and either left out by ``kind``.

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
        backend: as in `match`.

    Returns: (warped [B,C,H,W], 0 where not valid; valid [B,H,W] bool). Valid: the whole 2x2 support lies inside the
        image (clean nearest: the position lies inside).
    Gradient: to ``image``, and to ``theta`` where positions vary ("bilinear"); any number of times.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: 4 elements read (nearest: 1) and 1 written an output value, about 8 flops; the positions about 150 flops a
        pixel for a spline, in float64. "released" with both maps resamples twice.
    Called: the strong view and its masks in SemiMatch; GeometricTnf of NCNet and CNNGeometric.
    Source: spatial transformers (Jaderberg et al., 2015); Rocco et al., CVPR 2017, for the spline.

    Example:
        >>> image, identity = torch.rand(1, 3, 8, 8), torch.tensor([[1.0, 0, 0, 0, 1, 0]])
        >>> warped, valid = smk.warp(image, identity, kind="affine")
        >>> torch.allclose(warped, image), bool(valid.all())
        (True, True)
    """
    if not isinstance(image, Tensor) or image.dim() != 4 or image.dtype not in _checks.FLOATS:
        raise TypeError(f"image: expected floating [B,C,H,W], got {_checks.describe(image)}")
    _checks.check_choice(interpolation, "interpolation", ("bilinear", "nearest"))
    _check_theta(theta, image.shape[0], kind, protocol)
    _checks.check_device(theta, "theta", image, "image")
    chosen = choose("warp", backend, image)
    return library.run("warp", chosen, image, theta, kind, interpolation, protocol == "released")


def warp_lookup(
    theta: Tensor,
    grid: Sequence[int],
    kind: str = "affine_tps",
    protocol: str = "clean",
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The nearest-neighbour `warp` of a grid of cells as indices, to move labels, scores and masks.

    The cell nearest to :math:`A(\phi(x))` for each cell centre x, with A and :math:`\phi` as in `warp`.

    Args:
        theta, kind, protocol: as in `warp`. grid: (H, W). backend: as in `match`.

    Returns: (cell [B,H*W] int64 that each output cell reads, 0 where invalid; valid [B,H*W] bool).
    Gradient: none. Raises: as `warp`.
    Cost: the positions of H*W cells (flops as in `warp`); 9 bytes written a cell.
    Called: moves pseudo labels to the frame of the strong view in SemiMatch, where the release warps the whole
        correlation. Source: as `warp`.

    Example:
        >>> flip = torch.tensor([[-1.0, 0, 0, 0, 1, 0]])  # left and right
        >>> smk.warp_lookup(flip, (1, 4), kind="affine")[0]
        tensor([[3, 2, 1, 0]])
    """
    _check_theta(theta, None, kind, protocol)
    height, width = _checks.check_grid(grid, None, side="warped")
    chosen = choose("warp_lookup", backend, theta)
    return library.run("warp_lookup", chosen, theta.detach(), (height, width), kind, protocol == "released")
