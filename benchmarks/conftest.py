"""Options of the benchmarks, and the machine in every result file."""

from __future__ import annotations

import pytest
import torch

from . import machine


def pytest_addoption(parser):
    group = parser.getgroup("semimatch")
    group.addoption("--seconds", type=float, default=0.4, help="time spent on each op, shape and phase, per peer")
    group.addoption("--no-compile", action="store_true", help="leave out torch.compile")


def pytest_configure(config):
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["semimatch"] = machine.describe() | machine.ceilings()


@pytest.fixture(autouse=True)
def _quiet_graph():
    """No graph of one measurement lives on into the next."""
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
