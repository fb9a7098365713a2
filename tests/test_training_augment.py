"""Augmentation: what each operation keeps true."""

from __future__ import annotations

import torch

import semimatch_kernels as smk
from semimatch.training import augment

SIZE = 256


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _dots(points):
    """Images [B,3,256,256], black but for a white 9 px blot on each point [B,P,2]."""
    image = torch.zeros(points.shape[0], 3, SIZE, SIZE, dtype=torch.uint8)
    for b, row in enumerate(points.round().long().tolist()):
        for x, y in row:
            image[b, :, y - 4 : y + 5, x - 4 : x + 5] = 255
    return image


def test_crop_moves_points_with_the_picture_and_keeps_the_box():
    points = torch.tensor([[[100.0, 90.0], [150.0, 180.0]]]).repeat(8, 1, 1)
    box = torch.tensor([[80.0, 70.0, 170.0, 200.0]]).repeat(8, 1)
    image, moved, moved_box = augment.crop(_dots(points), points, box, 1.0, _generator())
    assert (moved != points).any()
    assert (moved_box >= -1e-3).all() and (moved_box <= SIZE + 1e-3).all()
    for b in range(8):
        for x, y in moved[b].round().long().tolist():
            assert image[b, 0, y, x] > 200
    unchanged = augment.crop(_dots(points), points, box, 0.0, _generator())
    assert torch.equal(unchanged[0], _dots(points))
    torch.testing.assert_close(unchanged[1], points)


def test_photometric_touches_each_sample_on_its_own_and_leaves_the_input():
    image = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    before = image.clone()
    out = augment.photometric(image, augment.WEAK, 0.2, _generator())
    assert torch.equal(image, before)
    changed = (out != image).flatten(1).any(1)
    assert changed.any() and not changed.all()
    assert torch.equal(augment.photometric(image, augment.STRONG, 0.0, _generator()), image)
    everything = augment.photometric(image, augment.STRONG, 1.0, _generator())
    assert everything.dtype == torch.uint8 and everything.shape == image.shape


def test_keyout_blanks_squares_round_valid_points_only():
    points = torch.tensor([[[50.0, 60.0], [200.0, 200.0], [255.0, 0.0]]])
    valid = torch.tensor([[True, False, True]])
    box = torch.tensor([[0.0, 0.0, 200.0, 100.0]])
    mask = augment.keyout_mask(points, valid, box, SIZE, 1.0, _generator())
    assert mask[0, 60, 50]
    assert not mask[0, 150:, 150:].any()
    rows, columns = mask[0, 30:90, 20:80].any(1).sum(), mask[0, 30:90, 20:80].any(0).sum()
    assert rows == columns and 6 <= rows <= 20  # 3 to 10 % of 200 px
    assert not augment.keyout_mask(points, valid, box, SIZE, 0.0, _generator()).any()


def test_theta_stays_in_its_ranges():
    theta = augment.random_theta(2000, 0.4, _generator())
    steps = torch.tensor([-1.0, 0.0, 1.0])
    shift = theta[:, 6:] - torch.cartesian_prod(steps, steps).T.flatten()
    assert 0.39 < shift.abs().max() <= 0.4 + 1e-6
    assert 0.24 < theta[:, [2, 5]].abs().max() <= 0.25 + 1e-6
    a = theta[:, [0, 1, 3, 4]].unflatten(1, (2, 2))
    assert torch.linalg.det(a).min() > 0.5 and torch.linalg.det(a).max() < 1.6


def test_theta_from_the_recorded_draws(golden, monkeypatch):
    for name, c in golden("u10_augment", "t").items():
        if name == "tstat":
            continue
        part = {"aff": slice(0, 6), "tps": slice(6, 24), "afftps": slice(0, 24)}[c.mode]
        draws = torch.zeros(1, 24)
        draws[0, part] = c.uniform_draws.float()
        monkeypatch.setattr(augment, "uniform", lambda generator, *shape, draws=draws: draws)
        theta = augment.random_theta(1, c.aug_tps_scaling, _generator())
        torch.testing.assert_close(theta[0, part], c.theta.float(), atol=1e-6, rtol=0, msg=name)


def test_theta_has_the_recorded_range(golden):
    recorded = golden("u10_augment", "tstat")["tstat"]
    theta = augment.random_theta(recorded.n, 0.4, _generator()).double()
    # Of n uniform draws the ends lie about 1/n of the range apart, the means about 1/sqrt(n). The matrix (0, 1, 3, 4)
    # is of four draws, whose common extreme is rarer: n^(1/4) of them.
    extent = (recorded.theta_max - recorded.theta_min).amax()
    for value, expected in ((theta.amin(0), recorded.theta_min), (theta.amax(0), recorded.theta_max)):
        gap = (value - expected).abs()
        assert gap[[0, 1, 3, 4]].max() < extent * recorded.n**-0.25
        assert gap[[2, *range(5, 24)]].max() < 20 * extent / recorded.n
    torch.testing.assert_close(theta.mean(0), recorded.theta_mean, atol=4 * extent.item() / recorded.n**0.5, rtol=0)


def test_keyout_of_the_recorded_draws(golden):
    for name, c in golden("u10_augment", "o").items():
        points = c.kps.transpose(1, 2)
        side, chosen = torch.zeros(points.shape[:2]), torch.zeros(points.shape[:2], dtype=torch.bool)
        valid = torch.arange(points.shape[1]) < c.n_pts[:, None]
        side[valid], chosen[valid] = c.size_draws.float(), c.uniform_draws <= c.p
        mask = augment.squares(points, side, chosen, c.image.shape[-1], released=True)
        assert torch.equal(mask, c.out), name
        if name != "o3":  # ours does not wrap round: the one case that has a square beyond the border
            assert torch.equal(augment.squares(points, side, chosen, c.image.shape[-1]), c.out), name


def test_points_of_the_recorded_crops(golden):
    for name, c in golden("u10_augment", "r").items():
        height, width = c.image_hw.tolist()
        low, high = torch.zeros(1, 2), torch.tensor([[width, height]])
        if c.cropped:
            left, top, bottom, right = c.draws[1:, 2].float()
            low, high = torch.stack([left, top])[None], torch.stack([right, bottom])[None]
        moved = augment.points_in_crop(c.kps.T[None], low, high, 256)[0].T
        if c.cropped:  # the release clamps, padding included
            moved = moved.clamp(0, 255)
        torch.testing.assert_close(moved, c.out_kps, atol=1e-4, rtol=0, msg=name)


def test_warped_labels_follow_the_warped_picture():
    """The lookup of cells and the warp of the image are the same map: a cell-sized mark ends where the lookup says."""
    theta = augment.random_theta(4, 0.2, _generator(3))
    cells = torch.arange(256).repeat(4, 1)
    picture = cells.unflatten(1, (16, 16))[:, None].float().repeat_interleave(16, 2).repeat_interleave(16, 3)
    warped, inside = smk.warp(picture, theta, interpolation="nearest")
    cell, valid = smk.warp_lookup(theta, (16, 16))
    centre = warped[:, 0, 8::16, 8::16].flatten(1)
    seen = valid & inside[:, 8::16, 8::16].flatten(1)
    # The centre of a cell lies between pixels 7 and 8: near a border of cells the two may name neighbours.
    agree = (centre.long() == cell)[seen].float().mean()
    assert seen.float().mean() > 0.3
    assert agree > 0.9
