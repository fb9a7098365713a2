"""The dual softmax: of a correlation, or single entries from features."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks, library
from .backends import choose
from .matching import check_sides, match_features
from .reference.correlation import divisors, normalized
from .reference.matching import admissible

__all__ = ["dual_softmax", "dual_softmax_features"]


def dual_softmax(
    corr: Tensor, temperature: float = 0.1, log: bool = False, *,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    r"""Softmax over the source times softmax over the target, or its logarithm.

    :math:`P_{st} = \mathrm{softmax}_s(C_{st}/\tau) \cdot \mathrm{softmax}_t(C_{st}/\tau)`.

    Args:
        corr: [B,S,T], any strides; -inf entries are excluded (probability 0).
        temperature: divides the scores; above 0.
        log: return the sum of the two log-probabilities instead.
        source_mask, target_mask, backend: as in `match`.

    Returns: [B,S,T] in float32 (float64 for float64). `mutual_mask` of it are LoFTR's matches.
    Gradient: to ``corr``, once. NaN in -> NaN out. Raises: as `match`.
    Cost: forward reads C twice and writes P once, about 8 flops and 3 exp an entry; backward reads C and the gradient
        twice and writes one matrix, about 10 flops and 2 exp an entry.
    Called: dual softmax of LoFTR's coarse matching (-1e9 in its mask is False here), log double softmax of LightGlue
        and OmniGlue without their dustbins.
    Source: LoFTR (Sun et al., CVPR 2021).

    Example:
        >>> p = smk.dual_softmax(torch.eye(3)[None])
        >>> smk.mutual_mask(p, threshold=0.2).sum()
        tensor(3)
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    _checks.check_mask(source_mask, "source_mask", tuple(corr.shape[:2]), corr, "corr")
    _checks.check_mask(target_mask, "target_mask", (corr.shape[0], corr.shape[2]), corr, "corr")
    log = _checks.check_flag(log, "log")
    chosen = choose("dual_softmax", backend, corr)
    return library.run("dual_softmax", chosen, admissible(corr, source_mask, target_mask), temperature, log)[0]


def dual_softmax_features(
    src: Tensor, trg: Tensor, source_index: Tensor, target_index: Tensor, temperature: float = 0.1, log: bool = False,
    normalize: bool | str = True, eps: float = 1e-6, *, scale: str = "none",
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, backend: str | None = None,
) -> Tensor:  # fmt: skip
    r"""Entries of `dual_softmax` of ``correlation(src, trg)`` without ever holding the S x T matrix.

    :math:`\ln P_{st} = 2 C_{st}/\tau - \ln\sum_{s'} e^{C_{s't}/\tau} - \ln\sum_{t'} e^{C_{st'}/\tau}` for the K pairs
    (s, t) asked for.

    Args:
        src, trg, normalize, eps, source_mask, target_mask: as in `match_features`.
        source_index, target_index: [B,K] int64, the pairs; trusted to lie in the grids.
        temperature, log: as in `dual_softmax`. scale: as in `correlation`.
        backend: as in `match`; the log-sum-exps run there, the K products in PyTorch.

    Returns: [B,K] in float32 (float64 for float64); 0 (-inf) for a pair with a masked cell.
    Gradient: to both feature maps, once. Raises: as `match_features`.
    Cost: flops, bytes and memory of `match_features` both ways, and for the pairs 2 B K C flops and a copy of 2 B K C
        elements; backward the same again.
    Called: the confidence that LoFTR's focal loss reads at the ground-truth pairs.
    Source: as `dual_softmax`.

    Example:
        >>> src, trg = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
        >>> s, t = torch.tensor([[0, 3]]), torch.tensor([[5, 1]])  # the pairs (0, 5) and (3, 1)
        >>> smk.dual_softmax_features(src, trg, s, t, log=True).shape
        torch.Size([1, 2])
    """
    sides = check_sides(src, trg, source_mask, target_mask)
    temperature = _checks.check_temperature(temperature)
    how, log = _checks.check_normalize(normalize, eps), _checks.check_flag(log, "log")
    _checks.check_choice(scale, "scale", ("none", "sqrt_channels", "channels"))
    if not isinstance(source_index, Tensor) or source_index.dim() != 2 or source_index.dtype != torch.int64:
        raise TypeError(f"source_index: expected int64 [B,K], got {_checks.describe(source_index)}")
    _checks.check_shape(source_index, "source_index", (sides.src.shape[0], source_index.shape[1]))
    _checks.check_shape(target_index, "target_index", tuple(source_index.shape), (torch.int64,))
    for index, name in ((source_index, "source_index"), (target_index, "target_index")):
        _checks.check_device(index, name, sides.src, "src")
    # Dividing the products is dividing by a larger temperature.
    by = divisors(scale, sides.src.shape[1])
    temperature = temperature * by[0] * by[1]
    cells = ((1, sides.src.shape[2]), (1, sides.trg.shape[2]))
    per_target, per_source = match_features(
        sides.src, sides.trg, cells, temperature, "both", normalize, eps,
        source_mask=source_mask, target_mask=target_mask, backend=backend,
    )  # fmt: skip
    rows, columns = (
        _cells(f, index, mask, how).to(per_target.logsumexp.dtype)
        for f, index, mask in ((sides.src, source_index, source_mask), (sides.trg, target_index, target_mask))
    )
    score = (rows * columns).sum(1) / temperature
    totals = (m.logsumexp.gather(1, i) for m, i in ((per_target, target_index), (per_source, source_index)))
    log_p = 2 * score
    for total in totals:
        log_p = log_p - total.masked_fill(total == -torch.inf, 0)
    for mask, index in ((source_mask, source_index), (target_mask, target_index)):
        if mask is not None:
            log_p = log_p.masked_fill(~mask.gather(1, index), -torch.inf)
    return log_p if log else log_p.exp()


def _cells(features: Tensor, index: Tensor, mask: Tensor | None, how: tuple[str, float]) -> Tensor:
    """The normalised vectors [B,C,K] of the cells ``index`` [B,K] of ``features`` [B,C,N]; 0 where masked out, so that
    a NaN there does not reach a gradient."""
    features = features if mask is None else features.masked_fill(~mask[:, None], 0)
    return normalized(features, *how).gather(2, index[:, None].expand(-1, features.shape[1], -1))
