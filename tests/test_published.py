"""What published matchers compute, restated in plain PyTorch from their papers, and the call of ours that replaces it.

Each restatement works in the matcher's own layout; values are compared in float64.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import semimatch_kernels as smk

B, C, H, W = 2, 12, 5, 7
N = H * W


def _features(*channels):
    shape = channels or (C,)
    return [torch.randn(B, c, H, W, dtype=torch.float64) for c in shape], [
        torch.randn(B, c, H, W, dtype=torch.float64) for c in shape
    ]


def _corr():
    return torch.randn(B, N, N, dtype=torch.float64)


def _close(actual, expected, rtol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-11)


# --- correlation


def test_cats_and_ncnet_cosine():
    (src,), (trg,) = _features()
    unit = [f / torch.sqrt(torch.sum(f**2, 1, keepdim=True) + 1e-6) for f in (src, trg)]
    four_d = torch.einsum("bcij,bckl->bijkl", *unit)
    _close(smk.correlation(src, trg), four_d.reshape(B, N, N))
    _close(smk.correlation(src, trg, relu=True), four_d.clamp(min=0).reshape(B, N, N))


def test_cats_plus_plus_length_plus_eps():
    (src,), (trg,) = _features()
    src[0, :, 2, 3] = 0
    unit = [f / (f.norm(p=2, dim=1, keepdim=True) + 1e-5) for f in (src, trg)]
    expected = torch.einsum("bcij,bckl->bijkl", *unit).clamp(min=0).reshape(B, N, N)
    _close(smk.correlation(src, trg, "added", 1e-5, relu=True), expected)


@pytest.mark.parametrize("power", [2, 3])
def test_dhpf_and_hpf_power_of_the_positive_cosine(power):
    (src,), (trg,) = _features()
    cosine = F.cosine_similarity(src.flatten(2)[..., None], trg.flatten(2)[:, :, None], dim=1, eps=1e-12)
    _close(smk.correlation(src, trg, "clamped", 1e-12, relu=True, power=power), cosine.clamp(min=0) ** power)


def test_nearest_neighbours_of_dinov2_and_dift():
    (src,), (trg,) = _features()
    points = torch.randint(0, N, (B, 9))
    queries = src.flatten(2).gather(2, points[:, None].expand(-1, C, -1))  # [B,C,Q]
    similarity = F.normalize(queries, dim=1).transpose(1, 2) @ F.normalize(trg.flatten(2), dim=1)
    _close(smk.correlation(queries, trg, "clamped", 1e-12), similarity)
    best = smk.match_features(queries, trg, (H, W), per="source", normalize="clamped", eps=1e-12)
    assert torch.equal(best.index, similarity.argmax(2))


def test_loftr_coarse_similarity():
    (src,), (trg,) = _features()
    tokens = [f.flatten(2).transpose(1, 2) / C**0.5 for f in (src, trg)]
    _close(smk.correlation(src, trg, False, scale="channels"), torch.einsum("nlc,nsc->nls", *tokens))
    attention = src.flatten(2).transpose(1, 2) @ trg.flatten(2) / math.sqrt(C)
    _close(smk.correlation(src, trg, False, scale="sqrt_channels"), attention)


def test_hyperpixel_stack_of_cats():
    src, trg = _features(4, 9, 16)
    levels = [smk.correlation(s, t) for s, t in zip(src, trg, strict=True)]
    stack = torch.stack(levels, 1)
    _close(smk.correlation(src, trg), stack)
    _close(smk.correlation(src, trg, mutual=True), _cats_filter(stack))


# --- mutual filters


def _cats_filter(corr):
    best_of_target, best_of_source = corr.max(-2, keepdim=True)[0], corr.max(-1, keepdim=True)[0]
    best_of_target = torch.where(best_of_target == 0, best_of_target + 1e-30, best_of_target)
    best_of_source = torch.where(best_of_source == 0, best_of_source + 1e-30, best_of_source)
    return corr * ((corr / best_of_source) * (corr / best_of_target))


def test_mutual_filters_and_their_gradients():
    corr = torch.stack([_corr(), _corr().abs()], 1)
    corr[:, 1, 4], corr[:, 1, :, 6] = 0, 0  # a row and a column of zeros
    for eps, plain in (
        (None, _cats_filter),
        (1e-5, lambda c: c * (c / (c.max(-1, keepdim=True)[0] + 1e-5)) * (c / (c.max(-2, keepdim=True)[0] + 1e-5))),
    ):
        leaves = [corr.clone().requires_grad_() for _ in range(2)]
        ours, expected = smk.mutual_filter(leaves[0], eps), plain(leaves[1])
        _close(ours, expected, rtol=1e-9)
        upstream = torch.randn_like(expected)
        grads = [torch.autograd.grad(v, leaf, upstream)[0] for v, leaf in zip((ours, expected), leaves, strict=True)]
        # Where a maximum is 0 the gradient through it is (nearly) infinite on both sides.
        ordinary = (grads[1].abs() < 1e9) & (grads[0].abs() < 1e9)
        assert ordinary.float().mean() > 0.9
        _close(grads[0][ordinary], grads[1][ordinary], rtol=1e-7)


def test_mutual_nearest_neighbours_of_loftr():
    corr = _corr()
    confidence = smk.dual_softmax(corr, 0.1)
    expected = (confidence == confidence.max(2, keepdim=True)[0]) * (confidence == confidence.max(1, keepdim=True)[0])
    assert torch.equal(smk.mutual_mask(confidence), expected)
    assert torch.equal(smk.mutual_mask(confidence, 0.2), expected & (confidence > 0.2))
    assert 0 < smk.mutual_mask(confidence, 0.2).sum() < expected.sum()


# --- soft-argmax


def _positions(align_corners=True):
    """x and y [H,W] of the cells."""
    x, y = (torch.linspace(-1, 1, n, dtype=torch.float64) for n in (W, H))
    if not align_corners:
        x, y = ((2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in (W, H))
    return x.expand(H, W), y[:, None].expand(H, W)


def _expectation(p, align_corners=True):
    """Expected (x, y) [B,T,2] of probabilities [B,S,T]."""
    x, y = (axis.flatten() for axis in _positions(align_corners))
    return torch.stack([torch.einsum("s,bst->bt", axis, p) for axis in (x, y)], -1)


def test_cats_soft_argmax_and_kornia():
    corr = _corr()
    p = F.softmax(corr / 0.02, dim=1)
    m = smk.match(corr, (H, W), 0.02)
    _close(m.coords, _expectation(p))
    _close(m.score, p.amax(1))
    # kornia: the temperature multiplies; per source, in normalised coordinates
    per_source = smk.match(corr, (H, W), 1 / 7.0, per="source")
    _close(per_source.coords, _expectation(F.softmax(7.0 * corr, dim=2).transpose(1, 2)))


@pytest.mark.parametrize("coordinates", ["corners", "centers", "cells", smk.Pixels(16), smk.Pixels(8, 0.0)])
def test_units_of_coordinates(coordinates):
    corr = _corr()
    p = F.softmax(corr / 0.1, dim=1)
    expected = {
        "corners": _expectation(p),
        "centers": _expectation(p, align_corners=False),
        "cells": (_expectation(p) + 1) / 2 * torch.tensor([W - 1, H - 1]),
    }
    if isinstance(coordinates, smk.Pixels):
        offset = 7.5 if coordinates.offset is None else 0.0
        expected[coordinates] = expected["cells"] * coordinates.stride + offset
    _close(smk.match(corr, (H, W), coordinates=coordinates).coords, expected[coordinates])
    (src,), (trg,) = _features()
    cosine = smk.correlation(src, trg)
    _close(
        smk.match_features(src, trg, (H, W), coordinates=coordinates).coords,
        smk.match(cosine, (H, W), coordinates=coordinates).coords,
    )
    window = smk.GaussianWindow(2.0)
    _close(
        smk.soft_argmax_features(src, trg, (H, W), window=window, coordinates=coordinates),
        smk.soft_argmax(cosine, (H, W), window=window, coordinates=coordinates),
    )


def _distances(index):
    """Distances in cells [B,S,T] along x and y from the best cells ``index`` [B,T]."""
    cell = torch.arange(N)[:, None]
    return (cell % W - index[:, None] % W).double(), (cell // W - index[:, None] // W).double()


def test_kernel_soft_argmax_of_sfnet_and_chm():
    """Scores times a Gaussian at the argmax, softmax with beta = 50 (SFNet) or temperature 1 (CHM, sigma 17)."""
    corr = _corr()
    dx, dy = _distances(corr.argmax(1))
    for sigma, temperature in ((5.0, 1 / 50), (17.0, 1.0), (1.0, 0.3)):
        kernel = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
        expected = _expectation(F.softmax(corr * kernel / temperature, dim=1))
        _close(smk.soft_argmax(corr, (H, W), temperature, window=smk.GaussianWindow(sigma)), expected)


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_window_soft_argmax_of_geoaware(radius):
    """Scores outside a square round the argmax times 0; and the same with them left out."""
    corr = _corr()
    dx, dy = _distances(corr.argmax(1))
    inside = (dx.abs() <= radius) & (dy.abs() <= radius)
    zeroed = F.softmax(corr * inside / 0.02, dim=1)
    left_out = F.softmax(corr.masked_fill(~inside, -torch.inf) / 0.02, dim=1)
    for outside, p in (("zero", zeroed), ("exclude", left_out)):
        window = smk.HardWindow(radius, outside)
        _close(smk.soft_argmax(corr, (H, W), 0.02, window=window), _expectation(p))
        transposed = smk.soft_argmax(corr.transpose(1, 2), (H, W), 0.02, "source", window)
        _close(transposed, _expectation(p))


# --- dual softmax and losses


def test_dual_softmax_of_loftr_with_padding():
    corr = _corr()
    source_mask, target_mask = torch.rand(B, N) < 0.8, torch.rand(B, N) < 0.7
    valid = source_mask[:, :, None] & target_mask[:, None]
    similarity = (corr / 0.1).masked_fill(~valid, -1e9)
    expected = torch.softmax(similarity, 1) * torch.softmax(similarity, 2)
    ours = smk.dual_softmax(corr, 0.1, source_mask=source_mask, target_mask=target_mask)
    _close(ours[valid], expected[valid])
    assert ours[~valid].count_nonzero() == 0


def test_entries_of_the_dual_softmax_from_features():
    (src,), (trg,) = _features()
    source_mask = torch.rand(B, N) < 0.8
    s, t = torch.randint(0, N, (B, 11)), torch.randint(0, N, (B, 11))
    for log in (False, True):
        leaves = [[f.clone().requires_grad_() for f in (src, trg)] for _ in range(2)]
        matrix = smk.dual_softmax(
            smk.correlation(*leaves[0], False, scale="channels"), 0.1, log, source_mask=source_mask
        )
        expected = matrix[torch.arange(B)[:, None], s, t]
        ours = smk.dual_softmax_features(
            *leaves[1], s, t, 0.1, log, normalize=False, scale="channels", source_mask=source_mask
        )
        _close(ours, expected)
        finite = expected.isfinite()
        assert finite.sum() > 0
        grads = [torch.autograd.grad(v[finite].sum(), f) for v, f in zip((expected, ours), leaves, strict=True)]
        for a, b in zip(*grads, strict=True):
            _close(a, b)


def test_symmetric_contrastive_loss_of_geoaware_and_clip():
    (src,), (trg,) = _features()
    logits = smk.correlation(src, trg, "clamped", 1e-12).requires_grad_()
    labels = torch.arange(N).expand(B, -1)
    expected = (
        F.cross_entropy(logits.transpose(1, 2).flatten(0, 1) / 0.07, labels.flatten())
        + F.cross_entropy(logits.flatten(0, 1) / 0.07, labels.flatten())
    ) / 2
    ours = smk.masked_contrastive_loss(logits, (labels, labels), 0.07, per="both")
    _close(ours, expected)
    _close(*(torch.autograd.grad(v, logits)[0] for v in (ours, expected)))
    features = smk.masked_contrastive_loss_features(
        src, trg, (labels, labels), 0.07, per="both", normalize="clamped", eps=1e-12
    )
    _close(features, expected)
    sides = smk.masked_contrastive_loss(logits, (labels, labels), 0.07, per="both", reduction="none")
    _close((sides[0].mean() + sides[1].mean()) / 2, expected)


@pytest.mark.parametrize("per", ["target", "source"])
def test_smoothed_cross_entropy_of_visual_ai(per):
    """Goal: a 7x7 Gaussian round the label, cut at the border and normalised; cross-entropy with temperature 0.03."""
    corr = _corr().requires_grad_()
    labels = torch.randint(0, N, (B, N))
    sigma, radius = 1.4, 3
    dx, dy = _distances(labels)
    goal = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2)) * ((dx.abs() <= radius) & (dy.abs() <= radius))
    goal = goal / goal.sum(1, keepdim=True)
    scores = corr if per == "target" else corr.transpose(1, 2)
    expected = F.cross_entropy(scores / 0.03, goal)
    smoothing = smk.GaussianTarget(sigma, (H, W), radius)
    ours = smk.masked_contrastive_loss(corr, labels, 0.03, per=per, smoothing=smoothing)
    _close(ours, expected)
    _close(*(torch.autograd.grad(v, corr)[0] for v in (ours, expected)))
    assert smk.GaussianTarget(1.4, (H, W)).radius is None  # 3 sigma, rounded up: 5
    wide = smk.masked_contrastive_loss(corr, labels, 0.03, per=per, smoothing=smk.GaussianTarget(1.4, (H, W), 5))
    assert torch.equal(
        smk.masked_contrastive_loss(corr, labels, 0.03, per=per, smoothing=smk.GaussianTarget(1.4, (H, W))), wide
    )


def test_a_smoothed_goal_asks_for_nothing_that_is_padding():
    corr = _corr()
    source_mask = torch.rand(B, N) < 0.6
    labels = torch.randint(0, N, (B, N))
    dx, dy = _distances(labels)
    goal = torch.exp(-(dx**2 + dy**2) / 2) * ((dx.abs() <= 3) & (dy.abs() <= 3)) * source_mask[:, :, None]
    goal = goal / goal.sum(1, keepdim=True).clamp(min=1e-300)
    counts = source_mask.gather(1, labels)
    log_p = (corr / 0.1).masked_fill(~source_mask[:, :, None], -torch.inf).log_softmax(1)
    losses = -(goal * log_p.masked_fill(~source_mask[:, :, None], 0)).sum(1)
    for call in (smk.masked_contrastive_loss, lambda c, *a, **k: _features_loss(c, *a, **k)):
        leaf = corr.clone().requires_grad_()
        ours = call(leaf, labels, smoothing=smk.GaussianTarget(1.0, (H, W)), source_mask=source_mask)
        _close(ours, losses[counts].mean())
        (grad,) = torch.autograd.grad(ours, leaf)
        assert grad.isfinite().all() and grad.sum(1).abs().max() < 1e-12


def _features_loss(corr, labels, **options):
    """The features twin on features whose products are ``corr``: one side is the identity."""
    one = torch.eye(N, dtype=corr.dtype).expand(B, -1, -1)
    return smk.masked_contrastive_loss_features(corr.transpose(1, 2), one, labels, normalize=False, **options)


def test_masked_loss_is_cross_entropy_over_what_is_there():
    corr = _corr()
    labels = torch.randint(0, N, (B, N))
    source_mask, target_mask = torch.rand(B, N) < 0.7, torch.rand(B, N) < 0.7
    mask = torch.rand(B, N) < 0.7
    counts = mask & target_mask & source_mask.gather(1, labels)
    logits = (corr / 0.1).masked_fill(~source_mask[:, :, None], -torch.inf)
    expected = F.cross_entropy(logits, labels, reduction="none")[counts].mean()
    masks = dict(source_mask=source_mask, target_mask=target_mask)
    _close(smk.masked_contrastive_loss(corr, labels, mask=mask, **masks), expected)
    flipped = dict(source_mask=target_mask, target_mask=source_mask)
    _close(smk.masked_contrastive_loss(corr.transpose(1, 2), labels, mask=mask, per="source", **flipped), expected)
    (src,), (trg,) = _features()
    matrix = smk.masked_contrastive_loss(smk.correlation(src, trg), labels, mask=mask, **masks)
    _close(smk.masked_contrastive_loss_features(src, trg, labels, mask=mask, **masks), matrix)


def test_what_is_masked_out_may_be_nan():
    """Padding of any content: it reaches neither results nor gradients of the rest, from features too."""
    (src,), (trg,) = _features()
    labels = torch.randint(0, N, (B, N))
    source_mask, target_mask = torch.rand(B, N) < 0.7, torch.rand(B, N) < 0.7
    masks = dict(source_mask=source_mask, target_mask=target_mask)
    calls = [
        lambda s, t: smk.match_features(s, t, (H, W), **masks)[:2],
        lambda s, t: [smk.soft_argmax_features(s, t, (H, W), window=smk.HardWindow(2), **masks)],
        lambda s, t: [smk.masked_contrastive_loss_features(s, t, labels, **masks)],
    ]
    for call in calls:
        results = []
        for fill in (0.5, torch.nan):
            leaves = [f.clone() for f in (src, trg)]
            for leaf, mask in zip(leaves, (source_mask, target_mask), strict=True):
                leaf.flatten(2).transpose(1, 2)[~mask] = fill
            values = call(*[leaf.requires_grad_() for leaf in leaves])
            results.append([*values, *torch.autograd.grad(sum(v.square().sum() for v in values), leaves)])
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


# --- pseudo labels


def test_cells_that_are_masked_out_neither_teach_nor_are_taught():
    corr = _corr()
    source_mask, target_mask = torch.rand(B, N) < 0.7, torch.rand(B, N) < 0.7
    plain = smk.POLICIES["uncertainty"]  # threshold 0
    out = smk.pseudo_labels(corr, (H, W), source_mask=source_mask, target_mask=target_mask, **plain)
    assert torch.equal(out.mask, target_mask)
    assert source_mask.gather(1, out.labels)[out.mask].all()
    nothing = torch.zeros_like(source_mask)
    assert not smk.pseudo_labels(corr, (H, W), source_mask=nothing, **plain).mask.any()


def test_policies_of_fixmatch_dash_and_uncertainty():
    corr = 0.3 * _corr()
    p = F.softmax(corr / 0.1, dim=1)
    confidence, label = p.max(1)
    entropy = -(p * p.log()).sum(1)
    fix = smk.pseudo_labels(corr, (H, W), **smk.POLICIES["fixmatch"] | {"threshold": 0.6})
    assert torch.equal(fix.mask, confidence >= 0.6) and 0 < fix.mask.sum() < fix.mask.numel()
    assert (fix.weight == 1).all() and torch.equal(fix.labels, label)
    soft = smk.pseudo_labels(corr, (H, W), **smk.POLICIES["uncertainty"])
    assert soft.mask.all()
    _close(soft.weight, torch.exp(-1.5 * entropy))
    # Dash: the loss of a cell's own label under rho, which shrinks by 1.27 at each update, never under 0.05
    loss = F.cross_entropy(corr / 0.1, label, reduction="none")
    for update in (0, 3, 40):
        rho = max(1.0001 * 1.27**-update * 1.1, 0.05)
        dash = smk.pseudo_labels(corr, (H, W), threshold=smk.dash_threshold(update, 1.1), **smk.POLICIES["dash"])
        assert torch.equal(dash.mask, loss <= rho)
    assert 0 < (loss <= 1.1).sum() < loss.numel()
    assert smk.POLICIES["semimatch"] == {"threshold": 0.5, "uncertainty": 1.5, "forward_backward": True}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(update=-1, initial_loss=1.0), ValueError, "update: expected at least 0"),
        (dict(update=1, initial_loss="x"), TypeError, "initial_loss: expected a number"),
        (dict(update=1, initial_loss=1.0, gamma=1.0), ValueError, "gamma: expected a number above 1"),
    ],
)
def test_bad_arguments_of_dash_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        smk.dash_threshold(**arguments)
