"""Reference of the pseudo labels: from a correlation to (label, weight, mask) for each target cell."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import Grid
from .consistency import cell_xy, forward_backward_mask
from .matching import match


def inside_box(index: Tensor, grid: Grid, box: Tensor) -> Tensor:
    """Whether the cells ``index`` [B,N] lie in ``box`` [B,4] (x1,y1,x2,y2 in cells, rounded half to even, ends
    included)."""
    x, y = cell_xy(index, grid)
    x1, y1, x2, y2 = box.round().unbind(1)
    return (x >= x1[:, None]) & (x <= x2[:, None]) & (y >= y1[:, None]) & (y <= y2[:, None])


def pseudo_labels(
    corr: Tensor, source_grid: Grid, target_grid: Grid, temperature: float, threshold: float, uncertainty: float,
    src_box: Tensor | None, trg_box: Tensor | None, forward_backward: bool,
    alpha1: float, alpha2: float, sampling: str, entropy_eps: float, cell: Tensor | None, valid: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Labels int64, weight, mask bool, score and entropy, each [B,T], of ``corr`` [B,S,T]; read at ``cell`` [B,T] where
    ``valid``, if given."""
    _, score, entropy, logsumexp, labels = match(corr, source_grid, temperature)
    if entropy_eps:  # the release adds a small number to each probability
        finite = logsumexp.masked_fill(logsumexp == -torch.inf, 0)  # of a cell with no admissible match
        p = (corr.to(logsumexp.dtype) / temperature - finite[:, None]).exp() + entropy_eps
        entropy = -(p * p.log()).sum(1)
    # A cell with no admissible match has score 0, which a threshold of 0 would let pass.
    mask = (score >= threshold) & (logsumexp != -torch.inf)
    if src_box is not None:
        mask = mask & inside_box(labels, source_grid, src_box)
    if trg_box is not None:
        mask = mask & inside_box(torch.arange(corr.shape[2], device=corr.device)[None], target_grid, trg_box)
    if forward_backward:
        index_source = corr.argmax(2)
        mask = mask & forward_backward_mask(labels, index_source, target_grid, source_grid, alpha1, alpha2, sampling)
    weight = torch.exp(-uncertainty * entropy)
    if cell is None:
        return labels, weight, mask, score, entropy
    labels, weight, mask, score, entropy = (v.gather(1, cell) for v in (labels, weight, mask, score, entropy))
    return torch.where(valid, labels, -1), weight, mask & valid, score, entropy
