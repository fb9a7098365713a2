"""What the from-features launchers share: the two sides of a call, and the gradient by both in bounded memory.

The gradient by a feature is a sum over all cells of the other side and has all channels; it does not fit in the
registers of a program, and forming the entries again for each block of channels would cost more than all the rest. So
the gradient by the entries ("slopes") is written in the dtype of the features, a block of kept cells at a time, to a
scratch buffer that never exceeds the features themselves (or a fixed part of L2, where they are smaller), and is
multiplied by the features of either side: three products of S x T x C in all, no atomics, and memory O(S + T).
"""

from __future__ import annotations

import os
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


#: How float32 is multiplied where PyTorch's setting wants all of its digits: on the ordinary cores, or as three
#: products of tf32 on the tensor cores, which keep nearly all.
_FULL = "tf32x3" if os.environ.get("SEMIMATCH_TF32X3", "0") == "1" else "ieee"


def precision(features: Tensor) -> dict:
    """How products are formed. float32 follows PyTorch's setting for products, "ieee" or "tf32". The interpreter
    multiplies in the accumulate dtype."""
    if INTERPRETED:
        return {"ACC": kernel_dtype(features), "DOT": kernel_dtype(features), "PRECISION": "ieee"}
    how = "ieee"
    if features.dtype == torch.float32:
        how = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else _FULL
    return {"ACC": kernel_dtype(features), "DOT": _DTYPES[features.dtype], "PRECISION": how}


def on_ordinary_cores(features: Tensor) -> bool:
    """Whether products of these have no tensor cores: float32 with all of its digits."""
    return features.dtype == torch.float32 and not INTERPRETED and precision(features)["PRECISION"] == "ieee"


def narrow_offsets(tile: configs.FeatureTile | configs.ProductTile, *strides: tuple[int, ...]) -> bool:
    """Whether offsets inside a tile fit 32 bits, in tensors of these strides (batch, then two more)."""
    return all(tile.longest * (abs(s[1]) + abs(s[2])) < 2**31 for s in strides)


def aligned(features: Tensor) -> bool:
    """Whether 16 bytes can be loaded at once: one of the strides of a channel and a cell is 1, all else multiples."""
    strides = [s for s in features.stride() if s != 1]
    return len(strides) < 3 and all(s % 16 == 0 for s in (*strides, features.data_ptr()))


def feature_tile(kernel: str, kept: Tensor, reduced: Tensor, crowded: bool = False) -> configs.FeatureTile:
    """The tile of a kind of kernel for these features [B,C,N], see `configs`; crowded: it has much else to keep."""
    arch, itemsize = configs.architecture(kept.device), min(kept.element_size(), 4)
    if on_ordinary_cores(kept):
        size = "ieee"
    elif crowded or not (aligned(kept) and aligned(reduced)):
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
    there: tuple[Tensor | None, Tensor | None]  #: the factors of the sides that have a mask

    @staticmethod
    def of(
        kept: Tensor, reduced: Tensor, kept_mask: Tensor | None, reduced_mask: Tensor | None, normalize: str,
        eps: float,
    ) -> Sides:  # fmt: skip
        factors, slopes, there = [], [], []
        for features, mask in ((kept, kept_mask), (reduced, reduced_mask)):
            factor, slope = norms.factors(features, normalize, eps)
            factors.append(_factors(factor, mask, features))
            slopes.append(slope)
            there.append(None if mask is None else factors[-1])
        return Sides(kept, reduced, tuple(factors), tuple(slopes), tuple(there))  # type: ignore[arg-type]

    @property
    def pointers(self) -> tuple[Tensor | None, ...]:
        return (self.kept, self.reduced, *self.factors)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.kept.shape[2], self.reduced.shape[2], self.kept.shape[1]

    def narrow(self, tile: configs.FeatureTile) -> bool:
        """Whether offsets inside a tile fit 32 bits, of the slopes too."""
        return narrow_offsets(tile, self.kept.stride(), self.reduced.stride(), (0, self.reduced.shape[2], 1))

    @property
    def strides(self) -> tuple[int, ...]:
        return (*self.kept.stride(), *self.reduced.stride())


@triton.jit(do_not_specialize=["first_batch", "first_term", "first_cell"])
def product_kernel(
    features_ptr,  # [B, C, terms] in any strides
    there_ptr,  # `tiles.factors` [B, all terms] where some terms are not there, else None
    slopes_ptr,  # [batches of this launch, terms, cells] in any strides
    sum_ptr,  # [B, C, all cells] contiguous
    cells, terms, channels, all_cells, all_terms, first_batch, first_term, first_cell,
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
    if there_ptr is not None:
        there_ptr += batch * all_terms + first_term
    acc = products(
        features_ptr, slopes_ptr, there_ptr, channel_ok, tl.arange(0, BLOCK_N) < cells - cell, terms,
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


def _multiply(
    features: Tensor, there: Tensor | None, slopes: Tensor, total: Tensor, first: tuple[int, int, int], accumulate: bool
) -> None:  # fmt: skip
    """Adds to ``total`` [B,C,N], or writes to it, the products of ``features`` with ``slopes`` [batches,terms,cells];
    first: batch, term and cell."""
    batches, terms, cells = slopes.shape
    channels = features.shape[1]
    if on_ordinary_cores(features):
        size = "ieee"
    else:
        size = "even" if aligned(features) and aligned(slopes) else "odd"
    tile = configs.architecture(features.device).products[size, min(features.element_size(), 4)]
    programs = batches * triton.cdiv(channels, tile.channels) * triton.cdiv(cells, tile.cells)
    product_kernel[(programs,)](
        features, there, slopes, total, cells, terms, channels, total.shape[2], features.shape[2], *first,
        *features.stride(), *slopes.stride(), ACCUMULATE=accumulate, **precision(features),
        NARROW=narrow_offsets(tile, features.stride(), slopes.stride(), total.stride()), **tile.constants,
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
                    transposed = block.transpose(1, 2)
                    _multiply(reduced, sides.there[1], transposed, totals[0], (first_batch, 0, first), False)
                    _multiply(kept, sides.there[0], block, totals[1], (first_batch, first, 0), first > 0)
    else:  # nothing to match on one side
        totals = [total.zero_() for total in totals]
    each_side = zip(totals, (kept, reduced), sides.slopes, sides.there, strict=True)
    return tuple(_finished(total, f, slope, there, gain) for total, f, slope, there in each_side)  # type: ignore


def _finished(
    total: Tensor, features: Tensor, slope: Tensor | None, there: Tensor | None, gain: Tensor | None
) -> Tensor:  # fmt: skip
    if not total.numel() or (slope is there is gain is None and total.dtype == features.dtype):
        return total.to(features.dtype)
    in_place = total.dtype == features.dtype or (INTERPRETED and features.dtype == torch.bfloat16)
    grad = total if in_place else torch.empty(features.shape, dtype=features.dtype, device=features.device)
    norms.chain(total, features, slope, there, gain, grad)
    return grad.to(features.dtype)


def _largest(values: Tensor) -> Tensor:
    """Largest absolute value, of those that are finite: a NaN in one sample must not change the others."""
    return torch.where(values.isfinite(), values.abs(), 0).amax()


def half_gain(sides: Sides, temperature: float, *bounds: Tensor) -> Tensor | None:
    """A power of two that brings slopes of float16 features into the range of float16.

    bounds: the gradients by the entries do not exceed the product of their largest values, divided by the temperature,
    by far. A mean over many cells, or short features, would leave that range.
    """
    if not sides.kept.numel() or not sides.reduced.numel():
        return None
    bound = torch.full((), 1 / temperature, device=sides.kept.device)
    for values in (*bounds, *sides.factors):
        if values is not None:
            bound = bound * _largest(values)
    gain = torch.exp2(4 - torch.log2(bound).ceil())
    return torch.where((bound > 0) & gain.isfinite(), gain, 1).to(torch.float32).reshape(1)
