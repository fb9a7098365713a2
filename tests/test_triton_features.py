"""The from-features ops on Triton's interpreter, at sizes of several tiles in every dimension, against float64 truth.

`test_accuracy.py` has every op at the smallest sizes; here are strides, masks, norms and dtypes at sizes that are a
multiple of no block.
"""

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

B, C, SOURCE, T = 2, 37, (7, 11), 65
S = SOURCE[0] * SOURCE[1]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("cells", "channels", "batch", "stepped", "flipped sides")
OPS_HERE = ("match_features", "masked_contrastive_loss_features")
MODES = ("none", "inside", "added", "clamped")


def _laid_out(values, layout):
    """The same values [B,C,N] under other strides."""
    if layout == "channels":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "batch":
        return values.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if layout == "stepped":
        wide = values.new_full((B, C + 3, 2 * values.shape[2] + 1), torch.nan)
        wide[:, :C, 1::2] = values
        return wide[:, :C, 1::2]
    return values.contiguous()


def _features(dtype, normalize):
    scale = 0.2 if normalize == "none" else 1.0
    return [(scale * torch.randn(B, C, n)).to(dtype) for n in (S, T)]


def _masks():
    source, target = torch.rand(B, S) < 0.8, torch.rand(B, T) < 0.8
    source[1] = False  # nothing to match to
    return source, target


def _rest(op, normalize, masks, sigma=0.0, reduction="mean"):
    """What follows the features in the schema of ``op``."""
    source, target = masks
    norm = (normalize, 1e-2)
    if op == "match_features":
        return (source, target, SOURCE, 0.3, *norm)
    labels = torch.randint(-2, S, (B, T))
    if source is not None:  # a label that names a cell which is not there costs +inf: none here
        labels[~source.gather(1, labels.clamp(min=0))] = -1
    return (labels, torch.rand(B, T), target, source, 0.3, reduction, SOURCE[1], sigma, 2, *norm)


def _check(op, features, rest, layout="cells"):
    """Results and gradients of the Triton op, of the definition in the same dtype, and of that in float64."""
    layouts = (layout, "cells") if layout != "flipped sides" else ("channels", "cells")
    given = [_laid_out(f, where).requires_grad_() for f, where in zip(features, layouts, strict=True)]
    peer, truth = ([f.clone().to(d).requires_grad_() for f in features] for d in (features[0].dtype, torch.float64))
    definition = library.definition(op)
    results, grads, upstream = [], [], None
    for run, leaves in ((getattr(library.ops, f"{op}_triton"), given), (definition, peer), (definition, truth)):
        outputs = run(*leaves, *rest)
        floats = [outputs[i] for i in OPS[op].outputs]
        if upstream is None:
            upstream = [torch.randn(o.shape, dtype=torch.float64) for o in floats]
        pairs = zip(floats, upstream, strict=True)
        total = sum((o.double().masked_fill(~o.isfinite(), 0) * u).sum() for o, u in pairs)
        results.append(outputs)
        grads.append(torch.autograd.grad(total, leaves))
    for i, (actual, same, expected) in enumerate(zip(*results, strict=True)):
        if actual.dtype != torch.int64:
            assert_as_good_as(f"{op} result {i}", actual, same, expected)
        elif features[0].dtype in (torch.float32, torch.float64):
            assert torch.equal(actual, expected), f"{op} result {i}"
    for name, *three in zip(("src", "trg"), *grads, strict=True):
        assert three[0].is_contiguous() and three[0].dtype == features[0].dtype
        assert_as_good_as(f"{op} gradient by {name}", *three)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS_HERE)
def test_dtypes(op, dtype):
    _check(op, _features(dtype, "inside"), _rest(op, "inside", (None, None)))


@pytest.mark.parametrize("normalize", MODES)
@pytest.mark.parametrize("op", OPS_HERE)
def test_norms_and_masks(op, normalize):
    features = _features(torch.float32, normalize)
    if normalize != "none":
        features[0][0, :, 5] = 0  # a cell without direction
        features[1][1, :, 64] = 1e-4  # below eps
    _check(op, features, _rest(op, normalize, _masks()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS_HERE)
def test_strides(op, layout):
    _check(op, _features(torch.float32, "inside"), _rest(op, "inside", (None, None)), layout)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_smoothed_labels(reduction, masked):
    """Goals reach over the border of the grid, and over source cells that are not there."""
    op, features = "masked_contrastive_loss_features", _features(torch.float32, "inside")
    _check(op, features, _rest(op, "inside", _masks() if masked else (None, None), 1.1, reduction))


@pytest.mark.parametrize("normalize", ["none", "clamped"])
@pytest.mark.parametrize("sigma", [None, 0.0, 1.1], ids=["match", "loss", "smoothed loss"])
def test_what_is_masked_out_may_be_nan(sigma, normalize):
    """To the bit: in results, and in the gradient by either side."""
    op = "match_features" if sigma is None else "masked_contrastive_loss_features"
    masks = _masks()
    rest = _rest(op, normalize, masks, sigma or 0.0, "sum")
    keep = masks[1] if sigma is None else masks[1] & (rest[0] >= 0)
    features, results = _features(torch.float32, normalize), []
    for fill in (0.5, torch.nan):
        leaves = [f.clone() for f in features]
        for leaf, mask in zip(leaves, (masks[0], keep), strict=True):
            leaf.transpose(1, 2)[~mask] = fill
        outputs = getattr(library.ops, f"{op}_triton")(*[leaf.requires_grad_() for leaf in leaves], *rest)
        total = sum(outputs[i].masked_fill(outputs[i] == -torch.inf, 0).square().sum() for i in OPS[op].outputs)
        results.append([*outputs, *torch.autograd.grad(total, leaves)])
    for before, after in zip(*results, strict=True):
        assert torch.equal(before, after)
    for grad, mask in zip(results[0][-2:], (masks[0], keep), strict=True):
        assert grad.isfinite().all() and grad.transpose(1, 2)[~mask].count_nonzero() == 0


@pytest.mark.parametrize("op", OPS_HERE)
def test_a_nan_reaches_what_it_belongs_to(op):
    """Features that are NaN and not masked out: the definition's NaN, in every result and gradient."""
    features = _features(torch.float32, "inside")
    features[0][0, 3, 40] = features[1][1, 0, 7] = torch.nan
    rest, results = _rest(op, "inside", (None, None), reduction="none"), []
    for run in (getattr(library.ops, f"{op}_triton"), library.definition(op)):
        leaves = [f.clone().requires_grad_() for f in features]
        outputs = run(*leaves, *rest)
        floats = [outputs[i] for i in OPS[op].outputs]
        results.append([*floats, *torch.autograd.grad(floats, leaves, [torch.ones_like(f) for f in floats])])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())


@pytest.mark.parametrize("op", OPS_HERE)
def test_nothing_on_one_side(op):
    """No target cell: no result, and a gradient of 0 by the source."""
    src, trg = (f.requires_grad_() for f in _features(torch.float32, "inside"))
    rest = [r[:, :0] if isinstance(r, torch.Tensor) else r for r in _rest(op, "inside", (None, None))]
    outputs = getattr(library.ops, f"{op}_triton")(src, trg[:, :, :0], *rest)
    total = sum(outputs[i].sum() for i in OPS[op].outputs)
    (grad,) = torch.autograd.grad(total, src)
    assert total == 0 and grad.count_nonzero() == 0


def test_products_of_float32_follow_the_setting_of_pytorch(monkeypatch):
    from semimatch_kernels.triton import features

    monkeypatch.setattr(features, "INTERPRETED", False)
    wide, half, how = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4).half(), []
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for setting in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = setting
            how.append(features.precision(wide)["PRECISION"])
            assert features.precision(half)["PRECISION"] == "ieee"
            assert features.feature_tile("forward", wide, wide).channels > 0
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        monkeypatch.setattr(features, "_FULL", "tf32x3")
        how.append(features.precision(wide)["PRECISION"])
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert how == ["ieee", "tf32", "tf32x3"]


def test_labels_that_name_no_cell_and_cells_that_do_not_count():
    """NaN for the first alone; the others are 0 whatever their features are."""
    src, trg = _features(torch.float32, "none")
    rest = list(_rest("masked_contrastive_loss_features", "none", (None, torch.rand(B, T) < 0.7), reduction="none"))
    rest[0][0, 3], rest[2][0, 3] = S, True
    trg[1, :, 6], rest[2][1, 6] = torch.nan, False
    loss, logsumexp, count = library.ops.masked_contrastive_loss_features_triton(src, trg, *rest)
    expected = library.definition("masked_contrastive_loss_features")(src, trg, *rest)
    assert loss.isnan().nonzero().tolist() == [[0, 3]]
    for ours, theirs in zip((loss, logsumexp, count), expected, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_ties_take_the_lowest_index():
    """Equal source cells in one tile, in two tiles of a program, and in the ranges of two programs."""
    src = torch.randint(-2, 3, (B, 5, S)).float()
    src[:, :, 32:] = src[:, :, : S - 32]
    trg = torch.randint(-2, 3, (B, 5, T)).float()
    index = library.ops.match_features_triton(src, trg, None, None, SOURCE, 0.3, "none", 0.0)[4]
    assert torch.equal(index, torch.einsum("bcs,bct->bst", src, trg).argmax(1))


def test_offsets_of_64_bits(monkeypatch):
    """What very large strides take, on small ones."""
    from semimatch_kernels.triton import features

    monkeypatch.setattr(features, "narrow_offsets", lambda *_: False)
    for op in OPS_HERE:
        _check(op, _features(torch.float32, "inside"), _rest(op, "inside", (None, None)), "channels")


def test_a_tiny_gradient_of_float16_does_not_vanish():
    """A mean over very many cells: the gradient by an entry is below the smallest number of float16."""
    src, trg = _features(torch.float16, "none")
    rest = _rest("match_features", "none", (None, None))
    grads = []
    for op, dtype in ((library.ops.match_features_triton, src.dtype), (library.definition("match_features"), None)):
        leaves = [f.detach().to(dtype or torch.float64).requires_grad_() for f in (src, trg)]
        outputs = op(*leaves, *rest)
        grads.append(torch.autograd.grad(outputs[0], leaves, torch.full_like(outputs[0], 1e-7) * outputs[0].sign()))
    for ours, truth in zip(*grads, strict=True):
        # Results are float16 too: half a unit of its smallest numbers, and the usual few units of its largest.
        limit = 2**-25 + 4 * torch.finfo(torch.float16).eps * truth.abs().max()
        assert (ours.double() - truth).abs().max() <= limit


def test_bits_repeat_and_batch_is_shared_out_in_blocks():
    """The scratch buffer of the gradient takes some batches, or some kept cells of one: the same values."""
    from dataclasses import replace

    from semimatch_kernels.triton import configs

    features = [f[:, :5].contiguous() for f in _features(torch.float32, "inside")]
    rest = _rest("match_features", "inside", (None, None))
    results = library.ops.match_features_triton(*features, *rest)
    upstream = [torch.randn_like(r) for r in results[:4]]
    backward = library.ops.match_features_backward_triton
    first = backward(*features, *rest, *results, *upstream)
    assert all(torch.equal(a, b) for a, b in zip(first, backward(*features, *rest, *results, *upstream), strict=True))
    before = configs.INTERPRETER
    try:
        configs.INTERPRETER = replace(before, scratch_bytes=1 << 30)
        whole = backward(*features, *rest, *results, *upstream)
    finally:
        configs.INTERPRETER = before
    for a, b in zip(first, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [10.0, 1e4])
@pytest.mark.parametrize("op", OPS_HERE)
def test_large_scores(op, size):
    """Features that are not normalised: a rounding of the log-sum-exp must not reach the exponential."""
    _check(op, [size * torch.randn(B, C, n) for n in (S, T)], _rest(op, "none", (None, None), reduction="sum"))
