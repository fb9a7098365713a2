"""Registration of the fused ops with PyTorch: schemas, fake kernels, autograd.

The schemas below are the only place where they are written. The C++ module registers its kernels on them (and carries a
copy, compared at load, so that a stale binary is noticed); the Triton launchers are registered here, under the same
names with the suffix ``_triton``. Autocast: the ops take any floating dtype and compute in float32 or wider, so that
no cast is needed; the absence of an autocast kernel means "leave the inputs as they are".
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

from . import _native
from ._checks import accumulate_dtype

NAMESPACE = "semimatch_kernels"

_SIDE = "Tensor {0}coords, Tensor {0}score, Tensor {0}entropy, Tensor {0}logsumexp, Tensor {0}index"
_GRADS = "Tensor? grad_{0}coords, Tensor? grad_{0}score, Tensor? grad_{0}entropy, Tensor? grad_{0}logsumexp"

SCHEMAS: dict[str, str] = {
    "match": f"(Tensor corr, int[2] grid, float temperature) -> ({_SIDE.format('')})",
    "match_backward": (
        f"(Tensor corr, int[2] grid, float temperature, {_SIDE.format('')}, {_GRADS.format('')}) -> Tensor"
    ),
    "match_both": (
        "(Tensor corr, int[2] source_grid, int[2] target_grid, float temperature)"
        f" -> ({_SIDE.format('t_')}, {_SIDE.format('s_')})"
    ),
    "match_both_backward": (
        "(Tensor corr, int[2] source_grid, int[2] target_grid, float temperature,"
        f" {_SIDE.format('t_')}, {_SIDE.format('s_')}, {_GRADS.format('t_')}, {_GRADS.format('s_')}) -> Tensor"
    ),
}

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
for _name, _schema in SCHEMAS.items():
    for _suffix in ("", "_triton"):
        _LIBRARY.define(_name + _suffix + _schema)

#: Why the C++ / CUDA kernels cannot run in this process, None when they can.
CPU_REASON, CUDA_REASON = _native.load(SCHEMAS)

#: Whether Triton kernels run in its interpreter, on CPU tensors too.
TRITON_INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
#: Why the Triton kernels cannot run in this process, None when they can.
TRITON_REASON = None if importlib.util.find_spec("triton") else "the package triton is not installed"

ops = torch.ops.semimatch_kernels


# --- Triton: the launchers are imported at their first call, so that importing the library stays cheap
# -----------------
def _register_triton(name: str) -> None:
    def run(*args):
        from .triton import match as launchers

        return getattr(launchers, name)(*args)

    run.__name__ = f"{name}_triton"
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(f"{name}_triton", run, key)


# --- fake kernels
# ------------------------------------------------------------------------------------------------------
def _side_like(corr: Tensor, cells: int | torch.SymInt) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised coords, score, entropy, logsumexp, index for ``cells`` cells of ``corr`` [B,S,T]."""
    batch, dtype = corr.shape[0], accumulate_dtype(corr.dtype)
    floats = [corr.new_empty((batch, cells), dtype=dtype) for _ in range(3)]
    coords = corr.new_empty((batch, cells, 2), dtype=dtype)
    return coords, *floats, corr.new_empty((batch, cells), dtype=torch.int64)


def _fake_match(corr, grid, temperature):
    return _side_like(corr, corr.shape[2])


def _fake_match_both(corr, source_grid, target_grid, temperature):
    return *_side_like(corr, corr.shape[2]), *_side_like(corr, corr.shape[1])


def _fake_grad(corr, *args):
    batch, sources, targets = corr.shape
    if corr.stride(1) < corr.stride(2):  # the gradient follows the layout of corr
        return corr.new_empty((batch, targets, sources)).transpose(1, 2)
    return corr.new_empty((batch, sources, targets))


# --- autograd
# ----------------------------------------------------------------------------------------------------------
# (index of the outputs that carry a gradient) for each op; the others are int64 indices.
_MATCH_FLOATS, _BOTH_FLOATS = range(4), [0, 1, 2, 3, 5, 6, 7, 8]


def _setup(ctx, inputs, output) -> None:
    corr, *ctx.constants = inputs
    ctx.save_for_backward(corr, *output)
    ctx.set_materialize_grads(False)


def _make_backward(name: str, floats):
    def backward(ctx, *grads):
        corr, *outputs = ctx.saved_tensors
        grads = [grads[i] for i in floats]
        if all(g is None for g in grads):
            return None, *[None] * len(ctx.constants)
        grad = getattr(ops, name)(corr, *ctx.constants, *outputs, *grads)
        return grad, *[None] * len(ctx.constants)

    return backward


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "semimatch_kernels: double backward through a fused op is not supported; use backend='reference' for it"
    )


for _suffix in ("", "_triton"):
    torch.library.register_fake(f"{NAMESPACE}::match{_suffix}", _fake_match, lib=_LIBRARY)
    torch.library.register_fake(f"{NAMESPACE}::match_both{_suffix}", _fake_match_both, lib=_LIBRARY)
    for _name, _floats in (("match", _MATCH_FLOATS), ("match_both", _BOTH_FLOATS)):
        _backward = f"{_name}_backward{_suffix}"
        torch.library.register_fake(f"{NAMESPACE}::{_backward}", _fake_grad, lib=_LIBRARY)
        torch.library.register_autograd(
            f"{NAMESPACE}::{_name}{_suffix}",
            _make_backward(_backward, _floats),
            setup_context=_setup,
            lib=_LIBRARY,
        )
        torch.library.register_autograd(f"{NAMESPACE}::{_backward}", _no_double_backward, lib=_LIBRARY)
for _name in SCHEMAS:
    _register_triton(_name)
