"""Options of the benchmarks; the machine, and what could not be measured, in every result file."""

from __future__ import annotations

import pytest

from . import machine

_NOT_MEASURED = pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("semimatch")
    group.addoption("--seconds", type=float, default=0.2, help="time spent on each op, shape and phase, per peer")
    group.addoption("--budget", type=float, default=float("inf"), help="seconds after which no other group is begun")
    group.addoption(
        "--compile",
        choices=["none", "default", "goals", "max"],
        default="goals",
        help="torch.compile as a peer; with max-autotune too, on a GPU where the project has a goal, or everywhere",
    )


def pytest_configure(config):
    config.stash[_NOT_MEASURED] = []


@pytest.fixture
def not_measured(request) -> list:
    """Entries that there is no number of, with the reason."""
    return request.config.stash[_NOT_MEASURED]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["semimatch"] = machine.describe() | machine.ceilings()


def pytest_benchmark_update_json(config, benchmarks, output_json):
    output_json["not_measured"] = config.stash[_NOT_MEASURED]
    for entry in output_json["benchmarks"]:
        del entry["params"]  # repeats extra_info, in words no program reads
        del entry["stats"]["data"]  # every round: median, quartiles and extremes are kept
