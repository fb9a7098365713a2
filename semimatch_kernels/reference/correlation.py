"""Reference of the correlation of two feature maps: its value, its gradient, and the epilogues matchers put on it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .._checks import accumulate_dtype


def _norm(features: Tensor) -> Tensor:
    """Length [B,1,N] of each vector, with derivative 0 at the zero vector, which has no direction."""
    square = features.square().sum(1, keepdim=True)
    zero = square == 0
    return torch.where(zero, 1, square).sqrt().masked_fill(zero, 0)


def inverse_norm(features: Tensor, normalize: str, eps: float) -> Tensor:
    """Factor [B,1,N] that normalises ``features`` [B,C,N], with q the sum of squares: "inside" 1/sqrt(q + eps), "added"
    1/(sqrt(q) + eps), "clamped" 1/max(sqrt(q), eps)."""
    if normalize == "inside":
        return (features.square().sum(1, keepdim=True) + eps).rsqrt()
    norm = _norm(features)
    return 1 / (norm + eps) if normalize == "added" else 1 / norm.clamp(min=eps)


def normalized(features: Tensor, normalize: str, eps: float) -> Tensor:
    """``features`` [B,C,N] normalised over the channels, or as they are for "none"; sums in the accumulate dtype."""
    if normalize == "none":
        return features
    wide = features.to(accumulate_dtype(features.dtype))
    return (wide * inverse_norm(wide, normalize, eps)).to(features.dtype)


def normalized_backward(features: Tensor, normalize: str, eps: float, grad: Tensor) -> Tensor:
    """Gradient by ``features`` of `normalized`, given that by its result: factor (g - (g . f factor) u), with u the
    direction in which the factor changes."""
    if normalize == "none":
        return grad.to(features.dtype)
    wide, grad = features.to(accumulate_dtype(features.dtype)), grad.to(accumulate_dtype(features.dtype))
    factor = inverse_norm(wide, normalize, eps)
    unit = wide * factor
    along = (grad * unit).sum(1, keepdim=True)
    if normalize != "inside":
        norm = _norm(wide)
        unit = wide / torch.where(norm == 0, 1, norm)
    if normalize == "clamped":
        unit = unit.masked_fill(norm < eps, 0)
    return (factor * (grad - along * unit)).to(features.dtype)


def divisors(scale: str, channels: int) -> tuple[float, float]:
    """What the features of each side are divided by, so that their product over ``channels`` is by 1, sqrt(C) or C: the
    features, because a half-precision product may overflow before it is divided."""
    root = channels**0.5
    return {"none": (1.0, 1.0), "sqrt_channels": (root, 1.0), "channels": (root, root)}[scale]


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


def _sides(src: Tensor, trg: Tensor, normalize: str, eps: float, scale: str, dtype: torch.dtype) -> list[Tensor]:
    """Both sides normalised and divided, in the dtype that their product is taken in."""
    sides = [normalized(f.to(dtype), normalize, eps) for f in (src, trg)]
    return [side / by if by != 1 else side for side, by in zip(sides, divisors(scale, src.shape[1]), strict=True)]


def correlation(
    src: Sequence[Tensor], trg: Sequence[Tensor], normalize: str, eps: float, scale: str, relu: bool, power: int,
    out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Levels ``src[l]`` [B,C_l,S], ``trg[l]`` [B,C_l,T] -> [B,L,S,T]: products, in the wider of their dtype and
    ``out_dtype``; divided; ReLU; power, in the accumulate dtype."""
    out = []
    for s, t in zip(src, trg, strict=True):
        corr = correlate(*_sides(s, t, normalize, eps, scale, torch.promote_types(s.dtype, out_dtype)))
        corr = corr.relu() if relu else corr
        out.append((corr.to(accumulate_dtype(corr.dtype)) ** power if power != 1 else corr).to(out_dtype))
    return torch.stack(out, 1)


def correlation_backward(
    src: Sequence[Tensor], trg: Sequence[Tensor], normalize: str, eps: float, scale: str, relu: bool, power: int,
    out_dtype: torch.dtype, grad: Tensor,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Gradient by each level of ``src`` and ``trg``, given ``grad`` [B,L,S,T]; computes the products again where the
    epilogue needs them."""
    grads_src, grads_trg = [], []
    for level, (s, t) in enumerate(zip(src, trg, strict=True)):
        dtype = torch.promote_types(s.dtype, out_dtype)
        sides = _sides(s, t, normalize, eps, scale, dtype)
        g = grad[:, level].to(accumulate_dtype(dtype))
        if relu or power != 1:
            corr = correlate(*sides).to(g.dtype)
            if power != 1:
                g = g * (power * corr ** (power - 1))
            if relu:  # at NaN it passes, as in PyTorch's own
                g = torch.where(corr <= 0, 0, g)
        g, by = g.to(dtype), divisors(scale, s.shape[1])
        by_side = product(sides[1], g.transpose(1, 2)) / by[0], product(sides[0], g) / by[1]
        grads_src.append(normalized_backward(s.to(dtype), normalize, eps, by_side[0]).to(s.dtype))
        grads_trg.append(normalized_backward(t.to(dtype), normalize, eps, by_side[1]).to(t.dtype))
    return grads_src, grads_trg
