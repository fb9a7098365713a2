"""Every differentiable op of every backend: results and gradients against float64 truth, and gradcheck.

The truth is autograd through the plain definition in float64; the peer, which sets the tolerance, the same in the dtype
at hand. (The ops' own tests go further: shapes, layouts, limits.)
"""

from __future__ import annotations

import pytest
import torch
from op_cases import CASES, DTYPES, available, leaves, make
from truth import assert_as_good_as

from semimatch_kernels import library
from semimatch_kernels.schemas import OPS


def _op(qualified):
    return getattr(library.ops, qualified).default


def _widened(args):
    """The same arguments in float64; features, scores and gradients only, not what is constant."""

    def wide(value):
        if isinstance(value, list):
            return [wide(v) for v in value]
        if isinstance(value, torch.Tensor) and value.requires_grad:
            return value.detach().double().requires_grad_()
        return torch.float64 if isinstance(value, torch.dtype) else value

    return [wide(a) for a in args]


def _carrying(case, outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [outputs[i] for i in OPS[CASES[case].op].outputs]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("case", "qualified"), available(differentiable=True))
def test_results_and_gradients(case, qualified, dtype):
    args = make(case, dtype, "transposed", True)
    definition = library.definition(CASES[case].op)
    runs = [(_op(qualified), args), (definition, make(case, dtype, "transposed", True)), (definition, _widened(args))]
    results, grads, upstream = [], [], None
    for run, run_args in runs:
        outputs = _carrying(case, run(*run_args))
        if upstream is None:
            upstream = [torch.randn(o.shape, dtype=torch.float64) for o in outputs]
        # An excluded cell has log-sum-exp -inf, which carries no gradient.
        total = sum(
            (o.double().masked_fill(o == -torch.inf, 0) * u).sum() for o, u in zip(outputs, upstream, strict=True)
        )
        results.append(outputs)
        grads.append(torch.autograd.grad(total, leaves(run_args)))
    for i, outputs in enumerate(zip(*results, strict=True)):
        assert_as_good_as(f"result {i}", *_in_units_of(outputs))
    for i, by_leaf in enumerate(zip(*grads, strict=True)):
        assert by_leaf[0].dtype == dtype
        assert_as_good_as(f"gradient {i}", *_in_units_of(by_leaf))


def _in_units_of(three):
    """The three, the peer off by one rounding of its dtype more: a result in bfloat16 is not exact when its sum is."""
    actual, peer, truth = three
    if peer.dtype in (torch.bfloat16, torch.float16):
        unit = torch.finfo(peer.dtype).eps * truth.abs().masked_fill(~truth.isfinite(), 0).max()
        peer = torch.where((peer - truth).abs() < unit, truth + unit, peer.double())
    return actual, peer, truth


@pytest.mark.parametrize(("case", "qualified"), available(differentiable=True))
def test_gradcheck(case, qualified):
    args = make(case, torch.float64, "contiguous", True)
    inputs = leaves(args)

    def function(*values):
        given = iter(values)
        filled = [
            [next(given) for _ in a] if isinstance(a, list)
            else next(given) if isinstance(a, torch.Tensor) and a.requires_grad else a
            for a in args
        ]  # fmt: skip
        # Not the log-sum-exp of -inf of a cell that is masked out: numerical differences of it are NaN.
        return tuple(o.masked_fill(o == -torch.inf, 0) for o in _carrying(case, _op(qualified)(*filled)))

    # The interpreter is slow, and `test_results_and_gradients` compares entry by entry.
    assert torch.autograd.gradcheck(function, inputs, fast_mode=qualified.endswith("_triton"))
