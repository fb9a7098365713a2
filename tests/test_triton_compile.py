"""Every Triton kernel in every shipped configuration compiles for GPUs that are not here, within limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_shipped_configuration_compiles(compiled, capability):
    found = {c["case"] for c in compiled if c["capability"] == capability}
    assert found == {str(case) for case in aot.cases(capability)}


def test_no_registers_are_spilled(compiled):
    spilling = [f"{c['case']}: {c['stack']} bytes" for c in compiled if c["stack"] or c["local"]]
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
    )  # these read tiles
    narrow = [
        f"{c['case']}: {c['load_bytes']} bytes"
        for c in compiled
        if c["variant"] == "even" and any(name in c["case"] for name in kernels) and c["load_bytes"] < 8
    ]
    assert not narrow, "\n".join(narrow)


@pytest.mark.skipif(not library.TRITON_INTERPRET, reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shipped_tiles_give_the_right_values(monkeypatch, dtype, size, transposed):
    """The interpreter's own tiles are others (configs.INTERPRETER); the shipped ones are run here once."""
    if library.TRITON_REASON is not None:
        pytest.skip(library.TRITON_REASON)
    from semimatch_kernels.triton import match

    monkeypatch.setattr(configs, "INTERPRETER", configs.ARCHITECTURES[90])
    monkeypatch.setattr(configs, "SMALL_ENTRIES", 10**9 if size == "small" else 0)
    grids = (9, 15), (3, 5)
    corr = torch.randn(1, 135, 15).to(dtype)
    given = corr.transpose(1, 2).contiguous().transpose(1, 2) if transposed else corr
    actual = match.match(given, grids[0], 0.1)
    peer, truth = (reference.matching.match(c, grids[0], 0.1) for c in (corr, corr.double()))
    for name, *values in zip(("coords", "score", "entropy", "logsumexp"), actual, peer, truth, strict=False):
        assert_as_good_as(name, *values)
    assert torch.equal(actual[4], truth[4])
    upstream = [torch.randn_like(value) for value in actual[:4]]
    grads = [match.match_backward(given, grids[0], 0.1, *actual, *upstream)]
    for leaf in (corr.clone().requires_grad_(), corr.double().requires_grad_()):
        results = reference.matching.match(leaf, grids[0], 0.1)[:4]
        total = sum((r.double() * u.double()).sum() for r, u in zip(results, upstream, strict=True))
        grads.append(torch.autograd.grad(total, leaf)[0])
    assert_as_good_as("gradient", *grads)
