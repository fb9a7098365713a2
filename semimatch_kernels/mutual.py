"""The mutual nearest-neighbour filters, soft and hard."""

from __future__ import annotations

from torch import Tensor

from . import _checks, library
from .backends import choose

__all__ = ["mutual_filter", "mutual_mask"]


def mutual_filter(corr: Tensor, eps: float | None = None, *, backend: str | None = None) -> Tensor:
    r"""Keep what is mutual: :math:`C_{st} \cdot (C_{st} / \max_t C_{st}) \cdot (C_{st} / \max_s C_{st})`.

    Args:
        corr: [...,S,T], any strides; float32, bfloat16, float16, float64.
        eps: None = a maximum of exactly 0 is replaced by 1e-30, so that a row of zeros stays 0; a number = it is added
            to both maxima, whatever they are.
        backend: as in `correlation`.

    Returns: the same shape and dtype; computed in float32 or wider. Negative maxima are used as they are, so that signs
        can flip and values explode where a whole row is negative (apply relu before if that matters).

    Gradient: also through the two maxima, each to its lowest-indexed holder; once. NaN in -> NaN out.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: forward reads C twice and writes one matrix, 4 flops an entry; backward reads C and the gradient twice and
        writes one matrix, about 12 flops an entry.
    Called: mutual_nn_filter of CATs, SemiMatch, DHPF, CHM (None); MutualMatching of NCNet (eps 1e-5).
    Source: NCNet (Rocco et al., NeurIPS 2018).

    Example:
        >>> smk.mutual_filter(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        tensor([[1.0000, 0.1250],
                [0.1250, 1.0000]])
    """
    corr = _checks.check_corr(corr, leading="...")
    _checks.check_nonempty(corr)
    if eps is not None:
        eps = _checks.check_number(eps, "eps", 0)
    chosen = choose("mutual_filter", backend, corr)
    batched = corr[None] if corr.dim() == 2 else corr
    return library.run("mutual_filter", chosen, batched, eps)[0].reshape(corr.shape)


def mutual_mask(corr: Tensor, threshold: float | None = None, *, backend: str | None = None) -> Tensor:
    r"""Where :math:`C_{st}` is the largest of its row and the largest of its column: mutual nearest neighbours.

    Args:
        corr: [...,S,T], any strides: scores, or `dual_softmax` of them.
        threshold: entries at or below it are not taken; None = all that are not -inf.
        backend: as in `correlation`.

    Returns: bool of the same shape, at most one True a row and a column; ties go to the lowest index. A row or column
        with a NaN has its maximum there.
    Gradient: none.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: reads C three times (four with a threshold) and writes 1 byte an entry; 3 comparisons an entry.
    Called: mutual nearest neighbours of LoFTR's coarse matching (threshold 0.2 on the dual softmax), of LightGlue,
        match_mnn of kornia, and every DINOv2 nearest-neighbour matcher.
    Source: LoFTR (Sun et al., CVPR 2021).

    Example:
        >>> smk.mutual_mask(torch.tensor([[0.9, 0.8], [0.7, 0.1]]))
        tensor([[ True, False],
                [False, False]])
    """
    corr = _checks.check_corr(corr, leading="...")
    _checks.check_nonempty(corr)
    if threshold is not None:
        threshold = _checks.check_number(threshold, "threshold")
    return library.run("mutual_mask", choose("mutual_mask", backend, corr), corr, threshold)
