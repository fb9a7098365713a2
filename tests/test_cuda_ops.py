"""The CUDA kernels, host code and launch geometry included, in the emulator (tests/emulator) against their definitions
and float64 truth, over dtypes, layouts, edge cases, and orders of threads.

What that shows and what it cannot is written in tests/emulator/cuda_runtime.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from emulator.build import NoCompiler, build, load
from torch import Tensor
from truth import assert_as_good_as

from semimatch_kernels import library, schemas

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

#: batch, source grid, target grid: odd sizes on both sides of warps, batches and tiles; single cells
SHAPES = {
    "odd": (3, (5, 7), (3, 17)),
    "tall": (1, (1, 301), (2, 2)),
    "wide": (2, (2, 2), (15, 17)),
    "tiles": (1, (10, 13), (7, 19)),
    "one cell": (1, (1, 1), (1, 1)),
}


@pytest.fixture(scope="session")
def emulator():
    try:
        return load(build())
    except NoCompiler as reason:
        pytest.skip(f"the emulator of CUDA cannot be built: {reason}")


@pytest.fixture(autouse=True)
def _in_order(emulator):
    yield
    emulator.emulator_set_order(0)
    emulator.emulator_set_capability(90)


@dataclass(frozen=True)
class Variant:
    """An op with one choice of the arguments that follow the correlation, given (batch, source grid, target grid)."""

    op: str
    rest: Callable[[int, tuple, tuple], tuple]


def _loss(reduction: str, sigma: float = 0.0, radius: int = 0, plain: bool = False):
    def rest(batch, source, target):
        sources, targets = source[0] * source[1], target[0] * target[1]
        labels = torch.randint(0, sources, (batch, targets))
        if plain:
            return labels, None, None, 0.1, reduction, sources, sigma, radius
        labels[:, ::5] = -1
        weight, mask = torch.rand(targets, batch).t(), torch.rand(batch, targets) < 0.7
        return labels, weight, mask, 0.1, reduction, source[1], sigma, radius

    return rest


def _labels(boxes: bool, forward_backward: bool, sampling: str, eps: float = 0.0, lookup: bool = False):
    def rest(batch, source, target):
        targets = target[0] * target[1]
        numbers = torch.rand(batch, 8) * torch.tensor([1.0, 1, 9, 9, 1, 1, 20, 12]) + 0.5 * torch.ones(batch, 8)
        box = (numbers[:, :4], numbers[:, 4:].double()) if boxes else (None, None)
        look = (torch.randint(0, targets, (targets, batch)).t(), torch.rand(batch, targets) < 0.8)
        return (
            source, target, 0.1, 0.2, 1.5, *box, forward_backward, 0.1, 0.5, sampling, eps,
            *(look if lookup else (None, None)),
        )  # fmt: skip

    return rest


VARIANTS = {
    "match": Variant("match", lambda b, s, t: (s, 0.1)),
    "match both": Variant("match_both", lambda b, s, t: (s, t, 0.1)),
    "loss": Variant("masked_contrastive_loss", _loss("mean")),
    "loss, sum, plain": Variant("masked_contrastive_loss", _loss("sum", plain=True)),
    "loss, none, smoothed": Variant("masked_contrastive_loss", _loss("none", 1.0, 3)),
    "loss, mean, smoothed wide": Variant("masked_contrastive_loss", _loss("mean", 2.5, 100)),
    "labels": Variant("pseudo_labels", _labels(True, True, "gather")),
    "labels, bilinear, eps": Variant("pseudo_labels", _labels(False, True, "bilinear", 1e-6)),
    "labels, lookup": Variant("pseudo_labels", _labels(True, False, "gather", 1e-3, lookup=True)),
    "dual": Variant("dual_softmax", lambda *shape: (0.1, False)),
    "dual, log": Variant("dual_softmax", lambda *shape: (0.1, True)),
    "window": Variant("soft_argmax", lambda b, s, t: (s, 0.1, "gaussian", 1.5)),
    "window, zero": Variant("soft_argmax", lambda b, s, t: (s, 0.1, "zero", 1.0)),
    "window, exclude": Variant("soft_argmax", lambda b, s, t: (s, 0.1, "exclude", 2.0)),
    "mutual": Variant("mutual_filter", lambda *shape: (None,)),
    "mutual, eps": Variant("mutual_filter", lambda *shape: (1e-5,)),
}
LABELS = [name for name in VARIANTS if name.startswith("labels")]
LOSSES = [name for name in VARIANTS if name.startswith("loss")]
DIFFERENTIABLE = [name for name, v in VARIANTS.items() if schemas.OPS[v.op].inputs]


def test_every_op_of_the_backend_is_here():
    named = {v.op for v in VARIANTS.values()} | {"forward_backward_mask"}
    native = {op.removesuffix("_backward") for op in schemas.NATIVE["cuda"]}
    assert {op for op in native if not op.endswith("_features")} - {"correlation"} == named  # test_cuda_features.py


def _layouts(corr: Tensor) -> dict[str, Tensor]:
    """The same values under other strides."""
    *batch, sources, targets = corr.shape
    stepped = corr.new_full((*batch, 2 * sources, 2 * targets + 3), torch.nan)
    stepped[..., ::2, : 2 * targets : 2] = corr
    return {
        "contiguous": corr.contiguous(),
        "transposed": corr.transpose(-1, -2).contiguous().transpose(-1, -2),
        "stepped": stepped[..., ::2, : 2 * targets : 2],
        "batch last": corr.movedim(0, -1).contiguous().movedim(-1, 0),
    }


def _args(variant: str, shape: tuple) -> tuple:
    torch.manual_seed(1)
    return VARIANTS[variant].rest(*shape)


def _random(shape: tuple, dtype: torch.dtype = torch.float32) -> Tensor:
    batch, source, target = shape
    return torch.randn(batch, source[0] * source[1], target[0] * target[1]).mul(0.4).to(dtype)


def _op(name: str, emulated: bool) -> Callable:
    if emulated:
        return getattr(torch.ops.semimatch_emulated, name)
    return library.definition(name)


def _call(variant: str, emulated: bool, corr: Tensor, rest: tuple, upstream: list | None = None):
    """(results, gradient by corr or None) of the emulated or defined op; the results' gradients are ``upstream``."""
    name = VARIANTS[variant].op
    spec = schemas.OPS[name]
    results = _op(name, emulated)(corr, *rest)
    if not spec.inputs:
        return results, None
    grads = [torch.ones_like(results[i]) for i in spec.outputs] if upstream is None else upstream
    grads = [g.to(results[i].dtype) for g, i in zip(grads, spec.outputs, strict=True)]
    saved = [results[i] for i in spec.saved]
    return results, _op(f"{name}_backward", emulated)(corr, *rest, *saved, *grads)


def _upstream(variant: str, corr: Tensor, rest: tuple) -> list[Tensor]:
    spec = schemas.OPS[VARIANTS[variant].op]
    results = _call(variant, False, corr, rest)[0]
    return [torch.randn(results[i].shape, dtype=torch.float64) for i in spec.outputs]


def _compare(variant: str, corr: Tensor, values: Tensor, rest: tuple, upstream: list, name: str = "") -> tuple:
    """The op on ``corr``, a layout of ``values``, against the definition in the same dtype and in float64."""
    actual, peer = _call(variant, True, corr, rest, upstream), _call(variant, False, values, rest, upstream)
    truth = _call(variant, False, values.double(), rest, upstream)
    for i, (a, p, t) in enumerate(zip(actual[0], peer[0], truth[0], strict=True)):
        assert a.dtype == p.dtype
        if VARIANTS[variant].op == "pseudo_labels" and i == 1:  # it has the error of the entropy, times a factor
            torch.testing.assert_close(a, torch.exp(-rest[4] * actual[0][4]), rtol=1e-6, atol=0, equal_nan=True)
        elif a.is_floating_point():
            assert_as_good_as(f"{name} result {i}", a, p, t)
        elif "match" not in variant or not values.isnan().any():  # its index beside a NaN is not defined
            assert torch.equal(a, p), f"{name} result {i}"
    if actual[1] is not None:
        assert actual[1].dtype == corr.dtype
        assert_as_good_as(f"{name} gradient", actual[1], peer[1], truth[1])
    return actual


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward_against_truth(variant, shape):
    rest = _args(variant, SHAPES[shape])
    for dtype in DTYPES if shape in ("odd", "one cell") else DTYPES[:1]:
        values = _random(SHAPES[shape], dtype)
        upstream = _upstream(variant, values, rest)
        layouts = _layouts(values)
        for name in layouts if dtype == torch.float32 else ("contiguous", "transposed"):
            _compare(variant, layouts[name], values, rest, upstream, f"{name} {dtype}")


@pytest.mark.parametrize("variant", LABELS)
def test_labels_without_clusters(variant, emulator):
    """The two launches of GPUs before sm_90."""
    emulator.emulator_set_capability(80)
    for shape in ("odd", "tiles", "tall"):
        values, rest = _random(SHAPES[shape]), _args(variant, SHAPES[shape])
        for name, corr in list(_layouts(values).items())[:2]:
            _compare(variant, corr, values, rest, [], name)


@pytest.mark.parametrize("variant", LABELS)
def test_labels_of_grids_that_blocks_share(variant):
    """Several panels of rows to a block of a cluster, blocks that have none, and grids beyond a cluster."""
    for shape in ((1, (20, 30), (5, 8)), (1, (5, 8), (20, 30)), (2, (1, 200), (3, 3)), (1, (1, 1100), (2, 2))):
        values, rest = _random(shape), _args(variant, shape)
        for name, corr in list(_layouts(values).items())[:2]:
            _compare(variant, corr, values, rest, [], f"{name} {shape}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_order_of_threads_gives_the_same_bits(variant, emulator):
    """In the order of their numbers, and in others: what a missing barrier leaves to chance would differ."""
    shape = SHAPES["tiles"]
    for capability in (80, 90) if variant in LABELS else (90,):
        emulator.emulator_set_capability(capability)
        for corr in list(_layouts(_random(shape)).values())[:2]:
            rest, runs = _args(variant, shape), []
            upstream = _upstream(variant, corr, rest)
            for seed in (0, 1, 2):
                emulator.emulator_set_order(seed)
                results, grad = _call(variant, True, corr, rest, upstream)
                runs.append([*results, *([] if grad is None else [grad])])
            assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_scores_common_offset_and_ties(variant):
    shape = SHAPES["odd"]
    rest = _args(variant, shape)
    ties = torch.randint(0, 3, (3, 35, 51)).float()
    for values in (_random(shape) * 30 + 100, ties, torch.zeros(3, 35, 51), torch.ones(3, 35, 51)):
        for name, corr in list(_layouts(values).items())[:2]:
            _compare(variant, corr, values, rest, _upstream(variant, values, rest), name)


@pytest.mark.parametrize("fill", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("variant", VARIANTS)
def test_non_finite_entries(variant, fill):
    """Single entries, a whole row and a whole column of -inf (excluded), +inf or NaN, and of mixtures."""
    shape = SHAPES["odd"]
    values, rest = _random(shape), _args(variant, shape)
    values[0, 20, 30] = values[0, 21, 31] = values[0, 34, 50] = fill
    values[1, 5] = values[1, :, 7] = fill
    values[1, 6, 7] = torch.nan
    values[2, ::2] = -torch.inf
    values[2, 5, :3] = fill
    for name, corr in list(_layouts(values).items())[:2]:
        _compare(variant, corr, values, rest, _upstream(variant, values, rest), name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_batch_and_one_matrix_for_the_whole_batch(variant):
    shape = (0, (2, 3), (2, 2))
    results, grad = _call(variant, True, torch.zeros(0, 6, 4), _args(variant, shape))
    expected, _ = _call(variant, False, torch.zeros(0, 6, 4), _args(variant, shape))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert grad is None or grad.shape == (0, 6, 4)
    rest, one = _args(variant, SHAPES["odd"]), torch.randn(1, 35, 51).expand(3, -1, -1)
    ours, plain = _call(variant, True, one, rest), _call(variant, True, one.contiguous(), rest)
    assert all(torch.equal(a, b) for a, b in zip(ours[0], plain[0], strict=True))
    assert ours[1] is None or torch.equal(ours[1], plain[1])


@pytest.mark.parametrize("variant", DIFFERENTIABLE)
def test_expanded_and_transposed_gradients(variant):
    """The gradient of ``.sum()`` (stride 0), and one that comes transposed."""
    values, rest = _random(SHAPES["odd"]), _args(variant, SHAPES["odd"])
    expanded = [torch.ones(()).expand(u.shape) for u in _upstream(variant, values, rest)]
    _compare(variant, values, values, rest, expanded, "expanded")
    turned = [torch.randn(u.shape[::-1]).permute(list(range(u.dim()))[::-1]) for u in expanded]
    _compare(variant, values, values, rest, turned, "transposed")


@pytest.mark.parametrize("eps", [None, 1e-5])
def test_mutual_filter_of_levels_in_any_order_in_memory(eps):
    values = torch.randn(2, 3, 2, 18, 33).relu()
    values[0, 0, 0, 5] = values[0, 0, 1, :, 6] = 0  # maxima of 0
    many = values[:, :, :, None, None, None, None, None]  # more dimensions than kernels take
    orders = [(values, o) for o in ([0, 1, 2, 3, 4], [1, 4, 0, 3, 2], [4, 3, 2, 1, 0])]
    for given, order in [*orders, (many.expand(-1, -1, -1, 2, 1, 2, 1, 2, -1, -1), [9, 8, 3, 5, 0, 7, 1, 2, 4, 6])]:
        back = [order.index(d) for d in range(len(order))]
        corr = given.permute(order).contiguous().permute(back)
        upstream = [torch.randn(given.permute(order).shape).permute(back)]
        _compare("mutual", corr, given, (eps,), upstream, str(order))


@pytest.mark.parametrize("largest", [1e-39, 3e-45, 3e38])
def test_mutual_filter_where_a_maximum_has_no_inverse(largest):
    values = torch.rand(2, 35, 51)
    values[0, 3] = torch.linspace(0, 1, 51) * largest
    values[1, :, 4] = values[1, 5, :] = largest
    _compare("mutual", values, values, (None,), [torch.rand(2, 35, 51)])


@pytest.mark.parametrize("variant", LOSSES)
def test_what_does_not_count_is_not_seen(variant):
    """Scores of cells that do not count, NaN included, reach neither the loss nor a gradient."""
    shape = SHAPES["odd"]
    values, rest = _random(shape), _args(variant, shape)
    labels, _, mask = rest[:3]
    values = values.masked_fill((labels < 0 if mask is None else ~mask | (labels < 0))[:, None], torch.nan)
    for corr in list(_layouts(values).values())[:2]:
        results, grad = _call(variant, True, corr, rest)
        assert results[0].isfinite().all() and grad.isfinite().all()
        _compare(variant, corr, values, rest, _upstream(variant, values, rest))


@pytest.mark.parametrize("variant", LOSSES)
def test_labels_at_the_edges(variant):
    """A label that names no cell gives NaN, in its column of the gradient too; one on an excluded entry +inf; no cell
    that counts, 0."""
    shape = SHAPES["odd"]
    labels, weight, mask, *numbers = _args(variant, shape)
    labels[0, 1], labels[1, 33], labels[2, 50] = 35, 1 << 40, 34
    values = _random(shape)
    values[2, 34, 50] = -torch.inf
    mask = None if mask is None else mask.index_fill(1, torch.tensor([1, 33, 50]), True)
    for name, corr in list(_layouts(values).items())[:2]:
        rest = (labels, weight, mask, *numbers)
        _compare(variant, corr, values, rest, _upstream(variant, values, rest), name)
        rest = (labels.clamp(max=-1), weight, mask, *numbers)
        results, grad = _call(variant, True, corr, rest)
        assert all(r.count_nonzero() == 0 for r in results) and grad.count_nonzero() == 0


@pytest.mark.parametrize("grids", [((16, 16), (16, 16)), ((5, 7), (3, 17)), ((1, 40), (6, 1))])
@pytest.mark.parametrize("sampling", ["gather", "bilinear"])
def test_forward_backward_mask(emulator, grids, sampling):
    own, other = grids
    cells, others = own[0] * own[1], other[0] * other[1]
    along = torch.arange(cells) * others // cells
    index = torch.where(torch.rand(4, cells) < 0.6, along, torch.randint(0, others, (4, cells)))
    back = torch.where(torch.rand(4, others) < 0.6, torch.arange(others) * cells // others, torch.zeros(()).long())
    kept = 0
    for alpha1, alpha2 in ((0.1, 0.5), (0.0, 2.0), (0.01, 18.0)):
        args = (index, back, own, other, alpha1, alpha2, sampling)
        ours = torch.ops.semimatch_emulated.forward_backward_mask(*args)
        assert torch.equal(ours, library.definition("forward_backward_mask")(*args))
        kept += ours.sum().item()
    assert kept > 0
    beyond = torch.ops.semimatch_emulated.forward_backward_mask(index.clamp(min=others), *args[1:])
    assert not beyond.any()  # no cell of that number: read nowhere
    assert torch.ops.semimatch_emulated.forward_backward_mask(index[:0], back[:0], *args[2:]).shape == (0, cells)
