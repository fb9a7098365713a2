"""The masked contrastive loss, from a correlation or straight from features."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from .backends import choose
from .reference import contrastive as _reference

__all__ = ["masked_contrastive_loss", "masked_contrastive_loss_features"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def _check_cells(
    labels: Tensor,
    weight: Tensor | None,
    mask: Tensor | None,
    like: Tensor,
    batch: int,
    cells: int,
    reduction: str,
) -> Tensor:
    """Check the per-cell arguments [B,N]; returns which cells count."""
    _checks.check_choice(reduction, "reduction", _checks.REDUCTIONS)
    _checks.check_shape(labels, "labels", (batch, cells), _INTEGERS)
    if weight is not None:
        _checks.check_shape(weight, "weight", (batch, cells), _checks.FLOATS)
    if mask is not None:
        _checks.check_shape(mask, "mask", (batch, cells), (torch.bool,))
    for value, name in ((labels, "labels"), (weight, "weight"), (mask, "mask")):
        if value is not None:
            _checks.check_device(value, name, like, "corr" if like.dim() == 3 else "src")
    return _reference.kept(labels, mask)


def masked_contrastive_loss(
    corr: Tensor, labels: Tensor, temperature: float = 0.1, weight: Tensor | None = None, mask: Tensor | None = None,
    reduction: str = "mean", per: str = "target", *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    r"""Cross-entropy of each target cell over the source cells, weighted and masked.

    :math:`\ell_t = w_t (\ln \sum_s e^{C_{st}/\tau} - C_{l_t t}/\tau)` for the cells in the mask, else 0.

    Args:
        corr: [B,S,T], any strides. labels: [B,T] integers, the right source cell; negative = ignored.
        temperature: divides the scores. weight: [B,T], constant for the gradient; None = 1.
        mask: [B,T] bool; None = every labelled cell.
        reduction: "none" [B,T], "sum", or "mean" = sum divided by the number of masked cells of the batch (not by
            the sum of weights); 0 with gradient 0 if there is none.
        per: "target", or "source" (labels, weight, mask [B,S], cross-entropy over the target cells).

    Returns: float32 (float64 for float64), [B,T] or a scalar. A label >= S gives NaN. Scores of cells outside the mask
        reach neither value nor gradient, not even as NaN.
    Gradient: to ``corr`` only, :math:`w_t (p_{st} - [s = l_t]) / \tau`, taken in float32 or wider.
    Raises: TypeError / ValueError naming the argument. Cost: C is read once forward, read and written once backward.
    Source: SemiMatch (Kim et al., CVPR 2022); InfoNCE (van den Oord et al., 2018).
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    _checks.check_choice(per, "per", ("target", "source"))
    if per == "source":
        corr = corr.transpose(1, 2)
    keep = _check_cells(labels, weight, mask, corr, corr.shape[0], corr.shape[2], reduction)
    choose("masked_contrastive_loss", backend, corr)
    losses = _reference.cell_losses(corr, labels.long(), temperature, weight, keep)
    return _reference.reduce(losses, keep, reduction)


def masked_contrastive_loss_features(
    src: Tensor, trg: Tensor, labels: Tensor, temperature: float = 0.1, weight: Tensor | None = None,
    mask: Tensor | None = None, reduction: str = "mean", per: str = "target", normalize: bool = True, eps: float = 1e-6,
    *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """`masked_contrastive_loss` of ``correlation(src, trg)`` without ever holding the S x T matrix.

    Args:
        src, trg: features [B,C,*grid]; normalize, eps: as in `correlation`; the rest as in `masked_contrastive_loss`.

    Gradient: to both feature maps. Memory: O((S + T) C) plus one chunk of columns.
    """
    _checks.check_features(src, trg)
    _checks.check_number(eps, "eps", 0)
    temperature = _checks.check_temperature(temperature)
    _checks.check_choice(per, "per", ("target", "source"))
    src, trg = src.flatten(2), trg.flatten(2)
    if per == "source":
        src, trg = trg, src
    keep = _check_cells(labels, weight, mask, src[None], src.shape[0], trg.shape[2], reduction)
    choose("masked_contrastive_loss_features", backend, src)
    losses = _reference.masked_contrastive_loss_features(
        src, trg, labels.long(), temperature, weight, keep, normalize, eps
    )
    return _reference.reduce(losses, keep, reduction)
