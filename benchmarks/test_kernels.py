"""Every op against eager, torch.compile and what else computes the same: ``make bench``.

A group (op, shape, dtype, phase) is measured at once, its peers taking turns; each peer is one entry of
pytest-benchmark's JSON. Before a peer is timed its results and gradients are compared with float64 truth: no number of
a wrong kernel.
"""

from __future__ import annotations

import functools

import pytest
import torch

from . import peers as table
from .costs import Shape, cost
from .timing import floats, interleaved, step

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")

# SemiMatch's own size, 32^2 cells as CATs++ has them, 64^2; on a GPU larger ones and half precision too.
SHAPES = {
    "semimatch": Shape(8, 256, (256, 1024) if not CUDA else (256, *[1024] * 6)),
    "n1024": Shape(8, 1024, (256,)),
}
FEATURE_SHAPES = {"n1024": Shape(2, 1024, (256,)), "n4096": Shape(1, 4096, (256,))}
if CUDA:
    SHAPES |= {"semimatch": Shape(10, 256, (256, *[1024] * 6)), "n4096": Shape(8, 4096, (768,))}
    FEATURE_SHAPES |= {"n4096": Shape(8, 4096, (1024,)), "n16384": Shape(1, 16384, (1024,))}
DTYPES = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if CUDA else {})


def _groups():
    for subject in table.SUBJECTS:
        from_features = subject.name.endswith("_features")
        for shape_name, shape in (FEATURE_SHAPES if from_features else SHAPES).items():
            for dtype in DTYPES:
                for phase in ("forward", "forward+backward"):
                    if phase == "forward" or subject.differentiable:
                        yield subject, shape_name, shape, dtype, phase


def _entries():
    for subject, shape_name, shape, dtype, phase in _groups():
        for peer in table.peers(subject, phase, DEVICE, DTYPES[dtype]):
            name = f"{subject.name}-{shape_name}-{dtype}-{phase}-{peer}"
            yield pytest.param(subject, shape_name, shape, dtype, phase, peer, id=name.replace(" ", ""))


def _check(subject, function, inputs, leaves):
    """Results and gradients of a peer against the definition in float64: no further off than twice the eager definition
    in the same dtype, and rounding; integers and masks are equal (`index` of a tie may differ in half precision)."""
    runs = []
    for run, wide in ((function, False), (subject.plain, False), (subject.plain, True)):
        given = [t.double() if wide and t.is_floating_point() else t for t in inputs]
        given = [t.clone().requires_grad_() if i < leaves else t for i, t in enumerate(given)]
        results = floats(run(*given))
        carrying = [t for t in results if t.requires_grad]
        grads = []
        if carrying:
            total = sum((t * torch.linspace(0, 1, t.numel(), device=t.device).reshape(t.shape)).sum() for t in carrying)
            grads = torch.autograd.grad(total, given[:leaves])
        runs.append([t.detach().double() for t in (*results, *grads)])
    for ours, eager, truth in zip(*runs, strict=True):
        unit = torch.finfo(inputs[0].dtype).eps
        limit = 2 * (eager - truth).abs().max() + 4 * unit * truth.abs().max().clamp(min=1e-3)
        error = (ours - truth).abs().max()
        assert error <= limit, f"{subject.name}: error {error:.2e} against float64, limit {limit:.2e}"


@functools.cache
def _measured(name: str, shape_name: str, dtype: str, phase: str, seconds: float, compiled: bool):
    subject, shape = next(
        (s, sh) for s, n, sh, d, p in _groups() if (s.name, n, d, p) == (name, shape_name, dtype, phase)
    )
    inputs = subject.inputs(shape, DEVICE, DTYPES[dtype])
    leaves = min(subject.differentiable, len(inputs))
    functions = table.peers(subject, phase, DEVICE, DTYPES[dtype])
    if not compiled:
        functions.pop("compile", None)
    for peer, function in functions.items():
        if peer.startswith("ours") or peer in subject.others:
            _check(subject, function, inputs, leaves)
    steps = {p: step(f, inputs, leaves, backward=phase != "forward") for p, f in functions.items()}
    return interleaved(steps, seconds)


@pytest.mark.parametrize(("subject", "shape_name", "shape", "dtype", "phase", "peer"), list(_entries()))
def test_kernel(benchmark, request, subject, shape_name, shape, dtype, phase, peer):
    compiled = not request.config.getoption("--no-compile")
    if peer == "compile" and not compiled:
        pytest.skip("--no-compile")
    seconds = request.config.getoption("--seconds")
    samples = _measured(subject.name, shape_name, dtype, phase, seconds, compiled)[peer]
    least = cost(subject.name, phase, shape)
    benchmark.group = f"{subject.name} {shape_name} {dtype} {phase}"
    benchmark.extra_info |= {
        "op": subject.name, "shape": shape_name, "batch": shape.batch, "cells": shape.cells, "dtype": dtype,
        "channels": list(shape.channels), "phase": phase, "peer": peer, "bytes": least.bytes, "flops": least.flops,
    }  # fmt: skip
    # The rounds were timed already, in turn with the other peers: pytest-benchmark stores them.
    benchmark._mode = "interleaved"
    stats = benchmark._make_stats(1)
    for sample in samples:
        stats.update(sample)
