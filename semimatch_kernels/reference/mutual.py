"""Reference of the mutual nearest-neighbour filters, soft and hard."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype

ZERO = 1e-30  # stands for a maximum of exactly 0


def _divisor(largest: Tensor, eps: float | None) -> Tensor:
    """What entries are divided by: the maximum, ``ZERO`` if it is exactly 0; or the maximum plus ``eps``."""
    return torch.where(largest == 0, largest + ZERO, largest) if eps is None else largest + eps


def mutual_filter(corr: Tensor, eps: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """C * ((C / row) * (C / column)) of ``corr`` [...,S,T], row and column the largest of each (see `_divisor`), in the
    accumulate dtype, where 1e-30 exists; and the columns [...,S], rows [...,T] of those maxima, the lowest of ties."""
    c = corr.to(accumulate_dtype(corr.dtype))
    # max(dim), not amax: its gradient goes to one element, as the definition says; amax would share it.
    row, row_index = c.max(-1, keepdim=True)
    column, column_index = c.max(-2, keepdim=True)
    out = c * ((c / _divisor(row, eps)) * (c / _divisor(column, eps)))
    return out.to(corr.dtype), row_index.squeeze(-1), column_index.squeeze(-2)


def mutual_filter_backward(
    corr: Tensor, eps: float | None, row_index: Tensor, column_index: Tensor, grad: Tensor
) -> Tensor:
    """Gradient by ``corr``, through both maxima too."""
    c, g = corr.to(accumulate_dtype(corr.dtype)), grad.to(accumulate_dtype(corr.dtype))
    row_index, column_index = row_index.unsqueeze(-1), column_index.unsqueeze(-2)
    row, column = _divisor(c.gather(-1, row_index), eps), _divisor(c.gather(-2, column_index), eps)
    ratio = (c / row) * (c / column)
    product = g * (c * ratio)
    out = 3 * g * ratio
    out.scatter_add_(-1, row_index, -(product / row).sum(-1, keepdim=True))
    out.scatter_add_(-2, column_index, -(product / column).sum(-2, keepdim=True))
    return out.to(corr.dtype)


def mutual_mask(corr: Tensor, threshold: float | None) -> Tensor:
    """Entries of ``corr`` [...,S,T] that are the best of their row and of their column, the lowest index of ties, and
    above ``threshold``."""
    row, column = corr.argmax(-1, keepdim=True), corr.argmax(-2, keepdim=True)
    s = torch.arange(corr.shape[-2], device=corr.device)[:, None]
    t = torch.arange(corr.shape[-1], device=corr.device)
    mask = (row == t) & (column == s) & (corr != -torch.inf)
    return mask if threshold is None else mask & (corr > threshold)
