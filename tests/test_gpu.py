"""What only a GPU can show of the kernels: CUDA graphs, streams, offsets beyond 32 bits, the sanitizer's selection.

The matrix of `op_cases` runs there too, in the files it belongs to; ``make gpu-check`` runs all of it (marker `gpu`).
"""

from __future__ import annotations

import op_cases
import pytest
import torch
from op_cases import CASES, leaves, make, on_gpu
from torch import Tensor

import semimatch_kernels as smk
from semimatch_kernels import library
from semimatch_kernels.backends import reason_against
from semimatch_kernels.schemas import OPS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]

# Sizes that no block divides, with more than one block a side.
MID = {"B": 2, "SOURCE": (9, 13), "TARGET": (7, 11), "S": 117, "T": 77}


def _flat(values) -> list[Tensor]:
    values = values if isinstance(values, (tuple, list)) else (values,)
    return [t for v in values for t in (v if isinstance(v, (tuple, list)) else (v,)) if isinstance(t, Tensor)]


def _run(qualified: str, args: tuple) -> list[Tensor]:
    """Results, and gradients of their sum by the leaves where there are any."""
    outputs = _flat(getattr(library.ops, qualified).default(*args))
    carry = [o for o in outputs if o.requires_grad]
    if not carry:
        return outputs
    grads = torch.autograd.grad(carry, leaves(args), [torch.ones_like(o) for o in carry], allow_unused=True)
    return [t.detach() for t in (*outputs, *grads) if t is not None]


def _on_cpu(args):
    def moved(value):
        if isinstance(value, (list, tuple)):
            return type(value)(moved(v) for v in value)
        if isinstance(value, Tensor):
            return value.detach().cpu().requires_grad_(value.requires_grad)
        return value

    return tuple(moved(a) for a in args)


def _assert_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def mid(monkeypatch):
    for name, value in MID.items():
        monkeypatch.setattr(op_cases, name, value)


@pytest.mark.usefixtures("mid")
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize(("case", "qualified"), on_gpu())
def test_sanitized(case, qualified, layout):
    """Forward and backward once: what compute-sanitizer watches, and about the numbers of the reference on the CPU."""
    args = make(case, torch.float32, layout, True)
    actual = _run(qualified, args)
    torch.cuda.synchronize()
    for a, e in zip(actual, _run(f"{CASES[case].op}_reference", _on_cpu(args)), strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.usefixtures("mid")
@pytest.mark.parametrize(("case", "qualified"), on_gpu())
def test_cuda_graph(case, qualified):
    """Captured once, forward and backward, and replayed on other inputs: the bits of a plain call on those."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        args = make(case, torch.float32, "contiguous", True)
        for _ in range(2):  # compiles, and loads what cannot be loaded during a capture
            _run(qualified, args)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = _run(qualified, args)
        for shift in (1, 2):
            with torch.no_grad():
                for leaf in leaves(args):
                    leaf.copy_(leaf.roll(shift, -1))
            graph.replay()
            replayed = [t.clone() for t in captured]
            _assert_bits(replayed, _run(qualified, args))
    torch.cuda.synchronize()


@pytest.mark.usefixtures("mid")
@pytest.mark.parametrize(("case", "qualified"), on_gpu())
def test_runs_on_the_current_stream(case, qualified):
    """Inputs that another stream is still waiting to write are read after that, when the op runs on it."""
    args = make(case, torch.float32, "contiguous", True)
    expected = _run(qualified, args)
    inputs = leaves(args)
    values = [leaf.detach().clone() for leaf in inputs]
    with torch.no_grad():
        for leaf in inputs:
            leaf.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # about 10 ms
        with torch.no_grad():
            for leaf, value in zip(inputs, values, strict=True):
                leaf.copy_(value)
        actual = _run(qualified, args)
    stream.synchronize()
    _assert_bits(actual, expected)


# --- beyond 32 bits

FAR = 2**31 + 4099
TAKES_CORR = [p for p in on_gpu() if OPS[CASES[p.values[0]].op].schema.startswith("(Tensor corr")]
TAKES_CORR = [p for p in TAKES_CORR if "levels" not in p.values[0]]


def _memory(gibibytes: int) -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < gibibytes << 30:
        pytest.skip(f"needs {gibibytes} GiB of GPU memory, {free >> 30} GiB are free")


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["samples", "rows", "columns"])
@pytest.mark.parametrize(("case", "qualified"), TAKES_CORR)
def test_entries_beyond_32_bits_apart(case, qualified, dim, monkeypatch):
    """A correlation whose samples, rows or columns lie gigabytes apart: the bits of the same order nearby."""
    sizes = {"B": 2 if dim == 0 else 1, "SOURCE": (2, 3), "TARGET": (2, 2), "S": 6, "T": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(op_cases, name, value)
    _memory(24)
    _, *rest = make(case, torch.float16, "contiguous", False)
    values = torch.randn(sizes["B"], 6, 4).half()
    order = [dim, *(d for d in range(3) if d != dim)]
    runs = []
    for step in (64, FAR):
        strides, at = [0] * 3, 1
        for d in reversed(order[1:]):
            strides[d], at = at, at * values.shape[d]
        strides[dim] = step
        last = sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
        corr = torch.empty(last + 1, dtype=torch.float16).as_strided(values.shape, strides).copy_(values)
        runs.append(_run(qualified, (corr.requires_grad_(bool(OPS[CASES[case].op].inputs)), *rest)))
    _assert_bits(*runs)


@pytest.mark.parametrize("per", ["target", "source"])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_matrix_of_more_entries_than_32_bits_count(backend, per):
    """2.15e9 entries: the last cells, and their gradient, are those of the slice that holds them alone."""
    if reason := reason_against("match", backend, "cuda", torch.bfloat16):
        pytest.skip(f"{backend}: {reason}")
    _memory(24)
    cells, last = 46_400, 64
    assert cells * cells > 2**31
    corr = torch.randn(1, cells, cells, device="cuda", dtype=torch.bfloat16).requires_grad_()
    tail = corr.detach()[..., -last:] if per == "target" else corr.detach()[:, -last:]
    tail = tail.clone().requires_grad_()
    whole = smk.match(corr, (1, cells), per=per, backend=backend)
    alone = smk.match(tail, (1, cells), per=per, backend="reference")
    assert torch.equal(whole.index[:, -last:], alone.index)
    for name in ("coords", "score", "entropy", "logsumexp"):
        ours, truth = getattr(whole, name)[:, -last:], getattr(alone, name)
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    upstream = torch.randn_like(alone.coords)
    (expected,) = torch.autograd.grad(alone.coords, tail, upstream)
    full = torch.zeros_like(whole.coords)
    full[:, -last:] = upstream
    (grad,) = torch.autograd.grad(whole.coords, corr, full)
    grad = grad[..., -last:] if per == "target" else grad[:, -last:]
    torch.testing.assert_close(grad, expected, rtol=2e-2, atol=1e-4)
