"""Flow fields and keypoint transfer, against the release's numbers and against direct definitions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from semimatch.models import flow_from_coords, predict_points


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flow_from_coords_is_the_recorded_flow(golden, dtype):
    cases = golden("u03_softargmax", "c") | golden("u03_softargmax", "m")
    for name, case in cases.items():
        if "map" in case:
            pairs = [(case.map, case.flow)]
        else:
            maps = [torch.cat([getattr(case, f"b{i}_grid_{axis}") for axis in "xy"], 1) for i in range(3)]
            pairs = [(maps[i], getattr(case, f"b{i}_flow")) for i in range(3)]
        for coords, expected in pairs:
            grid = coords.shape[2:]
            flow = flow_from_coords(coords.to(dtype).flatten(2).transpose(1, 2), grid)
            assert flow.dtype == dtype
            torch.testing.assert_close(
                flow, expected.to(dtype), rtol=0, atol=5e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_flow_of_a_grid_one_cell_wide_is_zero():
    flow = flow_from_coords(torch.zeros(1, 1, 2), (1, 1))
    assert torch.equal(flow, torch.zeros(1, 2, 1, 1))


def test_transferred_points_are_the_releases(golden):
    for name, case in golden("u09_keypoints", "f").items():
        flow, points = case.flow, case.trg_kps.transpose(1, 2)
        predicted = predict_points(flow, points, 16, rounding="trunc")
        valid = torch.arange(points.shape[1]) < case.n_pts[:, None]
        predicted = predicted.masked_fill(~valid[..., None], -1).transpose(1, 2)
        torch.testing.assert_close(
            predicted, case.est_kps, rtol=0, atol=5e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        torch.testing.assert_close(predicted.double(), case.est_kps_f64, rtol=0, atol=5e-5)


def test_bilinear_is_a_lookup_in_the_flow_resized_with_pixel_centres():
    flow = torch.randn(2, 2, 4, 6, dtype=torch.float64)
    dense = F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=False)
    points = torch.stack([torch.randint(48, (2, 20)), torch.randint(32, (2, 20))], -1).double()
    x, y = points.long().unbind(-1)
    expected = points + 8 * torch.stack([dense[b, :, y[b], x[b]].T for b in range(2)])
    torch.testing.assert_close(predict_points(flow, points, 8), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(predict_points(flow, points, 8, "trunc"), expected, rtol=0, atol=1e-12)


def test_bilinear_follows_fractions_of_a_pixel_and_trunc_drops_them():
    column = torch.arange(4.0).expand(1, 4, 4)
    flow = torch.stack([column, torch.zeros_like(column)], 1)  # x-displacement = column, in cells
    point = torch.tensor([[[20.25, 9.5]]])
    exact = 20.25 + 16 * ((20.25 + 0.5) / 16 - 0.5)
    pixel = 20 + 16 * ((20 + 0.5) / 16 - 0.5)
    assert predict_points(flow, point, 16)[0, 0].tolist() == pytest.approx([exact, 9.5])
    assert predict_points(flow, point, 16, "trunc")[0, 0].tolist() == pytest.approx([pixel, 9])


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 1)])
def test_points_outside_take_the_border_and_thin_grids_work(size):
    flow = torch.zeros(1, 2, *size) + torch.tensor([1.0, -2.0])[None, :, None, None]
    points = torch.tensor([[[-5.0, 500.0], [3.0, 4.0]]])
    assert torch.equal(predict_points(flow, points, 16), points + torch.tensor([16.0, -32.0]))


def test_gradient_reaches_the_flow_and_the_points():
    flow = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[5.3, 20.2], [40.1, 33.7]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, p: predict_points(f, p, 16), (flow, points))


def test_errors_name_the_argument():
    flow, points = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match=r"rounding is 'round'; expected one of bilinear, trunc"):
        predict_points(flow, points, 16, "round")
    with pytest.raises(ValueError, match=r"points: expected \[1,P,2\]"):
        predict_points(flow, points[0], 16)
    with pytest.raises(ValueError, match=r"flow: expected \[B,2,H,W\]"):
        predict_points(flow[0], points, 16)
    with pytest.raises(ValueError, match=r"coords: expected \[B,12,2\] for grid 3 x 4, got \[1, 16, 2\]"):
        flow_from_coords(torch.zeros(1, 16, 2), (3, 4))
