"""Every op of every backend: no uninitialised memory, the same bits at every run, honest NaN, inputs left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import op_cases
import pytest
import torch
from op_cases import CASES, available, leaves, make
from torch import Tensor

from semimatch_kernels import library
from semimatch_kernels.schemas import OPS

# Sizes that no block divides, with more than one block a side.
MID = {"B": 2, "SOURCE": (9, 13), "TARGET": (7, 11), "S": 117, "T": 77}
# The native columns are shared out in wide pieces under one thread, in narrow ones under two.
SHARED_OUT = {"B": 2, "SOURCE": (15, 20), "TARGET": (30, 50), "S": 300, "T": 1500}


@pytest.fixture
def sizes(monkeypatch):
    """sizes(MID) gives the cases another size."""

    def change(to: dict) -> None:
        for name, value in to.items():
            monkeypatch.setattr(op_cases, name, value)

    return change


@pytest.fixture
def poison():
    """poison(True): what PyTorch allocates uninitialised is NaN, or the largest integer."""

    def switch(on: bool) -> None:
        torch.use_deterministic_algorithms(on)
        torch.utils.deterministic.fill_uninitialized_memory = on

    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    switch(False)
    yield switch
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def _op(qualified):
    return getattr(library.ops, qualified).default


def _flat(values) -> list[Tensor]:
    values = values if isinstance(values, (tuple, list)) else (values,)
    return [t for v in values for t in (v if isinstance(v, (tuple, list)) else (v,)) if isinstance(t, Tensor)]


def _run(qualified: str, args: tuple) -> tuple[list[Tensor], list[Tensor]]:
    """Results of the op, and its gradients given the same random gradients of the results at every call."""
    outputs = _flat(_op(qualified)(*args))
    carry = [o for o in outputs if o.requires_grad]
    if not carry or not leaves(args):
        return [o.detach() for o in outputs], []
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)
    upstream = [torch.rand(o.shape, generator=generator).to(o.dtype) + 0.5 for o in carry]
    kept = [u.clone() for u in upstream]
    grads = torch.autograd.grad(carry, leaves(args), upstream, allow_unused=True)
    assert all(torch.equal(u, k) and u._version == 0 for u, k in zip(upstream, kept, strict=True))
    return [o.detach() for o in outputs], [g for g in grads if g is not None]


def _all(case: str, qualified: str, layout: str = "contiguous", seed: int = 0) -> list[Tensor]:
    """Results and gradients; ``seed`` is that of PyTorch while the op runs."""
    args = make(case, torch.float32, layout, True)
    torch.manual_seed(seed)
    outputs, grads = _run(qualified, args)
    return outputs + grads


def _assert_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=0, equal_nan=True)


# --- uninitialised memory


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("size", [{}, MID], ids=["small", "mid"])
@pytest.mark.parametrize(("case", "qualified"), available())
def test_no_result_depends_on_uninitialised_memory(case, qualified, size, layout, sizes, poison):
    """The same bits where every allocation starts as NaN or the largest integer."""
    sizes(size)
    expected = _all(case, qualified, layout)
    poison(True)
    _assert_bits(_all(case, qualified, layout), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_the_poison_reaches_the_backends(backend, poison):
    """PyTorch fills what the kernels allocate: inside the op there are fills below allocations, and none without."""
    qualified = {"cpu": "match_both"}.get(backend, f"match_both_{backend}")
    [skips] = [p.marks for p in available(gpu=False) if p.values == ("match_both", qualified)]
    if skips and skips[0].args[0]:
        pytest.skip(skips[0].kwargs["reason"])
    args = make("match_both", torch.float32, "contiguous", False)
    if backend == "reference":  # its match_both leaves nothing uninitialised; the gradient by features does
        qualified = "match_features_reference"
        args = make("match_features", torch.float32, "contiguous", True)

    def fills() -> int:
        with torch.autograd.profiler.profile() as profile:
            _run(qualified, args)
        names = ("aten::empty", "aten::new_empty")
        return sum(
            e.name == "aten::fill_" and e.cpu_parent is not None and e.cpu_parent.name.startswith(names)
            for e in profile.function_events
        )

    assert fills() == 0
    poison(True)
    assert torch.empty(3).isnan().all() and (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
    assert fills() >= (1 if backend == "reference" else 10)


_PERTURBED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_hygiene as t
from op_cases import available
t.op_cases.__dict__.update(t.MID)
cases = [p.values for p in available(True, gpu=False) if not p.values[1].endswith(("_reference", "_triton"))]
results = [t._all(*case, layout) for case in cases for layout in ("contiguous", "transposed")]
torch.save((torch.empty(1 << 16).min().item(), cases, results), sys.argv[2])
"""


@pytest.mark.skipif(library.CPU_REASON is not None, reason=f"cpu: {library.CPU_REASON}")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc's malloc")
def test_native_scratch_memory_is_written_before_it_is_read(tmp_path):
    """The scratch memory of the C++ kernels does not come from PyTorch: glibc fills what it hands out with 0x7f."""
    results = []
    for perturb in ({}, {"MALLOC_PERTURB_": "128", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}):
        path = tmp_path / f"results{len(perturb)}.pt"
        command = [sys.executable, "-c", _PERTURBED, str(Path(__file__).parent), str(path)]
        subprocess.run(command, env=os.environ | perturb, check=True, timeout=300)
        results.append(torch.load(path))
    (_, cases, plain), (filled, _, perturbed) = results
    if filled < 1e38:
        pytest.skip("this C library does not fill memory on request")
    assert cases
    for a, e in zip(perturbed, plain, strict=True):
        _assert_bits(a, e)


# --- determinism


@pytest.mark.parametrize(("case", "qualified"), available())
def test_bit_equal_over_runs(case, qualified, sizes):
    sizes(MID)
    first = _all(case, qualified)
    for seed in range(1, 3 if qualified.endswith("_triton") else 10):
        _assert_bits(_all(case, qualified, seed=seed), first)


# `correlation` leaves the order of its sums to PyTorch's matrix product, which may take another for other threads.
NATIVE = [
    p
    for p in available(True, gpu=False)
    if not p.values[1].endswith(("_reference", "_triton")) and not p.values[0].startswith("correlation")
]


@pytest.mark.parametrize("size", [MID, SHARED_OUT], ids=["mid", "shared out"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize(("case", "qualified"), NATIVE)
def test_native_bits_do_not_depend_on_the_threads(case, qualified, layout, size, sizes):
    sizes(size)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(_all(case, qualified, layout))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        _assert_bits(run, runs[0])


# --- inputs


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
@pytest.mark.parametrize(("case", "qualified"), available())
def test_inputs_are_never_modified(case, qualified, layout):
    """Neither by the op nor by its gradient, values and version counters; what lies between the rows neither."""
    args = make(case, torch.float32, layout, True)
    tensors = _flat(args)
    storages = [t.detach().as_strided((t.untyped_storage().size() // t.element_size(),), (1,), 0) for t in tensors]
    before = [(s.clone(), t._version) for s, t in zip(storages, tensors, strict=True)]
    _run(qualified, args)
    for (values, version), storage, tensor in zip(before, storages, tensors, strict=True):
        assert tensor._version == version
        torch.testing.assert_close(storage, values, rtol=0, atol=0, equal_nan=True)


# --- NaN

_COLUMN_OPS = ("match", "soft_argmax", "masked_contrastive_loss")


def _reached(shape: torch.Size, s: int, t: int, kind: str) -> Tensor:
    """Where sample 0 of a result is NaN: "column" of [B,T,...], "row" of [B,S,...], "cross" of [B,S,T], "all"."""
    mask = torch.zeros(shape, dtype=torch.bool)
    if not shape:
        return ~mask
    if kind == "column":
        mask[0, t] = True
    elif kind == "row":
        mask[0, s] = True
    elif kind == "cross":
        mask[0, s] = mask[0, :, t] = True
    elif kind == "column of a matrix":
        mask[0, :, t] = True
    elif kind == "all":
        mask[0] = True
    return mask


def _assert_nan(name: str, actual: Tensor, clean: Tensor, reached: Tensor, exactly: bool = True) -> None:
    """NaN where ``reached``; the bits of the clean run elsewhere (or, not ``exactly``, in the other samples)."""
    assert actual[reached].isnan().all(), f"{name}: hidden"
    rest = ~reached if exactly else torch.zeros_like(reached).index_fill_(0, torch.arange(1, reached.shape[0]), True)
    assert torch.equal(actual[rest], clean[rest]), f"{name}: reaches others"


def _with_nan(case: str, qualified: str, side: int, cell: tuple) -> tuple:
    """(clean results, clean gradients, results, gradients): with a NaN at ``cell`` of floating input ``side``."""
    runs = []
    for bad in (False, True):
        args = make(case, torch.float32, "contiguous", False)
        for value in _flat(args) if bad else ():
            if value is _flat(args)[side]:
                value[cell] = torch.nan
        wanted = set(OPS[CASES[case].op].inputs) or {0}
        for i in wanted:
            for value in _flat((args[i],)):
                value.requires_grad_()
        runs += _run(qualified, args)
    return tuple(runs)


NAN_CASES = [p for p in available(True) if not any(w in p.values[0] for w in ("features", "correlation", "levels"))]


@pytest.mark.parametrize(("case", "qualified"), NAN_CASES)
def test_a_nan_score_reaches_its_column_and_row_and_no_more(case, qualified, sizes):
    sizes(MID)
    op, s, t = CASES[case].op, 40, 0  # cell 0 always counts
    clean, clean_grads, outputs, grads = _with_nan(case, qualified, 0, (0, s, t))
    if op in _COLUMN_OPS:
        kinds, by_corr, exactly = ["column"] * len(outputs), "column of a matrix", True
    elif op == "match_both":
        kinds, by_corr, exactly = ["column"] * 5 + ["row"] * 5, "cross", True
    elif op == "dual_softmax":
        kinds, by_corr, exactly = ["cross", "column", "row"], "cross", case.endswith("log")
    else:
        kinds, by_corr, exactly = ["cross", "row", "column"], "cross", False
    for i, (actual, before, kind) in enumerate(zip(outputs, clean, kinds, strict=True)):
        reached = _reached(actual.shape, s, t, kind)
        if actual.is_floating_point():
            _assert_nan(f"result {i}", actual, before, reached)
        elif actual.dim() == 2:  # an index: any cell there, the same elsewhere
            assert torch.equal(actual[~reached], before[~reached])
            assert actual.min() >= 0 and actual.max() < max(op_cases.S, op_cases.T)
    _assert_nan("gradient", grads[0], clean_grads[0], _reached(grads[0].shape, s, t, by_corr), exactly)


FEATURES = [p for p in available(True) if "features" in p.values[0]]


@pytest.mark.parametrize("side", [0, 1], ids=["src", "trg"])
@pytest.mark.parametrize(("case", "qualified"), FEATURES)
def test_a_nan_feature_reaches_the_cells_that_see_it(case, qualified, side, sizes):
    """One of the target cell: its own column; one of a source cell: every column. The gradients accordingly."""
    sizes(MID)
    cell = 0  # counts, and is in no mask's gap
    clean, clean_grads, outputs, grads = _with_nan(case, qualified, side, (0, 1, cell))
    results = ["column", "all"][side == 0]
    for i, (actual, before) in enumerate(zip(outputs, clean, strict=True)):
        if actual.is_floating_point():
            reached = _reached(actual.shape, 0, cell, results)
            if "loss" in case and side == 0 and actual.dim():  # 0 outside the mask
                reached &= before != 0
                reached |= _reached(actual.shape, 0, cell, "column")
            elif "masks" in case or "soft_argmax" in case:  # cells that are not there stay as they are
                target_mask = make(case, torch.float32, "contiguous", False)[3]
                reached &= target_mask.reshape(target_mask.shape + (1,) * (actual.dim() - 2))
            _assert_nan(f"result {i}", actual, before, reached)
    own, other = grads[side], grads[1 - side]
    assert own[0, :, cell].isnan().all(), "the gradient of the cell itself is hidden"
    assert other[0].isnan().any(), "the gradient of the cells it meets is hidden"
    assert torch.equal(own[1:], clean_grads[side][1:]) and torch.equal(other[1:], clean_grads[1 - side][1:])


@pytest.mark.parametrize("side", [0, 1], ids=["src", "trg"])
@pytest.mark.parametrize(("case", "qualified"), [p for p in available(True) if p.values[0].startswith("correlation")])
def test_a_nan_feature_reaches_its_row_or_column_of_the_correlation(case, qualified, side, sizes):
    """In its level alone, through relu and power too."""
    sizes(MID)
    clean, clean_grads, outputs, grads = _with_nan(case, qualified, 2 * side, (0, 1, 5))
    reached = torch.zeros_like(outputs[0], dtype=torch.bool)
    reached[0, 0].select(side, 5).fill_(True)
    _assert_nan("correlation", outputs[0], clean[0], reached)
    own, other = (0, 2) if side == 0 else (2, 0)
    assert grads[own][0, :, 5].isnan().all() and grads[other][0].isnan().all()
    for i in range(4):
        assert torch.equal(grads[i][1:], clean_grads[i][1:]), "reaches another sample"
    for i in (1, 3):
        assert torch.equal(grads[i], clean_grads[i]), "reaches another level"


@pytest.mark.parametrize("case", ["pseudo_labels", "pseudo_labels, plain"])
def test_a_nan_keeps_the_cell_out_of_the_pseudo_labels(case):
    """And is seen in score, weight and entropy; a threshold of 0 does not let it in."""
    args = list(make(case, torch.float32, "contiguous", False))
    args[4], args[6:9], args[13:] = 0.0, [None, None, False], [None, None]
    clean = _op("pseudo_labels_reference")(*args)
    assert clean[2].all()
    args[0][0, 3, 2] = torch.nan
    labels, weight, mask, score, entropy = _op("pseudo_labels_reference")(*args)
    reached = _reached(mask.shape, 3, 2, "column")
    assert torch.equal(mask, ~reached)
    assert torch.equal(labels[~reached], clean[0][~reached]) and labels.min() >= 0 and labels.max() < op_cases.S
    for actual, before in ((weight, clean[1]), (score, clean[3]), (entropy, clean[4])):
        _assert_nan("pseudo labels", actual, before, reached)
