"""Where digits and ranges end: half precision, scores far apart, zero vectors, settings of the whole process."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from op_cases import available, make

import semimatch_kernels as smk
from semimatch_kernels import library
from semimatch_kernels.backends import reason_against

HALVES = [torch.float32, torch.bfloat16, torch.float16]
GRID = (2, 3)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
def test_identity_warp_of_a_picture(dtype, interpolation):
    """Positions on a picture need more digits than a half has."""
    image = torch.rand(1, 3, 256, 256).to(dtype)
    steps = torch.tensor([-1.0, 0.0, 1.0])
    regular = torch.cartesian_prod(steps, steps).T.flatten()
    theta = torch.cat([torch.tensor([1.0, 0, 0, 0, 1, 0]), regular])[None].to(dtype)
    out, valid = smk.warp(image, theta, interpolation=interpolation)
    assert out.dtype == dtype and valid.all()
    torch.testing.assert_close(out.float(), image.float(), atol=2e-4 + torch.finfo(dtype).eps, rtol=0)


def test_gradient_of_a_warp_by_its_parameters_in_float64():
    image = torch.rand(1, 1, 8, 9, dtype=torch.float64)
    theta = (torch.randn(1, 6, dtype=torch.float64) * 0.1 + torch.tensor([0.7, 0, 0, 0, 0.7, 0])).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: smk.warp(image, t, "affine")[0].square().mean(), (theta,))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_entries_of_the_dual_softmax_are_probabilities(dtype):
    src = torch.randn(2, 64, 8, 8).to(dtype)
    trg = (src + 0.3 * torch.randn_like(src)).to(dtype)
    diagonal = torch.arange(64).expand(2, -1)
    p = smk.dual_softmax_features(src, trg, diagonal, diagonal, 0.02)
    # Scores up to 1 over the temperature, each a sum of 64 products in float32.
    rounding = 16 * torch.finfo(torch.float32).eps / 0.02
    assert (p <= 1 + rounding).all() and p.max() > 0.5
    truth = smk.dual_softmax(smk.correlation(src.double(), trg.double()), 0.02).diagonal(dim1=1, dim2=2)
    # Features are rounded to their dtype after the normalisation: some units of the score over the temperature.
    torch.testing.assert_close(p.double(), truth, atol=rounding + 4 * torch.finfo(dtype).eps / 0.02, rtol=0)
    one = smk.dual_softmax_features(src[..., :1, :1], trg[..., :1, :1], diagonal[:, :1] * 0, diagonal[:, :1] * 0)
    torch.testing.assert_close(one, torch.ones(2, 1), atol=1e-5, rtol=0)


def test_a_masked_out_nan_does_not_reach_the_entries_of_the_dual_softmax():
    src, trg = torch.randn(1, 4, 6), torch.randn(1, 4, 5)
    src[0, :, 1] = torch.nan
    leaves = src.requires_grad_(), trg.requires_grad_()
    mask = torch.tensor([[True, False, True, True, True, True]])
    p = smk.dual_softmax_features(*leaves, torch.tensor([[0, 1]]), torch.tensor([[2, 3]]), source_mask=mask)
    assert p[0, 1] == 0 and p[0, 0] > 0
    for grad in torch.autograd.grad(p.sum(), leaves):
        assert grad.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("per", ["target", "source", "both"])
def test_a_finite_score_that_means_never(backend, per):
    """The lowest number of the dtype in place of -inf, as some matchers pad: no NaN in results or gradients."""
    reason = reason_against("match", backend, "cpu", torch.float32)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    corr = torch.randn(2, 6, 4)
    corr[:, 2] = corr[:, :, 1] = torch.finfo(torch.float32).min
    corr[:, 2, 1] = 0
    corr.requires_grad_()
    grid = {"target": GRID, "source": (2, 2), "both": (GRID, (2, 2))}[per]
    out = smk.match(corr, grid, 0.1, per, backend=backend)
    total = sum(f.sum() for m in (out if per == "both" else (out,)) for f in (m.coords, m.score, m.entropy))
    (grad,) = torch.autograd.grad(total, corr)
    assert total.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("normalize", ["inside", "added", "clamped"])
@pytest.mark.parametrize("eps", [1e-6, 1e-20])
def test_zero_vectors_have_finite_gradients(normalize, eps):
    src, trg = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    src[..., 1] = 0
    corr = smk.correlation(src.requires_grad_(), trg, normalize, eps)
    assert corr[0, 1].count_nonzero() == 0
    (grad,) = torch.autograd.grad(corr.sum(), src)
    assert grad.isfinite().all()


def test_products_of_halves_neither_overflow_nor_round_early():
    src, trg = torch.full((1, 256, 4), 20.0).half(), torch.full((1, 256, 4), 20.0).half()
    # 256 * 400 is beyond float16, the mean of 400 is not.
    assert (smk.correlation(src, trg, False, scale="channels") == 400).all()
    assert (smk.correlation(src, trg, False, out_dtype=torch.float32) == 256 * 400).all()
    src, trg = torch.randn(1, 256, 9).bfloat16(), torch.randn(1, 256, 9).bfloat16()
    exact = smk.correlation(src.double(), trg.double(), False)
    wide = smk.correlation(src, trg, False, out_dtype=torch.float32)
    torch.testing.assert_close(wide.double(), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("case", "qualified"), available())
def test_the_default_dtype_changes_nothing(case, qualified):
    op = getattr(library.ops, qualified).default
    args = make(case, torch.float32, "contiguous", False)
    expected = op(*args)
    torch.set_default_dtype(torch.float64)
    try:
        results = op(*args)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(*([r] if isinstance(r, torch.Tensor) else r for r in (results, expected)), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # torch.func's own
def test_forward_mode_says_what_to_do():
    corr = torch.randn(1, 6, 4)
    with pytest.raises(RuntimeError, match=r"forward-mode AD.*reference\.matching\.match instead"):
        torch.func.jvp(lambda c: smk.match(c, GRID).coords, (corr,), (torch.ones_like(corr),))
    definition = library.definition("match")
    _, tangent = torch.func.jvp(lambda c: definition(c, GRID, 0.1)[0], (corr,), (torch.randn_like(corr),))
    assert tangent.abs().max() > 0


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy(kind):
    corr = torch.randn(1, 6, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = smk.match(corr, (np.int64(2), np.int32(3)), kind(0.5), coordinates=smk.Pixels(kind(16)))
    assert torch.equal(out.coords, smk.match(corr, GRID, 0.5, coordinates=smk.Pixels(16)).coords)
    with pytest.raises(ValueError, match="sigma: expected a finite number, got inf"):
        smk.GaussianWindow(kind("inf"))


def test_an_array_in_place_of_a_tensor_is_named_not_printed():
    with pytest.raises(TypeError, match=r"corr: .*ndarray of shape \(1, 60, 40\) and dtype float32, which is no torch"):
        smk.match(np.zeros((1, 60, 40), dtype=np.float32), (6, 10))
