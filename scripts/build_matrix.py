"""Builds and installs the package in every way that is promised: ``make build-matrix``; needs the network.

From one source archive: with this environment's torch and with another one (``--torch``), one of which must have CUDA
and the other not, with all compilers, without nvcc, without any; then each torch with the binary that was built against
the other. Every wheel is looked into, installed into a fresh virtual environment, tried, and uninstalled, after which
nothing of it may be left. What cannot run must say why, name versions and a remedy. No GPU is needed, nvcc is.
Everything happens under build/matrix.

pip fetches the other torch as it is configured here. A registry without CPU-only builds needs the help of another
index: ``PIP_EXTRA_INDEX_URL`` or ``PIP_FIND_LINKS``, pip's own settings.
"""

from __future__ import annotations

import argparse
import functools
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
import contextlib, io, json, torch, semimatch_kernels as smk
from semimatch_kernels import info, library
assert "site-packages" in smk.__file__, smk.__file__
for backend in ("reference",) if library.CPU_REASON else ("reference", "cpu"):
    corr = torch.linspace(-1, 1, 2 * 12 * 6).reshape(2, 12, 6).sin().requires_grad_()
    m = smk.match(corr, (3, 4), backend=backend)
    loss = smk.masked_contrastive_loss(corr, m.index, weight=m.score.detach(), backend=backend) + m.entropy.sum()
    grad, = torch.autograd.grad(loss, corr)
    src = torch.linspace(-3, 3, 2 * 5 * 12).reshape(2, 5, 3, 4).cos().requires_grad_()
    level = smk.correlation(src, src.flip(1), backend=backend)
    by_src, = torch.autograd.grad(level.square().sum(), src)
    if backend == "reference":
        expected = m.coords, loss, grad, level, by_src
    for ours, wanted in zip((m.coords, loss, grad, level, by_src), expected, strict=True):
        torch.testing.assert_close(ours, wanted)
reasons = {"cpu": library.CPU_REASON, "cuda": library.CUDA_REASON}
with contextlib.redirect_stdout(io.StringIO()) as told:
    info.main()
for backend, reason in reasons.items():
    if reason is not None:
        assert f"  {backend}: {reason}  [" in told.getvalue(), told.getvalue()
        try:
            smk.match(corr, (3, 4), backend=backend)
        except smk.BackendError as error:
            assert str(error) == f"backend {backend!r} cannot run match here: {reason}", error
        else:
            raise AssertionError(f"{backend} ran match, which it cannot: {reason}")
print(json.dumps({**reasons, "autograd": library.AUTOGRAD_REASON}))
"""


@dataclass(frozen=True)
class Way:
    """One way to build, and how the reasons of the native modules must begin ("" = the module is loaded)."""

    name: str
    environment: dict[str, str]
    cpu: str
    cuda: str
    autograd: str


# Each architecture takes minutes, and no GPU runs it; so do the instruction sets, which once is enough for.
ONE_ARCH, ONE_SET = {"TORCH_CUDA_ARCH_LIST": "8.0"}, {"SEMIMATCH_CPU_SETS": "baseline"}
FALSE = shutil.which("false") or "false"
NO_NVCC = f"not built: {FALSE}"
NO_CXX = "not built: no C++ compiler was found (no-such-compiler) when semimatch was installed"
WAYS = [
    Way("no nvcc", {"NVCC": FALSE, **ONE_SET}, "", NO_NVCC, ""),
    Way("no compiler", {"NVCC": FALSE, "CXX": "no-such-compiler"}, NO_CXX, NO_NVCC, NO_CXX),
]


def run(*command: object, **environment: str) -> str:
    """Runs a command; its output, or an error that shows it."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("SEMIMATCH_")}
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

    def without_cuda(self) -> str:
        """Why a CUDA module does not run with this torch; "" where it does."""
        return "" if self.cuda else f"this torch ({self.torch}) is built without CUDA"

    def contents(self) -> set[Path]:
        """Files and folders, less the byte code of other packages, which appears when they are first imported."""
        found = {path.relative_to(self.folder) for path in self.folder.rglob("*")}
        return {path for path in found if "__pycache__" not in path.parts or "semimatch" in str(path)}

    def build(self, source: Path, way: Way) -> Path:
        """A wheel of the source archive."""
        target = FOLDER / f"wheel-{self.folder.name}-{way.name.replace(' ', '-')}"
        options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "-q", "-w", target]
        run(self.python, "-m", "pip", "wheel", *options, source, **way.environment)
        [wheel] = target.glob("*.whl")
        return wheel

    def use(self, wheel: Path, **wanted: str) -> None:
        """Installs, tries, uninstalls; ``wanted``: how the reasons of cpu, cuda and autograd must begin."""
        before = self.contents()
        # Whatever the torch next door has of this package: it is none of ours.
        run(self.python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel)
        try:
            said = json.loads(run(self.python, "-c", TRY, OMP_NUM_THREADS="1").splitlines()[-1])
        finally:
            run(self.python, "-m", "pip", "uninstall", "-q", "-y", "semimatch")
        if left := self.contents() - before:
            raise RuntimeError(f"left behind by pip uninstall: {sorted(map(str, left))}")
        for what, begin in wanted.items():
            reason = said[what] or ""
            if not reason.startswith(begin) or bool(reason) != bool(begin):
                raise RuntimeError(f"{what}: expected {begin or 'loaded'!r}, got {reason or 'loaded'!r}")
            if reason:
                print(f"        {what}: {reason}")
            if reason and "; remedy: " not in reason:
                raise RuntimeError(f"{what}: no remedy is named: {reason}")


@functools.cache
def tracked(*folders: str) -> frozenset[str]:
    """The files of the repository, with their present contents; those of the repository's own host excepted."""
    names = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return frozenset(name for name in names.split() if not name.startswith((".ci/", ".git")))


def pack() -> Path:
    """The source archive, made from a copy that holds what is tracked and nothing else: setuptools also packs what it
    packed before."""
    for name in tracked():
        (FOLDER / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, FOLDER / "source" / name)
    command = f"from setuptools.build_meta import build_sdist; build_sdist({str(FOLDER)!r})"
    subprocess.run([sys.executable, "-c", command], cwd=FOLDER / "source", check=True, capture_output=True)
    [archive] = FOLDER.glob("*.tar.gz")
    return archive


def check_sdist(archive: Path) -> None:
    """The source archive has all that is tracked, and beside it what setuptools says of the package."""
    with tarfile.open(archive) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    if missing := tracked() - names:
        raise RuntimeError(f"missing from the source archive: {sorted(missing)}")
    strange = {n for n in names - tracked() if n not in ("PKG-INFO", "setup.cfg") and ".egg-info/" not in n}
    if strange:
        raise RuntimeError(f"does not belong into the source archive: {sorted(strange)}")


def check_wheel(wheel: Path, way: Way) -> None:
    """The wheel has the two packages with the modules that could be built, the license, and nothing else."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    native = {name for name in names if name.endswith(".so")}
    built = {Path(name).name.partition(".")[0] for name in native}
    wanted = ({"_C", "_C_autograd"} if way.cpu == "" else set()) | (
        set() if way.cuda.startswith("not built") else {"_C_cuda"}
    )
    if built != wanted:
        raise RuntimeError(f"native modules in the wheel: expected {sorted(wanted)}, got {sorted(built)}")
    about = {name for name in names if name.startswith("semimatch-") and ".dist-info/" in name}
    expected = tracked("semimatch", "semimatch_kernels") | {"semimatch_kernels/_native_build.json"}
    if missing := expected - names:
        raise RuntimeError(f"missing from the wheel: {sorted(missing)}")
    if strange := names - expected - native - about:
        raise RuntimeError(f"does not belong into the wheel: {sorted(strange)}")
    if not any(name.endswith("/LICENSE") for name in about):
        raise RuntimeError("the wheel has no license")


def check_torches(here: Environment, other: Environment) -> None:
    """One torch with CUDA and one without."""
    if here.cuda == other.cuda:
        kind = "with" if here.cuda else "without"
        raise RuntimeError(
            f"torch {here.torch} and {other.torch} are both built {kind} CUDA; remedy: name another version with "
            "--torch, or an index with the other kind of build in PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
        )


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
    step(f"torch {here.torch} and torch {other.torch}: one with CUDA", lambda: check_torches(here, other))
    source = pack()
    step("source archive: complete, nothing built", lambda: check_sdist(source))
    wheels = {}
    for environment in (here, other):
        again = ONE_SET if environment is other else {}
        ways = [Way("all compilers", {"SEMIMATCH_CUDA": "1", **ONE_ARCH, **again}, "", environment.without_cuda(), "")]
        for way in ways + (WAYS if environment is other else []):
            name = f"torch {environment.torch}, {way.name}"
            wheel = step(f"{name}: builds", lambda e=environment, w=way: e.build(source, w))
            if wheel is None:
                continue
            wheels[environment, way.name] = wheel
            step(f"{name}: contents", lambda p=wheel, w=way: check_wheel(p, w))
            step(
                f"{name}: installs, runs, uninstalls without a trace",
                lambda e=environment, p=wheel, w=way: e.use(p, cpu=w.cpu, cuda=w.cuda, autograd=w.autograd),
            )
    for built, used in ((here, other), (other, here)):
        if wheel := wheels.get((built, "all compilers")):
            step(
                f"built with torch {built.torch}, runs with torch {used.torch}",
                # "built for torch …", or "built, but does not load with torch …" where its symbols have changed.
                lambda u=used, p=wheel: u.use(p, cpu="", cuda=u.without_cuda(), autograd="built"),
            )
    print(f"{len(failed)} failed: {'; '.join(failed)}" if failed else "all hold")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
