"""`correlation` and `mutual_filter`."""

from __future__ import annotations

import pytest
import torch
from truth import assert_as_good_as

import semimatch_kernels as smk


def _naive(src, trg, eps):
    """Every entry by its own sum."""
    src, trg = src.double().flatten(2), trg.double().flatten(2)
    src, trg = (f / (f.square().sum(1, keepdim=True) + eps).sqrt() for f in (src, trg))
    return (src[:, :, :, None] * trg[:, :, None, :]).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_cosine_of_rectangular_grids(dtype):
    src, trg = torch.randn(2, 24, 3, 5).to(dtype), torch.randn(2, 24, 4, 7).to(dtype)
    corr = smk.correlation(src, trg)
    assert corr.shape == (2, 15, 28)
    assert corr.dtype == dtype
    # The features are rounded to the dtype after normalisation: C products each off by one rounding at most.
    rounding = 24**0.5 * torch.finfo(dtype).eps
    assert (corr.double() - _naive(src, trg, 1e-6)).abs().max() <= 2 * rounding


def test_levels_of_different_width_stack():
    src = [torch.randn(2, c, 4, 4) for c in (3, 8)]
    trg = [torch.randn(2, c, 4, 4) for c in (3, 8)]
    corr = smk.correlation(src, trg)
    assert corr.shape == (2, 2, 16, 16)
    for level in range(2):
        assert torch.equal(corr[:, level], smk.correlation(src[level], trg[level]))


def test_channel_last_features_and_options():
    src, trg = torch.randn(1, 6, 3, 3), torch.randn(1, 6, 3, 3)
    expected = smk.correlation(src, trg)
    last = [f.to(memory_format=torch.channels_last) for f in (src, trg)]
    torch.testing.assert_close(smk.correlation(*last), expected)
    assert torch.equal(smk.correlation(src, trg, relu=True), expected.clamp(min=0))
    assert torch.equal(smk.correlation(src, trg, mutual=True), smk.mutual_filter(expected))
    assert smk.correlation(src, trg, out_dtype=torch.float64).dtype == torch.float64
    raw = smk.correlation(src, trg, normalize=False)
    torch.testing.assert_close(raw, torch.einsum("bcs,bct->bst", src.flatten(2), trg.flatten(2)))


def test_zero_vector_gives_zero_and_a_finite_gradient():
    src, trg = torch.randn(1, 4, 1, 3), torch.randn(1, 4, 1, 3)
    src[..., 1] = 0
    src.requires_grad_()
    corr = smk.correlation(src, trg)
    assert corr[0, 1].count_nonzero() == 0
    corr.sum().backward()
    assert src.grad.isfinite().all()


def test_gradcheck():
    src = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    trg = torch.randn(1, 3, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: smk.correlation(s, t), (src, trg))
    assert torch.autograd.gradcheck(lambda s, t: smk.correlation(s, t, relu=True, mutual=True), (src, trg))


def test_mutual_filter_keeps_mutual_maxima():
    corr = torch.rand(2, 3, 5, 7) + 0.1
    out = smk.mutual_filter(corr)
    row, column = corr == corr.amax(-1, keepdim=True), corr == corr.amax(-2, keepdim=True)
    mutual = row & column
    assert mutual.any()
    torch.testing.assert_close(out[mutual], corr[mutual])
    assert (out[~mutual] < corr[~mutual]).all()
    torch.testing.assert_close(smk.mutual_filter(corr.transpose(-1, -2)), out.transpose(-1, -2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mutual_filter_in_half_precision(dtype):
    corr = (torch.rand(2, 9, 8) - 0.2).to(dtype)
    corr[0, 3] = corr[0, 3].clamp(max=0)
    corr[0, 3, 1] = 0  # a row whose largest value is 0
    truth = smk.mutual_filter(corr.double())
    same_dtype = smk.mutual_filter(corr.float()).to(dtype)
    ordinary = truth.abs() < 1e3
    out = smk.mutual_filter(corr)
    assert_as_good_as("mutual", out[ordinary], same_dtype[ordinary] * (1 + torch.finfo(dtype).eps), truth[ordinary])


BAD = [
    (dict(src=torch.zeros(1, 3, 4), trg=[torch.zeros(1, 3, 4)]), TypeError, "got one of each"),
    (dict(src=torch.zeros(1, 3, 4), trg=torch.zeros(1, 5, 4)), ValueError, "same batch and channels"),
    (
        dict(src=torch.zeros(1, 3), trg=torch.zeros(1, 3)),
        ValueError,
        r"src: expected features \[B,C,\*grid\]",
    ),
    (dict(src=torch.zeros(1, 3, 4), trg=torch.zeros(1, 3, 4).half()), TypeError, "expected one dtype"),
    (
        dict(src=torch.zeros(1, 3, 0), trg=torch.zeros(1, 3, 4)),
        ValueError,
        "at least one channel and one cell",
    ),
    (
        dict(src=[torch.zeros(1, 3, 4), torch.zeros(1, 3, 5)], trg=[torch.zeros(1, 3, 4)] * 2),
        ValueError,
        r"src\[1\], trg\[1\]: expected the batch and grids of level 0",
    ),
    (
        dict(src=torch.zeros(1, 3, 4), trg=torch.zeros(1, 3, 4), eps=-1.0),
        ValueError,
        "eps: expected a finite number of at least 0",
    ),
    (dict(src=torch.zeros(1, 3, 4), trg=torch.zeros(1, 3, 4), backend="cuda"), smk.BackendError, "cuda"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[m[:25] for _, _, m in BAD])
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        smk.correlation(**arguments)
