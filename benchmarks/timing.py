"""Interleaved timing: every peer once a round, so that a disturbance hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor


def floats(result: object) -> list[Tensor]:
    """The floating tensors of a result, however nested."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [t for r in result for t in floats(r)]


def step(function: Callable, inputs: list[Tensor], leaves: int, backward: bool) -> Callable[[], object]:
    """One call: forward without gradient, or forward and backward to the first ``leaves`` inputs, from fixed upstream
    gradients of every differentiable result."""
    if not backward:

        def forward() -> object:
            with torch.no_grad():
                return function(*inputs)

        return forward
    given = [t.clone().requires_grad_() if i < leaves else t for i, t in enumerate(inputs)]
    wanted = [t for t in given if t.requires_grad]
    upstream = [torch.randn_like(t) for t in floats(function(*given)) if t.requires_grad]

    def both() -> object:
        results = [t for t in floats(function(*given)) if t.requires_grad]
        return torch.autograd.grad(results, wanted, upstream)

    return both


def _seconds(function: Callable[[], object], calls: int) -> float:
    if torch.cuda.is_available():
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - begin) / calls


def interleaved(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds a call of each step, a list of rounds: as many as fit into ``seconds`` for each, at least 5, at most
    200."""
    calls = {}
    for name, function in steps.items():
        _seconds(function, 2)  # warm up
        once = _seconds(function, 1)
        calls[name] = max(1, int(1e-3 / max(once, 1e-9)))  # a round lasts a millisecond at least
    slowest = max(_seconds(f, calls[n]) * calls[n] for n, f in steps.items())
    rounds = int(min(200, max(5, seconds / slowest)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, function in steps.items():
            function()  # untimed: its own caches and memory, not those of the peer before
            samples[name].append(_seconds(function, calls[name]))
    return samples
