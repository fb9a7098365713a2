"""The C++ kernels of the smaller ops against their reference and float64 truth, over dtypes, layouts and edge cases.

`match` has its own file; what PyTorch sees of an op (schema, autograd, vmap) is in test_registration.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from truth import assert_as_good_as

from semimatch_kernels import library, schemas

pytestmark = pytest.mark.skipif(library.CPU_REASON is not None, reason=f"cpu: {library.CPU_REASON}")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

#: batch, source grid, target grid: odd sizes on both sides of every vector, block and panel; single cells
SHAPES = {
    "semimatch": (2, (16, 16), (16, 16)),
    "odd": (3, (5, 7), (3, 17)),
    "tall": (1, (1, 301), (2, 2)),
    "wide": (2, (2, 2), (15, 17)),
    "large": (1, (18, 19), (17, 31)),
    "one source": (2, (1, 1), (3, 3)),
    "one cell": (1, (1, 1), (1, 1)),
}


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
        mask[:, 16:32] = False  # a whole vector of cells that do not count
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
    "loss": Variant("masked_contrastive_loss", _loss("mean")),
    "loss, sum, plain": Variant("masked_contrastive_loss", _loss("sum", plain=True)),
    "loss, none, smoothed": Variant("masked_contrastive_loss", _loss("none", 1.0, 3)),
    "loss, mean, smoothed wide": Variant("masked_contrastive_loss", _loss("mean", 2.5, 100)),
    "labels": Variant("pseudo_labels", _labels(True, True, "gather")),
    "labels, bilinear, eps": Variant("pseudo_labels", _labels(False, True, "bilinear", 1e-6)),
    "labels, lookup": Variant("pseudo_labels", _labels(True, False, "gather", 1e-3, lookup=True)),
    "dual": Variant("dual_softmax", lambda *shape: (0.1, False)),
    "dual, log": Variant("dual_softmax", lambda *shape: (0.1, True)),
    "window, gaussian": Variant("soft_argmax", lambda batch, source, target: (source, 0.1, "gaussian", 2.5)),
    "window, zero": Variant("soft_argmax", lambda batch, source, target: (source, 0.1, "zero", 2.0)),
    "window, exclude": Variant("soft_argmax", lambda batch, source, target: (source, 0.1, "exclude", 1.0)),
    "mutual": Variant("mutual_filter", lambda *shape: (None,)),
    "mutual, eps": Variant("mutual_filter", lambda *shape: (1e-5,)),
}
DIFFERENTIABLE = [name for name, v in VARIANTS.items() if schemas.OPS[v.op].inputs]
LOSSES = [name for name in VARIANTS if name.startswith("loss")]


def _layouts(corr: Tensor) -> dict[str, Tensor]:
    """The same values under other strides."""
    *batch, sources, targets = corr.shape
    wide = corr.new_full((*batch, sources, targets + 3), torch.nan)
    wide[..., :targets] = corr
    stepped = corr.new_full((*batch, 2 * sources, 2 * targets), torch.nan)
    stepped[..., ::2, ::2] = corr
    return {
        "contiguous": corr.contiguous(),
        "transposed": corr.transpose(-1, -2).contiguous().transpose(-1, -2),
        "sliced": wide[..., :targets],
        "stepped": stepped[..., ::2, ::2],
        "batch last": corr.movedim(0, -1).contiguous().movedim(-1, 0),
    }


def _args(variant: str, shape: tuple) -> tuple:
    torch.manual_seed(1)
    return VARIANTS[variant].rest(*shape)


def _random(shape: tuple, dtype: torch.dtype = torch.float32) -> Tensor:
    batch, source, target = shape
    return torch.randn(batch, source[0] * source[1], target[0] * target[1]).mul(0.4).to(dtype)


def _run(variant: str, backend: str, corr: Tensor, rest: tuple, upstream: list | None = None):
    """(results, gradient by corr or None) of the op of a backend; the gradients of its results are ``upstream``."""
    name = VARIANTS[variant].op
    spec = schemas.OPS[name]
    corr = corr.detach().requires_grad_(bool(spec.inputs))
    results = getattr(library.ops, schemas.backend_name(name, backend))(corr, *rest)
    if not spec.inputs:
        return results, None
    outputs = [results[i] for i in spec.outputs]
    if upstream is None:
        upstream = [torch.ones_like(o) for o in outputs]
    upstream = [u.to(o.dtype) for u, o in zip(upstream, outputs, strict=True)]
    return results, torch.autograd.grad(outputs, corr, upstream)[0]


def _upstream(variant: str, corr: Tensor, rest: tuple) -> list[Tensor]:
    spec = schemas.OPS[VARIANTS[variant].op]
    results = _run(variant, "reference", corr, rest)[0]
    return [torch.randn(results[i].shape, dtype=torch.float64) for i in spec.outputs]


def _compare(variant: str, corr: Tensor, values: Tensor, rest: tuple, upstream: list, name: str = "") -> None:
    """The op on ``corr``, a layout of ``values``, against the reference in the same dtype and in float64."""
    _compare_layouts(variant, {name: corr}, values, rest, upstream)


def _compare_layouts(variant: str, layouts: dict, values: Tensor, rest: tuple, upstream: list | None = None) -> None:
    upstream = _upstream(variant, values, rest) if upstream is None else upstream
    peer = _run(variant, "reference", values, rest, upstream)
    truth = _run(variant, "reference", values.double(), rest, upstream)
    for name, corr in layouts.items():
        _compare_results(variant, name, corr, _run(variant, "cpu", corr, rest, upstream), peer, truth, rest)


def _compare_results(variant: str, name: str, corr: Tensor, actual: tuple, peer: tuple, truth: tuple, rest) -> None:
    for i, (a, p, t) in enumerate(zip(actual[0], peer[0], truth[0], strict=True)):
        assert a.dtype == p.dtype
        if VARIANTS[variant].op == "pseudo_labels" and i == 1:  # it has the error of the entropy, times a factor
            torch.testing.assert_close(a, torch.exp(-rest[4] * actual[0][4]), rtol=1e-6, atol=0, equal_nan=True)
        elif a.is_floating_point():
            assert_as_good_as(f"{name} result {i}", a, p, t)
        else:
            assert torch.equal(a, p), f"{name} result {i}"
    if actual[1] is not None:
        assert actual[1].dtype == corr.dtype
        assert_as_good_as(f"{name} gradient", actual[1], peer[1], truth[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward_against_truth(variant, shape, dtype):
    values, rest = _random(SHAPES[shape], dtype), _args(variant, SHAPES[shape])
    _compare_layouts(variant, _layouts(values), values, rest)


@pytest.mark.parametrize("variant", VARIANTS)
def test_large_scores_and_common_offset(variant):
    values, rest = _random(SHAPES["odd"]) * 30 + 100, _args(variant, SHAPES["odd"])
    _compare_layouts(variant, _layouts(values), values, rest)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ties(variant):
    shape = SHAPES["odd"]
    rest = _args(variant, shape)
    for values in (torch.randint(0, 3, (3, 35, 51)).float(), torch.zeros(3, 35, 51), torch.ones(3, 35, 51)):
        _compare_layouts(variant, _layouts(values), values, rest)


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
    _compare_layouts(variant, _layouts(values), values, rest)


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_batch(variant):
    shape = (0, (2, 3), (2, 2))
    results, grad = _run(variant, "cpu", torch.zeros(0, 6, 4), _args(variant, shape))
    expected, _ = _run(variant, "reference", torch.zeros(0, 6, 4), _args(variant, shape))
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert grad is None or grad.shape == (0, 6, 4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_expanded_input(variant):
    """A correlation with stride 0 (one matrix for the whole batch)."""
    rest = _args(variant, SHAPES["odd"])
    one = torch.randn(1, 35, 51).expand(3, -1, -1)
    ours, plain = _run(variant, "cpu", one, rest), _run(variant, "cpu", one.contiguous(), rest)
    assert all(torch.equal(a, b) for a, b in zip(ours[0], plain[0], strict=True))
    assert ours[1] is None or torch.equal(ours[1], plain[1])


@pytest.mark.parametrize("variant", DIFFERENTIABLE)
def test_expanded_and_transposed_gradients(variant):
    """The gradient of ``.sum()`` (stride 0), and one that comes transposed."""
    values, rest = _random(SHAPES["odd"]), _args(variant, SHAPES["odd"])
    expanded = [torch.ones((), dtype=torch.float32).expand(u.shape) for u in _upstream(variant, values, rest)]
    _compare(variant, values, values, rest, expanded, "expanded")
    turned = [torch.randn(u.shape[::-1]).permute(list(range(u.dim()))[::-1]) for u in expanded]
    _compare(variant, values, values, rest, turned, "transposed")


@pytest.mark.parametrize("variant", DIFFERENTIABLE)
def test_gradcheck(variant):
    """Against differences, which the values are far enough apart for that no maximum changes."""
    shape = (2, (2, 3), (2, 2))
    rest = _args(variant, shape)
    corr = (torch.randperm(48).double().reshape(2, 6, 4) * 0.07 - 1).requires_grad_()
    spec, op = schemas.OPS[VARIANTS[variant].op], getattr(library.ops, VARIANTS[variant].op)
    assert torch.autograd.gradcheck(lambda c: tuple(op(c, *rest)[i] for i in spec.outputs), (corr,))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bit_equal_for_any_number_of_threads(variant, layout):
    shape = (5, (18, 19), (17, 31))
    corr, rest = _layouts(_random(shape))[layout], _args(variant, shape)
    upstream, before, runs = _upstream(variant, corr, rest), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results, grad = _run(variant, "cpu", corr, rest, upstream)
            runs.append([*results, *([] if grad is None else [grad])])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("per", ["columns", "rows"])
@pytest.mark.parametrize("variant", LOSSES)
def test_what_does_not_count_is_not_seen(variant, per):
    """Scores of cells that do not count, NaN included, reach neither the loss nor a gradient."""
    shape = SHAPES["odd"]
    values, rest = _random(shape), _args(variant, shape)
    labels, _, mask = rest[:3]
    values = values.masked_fill((labels < 0 if mask is None else ~mask | (labels < 0))[:, None], torch.nan)
    corr = values if per == "columns" else _layouts(values)["transposed"]
    results, grad = _run(variant, "cpu", corr, rest)
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
    for name, corr in _layouts(values).items():
        rest = (labels, weight, mask, *numbers)
        _compare(variant, corr, values, rest, _upstream(variant, values, rest), name)
        rest = (labels.clamp(max=-1), weight, mask, *numbers)
        results, grad = _run(variant, "cpu", corr, rest)
        assert all(r.count_nonzero() == 0 for r in results) and grad.count_nonzero() == 0


@pytest.mark.parametrize("eps", [None, 1e-5, 0.0])
def test_mutual_filter_of_levels_in_any_order_in_memory(eps):
    values = torch.randn(2, 3, 4, 18, 33).relu()
    values[0, 0, 0, 5] = values[0, 0, 1, :, 6] = 0  # maxima of 0
    for order in ([0, 1, 2, 3, 4], [1, 4, 0, 3, 2], [4, 3, 2, 1, 0], [2, 0, 3, 1, 4]):
        corr = values.permute(order).contiguous().permute([order.index(d) for d in range(5)])
        upstream = [torch.randn(values.permute(order).shape).permute([order.index(d) for d in range(5)])]
        _compare("mutual", corr, values, (eps,), upstream, str(order))


@pytest.mark.parametrize("largest", [1e-39, 3e-45, 3e38])
def test_mutual_filter_where_a_maximum_has_no_inverse(largest):
    """1 / 1e-39 is infinite in float32, 1 / 3e38 has lost digits."""
    values = torch.rand(2, 35, 51)
    values[0, 3] = torch.linspace(0, 1, 51) * largest
    values[1, :, 4] = values[1, 5, :] = largest
    _compare("mutual", values, values, (None,), [torch.rand(2, 35, 51)])


@pytest.mark.parametrize("sampling", ["gather", "bilinear"])
@pytest.mark.parametrize("grids", [((16, 16), (16, 16)), ((5, 7), (3, 17)), ((1, 40), (6, 1)), ((12, 9), (12, 9))])
def test_consistency_is_that_of_the_reference(grids, sampling):
    """Cell by cell, whatever way the matches point: peaks that agree, nearly agree, or have nothing to do with each
    other, at many bounds, ties of the bound included."""
    source, target = grids
    sources, targets = source[0] * source[1], target[0] * target[1]
    kept = 0
    for alpha1, alpha2 in ((0.1, 0.5), (0.05, 1.0), (0.0, 2.0), (0.5, 0.0), (0.01, 18.0)):
        corr = torch.rand(8, sources, targets)
        along = torch.arange(targets) * sources // targets
        corr[:4, along, torch.arange(targets)] += 0.5
        args = (source, target, 0.02, 0.0, 1.5, None, None, True, alpha1, alpha2, sampling, 0.0, None, None)
        ours, reference = library.ops.pseudo_labels(corr, *args), library.ops.pseudo_labels_reference(corr, *args)
        assert torch.equal(ours[0], reference[0]) and torch.equal(ours[2], reference[2])
        kept += ours[2].sum().item()
    assert kept > 0


def test_pseudo_labels_names_a_lookup_out_of_range():
    rest = list(_args("labels, lookup", (1, (2, 3), (2, 2))))
    rest[12] = torch.tensor([[0, 1, 2, 4]])
    with pytest.raises(RuntimeError, match="cell must name target cells, 0 to 3"):
        library.ops.pseudo_labels(torch.randn(1, 6, 4), *rest)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_pseudo_labels_boxes_of_any_dtype(dtype):
    corr, shape = torch.randn(3, 35, 51), SHAPES["odd"]
    rest = list(_args("labels", shape))
    boxes = torch.tensor([[0.5, 1.5, 4.5, 3.0]]), torch.tensor([[0.0, 0.0, 9.0, 1.0]])
    rest[5:7] = [box.expand(3, 4).to(dtype) for box in boxes]
    ours, reference = library.ops.pseudo_labels(corr, *rest), library.ops.pseudo_labels_reference(corr, *rest)
    assert torch.equal(ours[2], reference[2])
