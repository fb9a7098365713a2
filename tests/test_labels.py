"""Forward-backward consistency, pseudo labels, warps, windowed soft-argmax, dual softmax, features twins."""

from __future__ import annotations

import pytest
import torch

import semimatch_kernels as smk

GRID = (4, 5)
N = 20


def test_forward_backward_mask_of_a_permutation_and_its_inverse():
    there = torch.stack([torch.randperm(N) for _ in range(3)])
    back = there.argsort(1)
    assert smk.forward_backward_mask(there, back, GRID).all()
    assert smk.forward_backward_mask(there, back, GRID, per="source").all()
    broken = back.clone()
    broken[0, there[0, 7]] = (there[0].argsort()[there[0, 7]] + 13) % N  # cell 7 of the target no longer comes back
    mask = smk.forward_backward_mask(there, broken, GRID, alpha1=0.0, alpha2=0.5)
    assert not mask[0, 7] and mask.sum() == 3 * N - 1


def test_forward_backward_mask_by_its_formula():
    index_target, index_source = torch.randint(0, 6, (2, N)), torch.randint(0, N, (2, 6))
    mask = smk.forward_backward_mask(index_target, index_source, ((2, 3), GRID))
    sx, sy = (GRID[1] - 1) / 2, (GRID[0] - 1) / 1  # corner to corner
    for b in range(2):
        for t in range(N):
            s = int(index_target[b, t])
            u = int(index_source[b, s])
            f = ((s % 3) * sx - t % 5, (s // 3) * sy - t // 5)
            g = (u % 5 - (s % 3) * sx, u // 5 - (s // 3) * sy)
            gap = (f[0] + g[0]) ** 2 + (f[1] + g[1]) ** 2
            assert mask[b, t] == (gap <= 0.1 * (f[0] ** 2 + f[1] ** 2 + g[0] ** 2 + g[1] ** 2) + 0.5)


def test_pseudo_labels_are_their_parts():
    corr = torch.randn(2, N, N)
    src_box = torch.tensor([[0.0, 0.0, 2.4, 3.0], [1.0, 1.0, 4.0, 3.0]])
    trg_box = torch.tensor([[1.0, 0.0, 4.0, 2.0], [0.0, 0.0, 3.5, 3.0]])
    out = smk.pseudo_labels(corr, GRID, 0.2, threshold=0.3, uncertainty=1.5, src_box=src_box, trg_box=trg_box)
    target, source = smk.match(corr, (GRID, GRID), 0.2, "both")
    assert torch.equal(out.labels, target.index)
    torch.testing.assert_close(out.score, target.score)
    torch.testing.assert_close(out.weight, torch.exp(-1.5 * target.entropy))
    inside = smk.forward_backward_mask(target.index, source.index, GRID) & (target.score >= 0.3)
    for b in range(2):
        for t in range(N):
            s = int(target.index[b, t])
            for cell, box in ((s, src_box[b]), (t, trg_box[b])):
                x1, y1, x2, y2 = (round(v) for v in box.tolist())
                inside[b, t] &= x1 <= cell % 5 <= x2 and y1 <= cell // 5 <= y2
    assert torch.equal(out.mask, inside)
    assert 0 < out.mask.sum() < out.mask.numel()
    assert not any(t.requires_grad for t in smk.pseudo_labels(corr.requires_grad_(), GRID))


def test_lookup_of_labels_equals_warping_the_whole_correlation():
    corr = torch.rand(3, 256, 256) + 0.1
    theta = torch.tensor([[0.9, 0.1, 0.1, -0.1, 1.1, 0.05]]).repeat(3, 1)
    lookup = smk.warp_lookup(theta, (16, 16), "affine")
    moved = smk.pseudo_labels(corr, (16, 16), threshold=0.0, forward_backward=False, lookup=lookup)
    volume, valid = smk.warp(corr.unflatten(2, (16, 16)), theta, "affine", "nearest")
    direct = smk.pseudo_labels(volume.flatten(2), (16, 16), threshold=0.0, forward_backward=False)
    valid = valid.flatten(1)
    assert torch.equal(lookup[1], valid) and torch.equal(moved.mask, valid)
    assert (moved.labels[~valid] == -1).all()
    assert torch.equal(moved.labels[valid], direct.labels[valid])
    assert torch.equal(moved.weight[valid], direct.weight[valid])


def test_identity_warps_change_nothing():
    steps = torch.tensor([-1.0, 0.0, 1.0])
    regular = torch.cartesian_prod(steps, steps).T.flatten()
    affine = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    theta = torch.cat([affine, regular])[None]
    image = torch.randn(1, 2, 12, 16)
    for kind, part in (("affine", theta[:, :6]), ("tps", theta[:, 6:]), ("affine_tps", theta)):
        for interpolation in ("bilinear", "nearest"):
            out, valid = smk.warp(image, part, kind, interpolation)
            torch.testing.assert_close(out, image, atol=1e-5, rtol=0)
            assert valid.all()
        cell, valid = smk.warp_lookup(part, (12, 16), kind)
        assert torch.equal(cell[0], torch.arange(192)) and valid.all()


def test_a_shift_of_two_cells():
    theta = torch.tensor([[1.0, 0.0, 2 * 2 / 16, 0.0, 1.0, 0.0]])  # reads two cells to the right
    cell, valid = smk.warp_lookup(theta, (16, 16), "affine")
    cell, valid = cell.unflatten(1, (16, 16)), valid.unflatten(1, (16, 16))
    assert torch.equal(cell[0, 3, :14], 3 * 16 + torch.arange(2, 16))
    assert valid[0, :, :14].all() and not valid[0, :, 14:].any()


def test_hard_window_excludes_the_far_mode():
    corr = torch.full((1, 100, 1), -1.0)
    corr[0, 11], corr[0, 88] = 1.0, 0.99  # two modes, (1,1) and (8,8)
    near = torch.tensor([-1 + 2 / 9, -1 + 2 / 9])
    plain = smk.soft_argmax(corr, (10, 10), 0.05)
    window = smk.soft_argmax(corr, (10, 10), 0.05, window=smk.HardWindow(2))
    assert (plain[0, 0] - near).abs().max() > 0.5
    torch.testing.assert_close(window[0, 0], near, atol=1e-3, rtol=0)
    gaussian = smk.soft_argmax(corr, (10, 10), 0.05, window=smk.GaussianWindow(1.0))
    torch.testing.assert_close(gaussian[0, 0], near, atol=1e-3, rtol=0)
    zeroed = smk.soft_argmax(corr.clamp(min=0.5), (10, 10), 0.05, window=smk.HardWindow(2, outside="zero"))
    expected = corr.clamp(min=0.5).clone()
    cells = torch.arange(100)
    outside = ((cells % 10 - 1).abs() > 2) | ((cells // 10 - 1).abs() > 2)
    expected[0, outside] = 0
    torch.testing.assert_close(zeroed, smk.soft_argmax(expected, (10, 10), 0.05))


def test_windowed_gradcheck():
    corr = torch.randn(1, 12, 3, dtype=torch.float64, requires_grad=True)
    for window in (smk.GaussianWindow(1.5), smk.HardWindow(1), smk.HardWindow(1, "zero")):
        assert torch.autograd.gradcheck(lambda c, w=window: smk.soft_argmax(c, (3, 4), 0.7, window=w), (corr,))


def test_dual_softmax():
    corr = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    p = smk.dual_softmax(corr, 0.5)
    torch.testing.assert_close(p, (corr / 0.5).softmax(1) * (corr / 0.5).softmax(2))
    torch.testing.assert_close(smk.dual_softmax(corr, 0.5, log=True), p.log())
    assert torch.autograd.gradcheck(lambda c: smk.dual_softmax(c, 0.5), (corr,))


@pytest.mark.parametrize("per", ["target", "source", "both"])
def test_match_features_is_match_of_the_correlation(per):
    src = torch.randn(2, 6, 3, 5, dtype=torch.float64, requires_grad=True)
    trg = torch.randn(2, 6, 2, 4, dtype=torch.float64, requires_grad=True)
    grid = {"target": (3, 5), "source": (2, 4), "both": ((3, 5), (2, 4))}[per]
    results = []
    for out in (
        smk.match_features(src, trg, grid, 0.2, per),
        smk.match(smk.correlation(src, trg), grid, 0.2, per),
    ):
        fields = [f for m in (out if per == "both" else (out,)) for f in m]
        loss = sum(f.square().sum() for f in fields if f.is_floating_point())
        results.append([*fields, *torch.autograd.grad(loss, (src, trg))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_sparse_epe_is_zero_without_annotation_and_exact_hits_have_no_gradient():
    flow = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    nothing = smk.sparse_epe(flow, target, torch.zeros(2, 3, 3, dtype=torch.bool))
    nothing.backward()
    assert nothing.item() == 0 and flow.grad.count_nonzero() == 0
    mask = torch.rand(2, 3, 3) < 0.5
    assert torch.autograd.gradcheck(lambda f: smk.sparse_epe(f, target, mask), (flow,))
    exact = target.clone().requires_grad_()
    smk.sparse_epe(exact, target, mask).backward()
    assert exact.grad.count_nonzero() == 0


def test_padding_by_minus_infinity_excludes_cells_everywhere():
    corr = torch.randn(1, 12, 6, dtype=torch.float64)
    corr[0, 3], corr[0, :, 2], corr[0, 5, 4] = -torch.inf, -torch.inf, -torch.inf
    corr.requires_grad_()
    p = smk.dual_softmax(corr, 0.5)
    assert p.isfinite().all() and (p[corr.detach() == -torch.inf] == 0).all()
    kept = [i for i in range(12) if i != 3]
    small = corr.detach()[:, kept][:, :, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(p.detach()[:, kept][:, :, [0, 1, 3, 4, 5]], smk.dual_softmax(small, 0.5))
    for window in (smk.GaussianWindow(1.5), smk.HardWindow(1), smk.HardWindow(1, "zero")):
        assert smk.soft_argmax(corr, (3, 4), 0.5, window=window).isfinite().all()
    (grad,) = torch.autograd.grad(p.square().sum(), corr)
    assert grad.isfinite().all()


def test_autocast_rounds_neither_correlations_nor_warps():
    src, trg = torch.randn(1, 32, 4, 4), torch.randn(1, 32, 4, 4)
    theta = torch.randn(1, 24) * 0.1
    outside = smk.correlation(src, trg), *smk.warp_lookup(theta, (4, 4)), smk.match_features(src, trg, (4, 4)).coords
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = smk.correlation(src, trg), *smk.warp_lookup(theta, (4, 4)), smk.match_features(src, trg, (4, 4)).coords
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_a_first_warp_in_another_mode_leaves_nothing_behind():
    from semimatch_kernels.reference import warp as reference

    reference._tps_inverse.cache_clear()
    image, theta = torch.randn(1, 1, 4, 4), torch.randn(1, 24) * 0.1
    with torch.inference_mode():
        smk.warp(image, theta)
    theta.requires_grad_()
    smk.warp(image, theta)[0].sum().backward()
    assert theta.grad.isfinite().all()


BAD = [
    (
        lambda: smk.forward_backward_mask(torch.zeros(1, N), torch.zeros(1, N), GRID),
        TypeError,
        "index_target: expected int64",
    ),
    (
        lambda: smk.pseudo_labels(torch.zeros(1, N, N), GRID, src_box=torch.zeros(2, 4)),
        ValueError,
        "src_box: expected shape",
    ),
    (
        lambda: smk.pseudo_labels(torch.zeros(1, N, N), (3, 3)),
        ValueError,
        "the source side of the correlation has 20",
    ),
    (
        lambda: smk.warp(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5), "affine"),
        ValueError,
        r"theta: expected \[B,6\]",
    ),
    (
        lambda: smk.warp(torch.zeros(2, 1, 4, 4), torch.zeros(1, 6), "affine"),
        ValueError,
        "theta: expected one row an image",
    ),
    (
        lambda: smk.warp(torch.zeros(1, 4, 4), torch.zeros(1, 6), "affine"),
        TypeError,
        "image: expected floating",
    ),
    (lambda: smk.GaussianWindow(0.0), ValueError, "sigma"),
    (lambda: smk.HardWindow(-1), ValueError, "radius"),
    (
        lambda: smk.soft_argmax(torch.zeros(1, N, 3), GRID, window=3),
        TypeError,
        "window: expected GaussianWindow",
    ),
    (lambda: smk.HardWindow(True), TypeError, "radius: expected a whole number"),
    (lambda: smk.warp_lookup(torch.zeros(1, 24), 4), TypeError, "grid: expected .H, W. of the warped side"),
    (lambda: smk.match(torch.zeros(1, 4, 4), (None, 4)), TypeError, r"grid\[0\]: expected a whole number"),
    (lambda: smk.match(torch.zeros(1, 4, 4), (2, 2), 1e-40), ValueError, "temperature: expected a number above 0"),
    (
        lambda: smk.match_features(*[torch.zeros(1, 2, 4)] * 2, (2, 2), eps=-1),
        ValueError,
        "eps: expected a finite number",
    ),
    (lambda: smk.pseudo_labels(torch.zeros(1, N, N), GRID, threshold=None), TypeError, "threshold: expected a number"),
    (
        lambda: smk.pseudo_labels(
            torch.zeros(1, N, N), GRID, lookup=(torch.zeros(1, N, dtype=torch.int64, device="meta"),) * 2
        ),
        TypeError,
        r"lookup\[1\]: expected dtype torch.bool",
    ),
    (lambda: smk.backends("matching"), ValueError, "op: expected one of correlation"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[m[:25] for _, _, m in BAD])
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
