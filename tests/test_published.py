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


def test_window_soft_argmax_of_query_rows_of_geoaware():
    (src,), (trg,) = _features()
    points = torch.randint(0, N, (B, 9))
    queries = src.flatten(2).gather(2, points[:, None].expand(-1, C, -1))  # [B,C,Q]
    rows = F.normalize(queries, dim=1).transpose(1, 2) @ F.normalize(trg.flatten(2), dim=1)  # [B,Q,T]
    dx, dy = _distances(rows.argmax(2))
    inside = (dx.abs() <= 2) & (dy.abs() <= 2)
    expected = _expectation(F.softmax(rows.transpose(1, 2) * inside / 0.02, dim=1))
    window = smk.HardWindow(2, "zero")
    _close(smk.soft_argmax_features(queries, trg, (H, W), 0.02, "source", window, "clamped", 1e-12), expected)
