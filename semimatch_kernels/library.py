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
from torch.autograd import forward_ad

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


# --- autograd
def _register_autograd(qualified: str, backward: str, op: Op) -> None:
    arguments = getattr(ops, qualified).default._schema.arguments
    tensors = [i for i, a in enumerate(arguments) if str(a.type) in ("Tensor", "Optional[Tensor]")]
    lists = [i for i, a in enumerate(arguments) if str(a.type) == "List[Tensor]"]
    constants = [i for i in range(len(arguments)) if i not in tensors and i not in lists]
    results = len(getattr(ops, qualified).default._schema.returns)
    without_gradient = [i for i in range(results) if i not in op.outputs]

    def setup_context(ctx, inputs, output) -> None:
        outputs = (output,) if results == 1 else output
        ctx.save_for_backward(
            *[inputs[i] for i in tensors], *[t for i in lists for t in inputs[i]], *[outputs[i] for i in op.saved]
        )
        ctx.constants = [inputs[i] for i in constants]
        ctx.lengths = [len(inputs[i]) for i in lists]
        ctx.mark_non_differentiable(*[outputs[i] for i in without_gradient])
        ctx.set_materialize_grads(False)

    def gradient(ctx, *grads):
        by_input = [None] * len(arguments)
        for i, length in zip(lists, ctx.lengths, strict=True):
            by_input[i] = [None] * length
        grads = [grads[i] for i in op.outputs]
        if all(g is None for g in grads):
            return tuple(by_input)
        saved, args = iter(ctx.saved_tensors), [None] * len(arguments)
        for i in tensors:
            args[i] = next(saved)
        for i, length in zip(lists, ctx.lengths, strict=True):
            args[i] = [next(saved) for _ in range(length)]
        for i, value in zip(constants, ctx.constants, strict=True):
            args[i] = value
        by_argument = getattr(ops, backward).default(*args, *saved, *grads)
        for i, value in zip(op.inputs, (by_argument,) if len(op.inputs) == 1 else by_argument, strict=True):
            by_input[i] = value
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
    if forward_ad._current_level >= 0 and name in OPS:  # PyTorch would take the tangent for 0
        function = definition(name)
        raise RuntimeError(
            "semimatch_kernels: forward-mode AD through a fused op is not supported; differentiate the plain PyTorch "
            f"definition {function.__module__}.{function.__name__} instead"
        )
    return _RUN[name, backend](*args)
