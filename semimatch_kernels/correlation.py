"""Correlation of two feature maps, one level or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, library
from .backends import choose
from .mutual import mutual_filter

__all__ = ["correlation"]


def correlation(
    src: Tensor | Sequence[Tensor], trg: Tensor | Sequence[Tensor], normalize: bool | str = True, eps: float = 1e-6,
    relu: bool = False, mutual: bool = False, out_dtype: torch.dtype | None = None, *, scale: str = "none",
    power: int = 1, backend: str | None = None,
) -> Tensor:  # fmt: skip
    r"""Inner products of every source cell with every target cell.

    :math:`C_{st} = \mathrm{relu}(\langle \hat f_s, \hat g_t \rangle / d)^{k}`, with :math:`\hat f = f / |f|` by one of
    three rules, :math:`d` by ``scale`` and :math:`k` = ``power``.

    Args:
        src, trg: features [B,C,*grid] in float32, bfloat16, float16 or float64 (any strides, channel-last too), or
            sequences of levels whose C may differ from level to level but whose B and grids agree. A list of Q query
            vectors is features [B,C,Q]: the result is then [B,Q,T], Q rows against a full grid. The batch must be
            there: [C,H,W] would be taken for C samples of H channels.
        normalize: divide each feature vector by its length first, which makes the product a cosine. False = no; True or
            "inside" = sqrt(sum of squares + eps), so that a zero vector gives exactly 0; "added" = sqrt(sum of squares)
            + eps; "clamped" = max(sqrt(sum of squares), eps), as torch.nn.functional.normalize.
        eps: see normalize; at least 0, and with 0 a zero vector gives NaN.
        relu: set negative correlations to 0. mutual: apply `mutual_filter` to the result.
        out_dtype: dtype of the result; None = that of the features.
        scale: what the products are divided by: "none", "sqrt_channels" (of each level) or "channels".
        power: whole number from 1 that correlations are raised to, after relu.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; None = the environment's SEMIMATCH_BACKEND, else
            "auto".

    Returns:
        [B,S,T], source x target; for L levels [B,L,S,T]. S and T are the products of the grids.

    Gradient: to both sides, once. Products are taken in the dtype of the features (under autocast too), or in out_dtype
        where that is wider; sums of squares in float32 or wider.
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: 2 B S T C flops a level forward, 4 B S T C backward (6 with relu or power, where the products are formed
        again); forward reads B (S + T) C and writes B S T elements a level. mutual adds `mutual_filter`. On the CPU
        the products are PyTorch's own, of features normalised once: memory for those of one level, backward for a
        gradient of their size and, where it is not float32 in rows or there is relu or power, for B S T float32.
    Called: `corr` of CATs (inside, 1e-6); FeatureCorrelation of NCNet; multilayer_correlation of CATs++ (added, 1e-5,
        relu); (relu cos)^2 of DHPF, ^3 of HPF; build_correlation6d of CHM; coarse matching of LoFTR (False,
        "channels"); cosine nearest neighbours of DIFT, DINOv2, GeoAware-SC (clamped, query rows).
    Source: CATs (Cho et al., NeurIPS 2021).

    Example:
        >>> src, trg = torch.randn(2, 64, 8, 8), torch.randn(2, 64, 6, 6)
        >>> smk.correlation(src, trg, relu=True).shape
        torch.Size([2, 64, 36])
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
        if s.dtype != src[0].dtype or s.device != src[0].device:
            raise TypeError(
                f"src[{i}]: expected the dtype and device of level 0, {src[0].dtype} on {src[0].device}, "
                f"got {s.dtype} on {s.device}"
            )
    normalize, eps = _checks.check_normalize(normalize, eps)
    _checks.check_choice(scale, "scale", ("none", "sqrt_channels", "channels"))
    power = _checks.check_count(power, "power", 1)
    relu, mutual = _checks.check_flag(relu, "relu"), _checks.check_flag(mutual, "mutual")
    if out_dtype is not None and out_dtype not in _checks.FLOATS:
        raise TypeError(f"out_dtype: expected a floating dtype or None, got {out_dtype!r}")
    chosen = choose("correlation", backend, src[0])
    src, trg = [s.flatten(2) for s in src], [t.flatten(2) for t in trg]
    out_dtype = src[0].dtype if out_dtype is None else out_dtype
    corr = library.run("correlation", chosen, src, trg, normalize, eps, scale, relu, power, out_dtype)
    corr = corr if levels else corr.squeeze(1)
    return mutual_filter(corr, backend=backend) if mutual else corr
