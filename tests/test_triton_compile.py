"""Every Triton kernel in every shipped configuration compiles for GPUs that are not here, within limits."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aot
import pytest
import torch
from truth import assert_as_good_as

from semimatch_kernels import library, reference
from semimatch_kernels.triton import configs

CAPABILITIES = sorted(configs.ARCHITECTURES)


@pytest.fixture(scope="session")
def compiled() -> list[dict]:
    """What the kernels need, compiled in a process of its own: in this one they may be interpreted."""
    if library.TRITON_REASON is not None:
        pytest.skip(library.TRITON_REASON)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(aot.__file__)), *map(str, CAPABILITIES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_shipped_configuration_compiles(compiled, capability):
    found = {c["case"] for c in compiled if c["capability"] == capability}
    assert found == {str(case) for case in aot.cases(capability)}


def test_no_registers_are_spilled(compiled):
    spilling = [
        f"{c['case']}: {c['stack']} bytes"
        for c in compiled
        if c["stack"] + c["local"] > aot.STACK_LIMIT[c["capability"]]
    ]
    assert not spilling, "\n".join(spilling)


def test_shared_memory_fits(compiled):
    too_much = [c["case"] for c in compiled if c["shared"] > aot.SHARED_LIMIT[c["capability"]]]
    assert not too_much, "\n".join(too_much)


def test_even_sizes_are_read_in_wide_loads(compiled):
    """Sizes and strides that are multiples of 16 must let the compiler join loads: at least 8 bytes a thread."""
    kernels = (
        "match_fwd",
        "match_bwd",
        "match_both_fwd",
        "match_both_bwd",
        "contrastive_fwd",
        "contrastive_bwd",
        "features_fwd",
        "features_slopes",
        "factors_kernel",
        "chain_kernel",
        "mutual.maxima_kernel",
        "mutual.filter_kernel",
        "correlation_kernel",
        "correlation_slopes",
        "correlation_product",
        "squares_kernel",
        "best_cell_kernel",
        "window_fwd",
        "window_bwd",
        "tile_statistics",
        "dual_fwd",
        "dual_bwd",
    )  # these read tiles
    narrow = [
        f"{c['case']}: {c['load_bytes']} bytes"
        for c in compiled
        if c["variant"] == "even"
        and any(name in c["case"] for name in kernels)
        and c["load_bytes"] < 8
        and "EXCLUDE=1" not in c["case"]  # reads squares out of the rows
        # wgmma takes tf32 by channels only: cells that lie together are turned round in registers
        and not ("correlation_kernel" in c["case"] and "PRECISION=tf32," in c["case"])
    ]
    assert not narrow, "\n".join(narrow)


def test_the_consistency_check_is_rounded_step_by_step(compiled):
    """As the reference rounds it: without fused multiply-add. (That of `labels_kernel`, compiled with the same options,
    stands beside logarithms, which have some.)"""
    found = [c for c in compiled if c["case"].startswith("consistency.")]
    assert found and not [c["case"] for c in found if c["fused"]]


PRODUCTS = {80: "mma.sync", 90: "wgmma.mma", 100: "tcgen05.mma"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_products_run_on_the_tensor_cores(compiled, capability):
    """Every kernel that multiplies features, of all dtypes and layouts; but float32 with all of its digits."""
    kernels = ("features_fwd", "features_slopes", "best_features", "product_kernel", "correlation_kernel")
    kernels += ("correlation_slopes_kernel",)
    found = [c for c in compiled if c["capability"] == capability and any(name in c["case"] for name in kernels)]
    assert {c["case"].split()[0].partition(".")[2] for c in found} == {
        "match_features_fwd_kernel",
        "match_features_slopes_kernel",
        "contrastive_features_fwd_kernel",
        "contrastive_features_slopes_kernel",
        "best_features_kernel",
        "window_features_fwd_kernel",
        "window_features_slopes_kernel",
        "product_kernel",
        "correlation_kernel",
        "correlation_slopes_kernel",
        "correlation_product_kernel",
    }
    wrong = [
        f"{c['case']}: {c['products'] or 'none'}"
        for c in found
        if c["products"] != ("" if " fp32 " in c["case"] and "=ieee" in c["case"] else PRODUCTS[capability])
    ]
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def shipped(monkeypatch):
    """The launchers, interpreted with the tiles of a GPU; the interpreter has its own (configs.INTERPRETER)."""
    if library.TRITON_REASON is not None:
        pytest.skip(library.TRITON_REASON)
    if not library.TRITON_INTERPRET:
        pytest.skip("Triton's interpreter is off (TRITON_INTERPRET=1 turns it on)")
    monkeypatch.setattr(configs, "INTERPRETER", configs.ARCHITECTURES[90])
    return importlib.import_module("semimatch_kernels.triton.match")


def _check(corr, grids, actual, backward):
    """Results and gradient of ``actual`` (five per side, target first) against the reference in float64."""

    def outputs(c):
        sides = reference.matching.match(c, grids[0], 0.1)
        return sides if len(actual) == 5 else (*sides, *reference.matching.match(c.transpose(1, 2), grids[1], 0.1))

    leaves = corr.clone().requires_grad_(), corr.double().requires_grad_()
    results = [outputs(leaf) for leaf in leaves]
    for i, (value, peer, truth) in enumerate(zip(actual, *results, strict=True)):
        if value.dtype == torch.int64:
            assert torch.equal(value, truth)
        else:
            assert_as_good_as(f"result {i}", value, peer, truth)
    floats = [i for i, value in enumerate(actual) if value.dtype != torch.int64]
    upstream = {i: torch.randn_like(actual[i]) for i in floats}
    totals = [sum((result[i].double() * upstream[i].double()).sum() for i in floats) for result in results]
    grads = [torch.autograd.grad(total, leaf)[0] for total, leaf in zip(totals, leaves, strict=True)]
    assert_as_good_as("gradient", backward(*actual, *upstream.values()), *grads)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tiles", ["small", "large", "both"])
def test_shipped_tiles_give_the_right_values(shipped, monkeypatch, tiles, dtype, transposed):
    grids = (9, 15), (3, 6)
    corr = torch.randn(1, 135, 18).mul(8).round().div(16).to(dtype)  # eighths: with ties
    given = corr.transpose(1, 2).contiguous().transpose(1, 2) if transposed else corr
    if tiles == "both":
        monkeypatch.setattr(configs, "INTERPRETER", replace(configs.INTERPRETER, cache_bytes=0))
        actual = shipped.match_both(given, *grids, 0.1)
        _check(corr, grids, actual, lambda *saved: shipped.match_both_backward(given, *grids, 0.1, *saved))
    else:
        monkeypatch.setattr(configs, "SMALL_ENTRIES", 10**9 if tiles == "small" else 0)
        actual = shipped.match(given, grids[0], 0.1)
        _check(corr, grids, actual, lambda *saved: shipped.match_backward(given, grids[0], 0.1, *saved))
