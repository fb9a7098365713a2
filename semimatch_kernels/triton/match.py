"""The four launchers of `match`, as `semimatch_kernels.library` has them in its schemas."""

from __future__ import annotations

from torch import Tensor

from . import configs
from .match_both import match_both_backward, match_both_one_read
from .match_one import match, match_backward

__all__ = ["match", "match_backward", "match_both", "match_both_backward"]


def match_both(
    corr: Tensor, source_grid: tuple[int, int], target_grid: tuple[int, int], temperature: float
) -> tuple[Tensor, ...]:
    """`match` for each target cell, then for each source cell: five results each. ``corr`` [B,S,T], any
    strides.

    A correlation that fits in L2 is read by two launches without a second stage, which is faster there; a
    larger one is read once.
    """
    if corr.numel() * corr.element_size() <= configs.architecture(corr.device).cache_bytes:
        return *match(corr, source_grid, temperature), *match(corr.transpose(1, 2), target_grid, temperature)
    return match_both_one_read(corr, source_grid, target_grid, temperature)
