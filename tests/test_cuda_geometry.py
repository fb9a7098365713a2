"""Launch geometry of the CUDA kernels (csrc/cuda/geometry.h): within a GPU's limits, and every part of the work done
once, over thousands of shapes. Host code alone: no GPU, no emulator of one."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def geometry(tmp_path_factory):
    cxx = shutil.which("g++") or shutil.which("c++")
    if cxx is None:
        pytest.skip("no C++ compiler (g++ or c++) to compile csrc/cuda/geometry.h with")
    library = tmp_path_factory.mktemp("geometry") / "geometry.so"
    source = ROOT / "tests/emulator/geometry.cpp"
    subprocess.run([cxx, "-std=c++20", "-O2", "-fPIC", "-shared", source, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    for name in ("geometry_limits", "geometry_coverage"):
        getattr(loaded, name).argtypes = [ctypes.c_int64] * 3
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


def test_every_entry_is_covered_once(geometry):
    draw = random.Random(0)
    edges = [1, 2, 31, 32, 33, 63, 64, 65, 127, 128, 129, 256, 257]
    shapes = [(b, r, c) for b in (1, 3) for r in edges for c in edges]
    shapes += [(draw.randint(1, 5), draw.randint(1, 300), draw.randint(1, 300)) for _ in range(2000)]
    shapes += [(1, 1024, 1023), (1, 1025, 7), (2, 961, 1024), (1, 3, 20000), (1, 20000, 3), (300, 17, 31)]
    for shape in shapes:
        assert geometry.geometry_coverage(*shape) is None, (shape, geometry.geometry_coverage(*shape))


def test_long_runs_of_tiles_cover_too(geometry):
    """Enough tiles that a block takes several, and a last run that is short."""
    for shape in ((1, 4096, 4160), (9, 1024, 2000), (40, 640, 1000)):
        assert geometry.geometry_coverage(*shape) is None, shape


def test_launches_stay_within_limits(geometry):
    """Up to correlations of 2^33 entries, single lines and huge batches included."""
    draw = random.Random(1)
    shapes = [(1, 65536, 65536), (1 << 20, 64, 64), (1, 1, (1 << 31) - 1), (1, (1 << 31) - 1, 1), (70000, 300, 300)]
    for _ in range(5000):
        rows, cols = (int(2 ** draw.uniform(0, 20)) for _ in range(2))
        shapes.append((int(max(1, min(1 << 24, 2 ** draw.uniform(0, 33) / (rows * cols)))), rows, cols))
    for shape in shapes:
        assert geometry.geometry_limits(*shape) is None, (shape, geometry.geometry_limits(*shape))


def test_a_launch_beyond_the_limits_is_named(geometry):
    assert b"more blocks than 2^31 - 1" in geometry.geometry_limits(1 << 40, 64, 64)
    assert b"or none" in geometry.geometry_limits(0, 64, 64)
