"""Runs the CPU kernels under the sanitizers of the compiler: ``make sanitize``.

``python scripts/sanitize.py [address] [thread]``; further options go to pytest. A copy of the op library under
build/sanitize/<kind> is built with the sanitizer, and the tests that run the C++ kernels run on it, on four threads:
those of the native ops, over shapes and layouts, and those of every backend, of which each op of tests/op_cases.py is
part. "address" also finds undefined behaviour. Nothing of the environment or of the ordinary build is touched.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "sanitize"


@dataclass(frozen=True)
class Sanitizer:
    """How to compile for a sanitizer, what to load before Python, its options, and the tests (it is slow)."""

    flags: str
    libraries: tuple[str, ...]
    options: dict[str, str]
    tests: tuple[str, ...]


TESTS = ("test_match.py", "test_native_ops.py", "test_native_features.py", "test_accuracy.py", "test_hygiene.py")
SANITIZERS = {
    "address": Sanitizer(
        "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -D_GLIBCXX_ASSERTIONS",
        ("libasan.so", "libubsan.so"),
        # Python and torch keep what they allocate until the process ends. Kept memory has no ends that are watched.
        {
            "SEMIMATCH_CPU_CACHE_MB": "0",
            "ASAN_OPTIONS": "detect_leaks=0:log_path={log}",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        (*TESTS, "test_limits.py"),
    ),
    "thread": Sanitizer(
        "-fsanitize=thread",
        ("libtsan.so",),
        {"TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1:log_path={log}"},
        (*TESTS, "test_cpu_cache.py::test_threads"),
    ),
}


def copy(folder: Path) -> None:
    """The sources, with their times, so that only what has changed is compiled again."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / name)
    without = shutil.ignore_patterns("*.so", "__pycache__", "_native_build.json", "results")
    for name in ("benchmarks", "csrc", "semimatch_kernels", "tests"):
        shutil.rmtree(folder / name, ignore_errors=True)  # what was there and is no more
        shutil.copytree(ROOT / name, folder / name, ignore=without)


def run(kind: str, arguments: list[str]) -> int:
    """Builds and tests with one sanitizer; the exit status of the tests."""
    sanitizer, folder = SANITIZERS[kind], FOLDER / kind
    folder.mkdir(parents=True, exist_ok=True)
    copy(folder)
    # One instruction set will do: the loops of all are the same source.
    native = "-mavx2 -mfma -mf16c" if platform.machine() == "x86_64" else ""
    flags = f"{os.environ.get('CXXFLAGS', '')} -O1 -g1 -fno-omit-frame-pointer {native} {sanitizer.flags}"
    build = {**os.environ, "SEMIMATCH_CUDA": "0", "SEMIMATCH_CPU_SETS": "baseline", "CXXFLAGS": flags}
    subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=folder, env=build, check=True)
    log = folder / "report"
    for old in folder.glob("report.*"):
        old.unlink()
    cxx = os.environ.get("CXX", "c++").split()
    ask = [subprocess.run([*cxx, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
           for name in sanitizer.libraries]  # fmt: skip
    environment = {
        **os.environ, **{name: value.format(log=log) for name, value in sanitizer.options.items()},
        "LD_PRELOAD": ":".join(answer.stdout.strip() for answer in ask),
        "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "4", "SEMIMATCH_BACKEND": "cpu",
    }  # fmt: skip
    # Not those of the allocator, which here is the sanitizer's.
    chosen = "(cpu or native) and not memory_is and not scratch_memory"
    # Undefined behaviour is told on stderr whatever the log path is, and would die with what pytest has captured of it.
    options = ["-q", "--capture=sys", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen]
    command = [sys.executable, "-m", "pytest", *options]
    files = [f"tests/{name}" for name in sanitizer.tests]
    status = subprocess.run([*command, *arguments, *files], cwd=folder, env=environment).returncode
    for report in folder.glob("report.*"):
        print(report.read_text(errors="replace"))
        status = status or 1
    return status


def main() -> None:
    """Run the sanitizers asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="kind", help=" or ".join(SANITIZERS))
    known, arguments = parser.parse_known_args()
    if unknown := set(known.kinds) - set(SANITIZERS):
        parser.error(f"kind: expected {' or '.join(SANITIZERS)}, got {', '.join(sorted(unknown))}")
    sys.exit(max(run(kind, arguments) for kind in known.kinds or SANITIZERS))


if __name__ == "__main__":
    main()
