"""Soft-argmax, plain or with a window round the best cell; of a correlation, or from features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from . import _checks, library
from ._checks import Grid
from .backends import choose
from .coordinates import Coordinates, check_coordinates, convert
from .matching import FeatureSides, check_sides, match, match_features, per_side
from .reference.matching import admissible

__all__ = ["GaussianWindow", "HardWindow", "soft_argmax", "soft_argmax_features"]


@dataclass(frozen=True)
class GaussianWindow:
    """Scores are multiplied by exp(-d^2 / (2 sigma^2)), d the distance in cells from the best cell (as SFNet and CHM
    do)."""

    sigma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", _checks.check_sigma(self.sigma))


@dataclass(frozen=True)
class HardWindow:
    """Only the square of ``radius`` cells round the best cell counts: outside, scores are excluded, or multiplied by
    zero."""

    radius: int
    outside: str = "exclude"

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", _checks.check_count(self.radius, "radius"))
        _checks.check_choice(self.outside, "outside", ("exclude", "zero"))


Window = GaussianWindow | HardWindow


def _kind(window: object) -> tuple[str, float]:
    """Kind and width of a window, as the op has them."""
    if isinstance(window, GaussianWindow):
        return "gaussian", float(window.sigma)
    if isinstance(window, HardWindow):
        return window.outside, float(window.radius)
    raise TypeError(f"window: expected GaussianWindow, HardWindow or None, got {_checks.describe(window)}")


def soft_argmax(
    corr: Tensor, grid: Sequence, temperature: float = 0.1, per: str = "target", window: Window | None = None, *,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, coordinates: Coordinates = "corners",
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    r"""Expected position of the match, :math:`\sum_s p_{st} (X_s, Y_s)`, optionally windowed round the best cell.

    :math:`p = \mathrm{softmax}_s(C_{st}/\tau)`; with a window :math:`p = \mathrm{softmax}_s(w_s C_{st}/\tau)`, w a
    Gaussian, or 1 inside a square and 0 outside it; or the softmax of the scores inside the square alone.

    Args:
        corr, grid, temperature, source_mask, target_mask, coordinates, backend: as in `match`.
        per: "target" or "source" (`match` gives both sides).
        window: `GaussianWindow`, `HardWindow` or None; it follows the best cell, and is constant for the gradient.

    Returns: [B,T,2] (or [B,S,2]) (x, y), float32 (float64 for float64).
    Gradient: to ``corr``, once. Ties: the window lies round the lowest index. Raises: as `match`.
    Cost: as `match`; with a window forward reads C twice (the best cell comes first) and writes 16 bytes a cell in
        float32, about 12 flops and 2 exp an entry.
    Called: soft_argmax of CATs (plain); kernel soft-argmax of SFNet (sigma 5, its beta = 50 is temperature 0.02),
        apply_gaussian_kernel of CHM (17) and TransforMatcher (10); get_flow of GeoAware-SC (`HardWindow`, zero).
    Source: SFNet (Lee et al., CVPR 2019) for the Gaussian; GeoAware-SC (Zhang et al., CVPR 2024) for the square.

    Example:
        >>> corr = torch.eye(9)[None]  # each cell of a 3 x 3 grid matches itself
        >>> xy = smk.soft_argmax(corr, (3, 3), window=smk.GaussianWindow(2.0), coordinates="cells")
        >>> xy[0, 5].round()  # cell 5: column 2, row 1
        tensor([2., 1.])
    """
    _checks.check_choice(per, "per", ("target", "source"))
    masks = {"source_mask": source_mask, "target_mask": target_mask}
    if window is None:
        return match(corr, grid, temperature, per, coordinates=coordinates, backend=backend, **masks).coords
    kind, width = _kind(window)
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    check_coordinates(coordinates)
    for (name, mask), cells in zip(masks.items(), corr.shape[1:], strict=True):
        _checks.check_mask(mask, name, (corr.shape[0], cells), corr, "corr")
    side, cells = ("source", corr.shape[1]) if per == "target" else ("target", corr.shape[2])
    grid = _checks.check_grid(grid, cells, side=side)
    chosen = choose("soft_argmax with a window", backend, corr)
    corr = admissible(corr, source_mask, target_mask)
    corr = corr if per == "target" else corr.transpose(1, 2)
    coords = library.run("soft_argmax", chosen, corr, grid, temperature, kind, width)[0]
    return convert(coords, grid, coordinates)


def soft_argmax_features(
    src: Tensor, trg: Tensor, grid: Sequence, temperature: float = 0.1, per: str = "target",
    window: Window | None = None, normalize: bool | str = True, eps: float = 1e-6, *,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, coordinates: Coordinates = "corners",
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    r"""`soft_argmax` of ``correlation(src, trg)`` without ever holding the S x T matrix.

    The equations of `soft_argmax` with :math:`C_{st} = \langle \hat f_s, \hat g_t \rangle`, features normalised as in
    `correlation`.

    Args:
        src, trg, normalize, eps: as in `match_features`.
        grid, temperature, per, window, source_mask, target_mask, coordinates, backend: as in `soft_argmax`.

    Returns: as `soft_argmax`. Gradient: to both feature maps, once. Raises: as `match_features`.
    Cost: as `match_features`, flops, bytes and memory.
    Called: get_flow and calculate_keypoint_transformation of GeoAware-SC (query rows: per="source" with src [B,C,Q]).
    Source: as `soft_argmax`.

    Example:
        >>> src, queries = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 5)  # 5 query vectors
        >>> smk.soft_argmax_features(src, queries, (4, 4), window=smk.HardWindow(2)).shape
        torch.Size([1, 5, 2])
    """
    _checks.check_choice(per, "per", ("target", "source"))
    masks = {"source_mask": source_mask, "target_mask": target_mask}
    if window is None:
        return match_features(
            src, trg, grid, temperature, per, normalize, eps, coordinates=coordinates, backend=backend, **masks
        ).coords
    kind, width = _kind(window)
    sides = check_sides(src, trg, **masks)
    temperature = _checks.check_temperature(temperature)
    normalize, eps = _checks.check_normalize(normalize, eps)
    check_coordinates(coordinates)
    chosen = choose("soft_argmax_features", backend, sides.src)

    def one(sides: FeatureSides, grid: Grid) -> Tensor:
        args = (*sides, grid, temperature, kind, width, normalize, eps)
        return convert(library.run("soft_argmax_features", chosen, *args)[0], grid, coordinates)

    return per_side(sides, grid, per, one)  # type: ignore[return-value]
