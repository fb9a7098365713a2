"""Small arguments for every fused op and variant, as their schemas have them: what the tests of the frame run on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from semimatch_kernels import library
from semimatch_kernels._checks import accumulate_dtype
from semimatch_kernels.schemas import COMPOSITES, OPS, backend_name

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("contiguous", "transposed", "sliced", "padded", "expanded", "empty")

B, C, SOURCE, TARGET = 2, 3, (2, 3), (2, 2)
S, T = 6, 4


def _strided(values: Tensor, layout: str) -> Tensor:
    """The same values (but the batch of "expanded" and "empty") in another layout."""
    if layout == "transposed":
        return values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        wide = values.new_full((*values.shape[:-1], values.shape[-1] + 5), torch.nan)
        wide[..., 2 : 2 + values.shape[-1]] = values
        return wide[..., 2 : 2 + values.shape[-1]]
    if layout == "padded":  # every second element of rows that are longer than needed
        wide = values.new_full((*values.shape[:-1], 2 * values.shape[-1] + 3), torch.nan)
        wide[..., : 2 * values.shape[-1] : 2] = values
        return wide[..., : 2 * values.shape[-1] : 2]
    if layout == "expanded":
        return values[:1].expand(values.shape)
    return values


@dataclass(frozen=True)
class Maker:
    """Makes tensors of one dtype, layout and need of a gradient."""

    dtype: torch.dtype
    layout: str
    grad: bool

    @property
    def batch(self) -> int:
        return 0 if self.layout == "empty" else B

    def floats(self, *shape: int) -> Tensor:
        values = torch.randn(self.batch, *shape, dtype=torch.float64).to(self.dtype)
        return _strided(values, self.layout).requires_grad_(self.grad)

    def constant(self, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape)

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, (self.batch, *shape))

    def mask(self, *shape: int) -> Tensor:
        mask = torch.rand(self.batch, *shape) < 0.7
        mask[..., 0] = True
        return mask


@dataclass(frozen=True)
class Case:
    """One op with one choice of its arguments."""

    op: str
    make: Callable[[Maker], tuple]


def _loss(m: Maker, reduction: str, sigma: float = 0.0) -> tuple:
    labels = m.integers(S, T) - (torch.arange(T) == 1).long()  # some are ignored
    return (m.floats(S, T), labels, m.constant(T), m.mask(T), 0.5, reduction, SOURCE[1], sigma, 1)


def _loss_features(m: Maker, reduction: str, normalize: str = "inside") -> tuple:
    features, per_cell = (m.floats(C, S), m.floats(C, T)), (m.integers(S, T), m.constant(T), m.mask(T), None)
    return (*features, *per_cell, 0.5, reduction, SOURCE[1], 0.0, 0, normalize, 1e-3)


def _sides(m: Maker, masks: bool) -> tuple:
    return (m.floats(C, S), m.floats(C, T), m.mask(S) if masks else None, m.mask(T) if masks else None)


def _levels(m: Maker, *rest) -> tuple:
    return ([m.floats(c, S) for c in (2, 5)], [m.floats(c, T) for c in (2, 5)], *rest)


CASES: dict[str, Case] = {
    "correlation": Case(
        "correlation", lambda m: _levels(m, "inside", 1e-3, "none", False, 1, m.dtype)
    ),
    "correlation, clamped, relu, cubed": Case(
        "correlation", lambda m: _levels(m, "clamped", 1e-3, "channels", True, 3, torch.float64)
    ),
    "correlation, added, squared": Case(
        "correlation", lambda m: _levels(m, "added", 1e-3, "sqrt_channels", False, 2, accumulate_dtype(m.dtype))
    ),
    "mutual_filter": Case("mutual_filter", lambda m: (m.floats(S, T), None)),
    "mutual_filter, eps, levels": Case("mutual_filter", lambda m: (m.floats(2, S, T), 1e-5)),
    "mutual_mask": Case("mutual_mask", lambda m: (m.floats(2, S, T), 0.1)),
    "match": Case("match", lambda m: (m.floats(S, T), SOURCE, 0.5)),
    "match_both": Case("match_both", lambda m: (m.floats(S, T), SOURCE, TARGET, 0.5)),
    "match_features": Case("match_features", lambda m: (*_sides(m, False), SOURCE, 0.5, "inside", 1e-3)),
    "match_features, masks": Case("match_features", lambda m: (*_sides(m, True), SOURCE, 0.5, "none", 0.0)),
    "soft_argmax, gaussian": Case("soft_argmax", lambda m: (m.floats(S, T), SOURCE, 0.5, "gaussian", 1.5)),
    "soft_argmax, zero": Case("soft_argmax", lambda m: (m.floats(S, T), SOURCE, 0.5, "zero", 1.0)),
    "soft_argmax, exclude": Case("soft_argmax", lambda m: (m.floats(S, T), SOURCE, 0.5, "exclude", 1.0)),
    "soft_argmax_features": Case(
        "soft_argmax_features", lambda m: (*_sides(m, True), SOURCE, 0.5, "gaussian", 1.5, "clamped", 1e-3)
    ),
    "dual_softmax": Case("dual_softmax", lambda m: (m.floats(S, T), 0.5, False)),
    "dual_softmax, log": Case("dual_softmax", lambda m: (m.floats(S, T), 0.5, True)),
    "masked_contrastive_loss": Case("masked_contrastive_loss", lambda m: _loss(m, "mean")),
    "masked_contrastive_loss, none": Case("masked_contrastive_loss", lambda m: _loss(m, "none")),
    "masked_contrastive_loss, sum, smoothed": Case("masked_contrastive_loss", lambda m: _loss(m, "sum", 0.8)),
    "masked_contrastive_loss_features": Case("masked_contrastive_loss_features", lambda m: _loss_features(m, "mean")),
    "masked_contrastive_loss_features, none": Case(
        "masked_contrastive_loss_features", lambda m: _loss_features(m, "none", "none")
    ),
    "forward_backward_mask": Case(
        "forward_backward_mask",
        lambda m: (m.integers(S, T), m.integers(T, S), TARGET, SOURCE, 0.1, 0.5, "gather"),
    ),
    "forward_backward_mask, bilinear": Case(
        "forward_backward_mask",
        lambda m: (m.integers(S, T), m.integers(T, S), TARGET, SOURCE, 0.1, 0.5, "bilinear"),
    ),
    "pseudo_labels": Case(
        "pseudo_labels",
        lambda m: (
            m.floats(S, T), SOURCE, TARGET, 0.5, 0.3, 1.5, m.constant(4), 3 * m.constant(4), True, 0.1, 0.5,
            "gather", 1e-6, m.integers(T, T), m.mask(T),
        ),
    ),
    "pseudo_labels, plain": Case(
        "pseudo_labels",
        lambda m: (
            m.floats(S, T), SOURCE, TARGET, 0.5, 0.3, 0.0, None, None, False, 0.1, 0.5, "bilinear", 0.0, None, None,
        ),
    ),
    "warp": Case("warp", lambda m: (m.floats(1, 4, 5), 0.3 * m.constant(24), "affine_tps", "bilinear", False)),
    "warp, released": Case("warp", lambda m: (m.floats(1, 4, 5), 0.3 * m.constant(24), "affine_tps", "nearest", True)),
    "warp_lookup": Case("warp_lookup", lambda m: (0.3 * m.constant(24), (4, 5), "affine_tps", False)),
    "sparse_epe": Case("sparse_epe", lambda m: (m.floats(2, 3, 4), m.constant(2, 3, 4), m.mask(3, 4), "mean")),
}  # fmt: skip


class OnGpu(str):
    """Name of a case whose tensors are made on the GPU (by a fixture of conftest.py), for one backend."""

    device = "cuda"

    def __new__(cls, name: str, backend: str):
        self = super().__new__(cls, name)
        self.backend = backend
        return self


def make(case: str, dtype: torch.dtype, layout: str, grad: bool) -> tuple:
    """The arguments of ``case``, the same at every call."""
    if isinstance(case, OnGpu) and case.backend == "triton" and dtype == torch.float64:
        pytest.skip("triton: float64 runs in reference, cpu and cuda only")
    torch.manual_seed(0)
    return CASES[case].make(Maker(dtype, layout, grad))


def _why_not(op: str, backend: str) -> str | None:
    if backend == "reference":
        return None
    if backend == "cpu":
        return library.CPU_REASON
    return library.TRITON_REASON or (None if library.TRITON_INTERPRET else "on the CPU it needs TRITON_INTERPRET=1")


def available(differentiable: bool = False, gpu: bool = True) -> list:
    """pytest parameters (case, name of the op of one backend) of all that runs here; the rest is skipped with its
    reason. With a GPU, and unless not ``gpu``, also `on_gpu`."""
    params = []
    for name, case in CASES.items():
        if case.op in COMPOSITES:
            if not differentiable:
                params.append(pytest.param(name, case.op, id=name))
            continue
        if differentiable and not OPS[case.op].inputs:
            continue
        for backend in ("reference", *(b for b in OPS[case.op].backends if b != "cuda")):
            reason = _why_not(case.op, backend)
            skip = pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}")
            params.append(pytest.param(name, backend_name(case.op, backend), id=f"{name}-{backend}", marks=skip))
    return params + on_gpu(differentiable) if gpu else params


def on_gpu(differentiable: bool = False) -> list:
    """The same for the kernels on CUDA tensors; nothing without a GPU."""
    params = []
    for name, case in CASES.items() if torch.cuda.is_available() else ():
        if case.op in COMPOSITES or (differentiable and not OPS[case.op].inputs):
            continue
        for backend in (b for b in OPS[case.op].backends if b != "cpu"):
            reason = library.TRITON_REASON if backend == "triton" else library.CUDA_REASON
            marks = [pytest.mark.gpu, pytest.mark.skipif(reason is not None, reason=f"{backend}: {reason}")]
            qualified = backend_name(case.op, backend)
            params.append(pytest.param(OnGpu(name, backend), qualified, id=f"gpu-{name}-{backend}", marks=marks))
    return params


def summed(case: str, outputs, each: Callable[[Tensor], Tensor] = lambda o: o.square().sum()) -> Tensor:
    """Sum over the results of ``case`` that carry a gradient, where they are finite."""
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    op = CASES[case].op
    carries = OPS[op].outputs if op in OPS else [i for i, o in enumerate(outputs) if o.requires_grad]
    return sum((each(outputs[i].masked_fill(~outputs[i].isfinite(), 0)) for i in carries), torch.zeros(()))


def leaves(args) -> list[Tensor]:
    """The tensors among ``args``, lists included, that require a gradient."""
    flat = [t for a in args for t in (a if isinstance(a, (list, tuple)) else [a])]
    return [t for t in flat if isinstance(t, Tensor) and t.requires_grad]
