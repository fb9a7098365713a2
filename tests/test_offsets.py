"""Extreme sizes: offsets beyond what 32 bits count, no sample at all, one cell, and nothing left in a mask."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import numpy as np
import op_cases
import pytest
import torch
from op_cases import CASES, available, leaves, make
from torch import Tensor

import semimatch_kernels as smk
from semimatch_kernels import library
from semimatch_kernels.backends import reason_against
from semimatch_kernels.schemas import OPS


def _op(qualified):
    return getattr(library.ops, qualified).default


def _flat(values) -> list[Tensor]:
    values = values if isinstance(values, (tuple, list)) else (values,)
    return [t for v in values for t in (v if isinstance(v, (tuple, list)) else (v,)) if isinstance(t, Tensor)]


def _change(monkeypatch, sizes: dict) -> None:
    for name, value in sizes.items():
        monkeypatch.setattr(op_cases, name, value)


def _run(qualified: str, args: tuple, upstream=torch.ones_like) -> tuple[list[Tensor], list[Tensor]]:
    """Results, and gradients by the leaves where there are any."""
    outputs = _flat(_op(qualified)(*args))
    carry = [o for o in outputs if o.requires_grad]
    if not carry:
        return outputs, []
    return outputs, list(torch.autograd.grad(carry, leaves(args), [upstream(o) for o in carry], allow_unused=True))


# --- fake kernels

# Every size is unique, so that it says which dimension it is.
SMALL = {"B": 11, "SOURCE": (3, 7), "TARGET": (2, 13), "S": 21, "T": 26}
HUGE = {"B": 3, "SOURCE": (200, 200), "TARGET": (180, 225), "S": 40000, "T": 40500}


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize(("case", "qualified"), [p for p in available(gpu=False) if p.values[1] != "warp"])
def test_fake_kernels_of_huge_sizes(case, qualified, layout, monkeypatch):
    """Shape, dtype and order of the strides of results and gradients are those of a small run, at 4.8e9 entries."""
    runs = []
    for sizes, device in ((SMALL, "cpu"), (HUGE, "meta")):
        _change(monkeypatch, sizes)
        with torch.device(device):
            args = make(case, torch.float16, layout, True)
            runs.append([t for r in _run(qualified, args) for t in r if t is not None])
    by_size = {SMALL[k]: HUGE[k] for k in ("B", "S", "T")}
    assert runs[0]
    for small, huge in zip(*runs, strict=True):
        assert huge.device.type == "meta" and huge.dtype == small.dtype
        assert huge.shape == tuple(by_size.get(n, n) for n in small.shape)
        order = [sorted(range(t.dim()), key=lambda d, t=t: -t.stride(d)) for t in (small, huge)]
        assert order[0] == order[1]


# --- real runs

# Elements from row to row. The first does not fit 32 bits, the second does, but no product of it with 2 or more.
FAR = {"far": 2**31 + 4099, "products": 2**30 + 4099}
#: dimensions of [B,S,T] by size of their strides, largest first; and how many of the last lie close together
ORDERS = {"rows": ((0, 1, 2), 1), "columns": ((0, 2, 1), 1), "batch": ((1, 2, 0), 1), "samples": ((0, 1, 2), 2)}
TAKES_CORR = [p for p in available(gpu=False) if OPS.get(CASES[p.values[0]].op) and "levels" not in p.values[0]]
TAKES_CORR = [p for p in TAKES_CORR if OPS[CASES[p.values[0]].op].schema.startswith("(Tensor corr")]


@pytest.fixture
def far_apart(tmp_path):
    """far_apart(values, step, order, close): the same values in a sparse file, ``step`` elements apart."""
    path, maps = tmp_path / "sparse", []

    def place(values: Tensor, step: int, order: tuple[int, ...], close: int = 1) -> Tensor:
        strides, at = [0] * values.dim(), 1
        for i, d in enumerate(reversed(order), 1):
            strides[d] = at
            at = max(at * values.shape[d], step if i >= close else 0)
        last = sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True))
        assert last > 2**31
        try:
            with open(path, "wb") as file:
                file.truncate((last + 1) * values.element_size())
            dtype = {torch.float16: np.float16, torch.float32: np.float32}[values.dtype]
            maps.append(np.memmap(path, dtype, "r+", shape=(last + 1,)))
        except (OSError, ValueError) as error:
            pytest.skip(f"no sparse file of {last >> 28} GiB here: {error}")
        view = torch.from_numpy(maps[-1]).as_strided(values.shape, strides)
        view.copy_(values)
        if os.stat(path).st_blocks * 512 > 2**26:
            pytest.skip("files are not sparse here")
        return view

    yield place
    maps.clear()
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("step", "dtype"), [("far", torch.float16), ("products", torch.float32)])
@pytest.mark.parametrize(("case", "qualified"), TAKES_CORR)
def test_entries_beyond_32_bits(case, qualified, dtype, step, order, far_apart, monkeypatch):
    """A correlation whose rows (columns, samples) lie gigabytes apart gives what its contiguous copy gives, and bit for
    bit what a view with the same order of strides nearby gives; gradients too."""
    _change(monkeypatch, {"B": 4})  # the last sample at three steps
    dims, close = ORDERS[order]
    _, *rest = make(case, dtype, "contiguous", False)
    values = torch.randn(op_cases.B, op_cases.S, op_cases.T).to(dtype)
    shape = [values.shape[d] for d in dims]
    padded = [n + 3 * (i == 3 - close) for i, n in enumerate(shape)]
    near = torch.zeros(padded, dtype=dtype)[tuple(map(slice, shape))].permute(*map(dims.index, range(3)))
    runs = []
    for corr in (values, near.copy_(values), far_apart(values, FAR[step], dims, close)):
        corr = corr.requires_grad_(bool(OPS[CASES[case].op].inputs))
        assert torch.equal(corr, values)
        torch.manual_seed(1)
        runs.append([t.detach() for r in _run(qualified, (corr, *rest), lambda o: torch.rand_like(o) + 0.5) for t in r])
    sums = 2 * max(values.shape) * torch.finfo(torch.float32).eps
    for contiguous, nearby, far in zip(*runs, strict=True):
        assert torch.equal(nearby, far)
        if far.is_floating_point():
            size = contiguous[contiguous.isfinite()].abs().max().item()
            tolerance = {"rtol": torch.finfo(far.dtype).eps, "atol": sums * max(size, 1)}
            torch.testing.assert_close(far, contiguous, **tolerance)
        else:
            assert torch.equal(far, contiguous)


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_gradients_of_results_beyond_32_bits(backend, far_apart):
    """What comes back from the results may lie as far apart as the correlation."""
    if reason := reason_against("match", backend, "cpu", torch.float32):
        pytest.skip(f"{backend}: {reason}")
    corr = torch.randn(2, 6, 4, requires_grad=True)
    grads = []
    for far in (False, True):
        coords = smk.match(corr, (2, 3), backend=backend).coords
        upstream = torch.linspace(-1, 1, coords.numel()).reshape(coords.shape)
        upstream = far_apart(upstream, FAR["far"], (0, 1, 2)) if far else upstream
        grads.append(torch.autograd.grad(coords, corr, upstream)[0])
    assert torch.equal(*grads)


# --- edge sizes and everything masked out, through the public functions


@dataclass
class _World:
    """Inputs of every public function for one batch and two grids; scores of 0 by ``masked`` = "-inf" are -inf."""

    batch: int
    source: tuple[int, int]
    target: tuple[int, int]
    masked: str = ""

    def __post_init__(self) -> None:
        b, (s, t) = self.batch, self.cells
        self.src, self.trg = (torch.randn(b, 3, *g, requires_grad=True) for g in (self.source, self.target))
        self.corr = torch.randn(b, s, t)
        if self.masked == "-inf":
            self.corr.fill_(-torch.inf)
        self.corr.requires_grad_()
        self.index = {"target": torch.randint(0, s, (b, t)), "source": torch.randint(0, t, (b, s))}
        self.masks = {}
        if self.masked in ("source_mask", "target_mask"):
            n = s if self.masked == "source_mask" else t
            self.masks = {self.masked: torch.zeros(b, n, dtype=torch.bool)}

    @property
    def cells(self) -> tuple[int, int]:
        return math.prod(self.source), math.prod(self.target)

    def grid(self, per: str) -> tuple:
        return {"target": self.source, "source": self.target, "both": (self.source, self.target)}[per]

    def labels(self, per: str):
        return (self.index["target"], self.index["source"]) if per == "both" else self.index[per]

    def mask(self, per: str):
        """Nothing counts, where that is how everything is masked out."""
        if self.masked != "mask":
            return None
        masks = {k: torch.zeros_like(v, dtype=torch.bool) for k, v in self.index.items()}
        return (masks["target"], masks["source"]) if per == "both" else masks[per]


_BOTH, _ONE = ("target", "source", "both"), ("target", "source")
_WINDOWS = {"gaussian": smk.GaussianWindow(1.0), "exclude": smk.HardWindow(1), "zero": smk.HardWindow(1, "zero")}
# name -> (function of a world, per and a backend, values of per)
STATISTICS = {
    "match": (lambda w, per, b: smk.match(w.corr, w.grid(per), per=per, backend=b, **w.masks), _BOTH),
    "softmax_entropy": (lambda w, per, b: smk.softmax_entropy(w.corr, per=per, backend=b, **w.masks), _BOTH),
    "soft_argmax": (lambda w, per, b: smk.soft_argmax(w.corr, w.grid(per), per=per, backend=b, **w.masks), _ONE),
    "match_features": (lambda w, per, b: smk.match_features(w.src, w.trg, w.grid(per), per=per, **w.masks), _BOTH),
    "softmax_entropy_features": (
        lambda w, per, b: smk.softmax_entropy_features(w.src, w.trg, per=per, **w.masks), _BOTH
    ),
} | {
    f"soft_argmax, {name}": (
        lambda w, per, b, window=window: smk.soft_argmax(w.corr, w.grid(per), per=per, window=window, **w.masks), _ONE
    )
    for name, window in _WINDOWS.items()
} | {
    f"soft_argmax_features, {name}": (
        lambda w, per, b, window=window: smk.soft_argmax_features(
            w.src, w.trg, w.grid(per), per=per, window=window, **w.masks
        ), _ONE
    )
    for name, window in (_WINDOWS | {"plain": None}).items()
}  # fmt: skip
LOSSES = {
    "masked_contrastive_loss": lambda w, per, reduction: smk.masked_contrastive_loss(
        w.corr, w.labels(per), mask=w.mask(per), reduction=reduction, per=per, **w.masks
    ),
    "masked_contrastive_loss_features": lambda w, per, reduction: smk.masked_contrastive_loss_features(
        w.src, w.trg, w.labels(per), mask=w.mask(per), reduction=reduction, per=per, **w.masks
    ),
}
OTHERS = {
    "correlation": lambda w: smk.correlation(w.src, w.trg),
    "correlation, mutual": lambda w: smk.correlation([w.src] * 2, [w.trg] * 2, relu=True, mutual=True),
    "mutual_filter": lambda w: smk.mutual_filter(w.corr),
    "mutual_mask": lambda w: smk.mutual_mask(w.corr),
    "dual_softmax": lambda w: smk.dual_softmax(w.corr, **w.masks),
    "dual_softmax_features": lambda w: smk.dual_softmax_features(
        w.src, w.trg, w.index["target"][:, :1], w.index["source"][:, :1], **w.masks
    ),
    "forward_backward_mask": lambda w: smk.forward_backward_mask(*w.labels("both"), w.grid("both")),
    "pseudo_labels": lambda w: smk.pseudo_labels(w.corr, w.grid("both"), **w.masks),
    "warp": lambda w: smk.warp(w.src, torch.randn(w.batch, 24)),
    "warp_lookup": lambda w: smk.warp_lookup(torch.randn(w.batch, 24), w.source),
    "sparse_epe": lambda w: smk.sparse_epe(w.src[:, :2], w.src[:, 1:]),
}


def _zero_gradient(world: _World, outputs: list[Tensor]) -> None:
    """The sum of what is finite has gradient 0 (and none that is not finite)."""
    total = sum(o.masked_fill(~o.isfinite(), 0).sum() for o in outputs if o.requires_grad)
    used = (world.corr, world.src, world.trg)
    for grad in torch.autograd.grad(total, used, retain_graph=True, allow_unused=True):
        assert grad is None or grad.count_nonzero() == 0


BACKENDS = ("reference", "cpu", "triton")
CALLS = [
    pytest.param(name, per, backend, id=f"{name}-{per}-{backend}")
    for name, (_, pers) in STATISTICS.items()
    for per in pers
    for backend in (BACKENDS if name in ("match", "softmax_entropy", "soft_argmax") else BACKENDS[:1])
]


def _statistics(world: _World, name: str, per: str, backend: str) -> list:
    """Results of one function, a list over the sides."""
    if reason := reason_against("match", backend, "cpu", torch.float32):
        pytest.skip(f"{backend}: {reason}")
    out = STATISTICS[name][0](world, per, backend)
    return list(out) if per == "both" else [out]


@pytest.mark.parametrize(("name", "per", "backend"), CALLS)
def test_statistics_of_no_sample_and_of_one_cell(name, per, backend):
    """B = 0: the shapes, and a gradient. S = T = 1: certain of the only cell."""
    world = _World(0, (2, 3), (2, 2))
    for out in _statistics(world, name, per, backend):
        fields = _flat(out)
        assert all(f.shape[0] == 0 and f.shape[1] in world.cells for f in fields)
        used = [world.src, world.trg] if "features" in name else [world.corr]
        for grad, leaf in zip(torch.autograd.grad(fields[0].sum(), used, retain_graph=True), used, strict=True):
            assert grad.shape == leaf.shape
    for batch in (1, 2):
        world = _World(batch, (1, 1), (1, 1))
        for out in _statistics(world, name, per, backend):
            if isinstance(out, smk.Match):
                assert (out.score == 1).all() and out.index.count_nonzero() == 0
                out = [out.coords, out.entropy]
            assert all(f.count_nonzero() == 0 for f in _flat(out))
            _zero_gradient(world, _flat(out))


@pytest.mark.parametrize("masked", ["source_mask", "target_mask", "-inf"])
@pytest.mark.parametrize(("name", "per", "backend"), CALLS)
def test_statistics_of_nothing_admissible(name, per, backend, masked):
    """Score, entropy, index 0, coords in the centre, logsumexp -inf, gradient 0."""
    if masked == "-inf" and "features" in name:
        pytest.skip("features have no score of -inf")
    world = _World(2, (2, 3), (2, 2), masked)
    for out in _statistics(world, name, per, backend):
        if isinstance(out, smk.Match):
            assert (out.logsumexp == -torch.inf).all()
            out = [out.coords, out.score, out.index, out.entropy]
        assert all(f.count_nonzero() == 0 for f in _flat(out))
        _zero_gradient(world, _flat(out))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("per", _BOTH)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_no_sample_one_cell_and_nothing_that_counts(name, per, reduction):
    """Loss 0 with gradient 0."""
    worlds = [_World(0, (2, 3), (2, 2)), _World(1, (1, 1), (1, 1)), _World(2, (1, 1), (1, 1))]
    worlds += [_World(2, (2, 3), (2, 2), masked) for masked in ("source_mask", "target_mask", "mask")]
    for world in worlds:
        losses = _flat(LOSSES[name](world, per, reduction))
        for loss in losses:
            assert loss.shape[0] == world.batch if reduction == "none" else loss.shape == ()
            assert loss.count_nonzero() == 0 and loss.isfinite().all()
        _zero_gradient(world, losses)
    if name == "masked_contrastive_loss":  # every label is on an excluded entry
        world = _World(2, (2, 3), (2, 2), "-inf")
        assert all((loss == torch.inf).all() for loss in _flat(LOSSES[name](world, per, reduction)))


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_of_no_sample(name):
    outputs = _flat(OTHERS[name](_World(0, (2, 3), (2, 3))))
    assert all(o.shape[0] == 0 if o.dim() else o == 0 for o in outputs)
    for output in outputs:
        if output.requires_grad:
            output.sum().backward(retain_graph=True)


def test_other_functions_of_one_cell():
    world = _World(2, (1, 1), (1, 1))
    one = torch.ones(2, 1, 1)
    for name in ("dual_softmax", "dual_softmax_features", "mutual_mask", "forward_backward_mask"):
        assert (OTHERS[name](world) == 1).all(), name
    torch.testing.assert_close(OTHERS["mutual_filter"](world), world.corr)
    assert OTHERS["correlation"](world).shape == one.shape
    labels = OTHERS["pseudo_labels"](world)
    assert labels.mask.all() and labels.labels.count_nonzero() == 0 and (labels.weight == 1).all()


@pytest.mark.parametrize("masked", ["source_mask", "target_mask", "-inf"])
def test_other_functions_of_nothing_admissible(masked):
    world = _World(2, (2, 3), (2, 2), masked)
    p = OTHERS["dual_softmax"](world)
    assert p.count_nonzero() == 0
    _zero_gradient(world, [p])
    if masked != "-inf":
        pairs = OTHERS["dual_softmax_features"](world)
        assert pairs.count_nonzero() == 0
        _zero_gradient(world, [pairs])
    else:
        assert not OTHERS["mutual_mask"](world).any()
    labels = OTHERS["pseudo_labels"](world)
    assert not labels.mask.any() and labels.score.count_nonzero() == 0 and labels.entropy.count_nonzero() == 0
    assert (labels.weight == 1).all() and labels.labels.count_nonzero() == 0
