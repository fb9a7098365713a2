"""Fake kernels: the shape, dtype and layout of what each op returns, without computing it."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import accumulate_dtype


def _side_like(like: Tensor, cells: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Coords, score, entropy, logsumexp, index of ``cells`` cells."""
    batch, dtype = like.shape[0], accumulate_dtype(like.dtype)
    floats = [like.new_empty((batch, cells), dtype=dtype) for _ in range(3)]
    coords = like.new_empty((batch, cells, 2), dtype=dtype)
    return coords, *floats, like.new_empty((batch, cells), dtype=torch.int64)


def _grad_like(corr: Tensor) -> Tensor:
    """The gradient follows the layout of ``corr`` [B,S,T]: the side with the smaller stride is contiguous."""
    batch, sources, targets = corr.shape
    if corr.stride(1) < corr.stride(2):
        return corr.new_empty((batch, targets, sources)).transpose(1, 2)
    return corr.new_empty((batch, sources, targets))


def correlation(src, trg, normalize, eps, scale, relu, power, out_dtype):
    shape = (src[0].shape[0], len(src), src[0].shape[2], trg[0].shape[2])
    return src[0].new_empty(shape, dtype=out_dtype)


def correlation_backward(src, trg, *args):
    return [s.new_empty(s.shape) for s in src], [t.new_empty(t.shape) for t in trg]


def mutual_filter(corr, eps):
    rows, columns = corr.shape[:-1], (*corr.shape[:-2], corr.shape[-1])
    indices = (corr.new_empty(shape, dtype=torch.int64) for shape in (rows, columns))
    return corr.new_empty(corr.shape), *indices


def mutual_filter_backward(corr, *args):
    return corr.new_empty(corr.shape)


def match(corr, grid, temperature):
    return _side_like(corr, corr.shape[2])


def match_backward(corr, *args):
    return _grad_like(corr)


def match_both(corr, source_grid, target_grid, temperature):
    return *_side_like(corr, corr.shape[2]), *_side_like(corr, corr.shape[1])


match_both_backward = match_backward


def match_features(src, trg, *args):
    return _side_like(src, trg.shape[2])


def match_features_backward(src, trg, *args):
    return src.new_empty(src.shape), trg.new_empty(trg.shape)


def soft_argmax(corr, *args):
    coords, _, _, _, index = _side_like(corr, corr.shape[2])
    return coords, index


soft_argmax_backward = match_backward


def soft_argmax_features(src, trg, *args):
    coords, _, _, _, index = _side_like(src, trg.shape[2])
    return coords, index


soft_argmax_features_backward = match_features_backward


def dual_softmax(corr, temperature, log):
    (batch, sources, targets), dtype = corr.shape, accumulate_dtype(corr.dtype)
    shapes = (batch, sources, targets), (batch, targets), (batch, sources)
    return tuple(corr.new_empty(shape, dtype=dtype) for shape in shapes)


dual_softmax_backward = match_backward


def _loss_like(like: Tensor, cells: int | torch.SymInt, reduction: str) -> tuple[Tensor, Tensor, Tensor]:
    shape, dtype = (like.shape[0], cells), accumulate_dtype(like.dtype)
    loss = like.new_empty(shape if reduction == "none" else (), dtype=dtype)
    return loss, like.new_empty(shape, dtype=dtype), like.new_empty((), dtype=torch.int64)


def masked_contrastive_loss(corr, labels, weight, mask, temperature, reduction, *args):
    return _loss_like(corr, corr.shape[2], reduction)


masked_contrastive_loss_backward = match_backward


def masked_contrastive_loss_features(src, trg, labels, weight, mask, source_mask, temperature, reduction, *args):
    return _loss_like(src, trg.shape[2], reduction)


masked_contrastive_loss_features_backward = match_features_backward


def forward_backward_mask(index_own, *args):
    return index_own.new_empty(index_own.shape, dtype=torch.bool)


def pseudo_labels(corr, *args):
    shape, dtype = (corr.shape[0], corr.shape[2]), accumulate_dtype(corr.dtype)
    dtypes = torch.int64, dtype, torch.bool, dtype, dtype
    return tuple(corr.new_empty(shape, dtype=d) for d in dtypes)
