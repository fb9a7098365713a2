"""Interleaved timing: every peer once a round, so that a disturbance hits all of them.

On a GPU three times are taken of each: "warm", a CUDA graph replayed back to back, the time of its kernels without the
host; "cold", one replay after a write through the whole L2; "wall", what a program sees that calls and waits. What
cannot be captured (the reason is kept) is timed by events around calls instead, so that the host counts there. On the
CPU "warm" is the wall time of calls back to back.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: A round of one peer lasts this long at least, so that the clock and the gaps between replays do not count.
LEAST_ROUND = 1e-3
#: Calls of more than this bring their data to the caches themselves: one a round is enough.
LONG = 2e-2
#: Fewest rounds.
ROUNDS = 5
#: Calls of less than this are captured several times in one graph.
SHORT = 1e-4


@dataclass
class Timing:
    """Seconds a call, one number a round; and why there is no graph of it, where there is none."""

    rounds: dict[str, list[float]] = field(default_factory=dict)
    not_captured: str | None = None

    def add(self, kind: str, seconds: float) -> None:
        self.rounds.setdefault(kind, []).append(seconds)


def floats(result: object) -> list[Tensor]:
    """The floating tensors of a result, however nested."""
    if isinstance(result, Tensor):
        return [result] if result.is_floating_point() else []
    return [t for r in result for t in floats(r)]


def stream() -> contextlib.AbstractContextManager:
    """All of a measurement belongs inside: autograd runs a backward on the stream of its forward, and the legacy
    default stream cannot be captured."""
    return torch.cuda.stream(torch.cuda.Stream()) if torch.cuda.is_available() else contextlib.nullcontext()


def _gradients(results: list[Tensor], wanted: list[Tensor], upstream: tuple[Tensor, ...], retain_graph: bool) -> tuple:
    """`torch.autograd.grad` without its check of each upstream gradient in Python, 10 us a result, which is no part of
    any peer: a training step hands over one gradient, that of its loss."""
    run = torch.autograd.Variable._execution_engine.run_backward
    return run(tuple(results), upstream, retain_graph, False, tuple(wanted), False, accumulate_grad=False)


def step(function: Callable, inputs: list[Tensor], leaves: int, phase: str) -> Callable[[], object]:
    """One call of a phase: forward without gradient; backward to the first ``leaves`` inputs from fixed upstream
    gradients of every differentiable result, of a forward pass done before; or both."""
    if phase == "forward":

        def forward() -> object:
            with torch.no_grad():
                return function(*inputs)

        return forward
    given = [t.clone().requires_grad_() if i < leaves else t for i, t in enumerate(inputs)]
    wanted = [t for t in given if t.requires_grad]

    def carrying() -> list[Tensor]:
        return [t for t in floats(function(*given)) if t.requires_grad]

    results = carrying()
    upstream = tuple(torch.randn_like(t) for t in results)
    if phase == "backward":
        return lambda: _gradients(results, wanted, upstream, retain_graph=True)
    return lambda: _gradients(carrying(), wanted, upstream, retain_graph=False)


def wall(function: Callable[[], object], calls: int) -> float:
    """Seconds a call, back to back, until the last is done."""
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls


def _events(function: Callable[[], object], calls: int, before: Callable[[], object] = lambda: None) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before()
    start.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def _captured(function: Callable[[], object], times: int, pool: object) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=torch.cuda.current_stream()):
        for _ in range(times):
            function()
    return graph


def _flush() -> Callable[[], object]:
    """Writes four times the L2: afterwards nothing of an input is left there."""
    l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(4 * max(l2, 2**24), dtype=torch.uint8, device="cuda").zero_


def _on_gpu(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    flush, pool = _flush(), torch.cuda.graph_pool_handle()  # graphs share memory: no result of one is read by another
    timings = {name: Timing() for name in steps}
    timed: dict[str, tuple] = {}
    for name, function in steps.items():
        wall(function, 3)  # warm up
        once = wall(function, 3)
        copies = max(1, min(20, int(SHORT / once)))
        try:
            many = _captured(function, copies, pool).replay
            single = _captured(function, 1, pool).replay
        except Exception as error:
            torch.cuda.synchronize()
            timings[name].not_captured = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            many, single, copies = function, function, 1
        replays = max(1, int(LEAST_ROUND / max(_events(many, 1), 1e-9)))
        timed[name] = many, single, copies, replays, max(1, int(LEAST_ROUND / once))
    rounds = 0
    begin = time.perf_counter()
    while rounds < ROUNDS or (rounds < 100 and time.perf_counter() - begin < seconds * len(steps)):
        rounds += 1
        for name, (many, single, copies, replays, calls) in timed.items():
            many()  # untimed: its own caches, not those of the peer before
            timings[name].add("warm", _events(many, replays) / copies)
            timings[name].add("cold", _events(single, 1, flush))
            timings[name].add("wall", wall(steps[name], calls))
    return timings


def _on_cpu(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    calls = {}
    for name, function in steps.items():
        function()  # warm up
        once = wall(function, 1)
        calls[name] = max(1 if once > LONG else 2, int(LEAST_ROUND / once))
    timings = {name: Timing() for name in steps}
    rounds = 0
    begin = time.perf_counter()
    while rounds < ROUNDS or (rounds < 200 and time.perf_counter() - begin < seconds * len(steps)):
        rounds += 1
        for name, function in steps.items():
            if calls[name] > 1:
                function()  # untimed: its own caches, not those of the peer before
            timings[name].add("warm", wall(function, calls[name]))
    return timings


def interleaved(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, Timing]:
    """Times of each step: as many rounds as fit into ``seconds`` a step, at least `ROUNDS`."""
    return (_on_gpu if torch.cuda.is_available() else _on_cpu)(steps, seconds)
