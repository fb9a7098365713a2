"""Forward-backward consistency of two sets of matches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, library
from .backends import choose

__all__ = ["forward_backward_mask"]


def forward_backward_mask(
    index_target: Tensor, index_source: Tensor, grid: Sequence, alpha1: float = 0.1, alpha2: float = 0.5,
    sampling: str = "gather", per: str = "target", *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    r"""Which matches lead back to where they came from.

    A cell is consistent if :math:`|f + b|^2 \le \alpha_1 (|f|^2 + |b|^2) + \alpha_2`, with f its flow in cells and b
    the other side's flow where f lands.

    Args:
        index_target: [B,T] int64, the source cell of each target cell (`match` per "both" gives the two).
        index_source: [B,S] int64, the target cell of each source cell.
        grid: (H, W) of both sides, or (source grid, target grid). Unequal grids are compared corner to corner.
        alpha1: what share of the squared lengths of f and b the squared length of f + b may be.
        alpha2: what it may be beyond that, in squared cells.
        sampling: "gather" reads b in the cell where f lands; "bilinear" samples it as the release of SemiMatch does
            (cell-centred reading of corner-aligned positions, zero padding).
        per: "target" -> mask of the target cells, "source" -> of the source cells.
        backend: as in `match`.

    Returns: bool [B,T] (or [B,S]). The indices are trusted to lie in the other grid.
    Gradient: none.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: reads 2 indices (16 bytes) and writes 1 byte a cell; about 12 flops a cell.
    Called: the occlusion mask of the SemiMatch release (bilinear), cycle-consistency checks of dense flow.
    Source: SemiMatch (Kim et al., CVPR 2022); the inequality is that of Sundaram et al., ECCV 2010, in cells.

    Example:
        >>> target, source = smk.match(torch.eye(16)[None], ((4, 4), (4, 4)), per="both")
        >>> smk.forward_backward_mask(target.index, source.index, (4, 4)).all()
        tensor(True)
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
    alpha1, alpha2 = float(alpha1), float(alpha2)
    _checks.check_choice(sampling, "sampling", ("gather", "bilinear"))
    _checks.check_choice(per, "per", ("target", "source"))
    source, target = _checks.check_equal_grids(grid, index_source.shape[1], index_target.shape[1])
    chosen = choose("forward_backward_mask", backend, index_target)
    own = (index_target, index_source, target, source)
    if per == "source":
        own = (index_source, index_target, source, target)
    return library.run("forward_backward_mask", chosen, *own, alpha1, alpha2, sampling)
