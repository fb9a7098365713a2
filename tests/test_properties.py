"""What holds for every input: symmetries, limits, masks and twins, on random small shapes in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import semimatch_kernels as smk
from semimatch_kernels import library
from semimatch_kernels.coordinates import convert

EPS = torch.finfo(torch.float64).eps

every = settings(
    deadline=None, derandomize=True, max_examples=25, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

_sides = st.integers(1, 4)
grids = st.tuples(_sides, _sides)
temperatures = st.sampled_from([0.05, 0.1, 0.5, 1.0, 3.0])
backends = st.sampled_from(["reference"] if library.CPU_REASON else ["reference", "cpu"])
pers = st.sampled_from(["target", "source"])
windows = st.sampled_from(
    [None, smk.GaussianWindow(0.7), smk.GaussianWindow(3.0), smk.HardWindow(1), smk.HardWindow(1, "zero")]
)


@dataclass
class Problem:
    """A random correlation with its grids, temperature, and the backend of its `match`."""

    corr: Tensor
    source: tuple[int, int]
    target: tuple[int, int]
    temperature: float
    backend: str

    def grid(self, per: str) -> tuple[int, int]:
        return self.source if per == "target" else self.target

    @property
    def both(self) -> tuple:
        return self.source, self.target

    def match(self, corr: Tensor | None = None, per: str = "target", **options) -> smk.Match:
        corr = self.corr if corr is None else corr
        return smk.match(corr, self.grid(per), self.temperature, per, backend=self.backend, **options)

    def labels(self, seed: int = 0) -> Tensor:
        """A label of every target cell, some of them ignored."""
        generator = torch.Generator().manual_seed(seed)
        batch, sources, targets = self.corr.shape
        return torch.randint(-1, sources, (batch, targets), generator=generator)


@st.composite
def problems(draw) -> Problem:
    source, target, batch = draw(grids), draw(grids), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    corr = torch.randn(batch, source[0] * source[1], target[0] * target[1], dtype=torch.float64, generator=generator)
    return Problem(corr, source, target, draw(temperatures), draw(backends))


def _permutation(cells: int) -> Tensor:
    return torch.randperm(cells, generator=torch.Generator().manual_seed(cells))


def _close(actual: Tensor, expected: Tensor, size: float = 1.0) -> None:
    """Equal but for the order of a sum of at most 16 entries (and of those of the backward) of ``size``, in units of
    rounding: of the entries themselves and of the exponents, which are what scores / temperature are long."""
    torch.testing.assert_close(actual, expected, rtol=64 * EPS, atol=64 * EPS * max(size, 1.0), equal_nan=True)


def _size(problem: Problem) -> float:
    return problem.corr.abs().max().item() / problem.temperature


def _same(actual: smk.Match, expected: smk.Match, size: float, skip: tuple[str, ...] = ()) -> None:
    for field in smk.Match._fields:
        if field == "index":
            assert field in skip or torch.equal(actual.index, expected.index)
        elif field not in skip:
            _close(getattr(actual, field), getattr(expected, field), size)


# --- match: symmetries


@every
@given(problems())
def test_permuting_the_source_permutes_the_index_and_leaves_the_rest(p):
    order = _permutation(p.corr.shape[1])
    moved, plain = p.match(p.corr[:, order]), p.match()
    _same(moved, plain, _size(p), skip=("coords", "index"))
    assert torch.equal(order[moved.index], plain.index)


@every
@given(problems())
def test_permuting_the_target_permutes_the_results(p):
    order = _permutation(p.corr.shape[2])
    _same(p.match(p.corr[:, :, order]), smk.Match(*(f[:, order] for f in p.match())), _size(p))


@every
@given(problems(), st.floats(-50, 50))
def test_an_offset_of_a_column_shifts_its_logsumexp_alone(p, offset):
    # Sums are rounded to the spacing of numbers of the size of the offset; so are the exponents.
    size = _size(p) + abs(offset) / p.temperature
    plain = p.match()
    shifted = p.match(p.corr + offset)
    _same(shifted, plain._replace(logsumexp=plain.logsumexp + offset / p.temperature), size, skip=("index",))
    top = p.corr.topk(min(2, p.corr.shape[1]), 1).values
    clear = (top[:, 0] - top[:, -1] > 1e-12 * (1 + abs(offset))) | (p.corr.shape[1] == 1)
    assert torch.equal(shifted.index[clear], plain.index[clear])


@every
@given(problems(), st.sampled_from([0.125, 0.5, 2.0, 16.0]))
def test_scaling_scores_and_temperature_together_changes_nothing(p, factor):
    scaled = smk.match(p.corr * factor, p.source, p.temperature * factor)
    _same(scaled, p.match(), _size(p))


@every
@given(problems())
def test_limits_of_the_temperature(p):
    """To 0: all on the best cell. To infinity: the same for all."""
    sources = p.corr.shape[1]
    top = p.corr.topk(min(2, sources), 1).values
    gap = (top[:, 0] - top[:, -1]).min().item() if sources > 1 else 1.0
    cold = smk.match(p.corr, p.source, max(gap, 1e-9) / 800)  # exp(-800) is 0
    best = torch.stack([cold.index % p.source[1], cold.index // p.source[1]], -1).double()
    if gap > 1e-9:
        _close(convert(cold.coords, p.source, "cells"), best, 4)
        assert (cold.score == 1).all() and cold.entropy.abs().max() <= EPS
    hot = smk.match(p.corr, p.source, 1e20)
    _close(hot.entropy, torch.full_like(hot.entropy, sources).log())
    _close(hot.coords, torch.zeros_like(hot.coords))
    _close(hot.score, torch.full_like(hot.score, 1 / sources))


@every
@given(problems())
def test_exchanging_the_sides(p):
    """per="source" is per="target" of the transpose, and "both" is the two."""
    turned = p.corr.transpose(1, 2).contiguous()
    source = p.match(per="source")
    _same(source, smk.match(turned, p.target, p.temperature), _size(p))
    for a, b in zip(smk.match(p.corr, p.both, p.temperature, "both"), (p.match(), source), strict=True):
        _same(a, b, _size(p))
    loss = smk.masked_contrastive_loss(turned, p.labels(), p.temperature, per="source", reduction="none")
    _close(loss, smk.masked_contrastive_loss(p.corr, p.labels(), p.temperature, reduction="none"), _size(p))


@every
@given(problems(), windows, pers)
def test_samples_do_not_meet(p, window, per):
    """A batch is its samples one by one."""
    labels = p.labels()
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).expand(p.corr.shape[0], 4)

    def results(corr, labels, box):
        return [
            *smk.match(corr, p.grid(per), p.temperature, per),
            smk.soft_argmax(corr, p.grid(per), p.temperature, per, window),
            smk.dual_softmax(corr, p.temperature),
            smk.mutual_filter(corr),
            smk.mutual_mask(corr),
            smk.masked_contrastive_loss(corr, labels, p.temperature, reduction="none"),
            *smk.pseudo_labels(corr, p.both, p.temperature, src_box=box, trg_box=box),
        ]

    alone = [results(*(v[i : i + 1] for v in (p.corr, labels, box))) for i in range(p.corr.shape[0])]
    for whole, *parts in zip(results(p.corr, labels, box), *alone, strict=True):
        _close(whole, torch.cat(parts), _size(p)) if whole.is_floating_point() else None
        assert whole.is_floating_point() or torch.equal(whole, torch.cat(parts))


@every
@given(problems())
def test_coordinates_are_one_position_in_several_units(p):
    many = torch.tensor([p.source[1], p.source[0]], dtype=torch.float64)
    cells = p.match(coordinates="cells").coords
    _close(p.match(coordinates=smk.Pixels(8, 3)).coords, 8 * cells + 3, 32)
    _close(p.match(coordinates=smk.Pixels(8)).coords, 8 * cells + 3.5, 32)
    _close(p.match(coordinates="centers").coords, (2 * cells + 1) / many - 1)
    _close(p.match().coords, torch.where(many > 1, 2 * cells / (many - 1).clamp(min=1) - 1, 0))
    best = torch.stack([p.match().index % p.source[1], p.match().index // p.source[1]], -1).double()
    ends = torch.where(many > 1, 2 * best / (many - 1).clamp(min=1) - 1, 0)
    _close(convert(ends, p.source, "cells"), best, 4)


# --- masks


@every
@given(problems(), st.integers(0, 2**31), windows)
def test_a_mask_is_deleting_the_cells(p, seed, window):
    generator = torch.Generator().manual_seed(seed)
    p.corr = p.corr[:1]
    masks = [torch.rand(1, n, generator=generator) < 0.6 for n in p.corr.shape[1:]]
    for mask in masks:
        mask[0, 0] = True
    there = [m[0].nonzero().squeeze(1) for m in masks]
    fewer = p.corr[:, there[0]][:, :, there[1]]
    names = dict(zip(("source_mask", "target_mask"), masks, strict=True))
    whole, part = p.match(**names), smk.match(fewer, (1, len(there[0])), p.temperature)
    for field in ("score", "entropy", "logsumexp"):
        _close(getattr(whole, field)[:, there[1]], getattr(part, field), _size(p))
    assert torch.equal(whole.index[:, there[1]], there[0][part.index])
    p_whole = smk.dual_softmax(p.corr, p.temperature, **names)
    _close(p_whole[:, there[0]][:, :, there[1]], smk.dual_softmax(fewer, p.temperature), _size(p))
    _close(p_whole.sum(), p_whole[:, there[0]][:, :, there[1]].sum())
    new = torch.full((p.corr.shape[1] + 1,), -1).index_put_((there[0],), torch.arange(len(there[0])))
    labels = p.labels(seed)
    options = {"temperature": p.temperature, "reduction": "sum"}
    _close(
        smk.masked_contrastive_loss(p.corr, labels, **options, **names),
        smk.masked_contrastive_loss(fewer, new[labels[:, there[1]]], **options),
        16 * _size(p),
    )
    seen = smk.soft_argmax(p.corr, p.source, p.temperature, window=window, **names)
    excluded = p.corr.masked_fill(~masks[0][:, :, None], -torch.inf)
    _close(seen[:, there[1]], smk.soft_argmax(excluded, p.source, p.temperature, window=window)[:, there[1]], _size(p))


# --- the filters, the dual softmax


@every
@given(problems(), st.floats(1e-3, 1e3))
def test_mutual_filter_scales_and_turns_with_the_scores(p, factor):
    corr = p.corr.abs()
    filtered = smk.mutual_filter(corr)
    size = filtered.abs().max().item()
    _close(smk.mutual_filter(corr * factor), factor * filtered, factor * size)
    _close(smk.mutual_filter(corr.transpose(1, 2)), filtered.transpose(1, 2), size)
    rows, columns = map(_permutation, corr.shape[1:])
    _close(smk.mutual_filter(corr[:, rows][:, :, columns]), filtered[:, rows][:, :, columns], size)
    assert (filtered <= corr * (1 + 4 * EPS)).all()


@every
@given(problems(), st.one_of(st.none(), st.floats(-1, 1)))
def test_mutual_mask_is_a_partial_matching(p, threshold):
    mask = smk.mutual_mask(p.corr, threshold)
    assert mask.sum(1).max() <= 1 and mask.sum(2).max() <= 1
    assert torch.equal(smk.mutual_mask(p.corr.transpose(1, 2), threshold), mask.transpose(1, 2))
    assert threshold is not None or mask.any(2).any(1).all(), "the best of all is mutual"
    ties = smk.mutual_mask(p.corr.round())
    assert ties.sum(1).max() <= 1 and ties.sum(2).max() <= 1


@every
@given(problems())
def test_dual_softmax_is_below_both_softmaxes_and_symmetric(p):
    both = smk.dual_softmax(p.corr, p.temperature)
    for dim in (1, 2):
        assert both.sum(dim).max() <= 1 + 64 * EPS * max(_size(p), 1)
    _close(smk.dual_softmax(p.corr.transpose(1, 2), p.temperature), both.transpose(1, 2), _size(p))
    _close(smk.dual_softmax(p.corr + 2.5, p.temperature), both, _size(p) + 2.5 / p.temperature)
    _close(smk.dual_softmax(p.corr, p.temperature, log=True).exp(), both, _size(p))


# --- windows


@every
@given(problems(), pers)
def test_a_window_of_everything_is_none(p, per):
    plain = smk.soft_argmax(p.corr, p.grid(per), p.temperature, per)
    for window in (smk.HardWindow(4), smk.HardWindow(4, "zero"), smk.GaussianWindow(1e12)):
        _close(smk.soft_argmax(p.corr, p.grid(per), p.temperature, per, window), plain, _size(p))
    alone = smk.soft_argmax(p.corr, p.grid(per), p.temperature, per, smk.HardWindow(0), coordinates="cells")
    index, width = p.match(per=per).index, p.grid(per)[1]
    _close(alone, torch.stack([index % width, index // width], -1).double(), 4)


# --- the loss


def _loss(p: Problem, corr: Tensor, **options) -> Tensor:
    options = {"labels": p.labels(), "reduction": "none", "temperature": p.temperature} | options
    return smk.masked_contrastive_loss(corr, **options)


@every
@given(problems(), st.floats(-20, 20), st.sampled_from([0.0, 0.7, 2.0]))
def test_symmetries_of_the_loss(p, offset, sigma):
    goal = smk.GaussianTarget(sigma, p.source) if sigma else None
    size, labels = _size(p) + abs(offset) / p.temperature, p.labels()
    plain = _loss(p, p.corr, smoothing=goal)
    _close(_loss(p, p.corr + offset * torch.arange(p.corr.shape[2]) / 16, smoothing=goal), plain, size)
    assert plain.min() >= -64 * EPS * max(size, 1) and plain[labels < 0].count_nonzero() == 0
    order = _permutation(p.corr.shape[2])
    _close(_loss(p, p.corr[:, :, order], labels=labels[:, order], smoothing=goal), plain[:, order], size)
    if not sigma:
        order = _permutation(p.corr.shape[1])
        moved = torch.where(labels < 0, -1, order.argsort()[labels])
        _close(_loss(p, p.corr[:, order], labels=moved), plain, size)
    weight = torch.rand(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _close(_loss(p, p.corr, weight=3 * weight - 1, smoothing=goal), (3 * weight - 1) * plain, size)
    total, mean = (_loss(p, p.corr, reduction=r, smoothing=goal) for r in ("sum", "mean"))
    _close(total, plain.sum(), 48 * size)
    _close(mean, plain.sum() / (labels >= 0).sum().clamp(min=1), size)


@every
@given(problems())
def test_smoothing_goes_to_the_plain_label(p):
    _close(_loss(p, p.corr, smoothing=smk.GaussianTarget(1e-2, p.source, 3)), _loss(p, p.corr), _size(p))
    wide = _loss(p, p.corr, smoothing=smk.GaussianTarget(1e9, p.source, 4))
    x = p.corr / p.temperature
    _close(wide, (x.logsumexp(1) - x.mean(1)).masked_fill(p.labels() < 0, 0), _size(p))


@every
@given(problems())
def test_the_symmetric_loss_swaps_its_sides(p):
    turned = p.corr.transpose(1, 2)
    other = torch.randint(-1, turned.shape[1], turned.shape[::2], generator=torch.Generator().manual_seed(2))
    for reduction in ("sum", "mean"):
        options = {"per": "both", "reduction": reduction}
        one = _loss(p, p.corr, labels=(p.labels(), other), **options)
        _close(one, _loss(p, turned, labels=(other, p.labels()), **options), 16 * _size(p))
        sides = _loss(p, p.corr, reduction=reduction), _loss(p, turned, labels=other, reduction=reduction)
        _close(one, (sides[0] + sides[1]) / 2, 16 * _size(p))


# --- labels and warps


@every
@given(grids, st.integers(1, 3), st.sampled_from([0.0, 0.1]))
def test_a_permutation_and_its_inverse_are_consistent(grid, batch, alpha):
    cells = grid[0] * grid[1]
    there = torch.stack([_permutation(cells).roll(k) for k in range(batch)])
    for per in ("target", "source"):
        assert smk.forward_backward_mask(there, there.argsort(1), grid, alpha, 1e-6, per=per).all()
    if cells > 1:  # a wrong way back, by one cell at least, is noticed
        assert not smk.forward_backward_mask(there, there.argsort(1).roll(1, 1), grid, 0.0, 0.5).all()


@every
@given(problems(), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_pseudo_labels_are_monotone_in_the_threshold(p, a, b, forward_backward):
    low, high = (
        smk.pseudo_labels(p.corr, p.both, p.temperature, threshold, forward_backward=forward_backward)
        for threshold in sorted((a, b))
    )
    assert not (high.mask & ~low.mask).any()
    assert torch.equal(high.mask, low.mask & (low.score >= max(a, b)))
    for field in ("labels", "weight", "score", "entropy"):
        assert torch.equal(getattr(high, field), getattr(low, field))
    assert (low.weight <= 1 + 8 * EPS).all() and (low.weight > 0).all()


@every
@given(
    grids, st.integers(1, 3), st.integers(0, 2**31), st.sampled_from(["affine", "tps", "affine_tps"]),
    st.sampled_from(["clean", "released"]),
)  # fmt: skip
def test_the_lookup_is_the_nearest_warp(grid, batch, seed, kind, protocol):
    """Of the numbers of the cells, from 1 on: 0 is what lies outside."""
    generator = torch.Generator().manual_seed(seed)
    affine = torch.tensor([1.0, 0, 0, 0, 1, 0]) + 0.4 * torch.randn(batch, 6, generator=generator)
    steps = torch.tensor([-1.0, 0.0, 1.0])
    spline = torch.cartesian_prod(steps, steps).T.flatten() + 0.2 * torch.randn(batch, 18, generator=generator)
    theta = {"affine": affine, "tps": spline, "affine_tps": torch.cat([affine, spline], 1)}[kind]
    cell, valid = smk.warp_lookup(theta, grid, kind, protocol)
    numbers = torch.arange(1.0, grid[0] * grid[1] + 1).reshape(1, 1, *grid).expand(batch, -1, -1, -1)
    warped, there = smk.warp(numbers, theta, kind, "nearest", protocol)
    assert torch.equal(there.flatten(1), valid)
    assert torch.equal(warped.flatten(1), torch.where(valid, cell + 1, 0).float())
