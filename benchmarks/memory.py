"""Peak memory of one call beyond what lived before it, results included."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch

import semimatch_kernels as smk


def peak(function: Callable[[], object], device: torch.device) -> int | None:
    """Bytes; None where this system cannot tell. Call ``function`` once before: first calls allocate for good.

    On a GPU what PyTorch's allocator handed out. On the CPU what became resident, so scratch memory of C++ counts too:
    the high-water mark that Linux keeps, reset before the call, freed memory having been given back, ours too.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = function()
        torch.cuda.synchronize()
        del result
        return torch.cuda.max_memory_allocated() - before
    if smk.backends("match")["cpu"] is None:
        limit = smk.cpu_cache()
        smk.cpu_cache(0)
        smk.cpu_cache(limit)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = function()
        del result
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError, KeyError):  # not Linux with glibc, or /proc is read-only
        return None


def _status(name: str) -> int:
    """A value of this process in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise KeyError(name)
    return 1024 * int(found[1])
