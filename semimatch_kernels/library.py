"""Registration of the fused ops with PyTorch: kernels, fake kernels, autograd, autocast and vmap rules.

Each op of `schemas` exists in ``torch.ops.semimatch_kernels`` once a backend: ``<name>`` (C++ and CUDA, by device),
``<name>_triton`` and ``<name>_reference``, all with the rules registered here.

Autograd: one formula for all, see `schemas.Op`; once only, and not under torch.func's transforms (PyTorch's limit for
ops registered in Python; the plain definitions take any). Autocast: the ops take any floating dtype and compute in
float32 or wider, products of features in the dtype of the features; so the rule is "leave the inputs as they are",
which is what PyTorch does without one. vmap: see `vmap`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from . import _native, fakes, vmap
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

#: Whether Triton kernels run in its interpreter, on CPU tensors too.
TRITON_INTERPRET = os.environ.get("TRITON_INTERPRET", "0") == "1"
#: Why the Triton kernels cannot run in this process, None when they can.
TRITON_REASON = None if importlib.util.find_spec("triton") else "the package triton is not installed"

ops = torch.ops.semimatch_kernels


# --- the reference: plain PyTorch below autograd, so that its memory and its gradient are those of a fused op
_DEFINITIONS = (correlation, mutual, matching, contrastive, features, consistency, pseudo_labels, warp, epe)


def definition(name: str) -> Callable:
    """The function of `reference` that defines op ``name``; differentiable by autograd, any number of times."""
    return next(getattr(module, name) for module in _DEFINITIONS if hasattr(module, name))


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
        from .triton import match as launchers

        return getattr(launchers, name)(*args)

    kernel.__name__ = f"{name}_triton"
    return kernel


# --- autograd
def _register_autograd(qualified: str, backward: str, op: Op) -> None:
    def setup_context(ctx, inputs, output) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        # Lists of tensors are saved flat; `lengths` says where they were.
        tensors, lengths = [], []
        for value in inputs:
            is_list = isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Tensor)
            lengths.append(len(value) if is_list else None)
            tensors += value if is_list else [value if isinstance(value, Tensor) else None]
        ctx.save_for_backward(*tensors, *(outputs[i] for i in op.saved))
        ctx.lengths = lengths
        ctx.constants = [
            None if isinstance(v, Tensor) or n is not None else v for v, n in zip(inputs, lengths, strict=True)
        ]
        ctx.mark_non_differentiable(*(t for i, t in enumerate(outputs) if i not in op.outputs))
        ctx.set_materialize_grads(False)

    def gradient(ctx, *grads):
        by_input = [None if n is None else [None] * n for n in ctx.lengths]
        grads = [grads[i] for i in op.outputs]
        if all(g is None for g in grads):
            return tuple(by_input)
        saved, args = list(ctx.saved_tensors), []
        for constant, length in zip(ctx.constants, ctx.lengths, strict=True):
            if length is None:
                tensor = saved.pop(0)
                args.append(constant if tensor is None else tensor)
            else:
                args.append([saved.pop(0) for _ in range(length)])
        results = getattr(ops, backward)(*args, *saved, *grads)
        for i, result in zip(op.inputs, results if len(op.inputs) > 1 else (results,), strict=True):
            by_input[i] = result
        return tuple(by_input)

    torch.library.register_autograd(f"{NAMESPACE}::{qualified}", gradient, setup_context=setup_context, lib=_LIBRARY)


def _register_constant(qualified: str) -> None:
    """An op without gradient: its floating results do not require one either."""

    def setup_context(ctx, inputs, output) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))

    def gradient(ctx, *grads):
        return None

    torch.library.register_autograd(f"{NAMESPACE}::{qualified}", gradient, setup_context=setup_context, lib=_LIBRARY)


def _register_no_double_backward(qualified: str, name: str) -> None:
    function = definition(name.removesuffix("_backward"))

    def gradient(ctx, *grads):
        raise RuntimeError(
            f"semimatch_kernels: double backward through a fused op is not supported (here {qualified}); "
            f"differentiate the plain PyTorch definition {function.__module__}.{function.__name__} instead"
        )

    torch.library.register_autograd(f"{NAMESPACE}::{qualified}", gradient, lib=_LIBRARY)


def _register(name: str, op: Op) -> None:
    _LIBRARY.impl(f"{name}_reference", _reference_kernel(name), "CompositeExplicitAutograd")
    if "triton" in op.backends:
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(f"{name}_triton", _triton_kernel(name), key)
    for qualified in {backend_name(name, b) for b in ("reference", *op.backends)}:
        torch.library.register_fake(f"{NAMESPACE}::{qualified}", getattr(fakes, name), lib=_LIBRARY)
        torch.library.register_vmap(f"{NAMESPACE}::{qualified}", vmap.rule(name, getattr(ops, qualified)), lib=_LIBRARY)
        if name.endswith("_backward"):
            _register_no_double_backward(qualified, name)
        elif op.inputs:
            _register_autograd(qualified, qualified.replace(name, f"{name}_backward", 1), op)
        else:
            _register_constant(qualified)


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


def run(name: str, backend: str, *args):
    """Calls op ``name`` of ``backend``, with the arguments of its schema."""
    return _RUN[name, backend](*args)
