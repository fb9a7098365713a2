"""One training step: the supervised loss, and SemiMatch's loss on pseudo labels."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

import semimatch_kernels as smk

from ..config import AugmentConfig, SemiConfig
from ..data.store import Batch
from ..models import Matcher, flow_from_coords
from . import augment
from .targets import flow_from_keypoints


def combine(supervised: Tensor, unsupervised: Tensor, weight: float | None) -> Tensor:
    """L_sup + lambda * L_unsup; lambda = ``weight``, or for None the ratio L_sup / L_unsup as a constant (0 if L_unsup
    is 0)."""
    if weight is not None:
        return supervised + weight * unsupervised
    ratio = supervised.detach() / unsupervised.detach()
    return supervised + torch.where(unsupervised.detach() > 0, ratio, 0) * unsupervised


class TrainingStep(nn.Module):
    """Losses of one batch. A module, so that Fabric can wrap it (precision, data-parallel) as a whole.

    Backbone passes: source, weak, clean (no gradient), strong; the source's features serve all three targets. Each
    view is a pass of its own, so that batch-norm statistics are those of one view.

    Args:
        matcher: the network. method: "supervised" or "semimatch". augmentation, semi: see `config`.
    """

    def __init__(self, matcher: Matcher, method: str, augmentation: AugmentConfig, semi: SemiConfig) -> None:
        super().__init__()
        self.matcher, self.method, self.augmentation, self.semi = matcher, method, augmentation, semi

    def forward(self, batch: Batch, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss, and sums for the log: scalars on the device, not read here."""
        matcher, options = self.matcher, self.augmentation
        batch = augment.crop_batch(batch, options.crop, generator)
        source = matcher.features(
            _float(augment.photometric(batch.source, augment.WEAK, options.photometric, generator))
        )
        weak = matcher.features(_float(augment.photometric(batch.target, augment.WEAK, options.photometric, generator)))

        corr = matcher.correlate(source, weak)
        coords = smk.match(corr, matcher.grid, matcher.temperature).coords
        flow = flow_from_coords(coords, matcher.grid)
        target, annotated = flow_from_keypoints(
            batch.source_points, batch.target_points, batch.valid, matcher.grid, matcher.stride
        )
        supervised = smk.sparse_epe(flow, target, annotated)
        log = {"loss_sup": supervised.detach()}
        if self.method == "supervised":
            return supervised, log | {"loss": supervised.detach()}

        with torch.no_grad():
            if self.semi.shared_view:
                clean_corr = corr.detach()
            else:
                clean = matcher.features(_float(batch.target))
                clean_corr = matcher.correlate([f.detach() for f in source], clean)
        theta = augment.random_theta(len(batch.index), options.tps, generator).to(flow.device)
        strong = matcher.features(self._strong_view(batch, theta, generator))
        lookup = smk.warp_lookup(theta, matcher.grid)
        labels = smk.pseudo_labels(
            clean_corr, matcher.grid, self.semi.temperature, self.semi.threshold, self.semi.uncertainty,
            src_box=batch.source_box / matcher.stride, trg_box=batch.target_box / matcher.stride,
            forward_backward=self.semi.forward_backward, lookup=lookup,
        )  # fmt: skip
        unsupervised = smk.masked_contrastive_loss(
            matcher.correlate(source, strong),
            labels.labels,
            self.semi.temperature,
            labels.weight,
            labels.mask,
        )
        total = combine(supervised, unsupervised, self.semi.weight)
        log |= {
            "loss": total.detach(),
            "loss_unsup": unsupervised.detach(),
            "coverage": labels.mask.float().mean(),
        }
        return total, log | self._label_quality(batch, labels, lookup[0], target, annotated)

    def _strong_view(self, batch: Batch, theta: Tensor, generator: Generator) -> Tensor:
        """Photometric with blur, KeyOut, then the warp; blank places have the backbone's mean colour."""
        options = self.augmentation
        image = _float(augment.photometric(batch.target, augment.STRONG, options.photometric, generator))
        mean = self.matcher.backbone.mean.view(1, 3, 1, 1)
        blank = augment.keyout_mask(
            batch.target_points, batch.valid, batch.target_box, image.shape[-1], options.keyout, generator
        )
        image = (image - mean).masked_fill(blank[:, None], 0)
        return smk.warp(image, theta)[0] + mean

    @torch.no_grad()
    def _label_quality(
        self, batch: Batch, labels: smk.PseudoLabels, cell: Tensor, target: Tensor, annotated: Tensor
    ) -> dict[str, Tensor]:
        """How many labels stand on annotated cells, and how many of those lie within .05 and .10 of the object's
        box."""
        width = self.matcher.grid[1]
        expected = target.flatten(2).gather(2, cell[:, None].expand(-1, 2, -1))  # [B,2,T], true flow of the cell read
        xy = torch.stack([labels.labels % width - cell % width, labels.labels // width - cell // width], 1)
        error = (xy - expected).norm(dim=1) * self.matcher.stride  # [B,T] px
        known = labels.mask & annotated.flatten(1).gather(1, cell)
        side = (batch.source_box[:, 2:] - batch.source_box[:, :2]).amax(1, keepdim=True)
        right = {f"labels_right_{a:.2f}": (known & (error <= a * side)).sum() for a in (0.05, 0.10)}
        return {"labels_known": known.sum(), **right}


def _float(image: Tensor) -> Tensor:
    """uint8 [B,3,H,W] -> float32 in [0,1]."""
    return image.float() / 255
