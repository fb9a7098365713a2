"""The native modules as built: complete, of the stable ABI only, matching their schemas, free of spills.

Results are tested in test_match.py; here only that all instruction sets of `_C` compute the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semimatch_kernels import _native, library

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "semimatch_kernels"

needs_cpp = pytest.mark.skipif(library.CPU_REASON is not None, reason=f"_C: {library.CPU_REASON}")
needs_cuda = pytest.mark.skipif(library.CUDA_REASON is not None, reason=f"_C_cuda: {library.CUDA_REASON}")
needs_cuda_file = pytest.mark.skipif(
    not (PACKAGE / "_C_cuda.so").exists(), reason=f"_C_cuda: {_native._why_not_built('_C_cuda')}"
)


# --- registers and local memory ---

# Element types of each CUDA kernel, as they appear in mangled names.
TYPES = {"float": "f", "double": "d", "float16": "6__half", "bfloat16": "13__nv_bfloat16"}
# Names of kernels, or of the jobs that the kernels of csrc/cuda/reduce.cuh are made for, and how many of each.
KERNELS = {
    "match_strips": 16, "match_rows": 8, "match_gradient": 24, "match_merge": 2,
    "MutualMaxima": 8, "MutualFilter": 4, "mutual_divisors": 4, "MutualTerms": 8, "MutualGradient": 4,
    "ContrastiveLosses": 8, "contrastive_total": 2, "ContrastiveGradient": 8, "smoothing_table": 1,
    "pseudo_labels_in_cluster": 6, "pseudo_labels_from_parts": 8, "LabelJob": 22,
    "DualMasses": 8, "DualEntries": 4, "DualSums": 8, "DualGradient": 4,
    "SoftArgmax": 8, "SoftArgmaxSlopes": 8, "SoftArgmaxGradient": 8, "forward_backward_cells": 1,
    "vectors_ready": 4, "features_chain": 4, "match_features_tiles": 4, "match_features_slopes": 4, "MatchSlopes": 8,
    "counted_cells": 2, "reduce_features": 12, "merge_features": 8, "contrastive_features_goals": 4,
    "ContrastiveSlopes": 8, "WindowSlopes": 8, "correlation_tiles": 6, "CorrelationSlopes": 12,
}  # fmt: skip


def cuobjdump() -> str:
    """The disassembler of the CUDA toolkit, or the one inside the triton package."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton else "cuobjdump"
    found = shutil.which("cuobjdump") or shutil.which(bundled)
    assert found, "cuobjdump is neither in PATH nor in the triton package"
    return found


@pytest.fixture(scope="module")
def resources() -> dict[str, dict[str, dict[str, int]]]:
    """architecture -> mangled kernel name -> REG, STACK, LOCAL, SHARED of the built `_C_cuda`."""
    command = [cuobjdump(), "--dump-resource-usage", str(PACKAGE / "_C_cuda.so")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    table: dict[str, dict[str, dict[str, int]]] = {}
    arch = name = ""
    for line in text.splitlines():
        if found := re.match(r"\s*arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function (\w+):", line):
            name = found[1]
        elif "REG:" in line:
            table.setdefault(arch, {})[name] = {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)}
    return table


@needs_cuda_file
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_no_kernel_spills(resources, arch):
    """For every architecture that CI asks for (.ci/run); a build by default leaves out the last."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    arch = arch if arch in resources else f"{arch}a"
    if arch not in resources and (asked or arch == "sm_100a"):
        pytest.skip(f"_C_cuda was built for {', '.join(resources)} (TORCH_CUDA_ARCH_LIST={asked})")
    kernels = resources[arch]
    for stem, count in KERNELS.items():
        variants = [name for name in kernels if f"{len(stem)}{stem}" in name]
        assert len(variants) == count, f"{stem}: expected {count} variants for {arch}, found {variants}"
    spilling = {name: use for name, use in kernels.items() if use["STACK"] or use["LOCAL"]}
    assert not spilling, f"kernels with local memory for {arch}: {spilling}"


@needs_cuda_file
def test_every_kernel_exists_for_every_element_type(resources):
    for arch, kernels in resources.items():
        for stem in ("match_strips", "match_rows", "match_gradient"):
            for dtype, mangled in TYPES.items():
                start = f"{len(stem)}{stem}I{mangled}"
                assert any(start in name for name in kernels), f"{arch}: no {stem} for {dtype}"


@pytest.fixture(scope="module")
def global_accesses(tmp_path_factory) -> dict[str, list[str]]:
    """Mangled name of a kernel of `match` -> its loads and stores of global memory, for all architectures."""
    folder = tmp_path_factory.mktemp("cubins")
    subprocess.run([cuobjdump(), "--extract-elf", "all", str(PACKAGE / "_C_cuda.so")], cwd=folder, check=True)
    table: dict[str, list[str]] = {}
    for cubin in folder.iterdir():
        if b"match_strips" not in cubin.read_bytes():  # of another source: disassembling all takes half a minute
            continue
        text = subprocess.run([cuobjdump(), "--dump-sass", cubin], capture_output=True, text=True, check=True).stdout
        for part in text.split("Function : ")[1:]:
            table.setdefault(part.split()[0], []).extend(re.findall(r"\b(?:LDG|STG)(?:\.\w+)+", part))
    return table


@needs_cuda_file
@pytest.mark.parametrize("dtype", TYPES)
def test_match_moves_16_bytes_at_a_time(global_accesses, resources, dtype):
    """Kernels for aligned rows read the matrix and write its gradient in no other way, and have several loads on their
    way at a time; those for other rows never do."""
    for width in (1, {"float": 4, "double": 2}.get(dtype, 8)):
        start = rf"\dmatch_(strips|rows|gradient)I{TYPES[dtype]}[fd]Li{width}E"
        kernels = {name: found for name, found in global_accesses.items() if re.search(start, name)}
        assert len(kernels) == 6, list(kernels)
        for name, found in kernels.items():
            wide = [a for a in found if ".128" in a]
            stores = [a for a in found if a.startswith("STG")]
            if width == 1:
                assert not wide, (name, found)
            elif "gradient" in name:  # which also reads results and gradients of cells, one by one
                assert len(wide) == 2 * len(stores) >= 4 * len(resources) and set(stores) <= set(wide), (name, found)
            else:  # which writes results of cells, one by one
                assert len(wide) == len(found) - len(stores) >= 4 * len(resources), (name, found)


# --- symbols ---


@needs_cpp
def test_cpp_module_registers_every_op():
    for name in library.NATIVE["cpu"]:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"semimatch_kernels::{name}", "CPU"), name


@needs_cuda
def test_cuda_module_registers_every_op():
    for name in library.NATIVE["cuda"]:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"semimatch_kernels::{name}", "CUDA"), name


def test_binaries_use_the_stable_abi_only():
    files = sorted({*PACKAGE.glob("_C*.so")} - {*PACKAGE.glob("_C_autograd.*")})
    if not files:
        pytest.skip(f"_C: {library.CPU_REASON}; _C_cuda: {library.CUDA_REASON}")
    if not shutil.which("nm") or not shutil.which("readelf"):
        pytest.skip("nm or readelf is not in PATH")
    for file in files:
        symbols = subprocess.check_output(["nm", "-D", file], text=True)
        # C++ symbols of PyTorch: their ABI changes with every version.
        foreign = [line for line in symbols.splitlines() if re.search(r"_ZNK?(3c10|2at|5torch)", line)]
        assert not foreign, f"{file.name}: {foreign}"
        assert "torch_library_impl" in symbols, f"{file.name} registers nothing"
        # Libraries that not every torch has.
        needed = re.findall(r"NEEDED.*\[(.*)\]", subprocess.check_output(["readelf", "-d", file], text=True))
        assert any(name.startswith("libtorch") for name in needed), needed
        assert not [name for name in needed if re.match("libc10|libtorch_cuda|libcudart", name)], needed


# --- schemas ---


@needs_cpp
def test_cpp_schemas_are_those_of_the_library():
    assert _native.cpp.op_schemas() == library.NATIVE["cpu"]


@pytest.mark.parametrize(
    "module",
    [pytest.param("cpp", marks=needs_cpp), pytest.param("cuda", marks=needs_cuda)],
)
def test_a_stale_binary_is_an_error_that_says_so(module, monkeypatch):
    name, backend = {"cpp": ("_C", "cpu"), "cuda": ("_C_cuda", "cuda")}[module]
    schemas = library.NATIVE[backend]
    changed = {**library.NATIVE, backend: {**schemas, "match": "(Tensor corr) -> Tensor"}}
    monkeypatch.setattr(_native, module, None)
    message = rf"semimatch_kernels\.{name} is out of date: it was built for match\(.*rebuild with `pip"
    with pytest.raises(ImportError, match=message):
        _native.load(changed)
    assert getattr(_native, module) is None, "a stale module must not be kept"
    missing = {**library.NATIVE, backend: {key: value for key, value in schemas.items() if key != "match_both"}}
    with pytest.raises(ImportError, match=r"schemas\.py defines match_both \(no such op\)"):
        _native.load(missing)


# --- loading ---


def test_loading_again_changes_nothing():
    before = _native.cpp, _native.cuda, _native.autograd
    assert _native.load(library.NATIVE) == (library.CPU_REASON, library.CUDA_REASON)
    assert _native.load_autograd() == library.AUTOGRAD_REASON
    assert (_native.cpp, _native.cuda, _native.autograd) == before


@needs_cpp
def test_build_info_of_the_cpp_module_is_complete():
    info = _native.build_info()["_C"]
    assert set(info) == {"compiler", "flags", "torch", "torch_target", "cpu_sets", "cpu_set"}
    assert all(info.values()), info
    assert info["torch_target"] == "2.11"
    assert "-O3" in info["flags"]
    assert info["cpu_set"] in info["cpu_sets"].split()


@needs_cuda
def test_build_info_of_the_cuda_module_is_complete():
    info = _native.build_info()["_C_cuda"]
    assert set(info) == {"nvcc", "flags", "archs", "torch", "torch_target"}
    assert all(info.values()), info
    assert re.fullmatch(r"[\d.]+", info["nvcc"])


def test_an_absent_module_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    monkeypatch.setattr(_native, "cpp", None)
    monkeypatch.setattr(_native, "cuda", None)
    for reason in _native.load(library.NATIVE):
        assert reason.startswith("not built: the build has not run yet; remedy: rebuild with `pip install")
    report = {
        "semimatch_kernels._C": "no C++ compiler; remedy: install g++",
        "semimatch_kernels._C_cuda": None,
    }
    (tmp_path / "_native_build.json").write_text(json.dumps(report))
    cpp, cuda = _native.load(library.NATIVE)
    assert cpp == "not built: no C++ compiler; remedy: install g++"
    assert cuda.startswith("built, but its file is gone; remedy: ")


def test_a_file_that_does_not_load_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(_native, "_FOLDER", tmp_path)
    monkeypatch.setattr(_native, "cuda", None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "_C_cuda.so").write_bytes(b"not a library")
    reason = _native._load_cuda(library.NATIVE)
    assert reason.startswith(f"built, but does not load with torch {torch.__version__} (")
    monkeypatch.setattr(torch.version, "cuda", None)
    reason = f"this torch ({torch.__version__}) is built without CUDA; remedy: install one that is built with it"
    assert _native._load_cuda(library.NATIVE) == reason


# --- setup.py ---


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """Runs `setup.py build_ext --inplace` on a copy of what it needs."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    (folder / "semimatch_kernels").mkdir()
    shutil.copy(PACKAGE / "schemas.py", folder / "semimatch_kernels")
    inherited = {k: v for k, v in os.environ.items() if k not in ("SEMIMATCH_CUDA", "TORCH_CUDA_ARCH_LIST")}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(command, cwd=folder, env={**inherited, **environment}, capture_output=True, text=True)


def test_build_goes_on_without_compilers(tmp_path):
    result = build(tmp_path, CXX="/nowhere/c++", NVCC="/bin/false")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("semimatch: ")]
    assert len(lines) == 3, result.stderr
    assert "_C is left out: no C++ compiler was found (/nowhere/c++)" in lines[0]
    assert "_C_autograd is left out: no C++ compiler was found (/nowhere/c++)" in lines[1]
    assert re.search("_C_cuda is left out: /bin/false .*cannot compile", lines[2])
    report = json.loads((tmp_path / "semimatch_kernels/_native_build.json").read_text())
    assert set(report) == {f"semimatch_kernels.{name}" for name in ("_C", "_C_autograd", "_C_cuda")}
    assert all("remedy" in reason for reason in report.values())


def test_a_compiler_that_is_too_old_is_named_with_its_version(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "g++ 9.4.0" && exit\necho "error: no C++20" >&2; exit 1\n'
    )
    compiler.chmod(0o755)
    result = build(tmp_path, CXX=str(compiler), NVCC="/bin/false")
    assert (
        f"_C is left out: {compiler} 9.4.0 cannot compile C++20 and Python.h: error: no C++20; remedy" in result.stderr
    )


def test_build_that_must_have_cuda_fails_without(tmp_path):
    result = build(tmp_path, CXX="/nowhere/c++", NVCC="/bin/false", SEMIMATCH_CUDA="1")
    assert result.returncode != 0
    assert "SEMIMATCH_CUDA=1, but semimatch_kernels._C_cuda cannot be built: /bin/false" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SEMIMATCH_CUDA", "yes", "SEMIMATCH_CUDA: expected auto, 0 or 1, got 'yes'"),
        (
            "TORCH_CUDA_ARCH_LIST",
            "8.0 Hopper",
            "TORCH_CUDA_ARCH_LIST: expected a list like '8.0;9.0+PTX', got 'Hopper'",
        ),
    ],
)
def test_build_refuses_a_wrong_setting(tmp_path, variable, value, message):
    result = build(tmp_path, CXX="/nowhere/c++", NVCC="/bin/false", **{variable: value})
    assert result.returncode != 0
    assert message in result.stderr


# --- instruction sets ---

COMPARE = """
import torch
from semimatch_kernels import _native, reference
ops = torch.ops.semimatch_kernels
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    corr = torch.sin(torch.arange(2 * 35 * 77) * 1.7).reshape(2, 35, 77).to(dtype)
    corr[:, ::3, 5] = -torch.inf
    corr[:, :, 19] = -torch.inf
    for c in (corr, corr.transpose(1, 2).contiguous().transpose(1, 2)):
        truth = c.double().requires_grad_()
        c.requires_grad_()
        both = ops.match_both(c, (5, 7), (7, 11), 0.1)
        wanted = [*reference.matching.match(truth, (5, 7), 0.1)]
        wanted += reference.matching.match(truth.transpose(1, 2), (7, 11), 0.1)
        actual = [t for t in both if t.is_floating_point()]
        wanted = [t for t in wanted if t.is_floating_point()]
        for a, w in zip(actual, wanted):
            torch.testing.assert_close(a.double(), w, rtol=1e-5, atol=1e-5)
        grads = [torch.cos(torch.arange(a.numel())).reshape(a.shape) for a in actual]
        finite = [i for i, w in enumerate(wanted) if w.isfinite().all()]
        def gradient(outputs, leaf):
            chosen = [outputs[i] for i in finite]
            passed = [grads[i].to(outputs[i].dtype) for i in finite]
            return torch.autograd.grad(chosen, leaf, passed)[0].double()
        ours, theirs = gradient(actual, c), gradient(wanted, truth)
        relative = max(1e-5, torch.finfo(dtype).eps)
        torch.testing.assert_close(ours, theirs, rtol=relative, atol=relative * theirs.abs().max().item())
# Every 16-bit number goes in (one cell: logsumexp is the entry) and comes out (the gradient is passed down).
for dtype in (torch.bfloat16, torch.float16):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite()]
    exact = numbers.float()
    halfway = ((exact.double() + exact.double().roll(1)) / 2).float()  # neighbours: ties of the rounding
    for c in (numbers.view(1, 1, -1), numbers.view(1, 1, -1, 1).expand(1, 1, -1, 2)[..., 0]):
        leaf = c.detach().requires_grad_()
        logsumexp = ops.match(leaf, (1, 1), 1.0)[3]
        assert torch.equal(logsumexp.flatten(), exact)
        for down in (exact, halfway, exact * 1.0037):
            grad = torch.autograd.grad(logsumexp, leaf, down.view(1, -1), retain_graph=True)[0]
            assert torch.equal(grad.flatten(), down.to(dtype)), dtype
print(_native.build_info()["_C"]["cpu_set"])
"""


@needs_cpp
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set_is_right(capability):
    name = {"default": "baseline"}.get(capability, capability)
    if name not in _native.build_info()["_C"]["cpu_sets"].split():
        pytest.skip(f"_C holds no {name} code on this architecture")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", COMPARE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if result.stdout.strip() != name:
        pytest.skip(f"this machine has no {name}; tested {result.stdout.strip()} instead")
