"""Set up the virtual environment: make it, install packages, build the native modules. Standard library only.

`make setup` runs this before every other target. What has not changed since the last run is not done again:
    packages   again when pyproject.toml, constraints.txt or these scripts change
    native     again when setup.py, csrc/ or the compilers change; ninja compiles only what has to be
An existing torch >= 2.11 (of the Python that runs this, or in the environment) is kept, never replaced.
Without a network the kernel library is still installed where torch, numpy and setuptools are present.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from probe_packages import canonical, probe

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 11)
# What the kernel library alone needs, and since which version. Without a network the rest may be missing.
ESSENTIAL = {"torch": OLDEST_TORCH, "numpy": (1, 26), "setuptools": (77, 0)}
DOWNLOADING = "downloading and installing packages (the first time takes minutes)"
# Environment variables that change what the native build produces.
BUILD_VARIABLES = (
    "CXX",
    "CXXFLAGS",
    "CUDA_HOME",
    "CUDA_PATH",
    "NVCC",
    "SEMIMATCH_CPU_SETS",
    "SEMIMATCH_CUDA",
    "TORCH_CUDA_ARCH_LIST",
)


def say(text):
    print(f"setup: {text}", flush=True)


def fail(text):
    sys.exit(f"setup: {text}")


def numbers(version):
    """'2.13.0+cpu' -> (2, 13)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def worth_keeping(torch):
    """Whether this torch version (None: no torch) is new enough for the native code."""
    return torch is not None and numbers(torch) >= OLDEST_TORCH


# --- what to install -----------------------------------------------------------------------------------


# Runs in the environment: Python 3.10 has no tomllib, but the environment's pip then carries tomli.
READ_PROJECT = """
import json
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
with open("pyproject.toml", "rb") as file:
    print(json.dumps(tomllib.load(file)))
"""


def requirements(project):
    """All requirements of a parsed pyproject.toml: build tools (the build is not isolated), base, extras."""
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    return wanted


def name_of(requirement):
    return canonical(re.match(r"[\w.-]+", requirement).group())


def torchvision_for(torch_version):
    """The torchvision range for a torch: 2.m goes with 0.(m + 15), and from 0.29 on also with newer ones."""
    minor = numbers(torch_version)[1]
    if minor >= 14:
        return f"torchvision>=0.29,<0.{minor + 16}"
    return f"torchvision==0.{minor + 15}.*"


def belongs_to_torch(name):
    return name in ("torch", "torchvision", "triton") or name.startswith(("nvidia-", "cuda-"))


def constraints_around_torch(tested, versions):
    """The lines of constraints.txt, with those of torch and its companions replaced by what is installed.

    tested: lines of constraints.txt. versions: installed {name: version}, torch among them.
    """
    lines = [f"{name}=={version}" for name, version in sorted(versions.items()) if belongs_to_torch(name)]
    if "torchvision" not in versions:
        lines.append(torchvision_for(versions["torch"]))
    for line in tested:
        if line.strip() and not line.startswith("#") and not belongs_to_torch(name_of(line)):
            lines.append(line)
    return lines


# --- the environment -----------------------------------------------------------------------------------


class Environment:
    """A virtual environment folder and the commands that run in it."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "bin" / "python"

    def run(self, *arguments, quiet=False, **options):
        """Run its Python. Returns the exit status; `quiet` drops the output."""
        if quiet:
            options.update(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False, **options).returncode

    def pip(self, *arguments, quiet=False):
        return self.run("-m", "pip", "--disable-pip-version-check", "--no-input", *arguments, quiet=quiet)

    def output(self, *arguments):
        return subprocess.check_output([str(self.python), *arguments], cwd=ROOT, text=True)

    def probe(self):
        return json.loads(self.output(str(Path(__file__).with_name("probe_packages.py"))))

    def works(self):
        try:
            return self.pip("--version", quiet=True) == 0
        except OSError:
            return False

    def make(self):
        """Create it; it sees the packages of this Python if they include a torch worth keeping."""
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").exists():
            fail(f"{self.folder} is no virtual environment, and not empty")
        outside = probe()
        torch = outside["versions"].get("torch")
        keep = worth_keeping(torch)
        if torch and not keep:
            say(f"torch {torch} of this Python is too old (2.11 is needed); {self.folder.name} gets its own")
        say(f"creating {self.folder.name} with Python {sys.version.split()[0]}")
        # A shared environment uses the outer pip: its own would bring an old setuptools, or is not there
        # (some distributions split it off).
        own_pip = [] if not keep or "pip" not in outside["versions"] else ["--without-pip"]
        command = [sys.executable, "-m", "venv", "--clear", *own_pip, str(self.folder)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if keep:
            # Not --system-site-packages: where this Python is a virtual environment itself, that shows the
            # packages of the Python it was made from.
            for site in self.folder.glob("lib/python*/site-packages"):
                text = "\n".join(outside["folders"])
                (site / "outer_packages.pth").write_text(text + "\n", encoding="utf-8")
        if not self.works():
            shutil.rmtree(self.folder, ignore_errors=True)
            fail(f"{sys.executable} cannot make a virtual environment with pip; install python3-venv")


# --- stamps: what was done last time -------------------------------------------------------------------


def digest(paths, *facts):
    """SHA-256 over the files' names and contents and the given facts."""
    total = hashlib.sha256(repr(facts).encode())
    for path in paths:
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def read_stamp(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_stamp(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


# --- packages ------------------------------------------------------------------------------------------


def registry_answers(environment):
    """Whether pip can fetch anything at all: asks once, quickly, for one small package."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--retries=0", "--timeout=5", "--no-deps", "--dest", folder]
        return environment.pip("download", *options, "wheel", quiet=True) == 0


def install_packages(environment):
    """Install everything pyproject.toml names. Returns a `package_state`."""
    seen = environment.probe()
    wanted = requirements(json.loads(environment.output("-c", READ_PROJECT)))
    tested_file = ROOT / "constraints.txt"
    tested = tested_file.read_text(encoding="utf-8").splitlines()
    torch = seen["versions"].get("torch")
    kept = worth_keeping(torch) and f"torch=={torch.split('+')[0]}" not in tested
    with tempfile.TemporaryDirectory() as folder:
        attempts = [(str(tested_file), wanted, DOWNLOADING)]
        if kept:
            say(f"keeping torch {torch}; the tested set has another one")
            attempts = attempts_around_torch(Path(folder), tested, wanted, seen["versions"])
        file, names, _ = attempts[0]
        # Needs no network if all is here already, or in a local wheel folder that pip is configured with.
        done = environment.pip("install", "--no-index", "-c", file, *names, quiet=True) == 0
        if not done and not registry_answers(environment):
            return install_offline(seen, wanted)
        for file, names, remark in attempts:
            if not done:
                say(remark)
                done = environment.pip("install", "-c", file, *names) == 0
    if not done:
        fail("pip could not install the packages; its last lines above say why")
    drop_broken_torchvision(environment)
    return package_state(environment.probe(), wanted, offline=False)


def package_state(seen, wanted, offline):
    """What is remembered about the installed packages."""
    missing = {name_of(requirement) for requirement in wanted} - set(seen["versions"])
    torch = seen["versions"].get("torch")
    return {"python": seen["python"], "torch": torch, "missing": sorted(missing), "offline": offline}


def attempts_around_torch(folder, tested, wanted, versions):
    """What to try in turn when a torch is kept: (constraints file, requirements, what to say before)."""
    whole, loose = folder / "tested.txt", folder / "loose.txt"
    whole.write_text("\n".join(constraints_around_torch(tested, versions)), encoding="utf-8")
    loose.write_text("\n".join(constraints_around_torch([], versions)), encoding="utf-8")
    wanted = [requirement for requirement in wanted if name_of(requirement) != "torch"]
    without = [requirement for requirement in wanted if name_of(requirement) not in ("torchvision", "timm")]
    vision = torchvision_for(versions["torch"])
    return [
        (str(whole), wanted, DOWNLOADING),
        (
            str(loose),
            wanted,
            "the tested versions do not fit this torch; trying others in the allowed ranges",
        ),
        (str(loose), without, f"no {vision} to be had for this torch: going on without torchvision and timm"),
    ]


def install_offline(seen, wanted):
    """No network: go on if the kernel library can be built and run, and say what else is missing."""
    for name, oldest in ESSENTIAL.items():
        version = seen["versions"].get(name)
        if version is None or numbers(version) < oldest:
            needed = f"{name} >= {oldest[0]}.{oldest[1]} is needed (here: {version or 'none'})"
            fail(f"the package registry does not answer, and {needed}")
    state = package_state(seen, wanted, offline=True)
    missing = ", ".join(state["missing"]) or "nothing"
    say(f"no package registry: going on with what is here; missing: {missing}")
    return state


def drop_broken_torchvision(environment):
    """A torchvision built for another kind of torch (CUDA against CPU) breaks on import, and timm with it."""
    if environment.run("-c", "import torchvision", quiet=True) == 0:
        return
    if environment.run("-c", "import importlib.metadata as m; m.version('torchvision')", quiet=True):
        return
    say("the torchvision to be had does not work with this torch: going on without torchvision and timm;")
    say("remedy: install the torchvision that was built with this torch, from where this torch came")
    environment.pip("uninstall", "-y", "torchvision", "timm", quiet=True)


# --- native modules ------------------------------------------------------------------------------------


def native_key(python, torch):
    sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    compilers = [
        shutil.which(os.environ.get("CXX", "c++")),
        shutil.which("nvcc"),
        shutil.which("/usr/local/cuda/bin/nvcc"),
    ]
    settings = [os.environ.get(name) for name in BUILD_VARIABLES]
    return digest([ROOT / "setup.py", *sources], python, torch, compilers, settings)


def built_modules():
    return sorted(path.name for path in (ROOT / "semimatch_kernels").glob("*.so"))


def ensure_native(environment, packages):
    """Compile in place with the output in view; setup.py itself says what it leaves out and why."""
    stamp = ROOT / "build" / "native-stamp.json"
    key = native_key(packages["python"], packages["torch"])
    if read_stamp(stamp) == {"key": key, "modules": built_modules()}:
        return
    say("building the native modules")
    if environment.run("setup.py", "build_ext", "--inplace"):
        fail("the native build failed; the compiler's message is above")
    write_stamp(stamp, key=key, modules=built_modules())
    say(f"native modules: {', '.join(built_modules()) or 'none; the reference and Triton backends remain'}")


# --- all together ---------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment's folder")
    environment = Environment(parser.parse_args().venv.absolute())
    if sys.version_info < OLDEST_PYTHON:
        fail(f"Python 3.10 or later is needed, this is {sys.version.split()[0]}; try PYTHON=python3.12")

    stamp = environment.folder / "semimatch-packages.json"
    scripts = [Path(__file__).resolve(), Path(__file__).resolve().with_name("probe_packages.py")]
    key = digest([ROOT / "pyproject.toml", ROOT / "constraints.txt", *scripts])
    packages = read_stamp(stamp)
    current = packages.get("key") == key and environment.python.exists()
    if current and packages["missing"]:
        say(f"missing until now: {', '.join(packages['missing'])}")
        arrived = set(packages["missing"]) & set(environment.probe()["versions"])
        current = not arrived and not (packages["offline"] and registry_answers(environment))
    if not current:
        if not environment.works():
            if (environment.folder / "pyvenv.cfg").exists():
                say(f"{environment.folder.name} does not run any more")
            environment.make()
        packages = {"key": key, **install_packages(environment)}
    ensure_native(environment, packages)
    if not current:
        # After the build, so that pip finds everything compiled and hides no compiler output.
        if environment.pip("install", "--quiet", "--no-build-isolation", "--no-deps", "-e", "."):
            fail("pip could not install this project; its message is above")
        write_stamp(stamp, **packages)
        environment.run("-m", "semimatch_kernels.info")


if __name__ == "__main__":
    main()
