"""The C++ kernels of the ops from features against float64 truth, over dtypes, layouts, shapes and edge cases.

What PyTorch sees of an op (schema, autograd, vmap) is in test_registration.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from truth import assert_as_good_as

import semimatch_kernels as smk
from benchmarks import memory
from semimatch_kernels import library, schemas

pytestmark = pytest.mark.skipif(library.CPU_REASON is not None, reason=f"cpu: {library.CPU_REASON}")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

#: batch, channels, source grid, target grid: odd sizes on both sides of every vector, block and tile; single cells
SHAPES = {
    "odd": (3, 19, (5, 7), (3, 17)),
    "several tiles": (2, 33, (9, 11), (13, 11)),
    "deep": (1, 300, (7, 7), (4, 5)),
    "large": (1, 16, (18, 19), (17, 31)),
    "one source": (2, 5, (1, 1), (3, 3)),
    "one target": (2, 7, (2, 3), (1, 1)),
}


@dataclass(frozen=True)
class Variant:
    """An op with one choice of the arguments that follow both features, given the shape."""

    op: str
    rest: Callable[..., tuple]


def _masks(batch: int, source: tuple, target: tuple) -> tuple[Tensor, Tensor]:
    source_mask, target_mask = (torch.rand(batch, h * w) < 0.7 for h, w in (source, target))
    source_mask[:, -1] = True
    target_mask[:, 16:40] = False
    return source_mask, target_mask


def _of_grid(*numbers, masks: bool = True) -> Callable[..., tuple]:
    def rest(batch, channels, source, target):
        return (*(_masks(batch, source, target) if masks else (None, None)), source, 0.2, *numbers)

    return rest


def _loss(reduction: str, *numbers, sigma: float = 0.0, plain: bool = False) -> Callable[..., tuple]:
    def rest(batch, channels, source, target):
        sources, targets = source[0] * source[1], target[0] * target[1]
        labels = torch.randint(0, sources, (batch, targets))
        given = labels, None, None, None
        if not plain:
            labels[:, ::5] = -1
            source_mask, mask = _masks(batch, source, target)
            source_mask = source_mask.scatter(1, labels.clamp(min=0), True)  # a finite loss
            given = labels, torch.rand(targets, batch).t(), mask, source_mask
        return (*given, 0.2, reduction, source[1], sigma, 2, *numbers)

    return rest


def _level(*numbers) -> Callable[..., tuple]:
    return lambda *shape: numbers


VARIANTS = {
    "match": Variant("match_features", _of_grid("inside", 1e-3)),
    "match, plain": Variant("match_features", _of_grid("none", 0.0, masks=False)),
    "match, added": Variant("match_features", _of_grid("added", 0.1)),
    "window": Variant("soft_argmax_features", _of_grid("gaussian", 1.5, "clamped", 0.5)),
    "window, exclude": Variant("soft_argmax_features", _of_grid("exclude", 1.0, "inside", 1e-3)),
    "window, none": Variant("soft_argmax_features", _of_grid("none", 0.0, "inside", 1e-3, masks=False)),
    "loss": Variant("masked_contrastive_loss_features", _loss("mean", "inside", 1e-3)),
    "loss, plain": Variant("masked_contrastive_loss_features", _loss("sum", "none", 0.0, plain=True)),
    "loss, smoothed": Variant("masked_contrastive_loss_features", _loss("none", "added", 0.1, sigma=1.0)),
    "level": Variant("correlation", _level("inside", 1e-3, "none", False, 1, None)),
    "level, relu": Variant("correlation", _level("none", 0.0, "sqrt_channels", True, 1, None)),
    "level, cubed": Variant("correlation", _level("clamped", 0.5, "channels", True, 3, torch.float32)),
    "level, wide": Variant("correlation", _level("added", 0.5, "none", False, 2, torch.float64)),
}


def _layouts(features: Tensor) -> dict[str, Tensor]:
    """The same values under other strides."""
    wide = features.new_full((*features.shape[:-1], features.shape[-1] + 3), torch.nan)
    wide[..., :-3] = features
    stepped = features.new_full((features.shape[0], 2 * features.shape[1], 2 * features.shape[2]), torch.nan)
    stepped[:, ::2, ::2] = features
    return {
        "contiguous": features.contiguous(),
        "channels last": features.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": wide[..., :-3],
        "stepped": stepped[:, ::2, ::2],
        "batch last": features.movedim(0, -1).contiguous().movedim(-1, 0),
    }


def _case(variant: str, shape: tuple, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], tuple]:
    torch.manual_seed(1)
    batch, channels, source, target = shape
    sides = [torch.randn(batch, channels, h * w).mul(channels**-0.25).to(dtype) for h, w in (source, target)]
    return sides, VARIANTS[variant].rest(*shape)


def _run(variant: str, backend: str, sides: list[Tensor], rest: tuple, upstream: list | None = None):
    """(results, gradients by both sides) of the op of a backend; the gradients of its results are ``upstream``."""
    name = VARIANTS[variant].op
    spec = schemas.OPS[name]
    src, trg = (s.detach().requires_grad_() for s in sides)
    if name == "correlation":
        out_dtype = src.dtype if rest[-1] is None or src.dtype == torch.float64 else rest[-1]
        args = ([src], [trg], *rest[:-1], out_dtype)
    else:
        args = (src, trg, *rest)
    results = getattr(library.ops, schemas.backend_name(name, backend))(*args)
    results = results if isinstance(results, tuple) else (results,)
    outputs = [results[i] for i in spec.outputs]
    upstream = [torch.ones_like(o) for o in outputs] if upstream is None else upstream
    upstream = [u.to(o.dtype) for u, o in zip(upstream, outputs, strict=True)]
    return results, torch.autograd.grad(outputs, (src, trg), upstream)


def _upstream(variant: str, sides: list[Tensor], rest: tuple) -> list[Tensor]:
    results = _run(variant, "reference", sides, rest)[0]
    return [torch.randn(results[i].shape, dtype=torch.float64) for i in schemas.OPS[VARIANTS[variant].op].outputs]


def _compare(variant: str, sides: list[Tensor], values: list[Tensor], rest: tuple, upstream: list, name="") -> None:
    """The op on ``sides``, a layout of ``values``, against the reference in the same dtype and in float64."""
    actual, peer = _run(variant, "cpu", sides, rest, upstream), _run(variant, "reference", values, rest, upstream)
    truth = _run(variant, "reference", [v.double() for v in values], rest, upstream)
    for part, three in (("result", (actual[0], peer[0], truth[0])), ("gradient", (actual[1], peer[1], truth[1]))):
        for i, (a, p, t) in enumerate(zip(*three, strict=True)):
            assert a.dtype == p.dtype and a.is_contiguous()
            if a.is_floating_point():
                condition = rest[4] if VARIANTS[variant].op == "correlation" else 1  # the power
                assert_as_good_as(f"{name} {part} {i}", *_off_by_a_rounding(a, p, t), condition)
            elif a.dim() == 0:
                assert a == p
            else:  # equal but for near ties; that of a column with a NaN is any
                assert a.shape == p.shape and (a != p)[~actual[0][0].isnan().view(*a.shape, -1).any(-1)].sum() <= 1


def _off_by_a_rounding(actual: Tensor, peer: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The peer of a half result is allowed one rounding: it may be exact by chance."""
    if peer.dtype in (torch.bfloat16, torch.float16):
        unit = torch.finfo(peer.dtype).eps * truth.abs().masked_fill(~truth.isfinite(), 0).max()
        peer = torch.where((peer - truth).abs() < unit, truth + unit, peer.double())
    return actual, peer, truth


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward_against_truth(variant, shape, dtype):
    values, rest = _case(variant, SHAPES[shape], dtype)
    _compare(variant, values, values, rest, _upstream(variant, values, rest))


@pytest.mark.parametrize("variant", VARIANTS)
def test_layouts_are_bit_equal(variant):
    """Strides are of no consequence, those of the gradient's gradient neither."""
    values, rest = _case(variant, SHAPES["several tiles"])
    upstream = _upstream(variant, values, rest)
    expected = _run(variant, "cpu", values, rest, upstream)
    turned = [u.movedim(0, -1).contiguous().movedim(-1, 0) if u.dim() else u for u in upstream]
    for (name, src), trg in zip(_layouts(values[0]).items(), reversed(_layouts(values[1]).values()), strict=True):
        for by in (upstream, turned):
            actual = _run(variant, "cpu", [src, trg], rest, by)
            for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
                assert torch.equal(a, b), name


# `correlation` leaves the order of its sums to PyTorch's matrix product, which may take another for other threads.
@pytest.mark.parametrize("variant", [name for name, variant in VARIANTS.items() if variant.op != "correlation"])
def test_bit_equal_for_any_number_of_threads(variant):
    values, rest = _case(variant, SHAPES["large"])
    upstream, before, runs = _upstream(variant, values, rest), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results, grads = _run(variant, "cpu", values, rest, upstream)
            runs.append([*results, *grads])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("channels", [257, 1280])
def test_gradient_forms_the_scores_of_forward_to_the_bit(channels):
    """exp(score - logsumexp) feels the last bit of large scores: the gradient must not form a tile otherwise, nor the
    last one, which is alone in its round."""
    torch.manual_seed(0)
    src = 2 * torch.randn(1, channels, 4096)
    trg = src[:, :, :192] + 0.2 * torch.randn(1, channels, 192)
    labels = torch.arange(192).roll(1)[None]
    before, found = torch.get_num_threads(), {}
    try:
        torch.set_num_threads(2)
        for backend, dtype in (("cpu", torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
            sides = [s.to(dtype).requires_grad_() for s in (src, trg)]
            loss = smk.masked_contrastive_loss_features(*sides, labels, normalize=False, backend=backend)
            found[backend, dtype] = torch.autograd.grad(loss, sides)
    finally:
        torch.set_num_threads(before)
    for i, name in enumerate(("src", "trg")):
        assert_as_good_as(name, *(grads[i] for grads in found.values()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_expanded_features_and_gradients(variant):
    values, rest = _case(variant, SHAPES["odd"])
    expanded = [v[:1].expand(v.shape) for v in values]
    ones = [torch.ones(()).expand(u.shape) for u in _upstream(variant, values, rest)]
    _compare(variant, expanded, [e.contiguous() for e in expanded], rest, ones)


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_batch(variant):
    shape = (0, 4, (2, 3), (2, 2))
    sides, rest = _case(variant, shape)
    results, grads = _run(variant, "cpu", sides, rest)
    expected, _ = _run(variant, "reference", sides, rest)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert [g.shape for g in grads] == [(0, 4, 6), (0, 4, 4)]


@pytest.mark.parametrize("variant", [name for name in VARIANTS if VARIANTS[name].rest(1, 1, (1, 1), (1, 1))[0] is None])
def test_without_masks_nan_spreads_as_in_the_reference(variant):
    values, rest = _case(variant, SHAPES["odd"])
    values[0][0, 3, 20] = values[1][1, 0, 50] = torch.nan
    upstream = _upstream(variant, values, rest)
    _compare(variant, values, values, rest, upstream)


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("variant", ["match", "window", "window, exclude", "loss", "loss, smoothed"])
def test_what_is_masked_out_is_not_seen(variant, fill):
    """Features of cells that are masked out reach neither a result nor a gradient, their own is 0."""
    shape = SHAPES["several tiles"]
    values, rest = _case(variant, shape)
    is_loss = variant.startswith("loss")
    source_mask = rest[3] if is_loss else rest[0]
    target_mask = rest[2] & (rest[0] >= 0) if is_loss else rest[1]
    filled = [v.masked_fill(~m[:, None], fill) for v, m in zip(values, (source_mask, target_mask), strict=True)]
    upstream = _upstream(variant, values, rest)
    expected, actual = (_run(variant, "cpu", sides, rest, upstream) for sides in (values, filled))
    for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.equal(a, b)
    for grad, mask in zip(actual[1], (source_mask, target_mask), strict=True):
        assert grad.isfinite().all() and grad.masked_fill(mask[:, None], 0).count_nonzero() == 0
    _compare(variant, filled, filled, rest, upstream)


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_vectors(variant):
    values, rest = _case(variant, SHAPES["odd"])
    values[0][:, :, 1] = 0
    values[1][:, :, 2] = 0
    _compare(variant, values, values, rest, _upstream(variant, values, rest))


@pytest.mark.skipif(memory.peak(lambda: None, torch.device("cpu")) is None, reason="this system does not tell")
@pytest.mark.parametrize("variant", ["match, plain", "window, none", "loss", "loss, plain", "loss, smoothed"])
def test_memory_is_that_of_a_few_columns(variant):
    """Forward and backward at 4096 cells a side: less than a sixteenth of the matrix, which is 64 MiB."""
    values, rest = _case(variant, (1, 8, (64, 64), (64, 64)))
    _run(variant, "cpu", values, rest)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread has a tile of its own
    try:
        # The least of three: what else the process touches meanwhile counts too.
        peaks = [memory.peak(lambda: _run(variant, "cpu", values, rest), torch.device("cpu")) for _ in range(3)]
        assert min(peaks) < 4 * 2**20
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("levels", [1, 3])
def test_levels_of_several_depths(levels):
    torch.manual_seed(0)
    sides = [[torch.randn(2, c, n, requires_grad=True) for c in (2, 40, 17)[:levels]] for n in (35, 70)]
    args = (*sides, "inside", 1e-3, "none", True, 2, torch.float32)
    upstream = torch.randn(2, levels, 35, 70).transpose(0, 1).contiguous().transpose(0, 1)
    pairs = []
    for op in (library.ops.correlation, library.ops.correlation_reference):
        result = op(*args)
        pairs.append((result, *torch.autograd.grad(result, [*sides[0], *sides[1]], upstream)))
    for ours, reference in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sampling", ["gather", "bilinear"])
@pytest.mark.parametrize("grids", [((16, 16), (16, 16)), ((5, 7), (3, 17)), ((1, 40), (6, 1)), ((40, 40), (2, 2))])
def test_forward_backward_mask_is_that_of_the_reference(grids, sampling):
    """Cell by cell, whatever way the matches point, ties of the bound included."""
    torch.manual_seed(0)
    own, other = grids
    cells, others = own[0] * own[1], other[0] * other[1]
    kept = 0
    for alpha1, alpha2 in ((0.1, 0.5), (0.0, 2.0), (0.5, 0.0), (0.01, 18.0)):
        there, back = torch.randint(0, others, (4, cells)), torch.randint(0, cells, (others, 4)).t()
        there[:2] = torch.arange(cells) * others // cells
        back = back.clone()
        back[:2] = torch.arange(others) * cells // others
        args = (there, back, own, other, alpha1, alpha2, sampling)
        ours = library.ops.forward_backward_mask(*args)
        assert torch.equal(ours, library.ops.forward_backward_mask_reference(*args))
        kept += ours.sum().item()
    assert kept > 0


def test_forward_backward_mask_names_a_match_out_of_range():
    with pytest.raises(RuntimeError, match=r"index_target .* must name cells of the other side, 0 to 5"):
        library.ops.forward_backward_mask(
            torch.tensor([[0, 6]]), torch.zeros(1, 6, dtype=torch.int64), (1, 2), (2, 3), 0.1, 0.5, "gather"
        )
