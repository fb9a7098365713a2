"""Build of the native modules; everything else about the package is in pyproject.toml.

semimatch_kernels._C (C++, CPU kernels) is built where a C++ compiler is found, semimatch_kernels._C_cuda
(CUDA kernels) where nvcc is found too, with or without a GPU, against any torch from 2.11 on. What cannot be
built is left out with one line that says why, kept in semimatch_kernels/_native_build.json; the reference and
Triton backends do without. A compiler that is there and refuses the code is an error, except for
semimatch_kernels._C_autograd (autograd in C++, which Python does too).

Environment: SEMIMATCH_CUDA=auto|0|1 (1: fail rather than leave the CUDA module out), TORCH_CUDA_ARCH_LIST
(default "8.0;9.0+PTX"), SEMIMATCH_CPU_SETS=all|baseline (baseline: what CXXFLAGS say, no choice at run time),
MAX_JOBS, CXX, CXXFLAGS, NVCC, CUDA_HOME.

The commands are written out and run by ninja, not by torch.utils.cpp_extension: that links the CUDA libraries
of torch and insists on its CUDA version. The kernels use PyTorch's stable ABI and link the CUDA runtime
statically: one binary serves torch with any CUDA, and every later version. Autograd is not part of that ABI: its
module serves the torch that it was built against.
"""

import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
# The oldest torch whose stable ABI the binaries may use: they run with that one and all later ones.
OLDEST_TORCH = (2, 11)
TORCH_TARGET = f"-DTORCH_TARGET_VERSION=0x{OLDEST_TORCH[0]:02x}{OLDEST_TORCH[1]:02x}000000000000"
CXX_FLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi -Wno-ignored-attributes"
# Messages of failed checks name the file: without the folder of the machine that built it.
NO_PATHS = f"-ffile-prefix-map={ROOT}/="
NVCC_FLAGS = "-std=c++20 -O3 -Xcompiler=-fPIC,-fvisibility=hidden"
# Instruction sets that the CPU loops are compiled for beside the compiler's own; chosen at run time.
X86_SETS = {
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512",
}
AGAIN = "then run `pip install -e . --no-build-isolation` again"


class NotBuilt(Exception):
    """Why a module is left out, and what to do about it."""


def ask(command, code):
    """Runs a compiler on `code`. Returns None if it takes it, else the line of output that says why not."""
    result = subprocess.run(command, input=code, capture_output=True, text=True)
    lines = [line.strip() for line in (result.stderr + result.stdout).splitlines()] or ["no message"]
    why = next((line for line in lines if re.search("error|fatal|unsupported", line.lower())), lines[-1])
    return why if result.returncode else None


def named(command):
    """A compiler with its version, for messages."""
    said = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout
    version = re.search(r"\d+\.\d[\d.]*", said)
    return shlex.join(command) + (f" {version[0]}" if version else "")


def find_torch():
    """Folder and version of the torch to build against. It is not imported: that takes seconds."""
    if platform.system() != "Linux":
        raise NotBuilt(f"the native modules are built on Linux only, this is {platform.system()}")
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        raise NotBuilt(f"torch could not be imported by the build; remedy: install torch, {AGAIN}")
    folder = Path(spec.origin).parent
    version = runpy.run_path(str(folder / "version.py"))["__version__"]
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST_TORCH:
        raise NotBuilt(f"torch {version} is older than 2.11; remedy: install a newer one, {AGAIN}")
    return folder, version


def find_cxx(flags):
    """The C++ compiler's command, tried out."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    command = next((shlex.split(name) for name in names if shutil.which(shlex.split(name)[0])), None)
    if command is None:
        looked = ", ".join(names)
        raise NotBuilt(
            f"no C++ compiler was found ({looked}) when semimatch was installed; remedy: install g++, {AGAIN}"
        )
    why = ask([*command, *flags, "-fsyntax-only", "-xc++", "-"], "#include <Python.h>\n#include <concepts>\n")
    if why:
        raise NotBuilt(
            f"{named(command)} cannot compile C++20 and Python.h: {why}; remedy: name another in CXX, {AGAIN}"
        )
    return command


def find_nvcc(flags):
    """nvcc and its version, tried out for the architectures asked for."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    places = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    places += ["/usr/local/cuda/bin/nvcc"]
    nvcc = next((found for found in map(shutil.which, filter(None, places)) if found), None)
    if nvcc is None:
        raise NotBuilt(
            "nvcc was not found when semimatch was installed; "
            f"remedy: install the CUDA toolkit or set CUDA_HOME, {AGAIN}"
        )
    code = "#include <concepts>\n#include <cuda_runtime.h>\n__global__ void probe() {}\n"
    why = ask([nvcc, *flags, "-x", "cu", "-c", "-o", os.devnull, "-"], code)
    if why:
        raise NotBuilt(f"{named([nvcc])} cannot compile an empty kernel: {why}; remedy: name another in NVCC, {AGAIN}")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    return nvcc, re.search(r"V([\d.]+)", text)[1]


def cuda_archs():
    """TORCH_CUDA_ARCH_LIST as text, and as options of nvcc."""
    text, options = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0+PTX", []
    for arch in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
        if match is None:
            sys.exit(f"TORCH_CUDA_ARCH_LIST: expected a list like '8.0;9.0+PTX', got {arch!r} in {text!r}")
        number = match[1] + match[2]
        codes = [f"sm_{number}", f"compute_{number}"] if match[3] else [f"sm_{number}"]
        options += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return text, options


def cpu_sets():
    """The instruction sets that are compiled beside the compiler's own, and their options."""
    wish = os.environ.get("SEMIMATCH_CPU_SETS", "all")
    if wish not in ("all", "baseline"):
        sys.exit(f"SEMIMATCH_CPU_SETS: expected all or baseline, got {wish!r}")
    return X86_SETS if wish == "all" and platform.machine() == "x86_64" else {}


def texts(**values):
    """Strings for build_info, as definitions."""
    values["TORCH_TARGET"] = ".".join(map(str, OLDEST_TORCH))
    return [f'-DSEMIMATCH_{name}="{value}"' for name, value in values.items()]


def schemas(backend):
    """The header with the schemas of the ops that a module implements, "name(arguments) -> results" a line: when the
    binary is loaded they are compared with what the package then has."""
    native = runpy.run_path(str(ROOT / "semimatch_kernels" / "schemas.py"))["NATIVE"][backend]
    lines = " \\\n".join(f'  "{name}{schema}\\n"' for name, schema in native.items())
    return f"#define SEMIMATCH_OP_SCHEMAS \\\n{lines}\n"


class Ninja:
    """The commands that make a module, run by ninja: those whose sources, headers or options have changed."""

    RULES = """\
rule compile
  command = $with -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = compile $out
rule link
  command = $with $in -o $out
  description = link $out
"""

    def __init__(self, module):
        self.module, self.objects, self.text = module, [], self.RULES
        self.folder = ROOT / "build" / "native" / sys.implementation.cache_tag / module
        self.folder.mkdir(parents=True, exist_ok=True)

    def header(self, name, text):
        """Writes a header that the sources include, if it has changed; returns the option that finds it."""
        path = self.folder / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return f"-I{self.folder}"

    def step(self, rule, output, inputs, command):
        paths = [re.sub(r"([ :$])", r"$\1", str(path)) for path in [output, *inputs]]
        line = shlex.join(map(str, command)).replace("$", "$$")
        self.text += f"build {paths[0]}: {rule} {' '.join(paths[1:])}\n  with = {line}\n"

    def compile(self, source, *command, suffix=""):
        self.objects.append(source.relative_to(CSRC).as_posix().replace("/", ".") + suffix + ".o")
        self.step("compile", self.objects[-1], [source], command)

    def link(self, *command, refused=None):
        """Links the module's objects, after making them; returns the file. Refused code is an error, or not built for
        the reason ``refused``."""
        self.step("link", f"{self.module}.so", self.objects, command)
        ninja = shutil.which("ninja") or shutil.which(Path(sys.executable).with_name("ninja"))
        if ninja is None:
            raise NotBuilt(f"ninja was not found; remedy: pip install ninja, {AGAIN}")
        folder = self.folder
        (folder / "build.ninja").write_text(self.text)
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        if subprocess.run([ninja, "-C", folder, *jobs]).returncode:
            if refused:
                raise NotBuilt(f"{refused}; see above, and {folder}/build.ninja")
            sys.exit(f"semimatch: {self.module} does not compile; see above, and {folder}/build.ninja")
        return folder / f"{self.module}.so"


def cpp_tools(torch):
    """The C++ compiler's command, the flags of the user and ours, and all that compiles a source against `torch`."""
    flags = shlex.split(f"{CXX_FLAGS} -Wno-unknown-pragmas {os.environ.get('CXXFLAGS', '')}")
    python = f"-I{sysconfig.get_path('include')}"
    cxx = find_cxx([*flags, python])
    return cxx, flags, [*cxx, *flags, python, f"-isystem{torch}/include", NO_PATHS]


def build_cpp():
    """Builds _C and returns the file."""
    torch, version = find_torch()
    cxx, flags, common = cpp_tools(torch)
    sets = cpu_sets()
    common += ["-DSEMIMATCH_CPU_X86"] if sets else []
    ninja = Ninja("_C")
    # pybind11 comes with torch, whose copy cannot be included where TORCH_TARGET_VERSION is defined.
    include = ninja.header("op_schemas.h", schemas("cpu"))
    ninja.compile(CSRC / "module.cpp", *common, include, *texts(FLAGS=" ".join(flags), TORCH=version))
    common.append(TORCH_TARGET)
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        ninja.compile(source, *common)
        for name, options in sets.items() if source.stem.endswith("_kernels") else ():
            ninja.compile(source, *common, *options.split(), f"-DSEMIMATCH_CPU={name}", suffix=f".{name}")
    return ninja.link(*cxx, "-shared", f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch_cpu")


def build_autograd():
    """Builds _C_autograd and returns the file."""
    torch, version = find_torch()
    cxx, _, common = cpp_tools(torch)
    ninja = Ninja("_C_autograd")
    common += [f"-isystem{torch}/include/torch/csrc/api/include", *texts(TORCH=version)]
    ninja.compile(CSRC / "autograd.cpp", *common)
    libraries = [f"-L{torch}/lib", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    return ninja.link(*cxx, "-shared", *libraries, refused=f"its code does not compile against torch {version}")


def build_cuda():
    """Builds _C_cuda and returns the file."""
    wish = os.environ.get("SEMIMATCH_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        sys.exit(f"SEMIMATCH_CUDA: expected auto, 0 or 1, got {wish!r}")
    if wish == "0":
        raise NotBuilt(f"switched off by SEMIMATCH_CUDA=0; remedy: unset it, {AGAIN}")
    torch, version = find_torch()
    archs, options = cuda_archs()
    flags = [*NVCC_FLAGS.split(), *options]
    nvcc, nvcc_version = find_nvcc(flags)
    ninja = Ninja("_C_cuda")
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        hidden = f"-Xcompiler={NO_PATHS}"
        ninja.compile(source, nvcc, *flags, hidden, f"-isystem={torch}/include", TORCH_TARGET, "-DUSE_CUDA")
    info = texts(FLAGS=" ".join(flags), TORCH=version, NVCC=nvcc_version, CUDA_ARCHS=archs)
    include = ninja.header("op_schemas.h", schemas("cuda"))
    ninja.compile(CSRC / "cuda/build_info.cpp", nvcc, *flags, include, *info)
    # libtorch.so exists in every torch, and brings libtorch_cuda.so along in those that have it.
    torch_library = [f"-L{torch}/lib", "-Xlinker=--no-as-needed", "-ltorch"]
    # Where pip puts the CUDA runtime that goes with an nvcc of its own.
    runtime = f"-L{Path(nvcc).resolve().parents[1]}/lib"
    return ninja.link(nvcc, "-shared", "-cudart=static", runtime, *torch_library)


BUILDERS = {
    "semimatch_kernels._C": build_cpp,
    "semimatch_kernels._C_autograd": build_autograd,
    "semimatch_kernels._C_cuda": build_cuda,
}


class BuildNative(build_ext):
    """Builds what can be built, and records why the rest cannot."""

    def get_ext_filename(self, name):
        # The CUDA module is a plain library, one file for every version of Python.
        return name.replace(".", os.sep) + ".so" if name.endswith("_cuda") else super().get_ext_filename(name)

    def build_extensions(self):
        self.report = dict.fromkeys(BUILDERS)
        for name, build in BUILDERS.items():
            try:
                built, target = build(), Path(self.get_ext_fullpath(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(built, target)
            except NotBuilt as reason:
                if build is build_cuda and os.environ.get("SEMIMATCH_CUDA") == "1":
                    sys.exit(f"SEMIMATCH_CUDA=1, but {name} cannot be built: {reason}")
                print(f"semimatch: {name} is left out: {reason}", file=sys.stderr)
                self.report[name] = str(reason)
                Path(self.get_ext_fullpath(name)).unlink(missing_ok=True)  # one from before is out of date

    def run(self):
        super().run()
        for name in BUILDERS:
            if self.inplace and self.report[name]:
                (ROOT / self.get_ext_filename(name)).unlink(missing_ok=True)
        folder = (ROOT if self.inplace else Path(self.build_lib)) / "semimatch_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_native_build.json").write_text(json.dumps(self.report, indent=1) + "\n")


SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in CSRC.rglob("*") if path.is_file())
setup(
    # "optional": a module that is left out is no error for the commands that look for its file.
    ext_modules=[Extension(name, [], depends=SOURCES, optional=True) for name in BUILDERS],
    cmdclass={"build_ext": BuildNative},
)
