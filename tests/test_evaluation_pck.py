"""PCK against the release's recorded decisions, and the rules' own definitions."""

from __future__ import annotations

import pytest
import torch

from semimatch.evaluation import RULES, hits, threshold
from semimatch.models import predict_points

RELEASED = {
    "pfpascal_img": "img",
    "pfpascal_bbox": "bbox",
    "pfwillow_img": "img",
    "pfwillow_bbox": "bbox-kp-padded",
}


def test_thresholds_decisions_and_percentages_are_the_releases(golden):
    constants = golden("u09_keypoints", "all")["all"]
    alphas = constants.alphas.tolist()
    for name, case in golden("u09_keypoints", "p").items():
        truth, predicted = case.src_kps.transpose(1, 2), case.prd_kps.transpose(1, 2)
        valid = torch.arange(truth.shape[1]) < case.n_pts[:, None]
        for theirs, ours in RELEASED.items():
            length = threshold(ours, truth, valid, case.src_bbox, 256)
            assert torch.equal(length, getattr(case, f"thres_{theirs}").float()), (name, theirs)
            found = hits(predicted, truth, valid, length, alphas)
            recorded = getattr(case, f"correct_{theirs}")
            assert torch.equal(found, recorded & valid), (name, theirs)
            share = 100 * found.sum(2) / case.n_pts
            torch.testing.assert_close(share.double(), getattr(case, f"pck_{theirs}"), rtol=0, atol=1e-4)


def test_chain_of_flow_transfer_and_pck_is_the_releases(golden):
    case = golden("u09_keypoints", "chain")["chain0"]
    points, truth = case.trg_kps.transpose(1, 2), case.src_kps.transpose(1, 2)
    valid = torch.arange(points.shape[1]) < case.n_pts[:, None]
    predicted = predict_points(case.flow, points, 16, rounding="trunc")
    shown = predicted.masked_fill(~valid[..., None], -1).transpose(1, 2)
    torch.testing.assert_close(shown, case.est_kps, rtol=0, atol=5e-5)
    length = threshold("img", truth, valid, torch.zeros(2, 4), 256)
    share = 100 * hits(predicted, truth, valid, length, [0.1]).sum(2)[0] / case.n_pts
    torch.testing.assert_close(share.double(), case.pck_img_0p1, rtol=0, atol=1e-4)


def points_of(*rows):
    points = torch.full((len(rows), 3, 2), -1.0)
    valid = torch.zeros(len(rows), 3, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, point in enumerate(row):
            points[i, j], valid[i, j] = torch.tensor(point), True
    return points, valid


def test_each_rule_measures_what_it_says():
    points, valid = points_of([(10, 20), (40, 90)], [(50, 60)], [])
    box = torch.tensor([[0, 0, 30, 20], [5, 5, 10, 50], [0, 0, 0, 0]]).float()
    expected = {
        "img": [256, 256, 256],
        "bbox": [30, 45, 0],
        "bbox-kp": [70, 0, 0],
        "bbox-kp-padded": [91, 61, 0],
    }
    assert set(expected) == set(RULES)
    for rule, lengths in expected.items():
        assert threshold(rule, points, valid, box, 256).tolist() == lengths, rule
    no_points, no_valid = torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.bool)
    assert threshold("bbox-kp", no_points, no_valid, box, 256).tolist() == [0, 0]


def test_padding_counts_for_nothing_with_forty_points():
    points = torch.rand(1, 40, 2) * 100 + 50
    valid = torch.ones(1, 40, dtype=torch.bool)
    box = torch.zeros(1, 4)
    tight = threshold("bbox-kp", points, valid, box, 256)
    assert torch.equal(threshold("bbox-kp-padded", points, valid, box, 256), tight)
    valid[0, 7] = False
    points[0, 7] = -1
    assert threshold("bbox-kp-padded", points, valid, box, 256) > tight


def test_the_border_counts_and_padding_and_nan_do_not():
    points, valid = points_of([(0, 0), (0, 0)])
    predicted = torch.tensor([[[3.0, 4.0], [float("nan"), 0.0], [-1.0, -1.0]]])
    found = hits(predicted, points, valid, torch.tensor([50.0]), [0.1, 0.09])
    assert found.tolist() == [[[True, False, False]], [[False, False, False]]]


def test_unknown_rule():
    points, valid = points_of([(1, 1)])
    with pytest.raises(ValueError, match=r"rule is 'box'; expected one of img, bbox"):
        threshold("box", points, valid, torch.zeros(1, 4), 256)
