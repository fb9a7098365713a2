"""torch.compile and torch.export of the public functions: one graph, dynamic shapes compiled once, the same numbers."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

import semimatch_kernels as smk
from semimatch_kernels.backends import reason_against

BOTH = ("source", "target")


def _grids(src, trg):
    return tuple(src.shape[2:]), tuple(trg.shape[2:])


def _corr(src, trg):
    return smk.correlation(src, trg, backend="reference")


def _floats(result):
    """The differentiable tensors of a result, however nested."""
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    return [t for r in result for t in _floats(r)]


def _labels(src, trg):
    """Labels [B,T] that depend on nothing but the shapes."""
    sources, targets = src.shape[2] * src.shape[3], trg.shape[2] * trg.shape[3]
    return (torch.arange(targets) * 7 % sources).expand(src.shape[0], -1)


def _pairs(src, trg):
    labels = _labels(src, trg)
    return labels, _labels(trg, src)


#: name -> function of two feature maps [B,C,*grid] of any sizes
FUNCTIONS = {
    "correlation": lambda s, t: smk.correlation([s, s], [t, t], "clamped", relu=True, power=2, mutual=True),
    "mutual_filter": lambda s, t: smk.mutual_filter(_corr(s, t), eps=1e-5),
    "mutual_mask": lambda s, t: smk.mutual_mask(_corr(s, t)).float() * _corr(s, t),
    "match target": lambda s, t: smk.match(_corr(s, t), s.shape[2:], coordinates=smk.Pixels(16)),
    "match source": lambda s, t: smk.match(_corr(s, t), t.shape[2:], per="source", coordinates="centers"),
    "match both": lambda s, t: smk.match(_corr(s, t), _grids(s, t), per="both"),
    "match_features": lambda s, t: smk.match_features(s, t, _grids(s, t), per="both", coordinates="cells"),
    "soft_argmax": lambda s, t: smk.soft_argmax(_corr(s, t), s.shape[2:], window=smk.GaussianWindow(2.0)),
    "soft_argmax_features": lambda s, t: smk.soft_argmax_features(s, t, s.shape[2:], window=smk.HardWindow(1)),
    "softmax_entropy": lambda s, t: smk.softmax_entropy(_corr(s, t), per="both"),
    "softmax_entropy_features": lambda s, t: smk.softmax_entropy_features(s, t),
    "dual_softmax": lambda s, t: smk.dual_softmax(_corr(s, t)),
    "dual_softmax_features": lambda s, t: smk.dual_softmax_features(s, t, _labels(s, t)[:, :1], _labels(t, s)[:, :1]),
    "masked_contrastive_loss": lambda s, t: smk.masked_contrastive_loss(_corr(s, t), _pairs(s, t), per="both"),
    "masked_contrastive_loss smoothed": lambda s, t: smk.masked_contrastive_loss(
        _corr(s, t), _labels(s, t), smoothing=smk.GaussianTarget(1.0, tuple(s.shape[2:]))
    ),
    "masked_contrastive_loss_features": lambda s, t: smk.masked_contrastive_loss_features(s, t, _labels(s, t)),
    "forward_backward_mask": lambda s, t: (
        smk.forward_backward_mask(_labels(s, t), _labels(t, s), _grids(s, t)).float() * s.sum()
    ),
    "pseudo_labels": lambda s, t: smk.pseudo_labels(_corr(s, t), _grids(s, t))[1] * s.sum(),
    "warp": lambda s, t: smk.warp(s, 0.1 * s.mean((1, 2, 3))[:, None].expand(-1, 24)),
    "warp_lookup": lambda s, t: smk.warp_lookup(0.1 * torch.ones(s.shape[0], 24), s.shape[2:])[1].float() * s.sum(),
    "sparse_epe": lambda s, t: smk.sparse_epe(s[:, :2], torch.ones_like(s[:, :2])),
}
FUSED = ("match target", "match source", "match both", "softmax_entropy")  # those that `SEMIMATCH_BACKEND` may move


def test_every_op_is_here():
    from semimatch_kernels.backends import OPS

    assert {name.split()[0] for name in FUNCTIONS} == {op.split()[0] for op in OPS}


# No two sizes of the first are equal: the compiler takes equal sizes for one.
SIZES = ((2, (3, 4), (5, 7)), (3, (4, 6), (3, 7)), (5, (7, 5), (4, 4)))


def _inputs(batch, source, target):
    return torch.randn(batch, 11, *source), torch.randn(batch, 11, *target)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_graph_for_all_sizes(name):
    """fullgraph, forward and backward, the numbers of eager; one compilation for every batch and every grid."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = FUNCTIONS[name]

    def loss(src, trg):
        return sum(t.square().sum() for t in _floats(function(src, trg)))

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    first = 0
    for size in SIZES:
        inputs = _inputs(*size)
        values, grads = [], []
        for f in (loss, compiled):
            leaves = [t.clone().requires_grad_() for t in inputs]
            values.append(f(*leaves))
            grads.append(torch.autograd.grad(values[-1], leaves, allow_unused=True))
        torch.testing.assert_close(*values)
        for a, b in zip(*grads, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)
        first = first or counter.frame_count  # two where the compiler takes a default argument for dynamic first
        assert counter.frame_count == first, f"compiled again for {size}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_export(name):
    """torch.export with dynamic batch and grids; the exported program runs on sizes it has not seen."""
    function = FUNCTIONS[name]

    class Module(torch.nn.Module):
        def forward(self, src, trg):
            return tuple(_floats(function(src, trg)))

    dims = {i: torch.export.Dim.AUTO for i in (0, 2, 3)}
    program = torch.export.export(Module(), _inputs(*SIZES[0]), dynamic_shapes=(dims, dims), strict=False)
    inputs = _inputs(4, (6, 5), (4, 8))
    for a, b in zip(program.module()(*inputs), Module()(*inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("per", ["target", "source", "both"])
def test_fused_backends_compile_to_one_graph(backend, per):
    reason = reason_against("match", backend, "cpu", torch.float32)
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(corr, source, target):
        grid = {"target": source, "source": target, "both": (source, target)}[per]
        out = smk.match(corr, grid, 0.3, per, backend=backend)
        return sum(m.coords.square().sum() + m.entropy.sum() for m in (out if per == "both" else (out,)))

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for batch, source, target in SIZES:
        corr = torch.randn(batch, source[0] * source[1], target[0] * target[1])
        leaves = [corr.clone().requires_grad_() for _ in range(2)]
        values = [f(leaf, source, target) for f, leaf in zip((loss, compiled), leaves, strict=True)]
        torch.testing.assert_close(values[0], values[1])
        for value in values:
            value.backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert counter.frame_count == 1, f"compiled {counter.frame_count} times"
