"""Windowed soft-argmax and dual softmax on Triton: several tiles a side, and what the shared matrix does not reach."""

from __future__ import annotations

import pytest
import torch
from truth import assert_as_good_as

from semimatch_kernels import library

pytestmark = pytest.mark.skipif(
    library.TRITON_REASON is not None or not library.TRITON_INTERPRET,
    reason=library.TRITON_REASON or "Triton's interpreter is off (TRITON_INTERPRET=1 turns it on)",
)

GRID, S, T = (9, 13), 117, 77
WINDOWS = [("gaussian", 1.7), ("zero", 2.0), ("exclude", 2.0), ("exclude", 50.0), ("none", 0.0)]


def _assert_same(op: str, args: tuple, upstream: torch.Tensor) -> torch.Tensor:
    """Results and gradients in float64 as the reference has them; the coordinates."""
    runs = []
    for backend in ("triton", "reference"):
        results = getattr(library.ops, f"{op}_{backend}")(*args)
        grads = getattr(library.ops, f"{op}_backward_{backend}")(*args, *results, upstream)
        runs.append((*results, *(grads if isinstance(grads, (tuple, list)) else (grads,))))
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11, equal_nan=True)
    return runs[0][0]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("window", "width"), WINDOWS)
def test_soft_argmax(window, width, transposed):
    """Ties, best cells at the border, negative scores (a weight of 0 makes those the largest), excluded cells, columns
    with none left, infinities."""
    corr = torch.randn(2, S, T, dtype=torch.float64).mul(4).round().div(4) - 1.5
    corr[1, :, 7], corr[1, 2:9, 8:30], corr[0, 33, 60] = -torch.inf, -torch.inf, torch.inf
    corr = corr.mT.contiguous().mT if transposed else corr
    upstream = torch.randn(T, 2, 2, dtype=torch.float64).transpose(0, 1)
    coords = _assert_same("soft_argmax", (corr, GRID, 0.5, window, width), upstream)
    assert coords[1, 7].count_nonzero() == 0 and coords[0, 60].isnan().all() and coords.isnan().sum() == 2


@pytest.mark.parametrize(("window", "width"), WINDOWS)
def test_a_nan_is_the_best_cell(window, width):
    """The window lies round it, as round the largest entry: no column hides one."""
    corr = torch.randn(1, S, T, dtype=torch.float64)
    corr[0, 40, 5] = corr[0, 3, 5] = torch.nan
    coords = _assert_same("soft_argmax", (corr, GRID, 0.5, window, width), torch.ones(1, T, 2, dtype=torch.float64))
    assert coords[0, 5].isnan().all() and coords.isnan().sum() == 2


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("window", "width"), [("gaussian", 1.7), ("zero", 2.0), ("exclude", 1.0)])
def test_soft_argmax_features(window, width, masked):
    src, trg = (torch.randn(2, 5, n, dtype=torch.float64) for n in (S, T))
    masks = [torch.rand(2, n) < 0.7 for n in (S, T)] if masked else [None, None]
    if masked:
        masks[0][1] = False
    args = (src, trg, *masks, GRID, 0.5, window, width, "inside", 1e-3)
    coords = _assert_same("soft_argmax_features", args, torch.randn(2, T, 2, dtype=torch.float64))
    assert not masked or coords[1].count_nonzero() == 0


@pytest.mark.parametrize("log", [False, True])
def test_dual_softmax_keeps_the_digits_of_large_scores(log):
    """A common offset costs none, neither forward nor backward: neither starts from a rounded log-sum-exp."""
    corr, upstream = 1000 + torch.randn(1, S, T), torch.randn(1, S, T)
    runs = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        leaf = corr.to(dtype).requires_grad_()
        p, *logsumexp = getattr(library.ops, f"dual_softmax_{backend}")(leaf, 0.1, log)
        (grad,) = torch.autograd.grad(p, leaf, upstream.to(dtype))
        runs.append([p.detach(), *logsumexp, grad])
    for name, *three in zip(("p", "per target", "per source", "gradient"), *runs, strict=True):
        assert_as_good_as(name, *three)
