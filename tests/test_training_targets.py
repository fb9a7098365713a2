"""Flow targets and the combination of the losses, against recorded vectors."""

from __future__ import annotations

import pytest
import torch

import semimatch_kernels as smk
from semimatch.training.step import combine
from semimatch.training.targets import flow_from_keypoints

GRID = (16, 16)


def test_flow_from_keypoints(golden):
    for name, c in golden("u09_keypoints", "k").items():
        source, target = c.src_kps.T[None], c.trg_kps.T[None]
        valid = torch.arange(source.shape[1])[None] < c.n_pts
        flow, mask = flow_from_keypoints(source, target, valid, GRID, stride=16)
        torch.testing.assert_close(flow[0], c.flow, atol=1e-5, rtol=0, msg=name)
        assert ((c.flow != 0).any(0) <= mask[0]).all(), name


def test_no_valid_point_supervises_nothing():
    points = torch.rand(2, 3, 2) * 256
    flow, mask = flow_from_keypoints(points, points, torch.zeros(2, 3, dtype=torch.bool), GRID, 16)
    assert not mask.any()
    assert flow.count_nonzero() == 0


def test_released_total_loss(golden):
    """One official iteration: L_sup from a soft-argmax, L_unsup from pseudo labels, and their dynamic combination."""
    for name, c in golden("u06_dynamic", "y").items():
        sup_corr, strong = c.corr_gt.clone().requires_grad_(), c.corr_strong.clone().requires_grad_()
        coords = smk.match(sup_corr, GRID, 0.1).coords
        cell = torch.arange(256)
        flow = (coords + 1) * 7.5 - torch.stack([cell % 16, cell // 16], -1)
        supervised = smk.sparse_epe(flow.transpose(1, 2).unflatten(2, GRID), c.flow_gt)
        lookup = smk.warp_lookup(c.theta, GRID, protocol="released")
        labels = smk.pseudo_labels(
            c.corr_weak, GRID, 0.1, c.p_cutoff, 1.5, c.src_bbox.float() / 16, c.trg_bbox.float() / 16,
            forward_backward=False, entropy_eps=1e-6, lookup=lookup,
        )  # fmt: skip
        consistent = (c.occ_T_Svec.flatten(1) > 0).gather(1, lookup[0])
        unsupervised = 0.5 * smk.masked_contrastive_loss(
            strong, labels.labels, 0.1, labels.weight, labels.mask & consistent
        )
        weight = None if c.dynamic_unsup else 1.0
        total = combine(supervised, unsupervised, weight)
        if c.zero_sup:
            total = total - supervised
        recorded = 0.0 if c.zero_sup else supervised.item()
        assert recorded == pytest.approx(c.loss_sup, abs=1e-5), name
        assert total.item() == pytest.approx(c.total, abs=1e-5), name
        grads = torch.autograd.grad(total, (sup_corr, strong), allow_unused=True)
        grads = [torch.zeros_like(strong) if g is None else g for g in grads]
        torch.testing.assert_close(grads[0][:, ::7, ::7], c.grad_corr_gt_sub, atol=5e-6, rtol=0, msg=name)
        assert grads[0].double().square().sum().item() == pytest.approx(c.grad_corr_gt_sqnorm, rel=1e-4, abs=1e-9)
        columns = grads[1].double().square().sum(1).float()
        torch.testing.assert_close(columns, c.grad_corr_strong_colsumsq, atol=1e-7, rtol=1e-4, msg=name)


def test_dynamic_weight_of_an_empty_mask_is_zero():
    unsupervised = torch.zeros((), requires_grad=True)
    supervised = torch.tensor(2.0, requires_grad=True)
    total = combine(supervised, unsupervised * 1.0, None)
    total.backward()
    assert total.item() == 2.0
    assert unsupervised.grad.item() == 0.0
    assert supervised.grad.item() == 1.0
