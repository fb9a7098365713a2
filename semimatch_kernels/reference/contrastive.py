"""Reference of the masked contrastive loss: weighted cross-entropy over the source cells of each target cell."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype


def kept(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Cells that count: masked in, and with a label (negative = ignored)."""
    return labels >= 0 if mask is None else mask & (labels >= 0)


def smoothed(labels: Tensor, cells: int, width: int, sigma: float, radius: int, dtype: torch.dtype) -> Tensor:
    """The distribution over ``cells`` that each label [B,T] asks for, [B,cells,T]: a Gaussian of ``sigma`` cells on the
    square of ``radius`` round the label, inside the grid of ``width`` columns, normalised."""
    cell, label = torch.arange(cells, device=labels.device)[:, None], labels[:, None].clamp(0, cells - 1)
    dx = cell % width - label % width
    dy = torch.div(cell, width, rounding_mode="floor") - torch.div(label, width, rounding_mode="floor")
    inside = (dx.abs() <= radius) & (dy.abs() <= radius)
    q = torch.exp(-(dx * dx + dy * dy).to(dtype) / (2 * sigma * sigma)) * inside
    return q / q.sum(1, keepdim=True)


def _scores(corr: Tensor, keep: Tensor, temperature: float) -> Tensor:
    # Zero outside the mask, so that a non-finite score of a dropped cell reaches neither loss nor gradient.
    return torch.where(keep[:, None], corr.to(accumulate_dtype(corr.dtype)), 0) / temperature


def masked_contrastive_loss(
    corr: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, temperature: float, reduction: str,
    width: int, sigma: float, radius: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss [B,T] or its "sum" or "mean" over the cells that count, of ``corr`` [B,S,T]; the log-sum-exp [B,T] of the
    scores divided by the temperature (0 outside the mask); the number of cells that count."""
    keep = kept(labels, mask)
    x = _scores(corr, keep, temperature)
    logsumexp = x.logsumexp(1)
    if sigma == 0:
        positive = x.gather(1, labels.clamp(0, corr.shape[1] - 1)[:, None]).squeeze(1)
    else:  # a score of -inf with goal 0 has no say: 0 * -inf must not be formed
        q = smoothed(labels, corr.shape[1], width, sigma, radius, x.dtype)
        positive = (q * x.masked_fill(q == 0, 0)).sum(1)
    # A column with nothing admissible: its label is on an excluded entry too.
    loss = torch.where(logsumexp == -torch.inf, torch.inf, logsumexp - positive)
    # A label that names no cell must not pass as a number, in the gradient neither.
    loss = loss * torch.where(labels >= corr.shape[1], torch.nan, 1)
    if weight is not None:
        loss = loss * weight.detach().to(loss.dtype)
    loss, count = torch.where(keep, loss, 0), keep.sum()
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / count.clamp(min=1)
    return loss, torch.where(keep, logsumexp, 0), count


def masked_contrastive_loss_backward(
    corr: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, temperature: float, reduction: str,
    width: int, sigma: float, radius: int, logsumexp: Tensor, count: Tensor, grad: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient by ``corr``: weight (p - goal) / temperature for the cells that count, 0 elsewhere; ``grad`` [B,T] or
    a scalar."""
    keep = kept(labels, mask)
    x = _scores(corr, keep, temperature)
    out = (x - logsumexp.masked_fill(logsumexp == -torch.inf, 0)[:, None]).exp()
    if sigma == 0:
        label = labels.clamp(0, corr.shape[1] - 1)[:, None]
        out.scatter_add_(1, label, torch.full_like(label, -1, dtype=out.dtype))
    else:
        out -= smoothed(labels, corr.shape[1], width, sigma, radius, x.dtype)
    out.masked_fill_((labels >= corr.shape[1])[:, None], torch.nan)
    factor = grad / count.clamp(min=1) if reduction == "mean" else grad
    if weight is not None:
        factor = factor * weight.to(x.dtype)
    factor = torch.where(keep, factor, 0)[:, None] / temperature
    # Not a product with 0: what was not kept may be NaN.
    return torch.where(keep[:, None], out * factor, 0).to(corr.dtype)
