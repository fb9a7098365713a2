"""Which backend runs an op, and why the others cannot.

`reference` (PyTorch, every op, every device), `cpu` (C++), `triton` and `cuda` (CUDA C++). ``backend="auto"`` takes the
one that was measured to be the fastest of those that can run the inputs (`measured`); a backend asked for by name runs
or raises: it never falls back silently.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from . import library, schemas
from .measured import MEASURED

BACKENDS = ("reference", "cpu", "triton", "cuda")
ENV = "SEMIMATCH_BACKEND"

#: The public ops, and the fused op behind each (None: made of PyTorch's own ops).
BEHIND: dict[str, str | None] = {
    "correlation": "correlation",
    "mutual_filter": "mutual_filter",
    "mutual_mask": None,
    "match": "match",
    "match_features": "match_features",
    "soft_argmax": "match",
    "soft_argmax with a window": "soft_argmax",
    "soft_argmax_features": "soft_argmax_features",
    "softmax_entropy": "match",
    "softmax_entropy_features": "match_features",
    "dual_softmax": "dual_softmax",
    "dual_softmax_features": "match_features",
    "masked_contrastive_loss": "masked_contrastive_loss",
    "masked_contrastive_loss_features": "masked_contrastive_loss_features",
    "forward_backward_mask": "forward_backward_mask",
    "pseudo_labels": "pseudo_labels",
    "warp": None,
    "warp_lookup": None,
    "sparse_epe": None,
}

#: The backends beside the reference that implement each.
OPS: dict[str, tuple[str, ...]] = {name: () if op is None else schemas.OPS[op].backends for name, op in BEHIND.items()}

#: Order of "auto" for what was not measured. Triton before CUDA C++, as it needs no compiler where it runs.
UNMEASURED = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}


class BackendError(RuntimeError):
    """The backend asked for cannot run this op on these inputs; the message says why."""


def _default() -> str:
    name = os.environ.get(ENV, "auto") or "auto"
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"{ENV}: expected auto, {', '.join(BACKENDS)}, got {name!r}")
    return name


DEFAULT = _default()


def reason_against(op: str, backend: str, device: str, dtype: torch.dtype | None) -> str | None:
    """Why ``backend`` cannot run ``op`` for tensors on ``device`` of ``dtype`` (None = any); None when it can."""
    if backend == "reference":
        return None
    if backend not in OPS[op]:
        return f"{op} has no {backend} implementation" + (" yet" if BEHIND[op] else ": it is made of PyTorch's own ops")
    if backend == "triton":
        if library.TRITON_REASON is not None:
            return library.TRITON_REASON
        if device == "cpu" and not library.TRITON_INTERPRET:
            return "tensors are on the CPU, where Triton runs only with TRITON_INTERPRET=1 (set before the import)"
        if device not in ("cpu", "cuda"):
            return f"tensors are on {device}; the Triton kernels run on cuda"
        if dtype == torch.float64 and device == "cuda":
            return "float64 runs in reference, cpu and cuda only"
        return None
    reason = library.CPU_REASON if backend == "cpu" else library.CUDA_REASON
    if reason is not None:
        return reason
    if device != backend:
        return f"tensors are on {device}; this backend runs on {backend}"
    return None


def order(op: str, device: str) -> tuple[str, ...]:
    """The backends that "auto" tries for ``op`` on a kind of device, the reference last at the latest."""
    return tuple(MEASURED.get(device, {}).get(BEHIND[op], UNMEASURED.get(device, ())))


def choose(op: str, backend: str | None, like: Tensor) -> str:
    """The backend that runs ``op`` on tensors like ``like``; raises `BackendError` if the one asked for cannot."""
    name = DEFAULT if backend is None else backend
    device = "cpu" if like.is_cpu else "cuda" if like.is_cuda else like.device.type
    if name == "auto":
        for candidate in order(op, device):
            if reason_against(op, candidate, device, like.dtype) is None:
                return candidate
        return "reference"
    if name not in BACKENDS:
        raise ValueError(f"backend: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
    # The environment's choice holds for the ops that have it; only an argument insists on every op.
    if backend is None and name not in OPS[op]:
        return "reference"
    reason = reason_against(op, name, device, like.dtype)
    if reason is not None:
        raise BackendError(f"backend {name!r} cannot run {op} here: {reason}")
    return name


def backends(op: str, *inputs: Tensor) -> dict[str, str | None]:
    """For each backend None if it can run ``op`` on ``inputs``, else the reason why not.

    Without inputs: on some device of this machine at all. Raises ValueError for an unknown op.
    """
    if op not in OPS:
        raise ValueError(f"op: expected one of {', '.join(OPS)}, got {op!r}")
    tensors = [t for t in inputs if isinstance(t, Tensor)]
    if tensors:
        return {name: reason_against(op, name, tensors[0].device.type, tensors[0].dtype) for name in BACKENDS}
    native = {
        "reference": "cpu",
        "cpu": "cpu",
        "cuda": "cuda",
        "triton": "cpu" if library.TRITON_INTERPRET else "cuda",
    }
    table = {name: reason_against(op, name, native[name], None) for name in BACKENDS}
    if table["triton"] is None and not library.TRITON_INTERPRET and not torch.cuda.is_available():
        table["triton"] = "no CUDA device is visible (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    if table["cuda"] is None and not torch.cuda.is_available():
        table["cuda"] = "built and loaded, but no CUDA device is visible"
    return table
