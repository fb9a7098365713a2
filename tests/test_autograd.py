"""The Autograd kernels of the fused ops beyond numbers: what they save, how they are called, compiled autograd."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction
from torch.profiler import profile

import semimatch_kernels as smk
from semimatch_kernels import _native, library

GRID = (2, 3)
needs_autograd = pytest.mark.skipif(
    library.AUTOGRAD_REASON is not None, reason=f"_C_autograd: {library.AUTOGRAD_REASON}"
)


def correlations(**how):
    return torch.randn(2, 6, 5, **how)


def match(corr):
    return smk.match(corr, GRID, backend="reference")


def levels(grad: bool = True):
    return [torch.randn(2, 4, 3, 3, requires_grad=grad) for _ in range(2)]


def test_profiles_graphs_and_errors_name_the_op():
    corr = correlations(requires_grad=True)
    with profile() as seen:
        coords = match(corr).coords
    name = "semimatch_kernels_match_reference"
    assert coords.grad_fn.name() == f"{name}Backward"
    assert "semimatch_kernels::match_reference" in {e.key for e in seen.key_averages()}
    coords.mul_(2)
    with pytest.raises(RuntimeError, match=f"output 0 of {name}, is at version 1"):
        coords.sum().backward()
    coords = match(corr).coords
    grad = torch.autograd.grad(coords.sum(), corr, create_graph=True)[0]
    assert grad.grad_fn.name() == "semimatch_kernels_match_backward_referenceBackward"


def test_the_graph_is_written_where_it_says():
    grad_fn = match(correlations(requires_grad=True)).coords.grad_fn
    assert isinstance(grad_fn, BackwardCFunction) == (library.AUTOGRAD_REASON is not None)


@needs_autograd
def test_autograd_in_python_passes_the_same_tests():
    """Those of this file, and what PyTorch asks of an op, of the plain definitions."""
    here, other = Path(__file__), Path(__file__).with_name("test_registration.py")
    names = ["test_opcheck", "test_gradients_of_every_shape_arrive", "test_double_backward_says_what_to_do"]
    names += ["test_results_may_be_changed_in_place"]
    some = "not cpu and not triton and not bfloat16"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", some, here]
    command += [f"{other}::{name}" for name in names]
    environment = {**os.environ, "SEMIMATCH_AUTOGRAD": "python"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout


@pytest.mark.skipif(not hasattr(torch.autograd.graph, "node_creation_hook"), reason="this torch has no such hooks")
def test_hooks_hear_of_new_nodes():
    names = []
    with torch.autograd.graph.node_creation_hook(lambda node: names.append(node.name())):
        match(correlations(requires_grad=True))
    assert "semimatch_kernels_match_referenceBackward" in names


def test_forward_mode_is_refused_below_the_library_too():
    with forward_ad.dual_level():
        corr = forward_ad.make_dual(correlations(requires_grad=True), correlations())
        with pytest.raises(NotImplementedError):
            library.ops.match_reference(corr, GRID, 0.1)


@pytest.mark.parametrize("of", ["corr", "weight"])
def test_what_is_saved_must_not_change(of):
    values = {"corr": correlations(requires_grad=True).clone(), "weight": torch.rand(2, 5)}
    loss = smk.masked_contrastive_loss(labels=torch.ones(2, 5, dtype=torch.int64), backend="reference", **values)
    values[of].detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_everything_saved_passes_the_hooks():
    src, packed = levels(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t.clone(), lambda t: t):
        corr = smk.correlation(src, levels(False), backend="reference")
    corr.sum().backward()
    assert len(packed) == 4 and all(s.grad is not None for s in src)


def test_constants_alone_make_no_graph():
    labels, weight = torch.ones(2, 5, dtype=torch.int64), torch.rand(2, 5, requires_grad=True)
    loss = library.ops.masked_contrastive_loss_reference.default
    rest = (labels, weight, None, 0.1, "mean", 0, 0.0, 0)
    assert not loss(correlations(), *rest)[0].requires_grad
    corr = correlations(requires_grad=True)
    loss(corr, *rest)[0].backward()
    assert corr.grad is not None and weight.grad is None


def test_no_grad_makes_no_graph():
    corr = correlations(requires_grad=True)
    with torch.no_grad():
        assert library.ops.match_reference(corr, GRID, 0.1)[0].grad_fn is None


@pytest.mark.parametrize("op", [match, lambda corr: smk.correlation(corr, corr, backend="reference")])
def test_no_gradient_comes_of_none(op):
    class Blocks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    corr = correlations(requires_grad=True)
    result = op(corr)
    Blocks.apply(result if isinstance(result, torch.Tensor) else result.coords).sum().backward()
    assert corr.grad is None


@pytest.mark.parametrize("backward", [True, False])
def test_nothing_is_left_for_the_garbage_collector(backward):
    def step():
        out = [smk.correlation(levels(), levels(), backend="reference"), *match(correlations(requires_grad=True))[:4]]
        if backward:
            sum(t.sum() for t in out).backward()

    step()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            step()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_compiled_autograd_takes_it_in_one_graph():
    def loss(src, trg):
        corr = smk.correlation(src, trg, backend="reference").flatten(0, -3)
        return smk.match(corr, (3, 3), backend="reference").entropy.sum()

    src, trg = levels(), levels()
    expected = torch.autograd.grad(loss(src, trg), [*src, *trg])
    torch._dynamo.reset()
    with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager", fullgraph=True)):
        loss(src, trg).backward()
    for t, truth in zip([*src, *trg], expected, strict=True):
        torch.testing.assert_close(t.grad, truth)


def test_torch_func_says_what_to_do():
    corr, definition = correlations(), library.definition("match")
    with pytest.raises(RuntimeError, match=r"torch\.func.*match_reference.*reference\.matching\.match instead"):
        torch.func.grad(lambda c: match(c).entropy.sum())(corr)
    assert torch.func.grad(lambda c: definition(c, GRID, 0.1)[2].sum())(corr).abs().max() > 0
    assert torch.func.grad(lambda c: smk.pseudo_labels(c, (GRID, (1, 5)))[1].sum() * c.sum())(corr).isfinite().all()


@needs_autograd
def test_autograd_in_cpp_needs_no_cuda():
    if not shutil.which("readelf"):
        pytest.skip("readelf is not in PATH")
    [file] = Path(smk.__file__).parent.glob("_C_autograd.*")
    needed = re.findall(r"NEEDED.*\[(.*)\]", subprocess.check_output(["readelf", "-d", file], text=True))
    assert not [name for name in needed if re.search("cuda", name)], needed


@needs_autograd
def test_autograd_in_cpp_runs_with_its_own_torch_only(monkeypatch):
    monkeypatch.setattr(_native, "autograd", None)
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    reason = _native.load_autograd()
    assert re.match(r"built for torch \d.*, this is 2\.99\.0\+cpu; remedy: rebuild with `pip install", reason)
    assert _native.autograd is None


def test_autograd_can_be_told_to_run_in_python(monkeypatch):
    monkeypatch.setenv("SEMIMATCH_AUTOGRAD", "python")
    assert _native.load_autograd() == "SEMIMATCH_AUTOGRAD=python"
    monkeypatch.setenv("SEMIMATCH_AUTOGRAD", "cpp")
    with pytest.raises(ValueError, match="SEMIMATCH_AUTOGRAD: expected auto or python, got 'cpp'"):
        _native.load_autograd()
