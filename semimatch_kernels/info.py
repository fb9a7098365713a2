"""``python -m semimatch_kernels.info``: versions, devices, the native build, and op x backend with the reason for each
no."""

from __future__ import annotations

import platform

import torch

from . import _native
from .backends import BACKENDS, DEFAULT, OPS, backends


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
        **{name: "; ".join(f"{k} {v}" for k, v in facts.items()) for name, facts in _native.build_info().items()},
    }


def table() -> str:
    """The op x backend table, and below it each distinct reason for a "no"."""
    reasons: dict[str, list[str]] = {}
    rows = []
    for op in OPS:
        cells = []
        for name, reason in backends(op).items():
            cells.append("yes" if reason is None else "-")
            if reason is not None:
                reasons.setdefault(f"{name}: {reason.replace(op + ' has', 'the op has')}", []).append(op)
        rows.append((op, cells))
    width = max(map(len, OPS)) + 2
    lines = ["op".ljust(width) + "".join(name.ljust(11) for name in BACKENDS)]
    lines += [op.ljust(width) + "".join(cell.ljust(11) for cell in cells) for op, cells in rows]
    lines += ["", "why not:"]
    lines += [
        f"  {reason}  [{'all ops' if len(ops) == len(OPS) else ', '.join(ops)}]" for reason, ops in reasons.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    for key, value in versions().items():
        print(f"{key:<18}{value}")
    print()
    print(table())


if __name__ == "__main__":
    main()
