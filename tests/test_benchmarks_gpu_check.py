"""`make gpu-check` without a GPU: order, limits of time, stop at the first failure, and what is written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check, machine
from benchmarks.gpu_check import Outcome, Step


class Fake:
    """A clock, and a runner of steps that take as long and end as ``plan`` says: name -> (seconds, exit status)."""

    def __init__(self, plan=()):
        self.now, self.plan, self.ran = 0.0, dict(plan), []

    def clock(self):
        return self.now

    def run(self, step, limit, log):
        seconds, status = self.plan.get(step.name, (10, 0))
        self.ran.append((step.name, limit, step.command))
        log.write_text(f"line of {step.name}\n")
        self.now += min(seconds, limit)
        return status if seconds <= limit else None


@pytest.fixture
def todo(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/bin/{name}")
    return gpu_check.steps([], "9.0", tmp_path / "kernels.json")


def _check(todo, fake, tmp_path, **more):
    return list(gpu_check.check(todo, tmp_path, runner=fake.run, clock=fake.clock, **more))


def test_order_and_commands(todo):
    names = [step.name for step in todo]
    assert names == ["build", "load", "tests", "large tests", *gpu_check.TOOLS, "benchmarks", "report"]
    commands = {step.name: " ".join(step.command) for step in todo}
    assert "setup.py build_ext --inplace" in commands["build"] and "-m gpu" in commands["tests"]
    assert all(f"--tool {tool} --error-exitcode" in commands[tool] for tool in gpu_check.TOOLS)
    assert all(step.command[0] == sys.executable for step in todo if step.name not in gpu_check.TOOLS)
    assert not any("pip" in command or "setup_env" in command for command in commands.values())
    build = next(step for step in todo if step.name == "build")
    assert build.env["SEMIMATCH_CUDA"] == "1" and build.env["TORCH_CUDA_ARCH_LIST"]


def test_the_tests_are_those_of_the_kernels():
    """A GPU machine need not have what the trainer uses."""
    names = {Path(path).name for path in gpu_check.kernel_tests()}
    assert {"test_registration.py", "test_accuracy.py", "test_hygiene.py", "test_match.py", "test_gpu.py"} <= names
    assert not any(name.startswith(("test_data", "test_models", "test_cli")) for name in names)


def test_all_green(todo, tmp_path):
    fake = Fake()
    outcomes = _check(todo, fake, tmp_path)
    assert gpu_check.passed(outcomes) and [o.status for o in outcomes] == ["passed"] * len(todo)
    assert [name for name, _, _ in fake.ran] == [step.name for step in todo]
    limits = {name: limit for name, limit, _ in fake.ran}
    assert limits["build"] == 150 and limits["benchmarks"] == 480 - 10 * (len(todo) - 2)
    # the benchmarks are told to end before the limit, so that there is a file, and time for the report
    [budget] = [a for _, _, command in fake.ran for a in command if a.startswith("--budget=")]
    assert float(budget.removeprefix("--budget=")) == limits["benchmarks"] - 3 * gpu_check.RESERVE


@pytest.mark.parametrize("red", ["build", "tests", "racecheck"])
def test_stops_on_red_and_gives_no_number(todo, tmp_path, red):
    fake = Fake({red: (5, 1)})
    outcomes = {o.name: o for o in _check(todo, fake, tmp_path)}
    assert fake.ran[-1][0] == red and outcomes[red].status == "failed"
    assert outcomes["benchmarks"].status == outcomes["report"].status == "not reached"
    assert not gpu_check.passed(list(outcomes.values()))
    text = gpu_check.page({"gpu": "G"}, list(outcomes.values()))
    assert "GPU check: FAILED" in text and f"line of {red}" in text and "- gpu: G" in text
    assert f"| {red} | failed | 5 | exit status 1 |" in text and "| benchmarks | not reached | 0 |  |" in text


def test_limits_of_time(todo, tmp_path):
    outcomes = {o.name: o for o in _check(todo, Fake({"tests": (1000, 0)}), tmp_path)}
    assert outcomes["tests"].status == "timed out" and outcomes["tests"].seconds == 210
    assert "ran past 210 s" in outcomes["tests"].detail
    fake = Fake({"build": (50, 0), "tests": (50, 0)})
    outcomes = {o.name: o for o in _check(todo, fake, tmp_path, total=70)}
    assert outcomes["tests"].status == "timed out" and outcomes["tests"].seconds == 10  # build 50, load 10
    assert fake.now == 70 and outcomes["memcheck"].status == "not reached"
    outcomes = _check(todo, Fake({"build": (30, 0)}), tmp_path, total=30)
    assert outcomes[1].detail == "no time left" and not gpu_check.passed(outcomes)


def test_left_out_on_request_is_said(todo, tmp_path):
    fake = Fake()
    outcomes = _check(todo, fake, tmp_path, left_out=gpu_check.TOOLS)
    assert gpu_check.passed(outcomes) and "| memcheck | left out | 0 | by --without |" in gpu_check.page({}, outcomes)
    assert not set(gpu_check.TOOLS) & {name for name, _, _ in fake.ran}


def test_a_missing_sanitizer_fails_the_check(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    outcomes = {o.name: o for o in _check(gpu_check.steps([], "9.0", tmp_path / "k.json"), Fake(), tmp_path)}
    assert outcomes["memcheck"].status == "missing" and "not on PATH" in outcomes["memcheck"].detail
    assert outcomes["benchmarks"].status == "not reached"


def test_packages_come_from_the_folder_of_wheels(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "CARRY", tmp_path)
    first = gpu_check.steps(["pytest"], "9.0", tmp_path / "k.json")[0]
    assert first.name == "packages" and "pytest: not installed, and no wheels" in first.missing
    (tmp_path / "pytest-9.whl").touch()
    first = gpu_check.steps(["pytest"], "9.0", tmp_path / "k.json")[0]
    assert first.missing is None and "--no-index" in first.command and first.command[-1].endswith("pytest-9.whl")


def test_nothing_run_is_not_passed():
    assert not gpu_check.passed([])
    assert not gpu_check.passed([Outcome("build", "passed"), Outcome("tests", "not reached")])


def test_execute(tmp_path):
    log = tmp_path / "log"
    script = "import os; print(os.environ['X'], os.environ['PYTHONPATH'], flush=True); raise SystemExit(3)"
    assert gpu_check.execute(Step("s", [sys.executable, "-c", script], 9, {"X": "7"}), 30, log) == 3
    assert log.read_text().startswith(f"7 {gpu_check.SITE}")
    # what the step started ends with it
    child = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    start = time.monotonic()
    assert gpu_check.execute(Step("s", [sys.executable, "-c", child], 9), 1, log) is None
    assert time.monotonic() - start < 20


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """A GPU, as far as the check asks before its steps."""
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_check.torch.cuda, "get_device_name", lambda *a: "Some GPU")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(machine, "results_folder", lambda: tmp_path)
    return tmp_path


def test_the_files_are_written_whatever_happens(pretended, monkeypatch):
    def interrupted(todo, *rest):
        yield Outcome("build", "passed", 3.0, log=str(pretended / "build.log"))
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_check, "check", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu_check.main([])
    written = json.loads((pretended / "gpu_check.json").read_text())
    assert written["about"]["gpu"] == "Some GPU" and written["steps"][0]["name"] == "build"
    assert "log" not in written["steps"][0]
    assert "| build | passed | 3 |" in (pretended / "gpu_check.md").read_text()
    monkeypatch.setattr(gpu_check, "check", lambda todo, *rest: iter([Outcome("build", "failed")]))
    assert gpu_check.main([]) == 1
    monkeypatch.setattr(gpu_check, "check", lambda todo, *rest: iter([Outcome("build", "passed")]))
    assert gpu_check.main(["--without", "memcheck"]) == 0
    with pytest.raises(SystemExit, match="2"):
        gpu_check.main(["--without", "nothing"])


@pytest.mark.skipif(gpu_check.torch.cuda.is_available(), reason="a GPU is visible")
def test_without_a_gpu_it_says_so_and_does_nothing(tmp_path):
    before = sorted(machine.ROOT.glob("benchmarks/results/*"))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check"], cwd=machine.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "sees no GPU; nothing was run" in done.stderr and not done.stdout
    assert sorted(machine.ROOT.glob("benchmarks/results/*")) == before
