"""Faults that the other tests let pass when `scripts/mutants.py` put them into the definitions: one small test each."""

from __future__ import annotations

import pytest
import torch

import semimatch_kernels as smk
from semimatch_kernels import library
from semimatch_kernels.reference.correlation import normalized
from semimatch_kernels.reference.warp import sampling_grid

# --- correlation


@pytest.mark.parametrize(("normalize", "factor"), [("inside", 0.25**-0.5), ("added", 4.0), ("clamped", 4.0)])
def test_gradient_at_the_zero_vector_is_that_of_a_scaling(normalize, factor):
    """The zero vector is scaled by 1/sqrt(eps) or 1/eps, and its gradient with it."""
    src, trg = torch.zeros(1, 3, 1, requires_grad=True), torch.randn(1, 3, 2)
    smk.correlation(src, trg, normalize, 0.25).sum().backward()
    unit = normalized(trg, normalize, 0.25)
    torch.testing.assert_close(src.grad[0, :, 0], factor * unit[0].sum(1))


def test_vectors_shorter_than_eps_are_scaled_by_it():
    """normalize="clamped": 1/eps, constant, so that the gradient has no part along the vector."""
    src, trg = (torch.rand(1, 3, n, dtype=torch.float64, requires_grad=True) for n in (4, 2))
    torch.testing.assert_close(smk.correlation(src, trg, "clamped", 3.0), src.transpose(1, 2) @ trg / 9)
    assert torch.autograd.gradcheck(lambda s, t: smk.correlation(s, t, "clamped", 3.0), (src, trg))


def test_squares_beyond_half_precision():
    """300 squared is no float16: the sum of squares is taken in float32."""
    features = torch.full((1, 4, 2), 300.0, dtype=torch.float16)
    torch.testing.assert_close(smk.correlation(features, features), torch.ones(1, 2, 2, dtype=torch.float16))


def test_relu_has_no_gradient_at_zero():
    src, trg = torch.zeros(1, 3, 2, requires_grad=True), torch.randn(1, 3, 2)
    smk.correlation(src, trg, False, relu=True).sum().backward()
    assert src.grad.count_nonzero() == 0


# --- masked_contrastive_loss


def _loss(corr, labels, weight=None, mask=None, sigma=0.0):
    """The plain definition: (loss, log-sum-exp, count)."""
    definition = library.definition("masked_contrastive_loss")
    return definition(corr, labels, weight, mask, 0.5, "sum", corr.shape[1], sigma, 1)


def test_plain_definition_of_the_loss_hides_what_the_mask_drops():
    """Autograd through it too: NaN scores of a dropped cell reach no gradient."""
    corr = torch.randn(1, 4, 3)
    corr[0, :, 1] = torch.nan
    corr.requires_grad_()
    mask = torch.tensor([[True, False, True]])
    loss, logsumexp, _ = _loss(corr, torch.zeros(1, 3, dtype=torch.int64), mask=mask)
    loss.backward()
    assert corr.grad.isfinite().all() and corr.grad[0, :, 1].count_nonzero() == 0
    assert logsumexp[0, 1] == 0


def test_plain_definition_of_the_loss_takes_the_weight_as_constant():
    corr, weight = torch.randn(1, 4, 3, requires_grad=True), torch.rand(1, 3, requires_grad=True)
    _loss(corr, torch.zeros(1, 3, dtype=torch.int64), weight)[0].backward()
    assert weight.grad is None and corr.grad is not None


def test_an_excluded_cell_outside_the_smoothed_goal_has_no_say():
    corr = torch.randn(1, 5, 2)
    corr[0, 4] = -torch.inf
    smoothing = smk.GaussianTarget(1.0, (1, 5), 1)
    labels = torch.tensor([[0, 1]])
    loss = smk.masked_contrastive_loss(corr, labels, smoothing=smoothing)
    near = smk.masked_contrastive_loss(corr[:, :4], labels, smoothing=smk.GaussianTarget(1.0, (1, 4), 1))
    torch.testing.assert_close(loss, near)


def test_gradient_where_nothing_is_admissible_and_where_the_label_names_no_cell():
    """(p - q) / temperature: p = 0 where nothing is left, NaN for a label out of range, 0 for one that is masked."""
    corr = torch.randn(1, 4, 4)
    corr[0, :, 0] = -torch.inf
    corr.requires_grad_()
    labels, mask = torch.tensor([[2, 4, 4, 1]]), torch.tensor([[True, True, False, True]])
    losses = smk.masked_contrastive_loss(corr, labels, 0.5, mask=mask, reduction="none")
    assert losses[0, 0] == torch.inf and losses[0, 1].isnan() and losses[0, 2] == 0
    (grad,) = torch.autograd.grad(losses, corr, torch.ones_like(losses))
    assert grad[0, :, 0].tolist() == [0, 0, -2, 0]
    assert grad[0, :, 1].isnan().all()
    assert grad[0, :, 2].count_nonzero() == 0 and grad[0, :, 3].isfinite().all()


# --- match, soft_argmax, dual_softmax


def test_gradient_of_both_sides_is_rounded_once():
    """The gradient in bfloat16 is that of the same scores in float32, rounded."""
    corr = torch.randn(2, 12, 8).bfloat16()
    grads = []
    for scores in (corr, corr.float()):
        leaf = scores.clone().requires_grad_()
        sides = smk.match(leaf, ((3, 4), (2, 4)), per="both", backend="reference")
        grads.append(torch.autograd.grad(sum(m.coords.sum() + m.entropy.sum() for m in sides), leaf)[0])
    assert torch.equal(grads[0], grads[1].bfloat16())


def test_no_window_is_the_plain_soft_argmax():
    """window "none" of the op, which the public function replaces by `match`."""
    corr = torch.randn(2, 12, 5, dtype=torch.float64, requires_grad=True)
    coords = library.ops.soft_argmax_reference(corr, (3, 4), 0.5, "none", 0.0)[0]
    expected = smk.match(corr, (3, 4), 0.5).coords
    torch.testing.assert_close(coords, expected)
    grads = [torch.autograd.grad(c.square().sum(), corr)[0] for c in (coords, expected)]
    torch.testing.assert_close(*grads)


def test_best_cell_of_the_definition_is_the_lowest_of_equal_ones():
    assert smk.match(torch.zeros(1, 6, 2), (2, 3), backend="reference").index.count_nonzero() == 0


def test_window_is_centred_on_the_lowest_of_equal_best_cells():
    coords = smk.soft_argmax(torch.zeros(1, 6, 2), (2, 3), window=smk.HardWindow(0))
    assert torch.equal(coords, -torch.ones(1, 2, 2))


@pytest.mark.parametrize("log", [False, True])
def test_plain_definition_of_the_dual_softmax_where_nothing_is_left(log):
    """Autograd through it is that of the op, which is finite: 0 for excluded entries."""
    corr = torch.randn(1, 4, 5, dtype=torch.float64)
    corr[0, 1], corr[0, :, 2], corr[0, 3, 4] = -torch.inf, -torch.inf, -torch.inf
    excluded = corr == -torch.inf
    grads = []
    for run in (library.definition("dual_softmax"), library.ops.dual_softmax_reference):
        leaf = corr.clone().requires_grad_()
        upstream = torch.linspace(1, 2, 20, dtype=torch.float64).reshape(1, 4, 5)
        grads.append(torch.autograd.grad(run(leaf, 0.5, log)[0], leaf, upstream)[0])
        assert grads[-1].isfinite().all() and grads[-1][excluded].count_nonzero() == 0
    torch.testing.assert_close(*grads)


# --- mutual_filter, mutual_mask


def test_equal_maxima_pass_their_gradient_to_the_lowest():
    corr = torch.ones(1, 2, 2, requires_grad=True)
    smk.mutual_filter(corr).sum().backward()
    assert corr.grad[0].tolist() == [[-1, 1], [1, 3]]


def test_a_maximum_of_zero_counts_as_1e_30():
    corr = torch.tensor([[[0.0, -1e-20], [-1.0, -2.0]]], dtype=torch.float64)
    expected = -1e-20 * (-1e-20 / 1e-30) * (-1e-20 / -1e-20)
    torch.testing.assert_close(smk.mutual_filter(corr)[0, 0, 1].item(), expected, rtol=1e-12, atol=0)


def test_mutual_mask_of_ties_limits_and_nothing():
    """One True a row and a column, the lowest; the threshold itself is not above it; -inf is no match."""
    assert smk.mutual_mask(torch.ones(2, 3)).tolist() == [[True, False, False], [False, False, False]]
    assert not smk.mutual_mask(torch.ones(2, 3), 1.0).any()
    assert not smk.mutual_mask(torch.full((2, 3), -torch.inf)).any()


# --- sparse_epe, forward_backward_mask


def test_distances_beyond_half_precision():
    """300 squared is no float16: distances are taken, and returned, in float32."""
    flow, target = torch.full((1, 2, 1, 1), 300.0).half(), torch.zeros(1, 2, 1, 1).half()
    loss = smk.sparse_epe(flow, target, torch.ones(1, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(loss, torch.tensor(300 * 2**0.5))


def test_bilinear_consistency_between_unequal_grids():
    """The way back is the other grid's flow, read where the match lies in [-1,1] of that grid."""
    own, other = (4, 5), (2, 3)
    there, back = torch.randint(0, 6, (2, 20)), torch.randint(0, 20, (2, 6))
    steps = [torch.linspace(-1, 1, n) for n in other]
    scale = torch.tensor([(own[1] - 1) / (other[1] - 1), (own[0] - 1) / (other[0] - 1)])[:, None]

    def cells(index, width):
        return torch.stack([index % width, index // width], -2).float()

    flow_back = cells(back, 5) - scale * cells(torch.arange(6), 3)
    at = torch.stack([steps[1][there % 3], steps[0][there // 3]], -1)
    read = torch.nn.functional.grid_sample(flow_back.unflatten(2, other), at[:, None], align_corners=False)[:, :, 0]
    flow = scale * cells(there, 3) - cells(torch.arange(20), 5)
    expected = (flow + read).square().sum(1) <= 0.3 * (flow.square() + read.square()).sum(1) + 0.5
    mask = smk.forward_backward_mask(there, back, (other, own), 0.3, 0.5, "bilinear")
    assert torch.equal(mask, expected) and 0 < mask.sum() < mask.numel()


# --- pseudo_labels


def test_boxes_are_rounded_half_to_even():
    corr = torch.eye(25)[None]
    box = torch.tensor([[0.5, 1.5, 2.5, 3.5]])  # columns 0 to 2, rows 2 to 4
    mask = smk.pseudo_labels(corr, (5, 5), threshold=0.0, trg_box=box).mask.unflatten(1, (5, 5))
    assert mask[0, 2:, :3].all() and mask.sum() == 9


def test_boxes_lie_in_the_grid_of_their_side():
    """Unequal grids: a label is looked up in the source grid, a cell in the target grid."""
    corr = torch.randn(1, 6, 20)
    label = corr.argmax(1)[0]
    assert {1, 2, 4, 5} <= set(label.tolist())
    box = torch.tensor([[1.0, 1.0, 2.0, 1.0]])  # cells 4 and 5 of 2 x 3, 6 and 7 of 4 x 5
    shared = dict(grid=((2, 3), (4, 5)), threshold=0.0, forward_backward=False)
    assert smk.pseudo_labels(corr, src_box=box, **shared).mask[0].tolist() == [s in (4, 5) for s in label.tolist()]
    assert smk.pseudo_labels(corr, trg_box=box, **shared).mask[0].nonzero().flatten().tolist() == [6, 7]


def test_a_score_at_the_threshold_teaches():
    """Two equal scores: probability 1/2 exactly."""
    corr = torch.zeros(1, 2, 2)
    assert smk.pseudo_labels(corr, ((1, 2), (1, 2)), threshold=0.5, forward_backward=False).mask.all()


def test_consistency_of_pseudo_labels_between_unequal_grids():
    corr = torch.randn(2, 6, 20)
    grids = ((2, 3), (4, 5))
    target, source = smk.match(corr, grids, per="both")
    expected = smk.forward_backward_mask(target.index, source.index, grids)
    assert torch.equal(smk.pseudo_labels(corr, grids, threshold=0.0).mask, expected) and 0 < expected.sum() < 40


def test_the_way_back_of_equal_scores_starts_at_the_lowest():
    corr = torch.zeros(1, 25, 25)
    shared = dict(alpha1=0.0, alpha2=0.0)
    expected = smk.forward_backward_mask(*[torch.zeros(1, 25, dtype=torch.int64)] * 2, (5, 5), **shared)
    mask = smk.pseudo_labels(corr, (5, 5), threshold=0.0, **shared).mask
    assert torch.equal(mask, expected) and mask[0].nonzero().flatten().tolist() == [0]


def test_added_probability_in_the_entropy():
    """entropy_eps e: -sum (p + e) ln(p + e); also where nothing is admissible, p = 0 in each cell."""
    corr = torch.randn(1, 4, 3, dtype=torch.float64)
    corr[0, 1, 0], corr[0, :, 2] = -torch.inf, -torch.inf
    p = torch.cat([(corr[:, :, :2] / 0.5).softmax(1), torch.zeros(1, 4, 1, dtype=torch.float64)], 2) + 1e-3
    out = smk.pseudo_labels(corr, ((2, 2), (1, 3)), 0.5, entropy_eps=1e-3)
    torch.testing.assert_close(out.entropy, -(p * p.log()).sum(1))
    torch.testing.assert_close(out.weight, torch.exp(-1.5 * out.entropy))


def test_lookup_outside_the_image_names_no_label():
    corr = torch.eye(4)[None]
    lookup = torch.tensor([[3, 0, 0, 1]]), torch.tensor([[True, False, True, True]])
    out = smk.pseudo_labels(corr, (2, 2), 0.1, threshold=0.0, lookup=lookup)
    assert out.labels.tolist() == [[3, -1, 0, 1]]
    assert out.mask.tolist() == [[True, False, True, True]]


# --- warp


def test_the_composed_warp_maps_by_the_spline_and_then_by_the_affine_map():
    steps = torch.tensor([-1.0, 0.0, 1.0])
    regular = torch.cartesian_prod(steps, steps).T.flatten()
    affine, spline = torch.tensor([0.8, 0.2, 0.1, -0.3, 0.9, 0.2]), regular + 0.2 * torch.rand(18)
    theta = torch.cat([affine, spline])[None]
    positions = sampling_grid(theta[:, 6:], (5, 7), "tps", corner_aligned=False)
    expected = positions @ affine.reshape(2, 3)[:, :2].T + affine.reshape(2, 3)[:, 2]
    torch.testing.assert_close(sampling_grid(theta, (5, 7), "affine_tps", corner_aligned=False), expected)
    image = torch.randn(1, 2, 5, 7)
    still = torch.cat([affine, regular])[None]
    for ours, alone in zip(smk.warp(image, still), smk.warp(image, still[:, :6], "affine"), strict=True):
        torch.testing.assert_close(ours, alone, atol=1e-4, rtol=0)


def test_a_lookup_outside_the_image_is_cell_zero():
    shift = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0, 0.0]])  # reads half an image to the right
    cell, valid = smk.warp_lookup(shift, (4, 4), "affine")
    assert valid.sum() == 8 and cell[~valid].count_nonzero() == 0


# --- the public functions and vmap


def test_a_label_out_of_range_is_reported_beside_a_source_mask_too():
    masks = dict(source_mask=torch.tensor([[True, True, False, False]]), reduction="none")
    losses = smk.masked_contrastive_loss(torch.randn(1, 4, 3), torch.tensor([[0, 2, 4]]), **masks)
    assert losses[0, 0].isfinite() and losses[0, 1] == 0 and losses[0, 2].isnan()


def test_each_side_of_the_symmetric_loss_has_its_own_goal():
    corr, labels = torch.randn(1, 6, 4), (torch.randint(0, 6, (1, 4)), torch.randint(0, 4, (1, 6)))
    goals = smk.GaussianTarget(0.5, (2, 3), 1), smk.GaussianTarget(2.0, (2, 2), 1)
    both = smk.masked_contrastive_loss(corr, labels, per="both", smoothing=goals)
    alone = [
        smk.masked_contrastive_loss(corr, label, per=per, smoothing=goal)
        for label, per, goal in zip(labels, ("target", "source"), goals, strict=True)
    ]
    torch.testing.assert_close(both, sum(alone) / 2)
    square = torch.randn(1, 4, 4)
    labels = (labels[1][:, :4],) * 2
    goals = smk.GaussianTarget(0.5, (2, 2), 1), None
    both = smk.masked_contrastive_loss(square, labels, per="both", smoothing=goals, reduction="none")
    torch.testing.assert_close(both[1], smk.masked_contrastive_loss(square, labels[1], per="source", reduction="none"))


def test_coordinates_of_both_sides_are_in_cells_of_their_grid():
    corr, grids = torch.randn(2, 6, 20), ((2, 3), (4, 5))
    both = smk.match(corr, grids, per="both", coordinates="cells")
    for side, grid, per in zip(both, grids, ("target", "source"), strict=True):
        torch.testing.assert_close(side.coords, smk.match(corr, grid, per=per, coordinates="cells").coords)


def test_vmapped_mean_of_an_element_in_which_nothing_counts():
    corr = torch.randn(2, 1, 4, 3, requires_grad=True)
    labels = torch.tensor([[[0, 1, 2]], [[-1, -1, -1]]])
    losses = torch.vmap(smk.masked_contrastive_loss)(corr, labels)
    torch.testing.assert_close(losses[0], smk.masked_contrastive_loss(corr[0], labels[0]))
    assert losses[1] == 0
    (grad,) = torch.autograd.grad(losses.sum(), corr)
    assert grad.isfinite().all() and grad[0].count_nonzero() > 0 and grad[1].count_nonzero() == 0


def test_every_pair_of_cells_that_are_not_there_has_no_probability():
    src, trg = torch.randn(1, 3, 1, 4, requires_grad=True), torch.randn(1, 3, 1, 5, requires_grad=True)
    masks = dict(source_mask=torch.tensor([[True, True, False, True]]), target_mask=torch.arange(5)[None] != 3)
    s, t = torch.tensor([[0, 2, 1, 2]]), torch.tensor([[1, 0, 3, 3]])
    pairs = smk.dual_softmax_features(src, trg, s, t, **masks)
    matrix = smk.dual_softmax(smk.correlation(src, trg), **masks)
    torch.testing.assert_close(pairs, matrix[0, s, t])
    assert pairs[0, 1:].count_nonzero() == 0
    assert all(g.isfinite().all() for g in torch.autograd.grad(pairs.sum(), (src, trg)))


def test_upstream_gradients_of_a_vmapped_sum_go_to_their_own_element():
    corr, labels = torch.randn(2, 2, 4, 3, requires_grad=True), torch.zeros(2, 2, 3, dtype=torch.int64)
    losses = torch.vmap(lambda c, t: smk.masked_contrastive_loss(c, t, reduction="sum"))(corr, labels)
    (grad,) = torch.autograd.grad(losses, corr, torch.tensor([1.0, 0.0]))
    assert grad[0].flatten(1).count_nonzero(1).min() > 0 and grad[1].count_nonzero() == 0


def test_entropy_of_a_target_cell_that_is_not_there_is_zero():
    entropy = smk.softmax_entropy(torch.randn(1, 4, 2), target_mask=torch.tensor([[True, False]]))
    assert entropy[0, 0] > 0 and entropy[0, 1] == 0
