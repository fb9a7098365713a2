"""`correlation` on Triton: products of all levels, normalised and with their epilogue, in one launch.

**Norms.** Features are multiplied as they are; the norms go on the products as factors of rows and columns. The sums of
squares behind them need every feature once more. Up to `configs.SMALL_ENTRIES` the kernel takes them from the tiles
that it multiplies: there the time goes into reading (S + T) C features for 2 S T C flops, and a launch of its own would
read them twice. The price is two squares a loaded feature on the ordinary cores, 2 (S + T) C for each tile in a row or
column of tiles. For larger grids, where the flops count and each feature would be squared 32 times and more,
`levels.squares` is a launch before: one read of the features more, beside the min(S, T) / BLOCK reads of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .features import aligned, narrow_offsets, on_ordinary_cores, precision
from .launch import INTERPRETED, on_device, options
from .levels import channels_of, groups, lines_of, pick, place, side_of, squares
from .norms import factor_and_slope, root
from .online_softmax import divide
from .tiles import column_parts, offsets


@triton.jit
def scaling(channels, SCALE: tl.constexpr, ACC: tl.constexpr):
    """What products over so many channels are multiplied by."""
    one = tl.full([], 1.0, ACC)
    if SCALE == "channels":
        factor = divide(one, channels.to(ACC))
    elif SCALE == "sqrt_channels":
        factor = divide(one, root(channels.to(ACC)))
    else:
        factor = one
    return factor


@triton.jit
def tile_products(
    src, trg, channels, squares_ptr, level, batch, first_source, first_target, batches, sources, targets, eps,
    NORMALIZE: tl.constexpr, SCALE: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Plain products [BLOCK_S, BLOCK_T] of source and target cells, and what `norms.factor_and_slope` has of the rows
    [BLOCK_S, 1] and the columns [1, BLOCK_T]. The scale is in the factor of the rows."""
    FOLDED: tl.constexpr = NORMALIZE != "none" and squares_ptr is None
    terms = tl.cast(pick(channels, level), tl.int32)
    s_ptr, s_stride_c, s_stride_n = lines_of(src, level, batch, first_source)
    t_ptr, t_stride_c, t_stride_n = lines_of(trg, level, batch, first_target)
    s_ok = tl.arange(0, BLOCK_S) < sources - first_source
    t_ok = tl.arange(0, BLOCK_T) < targets - first_target
    term = tl.arange(0, BLOCK_C)
    s_at = offsets(BLOCK_S, BLOCK_C, s_stride_n, s_stride_c, NARROW)
    t_at = offsets(BLOCK_C, BLOCK_T, t_stride_c, t_stride_n, NARROW)
    acc = tl.zeros([BLOCK_S, BLOCK_T], ACC)
    s_squares = tl.zeros([BLOCK_S, BLOCK_C], ACC)
    t_squares = tl.zeros([BLOCK_C, BLOCK_T], ACC)
    for start in range(0, terms, BLOCK_C):
        ok = term < terms - start
        x = tl.load(s_ptr + s_at, mask=s_ok[:, None] & ok[None, :], other=0.0).to(DOT)  # [BLOCK_S, BLOCK_C]
        y = tl.load(t_ptr + t_at, mask=ok[:, None] & t_ok[None, :], other=0.0).to(DOT)  # [BLOCK_C, BLOCK_T]
        if FOLDED:
            s_squares += x.to(ACC) * x.to(ACC)
            t_squares += y.to(ACC) * y.to(ACC)
        acc = tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=ACC)
        s_ptr += tl.full([], BLOCK_C, tl.int64) * s_stride_c
        t_ptr += tl.full([], BLOCK_C, tl.int64) * t_stride_c
    if NORMALIZE == "none":
        rows = (tl.full([BLOCK_S, 1], 1.0, ACC), tl.zeros([BLOCK_S, 1], ACC))
        columns = (tl.full([1, BLOCK_T], 1.0, ACC), tl.zeros([1, BLOCK_T], ACC))
    else:
        if FOLDED:
            s_square, t_square = tl.sum(s_squares, 1), tl.sum(t_squares, 0)
        else:
            longest = tl.maximum(sources, targets)
            s_ptr = squares_ptr + (level * batches + batch) * longest + first_source
            t_ptr = squares_ptr + ((len(channels) + level) * batches + batch) * longest + first_target
            s_square = tl.load(s_ptr + tl.arange(0, BLOCK_S), mask=s_ok, other=0.0)
            t_square = tl.load(t_ptr + tl.arange(0, BLOCK_T), mask=t_ok, other=0.0)
        rows = factor_and_slope(s_square[:, None], eps, NORMALIZE)
        columns = factor_and_slope(t_square[None, :], eps, NORMALIZE)
    return acc, (rows[0] * scaling(terms, SCALE, ACC), rows[1]), columns


@triton.jit
def raised(c, POWER: tl.constexpr):
    """`c` to a whole power of at least 1, by squaring."""
    if POWER == 1:
        result = c
    elif POWER % 2 == 0:
        result = raised(c * c, POWER // 2)
    else:
        result = c * raised(c * c, POWER // 2)
    return result


@triton.jit
def correlation_kernel(
    src, trg,  # features [B, C_l, S], [B, C_l, T] in any strides, as `levels.side_of` has them
    channels,  # C_l
    squares_ptr,  # [2 levels, B, longer side] of `levels.squares`, or None: taken from the tiles
    batches, sources, targets, eps,
    corr_ptr,  # [B, levels, S, T], of a contiguous matrix each
    corr_stride_b, corr_stride_level,
    NORMALIZE: tl.constexpr, SCALE: tl.constexpr, RELU: tl.constexpr, POWER: tl.constexpr,
    ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: a tile of the correlation of one level and batch entry."""
    target_blocks = tl.cdiv(targets, BLOCK_T)
    level, batch, block = place(tl.program_id(0), tl.cdiv(sources, BLOCK_S) * target_blocks, batches)
    first_source, first_target = (block // target_blocks) * BLOCK_S, (block % target_blocks) * BLOCK_T
    acc, rows, columns = tile_products(
        src, trg, channels, squares_ptr, level, batch, first_source, first_target, batches, sources, targets, eps,
        NORMALIZE, SCALE, ACC, DOT, PRECISION, NARROW, BLOCK_S, BLOCK_T, BLOCK_C,
    )  # fmt: skip
    corr_ptr += batch * corr_stride_b + level.to(tl.int64) * corr_stride_level
    corr_ptr += first_source.to(tl.int64) * targets + first_target
    WIDTH: tl.constexpr = BLOCK_T // PARTS
    at = offsets(BLOCK_S, WIDTH, targets, 1, NARROW)
    s_ok = tl.arange(0, BLOCK_S) < sources - first_source
    products, factors = column_parts(acc, PARTS), column_parts(columns[0], PARTS)
    for i in tl.static_range(PARTS):
        c = products[i] * rows[0] * factors[i]
        if RELU:
            c = tl.where(c <= 0, 0.0, c)  # NaN stays
        t_ok = tl.arange(0, WIDTH) < targets - first_target - i * WIDTH
        tl.store(corr_ptr + i * WIDTH + at, raised(c, POWER), mask=s_ok[:, None] & t_ok[None, :])


@dataclass(frozen=True)
class Group:
    """Levels of one launch, features [B,C_l,S] and [B,C_l,T], and what the kernels that multiply both sides share."""

    src: Sequence[Tensor]
    trg: Sequence[Tensor]
    normalize: str
    eps: float
    scale: str
    relu: bool
    power: int
    out_dtype: torch.dtype

    @property
    def multiplied(self) -> Tensor:
        """An empty tensor of the dtype that is multiplied: that of the features, as products of halves are exact in
        float32, but float64 where the result has it."""
        wide = torch.float64 if self.out_dtype == torch.float64 else self.src[0].dtype
        return torch.empty(0, dtype=wide)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.src[0].shape[0], self.src[0].shape[2], self.trg[0].shape[2]

    @property
    def folded(self) -> bool:
        """Whether sums of squares are taken from the tiles."""
        return self.sizes[1] * self.sizes[2] <= configs.SMALL_ENTRIES

    def tile(self, kind: str) -> configs.FeatureTile:
        """The tile: "slopes" of a kernel that just stores its entries, "forward" of one that has sums of them too."""
        multiplied = self.multiplied
        if on_ordinary_cores(multiplied):
            size = "ieee"
        elif all(aligned(f) for f in (*self.src, *self.trg)):
            size = "small" if self.folded else "large"
        else:
            size = "odd"
        arch = configs.architecture(self.src[0].device)
        return arch.from_features[kind, size, min(multiplied.element_size(), 4)]

    def launch(self, kernel: triton.JITFunction, tile: configs.FeatureTile, matrix: Tensor, *own: object) -> None:
        """Runs ``kernel``, one program a tile of ``matrix`` [B,L,S,T]; own: its arguments beside those that are
        shared."""
        (batch, sources, targets), multiplied, lengths = self.sizes, self.multiplied, None
        if self.normalize != "none" and not self.folded:
            lengths = squares(self.src, self.trg, accumulate_dtype(multiplied.dtype))
        layouts = [f.stride() for f in (*self.src, *self.trg)]
        programs = batch * len(self.src) * triton.cdiv(sources, tile.kept) * triton.cdiv(targets, tile.reduced)
        kernel[(programs,)](
            side_of(self.src), side_of(self.trg), channels_of(self.src), lengths, batch, sources, targets,
            float(self.eps), *own,
            NORMALIZE=self.normalize, SCALE=self.scale, RELU=self.relu, POWER=self.power, **precision(multiplied),
            NARROW=narrow_offsets(tile, *layouts, matrix.stride()[1:], (0, targets, 1)),
            BLOCK_S=tile.kept, BLOCK_T=tile.reduced, BLOCK_C=tile.channels, PARTS=tile.parts,
            num_stages=tile.num_stages, **options(tile.num_warps),
        )  # fmt: skip


def correlation(
    src: Sequence[Tensor], trg: Sequence[Tensor], normalize: str, eps: float, scale: str, relu: bool, power: int,
    out_dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Levels ``src[l]`` [B,C_l,S], ``trg[l]`` [B,C_l,T] in any strides -> [B,L,S,T]."""
    shape = src[0].shape[0], len(src), src[0].shape[2], trg[0].shape[2]
    # The interpreter cuts off the bits of bfloat16 that the GPU rounds.
    dtype = torch.float32 if INTERPRETED and out_dtype == torch.bfloat16 else out_dtype
    corr = torch.empty(shape, dtype=dtype, device=src[0].device)
    if corr.numel():
        with on_device(corr):
            for part in groups(len(src)):
                out = corr[:, part]
                group = Group(src[part], trg[part], normalize, eps, scale, relu, power, out_dtype)
                group.launch(correlation_kernel, group.tile("slopes"), out, out, *out.stride()[:2])
    return corr.to(out_dtype)
