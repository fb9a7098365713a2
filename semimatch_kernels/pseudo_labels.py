"""Pseudo labels: what a confident correlation teaches another view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks
from .backends import choose
from .reference import pseudo_labels as _reference

__all__ = ["PseudoLabels", "pseudo_labels"]


class PseudoLabels(NamedTuple):
    """Teaching signal of each target cell, [B,T] each, without gradient."""

    labels: Tensor  #: int64, the source cell; -1 where a lookup reads outside the image
    weight: Tensor  #: exp(-uncertainty * entropy)
    mask: Tensor  #: bool, whether the cell teaches
    score: Tensor  #: probability of the label
    entropy: Tensor  #: in nats


def pseudo_labels(
    corr: Tensor, grid: Sequence, temperature: float = 0.1, threshold: float = 0.5, uncertainty: float = 1.5,
    src_box: Tensor | None = None, trg_box: Tensor | None = None, forward_backward: bool = True,
    alpha1: float = 0.1, alpha2: float = 0.5, sampling: str = "gather", entropy_eps: float = 0.0,
    lookup: tuple[Tensor, Tensor] | None = None, *, backend: str | None = None,
) -> PseudoLabels:  # fmt: skip
    """Label, weight and mask of every target cell from the correlation of a clean view.

    label = best source cell; weight = exp(-uncertainty * entropy of the softmax); mask = score >= threshold, and label
    inside the source box, and cell inside the target box, and forward-backward consistent.

    Args:
        corr: [B,S,T]. grid: (H, W) of both sides, or (source grid, target grid). temperature: divides the scores.
        threshold: least probability. uncertainty: 0 = every weight 1.
        src_box, trg_box: [B,4] (x1, y1, x2, y2) in cells (pixels / stride), rounded half to even, both ends inside.
        forward_backward, alpha1, alpha2, sampling: see `forward_backward_mask`.
        entropy_eps: added to each probability inside the entropy; the release uses 1e-6.
        lookup: (cell, valid) of `warp_lookup`: moves the result to the frame of a warped view. The same as warping
            the whole correlation with nearest sampling, at 1/S of the data.

    Returns: `PseudoLabels`. No gradient. Raises: TypeError / ValueError naming the argument.
    Source: SemiMatch (Kim et al., CVPR 2022), supplement Alg. 1.
    """
    corr = _checks.check_corr(corr).detach()
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    numbers = {"threshold": threshold, "uncertainty": uncertainty, "alpha1": alpha1, "alpha2": alpha2}
    for name, value in (numbers | {"entropy_eps": entropy_eps}).items():
        _checks.check_number(value, name)
    _checks.check_choice(sampling, "sampling", ("gather", "bilinear"))
    if isinstance(grid, Sequence) and not any(isinstance(g, Sequence) for g in grid):
        grid = (grid, grid)
    batch, sources, targets = corr.shape
    source_grid, target_grid = _checks.check_grids(grid, sources, targets)
    for box, name in ((src_box, "src_box"), (trg_box, "trg_box")):
        if box is not None:
            _checks.check_device(_checks.check_shape(box, name, (batch, 4)), name, corr, "corr")
    if lookup is not None:
        cell = _checks.check_shape(lookup[0], "lookup[0]", (batch, targets), (torch.int64,))
        valid = _checks.check_shape(lookup[1], "lookup[1]", (batch, targets), (torch.bool,))
        _checks.check_device(cell, "lookup[0]", corr, "corr")
        _checks.check_device(valid, "lookup[1]", corr, "corr")
    choose("pseudo_labels", backend, corr)
    with torch.no_grad():
        labels, weight, mask, score, entropy = _reference.pseudo_labels(
            corr, source_grid, target_grid, temperature, threshold, uncertainty,
            src_box, trg_box, forward_backward, alpha1, alpha2, sampling, entropy_eps,
        )  # fmt: skip
        if lookup is not None:
            labels, weight, mask, score, entropy = (v.gather(1, cell) for v in (labels, weight, mask, score, entropy))
            labels, mask = torch.where(valid, labels, -1), mask & valid
    return PseudoLabels(labels, weight, mask, score, entropy)
