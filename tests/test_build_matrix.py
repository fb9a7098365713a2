"""What `make build-matrix` looks for in an archive: a file too few and a file too many are both found, by name."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / ".git").exists():
    pytest.skip("the archives are compared with what git tracks, and this is no checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT / "scripts"))
import build_matrix  # noqa: E402

#: what a complete archive lacks, what it has beside, and the error
SOURCE_ARCHIVES = [
    (set(), set(), None),
    ({"csrc/cpu/work.h"}, set(), r"missing from the source archive: \['csrc/cpu/work.h'\]"),
    ({"pyproject.toml"}, set(), r"missing from the source archive: \['pyproject.toml'\]"),
    (set(), {"semimatch_kernels/_C_cuda.so"}, r"does not belong into the source archive: .*_C_cuda\.so"),
]
WHEELS = [
    (set(), set(), None),
    ({"semimatch_kernels/py.typed"}, set(), r"missing from the wheel: \['semimatch_kernels/py.typed'\]"),
    ({"semimatch_kernels/_native_build.json"}, set(), r"missing from the wheel: .*_native_build\.json"),
    (set(), {"tests/conftest.py"}, r"does not belong into the wheel: \['tests/conftest.py'\]"),
    (set(), {"semimatch_kernels/match.cpp"}, r"does not belong into the wheel: .*match\.cpp"),
    ({"semimatch_kernels/_C.so"}, set(), r"expected \['_C', '_C_autograd'\], got \['_C_autograd'\]"),
    (
        set(),
        {"semimatch_kernels/_C_cuda.so"},
        r"expected \['_C', '_C_autograd'\], got \['_C', '_C_autograd', '_C_cuda'\]",
    ),
    ({"semimatch-1.dist-info/licenses/LICENSE"}, set(), "the wheel has no license"),
]


def _expect(error, function, *args):
    if error is None:
        function(*args)
    else:
        with pytest.raises(RuntimeError, match=error):
            function(*args)


@pytest.mark.parametrize(("less", "more", "error"), SOURCE_ARCHIVES)
def test_source_archive(tmp_path, less, more, error):
    path, names = tmp_path / "semimatch.tar.gz", build_matrix.tracked() | {"PKG-INFO", "semimatch.egg-info/SOURCES.txt"}
    with tarfile.open(path, "w:gz") as file:
        for name in names - less | more:
            file.addfile(tarfile.TarInfo(f"semimatch-1/{name}"))
    _expect(error, build_matrix.check_sdist, path)


@pytest.mark.parametrize(("less", "more", "error"), WHEELS)
def test_wheel(tmp_path, less, more, error):
    path, names = tmp_path / "semimatch.whl", build_matrix.tracked("semimatch", "semimatch_kernels")
    names |= {"semimatch_kernels/_native_build.json", "semimatch_kernels/_C.so", "semimatch_kernels/_C_autograd.so"}
    names |= {"semimatch-1.dist-info/RECORD", "semimatch-1.dist-info/licenses/LICENSE"}
    with zipfile.ZipFile(path, "w") as file:
        for name in names - less | more:
            file.writestr(name, "")
    _expect(error, build_matrix.check_wheel, path, build_matrix.Way("no nvcc", {}, "", "not built: no nvcc", ""))
