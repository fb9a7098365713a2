"""`masked_contrastive_loss`, from a correlation and from features."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from truth import assert_as_good_as

import semimatch_kernels as smk

B, S, T = 3, 35, 51


def _inputs(dtype=torch.float32):
    corr = torch.randn(B, S, T).mul(0.5).to(dtype)
    labels = torch.randint(0, S, (B, T))
    weight = torch.rand(B, T)
    mask = torch.rand(B, T) < 0.4
    return corr, labels, weight, mask


def _plain(corr, labels, weight, mask, temperature):
    """PyTorch's cross-entropy, cell by cell."""
    loss = cross_entropy(corr / temperature, labels, reduction="none")
    return torch.where(mask, loss * weight.to(loss.dtype), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_against_cross_entropy(dtype, reduction):
    corr, labels, weight, mask = _inputs(dtype)
    losses, grads = [], []
    for leaf, run in (
        (corr, smk),
        (corr.to(torch.promote_types(dtype, torch.float32)), None),
        (corr.double(), None),
    ):
        leaf = leaf.clone().requires_grad_()
        if run is None:
            loss = _plain(leaf, labels, weight, mask, 0.2)
            loss = {"none": loss, "sum": loss.sum(), "mean": loss.sum() / mask.sum()}[reduction]
        else:
            loss = smk.masked_contrastive_loss(leaf, labels, 0.2, weight, mask, reduction)
        losses.append(loss)
        upstream = torch.linspace(-1, 2, loss.numel()).reshape(loss.shape)
        grads.append(torch.autograd.grad((loss.double() * upstream).sum(), leaf)[0])
    assert_as_good_as("loss", *losses)
    # The gradient is written in the dtype of the scores: its own rounding, on top of that of float32 arithmetic.
    assert_as_good_as("gradient", grads[0], grads[1].to(dtype), grads[2])


def test_per_source_is_the_transpose():
    corr, labels, weight, mask = _inputs()
    expected = smk.masked_contrastive_loss(corr, labels, 0.2, weight, mask)
    assert torch.equal(
        smk.masked_contrastive_loss(corr.transpose(1, 2), labels, 0.2, weight, mask, per="source"), expected
    )


def test_mean_counts_cells_not_weights():
    corr, labels, _, mask = _inputs()
    half = smk.masked_contrastive_loss(corr, labels, 0.2, torch.full((B, T), 0.5), mask)
    torch.testing.assert_close(half, 0.5 * smk.masked_contrastive_loss(corr, labels, 0.2, None, mask))


@pytest.mark.parametrize("empty", ["mask", "labels"])
def test_nothing_to_teach_is_zero_with_zero_gradient(empty):
    corr, labels, weight, mask = _inputs()
    corr = corr.requires_grad_()
    if empty == "mask":
        mask = torch.zeros_like(mask)
    else:
        labels = torch.full_like(labels, -1)
    loss = smk.masked_contrastive_loss(corr, labels, 0.2, weight, mask)
    loss.backward()
    assert loss.item() == 0
    assert corr.grad.count_nonzero() == 0


def test_ignored_labels_and_labels_that_name_no_cell():
    corr, labels, _, _ = _inputs()
    some = labels.clone()
    some[:, ::2] = -1
    expected = smk.masked_contrastive_loss(corr, labels, 0.2, mask=some >= 0)
    assert torch.equal(smk.masked_contrastive_loss(corr, some, 0.2), expected)
    some[0, 1] = S
    losses = smk.masked_contrastive_loss(corr, some, 0.2, reduction="none")
    assert losses[0, 1].isnan() and losses.isnan().sum() == 1


def test_non_finite_scores_outside_the_mask_reach_nothing():
    corr, labels, weight, mask = _inputs()
    expected = smk.masked_contrastive_loss(corr, labels, 0.2, weight, mask)
    poisoned = torch.where(mask[:, None], corr, torch.nan).requires_grad_()
    loss = smk.masked_contrastive_loss(poisoned, labels, 0.2, weight, mask)
    loss.backward()
    assert torch.equal(loss, expected)
    assert poisoned.grad.isfinite().all()


def test_gradient_near_certainty_keeps_its_digits():
    """p of the label 1 - 1e-6: p - 1 from a rounded p would lose most digits."""
    corr = torch.zeros(1, 2, 1)
    corr[0, 0] = 13.8
    leaf = corr.clone().requires_grad_()
    (grad,) = torch.autograd.grad(smk.masked_contrastive_loss(leaf, torch.zeros(1, 1, dtype=torch.int64), 1.0), leaf)
    truth = corr.double().requires_grad_()
    (expected,) = torch.autograd.grad(
        smk.masked_contrastive_loss(truth, torch.zeros(1, 1, dtype=torch.int64), 1.0), truth
    )
    torch.testing.assert_close(grad[0, 1].double(), expected[0, 1], rtol=1e-5, atol=0)


def test_gradcheck_and_weight_is_constant():
    corr = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(-1, 5, (2, 4))
    weight = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    for reduction in ("none", "sum", "mean"):
        assert torch.autograd.gradcheck(
            lambda c, r=reduction: smk.masked_contrastive_loss(c, labels, 0.5, weight.detach(), None, r),
            (corr,),
        )
    loss = smk.masked_contrastive_loss(corr, labels, 0.5, weight)
    assert torch.autograd.grad(loss, weight, allow_unused=True)[0] is None


@pytest.mark.parametrize("per", ["target", "source"])
def test_features_twin_without_the_matrix(per, monkeypatch):
    src = torch.randn(2, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    trg = torch.randn(2, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    kept, reduced = (16, 15) if per == "target" else (15, 16)
    labels, weight = torch.randint(-1, reduced, (2, kept)), torch.rand(2, kept)
    results = []
    for features in (True, False):
        if features:
            loss = smk.masked_contrastive_loss_features(src, trg, labels, 0.2, weight, per=per)
        else:
            loss = smk.masked_contrastive_loss(smk.correlation(src, trg), labels, 0.2, weight, per=per)
        results.append((loss, *torch.autograd.grad(loss, (src, trg))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


BAD = [
    (dict(labels=torch.zeros(B, T + 1, dtype=torch.int64)), ValueError, "labels: expected shape"),
    (dict(labels=torch.zeros(B, T)), TypeError, "labels: expected dtype"),
    (dict(weight=torch.zeros(B)), ValueError, "weight: expected shape"),
    (dict(mask=torch.zeros(B, T)), TypeError, "mask: expected dtype torch.bool"),
    (dict(reduction="avg"), ValueError, "reduction: expected one of 'none', 'sum', 'mean'"),
    (dict(per="row"), ValueError, "per: expected one of 'target', 'source', 'both'"),
    (dict(per="both"), TypeError, "labels: expected a pair"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[m[:25] for _, _, m in BAD])
def test_bad_arguments_are_named(change, error, message):
    corr, labels, _, _ = _inputs()
    with pytest.raises(error, match=message):
        smk.masked_contrastive_loss(**(dict(corr=corr, labels=labels) | change))
