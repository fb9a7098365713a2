"""Builds csrc/cuda for the emulator (see cuda_runtime.h beside this file) and loads it.

Its ops are then in ``torch.ops.semimatch_emulated``, under the names and schemas of those for CUDA, and take CPU
tensors. Made in build/emulator by ninja, which compiles again what has changed.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from semimatch_kernels.schemas import NATIVE

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "-std=c++20 -O1 -fPIC -fno-strict-aliasing -Wall -Wno-unknown-pragmas -Wno-psabi -DSEMIMATCH_EMULATOR"
FLAGS += " -DTORCH_TARGET_VERSION=0x020b000000000000"


class NoCompiler(Exception):
    """Why nothing can be built."""


def _tool(*names: str) -> str:
    beside = [str(Path(sys.executable).with_name(name)) for name in names]
    found = next(filter(None, map(shutil.which, [*names, *beside])), None)
    if found is None:
        raise NoCompiler(f"{' or '.join(names)} was not found")
    return found


def build(sanitize: bool = False) -> Path:
    """Compiles the kernels, with the address sanitizer if asked for; returns the library."""
    cxx, ninja = _tool(*filter(None, [os.environ.get("CXX"), "g++", "c++"])), _tool("ninja")
    probe = [cxx, "-std=c++20", "-fsyntax-only", "-xc++", "-"]
    code = "#include <source_location>\n#include <concepts>\n_Float16 x;\n"
    asked = subprocess.run(probe, input=code, capture_output=True, text=True)
    if asked.returncode:
        raise NoCompiler(f"{cxx} is no C++20 compiler with _Float16")
    folder = ROOT / "build" / ("emulator-asan" if sanitize else "emulator")
    folder.mkdir(parents=True, exist_ok=True)
    options = FLAGS
    if sanitize:  # without stacks, which fibers change; compiled fast rather than well
        options = FLAGS.replace("-O1", "-O0") + " -g1 -fsanitize=address --param=asan-stack=0 -DSEMIMATCH_FLOAT_ONLY"
    torch_folder = Path(torch.__file__).parent
    include = f"-I{ROOT}/tests/emulator -isystem {torch_folder}/include"
    libraries = f"-L{torch_folder}/lib -Wl,--no-as-needed -ltorch_cpu"
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    sources += [ROOT / "tests/emulator" / name for name in ("emulator.cpp", "faults.cpp")]
    text = f"rule cc\n command = {cxx} {options} {include} -MD -MF $out.d -x c++ -c $in -o $out\n"
    text += " depfile = $out.d\n deps = gcc\n"
    text += f"rule link\n command = {cxx} {options} -shared $in -o $out {libraries}\n"
    text += "".join(f"build {s.stem}.o: cc {s}\n" for s in sources)
    text += f"build emulated.so: link {' '.join(s.stem + '.o' for s in sources)}\n"
    (folder / "build.ninja").write_text(text)
    jobs = shlex.split(f"-j {os.environ['MAX_JOBS']}" if os.environ.get("MAX_JOBS") else "")
    made = subprocess.run([ninja, "-C", folder, *jobs], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(f"csrc/cuda does not compile for the emulator:\n{made.stdout[-6000:]}")
    return folder / "emulated.so"


@functools.cache
def load(library: Path) -> ctypes.CDLL:
    """Defines the ops and loads their kernels; returns the library, for its settings."""
    definitions = torch.library.Library("semimatch_emulated", "DEF")
    for name, schema in NATIVE["cuda"].items():
        definitions.define(name + schema)
    torch.ops.load_library(str(library))
    loaded = ctypes.CDLL(str(library))
    loaded.keep = definitions  # the ops live as long as it does
    return loaded
