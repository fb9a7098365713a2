"""Comparison with float64 truth by tolerances that follow from PyTorch's own error in the same dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_as_good_as(name: str, actual: Tensor, same_dtype: Tensor, truth: Tensor, condition: float = 1) -> None:
    """Error of ``actual`` against ``truth`` (float64) is at most twice that of ``same_dtype`` (PyTorch's result from
    the same inputs) plus rounding: one unit in the last place of the result's dtype at the size of the largest value,
    and the float32 rounding of the sums behind it, which grows by ``condition`` on its way to the result (a power of 3
    triples it). NaN and infinities must stand in the same places.
    """
    assert actual.shape == truth.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    actual, same_dtype, truth = (t.detach().double().cpu() for t in (actual, same_dtype, truth))
    finite = truth.isfinite()
    torch.testing.assert_close(
        actual[~finite], truth[~finite], equal_nan=True, rtol=0, atol=0, msg=f"{name}: non-finite"
    )
    if not finite.any():
        return
    error = (actual - truth)[finite].abs().max().item()
    peer = (same_dtype - truth)[finite].abs().max().item()
    limit = 2 * peer + condition * rounding(truth[finite])
    assert error <= limit, f"{name}: error {error:.3e} against float64, PyTorch's own {peer:.3e}, limit {limit:.3e}"


def rounding(truth: Tensor) -> float:
    """A few float32 units at the size of the largest value: what any order of summation may lose."""
    return 4 * torch.finfo(torch.float32).eps * max(truth.abs().max().item(), 1e-3)


def assert_same_best(index: Tensor, corr: Tensor, dim: int) -> None:
    """``index`` names the largest of ``corr`` along ``dim``, the lowest index among ties."""
    expected = corr.argmax(dim)
    best = corr.gather(dim, index.unsqueeze(dim)).squeeze(dim)
    torch.testing.assert_close(best, corr.amax(dim), rtol=0, atol=0)
    assert torch.equal(index, expected), "not the lowest index among ties"
