"""Reference of the masked contrastive loss: weighted cross-entropy over the source cells of each target cell."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype


def kept(labels: Tensor, mask: Tensor | None) -> Tensor:
    """Cells that count: masked in, and with a label (negative = ignored)."""
    return labels >= 0 if mask is None else mask & (labels >= 0)


def smoothed(x: Tensor, labels: Tensor, width: int, sigma: float, radius: int) -> Tensor:
    """The distribution over the source cells that each label [B,T] asks for, [B,S,T]: a Gaussian of ``sigma`` cells on
    the square of ``radius`` round the label, inside the grid of ``width`` columns, over the entries of the scores ``x``
    that are not excluded, normalised; 0 where nothing is left."""
    cells = x.shape[1]
    cell, label = torch.arange(cells, device=x.device)[:, None], labels[:, None].clamp(0, cells - 1)
    dx = cell % width - label % width
    dy = torch.div(cell, width, rounding_mode="floor") - torch.div(label, width, rounding_mode="floor")
    inside = (dx.abs() <= radius) & (dy.abs() <= radius) & (x != -torch.inf)
    q = torch.exp(-(dx * dx + dy * dy).to(x.dtype) / (2 * sigma * sigma)) * inside
    total = q.sum(1, keepdim=True)
    return q / torch.where(total == 0, 1, total)


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
    positive = x.gather(1, labels.clamp(0, corr.shape[1] - 1)[:, None]).squeeze(1)
    if sigma != 0:  # a score of -inf with goal 0 has no say: 0 * -inf must not be formed
        q = smoothed(x, labels, width, sigma, radius)
        excluded = positive == -torch.inf  # costs infinitely much, whatever its neighbours
        positive = (q * x.masked_fill(q == 0, 0)).sum(1) - torch.zeros_like(positive).masked_fill(excluded, torch.inf)
    # A column with nothing admissible: its label is on an excluded entry too.
    loss = torch.where(logsumexp == -torch.inf, torch.inf, logsumexp - positive)
    # A label that names no cell must not pass as a number, in the gradient neither.
    loss = loss * torch.ones_like(loss).masked_fill(labels >= corr.shape[1], torch.nan)
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
        out -= smoothed(x, labels, width, sigma, radius)
    out.masked_fill_((labels >= corr.shape[1])[:, None], torch.nan)
    factor = grad / count.clamp(min=1) if reduction == "mean" else grad
    if weight is not None:
        factor = factor * weight.to(x.dtype)
    factor = torch.where(keep, factor, 0)[:, None] / temperature
    # Not a product with 0: what was not kept may be NaN.
    return torch.where(keep[:, None], out * factor, 0).to(corr.dtype)
