"""The normalisation of features over their channels: factors of the cells, and its chain rule for a gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .launch import kernel_dtype, on_device, options
from .online_softmax import divide


@triton.jit
def root(x):
    """Square root, correctly rounded (a plain float32 one is approximate on the GPU)."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    return tl.sqrt(x)


@triton.jit
def factor_and_slope(square, eps, NORMALIZE: tl.constexpr):
    """Of q, the sums of squares of cells: their factors f(q), and 2 f' / f, which the chain rule needs."""
    one = tl.full(square.shape, 1.0, square.dtype)
    eps = tl.full(square.shape, eps, square.dtype)
    norm = root(square)
    if NORMALIZE == "inside":
        factor = divide(one, root(square + eps))
        slope = -divide(one, square + eps)
    elif NORMALIZE == "added":
        factor = divide(one, norm + eps)
        # The zero vector has no direction: 0 there, as the reference has it.
        slope = tl.where(norm == 0, 0.0, -divide(factor, tl.where(norm == 0, 1.0, norm)))
    else:
        factor = divide(one, tl.where(norm < eps, eps, norm))  # NaN stays
        slope = tl.where(norm < eps, 0.0, -factor * factor)
    return factor, slope


@triton.jit
def factors_kernel(
    features_ptr,  # [B, C, N] in any strides
    factor_ptr, slope_ptr,  # [B, N]
    cells, channels, stride_b, stride_c, stride_n, eps,
    NORMALIZE: tl.constexpr, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N cells of one batch entry. Of q, the sum of squares of a cell: its factor f(q); and 2 f' / f,
    which `chain_kernel` needs."""
    blocks = tl.cdiv(cells, BLOCK_N)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    channel = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    ok = cell < cells
    pointer = features_ptr + batch * stride_b  # [BLOCK_C, BLOCK_N]
    pointer += channel.to(tl.int64)[:, None] * stride_c + cell.to(tl.int64)[None, :] * stride_n
    total = tl.zeros([BLOCK_C, BLOCK_N], ACC)
    for start in range(0, channels, BLOCK_C):
        f = tl.load(pointer, mask=(channel < channels - start)[:, None] & ok[None, :], other=0.0).to(ACC)
        total += f * f
        pointer += tl.full([], BLOCK_C, tl.int64) * stride_c
    factor, slope = factor_and_slope(tl.sum(total, 0), eps, NORMALIZE)  # [BLOCK_N]
    tl.store(factor_ptr + batch * cells + cell, factor, ok)
    tl.store(slope_ptr + batch * cells + cell, slope, ok)


@triton.jit
def chain_kernel(
    sum_ptr,  # [B, C, N] contiguous, in ACC: the gradient through the products
    features_ptr,  # [B, C, N] in any strides
    slope_ptr,  # [B, N], or None without normalisation
    there_ptr,  # `tiles.factors` [B, N] where some cells are not there, else None
    gain_ptr,  # one number that the gradient was multiplied by, or None
    features_grad_ptr,  # [B, C, N] contiguous, may be sum_ptr
    cells, channels, stride_b, stride_c, stride_n,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_N cells of one batch entry, all channels: g + slope (g . f) f, twice over the channels; 0
    for a cell that is not there, whatever its features are."""
    blocks = tl.cdiv(cells, BLOCK_N)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    channel = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    ok = cell < cells
    pointer = features_ptr + batch * stride_b  # [BLOCK_C, BLOCK_N]
    pointer += channel.to(tl.int64)[:, None] * stride_c + cell.to(tl.int64)[None, :] * stride_n
    at = batch * channels * cells + channel.to(tl.int64)[:, None] * cells + cell[None, :]  # [BLOCK_C, BLOCK_N]
    gain = tl.full([], 1.0, ACC)
    if gain_ptr is not None:
        gain /= tl.load(gain_ptr)
    there = ok
    if there_ptr is not None:
        there = (tl.load(there_ptr + batch * cells + cell, mask=ok, other=0.0) < 0) == 0
    along = tl.zeros([BLOCK_N], ACC)
    if slope_ptr is not None:
        total = tl.zeros([BLOCK_C, BLOCK_N], ACC)
        first_pass, from_sum = pointer, sum_ptr + at
        for start in range(0, channels, BLOCK_C):
            here = (channel < channels - start)[:, None] & ok[None, :]
            total += tl.load(first_pass, mask=here, other=0.0).to(ACC) * tl.load(from_sum, mask=here, other=0.0)
            first_pass += tl.full([], BLOCK_C, tl.int64) * stride_c
            from_sum += tl.full([], BLOCK_C, tl.int64) * cells
        along = tl.sum(total, 0) * tl.load(slope_ptr + batch * cells + cell, mask=ok, other=0.0)
    for start in range(0, channels, BLOCK_C):
        here = (channel < channels - start)[:, None] & ok[None, :]
        g = tl.load(sum_ptr + at, mask=here, other=0.0)
        if slope_ptr is not None:
            g += along[None, :] * tl.load(pointer, mask=here, other=0.0).to(ACC)
        tl.store(features_grad_ptr + at, tl.where(there[None, :], g * gain, 0.0), mask=here)
        pointer += tl.full([], BLOCK_C, tl.int64) * stride_c
        at += tl.full([], BLOCK_C, tl.int64) * cells


def factors(features: Tensor, normalize: str, eps: float) -> tuple[Tensor | None, Tensor | None]:
    """Factors [B,N] that normalise ``features`` [B,C,N], and what `chain` needs; None, None for "none"."""
    if normalize == "none":
        return None, None
    batch, channels, cells = features.shape
    tile = configs.architecture(features.device).norms
    factor, slope = (
        torch.empty((batch, cells), dtype=accumulate_dtype(features.dtype), device=features.device) for _ in range(2)
    )
    if batch and cells:
        with on_device(features):
            factors_kernel[(batch * triton.cdiv(cells, tile.cells),)](
                features, factor, slope, cells, channels, *features.stride(), float(eps),
                NORMALIZE=normalize, ACC=kernel_dtype(features), BLOCK_C=tile.channels, BLOCK_N=tile.cells,
                **options(tile.num_warps),
            )  # fmt: skip
    return factor, slope


def chain(
    total: Tensor, features: Tensor, slope: Tensor | None, there: Tensor | None, gain: Tensor | None, grad: Tensor
) -> None:  # fmt: skip
    """Writes the gradient by ``features`` [B,C,N] to ``grad``, given ``total``, that by them through the products."""
    batch, channels, cells = features.shape
    tile = configs.architecture(features.device).norms
    with on_device(features):
        chain_kernel[(batch * triton.cdiv(cells, tile.cells),)](
            total, features, slope, there, gain, grad, cells, channels, *features.stride(),
            ACC=kernel_dtype(features), BLOCK_C=tile.channels, BLOCK_N=tile.cells, **options(tile.num_warps),
        )  # fmt: skip
