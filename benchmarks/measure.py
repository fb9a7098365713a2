"""One group measured: inputs, peers, truth gate, memory, times.

No number of a wrong kernel: results and gradients of every peer are compared with float64 before it is timed. One of
ours that is wrong is an error; another library's is left out, with the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from semimatch_kernels.backends import BACKENDS, reason_against

from . import machine, memory
from .elsewhere import Peer
from .groups import Group, precision
from .timing import Timing, floats, interleaved, step, stream

OURS = "ours: "
#: How much further off than ours others may be: another order of sums, an approximate exponential.
SLACK = 8
#: Matrices of more entries than this in float64 fill a GPU: there the truth is the reference by blocks, in float64.
LARGEST_TRUTH = 2**29


def backends_of(group: Group, device: torch.device) -> list[str]:
    """Our backends that run the group here; not Triton's interpreter, which is no measure of anything."""
    names = [b for b in BACKENDS if device.type != "cpu" or b != "triton"]
    return [b for b in names if reason_against(group.subject.op, b, device.type, group.dtype) is None]


def compile_modes(group: Group, device: torch.device, phase: str, asked: str) -> dict[str, str]:
    """Name -> mode of the torch.compile peers. On the CPU, where a compilation takes ten seconds or more, one a group:
    of its gradient where it has one; and of an op without a kernel of ours at one size only."""
    if asked == "none":
        return {}
    if device.type == "cpu":
        at_this_size = group.shape.cells == 1024 or "cpu" in backends_of(group, device)
        if group.dtype_name != "fp32" or not at_this_size or phase not in (group.phases[1:] or group.phases):
            return {}
    modes = {"compile": "default"}
    if asked == "max" or (asked == "goals" and device.type == "cuda" and group.goal):
        modes["compile, max-autotune"] = "max-autotune-no-cudagraphs"  # the graphs are ours
    return modes


def peers(group: Group, phase: str, device: torch.device, compiled: str) -> dict[str, Peer]:
    """Name -> peer, the eager definition first."""
    subject = group.subject
    table = {"eager": Peer(subject.plain)}
    for name, mode in compile_modes(group, device, phase, compiled).items():
        table[name] = Peer(torch.compile(subject.plain, dynamic=False, mode=mode))
    table |= {name: peer for name, peer in subject.others.items() if not peer.single or group.shape.batch == 1}
    for backend in backends_of(group, device):
        table[OURS + backend] = Peer(lambda *inputs, b=backend: subject.ours(*inputs, backend=b))
    return table


# --- the gate


def results_and_gradients(function: Callable, inputs: list[Tensor], leaves: int, wide: bool = False) -> list[Tensor]:
    """Floating results in float64, and gradients by the first ``leaves`` inputs of a sum of the results weighted by
    place; computed in float64 too where ``wide``."""
    given = [t.double() if wide and t.is_floating_point() else t for t in inputs]
    given = [t.clone().requires_grad_() if i < leaves else t for i, t in enumerate(given)]
    results = floats(function(*given))
    carrying = [t for t in results if t.requires_grad]
    grads: tuple[Tensor, ...] = ()
    if carrying:
        total = sum((t * torch.linspace(0, 1, t.numel(), device=t.device).reshape(t.shape)).sum() for t in carrying)
        grads = torch.autograd.grad(total, given[:leaves])
    return [t.detach().double() for t in (*results, *grads)]


def excess(
    actual: list[Tensor], eager: list[Tensor], truth: list[Tensor], dtype: torch.dtype, slack: float = 1
) -> str | None:
    """Why ``actual`` is wrong: further from the truth than twice the eager definition in the same dtype and rounding,
    times ``slack``; None when it is not."""
    if len(actual) != len(truth):
        return f"{len(actual)} results and gradients, not {len(truth)}"
    for i, (a, e, t) in enumerate(zip(actual, eager, truth, strict=True)):
        unit = torch.finfo(dtype).eps
        limit = slack * (2 * (e - t).abs().max() + 4 * unit * t.abs().max().clamp(min=1e-3))
        error = (a - t).abs().max()
        if not error <= limit:  # NaN too
            return f"result {i}: error {error:.2e} against float64, limit {limit:.2e}"
    return None


class Gate:
    """Compares peers with float64; what they are compared with is computed once a group."""

    def __init__(self, group: Group, inputs: list[Tensor], leaves: int):
        self.group, self.inputs, self.leaves = group, inputs, leaves
        self._known: dict[Callable, tuple] = {}

    def _truth(self, plain: Callable) -> tuple[list[Tensor], list[Tensor]]:
        if plain not in self._known:
            runs = (results_and_gradients(plain, self.inputs, self.leaves, wide) for wide in (False, True))
            self._known[plain] = tuple(runs)
        return self._known[plain]

    def reason_against(self, peer: Peer, slack: float = 1) -> str | None:
        """Why ``peer`` is not timed; None where it is right."""
        subject = self.group.subject
        plain = peer.part or subject.plain
        if self.group.shape.matrix > LARGEST_TRUTH and peer.part is None:
            plain = self._reference
        actual = results_and_gradients(peer.call, self.inputs, self.leaves)
        return excess(actual, *self._truth(plain), self.inputs[0].dtype, slack)

    def _reference(self, *inputs: Tensor) -> object:
        return self.group.subject.ours(*inputs, backend="reference")


# --- the measurement


@dataclass
class Measured:
    """A peer in one phase."""

    timing: Timing
    memory: int | None
    part: bool


@dataclass
class Phase:
    """All peers of a group in one phase, those that could not be timed with the reason, and the rate of a copy that
    moves as many bytes as the op must."""

    peers: dict[str, Measured]
    left_out: dict[str, str]
    copy: float


class Session:
    """The inputs of a group and what passed the gate, kept from phase to phase."""

    def __init__(self, group: Group, device: torch.device, compiled: str):
        torch.compiler.reset()  # its limit of recompilations counts a function, not a shape; past it, it runs eagerly
        torch.manual_seed(0)
        self.group, self.device, self.compiled = group, device, compiled
        self.inputs = group.subject.inputs(group.shape, device, group.dtype)
        self.leaves = min(group.subject.differentiable, len(self.inputs))
        self.gate = Gate(group, self.inputs, self.leaves)
        self.judged: dict[str, str | None] = {}

    def measure(self, phase: str, least_bytes: float, seconds: float) -> Phase:
        """Times and memory of each peer in ``phase``."""
        left_out, steps, peaks = {}, {}, {}
        table = peers(self.group, phase, self.device, self.compiled)
        # A backward that is run again and again needs what an ordinary one may overwrite.
        donated = torch._functorch.config.patch(donated_buffer=False)
        with precision(self.group.dtype_name), stream(), donated:
            for name, peer in table.items():
                reason = self._judge(name, peer)
                if reason is None:
                    try:
                        steps[name] = step(peer.call, self.inputs, self.leaves, phase)
                        steps[name]()
                        peaks[name] = memory.peak(steps[name], self.device)
                    except torch.OutOfMemoryError:
                        steps.pop(name, None)
                        reason = "out of memory"
                if reason is not None:
                    left_out[name] = reason
                gc.collect()
            timings = interleaved(steps, seconds)
        found = {n: Measured(t, peaks[n], table[n].part is not None) for n, t in timings.items()}
        return Phase(found, left_out, machine.copy_rate(least_bytes, self.device))

    def _judge(self, name: str, peer: Peer) -> str | None:
        if name not in self.judged:
            try:
                self.judged[name] = self.gate.reason_against(peer, 1 if name.startswith(OURS) else SLACK)
            except torch.OutOfMemoryError:
                self.judged[name] = "out of memory"
            except Exception as error:
                if name == "eager" or name.startswith(OURS):
                    raise
                self.judged[name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
        reason = self.judged[name]
        if reason is not None and name.startswith(OURS):
            raise AssertionError(f"{self.group}, {name}: {reason}")
        return reason
