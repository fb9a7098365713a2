"""The contrastive loss and the mutual filter from a correlation on Triton's interpreter, at sizes of several tiles on
both sides, against float64 truth; limits that `test_accuracy.py` does not reach."""

from __future__ import annotations

import pytest
import torch
from truth import assert_as_good_as

from semimatch_kernels import library
from semimatch_kernels.schemas import OPS

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
    corr[:, ::7] = -torch.inf if sigma == 0 else corr[:, ::7]
    labels, weight, mask = _labels()
    labels[labels % SOURCE[1] % 7 == 0] = 1  # none of an excluded cell, whose loss is +inf
    labels = torch.where(labels % 7 == 0, labels + 1, labels)
    reduction = "none" if layout == "contiguous" else "mean"
    _check("masked_contrastive_loss", corr, (labels, weight, mask, 0.3, reduction, SOURCE[1], sigma, 2), layout)


def test_contrastive_of_infinities_and_nan():
    """As torch.logsumexp has it: +inf among the scores is an infinite loss, not NaN."""
    corr = torch.randn(B, S, 6)
    corr[0, 3, 0] = torch.inf  # another cell's
    corr[0, 5, 1] = -torch.inf  # the label's
    corr[0, :, 2] = -torch.inf  # all
    corr[0, 100, 3] = torch.nan
    corr[0, 5, 4] = torch.inf  # the label's
    labels = torch.full((B, 6), 5)
    rest = (labels, None, None, 0.3, "none", S, 0.0, 0)
    definition = library.definition("masked_contrastive_loss")
    results = [run(corr, *rest) for run in (library.ops.masked_contrastive_loss_triton, definition)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-6, atol=1e-6)
    grad = torch.rand(B, 6)
    backward = library.ops.masked_contrastive_loss_backward_triton(corr, *rest, *results[0][1:], grad)
    expected = library.definition("masked_contrastive_loss_backward")(corr, *rest, *results[1][1:], grad)
    torch.testing.assert_close(backward, expected, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps", [None, 1e-5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutual_filter(layout, eps):
    corr = torch.rand(2, S, T).mul(8).round().div(8) + 0.1  # with ties
    _check("mutual_filter", corr, (eps,), layout)


def test_mutual_filter_of_zeros_and_nan():
    corr = torch.rand(1, 40, 70) - 0.3
    corr[0, 7] = 0  # a maximum of 0
    corr[0, :, 9] = -torch.rand(40)
    corr[0, 20, 50] = corr[0, 20, 33] = torch.nan
    results = [run(corr, None) for run in (library.ops.mutual_filter_triton, library.definition("mutual_filter"))]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=0)
