"""Reference of the correlation of two feature maps: its value, its gradient, and the epilogues matchers put on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .._checks import accumulate_dtype


def inverse_norm(features: Tensor, normalize: str, eps: float) -> tuple[Tensor, Tensor]:
    """Factor [B,1,N] that normalises ``features`` [B,C,N], and its derivative by the sum of squares.

    normalize: "inside" 1/sqrt(q + eps), "added" 1/(sqrt(q) + eps), "clamped" 1/max(sqrt(q), eps), q the sum of squares.
    At q = 0 the root of "added" has derivative 0, as the zero vector has no direction.
    """
    square = features.square().sum(1, keepdim=True)
    if normalize == "inside":
        factor = (square + eps).rsqrt()
        return factor, -0.5 * factor / (square + eps)
    zero = square == 0
    norm = torch.where(zero, 1, square).sqrt().masked_fill(zero, 0)
    slope = torch.where(zero, 0, 0.5 / torch.where(zero, 1, norm))  # of the norm, by q
    if normalize == "added":
        factor = 1 / (norm + eps)
    else:
        factor, slope = 1 / norm.clamp(min=eps), slope.masked_fill(norm < eps, 0)
    return factor, -slope * factor.square()


def normalized(features: Tensor, normalize: str, eps: float) -> Tensor:
    """``features`` [B,C,N] normalised over the channels, or as they are for "none"; sums in the accumulate dtype."""
    if normalize == "none":
        return features
    wide = features.to(accumulate_dtype(features.dtype))
    return (wide * inverse_norm(wide, normalize, eps)[0]).to(features.dtype)


def normalized_backward(features: Tensor, normalize: str, eps: float, grad: Tensor) -> Tensor:
    """Gradient by ``features`` of `normalized`, given that by its result."""
    if normalize == "none":
        return grad.to(features.dtype)
    wide, grad = features.to(accumulate_dtype(features.dtype)), grad.to(accumulate_dtype(features.dtype))
    factor, slope = inverse_norm(wide, normalize, eps)
    along = (grad * wide).sum(1, keepdim=True)
    return (factor * grad + 2 * slope * along * wide).to(features.dtype)


def divisor(scale: str, channels: int) -> float:
    """What products over ``channels`` are divided by: 1, sqrt(C) or C."""
    return {"none": 1.0, "sqrt_channels": channels**0.5, "channels": float(channels)}[scale]


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Inside, nothing is cast; nothing to do on a device that autocast does not know ("meta")."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext()


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product of ``a`` [B,M,K] and ``b`` [B,K,N] in their own dtype, under autocast too."""
    with without_autocast(a.device):
        return torch.bmm(a, b)


def correlate(src: Tensor, trg: Tensor) -> Tensor:
    """Inner products [B,S,T] of ``src`` [B,C,S] and ``trg`` [B,C,T]."""
    return product(src.transpose(1, 2), trg)


def _products(src: Tensor, trg: Tensor, normalize: str, eps: float, scale: str) -> Tensor:
    corr = correlate(normalized(src, normalize, eps), normalized(trg, normalize, eps))
    return corr if scale == "none" else corr / divisor(scale, src.shape[1])


def correlation(
    src: Sequence[Tensor], trg: Sequence[Tensor], normalize: str, eps: float, scale: str, relu: bool, power: int,
    out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Levels ``src[l]`` [B,C_l,S], ``trg[l]`` [B,C_l,T] -> [B,L,S,T]: products, divided, ReLU, power."""
    out = []
    for s, t in zip(src, trg, strict=True):
        corr = _products(s, t, normalize, eps, scale)
        corr = corr.relu() if relu else corr
        out.append((corr**power if power != 1 else corr).to(out_dtype))
    return torch.stack(out, 1)


def correlation_backward(
    src: Sequence[Tensor], trg: Sequence[Tensor], normalize: str, eps: float, scale: str, relu: bool, power: int,
    out_dtype: torch.dtype, grad: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Gradients by each level of ``src`` and ``trg``, given ``grad`` [B,L,S,T]; computes the products again where the
    epilogue needs them."""
    grads_src, grads_trg = [], []
    for level, (s, t) in enumerate(zip(src, trg, strict=True)):
        g = grad[:, level].to(accumulate_dtype(s.dtype))
        if relu or power != 1:
            corr = _products(s, t, normalize, eps, scale).to(g.dtype)
            if power != 1:
                g = g * (power * corr ** (power - 1))
            if relu:  # at NaN it passes, as in PyTorch's own
                g = torch.where(corr <= 0, 0, g)
        g = (g / divisor(scale, s.shape[1])).to(s.dtype)
        ns, nt = normalized(s, normalize, eps), normalized(t, normalize, eps)
        grads_src.append(normalized_backward(s, normalize, eps, product(nt, g.transpose(1, 2))))
        grads_trg.append(normalized_backward(t, normalize, eps, product(ns, g)))
    return grads_src, grads_trg
