"""Memory that the C++ kernels keep for the next call."""

from __future__ import annotations

import os

from . import _checks, _native, library
from .backends import BackendError

__all__ = ["cpu_cache"]

ENV = "SEMIMATCH_CPU_CACHE_MB"
DEFAULT = 512


def cpu_cache(mebibytes: int | None = None) -> int:
    """The most memory that the C++ kernels keep for their next call, in MiB; sets it, too.

    PyTorch gives large memory of the CPU back to the system at once and gets it again in zeroed pages, which can cost
    as much as these kernels. So what they need in pieces of 1 MiB and more (correlations, filtered ones, gradients,
    tables) is kept when it is freed, for the next of the same size (in steps of 2 MiB). A tensor that lies there
    behaves as any other, but its storage cannot be resized (`Tensor.resize_` to more, ``out=`` of another op).

    Above the limit, what was kept longest is freed. Below it, nothing is until the process ends, needed again or not:
    where sizes change from call to call, count the whole limit as used, and once for every process.

    Args:
        mebibytes: the new limit, 0 or more. What is kept above it is freed: 0 gives everything back, and leaves the
            memory of results to PyTorch from then on. None: only tell.

    Returns: the limit from now on. At first that is the environment's SEMIMATCH_CPU_CACHE_MB, else 512.
    Raises: TypeError / ValueError for another value; `BackendError` where the C++ module is not built.

    Example:
        >>> before = smk.cpu_cache()
        >>> smk.cpu_cache(0)  # give everything back
        0
        >>> smk.cpu_cache(before) == before
        True
    """
    if mebibytes is not None:
        mebibytes = _checks.check_count(mebibytes, "mebibytes")
    if _native.cpp is None:
        raise BackendError(f"cpu_cache: the C++ kernels cannot run here: {library.CPU_REASON}")
    if mebibytes is not None:
        _native.cpp.set_cache_limit(min(mebibytes, 2**40) << 20)
    return _native.cpp.cache_limit() >> 20


def _first_limit() -> int:
    text = os.environ.get(ENV) or str(DEFAULT)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{ENV}: expected a whole number of MiB, got {text!r}")
    return int(text)


_LIMIT = _first_limit()
if _native.cpp is not None:
    cpu_cache(_LIMIT)
