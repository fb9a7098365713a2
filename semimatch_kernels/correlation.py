"""Correlation of two feature maps, one level or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from .backends import choose
from .mutual import mutual_filter
from .reference import correlation as _reference

__all__ = ["correlation"]


def correlation(
    src: Tensor | Sequence[Tensor], trg: Tensor | Sequence[Tensor], normalize: bool = True, eps: float = 1e-6,
    relu: bool = False, mutual: bool = False, out_dtype: torch.dtype | None = None, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Inner products of every source cell with every target cell.

    Args:
        src, trg: features [B,C,*grid] (any strides, channel-last too), or sequences of levels whose C may differ from
            level to level but whose B and grids agree.
        normalize: divide each feature vector by sqrt(sum of squares + eps) first, which makes it a cosine; a zero
            vector gives exactly 0.
        relu: set negative correlations to 0. mutual: apply `mutual_filter` to the result.
        out_dtype: dtype of the result; None = that of the features.

    Returns:
        [B,S,T], source x target; for L levels [B,L,S,T]. S and T are the products of the grids.

    Gradient: to both sides. Products are taken in the dtype of the features (under autocast too), sums of squares in
        float32 or wider.
    Raises: TypeError / ValueError naming the argument. Cost: 2*B*S*T*C flops a level.
    Source: CATs (Cho et al., NeurIPS 2021); the same as NCNet's with eps inside the root.
    """
    levels = not isinstance(src, Tensor)
    if levels != (not isinstance(trg, Tensor)):
        raise TypeError("src and trg: expected two feature maps or two sequences of levels, got one of each")
    src, trg = (list(src), list(trg)) if levels else ([src], [trg])
    if len(src) != len(trg) or not src:
        raise ValueError(f"src and trg: expected the same number of levels, at least 1, got {len(src)} and {len(trg)}")
    for i, (s, t) in enumerate(zip(src, trg, strict=True)):
        _checks.check_features(s, t, (f"src[{i}]", f"trg[{i}]") if levels else ("src", "trg"))
        if s.shape[2:] != src[0].shape[2:] or t.shape[2:] != trg[0].shape[2:] or s.shape[0] != src[0].shape[0]:
            raise ValueError(
                f"src[{i}], trg[{i}]: expected the batch and grids of level 0 "
                f"({tuple(src[0].shape)}, {tuple(trg[0].shape)}), got {tuple(s.shape)}, {tuple(t.shape)}"
            )
    _checks.check_number(eps, "eps", 0)
    if out_dtype is not None and out_dtype not in _checks.FLOATS:
        raise TypeError(f"out_dtype: expected a floating dtype or None, got {out_dtype!r}")
    choose("correlation", backend, src[0])
    dtype = src[0].dtype if out_dtype is None else out_dtype
    out = [
        _reference.correlation(s.flatten(2), t.flatten(2), normalize, eps, relu, dtype)
        for s, t in zip(src, trg, strict=True)
    ]
    corr = torch.stack(out, 1) if levels else out[0]
    return mutual_filter(corr) if mutual else corr
