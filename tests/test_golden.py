"""The reference against vectors recorded from the authors' release, at the tolerances stated beside them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import grid_sample

import semimatch_kernels as smk
from semimatch.models import flow_from_coords
from semimatch_kernels.reference import consistency as consistency_reference
from semimatch_kernels.reference.pseudo_labels import inside_box
from semimatch_kernels.reference.warp import _stages as warp_stages
from semimatch_kernels.reference.warp import sampling_grid

GRID = (16, 16)
KIND = {"aff": "affine", "tps": "tps", "afftps": "affine_tps"}


def close(actual, expected, atol=0.0, rtol=0.0, what=""):
    torch.testing.assert_close(
        actual, expected.to(actual.dtype), atol=atol, rtol=rtol, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 3e-7)])
def test_correlation(golden, dtype, atol):
    for name, c in golden("u01_l2norm_corr", "c").items():
        corr = smk.correlation(c.src.to(dtype), c.trg.to(dtype), eps=1e-6)
        close(corr[:, c.corr_src_rows], c.corr, atol, what=name)


def test_mutual_filter(golden):
    for name, c in golden("u02_mutual_nn", "c").items():
        close(smk.mutual_filter(c.corr), c.out32, rtol=1e-6, what=name)
        if "out64" in c:
            close(smk.mutual_filter(c.corr.double()), c.out64, rtol=1e-6, what=name)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 5e-8), (torch.float32, 1e-6)])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_soft_argmax(golden, dtype, atol, backend):
    cases = golden("u03_softargmax")
    betas = cases.pop("all").betas.tolist()
    for name, c in cases.items():
        if not name.startswith("c"):
            continue
        corr = c.corr.to(dtype).flatten(2).requires_grad_()
        for i, beta in enumerate(betas):
            m = smk.match(corr, GRID, temperature=beta, backend=backend)
            expected = {k: getattr(c, f"b{i}_{k}").flatten(1) for k in ("grid_x", "grid_y", "pmax", "argmax")}
            close(m.coords[..., 0], expected["grid_x"], atol, what=f"{name} beta {beta}")
            close(m.coords[..., 1], expected["grid_y"], atol, what=f"{name} beta {beta}")
            close(m.score, expected["pmax"], 10 * atol, what=f"{name} beta {beta}")
            assert torch.equal(m.index, expected["argmax"])
        coords = smk.match(corr, GRID, temperature=0.1, backend=backend).coords
        upstream = torch.stack([c.grad_u.flatten(1), c.grad_v.flatten(1)], -1).to(dtype)
        (grad,) = torch.autograd.grad((coords * upstream).sum(), corr)
        close(grad[:, ::5].unflatten(2, GRID), c.grad_corr_sub, 20 * atol, what=f"{name} gradient")
        assert grad.double().square().sum().item() == pytest.approx(c.grad_sqnorm, rel=1e-5, abs=(20 * atol) ** 2)


def test_gradient_by_the_coordinates(golden):
    """The release trains the two coordinate vectors by accident; their gradient follows from the probabilities."""
    for name, c in golden("u03_softargmax", "c").items():
        p = (c.corr.double().flatten(2) / 0.1).softmax(1).unflatten(1, GRID)  # [B,row,column,T]
        if "b2_prob" in c:
            close(p.flatten(1, 2), c.b2_prob.flatten(2), 5e-8, what=name)
        close(torch.einsum("byxt,bt->x", p, c.grad_u.double().flatten(1)), c.grad_x_normal, 1e-5, what=name)
        close(torch.einsum("byxt,bt->y", p, c.grad_v.double().flatten(1)), c.grad_y_normal, 1e-5, what=name)


def test_flows_and_map_of_the_consistency_check(golden):
    for name, c in golden("u04_fbcheck", "c").items():
        target, source = smk.match(c.corr.double(), (GRID, GRID), c.temp, "both")
        # recorded in float32: exp of scores up to |C| / temperature loses that many units
        unit = torch.finfo(torch.float32).eps * c.corr.abs().max().item() / c.temp
        close(target.coords.transpose(1, 2), c.map.flatten(2), 1e-6 + unit, what=name)
        for match, side in ((target, "T_Svec"), (source, "S_Tvec")):
            flow = consistency_reference.flow_of(match.index, GRID, GRID)
            close(flow, getattr(c, f"flow_{side}").flatten(2), 5e-6, what=f"{name} {side}")


def test_forward_backward_mask_from_correlations(golden):
    for name, c in golden("u04_fbcheck", "c").items():
        index_target, index_source = c.corr.argmax(1), c.corr.argmax(2)
        assert torch.equal(index_target, c.index_T_Svec.flatten(1))
        assert torch.equal(index_source, c.index_S_Tvec.flatten(1))
        for per, side in (("target", "T_Svec"), ("source", "S_Tvec")):
            mask = smk.forward_backward_mask(
                index_target, index_source, GRID, c.alpha_1, c.alpha_2, sampling="bilinear", per=per
            )
            decided = ~getattr(c, f"tie_{side}").flatten(1)
            expected = getattr(c, f"occ_{side}").flatten(1) > 0
            assert torch.equal(mask[decided], expected[decided]), f"{name} {per}"


def test_forward_backward_rule_on_continuous_maps(golden):
    for name, c in golden("u04_fbcheck", "d").items():
        for own, other, sampled in (("T_Svec", "S_Tvec", "T"), ("S_Tvec", "T_Svec", "S")):
            position = getattr(c, f"normmap_{own}").flatten(2).transpose(1, 2)
            back = consistency_reference.sample_released(getattr(c, f"flow_{other}"), position)
            close(back, getattr(c, f"sampled_bw_at_{sampled}").flatten(2), 1e-4, what=name)
            mask = consistency_reference.consistent(getattr(c, f"flow_{own}").flatten(2), back, c.alpha_1, c.alpha_2)
            decided = ~getattr(c, f"tie_{own}").flatten(1)
            assert torch.equal(mask[decided], getattr(c, f"occ_{own}").flatten(1)[decided] > 0), name


def test_released_warp(golden):
    for name, c in golden("u05_transform", "c").items():
        if name == "c5":  # has no validity mask: the next test
            continue
        for mode, kind in KIND.items():
            theta = {"aff": c.theta[:, :6], "tps": c.theta[:, 6:], "afftps": c.theta}[mode]
            for interpolation, atol in (
                ("nearest", 0.0),
                ("bilinear", 1e-4 if c.src.shape[-1] > 16 else 2e-5),
            ):
                if f"out_{mode}_{interpolation}" not in c:
                    continue
                if name == "c6" and interpolation == "nearest":  # half-pixel ties: rounding decides, informational
                    continue
                out, valid = smk.warp(c.src, theta, kind, interpolation, protocol="released")
                expected = getattr(c, f"out_{mode}_{interpolation}")
                if interpolation == "bilinear":
                    # 0.9999 of support is decided by float32 rounding at the rim: a handful of pixels may differ there.
                    differs = (out - expected).abs().amax(1) > atol
                    assert differs.float().mean() < 1e-3, f"{name} {mode} {differs.sum()} pixels"
                else:
                    close(out, expected, what=f"{name} {mode}")
                    cell, ok = smk.warp_lookup(theta, tuple(c.src.shape[2:]), kind, protocol="released")
                    moved = c.src.flatten(2).gather(2, cell[:, None].expand(-1, c.src.shape[1], -1)) * ok[:, None]
                    close(moved, expected.flatten(2), what=f"{name} {mode} lookup")
                    assert torch.equal(ok, valid.flatten(1))


def test_warp_positions_without_the_validity_mask(golden):
    c = golden("u05_transform", "c5")["c5"]
    for mode, kind in KIND.items():
        theta = {"aff": c.theta[:, :6], "tps": c.theta[:, 6:], "afftps": c.theta}[mode]
        for interpolation, atol in (("nearest", 0.0), ("bilinear", 1e-4)):
            out = c.src
            for positions in warp_stages(theta, tuple(c.src.shape[2:]), kind, released=True):
                out = grid_sample(out, positions.to(out.dtype), mode=interpolation, align_corners=False)
            close(out, getattr(c, f"out_{mode}_{interpolation}"), atol, what=mode)


def test_warp_grids(golden):
    for name, c in golden("u05_transform", "g").items():
        size = tuple(c.hw.tolist())
        for kind, part, expected in (
            ("tps", c.theta[:, 6:], c.grid_tps),
            ("affine", c.theta[:, :6], c.grid_aff),
        ):
            close(
                sampling_grid(part, size, kind, corner_aligned=kind == "tps"),
                expected,
                5e-6,
                what=f"{name} {kind}",
            )


def _unsup(c, per_cell_warp: bool):
    """Pseudo labels of one recorded case in the frame of the strong view: labels, entropy, score, mask, and the
    pieces."""
    kind = KIND[c.arg_aug_mode]
    theta = c.theta
    boxes = c.src_bbox.float() / 16, c.trg_bbox.float() / 16
    consistent = c.occ_T_Svec.flatten(1) > 0
    shared = dict(temperature=c.arg_semi_softmax_corr_temp, threshold=c.arg_p_cutoff, forward_backward=False)
    shared |= dict(uncertainty=c.arg_uncertainty_lamda if c.arg_use_uncertainty else 0.0, entropy_eps=1e-6)
    if per_cell_warp:
        lookup = smk.warp_lookup(theta, GRID, kind, protocol="released")
        out = smk.pseudo_labels(c.corr_weak, GRID, src_box=boxes[0], trg_box=boxes[1], lookup=lookup, **shared)
        return out, out.mask & consistent.gather(1, lookup[0])
    volume = c.corr_weak.unflatten(2, GRID)
    warped, _ = smk.warp(volume, theta, kind, c.arg_interpolation_mode, protocol="released")
    out = smk.pseudo_labels(warped.flatten(2), GRID, src_box=boxes[0], **shared)
    in_box = inside_box(torch.arange(256)[None], GRID, boxes[1])
    cells = torch.stack([in_box.expand_as(consistent), consistent], 1).float().unflatten(2, GRID)
    cells, _ = smk.warp(cells, theta, kind, c.arg_interpolation_mode, protocol="released")
    return out, out.mask & (cells.round() != 0).all(1).flatten(1)


@pytest.mark.parametrize("file", ["u06_unsup", "u07_semimatch_e2e"])
def test_pseudo_labels_and_contrastive_loss(golden, file):
    seen = 0
    for name, c in golden(file, "c").items():
        nearest = c.arg_interpolation_mode == "nearest"
        for per_cell_warp in (True, False) if nearest else (False,):
            out, mask = _unsup(c, per_cell_warp)
            expected_mask = c.mask2D_transformed.reshape(mask.shape)
            assert torch.equal(mask, expected_mask), name
            labels = out.labels.clamp(min=0)
            assert torch.equal(labels, c.index_weak_transformed.flatten(1)), name
            inside = out.labels >= 0
            # exp of float32 scores up to 100: 100 units in the last place
            close(out.score[inside], c.score_weak_T_Svec_transformed.flatten(1)[inside], 1e-6, 5e-5, what=name)
            atol = 2e-5 if nearest else 2e-4
            close(out.entropy[inside], c.uncertainty_transformed.flatten(1)[inside], atol, what=name)
            if file == "u07_semimatch_e2e" and per_cell_warp:
                index_source = c.corr_weak.argmax(2)
                fb = smk.forward_backward_mask(
                    c.corr_weak.argmax(1),
                    index_source,
                    GRID,
                    c.arg_alpha_1,
                    c.arg_alpha_2,
                    sampling="bilinear",
                )
                assert (fb != (c.occ_T_Svec.flatten(1) > 0)).sum() <= 2  # exact ties of the inequality

            strong = c.corr_strong.clone().requires_grad_()
            loss = c.arg_semi_lambda * smk.masked_contrastive_loss(
                strong, labels, c.arg_semi_contrastive_temp, weight=out.weight, mask=mask
            )
            close(loss, torch.tensor(c.loss_unsup), 1e-5, what=name)
            if c.masked_num == 0:
                assert loss.item() == 0
                continue
            (grad,) = torch.autograd.grad(loss, strong)
            columns = grad.transpose(1, 2).flatten(0, 1)  # [B*T,S]
            close(columns[c.grad_rows_flat], c.grad_corr_strong_rows, 5e-6, what=name)
            columns[c.grad_rows_flat] = 0
            assert columns.count_nonzero() == 0
            seen += 1
    assert seen >= 3


def _flow_of_map(normalised):
    """Flow [B,2,H,W] in cells of a map [B,2,H,W] in [-1,1]."""
    return flow_from_coords(normalised.flatten(2).transpose(1, 2), tuple(normalised.shape[2:]))


@pytest.mark.parametrize("file", ["u06_unsup", "u07_semimatch_e2e"])
def test_the_untransformed_half_of_a_step(golden, file):
    """Scores, labels and boxes before the warp, the statistics of the strong view, and the supervised loss."""
    for name, c in golden(file, "c").items():
        boxes = c.src_bbox.float() / 16, c.trg_bbox.float() / 16
        shared = dict(temperature=c.arg_semi_softmax_corr_temp, threshold=c.arg_p_cutoff, forward_backward=False)
        out = smk.pseudo_labels(c.corr_weak, GRID, src_box=boxes[0], trg_box=boxes[1], **shared)
        assert torch.equal(out.labels, c.index_weak.flatten(1)), name
        close(out.score, c.score_weak_T_Svec.flatten(1), 1e-6, 5e-5, what=name)
        assert torch.equal(out.score >= c.arg_p_cutoff, c.score_mask.flatten(1)), name
        cells = torch.arange(256).expand(c.corr_weak.shape[0], -1)
        assert torch.equal(inside_box(out.labels, GRID, boxes[0]), c.src_bbox_mask.flatten(1)), name
        assert torch.equal(inside_box(cells, GRID, boxes[1]), c.trg_bbox_mask.flatten(1)), name
        taught = out.mask & (c.occ_T_Svec.flatten(1) > 0)
        if c.arg_contrastive_gt_mask:
            taught &= ~(c.flow_gt != 0).any(1).flatten(1)
        assert torch.equal(taught, c.mask2D.flatten(1)), name

        strong = smk.match(c.corr_strong, GRID, c.arg_semi_softmax_corr_temp)
        assert torch.equal(strong.index, c.index_strong.flatten(1)), name
        close(strong.score, c.score_strong.flatten(1), 1e-6, 5e-5, what=name)
        mask = c.mask2D_transformed.reshape(taught.shape)
        if mask.any():
            wrong = (strong.index != c.index_weak_transformed.flatten(1))[mask].double().mean().item()
            assert wrong == pytest.approx(c.diff_ratio, abs=1e-6), name

        predicted = c.pred_map_weak_gt.clone().requires_grad_()
        flow = _flow_of_map(predicted)
        close(flow.detach(), c.pred_flow_weak_gt, 5e-6, what=name)
        loss = smk.sparse_epe(flow, c.flow_gt)
        (grad,) = torch.autograd.grad(loss, predicted)
        assert loss.item() == pytest.approx(c.loss_sup, abs=1e-5), name
        close(grad, c.grad_pred_map_weak_gt, 5e-6, what=name)
        if "corr_gt" in c:
            coords = smk.match(c.corr_gt, GRID, c.arg_semi_softmax_corr_temp).coords
            close(coords.transpose(1, 2), c.pred_map_weak_gt.flatten(2), 1e-6, what=name)


def test_sparse_epe_of_a_map(golden):
    c = golden("u06_epe", "e5")["e5"]
    normalised = c.map.clone().requires_grad_()
    loss = smk.sparse_epe(_flow_of_map(normalised), c.gt)
    (grad,) = torch.autograd.grad(loss, normalised)
    assert loss.item() == pytest.approx(c.loss, abs=1e-5)
    close(grad, c.grad_map, 1e-6)


def test_sparse_epe(golden):
    for name, c in golden("u06_epe", "e").items():
        if "pred" not in c:
            continue  # e5 starts from a map: the test above
        pred = c.pred.double().requires_grad_()
        mask = c.mask if "mask" in c else None
        reduction = "sum" if "arg_sum" in c and c.arg_sum else "mean"
        loss = smk.sparse_epe(pred, c.gt.double(), mask, reduction)
        (grad,) = torch.autograd.grad(loss, pred)
        close(grad, c.grad_pred, 1e-12, what=name)
        # Nothing annotated: the release divides 0 by 0, here the loss is defined as 0.
        close(loss, torch.nan_to_num(torch.tensor(c.loss, dtype=torch.float64), 0.0), 1e-12, what=name)
