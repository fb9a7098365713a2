"""`correlation` on Triton's interpreter, at sizes of several tiles in every dimension, against float64 truth; and how
many launches it takes.

`test_accuracy.py` has it at the smallest sizes; here are dtypes, norms, strides and epilogues at sizes that are a
multiple of no block, and levels of different widths.
"""

from __future__ import annotations

import pytest
import torch
from truth import assert_as_good_as

import semimatch_kernels as smk
from semimatch_kernels import library

pytestmark = pytest.mark.skipif(
    library.TRITON_REASON is not None or not library.TRITON_INTERPRET,
    reason=f"triton: {library.TRITON_REASON or 'on the CPU it needs TRITON_INTERPRET=1'}",
)

S, T, CHANNELS = 37, 70, (5, 18)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("cells", "channels", "batch", "stepped", "mixed")


def _laid_out(values, layout):
    """The same values [B,C,N] under other strides."""
    batch, channels, cells = values.shape
    if layout == "channels":
        return values.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "batch":
        return values.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if layout == "stepped":
        wide = values.new_full((batch, channels + 3, 2 * cells + 1), torch.nan)
        wide[:, :channels, 1::2] = values
        return wide[:, :channels, 1::2]
    return values.contiguous()


def _levels(dtype, batch=1, sizes=(S, T), channels=CHANNELS):
    return [[torch.randn(batch, c, n).to(dtype) for c in channels] for n in sizes]


def _check(sides, rest, layout="cells"):
    """Result and gradients of the Triton op, of the definition in the same dtype, and of that in float64."""
    *rule, out_dtype = rest
    layouts = ("channels", "cells", "stepped") if layout == "mixed" else (layout,) * 3
    given = [
        [_laid_out(f, layouts[(i + side) % 3]).requires_grad_() for i, f in enumerate(levels)]
        for side, levels in enumerate(sides)
    ]
    peer = [[f.clone().requires_grad_() for f in levels] for levels in sides]
    truth = [[f.double().requires_grad_() for f in levels] for levels in sides]
    definition = library.definition("correlation")
    results, grads, upstream = [], [], None
    for run, (src, trg), dtype in (
        (library.ops.correlation_triton, given, out_dtype),
        (definition, peer, out_dtype),
        (definition, truth, torch.float64),
    ):
        out = run(src, trg, *rule, dtype)
        if upstream is None:
            assert out.dtype == out_dtype and out.is_contiguous()
            upstream = torch.randn(out.shape).to(out_dtype)
        # Not contiguous, and the gradient of the same number of each dtype.
        grads.append(torch.autograd.grad(out, src + trg, upstream.mT.contiguous().mT.to(out.dtype)))
        results.append(out)
    assert_as_good_as("correlation", *results)
    for i, three in enumerate(zip(*grads, strict=True)):
        assert three[0].dtype == sides[0][0].dtype and three[0].is_contiguous()
        assert_as_good_as(f"gradient {i}", *three)


@pytest.mark.parametrize("out_dtype", [None, torch.float32], ids=["same", "wide"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(dtype, out_dtype):
    _check(_levels(dtype), ("inside", 1e-2, "none", False, 1, out_dtype or dtype))


@pytest.mark.parametrize("folded", [True, False], ids=["folded", "first"])
@pytest.mark.parametrize(
    ("normalize", "scale"), [("added", "none"), ("clamped", "channels"), ("none", "sqrt_channels")]
)
def test_norms_and_epilogues(monkeypatch, normalize, scale, folded):
    """With the norms taken from the tiles, and by a launch of their own."""
    from semimatch_kernels.triton import configs

    if not folded:
        monkeypatch.setattr(configs, "SMALL_ENTRIES", 0)
    src, trg = _levels(torch.float32)
    src[0][0, :, 5] = 0  # a cell without direction
    trg[1][0, :, 69] = 1e-4  # below eps
    _check((src, trg), (normalize, 1e-2, scale, normalize != "added", 3 if folded else 2, torch.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides(layout):
    _check(_levels(torch.float32, batch=2, sizes=(33, 20)), ("inside", 1e-2, "none", True, 1, torch.float32), layout)


@pytest.mark.parametrize("scale", ["none", "channels"])
def test_products_alone(scale):
    """Nothing to form again: the gradient that comes in is multiplied as it is."""
    _check(_levels(torch.float32), ("none", 0.0, scale, False, 1, torch.float32), "mixed")


def test_offsets_of_64_bits(monkeypatch):
    """What very large strides take, on small ones."""
    from semimatch_kernels.triton import correlation, correlation_backward

    for module in (correlation, correlation_backward):
        monkeypatch.setattr(module, "narrow_offsets", lambda *_: False)
    _check(_levels(torch.float32), ("inside", 1e-2, "none", False, 1, torch.float32), "channels")


@pytest.mark.parametrize("rule", [("inside", "none"), ("none", "channels")])
def test_more_levels_than_a_launch_takes(monkeypatch, rule):
    from semimatch_kernels.triton import levels

    monkeypatch.setattr(levels, "MOST", 2)
    normalize, scale = rule
    _check(_levels(torch.float32, sizes=(6, 5), channels=(3, 1, 7)), (normalize, 0.1, scale, False, 2, torch.float32))


@pytest.mark.parametrize("size", ["small", "large"])
def test_shipped_tiles_give_the_right_values(monkeypatch, size):
    from semimatch_kernels.triton import configs

    monkeypatch.setattr(configs, "INTERPRETER", configs.ARCHITECTURES[90])
    monkeypatch.setattr(configs, "SMALL_ENTRIES", 10**9 if size == "small" else 0)
    sides = _levels(torch.bfloat16, sizes=(144, 80), channels=(16, 80))
    _check(sides, ("inside", 1e-2, "none", True, 2, torch.bfloat16))


def test_bits_repeat_and_levels_do_not_meet():
    """A level among others, and again: the same bits."""
    (src, trg), rule = _levels(torch.float32), ("inside", 1e-2, "none", True, 1, torch.float32)
    corr = library.ops.correlation_triton(src, trg, *rule)
    grad = torch.randn_like(corr)
    together = [g for side in library.ops.correlation_backward_triton(src, trg, *rule, grad) for g in side]
    alone = [
        library.ops.correlation_backward_triton([s], [t], *rule, grad[:, i : i + 1])
        for i, (s, t) in enumerate(zip(src, trg, strict=True))
    ]
    assert all(torch.equal(a, b) for a, b in zip(together, [a[i][0] for i in (0, 1) for a in alone], strict=True))


@pytest.fixture
def launched(monkeypatch):
    """Names of the kernels that are launched, in order."""
    from triton.runtime.interpreter import InterpretedFunction

    names, run = [], InterpretedFunction.run
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda self, *a, **k: (names.append(self.fn.__name__), run(self, *a, **k))[1]
    )
    return names


def test_seven_levels_are_one_launch(launched, monkeypatch):
    """And three for the gradient; the norms of large grids are one more."""
    from semimatch_kernels.triton import configs

    src, trg = ([f.requires_grad_() for f in side] for side in _levels(torch.float32, 1, (6, 4), (2,) + (3,) * 6))
    corr = smk.correlation(src, trg, backend="triton")
    assert launched == ["correlation_kernel"] and corr.shape == (1, 7, 6, 4)
    torch.autograd.grad(corr.sum(), src[0])
    assert launched[1:] == ["correlation_slopes_kernel", *["correlation_product_kernel"] * 2]
    launched.clear()
    monkeypatch.setattr(configs, "SMALL_ENTRIES", 0)
    smk.correlation(src, trg, backend="triton")
    assert launched == ["squares_kernel", "correlation_kernel"]


def test_seven_levels_and_their_mutual_filter_are_three_launches(launched):
    src, trg = _levels(torch.float32, 1, (6, 4), (2,) + (3,) * 6)
    assert smk.correlation(src, trg, mutual=True, backend="triton").shape == (1, 7, 6, 4)
    assert launched == ["correlation_kernel", "maxima_kernel", "filter_kernel"]
