"""The CUDA ops from features in the emulator (tests/emulator) against their definitions and float64 truth, as
test_cuda_ops.py has those from a correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from test_cuda_ops import DTYPES, _in_order, _layouts, _op, emulator  # noqa: F401  (fixtures)
from torch import Tensor
from truth import assert_as_good_as

from semimatch_kernels import schemas

#: batch, channels, source grid, target grid: odd sizes on both sides of tiles, of a stage and of a block's channels
SHAPES = {
    "odd": (3, 5, (5, 7), (3, 17)),
    "tiles": (1, 70, (10, 13), (7, 19)),
    "channels": (1, 300, (1, 66), (3, 3)),
    "runs": (1, 9, (1, 1100), (2, 2)),
    "one cell": (1, 1, (1, 1), (1, 1)),
}


@dataclass(frozen=True)
class Variant:
    """An op with one choice of the arguments that follow the features, given (batch, source grid, target grid)."""

    op: str
    rest: Callable[[int, tuple, tuple], tuple]


def _cells(grid: tuple) -> int:
    return grid[0] * grid[1]


def _match(normalize: str, eps: float, source_mask: bool = False, target_mask: bool = False):
    def rest(batch, source, target):
        masks = (torch.rand(_cells(source), batch) < 0.7).t(), torch.rand(batch, _cells(target)) < 0.7
        chosen = [mask if given else None for mask, given in zip(masks, (source_mask, target_mask), strict=True)]
        return *chosen, source, 0.1, normalize, eps

    return rest


def _window(window: str, width: float, normalize: str, eps: float, *masks: bool):
    def rest(*shape):
        *given, grid, temperature, _, _ = _match(normalize, eps, *masks)(*shape)
        return *given, grid, temperature, window, width, normalize, eps

    return rest


def _loss(reduction: str, normalize: str, eps: float, sigma: float = 0.0, radius: int = 0, plain: bool = False):
    def rest(batch, source, target):
        sources, targets = _cells(source), _cells(target)
        labels = torch.randint(0, sources, (batch, targets))
        if plain:
            return labels, None, None, None, 0.1, reduction, sources, sigma, radius, normalize, eps
        labels[:, 3::5] = -1
        source_mask = (torch.rand(sources, batch) < 0.7).t().scatter(1, labels.clamp(min=0), True)  # a finite loss
        given = labels, torch.rand(targets, batch).t(), torch.rand(batch, targets) < 0.7, source_mask
        return *given, 0.1, reduction, source[1], sigma, radius, normalize, eps

    return rest


def _level(*numbers):
    return lambda *shape: numbers


VARIANTS = {
    "level": Variant("correlation", _level("inside", 1e-6, "none", False, 1, None)),
    "level, relu": Variant("correlation", _level("none", 0.0, "sqrt_channels", True, 1, None)),
    "level, relu, cubed, float": Variant("correlation", _level("clamped", 1.5, "channels", True, 3, torch.float32)),
    "level, squared, wide": Variant("correlation", _level("added", 1e-3, "none", False, 2, torch.float64)),
    "level, half": Variant("correlation", _level("none", 0.0, "channels", False, 1, torch.float16)),
    "match": Variant("match_features", _match("inside", 1e-6)),
    "match, none, masks": Variant("match_features", _match("none", 0.0, True, True)),
    "match, added, source mask": Variant("match_features", _match("added", 1e-3, True, False)),
    "match, clamped, target mask": Variant("match_features", _match("clamped", 1.5, False, True)),
    "window": Variant("soft_argmax_features", _window("gaussian", 1.5, "inside", 1e-6)),
    "window, zero, masks": Variant("soft_argmax_features", _window("zero", 1.0, "none", 0.0, True, True)),
    "window, exclude, source mask": Variant("soft_argmax_features", _window("exclude", 2.0, "clamped", 1.5, True)),
    "window, none, target mask": Variant("soft_argmax_features", _window("none", 1.0, "added", 1e-3, False, True)),
    "loss": Variant("masked_contrastive_loss_features", _loss("mean", "inside", 1e-6)),
    "loss, sum, plain": Variant("masked_contrastive_loss_features", _loss("sum", "none", 0.0, plain=True)),
    "loss, none, smoothed": Variant("masked_contrastive_loss_features", _loss("none", "added", 1e-3, 1.0, 3)),
    "loss, mean, smoothed wide": Variant("masked_contrastive_loss_features", _loss("mean", "clamped", 1.5, 2.5, 100)),
}
LOSSES = [name for name in VARIANTS if name.startswith("loss")]


def test_every_op_of_the_backend_is_here():
    native = {op.removesuffix("_backward") for op in schemas.NATIVE["cuda"]}
    assert {op for op in native if op.endswith("_features") or op == "correlation"} == {v.op for v in VARIANTS.values()}


def _args(variant: str, shape: tuple) -> tuple:
    torch.manual_seed(1)
    batch, _, source, target = shape
    return VARIANTS[variant].rest(batch, source, target)


def _there(variant: str, rest: tuple) -> tuple[Tensor | None, Tensor | None]:
    """The cells of each side that take part, None for all."""
    if VARIANTS[variant].op == "correlation":
        return None, None
    if variant not in LOSSES:
        return rest[:2]
    labels, _, mask, source_mask = rest[:4]
    return source_mask, labels >= 0 if mask is None else mask & (labels >= 0)


def _features(shape: tuple, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    batch, channels, source, target = shape
    return tuple(torch.randn(batch, channels, _cells(grid)).mul(0.7).to(dtype) for grid in (source, target))


def _call(variant: str, emulated: bool, features: tuple, rest: tuple, upstream: list | None = None) -> tuple:
    """(results, gradients by the features) of the emulated or defined op; the results' gradients are ``upstream``."""
    name = VARIANTS[variant].op
    spec = schemas.OPS[name]
    if name == "correlation":
        return _call_level(emulated, *features, rest, upstream)
    results = _op(name, emulated)(*features, *rest)
    grads = [torch.ones_like(results[i]) for i in spec.outputs] if upstream is None else upstream
    grads = [g.to(results[i].dtype) for g, i in zip(grads, spec.outputs, strict=True)]
    saved = [results[i] for i in spec.saved]
    return tuple(results), tuple(_op(f"{name}_backward", emulated)(*features, *rest, *saved, *grads))


def _call_level(emulated: bool, src: Tensor, trg: Tensor, rest: tuple, upstream: list | None) -> tuple:
    """`_call` of a correlation of one level. Without a dtype of its own the result has that of the features; so it has
    where those are float64: they stand for the truth."""
    out_dtype = src.dtype if rest[-1] is None or src.dtype == torch.float64 else rest[-1]
    args = [src], [trg], *rest[:-1], out_dtype
    result = _op("correlation", emulated)(*args)
    grad = torch.ones_like(result) if upstream is None else upstream[0].to(out_dtype)
    by_src, by_trg = _op("correlation_backward", emulated)(*args, grad)
    return (result,), (*by_src, *by_trg)


def _upstream(variant: str, features: tuple, rest: tuple) -> list[Tensor]:
    spec = schemas.OPS[VARIANTS[variant].op]
    results = _call(variant, False, features, rest)[0]
    return [torch.randn(results[i].shape, dtype=torch.float64) for i in spec.outputs]


def _compare(variant: str, given: tuple, values: tuple, rest: tuple, upstream: list, name: str = "") -> tuple:
    """The op on ``given``, a layout of ``values``, against the definition in the same dtype and in float64."""
    actual, peer = _call(variant, True, given, rest, upstream), _call(variant, False, values, rest, upstream)
    truth = _call(variant, False, tuple(v.double() for v in values), rest, upstream)
    broken = not all(v.isfinite().all() for v in values)
    for i, (a, p, t) in enumerate(zip(actual[0], peer[0], truth[0], strict=True)):
        assert a.dtype == p.dtype
        if a.is_floating_point():
            assert_as_good_as(f"{name} result {i}", a, p, t)
        elif not broken:  # an index beside a NaN is not defined
            assert torch.equal(a, p), f"{name} result {i}"
    for side, a, p, t, v, other in zip(
        ("source", "target"), actual[1], peer[1], truth[1], values, values[::-1], strict=True
    ):
        assert a.dtype == v.dtype and a.is_contiguous()
        # A sum of n terms of either sign, one after the other, is off by about sqrt(n) units; 4 are allowed anyway.
        condition = max(1, other.shape[2] ** 0.5 / 4)
        assert_as_good_as(f"{name} gradient by the {side}", a, p, t, condition)
    return actual


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward_against_truth(variant, shape):
    rest = _args(variant, SHAPES[shape])
    for dtype in DTYPES if shape in ("odd", "channels") else DTYPES[:2]:
        values = _features(SHAPES[shape], dtype)
        upstream = _upstream(variant, values, rest)
        layouts = [_layouts(v) for v in values]
        names = list(layouts[0]) if shape == "odd" and dtype == torch.float32 else ["contiguous", "transposed"]
        for first, second in zip(names, names[1:] + names[:1], strict=True) if shape != "tiles" else [names]:
            given = layouts[0][first], layouts[1][second]
            _compare(variant, given, values, rest, upstream, f"{first}, {second} {dtype}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_order_of_threads_gives_the_same_bits(variant, emulator):  # noqa: F811
    shape = (1, 40, (3, 30), (5, 14))
    for dtype in (torch.float32, torch.bfloat16):
        values, rest, runs = _features(shape, dtype), _args(variant, shape), []
        upstream = _upstream(variant, values, rest)
        for seed in (0, 1, 2):
            emulator.emulator_set_order(seed)
            results, grads = _call(variant, True, values, rest, upstream)
            runs.append([*results, *grads])
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_vectors_ties_and_large_features(variant, dtype):
    shape = SHAPES["odd"]
    rest = _args(variant, shape)
    zeros, large = _features(shape, dtype), tuple(9 * v + 3 for v in _features(shape, dtype))
    for side in zeros:
        side[:, :, ::3] = 0
    for values in (zeros, large):
        _compare(variant, values, values, rest, _upstream(variant, values, rest))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masks", [False, True])
def test_ties_go_to_the_lowest_index(masks, dtype):
    """Not compared with the definition: a product in PyTorch may round equal entries differently."""
    shape = SHAPES["tiles"]
    rest = _args("match, none, masks" if masks else "match", shape)
    src, trg = _features(shape, dtype)
    src[:] = src[:, :, :1]
    index = _call("match", True, (src, trg), rest)[0][4]
    expected = rest[0].int().argmax(1)[:, None] * rest[1] if masks else torch.zeros_like(index)
    assert torch.equal(index, expected.expand_as(index))


@pytest.mark.parametrize("fill", [torch.nan, torch.inf])
@pytest.mark.parametrize("variant", VARIANTS)
def test_non_finite_features(variant, fill):
    """NaN in a cell reaches what is matched with it; where it is masked out, nothing."""
    shape = SHAPES["odd"]
    rest = _args(variant, shape)
    for side in (0, 1):
        values = _features(shape)
        values[side][0, 2, 3] = values[side][1, :, 20] = fill
        _compare(variant, values, values, rest, _upstream(variant, values, rest))
    values = _features(shape)
    for features, mask in zip(values, _there(variant, rest), strict=True):
        if mask is not None:
            features.masked_fill_(~mask[:, None], fill)
    _, grads = _call(variant, True, values, rest)
    assert all(grad.isfinite().all() for grad in grads)
    _compare(variant, values, values, rest, _upstream(variant, values, rest))


@pytest.mark.parametrize("normalize", ["none", "inside", "added", "clamped"])
def test_everything_masked_out(normalize):
    shape = SHAPES["odd"]
    values = _features(shape)
    for masks in ((torch.zeros(3, 35).bool(), None), (None, torch.zeros(3, 51).bool())):
        rest = (*masks, (5, 7), 0.1, normalize, 1e-6)
        _, grads = _compare("match", values, values, rest, _upstream("match", values, rest))
        assert all(grad.count_nonzero() == 0 for grad in grads)


@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_batch_and_one_sample_for_the_whole_batch(variant):
    shape = SHAPES["odd"]
    rest = _args(variant, (0, *shape[1:]))
    results, grads = _call(variant, True, _features((0, *shape[1:])), rest)
    expected, _ = _call(variant, False, _features((0, *shape[1:])), rest)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(results, expected, strict=True))
    assert [grad.shape for grad in grads] == [(0, 5, 35), (0, 5, 51)]
    rest = _args(variant, shape)
    one = [v[:1].expand(3, -1, -1) for v in _features(shape)]
    ours, plain = _call(variant, True, one, rest), _call(variant, True, [v.contiguous() for v in one], rest)
    assert all(torch.equal(a, b) for a, b in zip((*ours[0], *ours[1]), (*plain[0], *plain[1]), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_expanded_and_transposed_gradients(variant):
    values, rest = _features(SHAPES["odd"]), _args(variant, SHAPES["odd"])
    expanded = [torch.ones(()).expand(u.shape) for u in _upstream(variant, values, rest)]
    _compare(variant, values, values, rest, expanded, "expanded")
    turned = [torch.randn(u.shape[::-1]).permute(list(range(u.dim()))[::-1]) for u in expanded]
    _compare(variant, values, values, rest, turned, "transposed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_levels_have_the_bits_of_one_level_alone(relu, dtype):
    pairs = [_features((3, channels, (5, 7), (3, 17)), dtype) for channels in (5, 70, 1)]
    src, trg = (list(side) for side in zip(*pairs, strict=True))
    rest = "inside", 1e-6, "channels", relu, 2 if relu else 1, torch.float32
    ours, backward = _op("correlation", True), _op("correlation_backward", True)
    grad = torch.randn(3, 51, 35, 3).permute(0, 3, 2, 1)
    results, (by_src, by_trg) = ours(src, trg, *rest), backward(src, trg, *rest, grad)
    assert results.shape == (3, 3, 35, 51) and [g.shape[1] for g in by_src] == [5, 70, 1]
    for i, (s, t) in enumerate(pairs):
        assert torch.equal(results[:, i], ours([s], [t], *rest)[:, 0])
        alone = backward([s], [t], *rest, grad[:, i : i + 1].contiguous())
        assert torch.equal(by_src[i], alone[0][0]) and torch.equal(by_trg[i], alone[1][0])


@pytest.mark.parametrize("variant", LOSSES)
def test_labels_at_the_edges(variant):
    """A label that names no cell gives NaN; one on a cell that is not there +inf, and no gradient to that cell; no cell
    that counts, 0."""
    shape = SHAPES["odd"]
    values, (labels, weight, mask, _, *numbers) = _features(shape), _args(variant, shape)
    source_mask = torch.ones(3, 35).bool()
    mask = None if mask is None else mask.index_fill(1, torch.tensor([1, 33, 50]), True)
    labels[2, 50], source_mask[2, 34] = 34, False
    excluded = (labels, weight, mask, source_mask, *numbers)
    upstream = _upstream(variant, values, excluded)
    (loss, _, _), (by_src, _) = _call(variant, True, values, excluded, upstream)
    assert loss.isinf().any() and by_src[2, :, 34].count_nonzero() == 0
    _compare(variant, values, values, excluded, upstream)
    labels[0, 1], labels[1, 33] = 35, 1 << 40
    rest = (labels, weight, mask, source_mask, *numbers)
    assert _call(variant, True, values, rest, upstream)[0][0].isnan().any()
    _compare(variant, values, values, rest, upstream)
    rest = (labels.clamp(max=-1), weight, mask, source_mask, *numbers)
    results, grads = _call(variant, True, values, rest)
    assert all(t.count_nonzero() == 0 for t in (*results, *grads))


@pytest.mark.parametrize("variant", LOSSES)
def test_a_column_of_excluded_entries_alone(variant):
    shape = SHAPES["odd"]
    values, (labels, weight, mask, _, *numbers) = _features(shape), _args(variant, shape)
    source_mask = torch.ones(3, 35).bool()
    source_mask[1] = False
    rest = (labels, weight, mask, source_mask, *numbers)
    _compare(variant, values, values, rest, _upstream(variant, values, rest))
