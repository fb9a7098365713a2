"""The contrastive loss and the mutual filter from a correlation on Triton's interpreter, at sizes of several tiles on
both sides, against float64 truth; limits that `test_accuracy.py` does not reach."""

from __future__ import annotations

import pytest
import torch
from truth import assert_as_good_as

from semimatch_kernels import library
from semimatch_kernels.schemas import OPS
from semimatch_kernels.triton import mutual
from semimatch_kernels.triton.mutual import _four_dims

pytestmark = pytest.mark.skipif(
    library.TRITON_REASON is not None or not library.TRITON_INTERPRET,
    reason=f"triton: {library.TRITON_REASON or 'on the CPU it needs TRITON_INTERPRET=1'}",
)

B, SOURCE, T = 1, (11, 13), 71  # the loss splits so many source cells among programs
S = SOURCE[0] * SOURCE[1]
LAYOUTS = ("contiguous", "transposed", "stepped")


def _laid_out(corr, layout):
    if layout == "transposed":
        return corr.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "stepped":
        wide = corr.new_full((*corr.shape[:-1], 2 * corr.shape[-1] + 1), torch.nan)
        wide[..., 1::2] = corr
        return wide[..., 1::2]
    return corr.contiguous()


def _labels():
    labels = torch.randint(-2, S, (B, T))
    return labels, torch.rand(B, T), torch.rand(B, T) < 0.8


def _check(op, corr, rest, layout="contiguous"):
    given = _laid_out(corr, layout).requires_grad_()
    peer, truth = corr.clone().requires_grad_(), corr.double().requires_grad_()
    definition = library.definition(op)
    results, grads, upstream = [], [], None
    for run, leaf in ((getattr(library.ops, f"{op}_triton"), given), (definition, peer), (definition, truth)):
        outputs = run(leaf, *rest)
        out = outputs[OPS[op].outputs[0]]
        if upstream is None:
            upstream = torch.randn(out.shape, dtype=torch.float64)
        results.append(outputs)
        grads.append(torch.autograd.grad((out.double().masked_fill(~out.isfinite(), 0) * upstream).sum(), leaf)[0])
    for i, three in enumerate(zip(*results, strict=True)):
        if three[0].dtype == torch.int64:
            assert torch.equal(three[0], three[2]), f"{op} result {i}"
        else:
            assert_as_good_as(f"{op} result {i}", *three)
    assert_as_good_as(f"{op} gradient", *grads)


@pytest.mark.parametrize("sigma", [0.0, 1.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_contrastive(layout, sigma):
    corr = torch.randn(B, S, T)
    corr[:, ::7] = -torch.inf
    labels, weight, mask = _labels()
    reduction = "none" if layout == "contiguous" else "mean"
    if reduction == "mean":  # none of an excluded cell, whose loss is +inf
        labels = torch.where(labels % 7 == 0, labels + 1, labels)
    _check("masked_contrastive_loss", corr, (labels, weight, mask, 0.3, reduction, SOURCE[1], sigma, 2), layout)


@pytest.mark.parametrize("sigma", [0.0, 1.3])
def test_contrastive_of_infinities_and_nan(sigma):
    """As torch.logsumexp has it: +inf among the scores is an infinite loss, not NaN."""
    corr = torch.randn(B, S, 10)
    corr[0, 100, 0] = torch.inf  # another cell's
    corr[0, 5, 1] = -torch.inf  # the label's
    corr[0, :, 2] = -torch.inf  # all
    corr[0, 100, 3] = torch.nan
    corr[0, 5, 4] = torch.inf  # the label's
    corr[0, 4, 5] = -torch.inf  # a neighbour's
    corr[0, 5, 6], corr[0, 100, 6] = -torch.inf, torch.nan  # the label's, and NaN stays
    corr[0, 5, 7], corr[0, 100, 7] = -torch.inf, torch.inf
    corr[0, 4, 8] = torch.inf  # a neighbour's
    corr[0, 4, 9] = torch.nan
    labels = torch.full((B, 10), 5)
    rest = (labels, None, None, 0.3, "none", SOURCE[1], sigma, 2)
    definition = library.definition("masked_contrastive_loss")
    results = [run(corr, *rest) for run in (library.ops.masked_contrastive_loss_triton, definition)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=1e-6)
    grad = torch.rand(B, 10)
    backward = library.ops.masked_contrastive_loss_backward_triton(corr, *rest, *results[0][1:], grad)
    expected = library.definition("masked_contrastive_loss_backward")(corr, *rest, *results[1][1:], grad)
    torch.testing.assert_close(backward, expected, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("eps", "few"), [(None, 8), (1e-5, 1)])  # tiles merged in the last launch, or before it
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutual_filter(layout, eps, few, monkeypatch):
    monkeypatch.setattr(mutual, "FEW_PARTS", few)
    corr = torch.rand(2, S, T).mul(8).round().div(8) + 0.1  # with ties
    _check("mutual_filter", corr, (eps,), layout)


def test_mutual_filter_of_levels_of_any_strides():
    """Two leading dimensions that no one stride spans."""
    corr = torch.rand(3, 2, 12, 70).transpose(0, 1)
    assert _four_dims(corr).data_ptr() == corr.data_ptr()
    for eps in (None, 1e-5):
        leaves = [corr.detach().clone(memory_format=torch.preserve_format).requires_grad_() for _ in range(2)]
        runs = library.ops.mutual_filter_triton, library.definition("mutual_filter")
        results = [run(leaf, eps) for run, leaf in zip(runs, leaves, strict=True)]
        upstream = torch.randn(3, 2, 12, 70).transpose(0, 1)
        grads = [torch.autograd.grad(r[0], leaf, upstream)[0] for r, leaf in zip(results, leaves, strict=True)]
        for ours, theirs in zip((*results[0], grads[0]), (*results[1], grads[1]), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_mutual_filter_of_zeros_and_nan():
    corr = torch.rand(1, 40, 70) - 0.3
    corr[0, 7] = 0  # a maximum of 0
    corr[0, :, 9] = -torch.rand(40)
    corr[0, 20, 50] = corr[0, 20, 33] = torch.nan
    results = [run(corr, None) for run in (library.ops.mutual_filter_triton, library.definition("mutual_filter"))]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("size", "temperature"), [(1.0, 1e-4), (1e6, 0.1)])
def test_contrastive_gradient_of_large_scores(size, temperature):
    """Probabilities are those of the forward pass: a rounding of the log-sum-exp must not reach the exponential."""
    corr = size * torch.randn(B, S, 10)
    rest = (torch.randint(0, S, (B, 10)), None, None, temperature, "none", SOURCE[1], 0.0, 0)
    gradients = []
    for name, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        leaf = corr.to(dtype).requires_grad_()
        loss = getattr(library.ops, f"masked_contrastive_loss_{name}")(leaf, *rest)[0]
        gradients.append(torch.autograd.grad(loss, leaf, torch.ones_like(loss))[0])
    assert_as_good_as("gradient", *gradients)
