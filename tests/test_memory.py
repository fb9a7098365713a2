"""The from-features definitions: a few blocks of S x CHUNK entries in memory, never S x T; values as of the matrix."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import semimatch_kernels as smk
from semimatch_kernels.reference import features

C, SIDE = 8, 64
S = SIDE * SIDE
CHUNK = 1024  # the block that the bounds are for
FLOAT = 4  # bytes


class LiveMemory(TorchDispatchMode):
    """Bytes of the storages that the operators inside made and that still live, their peak; entries of the largest."""

    def __init__(self, *outside: Tensor | None):
        super().__init__()
        self.live = self.peak = self.largest = 0
        self._seen = {t.untyped_storage()._cdata for t in outside if t is not None}

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._seen:
                continue
            self._seen.add(key)
            weakref.finalize(storage, self._freed, key, size)
            self.live += size
            self.largest = max(self.largest, size // tensor.element_size())
            self.peak = max(self.peak, self.live)
        return out


def _arguments(name: str, targets: int) -> tuple:
    src, trg = torch.randn(1, C, S), torch.randn(1, C, targets)
    masks = torch.rand(1, S) < 0.9, torch.rand(1, targets) < 0.9
    if name.startswith("masked"):
        labels, weight = torch.randint(-1, S, (1, targets)), torch.rand(1, targets)
        sigma = 1.5 if name.endswith("smoothed") else 0.0
        return (src, trg, labels, weight, masks[1], masks[0], 0.1, "mean", SIDE, sigma, 3, "inside", 1e-6)
    window = () if name == "match_features" else (name.partition(", ")[2], 5.0)
    return (src, trg, *masks, (SIDE, SIDE), 0.1, *window, "inside", 1e-6)


def _measure(name: str, targets: int) -> dict[str, LiveMemory]:
    """Memory of the op and of its gradient."""
    torch.manual_seed(0)
    op = name.partition(",")[0]
    forward, backward = getattr(features, op), getattr(features, f"{op}_backward")
    args = _arguments(name, targets)
    with LiveMemory(*(a for a in args if isinstance(a, Tensor))) as before:
        results = forward(*args)
    if op == "match_features":
        rest = (*results, *(torch.randn_like(t) for t in results[:4]))
    elif op == "soft_argmax_features":
        rest = (*results, torch.randn_like(results[0]))
    else:
        rest = (*results[1:], torch.randn(()))
    gc.collect()
    with LiveMemory(*(a for a in (*args, *rest) if isinstance(a, Tensor))) as after:
        backward(*args, *rest)
    return {"forward": before, "backward": after}


# Blocks of S x CHUNK float32 entries alive at once, (forward, backward): scores, exponentials, probabilities and what
# the last step makes of them; the distances of windows and of smoothed labels are int64, and count twice.
BLOCKS = {
    "match_features": (5, 8),
    "soft_argmax_features, gaussian": (6, 7),
    "soft_argmax_features, exclude": (6, 7),
    "masked_contrastive_loss_features": (3, 6),
    "masked_contrastive_loss_features, smoothed": (13, 15),
}
PHASES = ("forward", "backward")


def _allowed(blocks: int, targets: int) -> int:
    """Bytes of the blocks, of one more tenth, and of four copies of the features: normalised, gradients, their sums."""
    return FLOAT * (blocks * S * CHUNK + S * CHUNK // 10 + 4 * C * (S + targets))


@pytest.fixture(autouse=True)
def _one_chunk(monkeypatch):
    monkeypatch.setattr(features, "CHUNK", CHUNK)


@pytest.mark.parametrize("name", BLOCKS)
def test_peak_is_some_blocks_and_does_not_grow_with_the_targets(name):
    """At S = T = 4096: the peak, the largest single tensor, and what doubling the targets to that number adds."""
    half, whole = _measure(name, S // 2), _measure(name, S)
    for phase, blocks in zip(PHASES, BLOCKS[name], strict=True):
        assert whole[phase].peak <= _allowed(blocks, S), phase
        assert whole[phase].peak > FLOAT * (blocks - 1) * S * CHUNK, f"{phase}: the bound is out of date"
        assert whole[phase].largest == S * CHUNK <= S * S // 4, phase
        assert half[phase].largest == S * CHUNK, phase
        added = whole[phase].peak - half[phase].peak
        assert added <= 4 * FLOAT * C * (S // 2), phase


@pytest.mark.parametrize("name", ["match_features", "masked_contrastive_loss_features"])
def test_a_block_of_the_whole_side_is_noticed(name, monkeypatch):
    """The bounds of the test above fail where the whole matrix is formed at once."""
    monkeypatch.setattr(features, "CHUNK", S)
    measured = _measure(name, S)
    for phase, blocks in zip(PHASES, BLOCKS[name], strict=True):
        assert measured[phase].peak > _allowed(blocks, S)
        assert measured[phase].largest == S * S


def test_live_memory_counts_what_lives():
    """Views add nothing, what is dropped goes, and what came from outside does not count."""
    outside = torch.zeros(100)
    with LiveMemory(outside) as memory:
        kept = outside + 1
        view = kept.view(10, 10)[2:].t()
        assert memory.live == 400
        dropped = torch.cat([kept, view.flatten()])
        assert memory.live == memory.peak - 320 == 400 + 720
        del dropped
        outside.add_(1)
        assert (memory.live, memory.largest) == (400, 180)
        del kept, view
        assert memory.live == 0


# --- values: the same as with the matrix

_sides = st.integers(1, 4)
grids = st.tuples(_sides, _sides)
windows = st.sampled_from([None, smk.GaussianWindow(0.7), smk.HardWindow(1), smk.HardWindow(1, "zero")])


@pytest.mark.parametrize("chunk", [3, 1024])
@settings(deadline=None, derandomize=True, max_examples=25, database=None)
@given(
    st.integers(1, 3), grids, grids, st.sampled_from([0.1, 0.5, 3.0]), st.integers(0, 2**31),
    st.sampled_from([False, "inside", "added", "clamped"]), st.sampled_from(["target", "source"]), windows,
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_features_twins_are_their_matrix_forms(
    chunk, batch, source, target, temperature, seed, normalize, per, window, masked, smooth
):
    """Value and gradient of every function, by blocks of 3 cells and by one block."""
    generator = torch.Generator().manual_seed(seed)
    cells = source[0] * source[1], target[0] * target[1]
    sides = [torch.randn(batch, 5, n, dtype=torch.float64, generator=generator) for n in cells]
    sides[0][0, :, 0] = 0  # a vector without direction
    masks = {}
    if masked:
        masks = {
            name: torch.rand(batch, n, generator=generator) < 0.7
            for name, n in zip(("source_mask", "target_mask"), cells, strict=True)
        }
    kept, reduced = (cells[1], cells[0]) if per == "target" else cells
    grid, t, how = source if per == "target" else target, temperature, {"normalize": normalize, "eps": 0.1}
    labels = torch.randint(-1, reduced, (batch, kept), generator=generator)
    loss = {"labels": labels, "weight": torch.rand(batch, kept, generator=generator), "per": per, "temperature": t}
    loss["smoothing"] = smk.GaussianTarget(1.0, grid) if smooth else None
    pairs = [torch.randint(0, n, (batch, 4), generator=generator) for n in cells]

    def twins(src, trg):
        yield from smk.match_features(src, trg, grid, t, per, **how, **masks)
        yield smk.softmax_entropy_features(src, trg, t, per, **how, **masks)
        yield smk.soft_argmax_features(src, trg, grid, t, per, window, **how, **masks)
        yield smk.masked_contrastive_loss_features(src, trg, **loss, **how, **masks)
        yield smk.dual_softmax_features(src, trg, *pairs, t, **how, **masks)

    def matrices(src, trg):
        corr = smk.correlation(src, trg, **how)
        yield from smk.match(corr, grid, t, per, **masks)
        yield smk.softmax_entropy(corr, t, per, **masks)
        yield smk.soft_argmax(corr, grid, t, per, window, **masks)
        yield smk.masked_contrastive_loss(corr, **loss, **masks)
        yield smk.dual_softmax(corr, t, **masks)[torch.arange(batch)[:, None], pairs[0], pairs[1]]

    values, grads = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "CHUNK", chunk)
        for function in (twins, matrices):
            src, trg = (s.clone().requires_grad_() for s in sides)
            values.append(list(function(src, trg)))
            totals = [v.masked_fill(~v.isfinite(), 0).sin().sum() for v in values[-1] if v.is_floating_point()]
            grads.append([torch.autograd.grad(v, (src, trg), retain_graph=True) for v in totals])
    # A product of 5 channels is off by as many roundings of its size, in units of the temperature: so are exponents and
    # log-sum-exps, and all that follows. Gradients are sums of terms of the size of the features divided by the
    # temperature, and by eps where a vector of length 0 is normalised.
    size = 1.0 if normalize else max(s.square().sum(1).max().item() for s in sides)
    rounding = 64 * torch.finfo(torch.float64).eps * max(size / t, 1)
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)
    for ours, theirs in zip(*grads, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=rounding * max(10, size) / t)
