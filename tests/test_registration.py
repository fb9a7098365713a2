"""The fused ops as PyTorch sees them: opcheck, one graph under torch.compile, autocast, double backward."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

import semimatch_kernels as smk
from semimatch_kernels import library

GRIDS = ((2, 3), (2, 2))


def _variants():
    reasons = {
        "": library.CPU_REASON,
        "_triton": library.TRITON_REASON
        or (None if library.TRITON_INTERPRET else "on the CPU it needs TRITON_INTERPRET=1"),
    }
    return [
        pytest.param(suffix, id=name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
        for name, (suffix, reason) in zip(("native", "triton"), reasons.items(), strict=True)
    ]


def _layout(layout, dtype):
    base = torch.randn(2, 6, 4, dtype=torch.float64).to(dtype)
    return {
        "contiguous": base,
        "transposed": base.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": torch.randn(2, 6, 9, dtype=torch.float64).to(dtype)[:, :, 2:6],
        "expanded": base[:1].expand(2, -1, -1),
        "empty": base[:0],
    }[layout]


@pytest.mark.parametrize("suffix", _variants())
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded", "empty"])
def test_opcheck(suffix, grad, dtype, layout):
    corr = _layout(layout, dtype).requires_grad_(grad)
    torch.library.opcheck(getattr(library.ops, f"match{suffix}"), (corr, GRIDS[0], 0.3))
    torch.library.opcheck(getattr(library.ops, f"match_both{suffix}"), (corr, *GRIDS, 0.3))


@pytest.mark.parametrize("suffix", _variants())
def test_opcheck_of_the_backwards(suffix):
    corr = _layout("transposed", torch.float32)
    one = getattr(library.ops, f"match{suffix}")(corr, GRIDS[0], 0.3)
    both = getattr(library.ops, f"match_both{suffix}")(corr, *GRIDS, 0.3)
    utilities = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(
        getattr(library.ops, f"match_backward{suffix}"),
        (corr, GRIDS[0], 0.3, *one, torch.randn_like(one[0]), None, torch.ones(()).expand_as(one[2]), None),
        test_utils=utilities,
    )
    torch.library.opcheck(
        getattr(library.ops, f"match_both_backward{suffix}"),
        (
            corr,
            *GRIDS,
            0.3,
            *both,
            None,
            torch.randn_like(both[1]),
            None,
            None,
            torch.randn_like(both[5]),
            *[None] * 3,
        ),
        test_utils=utilities,
    )


@pytest.mark.parametrize("suffix", _variants())
@pytest.mark.parametrize("per", ["target", "source", "both"])
def test_compiles_to_one_graph(suffix, per):
    """fullgraph forward and backward, same numbers as eager, and one compilation for every batch size and number of
    cells on the other side. The grid is a constant of the graph, and with it the side that is reduced over."""
    backend = "triton" if suffix else "cpu"
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    grid = {"target": (2, 3), "source": (2, 2), "both": ((2, 3), (2, 2))}[per]

    def loss(corr):
        out = smk.match(corr, grid, 0.3, per, backend=backend)
        return sum(m.coords.square().sum() + m.entropy.sum() for m in (out if per == "both" else (out,)))

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch, more in ((2, 0), (3, 1), (5, 4)):
        corr = torch.randn(batch, 6 + more * (per == "source"), 4 + more * (per == "target"))
        leaves = [corr.clone().requires_grad_() for _ in range(2)]
        values = [f(leaf) for f, leaf in zip((loss, compiled), leaves, strict=True)]
        torch.testing.assert_close(values[0], values[1])
        for value in values:
            value.backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert counter.frame_count == 1, f"compiled {counter.frame_count} times"


@pytest.mark.parametrize("suffix", _variants())
def test_autocast_changes_nothing(suffix):
    """The op computes in float32 or wider whatever the input: under autocast it gives the same numbers."""
    backend = "triton" if suffix else "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        corr = torch.randn(2, 6, 4, dtype=dtype, requires_grad=True)
        outside = smk.match(corr, (2, 3), backend=backend)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = smk.match(corr, (2, 3), backend=backend)
            reference = smk.match(corr, (2, 3), backend="reference")
        for a, b, c in zip(outside, inside, reference, strict=True):
            assert torch.equal(a, b)
            assert a.dtype == c.dtype


@pytest.mark.parametrize("suffix", _variants())
def test_double_backward_says_what_to_do(suffix):
    backend = "triton" if suffix else "cpu"
    corr = torch.randn(1, 6, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(smk.match(corr, (2, 3), backend=backend).coords.sum(), corr, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward.*backend='reference'"):
        grad.sum().backward()


def test_double_backward_in_the_reference():
    corr = torch.randn(1, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda c: smk.match(c, (2, 3), 1.0, backend="reference").coords, (corr,))
