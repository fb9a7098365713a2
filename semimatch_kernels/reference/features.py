"""From features without the S x T matrix: an op on the columns of a correlation, a block of target cells at a time.

Memory is O((S + T) C + S * CHUNK): each block of the correlation is formed, used and dropped, and formed again for the
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._checks import Grid, accumulate_dtype
from . import contrastive, matching
from .correlation import correlate, normalized, normalized_backward, product

CHUNK = 1024  # target cells a block

# What a block computes: (correlation [B,S,n], the block's slice of the target cells) -> results with dim 1 = n.
Block = Callable[[Tensor, slice], Sequence[Tensor]]
# Its gradient by the correlation of the block.
BlockGradient = Callable[[Tensor, slice], Tensor]


def _blocks(cells: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, cells, CHUNK)]


def _part(mask: Tensor | None, block: slice) -> Tensor | None:
    return None if mask is None else mask[:, block]


def _kept(features: Tensor, mask: Tensor | None) -> Tensor:
    return features if mask is None else features.masked_fill(~mask[:, None], 0)


class _Features:
    """Features [B,C,S] and [B,C,T] with their normalisation and masks: blocks of their correlation, and the gradient
    by the features gathered from the gradients by the blocks."""

    def __init__(
        self, src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, normalize: str,
        eps: float,
    ):  # fmt: skip
        self.raw, self.how = (src, trg), (normalize, eps)
        self.masks = source_mask, target_mask
        # Zero where masked out: a NaN there must not reach the other side's gradient as 0 * NaN.
        # In the accumulate dtype: what follows is computed there, and would see the rounding of a half product.
        wide = accumulate_dtype(src.dtype)
        self.src, self.trg = (
            _kept(normalized(f, *self.how), mask).to(wide) for f, mask in zip(self.raw, self.masks, strict=True)
        )

    def corr(self, block: slice) -> Tensor:
        return matching.admissible(
            correlate(self.src, self.trg[:, :, block]), self.masks[0], _part(self.masks[1], block)
        )

    def map(self, op: Block) -> tuple[Tensor, ...]:
        parts = [op(self.corr(block), block) for block in _blocks(self.trg.shape[2])]
        return tuple(torch.cat(outputs, 1) for outputs in zip(*parts, strict=True))

    def gradient(self, op: BlockGradient) -> tuple[Tensor, Tensor]:
        grad_src, grad_trg = torch.zeros_like(self.src), torch.empty_like(self.trg)
        for block in _blocks(self.trg.shape[2]):
            by_corr = op(self.corr(block), block)
            grad_src += product(self.trg[:, :, block], by_corr.transpose(1, 2))
            grad_trg[:, :, block] = product(self.src, by_corr)
        grads = (normalized_backward(f, *self.how, g) for f, g in zip(self.raw, (grad_src, grad_trg), strict=True))
        return tuple(_kept(g, mask) for g, mask in zip(grads, self.masks, strict=True))  # type: ignore[return-value]


def match_features(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: Grid, temperature: float,
    normalize: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """`matching.match` of the correlation of ``src`` [B,C,S] and ``trg`` [B,C,T]."""
    features = _Features(src, trg, source_mask, target_mask, normalize, eps)
    return features.map(lambda corr, block: matching.match(corr, grid, temperature))  # type: ignore[return-value]


def match_features_backward(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: Grid, temperature: float,
    normalize: str, eps: float, coords: Tensor, score: Tensor, entropy: Tensor, logsumexp: Tensor, index: Tensor,
    *grads: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient by both features, from results and gradients as in `matching.match_backward`."""
    saved = (coords, score, entropy, logsumexp, index)

    def by_corr(corr: Tensor, block: slice) -> Tensor:
        parts = [_part(t, block) for t in (*saved, *grads)]
        return matching.match_backward(corr, grid, temperature, *parts)

    return _Features(src, trg, source_mask, target_mask, normalize, eps).gradient(by_corr)


def soft_argmax_features(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: Grid, temperature: float,
    window: str, width: float, normalize: str, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`matching.soft_argmax` of the correlation of ``src`` [B,C,S] and ``trg`` [B,C,T]."""
    features = _Features(src, trg, source_mask, target_mask, normalize, eps)
    return features.map(  # type: ignore[return-value]
        lambda corr, block: matching.soft_argmax(corr, grid, temperature, window, width)
    )


def soft_argmax_features_backward(
    src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None, grid: Grid, temperature: float,
    window: str, width: float, normalize: str, eps: float, coords: Tensor, index: Tensor, grad_coords: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient by both features, from results and gradient as in `matching.soft_argmax_backward`."""

    def by_corr(corr: Tensor, block: slice) -> Tensor:
        parts = coords[:, block], index[:, block], grad_coords[:, block]
        return matching.soft_argmax_backward(corr, grid, temperature, window, width, *parts)

    return _Features(src, trg, source_mask, target_mask, normalize, eps).gradient(by_corr)


def masked_contrastive_loss_features(
    src: Tensor, trg: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, source_mask: Tensor | None,
    temperature: float, reduction: str, width: int, sigma: float, radius: int, normalize: str, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`contrastive.masked_contrastive_loss` of the correlation of ``src`` [B,C,S] and ``trg`` [B,C,T]."""

    def block_loss(corr: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        parts = labels[:, block], _part(weight, block), _part(mask, block)
        return contrastive.masked_contrastive_loss(corr, *parts, temperature, "none", width, sigma, radius)[:2]

    keep = contrastive.kept(labels, mask)
    loss, logsumexp = _Features(src, trg, source_mask, keep, normalize, eps).map(block_loss)
    count = keep.sum()
    if reduction != "none":
        loss = loss.sum()
    return (loss / count.clamp(min=1) if reduction == "mean" else loss), logsumexp, count


def masked_contrastive_loss_features_backward(
    src: Tensor, trg: Tensor, labels: Tensor, weight: Tensor | None, mask: Tensor | None, source_mask: Tensor | None,
    temperature: float, reduction: str, width: int, sigma: float, radius: int, normalize: str, eps: float,
    logsumexp: Tensor, count: Tensor, grad: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradient by both features, from results and gradient as in `contrastive.masked_contrastive_loss_backward`."""

    def by_corr(corr: Tensor, block: slice) -> Tensor:
        parts = labels[:, block], _part(weight, block), _part(mask, block)
        return contrastive.masked_contrastive_loss_backward(
            corr, *parts, temperature, reduction, width, sigma, radius,
            logsumexp[:, block], count, grad if reduction != "none" else grad[:, block],
        )  # fmt: skip

    return _Features(src, trg, source_mask, contrastive.kept(labels, mask), normalize, eps).gradient(by_corr)
