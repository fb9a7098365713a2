"""Mutation check: does a test fail for every small fault in the definitions and in the public functions round them?

    python scripts/mutants.py [--list] [--only NAME] [--jobs N]

Each row of `MUTANTS` is one fault: a text that stands in its file exactly once, and what to put there. The tests run on
a copy of the working tree. Prints a Markdown table of the mutants and of the test that killed each; exits with 1 if one
survived, 2 if the table is out of date or a test fails without a mutant. Every mutant is tested in a fork of this
process, which has torch loaded; Linux only.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy  # noqa: F401 - loaded once, for the forks
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # a mutant that takes longer counts as killed

# File under semimatch_kernels -> its mutants: (kind, text, replacement).
# fmt: off
MUTANTS: dict[str, list[tuple[str, str, str]]] = {
    "reference/correlation.py": [
        ("constant", "(features.square().sum(1, keepdim=True) + eps).rsqrt()",
         "1 / (features.square().sum(1, keepdim=True).sqrt() + eps)"),
        ("edge", ".sqrt().masked_fill(zero, 0)", ".sqrt()"),
        ("gradient", "grad - along * unit", "grad - 2 * along * unit"),
        ("edge", "unit = unit.masked_fill(norm < eps, 0)", "pass"),
        ("constant", "wide = features.to(accumulate_dtype(features.dtype))\n", "wide = features\n"),
        ("gradient", "unit = wide / torch.where(norm == 0, 1, norm)", "pass"),
        ("constant", "enabled=False", "enabled=True"),
        ("tie", "torch.where(corr <= 0, 0, g)", "torch.where(corr < 0, 0, g)"),
        ("gradient", "g.transpose(1, 2)) / by[0]", "g.transpose(1, 2))"),
    ],
    "reference/contrastive.py": [
        ("axis", "dx = cell % width - label % width", "dx = cell // width - label // width"),
        ("mask", "torch.where(keep[:, None], corr.to(accumulate_dtype(corr.dtype)), 0)",
         "corr.to(accumulate_dtype(corr.dtype))"),
        ("edge", "(q * x.masked_fill(q == 0, 0))", "(q * x)"),
        ("edge", "torch.where(logsumexp == -torch.inf, torch.inf, logsumexp - positive)", "logsumexp - positive"),
        ("gradient", "weight.detach().to(loss.dtype)", "weight.to(loss.dtype)"),
        ("constant", "0), keep.sum()", "0), (keep.sum() if weight is None else weight[keep].sum())"),
        ("mask", "return loss, torch.where(keep, logsumexp, 0), count", "return loss, logsumexp, count"),
        ("edge", "x - logsumexp.masked_fill(logsumexp == -torch.inf, 0)[:, None]", "x - logsumexp[:, None]"),
        ("edge", "out.masked_fill_((labels >= corr.shape[1])[:, None], torch.nan)", "pass"),
        ("mask", "torch.where(keep[:, None], out * factor, 0)", "(out * factor)"),
    ],
    "reference/matching.py": [
        ("mask", "if source_mask is not None:", "if False:"),
        ("edge", "corr - top.masked_fill(empty, 0)", "corr - top"),
        ("tie", "index = corr.argmax(1)\n    position",
         "index = corr.shape[1] - 1 - corr.flip(1).argmax(1)\n    position"),
        ("constant", "(top / temperature + log_total).squeeze(1)", "(top + log_total).squeeze(1)"),
        ("edge", "log_total - shifted.masked_fill(shifted == -torch.inf, 0)", "log_total - shifted"),
        ("sign", "out += grad_logsumexp", "out -= grad_logsumexp"),
        ("order", "wide = corr.to(accumulate_dtype(corr.dtype))  #", "wide = corr  #"),
        ("edge", "return torch.ones_like(dx)", "return (dx.abs() <= width).to(dtype)"),
        ("tie", "corr.to(accumulate_dtype(corr.dtype)), corr.argmax(1)",
         "corr.to(accumulate_dtype(corr.dtype)), corr.shape[1] - 1 - corr.flip(1).argmax(1)"),
        ("gradient", "(weights * p * slope / temperature)", "(p * slope / temperature)"),
        ("edge", "top = top.masked_fill(top == -torch.inf, 0)", "pass"),
        ("edge", "sum(dim, keepdim=True).masked_fill(empty, 1)", "sum(dim, keepdim=True)"),
        ("mask", "* (p_target * p_source)).masked_fill(excluded, 0)", "* (p_target * p_source))"),
    ],
    "reference/mutual.py": [
        ("constant", "ZERO = 1e-30", "ZERO = 1e-20"),
        ("tie", "column, column_index = c.max(-2, keepdim=True)",
         "column, column_index = c.amax(-2, True), c.shape[-2] - 1 - c.flip(-2).argmax(-2, keepdim=True)"),
        ("tie", "row, column = corr.argmax(-1, keepdim=True)",
         "row, column = corr.shape[-1] - 1 - corr.flip(-1).argmax(-1, keepdim=True)"),
        ("edge", " & (corr != -torch.inf)", ""),
        ("edge", "corr > threshold", "corr >= threshold"),
    ],
    "reference/epe.py": [
        ("constant", "dtype = accumulate_dtype(flow.dtype)", "dtype = flow.dtype"),
        ("mask", "torch.where(mask[:, None], flow.to(dtype) - target.to(dtype), 0)",
         "flow.to(dtype) - target.to(dtype)"),
        ("edge", "torch.where(exact, 1, squared).sqrt()", "squared.sqrt()"),
    ],
    "reference/consistency.py": [
        ("constant", "align_corners=False", "align_corners=True"),
        ("tie", ".sum(1) <= alpha1", ".sum(1) < alpha1"),
        ("order", 'if sampling == "gather":', "if True:"),
        ("axis", "2 * x / max(other[1] - 1, 1)", "2 * x / max(other[0] - 1, 1)"),
    ],
    "reference/pseudo_labels.py": [
        ("tie", "box.round()", "(box + 0.5).floor()"),
        ("tie", "score >= threshold", "score > threshold"),
        ("axis", "inside_box(labels, source_grid, src_box)", "inside_box(labels, target_grid, src_box)"),
        ("axis", "target_grid, trg_box)", "source_grid, trg_box)"),
        ("axis", "target_grid, source_grid, alpha1", "source_grid, target_grid, alpha1"),
        ("tie", "index_source = corr.argmax(2)", "index_source = corr.shape[2] - 1 - corr.flip(2).argmax(2)"),
        ("edge", "finite = logsumexp.masked_fill(logsumexp == -torch.inf, 0)", "finite = logsumexp"),
        ("edge", " & (logsumexp != -torch.inf)", ""),
    ],
    "reference/warp.py": [
        ("constant", "FULL_SUPPORT = 0.9999", "FULL_SUPPORT = 0.5"),
        ("constant", "torch.xlogy(squared, squared)", "torch.xlogy(squared, squared) / 2"),
        ("order", 'if kind != "tps":', 'if kind == "affine":'),
        ("mask", 'if interpolation == "nearest" and not released:', "if False:"),
        ("mask", 'grid_sample(valid, positions, mode="nearest", align_corners=False) * inside',
         "inside.to(valid.dtype)"),
        ("mask", "valid.gather(1, read) & inside", "inside"),
        ("mask", "torch.where(valid, cell, 0)", "cell"),
    ],
    "reference/features.py": [
        ("edge", "start + CHUNK)", "start + CHUNK - 1)"),
        ("edge", "range(0, cells, CHUNK)", "range(0, cells - 1, CHUNK)"),
        ("edge", "else mask[:, block]", "else mask[:, : block.stop - block.start][:, : mask[:, block].shape[1]]"),
        ("edge", "grad_src += product", "grad_src[:] = product"),
        ("gradient", "(normalized_backward(f, *self.how, g) for", "(g.to(f.dtype) for"),
        ("edge", "coords[:, block], index[:, block]", "coords[:, block], index[:, : corr.shape[2]]"),
        ("constant", "count = keep.sum()", "count = torch.tensor(keep.numel())"),
        ("mask", "features.masked_fill(~mask[:, None], 0)", "features"),
    ],
    "vmap.py": [
        ("mask", "(2, 4, 7)", "(2, 5, 7)"),
        ("edge", "loss = loss / count.clamp(min=1)", "loss = loss / count"),
        ("order", "grad[:, None].expand(size, logsumexp.shape[0] // size).flatten()",
         "grad.repeat(logsumexp.shape[0] // size)"),
    ],
    "coordinates.py": [
        ("edge", "if coordinates.offset is None", "if not coordinates.offset"),
    ],
    "dual.py": [
        ("mask", "admissible(corr, source_mask, target_mask)", "admissible(corr, source_mask, None)"),
        ("constant", "temperature * by[0] * by[1]", "temperature / by[0] / by[1]"),
        ("axis", "((per_target, target_index), (per_source, source_index))",
         "((per_target, source_index), (per_source, target_index))"),
    ],
    "contrastive.py": [
        ("edge", " | (labels >= valid.shape[1])", ""),
        ("axis", "goals[i], f", "goals[0], f"),
        ("axis", "(corr.transpose(1, 2), source_mask, target_mask)",
         "(corr.transpose(1, 2), target_mask, source_mask)"),
        ("mask", "cells.without(own.target_mask, own.source_mask)", "cells.without(own.target_mask, None)"),
    ],
    "pseudo_labels.py": [
        ("order", "-max(scale", "-min(scale"),
        ("mask", "admissible(corr, source_mask, target_mask)", "admissible(corr, None, target_mask)"),
    ],
    "matching.py": [
        ("axis", "_side(out[5:], target_grid, coordinates)", "_side(out[5:], source_grid, coordinates)"),
        ("mask", "per, source_mask=source_mask, target_mask=target_mask", "per, source_mask=source_mask"),
        ("mask", "self.src, self.target_mask, self.source_mask", "self.src, self.source_mask, self.target_mask"),
    ],
}
# fmt: on

#: Test files that are likely to kill the mutants of a file; they run first.
FIRST = {
    "reference/correlation.py": ("correlation",), "reference/contrastive.py": ("contrastive",),
    "reference/mutual.py": ("published",), "reference/matching.py": ("labels", "published"),
    "reference/features.py": ("contrastive", "memory"), "vmap.py": ("killed", "registration"),
    "coordinates.py": ("published",), "dual.py": ("published",), "contrastive.py": ("published",),
    "pseudo_labels.py": ("published",), "matching.py": ("published", "properties"),
}  # fmt: skip
THEN = (
    "labels", "killed", "accuracy", "published", "published_losses", "limits", "contrastive", "correlation",
    "properties", "golden", "match", "registration", "arguments", "offsets", "hygiene", "memory",
)  # fmt: skip
# Other backends do not run the definitions; opcheck looks at shapes; the rest is slow.
SELECTION = "not triton and not opcheck and not cuda and not peak and not scratch and not huge"


def table() -> dict[str, tuple[str, str, str, str]]:
    """Name -> (file, kind, text, replacement)."""
    return {f"{file}:{n}": (file, *row) for file, rows in MUTANTS.items() for n, row in enumerate(rows, 1)}


def test_files(file: str = "") -> list[str]:
    names = [f"tests/test_{name}.py" for name in dict.fromkeys((*FIRST.get(file, ()), *THEN))]
    return [name for name in names if Path(name).exists()]


class FirstFailure:
    """pytest plugin: remembers what failed first."""

    name = ""

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed:
            self.name = self.name or report.nodeid

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.name = self.name or f"the import, in {report.nodeid}"


def first_failure(tests: list[str]) -> str:
    """Run test files in this process and the current folder; the first test that failed, or ""."""
    signal.alarm(SECONDS)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    sys.path.insert(0, os.getcwd())
    if not importlib.import_module("semimatch_kernels").__file__.startswith(os.getcwd()):
        return "another semimatch_kernels was imported"
    for test in tests:
        plugin = FirstFailure()
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", SELECTION, test], plugins=[plugin])
        if code not in (0, 5):  # 5: nothing was selected
            return plugin.name or f"pytest's exit status {int(code)} in {test}"
    return ""


def forked(tests: list[str], cache: bool) -> str:
    """`first_failure` in a fork; ``cache``: leave compiled files behind."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        sys.dont_write_bytecode = not cache
        try:
            result = first_failure(tests)
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"
        os.write(write, b"." + result.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text[1:] if text else f"a crash, or more than {SECONDS} s"


def copy_tree(folder: Path) -> None:
    """Tracked and untracked files, and the native modules."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for path in [*(ROOT / name for name in names), *(ROOT / "semimatch_kernels").glob("*.so")]:
        if path.is_file():
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


def kill(name: str) -> tuple[str, str, float]:
    """(name, the test that killed the mutant or "", seconds); in the current folder."""
    file, _, old, new = table()[name]
    path, began = Path("semimatch_kernels") / file, time.monotonic()
    status, text = path.stat(), path.read_text()
    path.write_text(text.replace(old, new))
    os.utime(path, (1, 1))  # not the time of the compiled original
    killer = forked(test_files(file), cache=False)
    path.write_text(text)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return name, killer, time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--only", default="", metavar="NAME", help="mutants whose name contains this")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    folder = ROOT / "semimatch_kernels"
    counts = {name: (folder / file).read_text().count(old) for name, (file, _, old, _) in table().items()}
    if stale := [f"{name}: its text stands there {n} times" for name, n in counts.items() if n != 1]:
        print("\n".join(stale), file=sys.stderr)
        return 2
    chosen = {name: row for name, row in table().items() if args.only in name}
    if args.list:
        print("\n".join(f"{name} {kind}: {old!r} -> {new!r}" for name, (_, kind, old, new) in chosen.items()))
        return 0
    os.environ.setdefault("SEMIMATCH_SHARED", str(ROOT.parent / "shared"))
    os.environ["SEMIMATCH_BACKEND"] = "reference"  # where no test says otherwise: the definitions are what is mutated
    torch.set_num_threads(1)
    context, began, survived = multiprocessing.get_context("fork"), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as parent:
        folders = context.SimpleQueue()
        for job in range(args.jobs):
            copy_tree(Path(parent, str(job)))
            folders.put(f"{parent}/{job}")
        os.chdir(f"{parent}/0")
        if failed := forked(test_files(), cache=True):
            print(f"fails without a mutant: {failed}", file=sys.stderr)
            return 2
        print("| mutant | kind | change | killed by | s |\n|---|---|---|---|---|")
        with context.Pool(args.jobs, lambda: os.chdir(folders.get())) as pool:
            for name, killer, seconds in pool.imap(kill, chosen):
                _, kind, old, new = chosen[name]
                change = f"`{old}` → `{new}`".replace("\n", " ").replace("|", "\\|")
                print(f"| {name} | {kind} | {change} | {killer or '**SURVIVED**'} | {seconds:.1f} |", flush=True)
                survived += not killer
        os.chdir(ROOT)
    print(f"\n{len(chosen)} mutants, {survived} survived, {time.monotonic() - began:.0f} s.")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
