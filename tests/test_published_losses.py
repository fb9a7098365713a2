"""The losses, dual softmax and pseudo labels of published matchers, restated; see `test_published`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_published import B, H, N, W, _close, _corr, _distances, _features

import semimatch_kernels as smk

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
