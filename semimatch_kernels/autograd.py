"""Autograd of the fused ops: one formula for all, see `schemas.Op`.

Put on the dispatcher's Autograd key, as `torch.library.register_autograd` does, but without what that does for any op
there could be (trees of arguments, keywords, defaults), which is host time of every call. Once only, and not
under torch.func's transforms (PyTorch's limit; the plain definitions take any).

`differentiable` is the formula in Python; csrc/autograd.cpp is the same in C++, which takes the host less
time: compare ``python -m benchmarks.host_overhead`` with and without SEMIMATCH_AUTOGRAD=python.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch._C import _after_autograd_keyset, _AutoDispatchBelowADInplaceOrView

from .schemas import Op


def _below(op: Callable, keyset, args: tuple):
    """Calls ``op`` past the Autograd key, and past what would make its results views of what it forms them in."""
    with _AutoDispatchBelowADInplaceOrView():
        return op.redispatch(keyset & _after_autograd_keyset, *args)


def _flat(values) -> list:
    """``values`` with the items of lists in their place."""
    return [item for v in values for item in (v if isinstance(v, (list, tuple)) else (v,))]


def unsupported(what: str, plain: Callable) -> RuntimeError:
    """The error for what autograd cannot do with a fused op, whose definition is ``plain``."""
    return RuntimeError(
        f"semimatch_kernels: {what} is not supported; differentiate the plain PyTorch definition "
        f"{plain.__module__}.{plain.__name__} instead"
    )


def _no_transform(op: Callable, plain: Callable) -> RuntimeError:
    return unsupported(f"a transform of torch.func that differentiates a fused op ({op})", plain)


def _name(function: type[torch.autograd.Function], op: Callable) -> None:
    """Calls ``function`` by its op where people look for it: in profiles, graphs and errors of autograd."""
    function.__name__ = op.name().replace("::", "_")
    function._backward_cls.__name__ = f"{function.__name__}Backward"


def differentiable(forward: Callable, backward: Callable, op: Op, plain: Callable) -> Callable:
    """The Autograd kernel of op ``forward``, whose gradient is op ``backward`` and whose definition is ``plain``."""
    arguments, results = forward._schema.arguments, len(forward._schema.returns)
    tensors = [i for i, a in enumerate(arguments) if str(a.type) in ("Tensor", "Optional[Tensor]")]
    lists = [i for i, a in enumerate(arguments) if str(a.type) == "List[Tensor]"]
    constants = [i for i in range(len(arguments)) if i not in tensors and i not in lists]
    without_gradient = [i for i in range(results) if i not in op.outputs]

    class Gradient(torch.autograd.Function):
        """Takes the arguments as they are and, for autograd to see, those that carry a gradient one by one."""

        @staticmethod
        def forward(ctx, keyset, args, *leaves):
            result = _below(forward, keyset, args)
            outputs = (result,) if results == 1 else result
            ctx.save_for_backward(
                *[args[i] for i in tensors], *[t for i in lists for t in args[i]], *[outputs[i] for i in op.saved]
            )
            ctx.constants = [args[i] for i in constants]
            ctx.lengths = [len(args[i]) for i in lists]
            ctx.mark_non_differentiable(*[outputs[i] for i in without_gradient])
            ctx.set_materialize_grads(False)
            return result

        @staticmethod
        def backward(ctx, *grads):
            grads = [grads[i] for i in op.outputs]
            if all(g is None for g in grads):
                return (None,) * len(ctx.needs_input_grad)
            saved, args = iter(ctx.saved_tensors), [None] * len(arguments)
            for i in tensors:
                args[i] = next(saved)
            for i, length in zip(lists, ctx.lengths, strict=True):
                args[i] = [next(saved) for _ in range(length)]
            for i, value in zip(constants, ctx.constants, strict=True):
                args[i] = value
            # create_graph: the result may be differentiated, which the op refuses. Compiled: no guard can be traced.
            if torch.is_grad_enabled() or torch.compiler.is_compiling():
                result = backward(*args, *saved, *grads)
            else:
                with _AutoDispatchBelowADInplaceOrView():
                    result = backward(*args, *saved, *grads)
            by_input = (result,) if len(op.inputs) == 1 else result
            return None, None, *_flat(by_input)

    _name(Gradient, forward)

    def kernel(keyset, *args):
        if torch.is_grad_enabled():
            leaves = _flat(args[i] for i in op.inputs)
            if any(t.requires_grad for t in leaves):
                if torch._C._are_functorch_transforms_active():
                    raise _no_transform(forward, plain)
                return Gradient.apply(keyset, args, *leaves)
        return _below(forward, keyset, args)

    return kernel


def differentiate_in_cpp(module: ModuleType, forward: Callable, backward: Callable, op: Op, plain: Callable) -> None:
    """Registers the kernel that `differentiable` makes, by the native ``module``."""
    refusal = str(_no_transform(forward, plain))
    module.differentiate(forward.name(), backward.name(), refusal, op.inputs, op.outputs, op.saved)


def constant(op: Callable) -> Callable:
    """The Autograd kernel of an op without gradient: its results require none, whatever its arguments do."""
    return lambda keyset, *args: _below(op, keyset, args)


def once(op: Callable, plain: Callable) -> Callable:
    """The Autograd kernel of a backward op: an error where its result is differentiated, which points to ``plain``."""

    class Gradient(torch.autograd.Function):
        """Takes the arguments as they are and, for autograd to see, the tensors that require a gradient; returns the
        results one by one, and in ``lengths`` how many belong to each list (None = a tensor)."""

        @staticmethod
        def forward(ctx, keyset, args, lengths, *leaves):
            result = _below(op, keyset, args)
            results = result if isinstance(result, tuple) else (result,)
            lengths += [len(r) if isinstance(r, list) else None for r in results]
            return tuple(_flat(results))

        @staticmethod
        def backward(ctx, *grads):
            raise unsupported(f"double backward through a fused op ({op})", plain)

    _name(Gradient, op)

    def kernel(keyset, *args):
        leaves = []
        if torch.is_grad_enabled():
            leaves = [t for t in _flat(args) if isinstance(t, torch.Tensor) and t.requires_grad]
        if not leaves:
            return _below(op, keyset, args)
        lengths: list[int | None] = []
        flat = iter(Gradient.apply(keyset, args, lengths, *leaves))
        results = tuple(next(flat) if n is None else [next(flat) for _ in range(n)] for n in lengths)
        return results if len(results) > 1 else results[0]

    return kernel
