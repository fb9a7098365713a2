"""Reference of the masked contrastive loss: weighted cross-entropy over the source cells of each target cell."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._checks import accumulate_dtype
from .correlation import correlate, normalized


def cell_losses(corr: Tensor, labels: Tensor, temperature: float, weight: Tensor | None, keep: Tensor) -> Tensor:
    """Weighted cross-entropy [B,T] of ``corr`` [B,S,T] in the accumulate dtype, exactly 0 (and gradient 0) where not
    ``keep``."""
    x = corr.to(accumulate_dtype(corr.dtype)) / temperature
    x = torch.where(
        keep[:, None], x, 0
    )  # so that a non-finite score of a dropped cell reaches neither loss nor gradient
    cells = corr.shape[1]
    positive = x.gather(1, labels.clamp(0, cells - 1)[:, None]).squeeze(1)
    loss = x.logsumexp(1) - positive
    loss = torch.where(labels >= cells, torch.nan, loss)  # a label that names no cell must not pass as a number
    if weight is not None:
        loss = loss * weight.detach().to(loss.dtype)
    return torch.where(keep, loss, 0)


def reduce(losses: Tensor, keep: Tensor, reduction: str) -> Tensor:
    """``losses`` [B,T] as they are, summed, or summed and divided by the number of kept cells (0 if there is none)."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / keep.sum().clamp(min=1)


def kept(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Cells that count: masked in, and with a label (negative = ignored)."""
    return labels >= 0 if mask is None else mask & (labels >= 0)


def masked_contrastive_loss_features(
    src: Tensor, trg: Tensor, labels: Tensor, temperature: float, weight: Tensor | None, keep: Tensor,
    normalize: bool, eps: float, chunk: int = 1024,
) -> Tensor:  # fmt: skip
    """`cell_losses` of the correlation of ``src`` [B,C,S] and ``trg`` [B,C,T], ``chunk`` target cells at a time."""
    if normalize:
        src, trg = normalized(src, eps), normalized(trg, eps)

    def block(source: Tensor, target: Tensor, part: slice) -> Tensor:
        part_weight = None if weight is None else weight[:, part]
        return cell_losses(correlate(source, target), labels[:, part], temperature, part_weight, keep[:, part])

    slices = [slice(start, start + chunk) for start in range(0, trg.shape[2], chunk)]
    return torch.cat([checkpoint(block, src, trg[:, :, s], s, use_reentrant=False) for s in slices], 1)
