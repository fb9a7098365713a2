"""Reference of the matching statistics: soft-argmax, score, index, entropy and log-sum-exp of a correlation, the
windowed soft-argmax, and the dual softmax; each with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import Grid, accumulate_dtype


def cell_positions(grid: Grid, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of every cell of a grid, [H*W] each, corner-aligned: cell 0 is -1, the last is +1 (0 if there is one)."""
    height, width = grid

    def axis(n: int) -> Tensor:
        steps = torch.arange(n, dtype=dtype, device=device)
        return steps * (2 / (n - 1)) - 1 if n > 1 else steps

    return axis(width).repeat(height), axis(height).repeat_interleave(width)


def admissible(corr: Tensor, source_mask: Tensor | None, target_mask: Tensor | None) -> Tensor:
    """``corr`` [B,S,T] with -inf where a cell of either side is not valid."""
    if source_mask is not None:
        corr = corr.masked_fill(~source_mask[:, :, None], -torch.inf)
    return corr if target_mask is None else corr.masked_fill(~target_mask[:, None], -torch.inf)


def _softmax(corr: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Over dim 1 of ``corr`` [B,S,T] in the accumulate dtype: probabilities, scores minus their largest, log of the
    total [B,1,T], largest [B,1,T]; a column without admissible cell has probability 0."""
    top = corr.detach().amax(1, keepdim=True)
    empty = top == -torch.inf
    # The maximum goes before the temperature: no overflow, and no digits lost to a large common offset.
    shifted = (corr - top.masked_fill(empty, 0)) / temperature
    mass = shifted.exp()
    total = mass.sum(1, keepdim=True).masked_fill(empty, 1)
    return mass / total, shifted, total.log(), top


def match(corr: Tensor, grid: Grid, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """For each target cell over the source cells (dim 1) of ``corr`` [B,S,T].

    Returns coords [B,T,2], score [B,T], entropy [B,T], logsumexp [B,T] in the accumulate dtype and index [B,T] int64.
    """
    c = corr.to(accumulate_dtype(corr.dtype))
    p, shifted, log_total, top = _softmax(c, temperature)
    # p ln p -> 0 for an excluded cell, or one so far below that its score overflows; 0 * -inf must not be formed.
    mean_shifted = (p * shifted.masked_fill(shifted == -torch.inf, 0)).sum(1)
    index = corr.argmax(1)
    position_x, position_y = cell_positions(grid, c.dtype, c.device)
    coords = torch.stack([(p * position_x[:, None]).sum(1), (p * position_y[:, None]).sum(1)], -1)
    score = p.gather(1, index[:, None]).squeeze(1)
    entropy = log_total.squeeze(1) - mean_shifted
    logsumexp = (top / temperature + log_total).squeeze(1)
    return coords, score, entropy, logsumexp, index


def match_backward(
    corr: Tensor, grid: Grid, temperature: float,
    coords: Tensor, score: Tensor, entropy: Tensor, logsumexp: Tensor, index: Tensor,
    grad_coords: Tensor | None, grad_score: Tensor | None, grad_entropy: Tensor | None, grad_logsumexp: Tensor | None,
) -> Tensor:  # fmt: skip
    r"""Gradient by ``corr``, given what `match` returned and the gradients of its results (None = not used).

    With x = C / temperature, per column: dx = p (a - sum(p a)) + score (onehot - p) g_score, a the part of the
    gradient by p that comes through coords, entropy and logsumexp: position . g_coords - (x - E[x]) g_entropy + g_lse.
    """
    c = corr.to(accumulate_dtype(corr.dtype))
    p, shifted, log_total, _ = _softmax(c, temperature)
    out = torch.zeros_like(c)
    if grad_coords is not None:
        x, y = cell_positions(grid, c.dtype, c.device)
        for axis, position in enumerate((x, y)):
            out += (position[:, None] - coords[..., axis][:, None]) * grad_coords[..., axis][:, None]
    if grad_entropy is not None:
        # -ln p - H, the entropy's slope by p, without its infinite end
        surprise = log_total - shifted.masked_fill(shifted == -torch.inf, 0)
        out += (surprise - entropy[:, None]) * grad_entropy[:, None]
    if grad_logsumexp is not None:
        out += grad_logsumexp[:, None]
    if grad_score is not None:
        out -= (score * grad_score)[:, None]
    out *= p
    if grad_score is not None:
        # A column with nothing in it has score 0 at index 0, and stays at 0.
        out.scatter_add_(1, index[:, None], (score * grad_score)[:, None])
    return (out / temperature).to(corr.dtype)


def match_both(
    corr: Tensor, source_grid: Grid, target_grid: Grid, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`match` for each target cell, then for each source cell."""
    return *match(corr, source_grid, temperature), *match(corr.transpose(1, 2), target_grid, temperature)


def match_both_backward(
    corr: Tensor, source_grid: Grid, target_grid: Grid, temperature: float, *results_and_grads: Tensor | None
) -> Tensor:
    """Gradient by ``corr``: the five results of each side, then the four gradients of each."""
    target, source = results_and_grads[:5], results_and_grads[5:10]
    grads_target, grads_source = results_and_grads[10:14], results_and_grads[14:]
    wide = corr.to(accumulate_dtype(corr.dtype))  # one rounding, of the sum
    out = match_backward(wide, source_grid, temperature, *target, *grads_target)
    transposed = wide.transpose(1, 2)
    return (out + match_backward(transposed, target_grid, temperature, *source, *grads_source).transpose(1, 2)).to(
        corr.dtype
    )


def windowed_weights(index: Tensor, grid: Grid, window: str, width: float, dtype: torch.dtype) -> Tensor:
    """Weights [B,S,T] round the best cell ``index`` [B,T]: a "gaussian" of sigma ``width`` cells, or 1 inside the
    square of radius ``width`` and 0 outside ("zero", "exclude"), or 1 everywhere ("none")."""
    cells = torch.arange(grid[0] * grid[1], device=index.device)[:, None]  # [S,1]
    best = index[:, None]  # [B,1,T]
    dx = (cells % grid[1] - best % grid[1]).to(dtype)
    dy = (torch.div(cells, grid[1], rounding_mode="floor") - torch.div(best, grid[1], rounding_mode="floor")).to(dtype)
    if window == "none":
        return torch.ones_like(dx)
    if window == "gaussian":
        return torch.exp(-(dx * dx + dy * dy) / (2 * width * width))
    return ((dx.abs() <= width) & (dy.abs() <= width)).to(dtype)


def windowed(corr: Tensor, weights: Tensor, window: str) -> Tensor:
    """Scores ``corr`` [B,S,T] multiplied by the window's ``weights``, or -inf outside it ("exclude"); -inf stays."""
    if window == "exclude":
        return corr.masked_fill(weights == 0, -torch.inf)
    excluded = corr == -torch.inf  # -inf * 0 must not be formed
    return (corr.masked_fill(excluded, 0) * weights).masked_fill(excluded, -torch.inf)


def soft_argmax(corr: Tensor, grid: Grid, temperature: float, window: str, width: float) -> tuple[Tensor, Tensor]:
    """`match`'s coords [B,T,2] of the windowed scores, and index [B,T] of the best cell the window is centred on."""
    c, index = corr.to(accumulate_dtype(corr.dtype)), corr.argmax(1)
    seen = windowed(c, windowed_weights(index, grid, window, width, c.dtype), window)
    return match(seen, grid, temperature)[0], index


def soft_argmax_backward(
    corr: Tensor, grid: Grid, temperature: float, window: str, width: float,
    coords: Tensor, index: Tensor, grad_coords: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient by ``corr``; the window is constant."""
    c = corr.to(accumulate_dtype(corr.dtype))
    weights = windowed_weights(index, grid, window, width, c.dtype)
    p = _softmax(windowed(c, weights, window), temperature)[0]
    x, y = cell_positions(grid, c.dtype, c.device)
    slope = sum(
        (position[:, None] - coords[..., axis][:, None]) * grad_coords[..., axis][:, None]
        for axis, position in enumerate((x, y))
    )
    return (weights * p * slope / temperature).to(corr.dtype)


def dual_softmax(corr: Tensor, temperature: float, log: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over the source times softmax over the target, [B,S,T] in the accumulate dtype, or its logarithm; and the
    log-sum-exp of each target cell [B,T] and of each source cell [B,S]."""
    c = corr.to(accumulate_dtype(corr.dtype))
    excluded = c == -torch.inf
    log_p, logsumexp = 0, []
    for dim in (1, 2):
        top = c.detach().amax(dim, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0)  # a line with nothing left: its entries are excluded below
        shifted = (c - top) / temperature
        empty = excluded.all(dim, keepdim=True)
        log_total = shifted.exp().sum(dim, keepdim=True).masked_fill(empty, 1).log()
        log_p = log_p + (shifted.masked_fill(excluded, 0) - log_total)
        logsumexp.append((top / temperature + log_total).masked_fill(empty, -torch.inf).squeeze(dim))
    log_p = log_p.masked_fill(excluded, -torch.inf)
    return log_p if log else log_p.exp(), logsumexp[0], logsumexp[1]


def dual_softmax_backward(
    corr: Tensor, temperature: float, log: bool, target_logsumexp: Tensor, source_logsumexp: Tensor, grad: Tensor
) -> Tensor:
    """Gradient by ``corr``: with h the gradient by the log-probability, 2 h - p_t sum_s h - p_s sum_t h, divided."""
    c = corr.to(accumulate_dtype(corr.dtype))
    excluded = c == -torch.inf
    # Not from the log-sum-exps, which have lost the digits of a large score.
    p_target = _softmax(c, temperature)[0]
    p_source = _softmax(c.transpose(1, 2), temperature)[0].transpose(1, 2)
    h = (grad if log else grad * (p_target * p_source)).masked_fill(excluded, 0)
    out = 2 * h - p_target * h.sum(1, keepdim=True) - p_source * h.sum(2, keepdim=True)
    return (out / temperature).to(corr.dtype)
