"""Forward-backward consistency of two sets of matches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from .backends import choose
from .reference import consistency as _reference

__all__ = ["forward_backward_mask"]


def forward_backward_mask(
    index_target: Tensor, index_source: Tensor, grid: Sequence, alpha1: float = 0.1, alpha2: float = 0.5,
    sampling: str = "gather", per: str = "target", *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Which matches lead back to where they came from.

    A cell is consistent if |f + b|^2 <= alpha1 (|f|^2 + |b|^2) + alpha2, with f its flow in cells and b the other
    side's flow where f lands.

    Args:
        index_target: [B,T] int64, the source cell of each target cell; index_source: [B,S], the target cell of each
            source cell (`match` per "both" gives the two).
        grid: (H, W) of both sides, or (source grid, target grid). Unequal grids are compared corner to corner.
        sampling: "gather" reads b in the cell where f lands; "bilinear" samples it as the release of SemiMatch does
            (cell-centred reading of corner-aligned positions, zero padding).
        per: "target" -> mask of the target cells, "source" -> of the source cells.

    Returns: bool [B,T] (or [B,S]). No gradient. The indices are trusted to lie in the other grid.
    Source: SemiMatch; the inequality is that of Sundaram et al., ECCV 2010, in cells.
    """
    for value, name in ((index_target, "index_target"), (index_source, "index_source")):
        if not isinstance(value, Tensor) or value.dim() != 2 or value.dtype != torch.int64:
            raise TypeError(f"{name}: expected int64 [B,N], got {_checks.describe(value)}")
    if index_target.shape[0] != index_source.shape[0]:
        raise ValueError(
            f"index_target and index_source: expected one batch size, "
            f"got {tuple(index_target.shape)} and {tuple(index_source.shape)}"
        )
    _checks.check_device(index_source, "index_source", index_target, "index_target")
    for value, name in ((alpha1, "alpha1"), (alpha2, "alpha2")):
        _checks.check_number(value, name)
    _checks.check_choice(sampling, "sampling", ("gather", "bilinear"))
    _checks.check_choice(per, "per", ("target", "source"))
    if isinstance(grid, Sequence) and not any(isinstance(g, Sequence) for g in grid):
        grid = (grid, grid)
    source, target = _checks.check_grids(grid, index_source.shape[1], index_target.shape[1])
    choose("forward_backward_mask", backend, index_target)
    with torch.no_grad():
        if per == "target":
            return _reference.forward_backward_mask(
                index_target, index_source, target, source, alpha1, alpha2, sampling
            )
        return _reference.forward_backward_mask(index_source, index_target, source, target, alpha1, alpha2, sampling)
