"""Registration of the fused ops with PyTorch: kernels, fake kernels, autograd, autocast and vmap rules.

Each op of `schemas` exists in ``torch.ops.semimatch_kernels`` once a backend: ``<name>`` (C++ and CUDA, by device),
``<name>_triton`` and ``<name>_reference``, all with the rules registered here.

Autograd and vmap: see the modules of that name. Autocast: the ops take any floating dtype and compute in float32 or
wider, products of features in the dtype of the features; so the rule is "leave the inputs as they are", which is what
PyTorch does without one.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C import _AutoDispatchBelowADInplaceOrView
from torch.autograd import forward_ad

from . import _native, autograd, fakes, vmap
from .reference import consistency, contrastive, correlation, epe, features, matching, mutual, pseudo_labels, warp
from .schemas import COMPOSITES, NATIVE, OPS, Op, backend_name

NAMESPACE = "semimatch_kernels"

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")
for _name, _op in OPS.items():
    for _qualified in {backend_name(_name, b) for b in ("reference", *_op.backends)}:
        _LIBRARY.define(_qualified + _op.schema)
for _name, _schema in COMPOSITES.items():
    _LIBRARY.define(_name + _schema)

#: Why the C++ / CUDA kernels cannot run in this process, None when they can.
CPU_REASON, CUDA_REASON = _native.load(NATIVE)
#: Why autograd runs in Python, None where it does in C++.
AUTOGRAD_REASON = _native.load_autograd()

#: Whether Triton kernels run in its interpreter, on CPU tensors too.
TRITON_INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
#: Why the Triton kernels cannot run in this process, None when they can.
TRITON_REASON = None if importlib.util.find_spec("triton") else "triton is not installed; remedy: pip install triton"

ops = torch.ops.semimatch_kernels


# --- the reference: plain PyTorch below autograd, so that its memory and its gradient are those of a fused op
_DEFINITIONS = (correlation, mutual, matching, contrastive, features, consistency, pseudo_labels, warp, epe)


def definition(name: str) -> Callable:
    """The function of `reference` that defines op ``name``; differentiable by autograd, any number of times."""
    return next(vars(module)[name] for module in _DEFINITIONS if name in vars(module))


def _in_layout(result: Tensor, corr: Tensor) -> Tensor:
    """``result`` dense, with the closer side of ``corr`` [B,S,T] contiguous, as every backend's gradient is."""
    if corr.stride(1) < corr.stride(2):
        return result.transpose(1, 2).contiguous().transpose(1, 2)
    return result.contiguous()


def _reference_kernel(name: str) -> Callable:
    function = definition(name)
    follows_corr = getattr(fakes, name) is fakes.match_backward

    def kernel(*args):
        result = function(*args)
        if follows_corr:
            return _in_layout(result, args[0])
        if isinstance(result, Tensor):
            return result.contiguous()
        return tuple([t.contiguous() for t in r] if isinstance(r, list) else r.contiguous() for r in result)

    kernel.__name__ = f"{name}_reference"
    return kernel


# --- Triton: the launchers are imported at their first call, so that importing the library stays cheap
def _triton_kernel(name: str) -> Callable:
    def kernel(*args):
        from .triton import launcher

        return launcher(name)(*args)

    kernel.__name__ = f"{name}_triton"
    return kernel


# --- all of it, for one op
def _register(name: str, op: Op) -> None:
    _LIBRARY.impl(f"{name}_reference", _reference_kernel(name), "CompositeExplicitAutograd")
    if "triton" in op.backends:
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(f"{name}_triton", _triton_kernel(name), key)
    for qualified in {backend_name(name, b) for b in ("reference", *op.backends)}:
        torch.library.register_fake(f"{NAMESPACE}::{qualified}", getattr(fakes, name), lib=_LIBRARY)
        torch.library.register_vmap(f"{NAMESPACE}::{qualified}", vmap.rule(name, getattr(ops, qualified)), lib=_LIBRARY)
        overload = getattr(ops, qualified).default
        plain = definition(name.removesuffix("_backward"))
        if name.endswith("_backward"):
            kernel = autograd.once(overload, plain)
        elif op.inputs:
            backward = getattr(ops, qualified.replace(name, f"{name}_backward", 1)).default
            if _native.autograd:
                autograd.differentiate_in_cpp(_native.autograd, overload, backward, op, plain)
                continue
            kernel = autograd.differentiable(overload, backward, op, plain)
        else:
            kernel = autograd.constant(overload)
        _LIBRARY.impl(qualified, kernel, "Autograd", with_keyset=True)


for _name, _op in OPS.items():
    _register(_name, _op)
for _name in COMPOSITES:
    _LIBRARY.impl(_name, definition(_name), "CompositeImplicitAutograd")

#: (op, backend) -> what runs it.
_RUN = {
    (name, backend): getattr(ops, backend_name(name, backend)).default
    for name, op in OPS.items()
    for backend in ("reference", *op.backends)
} | {(name, "reference"): getattr(ops, name).default for name in COMPOSITES}

#: Ops without a kernel in Python on the Autograd key.
_QUICK = {*COMPOSITES, *(name for name, op in OPS.items() if op.inputs and _native.autograd)}


def run(name: str, backend: str, *args):
    """Calls op ``name`` of ``backend``, with the arguments of its schema."""
    if forward_ad._current_level >= 0 and name in OPS:  # PyTorch would take the tangent for 0
        raise autograd.unsupported("forward-mode AD through a fused op", definition(name))
    op = _RUN[name, backend]
    # Without a gradient there is nothing for Autograd to do, and its kernel in Python is a fourth of a small call.
    if name in _QUICK or torch.compiler.is_compiling() or (OPS[name].inputs and torch.is_grad_enabled()):
        return op(*args)
    with _AutoDispatchBelowADInplaceOrView():
        return op(*args)
