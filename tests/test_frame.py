"""Checks that hold the repository together: packaging, set-up, size and cleanliness of the files."""

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("semimatch_kernels", "semimatch")

# path -> why it may have 400 lines or more
LONG_FILES: dict[str, str] = {}

# Folders of one machine, and options or addresses that tie the project to one package registry.
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:work|root|opt|home|Users|tmp/w|mnt|scratch)/[\w.]")
REGISTRY = re.compile(r"https?://[\w./-]*/(?:simple|whl|packages)\b|(?:extra-)?index-url|find-links")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project_files() -> list[Path]:
    """Tracked files and new files that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout: the list of the project's files is unknown")
    paths = [ROOT / os.fsdecode(name) for name in listing.stdout.split(b"\0") if name]
    return sorted(path for path in paths if path.is_file())


def text_of(path: Path) -> str | None:
    """The file's text; None for binary files."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def direct_requirements() -> list[Requirement]:
    content = project()
    lines = [*content["build-system"]["requires"], *content["project"]["dependencies"]]
    for extra in content["project"]["optional-dependencies"].values():
        lines += extra
    return [Requirement(line) for line in lines]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def exact_version(pin: Requirement) -> str:
    [specifier] = pin.specifier
    assert specifier.operator == "==" and "*" not in specifier.version, f"constraints.txt: {pin} is no exact pin"
    return specifier.version


# --- packaging ---


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_constraints_pin_one_admissible_version_of_every_direct_dependency(python):
    environment = {"python_version": python, "python_full_version": f"{python}.5", "sys_platform": "linux"}
    for requirement in direct_requirements():
        matching = [
            exact_version(pin)
            for pin in pins()
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
            and (pin.marker is None or pin.marker.evaluate(environment))
        ]
        assert len(matching) == 1, f"Python {python}: {requirement.name} is pinned {len(matching)} times"
        assert requirement.specifier.contains(matching[0]), f"{matching[0]} is outside {requirement}"


def test_every_constraint_is_an_exact_pin():
    for pin in pins():
        exact_version(pin)


def test_build_does_not_require_torch():
    """An isolated build would otherwise download a second torch and compile against that one."""
    assert "torch" not in {Requirement(line).name for line in project()["build-system"]["requires"]}


@pytest.mark.parametrize("command", sorted(project()["project"]["scripts"]))
def test_console_script_can_be_imported(command):
    module, function = project()["project"]["scripts"][command].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_wheel_carries_every_data_file_of_the_packages(tmp_path):
    """build_py is the part of a wheel build that picks Python and data files; nothing is compiled."""
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "--quiet", "build_py"]
    done = subprocess.run(
        [*command, "--build-lib", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = {relative(path) for path in project_files() if relative(path).split("/")[0] in PACKAGES}
    assert any(name.startswith("semimatch/configs/") for name in expected)
    built = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert expected - built == set(), "add these to [tool.setuptools.package-data] in pyproject.toml"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_version_is_that_of_the_distribution(package, monkeypatch):
    module = importlib.import_module(package)
    assert module.__version__ == importlib.metadata.version("semimatch") == project()["project"]["version"]

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert module.__version__ == "not installed"  # a clone that is only on the path
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'versions'"):
        _ = module.versions


# --- files ---


def test_files_are_short():
    """But measured results, which nobody writes."""
    files = [path for path in project_files() if not relative(path).startswith("benchmarks/results/")]
    lines = {relative(path): len(text.splitlines()) for path in files if (text := text_of(path)) is not None}
    long = {name for name, count in lines.items() if count >= 400}
    assert long - set(LONG_FILES) == set(), "split these, or list them in LONG_FILES with a reason"
    assert set(LONG_FILES) - long == set(), "these are short or gone: take them out of LONG_FILES"


@pytest.mark.parametrize("pattern", [MACHINE_PATH, REGISTRY], ids=["machine path", "registry"])
def test_no_file_names(pattern):
    found = []
    for path in project_files():
        for number, line in enumerate((text_of(path) or "").splitlines(), 1):
            if path != Path(__file__).resolve() and pattern.search(line):
                found.append(f"{relative(path)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_no_file_names_the_folder_of_this_checkout():
    found = [relative(path) for path in project_files() if str(ROOT) in (text_of(path) or "")]
    assert not found


def test_every_package_folder_says_what_is_in_it():
    folders = {
        path.parent for path in project_files() if relative(path).split("/")[0] in PACKAGES and path.suffix == ".py"
    }
    for folder in sorted(folders):
        init = folder / "__init__.py"
        assert init.is_file(), f"{relative(folder)} has no __init__.py"
        assert ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))), f"{relative(init)} has no docstring"


def test_kernel_library_does_not_import_the_trainer():
    for path in project_files():
        if relative(path).startswith("semimatch_kernels/") and path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert "semimatch" not in {name.split(".")[0] for name in names}, relative(path)


# --- scripts/setup_env.py ---


@pytest.fixture
def setup_env(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("setup_env")


@pytest.mark.parametrize(
    ("torch", "torchvision", "wrong"),
    [
        ("2.11.0", "0.26.0", "0.27.0"),
        ("2.13.0+cpu", "0.28.0", "0.29.1"),
        ("2.14.1", "0.29.1", "0.28.0"),
        ("2.15.0", "0.29.2", "0.31.0"),
    ],
)
def test_torchvision_follows_a_kept_torch(setup_env, torch, torchvision, wrong):
    specifier = Requirement(setup_env.torchvision_for(torch)).specifier
    assert specifier.contains(torchvision)
    assert not specifier.contains(wrong)


def test_a_kept_torch_replaces_its_pins_and_no_others(setup_env):
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    installed = {"torch": "2.11.0+cu130", "triton": "3.6.0", "nvidia-cublas": "13.1.0.3", "scipy": "1.9.0"}
    result = {}
    for line in setup_env.constraints_around_torch(tested, installed):
        requirement = Requirement(line)
        result.setdefault(canonicalize_name(requirement.name), []).append(str(requirement.specifier))
    assert result["torch"] == ["==2.11.0+cu130"]
    assert result["triton"] == ["==3.6.0"]
    assert result["torchvision"] == ["==0.26.*"]
    assert [name for name in result if name.startswith("nvidia-")] == ["nvidia-cublas"]
    for pin in pins():
        if not setup_env.belongs_to_torch(canonicalize_name(pin.name)):
            assert str(pin.specifier) in result[canonicalize_name(pin.name)], f"{pin} got lost"
