"""Several levels of features in one launch: what a kernel takes of them as tuples, of which a program picks its level.

Pointers, channels and strides travel as arguments of the kernel. A table of addresses would have to be copied to the
device first; so launches need no copy and no synchronisation, and a CUDA graph can hold them. A kernel is compiled for
each number of levels up to `MOST`; more levels take more launches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configs
from .launch import kernel_dtype, options

#: Levels of a launch; a program chooses between that many of every number.
MOST = 8


@triton.jit
def pick(values, level):
    """values[level] of a tuple; a constant where all are the same constant, as strides of 1 are."""
    picked = values[0]
    for i in tl.static_range(1, len(values)):
        picked = tl.where(level == i, values[i], picked)
    return picked


@triton.jit
def lines_of(side, level, batch, first):
    """(pointer to cell `first`, stride of a channel, stride of a cell) of a level and batch entry of `side_of`."""
    pointer, stride_b, stride_c, stride_n = side[0][0], side[1][0], side[2][0], side[3][0]
    for i in tl.static_range(1, len(side[0])):
        here = level == i
        pointer = tl.where(here, side[0][i], pointer)
        stride_b = tl.where(here, side[1][i], stride_b)
        stride_c = tl.where(here, side[2][i], stride_c)
        stride_n = tl.where(here, side[3][i], stride_n)
    return pointer + batch * stride_b + first.to(tl.int64) * stride_n, stride_c, stride_n


@triton.jit
def place(program, blocks, batches):
    """(level, batch entry, block) of a program, where each level and batch entry has so many blocks."""
    return program // (blocks * batches), ((program // blocks) % batches).to(tl.int64), program % blocks


@triton.jit
def squares_kernel(
    sides,  # of features [B, C_i, N_i]: the source sides of all levels, then the target sides; see `side_of`
    channels, cells,  # C_i, N_i
    squares_ptr,  # [sides, B, longest]
    batches, longest,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program: the sums of squares of BLOCK_N cells of one side of a level, of one batch entry."""
    side, batch, block = place(tl.program_id(0), tl.cdiv(longest, BLOCK_N), batches)
    first = block * BLOCK_N
    terms = pick(channels, side)
    pointer, stride_c, stride_n = lines_of(sides, side, batch, first)
    channel = tl.arange(0, BLOCK_C)  # [BLOCK_C]
    cell = tl.arange(0, BLOCK_N)  # [BLOCK_N]
    ok = cell < pick(cells, side) - first
    at = channel.to(tl.int64)[:, None] * stride_c + cell.to(tl.int64)[None, :] * stride_n  # [BLOCK_C, BLOCK_N]
    total = tl.zeros([BLOCK_C, BLOCK_N], ACC)
    for start in range(0, terms, BLOCK_C):
        f = tl.load(pointer + at, mask=(channel < terms - start)[:, None] & ok[None, :], other=0.0).to(ACC)
        total += f * f
        pointer += tl.full([], BLOCK_C, tl.int64) * stride_c
    tl.store(squares_ptr + (side * batches + batch) * longest + first + cell, tl.sum(total, 0), ok)


def groups(levels: int) -> Iterator[slice]:
    """The levels of each launch."""
    return (slice(first, first + MOST) for first in range(0, levels, MOST))


def channels_of(features: Sequence[Tensor]) -> tuple[int, ...]:
    """C_l of the levels [B,C_l,N]."""
    return tuple(f.shape[1] for f in features)


def side_of(features: Sequence[Tensor]) -> tuple[tuple, ...]:
    """The levels [B,C_l,N] as kernels take them: pointers, strides of the batch, of the channel, of the cell."""
    return (tuple(features), *zip(*(f.stride() for f in features), strict=True))


def squares(src: Sequence[Tensor], trg: Sequence[Tensor], accumulate: torch.dtype) -> Tensor:
    """Sums of squares [2 levels, B, longer side] of the cells of ``src`` and ``trg`` [B,C_l,N], in one launch."""
    sides = (*src, *trg)
    batch, longest = src[0].shape[0], max(f.shape[2] for f in sides)
    tile = configs.architecture(src[0].device).norms
    out = torch.empty((len(sides), batch, longest), dtype=accumulate, device=src[0].device)
    squares_kernel[(len(sides) * batch * triton.cdiv(longest, tile.cells),)](
        side_of(sides), channels_of(sides), tuple(f.shape[2] for f in sides), out, batch, longest,
        ACC=kernel_dtype(out), BLOCK_C=tile.channels, BLOCK_N=tile.cells, **options(tile.num_warps),
    )  # fmt: skip
    return out
