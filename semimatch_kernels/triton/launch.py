"""What the launchers share: empty outputs, layouts, scalars, the device context, the second stage."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._checks import accumulate_dtype
from . import configs
from .gradient import SIDE_FLOATS
from .online_softmax import STATE_FLOATS, merge_partials_kernel

#: Whether the kernels of this process are interpreted (TRITON_INTERPRET=1 when Triton was imported).
INTERPRETED = triton.knobs.runtime.interpret


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Launches inside go to the device of ``tensor`` and its current stream."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def kernel_dtype(tensor: Tensor) -> tl.dtype:
    """The dtype that kernels accumulate in."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


def scalars(temperature: float) -> dict[str, float]:
    """The temperature, and the factor from a difference of entries to the log2 of its exponential.

    Compiled kernels receive both as float32; the interpreter keeps the doubles, which float64 needs.
    """
    return {"temperature": float(temperature), "scale": math.log2(math.e) / temperature}


def options(num_warps: int) -> dict[str, int | bool]:
    """Compilation options. Fused multiply-add is asked for by name, because Triton's default changes in 3.10."""
    return {"num_warps": num_warps, "enable_fp_fusion": True}


def empty_results(corr: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised coords [B,cells,2], score, entropy, logsumexp [B,cells], index int64 [B,cells]."""
    dtype, batch, device = accumulate_dtype(corr.dtype), corr.shape[0], corr.device
    score, entropy, logsumexp = (torch.empty((batch, cells), dtype=dtype, device=device) for _ in range(3))
    coords = torch.empty((batch, cells, 2), dtype=dtype, device=device)
    return coords, score, entropy, logsumexp, torch.empty((batch, cells), dtype=torch.int64, device=device)


def empty_partials(corr: Tensor, parts: int, cells: int) -> tuple[Tensor, Tensor]:
    """Uninitialised states of a first stage: floats [B,parts,5,cells], index int32 [B,parts,cells]."""
    dtype, batch, device = accumulate_dtype(corr.dtype), corr.shape[0], corr.device
    floats = torch.empty((batch, parts, STATE_FLOATS.value, cells), dtype=dtype, device=device)
    return floats, torch.empty((batch, parts, cells), dtype=torch.int32, device=device)


def empty_side(corr: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Uninitialised vectors of `gradient.store_side`: floats [B,7,cells], index int32 [B,cells]."""
    dtype, batch, device = accumulate_dtype(corr.dtype), corr.shape[0], corr.device
    floats = torch.empty((batch, SIDE_FLOATS.value, cells), dtype=dtype, device=device)
    return floats, torch.empty((batch, cells), dtype=torch.int32, device=device)


def contiguous(*tensors: Tensor) -> list[Tensor]:
    """The tensors, copied where not contiguous (saved results are, as long as nothing restrides them)."""
    return [tensor.contiguous() for tensor in tensors]


def source_is_fast(corr: Tensor) -> bool:
    """Whether the gradient of ``corr`` [B,S,T] has the source side contiguous, as corr mostly has then."""
    return corr.stride(1) < corr.stride(2)


def empty_gradient(corr: Tensor) -> Tensor:
    """Uninitialised gradient of ``corr`` [B,S,T]: [B,T,S] seen transposed where `source_is_fast`, else
    [B,S,T].

    It has the dtype of ``corr``, but float32 where bfloat16 is interpreted; the launcher casts that,
    because the interpreter cuts off the bits that the GPU rounds.
    """
    batch, sources, targets = corr.shape
    dtype = torch.float32 if INTERPRETED and corr.dtype == torch.bfloat16 else corr.dtype
    if source_is_fast(corr):
        return torch.empty((batch, targets, sources), dtype=dtype, device=corr.device).transpose(1, 2)
    return torch.empty((batch, sources, targets), dtype=dtype, device=corr.device)


def reads_source_fast(corr: Tensor) -> bool:
    """Whether a warp should lie along the source side: the smaller stride, of the sides longer than 1."""
    return corr.shape[2] == 1 or (corr.shape[1] > 1 and source_is_fast(corr))


def gradient_strides(coords: Tensor | None, *others: Tensor | None) -> tuple[int, ...]:
    """Strides of incoming gradients: (batch, cell, xy) of coords, (batch, cell) of each other; 0 if None."""
    strides = (0, 0, 0) if coords is None else coords.stride()
    for other in others:
        strides += (0, 0) if other is None else other.stride()
    return strides


def merge_partials(
    partials: tuple[Tensor, Tensor], results: tuple[Tensor, ...], grid: tuple[int, int], temperature: float
) -> None:
    """Second stage: merge ``partials`` (of `empty_partials`) into ``results``; grid of the reduced side."""
    floats, _ = partials
    batch, parts, _, kept = floats.shape
    tile = configs.architecture(floats.device).merge
    merge_partials_kernel[(batch * triton.cdiv(kept, tile.kept),)](
        *partials, *results, parts, kept, grid[1], grid[0], **scalars(temperature),
        ACC=kernel_dtype(floats), BLOCK_PARTS=tile.reduced, BLOCK_K=tile.kept, **options(tile.num_warps),
    )  # fmt: skip
