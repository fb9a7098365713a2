"""Reference of the matching statistics: soft-argmax, score, index, entropy and log-sum-exp of a correlation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._checks import Grid, accumulate_dtype
from .correlation import correlate, normalized


def cell_positions(grid: Grid, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of every cell of a grid, [H*W] each, corner-aligned: cell 0 is -1, the last is +1 (0 if there is one)."""
    height, width = grid

    def axis(n: int) -> Tensor:
        steps = torch.arange(n, dtype=dtype, device=device)
        return steps * (2 / (n - 1)) - 1 if n > 1 else steps

    return axis(width).repeat(height), axis(height).repeat_interleave(width)


def match(corr: Tensor, grid: Grid, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For each target cell over the source cells (dim 1) of ``corr`` [B,S,T].

    Returns coords [B,T,2], score [B,T], entropy [B,T], logsumexp [B,T] in the accumulate dtype and index [B,T] int64.
    """
    c = corr.to(accumulate_dtype(corr.dtype))  # [B,S,T]
    top = c.detach().amax(1, keepdim=True)
    empty = top == -torch.inf  # every cell excluded
    # The maximum goes before the temperature: no overflow, and no digits lost to a large common offset.
    shifted = (c - top.masked_fill(empty, 0)) / temperature
    mass = shifted.exp()
    total = mass.sum(1, keepdim=True).masked_fill(empty, 1)
    p = mass / total
    log_total = total.log()
    # p ln p -> 0 for an excluded cell; 0 * -inf must not be formed.
    mean_shifted = (p * shifted.masked_fill(c == -torch.inf, 0)).sum(1)
    index = corr.argmax(1)
    position_x, position_y = cell_positions(grid, c.dtype, c.device)
    coords = torch.stack([(p * position_x[:, None]).sum(1), (p * position_y[:, None]).sum(1)], -1)
    score = p.gather(1, index[:, None]).squeeze(1)
    entropy = log_total.squeeze(1) - mean_shifted
    logsumexp = (top / temperature + log_total).squeeze(1)
    return coords, score, entropy, logsumexp, index


def match_features(
    src: Tensor, trg: Tensor, grid: Grid, temperature: float, normalize: bool, eps: float, chunk: int = 1024
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`match` of the correlation of ``src`` [B,C,S] and ``trg`` [B,C,T], ``chunk`` target cells at a time.

    Memory is O((S + T) * C + S * chunk), in backward too: each chunk is computed again there.
    """
    if normalize:
        src, trg = normalized(src, eps), normalized(trg, eps)

    def block(source: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return match(correlate(source, target), grid, temperature)

    parts = [checkpoint(block, src, part, use_reentrant=False) for part in trg.split(chunk, dim=2)]
    return tuple(torch.cat(outputs, 1) for outputs in zip(*parts, strict=True))  # type: ignore[return-value]


def window_weights(index: Tensor, grid: Grid, sigma: float | None, radius: int | None, dtype: torch.dtype) -> Tensor:
    """Weights [B,S,T] round the best cell ``index`` [B,T]: a Gaussian of ``sigma`` cells, or 1 inside a square of
    ``radius``."""
    cells = torch.arange(grid[0] * grid[1], device=index.device)[:, None]  # [S,1]
    best = index[:, None]  # [B,1,T]
    dx = (cells % grid[1] - best % grid[1]).to(dtype)
    dy = (torch.div(cells, grid[1], rounding_mode="floor") - torch.div(best, grid[1], rounding_mode="floor")).to(dtype)
    if sigma is not None:
        return torch.exp(-(dx * dx + dy * dy) / (2 * sigma * sigma))
    return ((dx.abs() <= radius) & (dy.abs() <= radius)).to(dtype)


def windowed(corr: Tensor, grid: Grid, sigma: float | None, radius: int | None, exclude: bool) -> Tensor:
    """``corr`` with the window applied to its scores: multiplied by the weights, or -inf outside when ``exclude``."""
    scores = corr.to(accumulate_dtype(corr.dtype))
    weights = window_weights(corr.detach().argmax(1), grid, sigma, radius, scores.dtype)
    if exclude:
        return scores.masked_fill(weights == 0, -torch.inf)
    return scores.masked_fill(scores == -torch.inf, 0) * weights + scores.masked_fill(scores != -torch.inf, 0)


def dual_softmax(corr: Tensor, temperature: float, log: bool) -> Tensor:
    """Softmax over the source times softmax over the target, or its logarithm; [B,S,T] in the accumulate dtype."""
    x = corr.to(accumulate_dtype(corr.dtype)) / temperature
    excluded = x == -torch.inf
    log_p = torch.zeros_like(x)
    for dim in (1, 2):
        empty = excluded.all(dim, keepdim=True)  # a line with nothing left: kept finite here, excluded below
        log_p = log_p + torch.where(empty, 0, x).log_softmax(dim)
    log_p = log_p.masked_fill(excluded, -torch.inf)
    return log_p if log else log_p.exp()
