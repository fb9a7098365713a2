"""``python -m semimatch_kernels.info``: versions, devices, the native build, op x backend with the reason for each no,
and what ``backend="auto"`` takes, with how many times faster than the reference that was measured to be."""

from __future__ import annotations

import platform

import torch

from . import _native
from .backends import BACKENDS, BEHIND, DEFAULT, OPS, UNMEASURED, backends, order
from .library import AUTOGRAD_REASON
from .measured import MEASURED

LEGEND = """\
2.0x: twice as fast as the reference (PyTorch) where this project was measured, not on this machine: the geometric mean
over shapes and dtypes, forward and backward together where there is a backward; benchmarks/results has the machines."""
SETUP = "in a clone `make setup` does the `pip install` of these remedies"


def versions() -> dict[str, str]:
    """Versions and devices that decide what can run."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "not installed"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "triton": triton_version,
        "CUDA devices": ", ".join(devices) or "none visible",
        "default backend": DEFAULT,
        "autograd": "C++" if AUTOGRAD_REASON is None else f"Python: {AUTOGRAD_REASON}",
        **{name: "; ".join(f"{k} {v}" for k, v in facts.items()) for name, facts in _native.build_info().items()},
    }


def automatic(op: str, device: str) -> str:
    """What "auto" tries first on a kind of device, and how many times faster than the reference it was measured."""
    first = next((name for name in order(op, device) if name in ("reference", *OPS[op])), "reference")
    times = MEASURED.get(device, {}).get(BEHIND[op] or "", {})
    if first == "reference":
        return first
    return f"{first}, {times['reference']:.1f}x" if "reference" in times else f"{first}, not measured"


def table() -> str:
    """The op x backend table with what "auto" takes, and below it each distinct reason for a "no"."""
    reasons: dict[str, list[str]] = {}
    rows = []
    for op in OPS:
        cells = []
        for name, reason in backends(op).items():
            cells.append("yes" if reason is None else "-")
            if reason is not None:
                reasons.setdefault(f"{name}: {reason.replace(op + ' has', 'the op has')}", []).append(op)
        rows.append((op, cells + [automatic(op, device) for device in UNMEASURED]))
    width, lines = max(map(len, OPS)) + 2, []
    widths = [*(11 for _ in BACKENDS), *(22 for _ in UNMEASURED)]
    headings = [*BACKENDS, *(f"auto on {device}" for device in UNMEASURED)]
    for name, cells in [("op", headings), *rows]:
        lines.append(name.ljust(width) + "".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip())
    lines += ["", LEGEND, "", "why not:"]
    lines += [
        f"  {reason}  [{'all ops' if len(ops) == len(OPS) else ', '.join(ops)}]" for reason, ops in reasons.items()
    ]
    if any("not built" in reason and "pip install" in reason for reason in reasons):
        lines.append(f"  {SETUP}")
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    for key, value in versions().items():
        print(f"{key:<18}{value}")
    print()
    print(table())


if __name__ == "__main__":
    main()
