"""`match` from a correlation: every backend against float64 truth, over dtypes, layouts and edge cases."""

from __future__ import annotations

import pytest
import torch
from truth import assert_as_good_as, assert_same_best

import semimatch_kernels as smk
from semimatch_kernels.backends import reason_against

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
FLOATS = ("coords", "score", "entropy", "logsumexp")
PER = ("target", "source", "both")

#: batch, source grid, target grid: odd sizes on both sides of every block size, rectangular, single cells
SHAPES = {
    "semimatch": (2, (16, 16), (16, 16)),
    "odd": (3, (5, 7), (3, 17)),
    "tall": (1, (1, 300), (2, 2)),
    "wide": (2, (2, 2), (15, 17)),
    "one source": (2, (1, 1), (3, 3)),
    "one cell": (1, (1, 1), (1, 1)),
}


def _layouts(corr):
    """The same values under other strides."""
    batch, sources, targets = corr.shape
    wide = corr.new_full((batch, sources, targets + 3), torch.nan)
    wide[:, :, :targets] = corr
    stepped = corr.new_full((batch, sources, 2 * targets), torch.nan)
    stepped[:, :, ::2] = corr
    return {
        "contiguous": corr.contiguous(),
        "transposed": corr.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": wide[:, :, :targets],
        "stepped": stepped[:, :, ::2],
        "batch last": corr.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    }


@pytest.fixture(params=["reference", "cpu", "triton", "cuda"])
def backend(request):
    device = "cpu" if request.param == "cpu" else DEVICE
    reason = reason_against("match", request.param, device, None)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def _device(backend):
    return "cpu" if backend == "cpu" else DEVICE


def _skip_dtype(backend, dtype):
    reason = reason_against("match", backend, _device(backend), dtype)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def _sides(result, per):
    return dict(zip(("target", "source"), result, strict=True)) if per == "both" else {per: result}


def _grid(per, source, target):
    return {"target": source, "source": target, "both": (source, target)}[per]


def _run(corr, per, source, target, backend, temperature=0.1):
    return _sides(smk.match(corr, _grid(per, source, target), temperature, per, backend=backend), per)


def _random(shape, dtype, device):
    batch, source, target = SHAPES[shape]
    corr = torch.randn(batch, source[0] * source[1], target[0] * target[1]).mul(0.4).to(dtype).to(device)
    return corr, source, target


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward_against_truth(backend, dtype, per, shape):
    _skip_dtype(backend, dtype)
    values, source, target = _random(shape, dtype, _device(backend))
    for name, corr in _layouts(values).items():
        corr = corr.detach().requires_grad_()
        results = {
            "actual": (corr, _run(corr, per, source, target, backend)),
            "peer": (peer := values.clone().requires_grad_(), _run(peer, per, source, target, "reference")),
            "truth": (
                truth := values.double().requires_grad_(),
                _run(truth, per, source, target, "reference"),
            ),
        }
        upstream = {}
        for side in results["truth"][1]:
            m = results["actual"][1][side]
            for field in FLOATS:
                outputs = [getattr(results[k][1][side], field) for k in ("actual", "peer", "truth")]
                assert outputs[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
                assert_as_good_as(f"{name} {side} {field}", *outputs)
                upstream[side, field] = torch.randn_like(outputs[2])
            assert_same_best(m.index, values if side == "target" else values.transpose(1, 2), 1)
        grads = {}
        for key, (leaf, sides) in results.items():
            total = sum((getattr(sides[s], f).double() * u).sum() for (s, f), u in upstream.items())
            (grads[key],) = torch.autograd.grad(total, leaf)
        assert grads["actual"].dtype == dtype
        assert_as_good_as(f"{name} gradient", grads["actual"], grads["peer"], grads["truth"])


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("only", FLOATS)
def test_gradient_of_each_output_alone_and_expanded(backend, per, only):
    """One output used, its gradient expanded (stride 0) as ``.sum()`` makes it, and transposed as ``.t()`` makes it."""
    values, source, target = _random("odd", torch.float32, _device(backend))
    grads = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float32), ("reference", torch.float64)):
        leaf = values.to(dtype).requires_grad_()
        sides = _run(leaf, per, source, target, name)
        loss = sum(getattr(m, only).sum() + (getattr(m, only).transpose(0, 1) ** 2).sum() for m in sides.values())
        grads.append(torch.autograd.grad(loss, leaf)[0])
    assert_as_good_as(f"gradient of {only}", *grads)


@pytest.mark.parametrize("per", PER)
def test_large_scores_and_common_offset(backend, per):
    """Scores of a few hundred units after the temperature, around a large offset: no overflow, no lost digits."""
    values, source, target = _random("odd", torch.float32, _device(backend))
    values = values * 30 + 100
    runs = [
        _run(values.to(d), per, source, target, b)
        for b, d in ((backend, torch.float32), ("reference", torch.float32), ("reference", torch.float64))
    ]
    for side in runs[0]:
        for field in FLOATS:
            assert_as_good_as(f"{side} {field}", *(getattr(r[side], field) for r in runs))


@pytest.mark.parametrize("per", PER)
def test_ties_take_the_lowest_index(backend, per):
    values = torch.randint(0, 3, (2, 35, 51), device=_device(backend)).float()
    for side, m in _run(values, per, (5, 7), (3, 17), backend).items():
        assert_same_best(m.index, values if side == "target" else values.transpose(1, 2), 1)
    for m in _run(torch.zeros_like(values), per, (5, 7), (3, 17), backend).values():
        assert m.index.count_nonzero() == 0


@pytest.mark.parametrize("per", PER)
def test_excluded_cells(backend, per):
    """-inf excludes a cell; a row or column with nothing left has the defined values and gradient 0."""
    corr = torch.randn(2, 35, 51, device=_device(backend))
    corr[0, ::2] = -torch.inf
    corr[1, :, 7] = -torch.inf
    corr[1, 5, :] = -torch.inf
    truth = corr.double().requires_grad_()
    corr.requires_grad_()
    peer = corr.detach().clone().requires_grad_()
    runs = [(corr, backend), (peer, "reference"), (truth, "reference")]
    results = [_run(leaf, per, (5, 7), (3, 17), name) for leaf, name in runs]
    for side, m in results[0].items():
        for field in FLOATS:
            assert_as_good_as(f"{side} {field}", *(getattr(r[side], field) for r in results))
        empty = (corr.detach() == -torch.inf).all(1 if side == "target" else 2)
        assert empty.any()
        assert m.coords[empty].count_nonzero() == 0
        assert m.score[empty].count_nonzero() == 0
        assert m.entropy[empty].count_nonzero() == 0
        assert m.index[empty].count_nonzero() == 0
        assert (m.logsumexp[empty] == -torch.inf).all()
    grads = []
    for (leaf, _), sides in zip(runs, results, strict=True):
        total = sum(
            getattr(m, f).masked_fill(getattr(m, f).isinf(), 0).square().sum() for m in sides.values() for f in FLOATS
        )
        grads.append(torch.autograd.grad(total, leaf)[0])
    assert grads[0][corr.detach() == -torch.inf].count_nonzero() == 0
    assert_as_good_as("gradient", *grads)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("per", PER)
def test_non_finite_input_is_not_hidden(backend, per, bad):
    corr = torch.randn(1, 35, 51, device=_device(backend))
    corr[0, 20, 30] = bad
    for side, m in _run(corr, per, (5, 7), (3, 17), backend).items():
        cell, cells = (30, 35) if side == "target" else (20, 51)
        for field in ("coords", "score", "entropy"):
            value = getattr(m, field)[0]
            assert value[cell].isnan().all(), f"{side} {field}"
            assert value.isnan().reshape(value.shape[0], -1).any(1).sum() == 1, f"{side} {field}"
        assert not m.logsumexp[0, cell].isfinite()
        assert m.index.min() >= 0 and m.index.max() < cells


@pytest.mark.parametrize("per", PER)
def test_empty_batch(backend, per):
    corr = torch.zeros(0, 6, 4, device=_device(backend), requires_grad=True)
    sides = _run(corr, per, (2, 3), (2, 2), backend)
    for side, m in sides.items():
        assert m.coords.shape == (0, 4 if side == "target" else 6, 2)
    sum(m.coords.sum() for m in sides.values()).backward()
    assert corr.grad.shape == corr.shape


@pytest.mark.parametrize("per", PER)
def test_expanded_input(backend, per):
    """A correlation with stride 0 (one matrix for the whole batch)."""
    row = torch.randn(1, 35, 51, device=_device(backend))
    expected = _run(row.expand(3, -1, -1).contiguous(), per, (5, 7), (3, 17), backend)
    for side, m in _run(row.expand(3, -1, -1), per, (5, 7), (3, 17), backend).items():
        for a, b in zip(m, expected[side], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("per", PER)
def test_bit_equal_over_runs(backend, per):
    values, source, target = _random("semimatch", torch.float32, _device(backend))

    def run():
        leaf = values.clone().requires_grad_()
        sides = _run(leaf, per, source, target, backend)
        grad = torch.autograd.grad(sum(m.coords.sum() + m.entropy.sum() for m in sides.values()), leaf)
        return [*(t for m in sides.values() for t in m), *grad]

    first = run()
    for _ in range(2 if backend == "triton" and DEVICE == "cpu" else 9):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_both_equals_each_side_alone(backend):
    values, source, target = _random("odd", torch.float32, _device(backend))
    both = _run(values, "both", source, target, backend)
    for per in ("target", "source"):
        alone = _run(values, per, source, target, backend)[per]
        for field in FLOATS:
            truth = getattr(_run(values.double(), per, source, target, "reference")[per], field)
            assert_as_good_as(field, getattr(both[per], field), getattr(alone, field), truth)
        assert torch.equal(both[per].index, alone.index)


@pytest.mark.parametrize("fused", ["softmax_entropy", "soft_argmax"])
def test_single_output_functions(backend, fused):
    values, source, target = _random("odd", torch.float32, _device(backend))
    for per in ("target", "source"):
        m = smk.match(values, _grid(per, source, target), 0.2, per, backend=backend)
        if fused == "softmax_entropy":
            assert torch.equal(smk.softmax_entropy(values, 0.2, per, backend=backend), m.entropy)
        else:
            grid = _grid(per, source, target)
            assert torch.equal(smk.soft_argmax(values, grid, 0.2, per, backend=backend), m.coords)


ERRORS = [
    (dict(corr=torch.zeros(3, 4)), ValueError, r"corr: expected shape \[B,S,T\].*\(3, 4\)"),
    (dict(corr=torch.zeros(1, 6, 4, dtype=torch.int64)), TypeError, "corr: expected dtype float32"),
    (dict(corr=[[1.0]]), TypeError, "corr: expected a tensor"),
    (dict(corr=torch.zeros(1, 0, 4)), ValueError, "corr: expected at least one source and one target cell"),
    (
        dict(grid=(2, 2)),
        ValueError,
        "grid: .H, W. = .2, 2. has 4 cells, but the source side of the correlation has 6",
    ),
    (dict(grid=(2, 3), per="source"), ValueError, "the target side of the correlation has 4"),
    (dict(grid=6), TypeError, "grid: expected .H, W."),
    (dict(grid=(2, 3), per="both"), TypeError, "grid: expected .source grid, target grid."),
    (dict(temperature=0.0), ValueError, "temperature: expected a number above 0"),
    (dict(temperature=float("nan")), ValueError, "temperature: expected a finite number"),
    (dict(temperature=torch.tensor(1.0)), TypeError, "temperature: expected a number"),
    (dict(per="row"), ValueError, "per: expected one of 'target', 'source', 'both', got 'row'"),
    (dict(backend="numpy"), ValueError, "backend: expected 'auto' or one of 'reference'"),
]


@pytest.mark.parametrize(("change", "error", "message"), ERRORS, ids=[m[:30] for _, _, m in ERRORS])
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(corr=torch.zeros(1, 6, 4), grid=(2, 3), temperature=0.1, per="target") | change
    with pytest.raises(error, match=message):
        smk.match(**arguments)
