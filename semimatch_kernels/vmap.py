"""vmap rules: the mapped dimension is folded into the batch, the op is called once, and the results are unfolded.

It is right for every op because samples of a batch do not meet, but in a loss that is reduced: there the loss of each
cell is taken, and reduced for each element of the mapped dimension alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .reference.contrastive import kept


def _fold(value, dim, size: int):
    """``value`` [B,...] mapped over ``dim`` as [size * B,...]; lists item by item; what is no tensor as it is."""
    if isinstance(value, (list, tuple)):
        dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(value)
        return [_fold(v, d, size) for v, d in zip(value, dims, strict=True)]
    if not isinstance(value, Tensor):
        return value
    return _mapped(value, dim, size).flatten(0, 1)


def _mapped(value: Tensor, dim: int | None, size: int) -> Tensor:
    """``value`` with the mapped dimension first."""
    return value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)


def _unfold(result, size: int):
    if isinstance(result, (list, tuple)):
        return type(result)(_unfold(r, size) for r in result)
    return result.unflatten(0, (size, result.shape[0] // size))


def _dims(result):
    return type(result)(_dims(r) for r in result) if isinstance(result, (list, tuple)) else 0


def _folded(op: Callable) -> Callable:
    def rule(info, in_dims, *args):
        folded = [_fold(a, d, info.batch_size) for a, d in zip(args, in_dims, strict=True)]
        result = _unfold(op(*folded), info.batch_size)
        return result, _dims(result)

    return rule


# Positions in the schemas of the contrastive losses: of labels, mask and reduction.
_LOSS_AT = {"masked_contrastive_loss": (1, 3, 5), "masked_contrastive_loss_features": (2, 4, 7)}


def _loss(op: Callable, at: tuple[int, int, int]) -> Callable:
    def rule(info, in_dims, *args):
        size, (labels, mask, reduction) = info.batch_size, at
        folded = [_fold(a, d, size) for a, d in zip(args, in_dims, strict=True)]
        how, folded[reduction] = args[reduction], "none"
        loss, logsumexp, _ = (_unfold(r, size) if r.dim() else r for r in op(*folded))
        count = kept(folded[labels], folded[mask]).unflatten(0, (size, -1)).sum((1, 2))
        if how != "none":
            loss = loss.sum((1, 2))
        if how == "mean":
            loss = loss / count.clamp(min=1)
        return (loss, logsumexp, count), (0, 0, 0)

    return rule


def _loss_backward(op: Callable, at: tuple[int, int, int]) -> Callable:
    def rule(info, in_dims, *args):
        size, reduction = info.batch_size, at[2]
        *args, logsumexp, count, grad = args
        *dims, dim_logsumexp, dim_count, dim_grad = in_dims
        folded = [_fold(a, d, size) for a, d in zip(args, dims, strict=True)]
        logsumexp = _fold(logsumexp, dim_logsumexp, size)
        count, grad = _mapped(count, dim_count, size), _mapped(grad, dim_grad, size)
        if args[reduction] == "mean":
            grad = grad / count.clamp(min=1)
        if args[reduction] == "none":
            grad = grad.flatten(0, 1)
        else:
            cells = logsumexp.shape[1]
            grad = grad[:, None].expand(size, logsumexp.shape[0] // size).flatten()[:, None].expand(-1, cells)
        folded[reduction] = "none"
        result = _unfold(op(*folded, logsumexp, torch.zeros_like(count[0]), grad), size)
        return result, _dims(result)

    return rule


def rule(name: str, op: Callable) -> Callable:
    """The vmap rule of ``op``, which is op ``name`` of some backend."""
    if name in _LOSS_AT:
        return _loss(op, _LOSS_AT[name])
    if name.removesuffix("_backward") in _LOSS_AT:
        return _loss_backward(op, _LOSS_AT[name.removesuffix("_backward")])
    return _folded(op)
