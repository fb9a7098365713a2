"""Builds and installs the package in every way that is promised: ``make build-matrix``; needs the network.

From one source archive: with this environment's torch and with another one (``--torch``, by default a CPU-only build
where the registry has one), with all compilers, without nvcc, without any; then each torch with the binary that was
built against the other. Every wheel is looked into, installed into a fresh virtual environment, tried, and uninstalled,
after which nothing of it may be left. Everything happens under build/matrix.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "matrix"
BUILD_TOOLS = ["setuptools>=77", "wheel", "pybind11>=2.13", "ninja"]

# What an installed package says of itself, and whether its CPU kernels compute what the reference does.
TRY = """
import json, torch, semimatch_kernels as smk
from semimatch_kernels import library
assert "site-packages" in smk.__file__, smk.__file__
for backend in ("reference",) if library.CPU_REASON else ("reference", "cpu"):
    corr = torch.linspace(-1, 1, 2 * 12 * 6).reshape(2, 12, 6).sin().requires_grad_()
    m = smk.match(corr, (3, 4), backend=backend)
    loss = smk.masked_contrastive_loss(corr, m.index, weight=m.score.detach(), backend=backend) + m.entropy.sum()
    grad, = torch.autograd.grad(loss, corr)
    if backend == "reference":
        expected = m.coords, loss, grad
    for ours, wanted in zip((m.coords, loss, grad), expected):
        torch.testing.assert_close(ours, wanted)
print(json.dumps({"torch": torch.__version__, "cpu": library.CPU_REASON, "cuda": library.CUDA_REASON}))
"""


@dataclass(frozen=True)
class Way:
    """One way to build, and how the reasons of the two native modules begin ("" = the module is loaded)."""

    name: str
    environment: dict[str, str]
    cpu: str
    cuda: str


NO_COMPILER = {"CXX": "no-such-compiler", "NVCC": shutil.which("false") or "false"}


def run(*command: object, **environment: str) -> str:
    """Runs a command; its output, or an error that shows it."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SEMIMATCH_CUDA", "SEMIMATCH_BACKEND")}
    result = subprocess.run(
        list(map(str, command)), env={**inherited, **environment}, cwd=FOLDER, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


class Environment:
    """A fresh virtual environment with one torch: a version from the registry, or the one of this process."""

    def __init__(self, name: str, torch: str | None):
        self.folder = FOLDER / name
        venv.create(self.folder, with_pip=True, clear=True)
        self.python = self.folder / "bin" / "python"
        if torch is None:
            # A line in a .pth file adds a folder without running the .pth files in it: not our own editable install.
            [site] = self.folder.glob("lib/python*/site-packages")
            (site / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        more = [] if torch is None else [f"torch=={torch}", "numpy>=1.26"]
        run(self.python, "-m", "pip", "install", "-q", "-U", *BUILD_TOOLS, *more)
        facts = "import torch; print(torch.__version__, torch.version.cuda is not None)"
        self.torch, cuda = run(self.python, "-c", facts).split()
        self.cuda = cuda == "True"

    def files(self) -> set[Path]:
        return {path for path in self.folder.rglob("*") if "__pycache__" not in path.parts and path.is_file()}

    def build(self, source: Path, way: Way) -> Path:
        """A wheel of the source archive."""
        target = FOLDER / f"wheel-{self.folder.name}-{way.name.replace(' ', '-')}"
        options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "-q", "-w", target]
        run(self.python, "-m", "pip", "wheel", *options, source, **way.environment)
        [wheel] = target.glob("*.whl")
        return wheel

    def use(self, wheel: Path, cpu: str, cuda: str) -> None:
        """Installs, tries, uninstalls."""
        before = self.files()
        run(self.python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
        said = json.loads(run(self.python, "-c", TRY, OMP_NUM_THREADS="1").splitlines()[-1])
        for backend, wanted in (("cpu", cpu), ("cuda", cuda)):
            reason = said[backend] or ""
            if not reason.startswith(wanted) or bool(reason) != bool(wanted):
                raise RuntimeError(f"{backend}: expected {wanted or 'loaded'!r}, got {reason or 'loaded'!r}")
        run(self.python, "-m", "semimatch_kernels.info")
        run(self.python, "-m", "pip", "uninstall", "-q", "-y", "semimatch")
        if left := self.files() - before:
            raise RuntimeError(f"left behind by pip uninstall: {sorted(map(str, left))}")


def check_sdist(archive: Path) -> None:
    """The source archive has all that a build and the tests need, and nothing built."""
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    tracked = set(run("git", "-C", ROOT, "ls-files", "csrc", "semimatch", "semimatch_kernels", "tests").split())
    if missing := tracked - names:
        raise RuntimeError(f"missing from the source archive: {sorted(missing)}")
    if built := [name for name in names if name.endswith((".so", ".o", ".pyc", "_native_build.json"))]:
        raise RuntimeError(f"built files in the source archive: {built}")


def check_wheel(wheel: Path, way: Way) -> None:
    """The wheel has the two packages, the modules that could be built, and nothing else."""
    names = zipfile.ZipFile(wheel).namelist()
    if strange := [n for n in names if not n.startswith(("semimatch/", "semimatch_kernels/", "semimatch-"))]:
        raise RuntimeError(f"does not belong into the wheel: {strange}")
    native = {Path(n).name.partition(".")[0] for n in names if n.endswith(".so")}
    wanted = {"_C"} if way.cpu == "" else set()
    wanted |= set() if way.cuda.startswith("not built") else {"_C_cuda"}
    if native != wanted:
        raise RuntimeError(f"native modules in the wheel: expected {sorted(wanted)}, got {sorted(native)}")


def main() -> None:
    """Try all ways; exit status 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default="2.13.0", help="version of the other torch (default %(default)s)")
    args = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    failed = []

    def step(name: str, action):
        try:
            result = action()
            print(f"ok      {name}", flush=True)
            return result
        except RuntimeError as error:
            failed.append(name)
            print(f"FAILED  {name}: {error}", flush=True)
            return None

    here, other = Environment("here", None), Environment("other", args.torch)
    command = "from setuptools.build_meta import build_sdist; build_sdist('{}')"
    subprocess.run([sys.executable, "-c", command.format(FOLDER)], cwd=ROOT, check=True, capture_output=True)
    [source] = FOLDER.glob("*.tar.gz")
    step("source archive: complete, nothing built", lambda: check_sdist(source))
    wheels = {}
    for environment in (here, other):
        without = "" if environment.cuda else f"this torch ({environment.torch}) is built without CUDA"
        ways = [Way("all compilers", {"SEMIMATCH_CUDA": "1"}, "", without)]
        if environment is other:
            ways += [
                Way("no nvcc", {"NVCC": NO_COMPILER["NVCC"]}, "", "not built: "),
                Way("no compiler", NO_COMPILER, "not built: no C++ compiler", "not built: "),
            ]
        for way in ways:
            name = f"torch {environment.torch}, {way.name}"
            wheel = step(f"{name}: builds", lambda e=environment, w=way: e.build(source, w))
            if wheel is None:
                continue
            wheels[environment, way.name] = wheel
            step(f"{name}: contents", lambda p=wheel, w=way: check_wheel(p, w))
            step(
                f"{name}: installs, runs, uninstalls without a trace",
                lambda e=environment, p=wheel, w=way: e.use(p, w.cpu, w.cuda),
            )
    for built, used in ((here, other), (other, here)):
        wheel = wheels.get((built, "all compilers"))
        without = "" if used.cuda else f"this torch ({used.torch}) is built without CUDA"
        if wheel is not None:
            step(
                f"built with torch {built.torch}, runs with torch {used.torch}",
                lambda u=used, p=wheel, w=without: u.use(p, "", w),
            )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
