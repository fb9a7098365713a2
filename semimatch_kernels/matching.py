"""Matching: what a softmax over the cells of one side says of the best cell for each cell of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from . import _checks, library
from ._checks import Grid
from .backends import choose
from .reference import matching as _reference

__all__ = [
    "GaussianWindow", "HardWindow", "Match",
    "dual_softmax", "match", "match_features", "soft_argmax", "softmax_entropy",
]  # fmt: skip


class Match(NamedTuple):
    """Matches of one side, for N cells: everything in float32 (float64 for float64 input) but the index."""

    coords: Tensor  #: [B,N,2] (x, y) expected position of the match in [-1,1]; cell 0 is -1, the last cell +1
    score: Tensor  #: [B,N] probability of the best cell
    index: Tensor  #: [B,N] int64, the best cell, W*row + column; lowest among ties; carries no gradient
    entropy: Tensor  #: [B,N] of the distribution, in nats
    logsumexp: Tensor  #: [B,N] of the scores divided by the temperature


@dataclass(frozen=True)
class GaussianWindow:
    """Scores are multiplied by exp(-d^2 / (2 sigma^2)), d the distance in cells from the best cell (as SFNet and CHM
    do)."""

    sigma: float

    def __post_init__(self) -> None:
        if not _checks.check_number(self.sigma, "sigma") > 0:
            raise ValueError(f"sigma: expected a number of cells above 0, got {self.sigma!r}")


@dataclass(frozen=True)
class HardWindow:
    """Only the square of ``radius`` cells round the best cell counts: outside, scores are excluded, or multiplied by
    zero."""

    radius: int
    outside: str = "exclude"

    def __post_init__(self) -> None:
        _checks.check_count(self.radius, "radius")
        _checks.check_choice(self.outside, "outside", ("exclude", "zero"))


def _one_side(corr: Tensor, grid: Grid, temperature: float, backend: str) -> Match:
    """Statistics of each column of ``corr`` [B,S,T], by the backend chosen."""
    if backend == "reference":
        run = _reference.match
    else:
        run = library.ops.match_triton if backend == "triton" else library.ops.match
    coords, score, entropy, logsumexp, index = run(corr, grid, temperature)
    return Match(coords, score, index, entropy, logsumexp)


def match(
    corr: Tensor, grid: Sequence, temperature: float = 0.1, per: str = "target", *, backend: str | None = None
) -> Match | tuple[Match, Match]:
    r"""Soft-argmax coordinates, best cell, its probability, entropy and log-sum-exp, from one read of ``corr``.

    For each target cell t, with :math:`x_s = C_{st}/\tau` and :math:`p = \mathrm{softmax}_s(x)`:
    coords :math:`\sum_s p_s (X_s, Y_s)`, index :math:`\arg\max_s C_{st}`, score :math:`\max_s p_s`,
    entropy :math:`-\sum_s p_s \ln p_s`, logsumexp :math:`\ln \sum_s e^{x_s}`.

    Args:
        corr: [B,S,T], source x target, any strides; float32, bfloat16, float16, float64. An entry of -inf is excluded;
            a cell with no admissible match has coords, score, entropy and index 0, logsumexp -inf and gradient 0.
        grid: (H, W) of the side that is reduced over: the source for per="target", the target for per="source";
            (source grid, target grid) for per="both".
        temperature: the scores are divided by it; above 0.
        per: "target" (one match a target cell), "source", or "both", which reads ``corr`` once.
        backend: "auto", "reference", "cpu", "triton" or "cuda"; None = the environment's SEMIMATCH_BACKEND, else
        "auto".

    Returns:
        `Match` with N = T (or S); for per="both" (per target, per source).

    Gradient: through coords, score, entropy and logsumexp to ``corr``, deterministic; not to the temperature; once
    (double backward only in "reference"). Ties: lowest index. NaN in -> NaN out (and an index of any cell).
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: forward reads C once and writes 6 numbers a cell; backward reads and writes C once; about 8 flops and 1 exp
    an entry.
    Source: SemiMatch (Kim et al., CVPR 2022), supplement Alg. 1; CATs (Cho et al., NeurIPS 2021) for the coordinates.
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    _checks.check_choice(per, "per", _checks.PER)
    _, sources, targets = corr.shape
    if per == "both":
        source_grid, target_grid = _checks.check_grids(grid, sources, targets)
        chosen = choose("match", backend, corr)
        if chosen == "reference":
            return (
                _one_side(corr, source_grid, temperature, chosen),
                _one_side(corr.transpose(1, 2), target_grid, temperature, chosen),
            )
        run = library.ops.match_both_triton if chosen == "triton" else library.ops.match_both
        out = run(corr, source_grid, target_grid, temperature)
        return Match(out[0], out[1], out[4], out[2], out[3]), Match(out[5], out[6], out[9], out[7], out[8])
    if per == "source":
        corr = corr.transpose(1, 2)
    grid = _checks.check_grid(grid, corr.shape[1], side="source" if per == "target" else "target")
    return _one_side(corr, grid, temperature, choose("match", backend, corr))


def match_features(
    src: Tensor, trg: Tensor, grid: Sequence, temperature: float = 0.1, per: str = "target", normalize: bool = True,
    eps: float = 1e-6, *, backend: str | None = None,
) -> Match | tuple[Match, Match]:  # fmt: skip
    """`match` of ``correlation(src, trg)`` without ever holding the S x T matrix.

    Args:
        src, trg: features [B,C,*grid], same B, C, dtype, device; any strides.
        grid, temperature, per: as in `match`.
        normalize, eps: as in `correlation`.

    Returns and gradient: as `match`, to both feature maps.
    Memory: O((S + T) C) plus one chunk of columns; the reference chunks and recomputes in backward.
    """
    _checks.check_features(src, trg)
    temperature = _checks.check_temperature(temperature)
    _checks.check_number(eps, "eps", 0)
    _checks.check_choice(per, "per", _checks.PER)
    src, trg = src.flatten(2), trg.flatten(2)
    choose("match_features", backend, src)
    sources, targets = src.shape[2], trg.shape[2]
    if per == "both":
        source_grid, target_grid = _checks.check_grids(grid, sources, targets)
        return (
            _features_one_side(src, trg, source_grid, temperature, normalize, eps),
            _features_one_side(trg, src, target_grid, temperature, normalize, eps),
        )
    reduced, kept = (src, trg) if per == "target" else (trg, src)
    grid = _checks.check_grid(grid, reduced.shape[2], side="source" if per == "target" else "target")
    return _features_one_side(reduced, kept, grid, temperature, normalize, eps)


def _features_one_side(src: Tensor, trg: Tensor, grid: Grid, temperature: float, normalize: bool, eps: float) -> Match:
    out = _reference.match_features(src, trg, grid, temperature, normalize, eps)
    return Match(out[0], out[1], out[4], out[2], out[3])


def soft_argmax(
    corr: Tensor, grid: Sequence, temperature: float = 0.1, per: str = "target",
    window: GaussianWindow | HardWindow | None = None, *, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Expected position of the match, (x, y) in [-1,1], [B,N,2]: `match`'s coords, optionally windowed round the best
    cell.

    Args:
        corr, grid, temperature, per: as in `match`; per="both" is not offered (use `match`).
        window: `GaussianWindow` or `HardWindow`; the window follows the best cell and is constant for the gradient.

    Gradient: to ``corr``. Source: CATs; Gaussian window: SFNet (Lee et al., CVPR 2019); hard window: GeoAware-SC.
    """
    _checks.check_choice(per, "per", ("target", "source"))
    if window is None:
        return match(corr, grid, temperature, per, backend=backend).coords  # type: ignore[union-attr]
    if not isinstance(window, (GaussianWindow, HardWindow)):
        raise TypeError(f"window: expected GaussianWindow, HardWindow or None, got {_checks.describe(window)}")
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    if per == "source":
        corr = corr.transpose(1, 2)
    grid = _checks.check_grid(grid, corr.shape[1], side="source" if per == "target" else "target")
    sigma = window.sigma if isinstance(window, GaussianWindow) else None
    radius = window.radius if isinstance(window, HardWindow) else None
    exclude = isinstance(window, HardWindow) and window.outside == "exclude"
    seen = _reference.windowed(corr, grid, sigma, radius, exclude)
    return match(seen, grid, temperature, backend=backend).coords  # type: ignore[union-attr]


def softmax_entropy(
    corr: Tensor, temperature: float = 0.1, per: str = "target", *, backend: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Entropy in nats of the softmax over the other side's cells, [B,N]: `match`'s entropy, without a grid.

    For per="both" (per target [B,T], per source [B,S]). Gradient: to ``corr``. Source: SemiMatch, supplement Alg. 1.
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    _checks.check_choice(per, "per", _checks.PER)
    rows, columns = (1, corr.shape[1]), (1, corr.shape[2])
    grid = {"target": rows, "source": columns}.get(per, (rows, columns))
    out = match(corr, grid, temperature, per, backend=backend)
    return out.entropy if isinstance(out, Match) else (out[0].entropy, out[1].entropy)


def dual_softmax(corr: Tensor, temperature: float = 0.1, log: bool = False, *, backend: str | None = None) -> Tensor:
    """Softmax over the source times softmax over the target, [B,S,T] in float32 (float64 for float64), or its
    logarithm.

    Args:
        corr: [B,S,T]; -inf entries are excluded (probability 0). temperature: divides the scores.
        log: return the sum of the two log-probabilities instead.

    Gradient: to ``corr``. Source: LoFTR (Sun et al., CVPR 2021), dual-softmax matching.
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    choose("dual_softmax", backend, corr)
    return _reference.dual_softmax(corr, _checks.check_temperature(temperature), log)
