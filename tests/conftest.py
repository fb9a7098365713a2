"""Shared fixtures: the Triton interpreter where there is no GPU, the recorded data, and the truth-relative
tolerance."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import torch

# Before anything imports triton: its kernels run on CPU tensors in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest

SHARED = Path(os.environ.get("SEMIMATCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_collection_modifyitems(items):
    """The marker `gpu`: for every test of a kernel on the GPU; skipped where there is none."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if torch.cuda.is_available():
            if callspec is not None and callspec.params.get("backend") in ("triton", "cuda"):
                item.add_marker(pytest.mark.gpu)
        elif item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device is visible"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _device(request):
    """All that a test of a case on the GPU makes is made there."""
    callspec = getattr(request.node, "callspec", None)
    device = getattr(callspec.params.get("case"), "device", None) if callspec is not None else None
    with torch.device(device) if device else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared reference data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("shared reference data absent (set SEMIMATCH_SHARED to its folder)")
    return SHARED


class Case:
    """One recorded case: attributes by name, arrays as tensors (float16 storage widened to float32)."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getattr__(self, name: str):
        value = self.__dict__["arrays"][name]
        if value.dtype.kind == "U":
            return str(value)
        if value.ndim == 0:
            return value.item()
        if value.dtype == np.float16:
            value = value.astype(np.float32)
        if value.dtype == np.int16:
            value = value.astype(np.int64)
        return torch.from_numpy(value)


@pytest.fixture(scope="session")
def golden(shared):
    """golden(file, family) -> {case name: Case} of one file of recorded vectors."""

    def load(name: str, family: str = "") -> dict[str, Case]:
        with np.load(shared / "golden" / "public" / f"{name}.npz") as file:
            cases: dict[str, dict] = {}
            for key in file.files:
                case, _, array = key.partition("__")
                if case.startswith(family):
                    cases.setdefault(case, {})[array] = file[key]
        assert cases, f"{name} has no case of family {family!r}"
        return {case: Case(arrays) for case, arrays in cases.items()}

    return load


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory) -> Path:
    """A small embedded data set, written once a session."""
    from semimatch.data.demo import write_demo

    root = tmp_path_factory.mktemp("demo") / "data"
    counts = dict(images_per_category=(4, 2, 2), pairs_per_category=(4, 2, 2), willow_images_per_category=2)
    return write_demo(root, seed=1, progress=False, **counts)
