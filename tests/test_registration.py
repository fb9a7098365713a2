"""The fused ops as PyTorch sees them: opcheck, vmap, autocast, double backward, for every op of every backend."""

from __future__ import annotations

import itertools

import pytest
import torch
from op_cases import CASES, DTYPES, LAYOUTS, available, leaves, make, summed

from semimatch_kernels import library, schemas
from semimatch_kernels.schemas import COMPOSITES, OPS

UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def _op(qualified):
    return getattr(library.ops, qualified).default


def test_every_op_has_a_case():
    assert {case.op for case in CASES.values()} == {n for n in OPS if not n.endswith("_backward")} | set(COMPOSITES)


def _opchecks():
    """Every op of every backend in all dtypes and layouts; interpreted kernels, which are slow, in all of either."""
    for param in available():
        case, qualified = param.values
        for dtype, layout in itertools.product(DTYPES, LAYOUTS):
            if qualified.endswith("_triton") and dtype != torch.float32 and layout != "contiguous":
                continue
            name = f"{param.id}-{dtype}-{layout}"
            yield pytest.param(case, qualified, dtype, layout, id=name, marks=param.marks)


def _utilities(qualified, dtype, layout):
    """All four; tracing under AOTAutograd, which costs five times the rest, once a dtype and once a layout of the
    reference, whose rules the other backends share, and once for each of those."""
    if not qualified.endswith("_reference"):
        return UTILITIES if (dtype, layout) == (torch.float32, "contiguous") else UTILITIES[:3]
    return UTILITIES if dtype == torch.float32 or layout == "transposed" else UTILITIES[:3]


@pytest.mark.parametrize(("case", "qualified", "dtype", "layout"), list(_opchecks()))
def test_opcheck(case, qualified, dtype, layout):
    """The four utilities, without and with gradient: the schema tells the truth, autograd is registered, the fake
    kernel agrees in shape, dtype and strides, and the op traces under AOTAutograd with dynamic shapes."""
    for grad in (False, True):
        args = make(case, dtype, layout, grad)
        torch.library.opcheck(_op(qualified), args, test_utils=_utilities(qualified, dtype, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "qualified"), available(differentiable=True))
def test_opcheck_of_the_backward(case, qualified, layout):
    """The same for the op's gradient, as autograd calls it: with an expanded gradient for every second result and none
    for one of several."""
    op, args = CASES[case], make(case, torch.float32, layout, False)
    spec = OPS[op.op]
    outputs = _op(qualified)(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [torch.ones((), dtype=outputs[i].dtype).expand_as(outputs[i]) for i in spec.outputs]
    grads[::2] = [torch.randn_like(g) for g in grads[::2]]
    if len(grads) > 1:
        grads[1] = None
    backward = qualified.replace(op.op, f"{op.op}_backward", 1)
    utilities = [u for u in _utilities(qualified, torch.float32, layout) if u != "test_autograd_registration"]
    torch.library.opcheck(_op(backward), (*args, *(outputs[i] for i in spec.saved), *grads), test_utils=utilities)


@pytest.mark.parametrize(("case", "qualified"), available(differentiable=True))
def test_gradients_of_every_shape_arrive(case, qualified):
    """The gradient of ``.sum()`` (expanded, stride 0) and of a transposed result, against autograd through the plain
    definition."""
    args = make(case, torch.float64, "contiguous", True)
    definition = library.definition(CASES[case].op)

    def transposed(output):
        turned = output.transpose(0, -1) if output.dim() else output
        return (turned * torch.arange(output.numel()).reshape(turned.shape)).sum()

    for each in (torch.sum, transposed):
        grads = []
        for run in (_op(qualified), definition):
            grads.append(torch.autograd.grad(summed(case, run(*args), each), leaves(args)))
        for ours, truth in zip(*grads, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("case", "qualified"), available(differentiable=True))
def test_results_may_be_changed_in_place(case, qualified):
    """Results are no views, of whatever a kernel formed them in: a view that is changed loses its gradient."""
    args, spec = make(case, torch.float64, "contiguous", True), OPS[CASES[case].op]
    grads = []
    for changed in (False, True):
        outputs = _op(qualified)(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        assert not any(output._is_view() for output in outputs)
        for i in set(spec.outputs) - set(spec.saved) if changed else ():
            outputs[i].detach().mul_(1)
        grads.append(torch.autograd.grad(summed(case, outputs), leaves(args)))
    for before, after in zip(*grads, strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("in_dims", ["first", "last"])
@pytest.mark.parametrize(("case", "qualified"), available())
def test_vmap(case, qualified, in_dims):
    """vmap over a new dimension, of the first tensor alone or of all of them, equals a loop; gradients too."""
    args = make(case, torch.float64, "contiguous", False)
    tensors = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    if not tensors:  # lists of levels
        tensors = [0, 1]
    mapped = tensors[:1] if in_dims == "first" else tensors
    size, dim = 3, 0 if in_dims == "first" else -1

    def varied(value, k):
        if isinstance(value, list):
            return [varied(v, k) for v in value]
        return value + 0.1 * k if value.is_floating_point() else value.roll(k, -1)

    samples = [[varied(a, k) if i in mapped else a for i, a in enumerate(args)] for k in range(size)]

    def stack(values):
        if isinstance(values[0], list):
            return [stack(v) for v in zip(*values, strict=True)]
        return torch.stack(values, dim).requires_grad_(values[0].is_floating_point())

    stacked = [stack([s[i] for s in samples]) if i in mapped else a for i, a in enumerate(args)]
    op = _op(qualified)
    out = torch.vmap(op, in_dims=tuple(dim if i in mapped else None for i in range(len(args))))(*stacked)
    loops = [op(*s) for s in samples]
    as_tuple = [o if isinstance(o, tuple) else (o,) for o in (out, *loops)]
    for i, result in enumerate(as_tuple[0]):
        torch.testing.assert_close(result, torch.stack([loop[i] for loop in as_tuple[1:]]))
    if CASES[case].op in OPS and not OPS[CASES[case].op].inputs:
        return
    inputs = leaves(stacked)
    total = summed(case, out)
    if not total.requires_grad:
        return
    grads = torch.autograd.grad(total, inputs, allow_unused=True)
    for k, sample in enumerate(samples):
        fresh = [
            a if i not in mapped
            else [t.clone().requires_grad_() for t in a] if isinstance(a, list)
            else a.clone().requires_grad_(a.is_floating_point())
            for i, a in enumerate(sample)
        ]  # fmt: skip
        expected = torch.autograd.grad(summed(case, op(*fresh)), leaves(fresh), allow_unused=True)
        for ours, truth in zip(grads, expected, strict=True):
            assert (ours is None) == (truth is None)
            if truth is not None:
                torch.testing.assert_close(ours.select(dim, k), truth)


@pytest.mark.parametrize(("case", "qualified"), available(differentiable=True))
def test_vmap_of_the_backward(case, qualified):
    """Several upstream gradients at once, as Jacobians ask for them, equal one after the other."""
    args = make(case, torch.float64, "contiguous", True)
    outputs = _op(qualified)(*args)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    outputs = [outputs[i] for i in OPS[CASES[case].op].outputs]
    upstream = [torch.randn(3, *o.shape, dtype=o.dtype) for o in outputs]

    def pulled_back(*vectors):
        return torch.autograd.grad(outputs, leaves(args), vectors, retain_graph=True)

    together = torch.vmap(pulled_back)(*upstream)
    for k in range(3):
        for ours, truth in zip(together, pulled_back(*[u[k] for u in upstream]), strict=True):
            torch.testing.assert_close(ours[k], truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("case", "qualified"), available())
def test_autocast_changes_nothing(case, qualified, dtype):
    """The autocast rule: inputs as they are, sums in float32 or wider, so the same bits inside and outside."""
    args = make(case, dtype, "contiguous", False)
    outside = _op(qualified)(*args)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        inside = _op(qualified)(*args)
    for a, b in zip(*([o] if isinstance(o, torch.Tensor) else o for o in (outside, inside)), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize(("case", "qualified"), available(differentiable=True))
def test_double_backward_says_what_to_do(case, qualified):
    args = make(case, torch.float32, "contiguous", True)
    grad = torch.autograd.grad(summed(case, _op(qualified)(*args)), leaves(args), create_graph=True)[0]
    with pytest.raises(RuntimeError, match=rf"double backward.*reference\.\w+\.{CASES[case].op} instead"):
        grad.square().sum().backward()


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.op in OPS and OPS[case.op].inputs])
def test_the_plain_definition_is_differentiable_twice(case):
    args = make(case, torch.float64, "contiguous", True)
    total = summed(case, library.definition(CASES[case].op)(*args))
    grads = torch.autograd.grad(total, leaves(args), create_graph=True)
    again = torch.autograd.grad(sum(g.square().sum() for g in grads), leaves(args))
    assert all(g.isfinite().all() for g in again) and any(g.abs().max() > 0 for g in again)


def test_names_of_the_ops():
    for name, op in schemas.OPS.items():
        for backend in ("reference", *op.backends):
            assert str(_op(schemas.backend_name(name, backend))._schema).startswith(f"semimatch_kernels::{name}")
