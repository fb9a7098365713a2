"""``python -m benchmarks.host_overhead``: microseconds of host time a call, on inputs too small to compute anything.

Every public op in every backend that runs here: forward without gradient, forward with gradient, forward and backward
through autograd. First the costs they are made of: PyTorch's own ops, and the ways to register one. Medians of
interleaved rounds with the spread from the first to the third quartile; written as JSON and as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import semimatch_kernels as smk
from semimatch_kernels.backends import reason_against

from . import machine

GRID, N = (2, 2), 4
ROUNDS, CALLS = 31, 200


@torch.library.custom_op("semimatch_benchmarks::identity", mutates_args=())
def _custom_op(x: Tensor) -> Tensor:
    """The cheapest custom_op in Python: what registration by decorator costs."""
    return torch.empty_like(x)


_custom_op.register_autograd(lambda ctx, grad: grad)


class _Function(torch.autograd.Function):
    """The cheapest autograd.Function: no op, nothing that torch.compile or opcheck could see."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def rows() -> dict[tuple[str, str], Callable[[Tensor, Tensor], object]]:
    """(op, backend) -> call on a correlation [1,N,N] and features [1,2,H,W] that both may require a gradient."""
    labels = torch.zeros(1, N, dtype=torch.int64)
    theta = torch.zeros(1, 24)
    parts = {
        ("empty_like", "torch"): lambda c, f: torch.empty_like(c),
        ("add", "torch"): lambda c, f: c + c,
        ("bmm", "torch"): lambda c, f: torch.bmm(c, c),
        ("softmax", "torch"): lambda c, f: c.softmax(1),
        ("an autograd.Function", "Python"): lambda c, f: _Function.apply(c),
        ("a custom_op", "Python"): lambda c, f: _custom_op(c),
    }
    if reason_against("match", "cpu", "cpu", torch.float32) is None:
        native = torch.ops.semimatch_kernels.match.default
        parts["match without argument checks", "cpu"] = lambda c, f: native(c, GRID, 0.1)
    ops = {
        "correlation": lambda c, f, b: smk.correlation(f, f, backend=b),
        "mutual_filter": lambda c, f, b: smk.mutual_filter(c, backend=b),
        "mutual_mask": lambda c, f, b: smk.mutual_mask(c, backend=b),
        "match": lambda c, f, b: smk.match(c, GRID, backend=b),
        "match, both": lambda c, f, b: smk.match(c, (GRID, GRID), per="both", backend=b),
        "match_features": lambda c, f, b: smk.match_features(f, f, GRID, backend=b),
        "soft_argmax with a window": lambda c, f, b: smk.soft_argmax(c, GRID, window=smk.HardWindow(1), backend=b),
        "soft_argmax_features": lambda c, f, b: smk.soft_argmax_features(f, f, GRID, backend=b),
        "softmax_entropy": lambda c, f, b: smk.softmax_entropy(c, backend=b),
        "dual_softmax": lambda c, f, b: smk.dual_softmax(c, backend=b),
        "dual_softmax_features": lambda c, f, b: smk.dual_softmax_features(f, f, labels, labels, backend=b),
        "masked_contrastive_loss": lambda c, f, b: smk.masked_contrastive_loss(c, labels, backend=b),
        "masked_contrastive_loss_features": lambda c, f, b: smk.masked_contrastive_loss_features(
            f, f, labels, backend=b
        ),
        "forward_backward_mask": lambda c, f, b: smk.forward_backward_mask(labels, labels, GRID, backend=b),
        "pseudo_labels": lambda c, f, b: smk.pseudo_labels(c, GRID, backend=b),
        "warp": lambda c, f, b: smk.warp(f, theta, backend=b),
        "warp_lookup": lambda c, f, b: smk.warp_lookup(theta, GRID, backend=b),
        "sparse_epe": lambda c, f, b: smk.sparse_epe(f, torch.ones_like(f), backend=b),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, call in ops.items():
        for backend in ("cpu", "triton", "cuda", "reference"):
            reason = reason_against(name.removesuffix(", both"), backend, device, torch.float32)
            if reason is None:
                parts[name, backend] = lambda c, f, call=call, backend=backend: call(c, f, backend)
    return parts


def _floats(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result] if result.requires_grad else []
    return [t for r in result for t in _floats(r)]


def phases(call: Callable[[Tensor, Tensor], object]) -> dict[str, Callable[[], object]]:
    """The three things that are timed of a call; only the first where it carries no gradient."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    corr, features = torch.randn(1, N, N, device=device), torch.randn(1, 2, *GRID, device=device)
    leaves = corr.clone().requires_grad_(), features.clone().requires_grad_()
    timed = {"forward": lambda: call(corr, features)}
    outputs = _floats(call(*leaves))
    if outputs:
        ones = torch.ones_like(outputs[0])
        timed["forward, grad"] = lambda: call(*leaves)
        timed["forward+backward"] = lambda: torch.autograd.grad(
            _floats(call(*leaves))[0], leaves, ones, allow_unused=True
        )
    return timed


def measure(rounds: int, calls: int) -> list[dict]:
    """Median and quartiles in microseconds of each row and phase; the rows take turns in every round."""
    timed = {(*key, phase): f for key, call in rows().items() for phase, f in phases(call).items()}
    samples: dict[tuple, list[float]] = {key: [] for key in timed}
    for round_ in range(rounds + 1):
        for key, function in timed.items():
            start = time.perf_counter()
            for _ in range(calls if round_ else 20):
                function()
            if round_:  # the first round warms up
                samples[key].append((time.perf_counter() - start) / calls * 1e6)
    results = []
    for (op, backend, phase), values in samples.items():
        low, median, high = statistics.quantiles(values, n=4)
        results.append(dict(op=op, backend=backend, phase=phase, median_us=median, q1_us=low, q3_us=high))
    return results


def table(results: list[dict]) -> str:
    """Markdown: a row an op and backend, a column a phase, "median (q1-q3)"."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for r in results:
        text = f"{r['median_us']:.1f} ({r['q1_us']:.1f}-{r['q3_us']:.1f})"
        cells.setdefault((r["op"], r["backend"]), {})[r["phase"]] = text
    names = ("forward", "forward, grad", "forward+backward")
    lines = ["| op | backend | " + " | ".join(names) + " |", "|---|---|---|---|---|"]
    lines += [f"| {op} | {b} | " + " | ".join(by.get(n, "-") for n in names) + " |" for (op, b), by in cells.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--calls", type=int, default=CALLS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = machine.describe()
    results = measure(options.rounds, options.calls)
    text = table(results)
    print(text)
    folder = machine.results_folder()
    header = "\n".join(f"- {key}: {value}" for key, value in about.items())
    (folder / "host_overhead.json").write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    (folder / "host_overhead.md").write_text(
        f"# Host time a call, in microseconds\n\n{header}\n- command: `python -m benchmarks.host_overhead`\n\n"
        f"Inputs of {N} x {N} cells: next to nothing to compute. Median (quartiles) of {options.rounds} interleaved "
        f"rounds of {options.calls} calls.\n\n{text}\n"
    )
    print(f"\nwritten to {folder.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()
