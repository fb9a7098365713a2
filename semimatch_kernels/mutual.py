"""The soft mutual nearest-neighbour filter."""

from __future__ import annotations

from torch import Tensor

from . import _checks
from .backends import choose
from .reference import mutual as _reference

__all__ = ["mutual_filter"]


def mutual_filter(corr: Tensor, *, backend: str | None = None) -> Tensor:
    r"""Keep what is mutual: :math:`C_{st} \cdot (C_{st} / \max_t C_{st}) \cdot (C_{st} / \max_s C_{st})`.

    Args:
        corr: [...,S,T], any strides; float32, bfloat16, float16, float64.

    Returns: the same shape and dtype. A maximum of exactly 0 is replaced by 1e-30; negative maxima are used as they
        are, so that signs can flip and values explode where a whole row is negative (apply ReLU before if that
        matters).

    Gradient: also through the two maxima, each to its lowest-indexed holder.
    Raises: TypeError / ValueError naming the argument. Cost: C is read twice and written once; 4 flops an entry.
    Source: NCNet (Rocco et al., NeurIPS 2018), in the form CATs and SemiMatch use.
    """
    corr = _checks.check_corr(corr, leading="...")
    _checks.check_nonempty(corr)
    choose("mutual_filter", backend, corr)
    return _reference.mutual_filter(corr)
