"""Matching statistics: soft-argmax coordinates, best cell, score, entropy and log-sum-exp; of a correlation, or from
features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from . import _checks, library
from ._checks import Grid
from .backends import choose
from .coordinates import Coordinates, check_coordinates, convert
from .reference.matching import admissible

__all__ = ["Match", "match", "match_features", "softmax_entropy", "softmax_entropy_features"]


class Match(NamedTuple):
    """Matches of one side, for N cells: everything in float32 (float64 for float64 input) but the index."""

    coords: Tensor  #: [B,N,2] (x, y) expected position of the match in [-1,1]; cell 0 is -1, the last cell +1
    score: Tensor  #: [B,N] probability of the best cell
    index: Tensor  #: [B,N] int64, the best cell, W*row + column; lowest among ties; carries no gradient
    entropy: Tensor  #: [B,N] of the distribution, in nats
    logsumexp: Tensor  #: [B,N] of the scores divided by the temperature


def _side(results: Sequence[Tensor], grid: Grid, coordinates: Coordinates) -> Match:
    """`Match` from the five results of an op."""
    coords, score, entropy, logsumexp, index = results
    return Match(convert(coords, grid, coordinates), score, index, entropy, logsumexp)


def match(
    corr: Tensor, grid: Sequence, temperature: float = 0.1, per: str = "target", *,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, coordinates: Coordinates = "corners",
    backend: str | None = None,
) -> Match | tuple[Match, Match]:  # fmt: skip
    r"""Soft-argmax coordinates, best cell, its probability, entropy and log-sum-exp, from one read of ``corr``.

    For each target cell t, with :math:`x_s = C_{st}/\tau` and :math:`p = \mathrm{softmax}_s(x)`:
    coords :math:`\sum_s p_s (X_s, Y_s)`, index :math:`\arg\max_s C_{st}`, score :math:`\max_s p_s`,
    entropy :math:`-\sum_s p_s \ln p_s`, logsumexp :math:`\ln \sum_s e^{x_s}`.

    Args:
        corr: [B,S,T], source x target, any strides; float32, bfloat16, float16, float64. An entry of -inf is excluded;
            a cell with no admissible match has score, entropy and index 0, coords in the centre of the grid, logsumexp
            -inf and gradient 0.
        grid: (H, W) of the side that is reduced over: the source for per="target", the target for per="source";
            (source grid, target grid) for per="both".
        temperature: the scores are divided by it; above 0.
        per: "target" (one match a target cell), "source", or "both", which reads ``corr`` once.
        source_mask, target_mask: bool [B,S], [B,T], the cells that are there (padding False); None = all. The same as
            -inf in their rows and columns.
        coordinates: unit of coords: "corners" = [-1,1] from the first to the last cell centre (align_corners=True),
            "centers" = [-1,1] between the outer edges (align_corners=False), "cells" = 0 to W-1 and H-1, or
            `Pixels` (stride).
        backend: "auto", "reference", "cpu", "triton" or "cuda"; None = the environment's SEMIMATCH_BACKEND, else
            "auto".

    Returns:
        `Match` with N = T (or S); for per="both" (per target, per source).

    Gradient: through coords, score, entropy and logsumexp to ``corr``, deterministic; not to the temperature; once.
        Ties: lowest index. NaN in -> NaN out (and an index of any cell).
    Raises: TypeError / ValueError naming the argument; `BackendError` when the backend asked for cannot run.
    Cost: forward reads C once and writes 6 numbers a cell (28 bytes in float32); backward reads C once and writes a
        matrix of its size; about 8 flops and 1 exp an entry each way. Each mask costs a copy of C.
    Called: softmax_with_temperature and soft_argmax of CATs and CATs++ (0.02); pseudo labels and uncertainty of
        SemiMatch (0.1); spatial_soft_argmax2d and dsnt of kornia (whose temperature multiplies); the cosine volume
        matching of DINOv2, DIFT and GeoAware-SC (index); corr_to_matches of NCNet (score, index, both sides).
    Source: SemiMatch (Kim et al., CVPR 2022), supplement Alg. 1; CATs (Cho et al., NeurIPS 2021) for the coordinates.

    Example:
        >>> m = smk.match(torch.eye(6)[None], grid=(2, 3))  # each cell of a 2 x 3 grid matches itself
        >>> m.index
        tensor([[0, 1, 2, 3, 4, 5]])
        >>> m.coords.shape
        torch.Size([1, 6, 2])
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    temperature = _checks.check_temperature(temperature)
    _checks.check_choice(per, "per", _checks.PER)
    check_coordinates(coordinates)
    batch, sources, targets = corr.shape
    _checks.check_mask(source_mask, "source_mask", (batch, sources), corr, "corr")
    _checks.check_mask(target_mask, "target_mask", (batch, targets), corr, "corr")
    if per == "both":
        source_grid, target_grid = _checks.check_grids(grid, sources, targets)
        chosen = choose("match", backend, corr)
        corr = admissible(corr, source_mask, target_mask)
        out = library.run("match_both", chosen, corr, source_grid, target_grid, temperature)
        return _side(out[:5], source_grid, coordinates), _side(out[5:], target_grid, coordinates)
    side, cells = ("source", sources) if per == "target" else ("target", targets)
    grid = _checks.check_grid(grid, cells, side=side)
    chosen = choose("match", backend, corr)
    corr = admissible(corr, source_mask, target_mask)
    corr = corr if per == "target" else corr.transpose(1, 2)
    return _side(library.run("match", chosen, corr, grid, temperature), grid, coordinates)


def softmax_entropy(
    corr: Tensor, temperature: float = 0.1, per: str = "target", *,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    r"""Entropy in nats of the softmax over the other side's cells; no grid is needed.

    :math:`-\sum_s p_{st} \ln p_{st}` with :math:`p = \mathrm{softmax}_s(C_{st}/\tau)`.

    Args:
        corr, temperature, per, source_mask, target_mask, backend: as in `match`.

    Returns: [B,T] (or [B,S]), float32 (float64 for float64); for per="both" (per target [B,T], per source [B,S]).
    Gradient: to ``corr``, once. Raises: as `match`. Cost: as `match`.
    Called: the uncertainty of SemiMatch, information_entropy of DHPF (which takes log2).
    Source: SemiMatch (Kim et al., CVPR 2022), supplement Alg. 1.

    Example:
        >>> smk.softmax_entropy(torch.zeros(1, 4, 1))  # uniform over 4 cells: ln 4
        tensor([[1.3863]])
    """
    corr = _checks.check_corr(corr)
    _checks.check_nonempty(corr)
    _checks.check_choice(per, "per", _checks.PER)
    grid = _rows(per, corr.shape[1], corr.shape[2])
    out = match(
        corr, grid, temperature, per, source_mask=source_mask, target_mask=target_mask, backend=backend
    )  # fmt: skip
    return out.entropy if isinstance(out, Match) else (out[0].entropy, out[1].entropy)


def _rows(per: str, sources: int, targets: int) -> tuple:
    """A grid of one row for the reduced side, where the position does not matter."""
    return {"target": (1, sources), "source": (1, targets)}.get(per, ((1, sources), (1, targets)))


class FeatureSides(NamedTuple):
    """The two feature maps of a call, [B,C,N] each, checked, with the masks of their cells."""

    src: Tensor
    trg: Tensor
    source_mask: Tensor | None
    target_mask: Tensor | None

    def swapped(self) -> FeatureSides:
        return FeatureSides(self.trg, self.src, self.target_mask, self.source_mask)


def check_sides(src: Tensor, trg: Tensor, source_mask: Tensor | None, target_mask: Tensor | None) -> FeatureSides:
    """Check two feature maps [B,C,*grid] and their masks."""
    _checks.check_features(src, trg)
    src, trg = src.flatten(2), trg.flatten(2)
    _checks.check_mask(source_mask, "source_mask", (src.shape[0], src.shape[2]), src, "src")
    _checks.check_mask(target_mask, "target_mask", (trg.shape[0], trg.shape[2]), src, "src")
    return FeatureSides(src, trg, source_mask, target_mask)


def per_side(
    sides: FeatureSides, grid: object, per: str, run: Callable[[FeatureSides, Grid], object]
) -> object | tuple[object, object]:
    """``run(sides, grid)`` for each target cell, each source cell (the sides swapped), or both one after the other."""
    sources, targets = sides.src.shape[2], sides.trg.shape[2]
    if per == "both":
        source_grid, target_grid = _checks.check_grids(grid, sources, targets)
        return run(sides, source_grid), run(sides.swapped(), target_grid)
    if per == "target":
        return run(sides, _checks.check_grid(grid, sources))
    return run(sides.swapped(), _checks.check_grid(grid, targets, side="target"))


def match_features(
    src: Tensor, trg: Tensor, grid: Sequence, temperature: float = 0.1, per: str = "target",
    normalize: bool | str = True, eps: float = 1e-6, *,
    source_mask: Tensor | None = None, target_mask: Tensor | None = None, coordinates: Coordinates = "corners",
    backend: str | None = None,
) -> Match | tuple[Match, Match]:  # fmt: skip
    r"""`match` of ``correlation(src, trg)`` without ever holding the S x T matrix.

    The equations of `match` with :math:`C_{st} = \langle \hat f_s, \hat g_t \rangle`, features normalised as in
    `correlation`.

    Args:
        src, trg: features [B,C,*grid] in float32, bfloat16, float16 or float64, same B, C, dtype, device; any strides.
        grid, temperature, per, source_mask, target_mask, coordinates: as in `match`.
        normalize, eps: as in `correlation`.
        backend: as in `match`.

    Returns: as `match`.
    Gradient: to both feature maps, once. Raises: as `match` and `correlation`.
    Cost: 2 B S T C flops a direction forward, 6 B S T C backward; forward reads B (S + T) C elements and writes what
        `match` writes. Memory O(B (S + T) C) and one block of B x S x 1024 entries, which is formed again for the
        gradient; never B S T.
    Called: as `match`, where the correlation is used for nothing else: DINOv2 and DIFT nearest neighbours, RoMa's and
        LoFTR's coarse statistics, SemiMatch without an aggregator.
    Source: online softmax (Milakov and Gimelshein, 2018), and as `match`.

    Example:
        >>> src = torch.randn(1, 16, 4, 4)
        >>> m = smk.match_features(src, src, grid=(4, 4))
        >>> bool((m.index == torch.arange(16)).all())
        True
    """
    sides = check_sides(src, trg, source_mask, target_mask)
    temperature = _checks.check_temperature(temperature)
    normalize, eps = _checks.check_normalize(normalize, eps)
    _checks.check_choice(per, "per", _checks.PER)
    check_coordinates(coordinates)
    chosen = choose("match_features", backend, sides.src)

    def one(sides: FeatureSides, grid: Grid) -> Match:
        return _side(
            library.run("match_features", chosen, *sides, grid, temperature, normalize, eps), grid, coordinates
        )

    return per_side(sides, grid, per, one)  # type: ignore[return-value]


def softmax_entropy_features(
    src: Tensor, trg: Tensor, temperature: float = 0.1, per: str = "target", normalize: bool | str = True,
    eps: float = 1e-6, *, source_mask: Tensor | None = None, target_mask: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    r"""`softmax_entropy` of ``correlation(src, trg)`` without ever holding the S x T matrix.

    :math:`-\sum_s p_{st} \ln p_{st}` with :math:`p = \mathrm{softmax}_s(\langle \hat f_s, \hat g_t \rangle / \tau)`.

    Args:
        src, trg, temperature, per, normalize, eps, source_mask, target_mask, backend: as in `match_features`.

    Returns: as `softmax_entropy`. Gradient: to both feature maps, once. Raises: as `match_features`.
    Cost: as `match_features`, flops, bytes and memory.
    Called: the uncertainty of SemiMatch, where the features are matched directly. Source: as `softmax_entropy`.

    Example:
        >>> src, trg = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 3, 3)
        >>> smk.softmax_entropy_features(src, trg).shape
        torch.Size([1, 9])
    """
    sides = check_sides(src, trg, source_mask, target_mask)
    _checks.check_choice(per, "per", _checks.PER)
    out = match_features(
        sides.src, sides.trg, _rows(per, sides.src.shape[2], sides.trg.shape[2]), temperature, per, normalize, eps,
        source_mask=source_mask, target_mask=target_mask, backend=backend,
    )  # fmt: skip
    return out.entropy if isinstance(out, Match) else (out[0].entropy, out[1].entropy)
