"""``python -m benchmarks.gpu_check``, ``make gpu-check``: all that needs a GPU, in under eight minutes, no network.

Runs in the current interpreter, whose PyTorch sees the GPU, in this order, each step with a limit of time and a log:
packages that were brought along, native build, tests marked `gpu`, the four tools of compute-sanitizer, benchmarks,
report. It stops at the first step that fails, so there is no number of code whose tests are red; what there is by then
is written to ``benchmarks/results/<device>/gpu_check.md`` and ``.json`` in any case.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from . import machine, run

ROOT = machine.ROOT
#: Wheels brought along, for a machine without network; ignored by git.
CARRY = ROOT / ".carry"
SITE = ROOT / "build" / "gpu_check" / "site"
#: Module -> distribution that the steps need beside PyTorch and Triton.
NEEDED = {
    "numpy": "numpy",
    "setuptools": "setuptools",
    "pybind11": "pybind11",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
    "pytest_benchmark": "pytest-benchmark",
}
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
#: What the tests have in their names that fill the memory of a GPU each: not side by side.
LARGE = "32_bits"
SECONDS = 480.0
#: Kept for the report when the benchmarks are told how long they may take.
RESERVE = 25.0


@dataclass(frozen=True)
class Step:
    """One command. ``missing``: why it cannot even be tried, which is a failure too."""

    name: str
    command: list[str]
    seconds: float
    env: dict[str, str] = field(default_factory=dict)
    missing: str | None = None


@dataclass
class Outcome:
    """What became of a step: "passed", "failed", "timed out", "missing", "not reached" or "left out"."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""
    log: str = ""


def packages_missing() -> list[str]:
    """Distributions that this interpreter lacks; ninja may also be a program."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if importlib.util.find_spec("ninja") is None and shutil.which("ninja") is None:
        missing.append("ninja")
    return missing


def kernel_tests() -> list[str]:
    """The test files that do not import the trainer: its packages need not be on a GPU machine."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    trainer = re.compile(r"^\s*(from|import) semimatch[.\s]", re.MULTILINE)
    return [str(f.relative_to(ROOT)) for f in files if not trainer.search(f.read_text(encoding="utf-8"))]


def steps(missing: list[str], capability: str, target: Path) -> list[Step]:
    """All steps in order. ``missing`` packages are taken from `CARRY`; ``capability``: architecture that is built."""
    python, wheels = sys.executable, sorted(map(str, CARRY.glob("*.whl")))
    found: list[Step] = []
    if missing:
        install = [python, "-m", "pip", "install", "--no-index", "--no-deps", "--upgrade", "--target", str(SITE)]
        none = None if wheels else f"{', '.join(missing)}: not installed, and no wheels in {CARRY.name}/"
        found.append(Step("packages", [*install, *wheels], 60, missing=none))
    build = {"SEMIMATCH_CUDA": "1", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", capability)}
    found.append(Step("build", [python, "setup.py", "build_ext", "--inplace"], 150, build))
    loaded = "from semimatch_kernels import library as l; import sys; sys.exit(l.CPU_REASON or l.CUDA_REASON)"
    found.append(Step("load", [python, "-c", loaded], 60))
    tests = [python, "-m", "pytest", "-q", "--durations=10"]
    parallel = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    found.append(Step("tests", [*tests, *kernel_tests(), "-m", "gpu", "-k", f"not {LARGE}", *parallel], 210))
    found.append(Step("large tests", [*tests, "-p", "no:xdist", "tests/test_gpu.py", "-k", LARGE], 90))
    sanitizer = shutil.which("compute-sanitizer")
    none = None if sanitizer else "compute-sanitizer is not on PATH"
    # Every allocation on its own, so that a kernel that leaves its tensor leaves the allocation too.
    env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in TOOLS:
        command = [sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        selection = [python, "-m", "pytest", "-q", "-p", "no:xdist", "-x", "tests/test_gpu.py", "-k", "sanitized"]
        found.append(Step(tool, command + selection, 60, env, none))
    # Without max-autotune: minutes for one group of products.
    found.append(Step("benchmarks", run.command(target, "--seconds=0.05", "--compile=default"), 600))
    found.append(Step("report", [python, "-m", "benchmarks.report", str(target)], RESERVE))
    return found


def execute(step: Step, limit: float, log: Path) -> int | None:
    """Exit status of a step whose output goes to ``log``; None where it ran past ``limit`` seconds, and was ended with
    all that it had started."""
    environment = dict(os.environ) | {"PYTHONUNBUFFERED": "1"} | step.env
    for name, folder in (("PYTHONPATH", SITE), ("PATH", SITE / "bin")):
        environment[name] = os.pathsep.join(filter(None, (str(folder), environment.get(name))))
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:  # interrupted, too
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def check(
    todo: list[Step],
    logs: Path,
    total: float = SECONDS,
    left_out: tuple[str, ...] = (),
    runner: Callable[[Step, float, Path], int | None] = execute,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Runs the steps until one fails or ``total`` seconds are over; the rest is "not reached"."""
    begin, red = clock(), False
    for step in todo:
        if step.name in left_out:
            yield Outcome(step.name, "left out", detail="by --without")
            continue
        remaining = total - (clock() - begin)
        if red or remaining <= 0:
            yield Outcome(step.name, "not reached", detail="" if red else "no time left")
            red = True
            continue
        print(f"gpu-check: {step.name} ...", flush=True)
        outcome = _run(step, remaining, logs / f"{step.name.replace(' ', '_')}.log", runner, clock)
        print(f"gpu-check: {step.name}: {outcome.status}, {outcome.seconds:.0f} s {outcome.detail}", flush=True)
        red = outcome.status != "passed"
        yield outcome


def _run(step: Step, remaining: float, log: Path, runner: Callable, clock: Callable) -> Outcome:
    if step.missing is not None:
        return Outcome(step.name, "missing", detail=step.missing)
    limit = min(step.seconds, remaining)
    if step.name == "benchmarks":  # they end by themselves, at whole groups
        limit = remaining
        budget = max(1.0, remaining - 3 * RESERVE)
        step = Step(step.name, [*step.command, f"--budget={budget:.0f}"], step.seconds, step.env)
    start = clock()
    status = runner(step, limit, log)
    seconds = clock() - start
    if status == 0:
        return Outcome(step.name, "passed", seconds, log=str(log))
    if status is None:
        return Outcome(step.name, "timed out", seconds, f"ran past {limit:.0f} s", str(log))
    return Outcome(step.name, "failed", seconds, f"exit status {status}", str(log))


def page(about: dict[str, str], outcomes: list[Outcome], tail: int = 40) -> str:
    """Markdown of the outcomes, with the end of the log of the step that failed."""
    verdict = "passed" if passed(outcomes) else "FAILED"
    lines = [f"# GPU check: {verdict}", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += ["| step | outcome | seconds | |", "|---|---|--:|---|"]
    lines += [f"| {o.name} | {o.status} | {o.seconds:.0f} | {o.detail} |" for o in outcomes]
    for outcome in outcomes:
        log = Path(outcome.log) if outcome.log else None
        if outcome.status in ("failed", "timed out") and log is not None and log.exists():
            end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-tail:]
            lines += ["", f"The end of what `{outcome.name}` printed:", "", "```text", *end, "```"]
    return "\n".join(lines) + "\n"


def passed(outcomes: list[Outcome]) -> bool:
    """Whether every step passed that was not left out by request."""
    return bool(outcomes) and all(o.status in ("passed", "left out") for o in outcomes)


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0: all passed; 1: a step did not; 2: there is no GPU, and nothing was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of the whole check (default 480)")
    parser.add_argument("--without", action="append", default=[], help="leave out a step, which the report says")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"gpu-check: PyTorch {torch.__version__} (CUDA {torch.version.cuda or 'none'}) sees no GPU; "
            "nothing was run. Without one: make test",
            file=sys.stderr,
        )
        return 2
    folder = machine.results_folder()
    logs = ROOT / "build" / "gpu_check"
    logs.mkdir(parents=True, exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    todo = steps(packages_missing(), f"{major}.{minor}", folder / "kernels.json")
    unknown = set(options.without) - {step.name for step in todo}
    if unknown:
        parser.error(f"--without: no step {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in todo)}")
    about = {
        "gpu": torch.cuda.get_device_name(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "commit": machine.commit(),
    }
    outcomes: list[Outcome] = []
    try:
        for outcome in check(todo, logs, options.seconds, tuple(options.without)):
            outcomes.append(outcome)
    finally:
        (folder / "gpu_check.md").write_text(page(about, outcomes), encoding="utf-8")
        content = {"about": about, "passed": passed(outcomes), "steps": [asdict(o) for o in outcomes]}
        for entry in content["steps"]:
            del entry["log"]  # a path of this machine
        (folder / "gpu_check.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"gpu-check: written to {folder.relative_to(ROOT)}, logs in {logs.relative_to(ROOT)}")
    return 0 if passed(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
