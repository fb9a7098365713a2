"""What the from-features launchers share: the two sides of a call, and the gradient by both in bounded memory.

The gradient by a feature is a sum over all cells of the other side and has all channels; it does not fit in the
registers of a program, and forming the entries again for each block of channels would cost more than all the rest. So
the gradient by the entries ("slopes") is written in the dtype of the features, a block of kept cells at a time, to a
scratch buffer that never exceeds the features themselves (or a fixed part of L2, where they are smaller), and is
multiplied by the features of either side: three products of S x T x C in all, no atomics, and memory O(S + T).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs, norms
from .launch import INTERPRETED, kernel_dtype, on_device, options
from .tiles import NOT_THERE, column_parts, offsets, products

_DTYPES = {
    torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float64: tl.float64
}  # fmt: skip


def precision(features: Tensor) -> dict:
    """How products are formed. float32 follows PyTorch's setting for products: tf32 where that allows it, else three
    products of tf32, which keep the digits of float32. The interpreter multiplies in the accumulate dtype."""
    if INTERPRETED:
        return {"ACC": kernel_dtype(features), "DOT": kernel_dtype(features), "PRECISION": "ieee"}
    if features.dtype != torch.float32:
        how = "ieee"
    else:
        how = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"
    return {"ACC": kernel_dtype(features), "DOT": _DTYPES[features.dtype], "PRECISION": how}


def _narrow(tile: configs.FeatureTile | configs.ProductTile, *strides: tuple[int, ...]) -> bool:
    """Whether offsets inside a tile fit 32 bits, in tensors of these strides (batch, then two more)."""
    return all(tile.longest * (abs(s[1]) + abs(s[2])) < 2**31 for s in strides)


def _aligned(features: Tensor) -> bool:
    """Whether 16 bytes can be loaded at once: one of the strides of a channel and a cell is 1, all else multiples."""
    strides = [s for s in features.stride() if s != 1]
    return len(strides) < 3 and all(s % 16 == 0 for s in (*strides, features.data_ptr()))


def feature_tile(kernel: str, kept: Tensor, reduced: Tensor, crowded: bool = False) -> configs.FeatureTile:
    """The tile of a "forward" or "slopes" kernel for these features [B,C,N]; crowded: it has much else to keep."""
    arch, itemsize = configs.architecture(kept.device), min(kept.element_size(), 4)
    if crowded or not (_aligned(kept) and _aligned(reduced)):
        size = "odd"
    else:
        size = "small" if kept.shape[2] * reduced.shape[2] <= configs.SMALL_ENTRIES else "large"
    return arch.from_features[kernel, size, itemsize]


def _factors(factor: Tensor | None, mask: Tensor | None, features: Tensor) -> Tensor | None:
    """``factor`` [B,N] as `tiles.factors` takes it: `NOT_THERE` outside the mask."""
    if mask is None:
        return factor
    if factor is None:
        factor = torch.ones(mask.shape, dtype=accumulate_dtype(features.dtype), device=features.device)
    return factor.masked_fill_(~mask, NOT_THERE.value)


@dataclass(frozen=True)
class Sides:
    """Features [B,C,N] of the kept and of the reduced side, their factors, and what the kernels take of them."""

    kept: Tensor
    reduced: Tensor
    factors: tuple[Tensor | None, Tensor | None]
    slopes: tuple[Tensor | None, Tensor | None]  #: of the factors, see `norms.chain_kernel`

    @staticmethod
    def of(
        kept: Tensor, reduced: Tensor, kept_mask: Tensor | None, reduced_mask: Tensor | None, normalize: str,
        eps: float,
    ) -> Sides:  # fmt: skip
        made = [norms.factors(f, normalize, eps) for f in (kept, reduced)]
        masked = zip(made, (kept_mask, reduced_mask), (kept, reduced), strict=True)
        factors = tuple(_factors(factor, mask, features) for (factor, _), mask, features in masked)
        return Sides(kept, reduced, factors, tuple(slope for _, slope in made))  # type: ignore[arg-type]

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        return (self.kept, self.reduced, *self.factors)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.kept.shape[2], self.reduced.shape[2], self.kept.shape[1]

    def narrow(self, tile: configs.FeatureTile) -> bool:
        """Whether offsets inside a tile fit 32 bits, of the slopes too."""
        return _narrow(tile, self.kept.stride(), self.reduced.stride(), (0, self.reduced.shape[2], 1))

    @property
    def strides(self) -> tuple[int, ...]:
        return (*self.kept.stride(), *self.reduced.stride())


@triton.jit(do_not_specialize=["first_batch", "first_term", "first_cell"])
def product_kernel(
    features_ptr,  # [B, C, terms] in any strides
    slopes_ptr,  # [batches of this launch, terms, cells] in any strides
    sum_ptr,  # [B, C, all cells] contiguous
    batches, cells, terms, channels, all_cells, first_batch, first_term, first_cell,
    stride_b, stride_c, stride_n, slopes_stride_b, slopes_stride_term, slopes_stride_cell,
    ACCUMULATE: tl.constexpr, ACC: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, NARROW: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_TERMS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_C channels of the gradient by BLOCK_N cells, summed over the cells of the other side."""
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    blocks = tl.cdiv(cells, BLOCK_N)
    program = tl.program_id(0)
    # Neighbours share the slopes, and have all of the features between them.
    channel = (program % channel_blocks) * BLOCK_C
    cell = ((program // channel_blocks) % blocks) * BLOCK_N
    local = (program // (channel_blocks * blocks)).to(tl.int64)
    batch = first_batch + local
    channel_ok = tl.arange(0, BLOCK_C) < channels - channel
    features_ptr += batch * stride_b + channel.to(tl.int64) * stride_c
    features_ptr += tl.cast(first_term, tl.int64) * stride_n
    slopes_ptr += local * slopes_stride_b + cell.to(tl.int64) * slopes_stride_cell
    acc = products(
        features_ptr, slopes_ptr, channel_ok, tl.arange(0, BLOCK_N) < cells - cell, terms,
        stride_c, stride_n, slopes_stride_cell, slopes_stride_term,
        tl.zeros([BLOCK_C, BLOCK_N], ACC), DOT, PRECISION, NARROW, BLOCK_TERMS,
    )  # fmt: skip
    sum_ptr += (batch * channels + channel) * all_cells + first_cell + cell
    at = offsets(BLOCK_C, BLOCK_N // PARTS, all_cells, 1, NARROW)
    parts = column_parts(acc, PARTS)
    for i in tl.static_range(PARTS):
        cell_ok = i * (BLOCK_N // PARTS) + tl.arange(0, BLOCK_N // PARTS) < cells - cell
        ok = channel_ok[:, None] & cell_ok[None, :]
        part = parts[i]
        if ACCUMULATE:
            part += tl.load(sum_ptr + at, mask=ok, other=0.0)
        tl.store(sum_ptr + at, part, mask=ok)
        sum_ptr += BLOCK_N // PARTS


@dataclass(frozen=True)
class Block:
    """What one launch of a slopes kernel covers: the slopes [batches, kept cells, reduced cells] go to ``slopes``."""

    slopes: Tensor
    first_batch: int
    first_kept: int

    @property
    def arguments(self) -> tuple:
        """Cells of the block and its place, and where its slopes go, as the slopes kernels take them."""
        return (self.slopes.shape[1], self.first_batch, self.first_kept, *self.slopes.stride()[:2])

    def programs(self, tile: configs.FeatureTile) -> int:
        batches, kept, reduced = self.slopes.shape
        return batches * triton.cdiv(kept, tile.kept) * triton.cdiv(reduced, tile.reduced)


def _multiply(features: Tensor, slopes: Tensor, total: Tensor, first: tuple[int, int, int], accumulate: bool) -> None:
    """Adds to ``total`` [B,C,N], or writes to it, the products of ``features`` with ``slopes`` [batches,terms,cells];
    first: batch, term and cell."""
    batches, terms, cells = slopes.shape
    channels = features.shape[1]
    size = "even" if _aligned(features) and _aligned(slopes) else "odd"
    tile = configs.architecture(features.device).products[size, min(features.element_size(), 4)]
    programs = batches * triton.cdiv(channels, tile.channels) * triton.cdiv(cells, tile.cells)
    product_kernel[(programs,)](
        features, slopes, total, batches, cells, terms, channels, total.shape[2], *first,
        *features.stride(), *slopes.stride(), ACCUMULATE=accumulate, **precision(features),
        NARROW=_narrow(tile, features.stride(), slopes.stride(), total.stride()), **tile.constants,
        num_stages=tile.num_stages, **options(tile.num_warps),
    )  # fmt: skip


def gradient(
    sides: Sides, tile: configs.FeatureTile, slopes: Callable[[Block], None], gain: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients by the features of the kept and of the reduced side. ``slopes`` launches a kernel that writes those of
    one block: the gradient by the products of features that are not normalised, times ``gain``."""
    kept, reduced = sides.kept, sides.reduced
    batch, _, cells = kept.shape
    wide, device = accumulate_dtype(kept.dtype), kept.device
    totals = [torch.empty(f.shape, dtype=wide, device=device) for f in (kept, reduced)]
    if kept.numel() and reduced.numel():
        dtype = wide if INTERPRETED else kept.dtype  # the interpreter cuts bits off where the GPU rounds
        least = configs.architecture(device).scratch_bytes
        room = max(least, (kept.numel() + reduced.numel()) * kept.element_size()) // kept.element_size()
        lines = max(tile.kept, room // reduced.shape[2])  # kept cells that the buffer holds
        batches = max(1, min(batch, lines // cells))
        each = cells if lines >= cells else lines // tile.kept * tile.kept
        buffer = torch.empty(batches * each * reduced.shape[2], dtype=dtype, device=device)
        with on_device(kept):
            for first_batch in range(0, batch, batches):
                many = min(batches, batch - first_batch)
                for first in range(0, cells, each):
                    shape = many, min(each, cells - first), reduced.shape[2]
                    block = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
                    slopes(Block(block, first_batch, first))
                    _multiply(reduced, block.transpose(1, 2), totals[0], (first_batch, 0, first), False)
                    _multiply(kept, block, totals[1], (first_batch, first, 0), first > 0)
    return tuple(
        _finished(total, f, slope, gain) for total, f, slope in zip(totals, (kept, reduced), sides.slopes, strict=True)
    )  # type: ignore[return-value]


def _finished(total: Tensor, features: Tensor, slope: Tensor | None, gain: Tensor | None) -> Tensor:
    if not total.numel() or (slope is None and gain is None and total.dtype == features.dtype):
        return total.to(features.dtype)
    in_place = total.dtype == features.dtype or (INTERPRETED and features.dtype == torch.bfloat16)
    grad = total if in_place else torch.empty(features.shape, dtype=features.dtype, device=features.device)
    norms.chain(total, features, slope, gain, grad)
    return grad.to(features.dtype)


def half_gain(sides: Sides, bound: Tensor) -> Tensor | None:
    """A power of two that brings slopes of float16 features into the range of float16, None for other dtypes.

    bound: a number that the gradients by the entries do not exceed by far. A mean over many cells, or short features,
    would leave that range.
    """
    if sides.kept.dtype != torch.float16 or not sides.kept.numel() or not sides.reduced.numel():
        return None
    for factor in sides.factors:
        if factor is not None:
            bound = bound * factor.amax()
    gain = torch.exp2(4 - torch.log2(bound).ceil())
    return torch.where(bound > 0, gain, 1).to(torch.float32).reshape(1)
