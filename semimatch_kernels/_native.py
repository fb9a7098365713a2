"""Loading of the native modules: `_C` (C++, CPU kernels), `_C_cuda` (CUDA kernels) and `_C_autograd` (autograd in C++).

Loading one of the first two registers its kernels on the ops that `library` has defined. Each may be absent, and what
loads it says why.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch

_FOLDER = Path(__file__).resolve().parent
_REBUILD = "rebuild with `pip install -e . --no-build-isolation`"
# `make setup` sees that a file is not there, but not whether it fits the sources or this torch.
_BUILD = f"{_REBUILD}, or with `make setup` in a clone"

#: The loaded modules, None until `load` has found them.
cpp: ModuleType | None = None
cuda: ctypes.CDLL | None = None
autograd: ModuleType | None = None


def load(schemas: Mapping[str, Mapping[str, str]]) -> tuple[str | None, str | None]:
    """Loads what there is, once; returns why the C++ and the CUDA module are not there (None = loaded).

    Args:
        schemas: for "cpu" and for "cuda", op name -> schema of the ops that the binary implements, as `schemas.NATIVE`.

    Raises: ImportError when a binary was built for other schemas, that is, from another state of the sources.
    """
    return _load_cpp(schemas["cpu"]), _load_cuda(schemas["cuda"])


def load_autograd() -> str | None:
    """Loads autograd in C++, once; returns why the formula in Python runs instead (None = loaded).

    Raises: ValueError for another value of SEMIMATCH_AUTOGRAD than auto and python.
    """
    global autograd
    wish = os.environ.get("SEMIMATCH_AUTOGRAD") or "auto"
    if wish not in ("auto", "python"):
        raise ValueError(f"SEMIMATCH_AUTOGRAD: expected auto or python, got {wish!r}")
    if wish == "python":
        return "SEMIMATCH_AUTOGRAD=python"
    if autograd is None:
        module = _import("_C_autograd")
        if isinstance(module, str):
            return module
        if module.torch != torch.__version__:  # its interface in C++ changes from one to the next
            return f"built for torch {module.torch}, this is {torch.__version__}; remedy: {_REBUILD}"
        autograd = module
    return None


def build_info() -> dict[str, dict[str, str]]:
    """What each loaded module was built from, by name: compiler, flags, torch, instruction sets or archs."""
    info = {}
    if cpp is not None:
        info["_C"] = dict(cpp.build_info())
    if autograd is not None:
        info["_C_autograd"] = {"torch": autograd.torch}
    if cuda is not None:
        info["_C_cuda"] = dict(line.split(": ", 1) for line in _text(cuda, "build_info").splitlines())
    return info


def _import(name: str) -> ModuleType | str:
    """A native module of Python, or why it is not there."""
    if not any(_FOLDER.glob(f"{name}.*")):
        return _why_not_built(name)
    try:
        return importlib.import_module(f"{__package__}.{name}")
    except ImportError as error:
        return _not_loadable(error)


def _load_cpp(schemas: Mapping[str, str]) -> str | None:
    global cpp
    if cpp is None:
        module = _import("_C")
        if isinstance(module, str):
            return module
        _compare("_C", module.op_schemas(), schemas)
        if missing := [name for name in ("build_info", "cache_limit", "set_cache_limit") if not hasattr(module, name)]:
            raise ImportError(f"semimatch_kernels._C is out of date: it has no {missing[0]}; {_REBUILD}")
        cpp = module
    return None


def _load_cuda(schemas: Mapping[str, str]) -> str | None:
    global cuda
    if cuda is None:
        path = _FOLDER / "_C_cuda.so"
        if not path.exists():
            return _why_not_built("_C_cuda")
        if torch.version.cuda is None:
            return f"this torch ({torch.__version__}) is built without CUDA; remedy: install one that is built with it"
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            return _not_loadable(error)
        parts = [line.partition("(") for line in _text(library, "op_schemas").splitlines()]
        _compare("_C_cuda", {name: bracket + rest for name, bracket, rest in parts}, schemas)
        cuda = library
    return None


def _text(library: ctypes.CDLL, name: str) -> str:
    function = getattr(library, f"semimatch_cuda_{name}")
    function.restype = ctypes.c_char_p
    return function().decode()


def _why_not_built(module: str) -> str:
    """The line that setup.py left when it last ran."""
    try:
        report = json.loads((_FOLDER / "_native_build.json").read_text(encoding="utf-8"))
        reason = report[f"{__package__}.{module}"]
    except (OSError, ValueError, KeyError):
        return f"not built: the build has not run yet; remedy: {_BUILD}"
    return f"not built: {reason}" if reason else f"built, but its file is gone; remedy: {_BUILD}"


def _not_loadable(error: Exception) -> str:
    return f"built, but does not load with torch {torch.__version__} ({error}); remedy: {_REBUILD}"


def _compare(module: str, built: Mapping[str, str], defined: Mapping[str, str]) -> None:
    for name in sorted({*built, *defined}):
        if built.get(name) != defined.get(name):
            was, now = built.get(name, " (no such op)"), defined.get(name, " (no such op)")
            raise ImportError(
                f"semimatch_kernels.{module} is out of date: it was built for {name}{was}, "
                f"but semimatch_kernels/schemas.py defines {name}{now}; {_REBUILD}"
            )
