"""Reference of the correlation of two feature maps."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import accumulate_dtype


def normalized(features: Tensor, eps: float) -> Tensor:
    """``features`` [B,C,N] divided by sqrt(sum of squares over the channels + eps); sums in the accumulate dtype."""
    wide = features.to(accumulate_dtype(features.dtype))
    return (wide * (wide.square().sum(1, keepdim=True) + eps).rsqrt()).to(features.dtype)


def correlate(src: Tensor, trg: Tensor) -> Tensor:
    """Inner products [B,S,T] of ``src`` [B,C,S] and ``trg`` [B,C,T], in their dtype under autocast too."""
    with torch.autocast(src.device.type, enabled=False):
        return torch.bmm(src.transpose(1, 2), trg)


def correlation(src: Tensor, trg: Tensor, normalize: bool, eps: float, relu: bool, out_dtype: torch.dtype) -> Tensor:
    """One level: ``src`` [B,C,S], ``trg`` [B,C,T] -> [B,S,T]."""
    if normalize:
        src, trg = normalized(src, eps), normalized(trg, eps)
    corr = correlate(src, trg)
    return (corr.relu() if relu else corr).to(out_dtype)
