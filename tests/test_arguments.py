"""Bad arguments of every public function: an error that names the argument, what it was and what was expected."""

from __future__ import annotations

import pytest
import torch

import semimatch_kernels as smk

CORR, SRC, TRG = torch.zeros(2, 6, 4), torch.zeros(2, 3, 2, 3), torch.zeros(2, 3, 2, 2)
LABELS = torch.zeros(2, 4, dtype=torch.int64)
GRID, GRIDS = (2, 3), ((2, 3), (2, 2))
META = torch.ones(2, 6, dtype=torch.bool, device="meta")


def _mask(*shape):
    return torch.ones(shape, dtype=torch.bool)


BAD = [
    # normalisation, scale, power
    (lambda: smk.correlation(SRC, TRG, "cosine"), ValueError, "normalize: expected True, False, 'inside'"),
    (lambda: smk.correlation(SRC, TRG, eps=None), TypeError, "eps: expected a number"),
    (lambda: smk.correlation(SRC, TRG, scale=0.5), ValueError, "scale: expected one of 'none', 'sqrt_channels'"),
    (lambda: smk.correlation(SRC, TRG, mutual=1e-5), TypeError, "mutual: expected True or False, got 1e-05"),
    (lambda: smk.correlation(SRC, TRG, relu="yes"), TypeError, "relu: expected True or False"),
    (lambda: smk.correlation(CORR, CORR.mT), ValueError, r"tokens \[B,N,C\] need .mT"),
    (lambda: smk.dual_softmax(CORR, log=1), TypeError, "log: expected True or False"),
    (lambda: smk.pseudo_labels(CORR, GRIDS, forward_backward=0), TypeError, "forward_backward: expected True or"),
    (
        lambda: smk.pseudo_labels(CORR, GRIDS, threshold=5),
        ValueError,
        "threshold: expected a probability, 0 to 1, got 5",
    ),
    (lambda: smk.pseudo_labels(CORR, GRIDS, threshold=-0.1), ValueError, "threshold: expected a probability, 0 to 1"),
    (lambda: smk.pseudo_labels(CORR, GRIDS, threshold=float("nan")), ValueError, "threshold: expected a finite"),
    (lambda: smk.pseudo_labels(CORR, GRIDS, entropy_eps=-1e-6), ValueError, "entropy_eps: expected a finite number of"),
    (
        lambda: smk.pseudo_labels(CORR, GRIDS, src_box=torch.zeros(2, 4, dtype=torch.bool)),
        TypeError,
        "src_box: expected dtype torch.float32",
    ),
    (lambda: smk.correlation(SRC, TRG, power=0), ValueError, "power: expected at least 1"),
    (lambda: smk.correlation(SRC, TRG, power=1.5), TypeError, "power: expected a whole number"),
    (lambda: smk.correlation(SRC, TRG, out_dtype=torch.int8), TypeError, "out_dtype: expected a floating dtype"),
    (
        lambda: smk.correlation([SRC, SRC.double()], [TRG, TRG.double()]),
        TypeError,
        r"src\[1\]: expected the dtype and device of level 0, torch.float32 on cpu, got torch.float64",
    ),
    (lambda: smk.match_features(SRC, TRG, GRID, normalize=1), ValueError, "normalize: expected True, False"),
    # mutual
    (
        lambda: smk.mutual_filter(CORR.to_sparse()),
        TypeError,
        "corr: expected a dense tensor, got one of layout torch.s",
    ),
    (lambda: smk.mutual_filter(CORR, eps=-1e-5), ValueError, "eps: expected a finite number of at least 0"),
    (lambda: smk.mutual_filter(torch.zeros(4)), ValueError, r"corr: expected shape \[...,S,T\]"),
    (lambda: smk.mutual_mask(CORR, float("nan")), ValueError, "threshold: expected a finite number"),
    (lambda: smk.mutual_mask(torch.zeros(2, 0, 3)), ValueError, "corr: expected at least one source"),
    (lambda: smk.match(torch.zeros(2, 60, 60).tolist(), GRID), TypeError, "got a list of length 2$"),
    # masks
    (lambda: smk.match(CORR, GRID, source_mask=_mask(2, 4)), ValueError, r"source_mask: expected shape \(2, 6\)"),
    (lambda: smk.match(CORR, GRID, target_mask=_mask(4)), ValueError, r"target_mask: expected shape \(2, 4\)"),
    (lambda: smk.match(CORR, GRID, source_mask=torch.ones(2, 6)), TypeError, "source_mask: expected dtype torch.bool"),
    (lambda: smk.match(CORR, GRID, source_mask=META), ValueError, "source_mask: is on meta, but corr is on cpu"),
    (lambda: smk.softmax_entropy(CORR, target_mask=[True]), TypeError, "target_mask: expected a tensor"),
    (lambda: smk.dual_softmax(CORR, source_mask=_mask(2, 4)), ValueError, "source_mask: expected shape"),
    (lambda: smk.match_features(SRC, TRG, GRID, source_mask=_mask(2, 4)), ValueError, "source_mask: expected shape"),
    (
        lambda: smk.softmax_entropy_features(SRC, TRG, target_mask=_mask(2, 6)),
        ValueError,
        r"target_mask: expected shape \(2, 4\)",
    ),
    (lambda: smk.pseudo_labels(CORR, GRIDS, target_mask=_mask(1, 4)), ValueError, "target_mask: expected shape"),
    # coordinates and windows
    (lambda: smk.match(CORR, GRID, coordinates="pixels"), ValueError, "coordinates: expected one of 'corners'"),
    (lambda: smk.soft_argmax(CORR, GRID, coordinates=16), ValueError, "coordinates: expected one of 'corners'"),
    (lambda: smk.Pixels(0), ValueError, "stride: expected a number of pixels above 0"),
    (lambda: smk.Pixels(16, "middle"), TypeError, "offset: expected a number"),
    (lambda: smk.HardWindow(1, "drop"), ValueError, "outside: expected one of 'exclude', 'zero'"),
    (lambda: smk.soft_argmax(CORR, GRID, per="both"), ValueError, "per: expected one of 'target', 'source'"),
    (
        lambda: smk.soft_argmax(CORR, (2, 2), window=smk.HardWindow(1)),
        ValueError,
        "grid: .H, W. = .2, 2. has 4 cells, but the source side of the correlation has 6",
    ),
    (
        lambda: smk.soft_argmax(CORR, GRID, window=smk.HardWindow(1), source_mask=_mask(2, 4)),
        ValueError,
        "source_mask: expected shape",
    ),
    (
        lambda: smk.soft_argmax_features(SRC, TRG, GRID, window="gaussian"),
        TypeError,
        "window: expected GaussianWindow, HardWindow or None",
    ),
    (
        lambda: smk.soft_argmax(CORR, GRID, window=smk.HardWindow(1), backend="cuda"),
        smk.BackendError,
        "soft_argmax with a window",
    ),
    # dual softmax of pairs
    (
        lambda: smk.dual_softmax_features(SRC, TRG, LABELS.float(), LABELS),
        TypeError,
        r"source_index: expected int64 \[B,K\]",
    ),
    (lambda: smk.dual_softmax_features(SRC, TRG, LABELS[:1], LABELS), ValueError, "source_index: expected shape"),
    (lambda: smk.dual_softmax_features(SRC, TRG, LABELS, LABELS[:, :1]), ValueError, "target_index: expected shape"),
    # contrastive
    (
        lambda: smk.masked_contrastive_loss(CORR, LABELS, smoothing=1.0),
        TypeError,
        "smoothing: expected GaussianTarget or None",
    ),
    (
        lambda: smk.masked_contrastive_loss(CORR, LABELS, smoothing=smk.GaussianTarget(1.0, (2, 2))),
        ValueError,
        r"smoothing.grid: .H, W. = .2, 2. has 4 cells, but the reduced side of the correlation has 6",
    ),
    (lambda: smk.GaussianTarget(0.0, GRID), ValueError, "sigma: expected a number of cells above 0"),
    (lambda: smk.GaussianTarget(1.0, 4), TypeError, "grid: expected .H, W."),
    (lambda: smk.GaussianTarget(1.0, GRID, -1), ValueError, "radius: expected at least 0"),
    (
        lambda: smk.masked_contrastive_loss(CORR, (LABELS, LABELS), per="both"),
        ValueError,
        r"labels\[1\]: expected shape \(2, 6\)",
    ),
    (
        lambda: smk.masked_contrastive_loss(CORR, (LABELS, LABELS), per="both", weight=torch.ones(2, 4)),
        TypeError,
        "weight: expected a pair",
    ),
    (
        lambda: smk.masked_contrastive_loss_features(SRC, TRG, LABELS, target_mask=_mask(2, 6)),
        ValueError,
        "target_mask: expected shape",
    ),
    # pseudo labels
    (lambda: smk.pseudo_labels(CORR, GRIDS, lookup=LABELS), TypeError, "lookup: expected .cell, valid. of warp_lookup"),
    (lambda: smk.pseudo_labels(CORR, GRID), ValueError, r"grid\[1\]: .H, W. = .2, 3. has 6 cells, but the target"),
    (lambda: smk.pseudo_labels(CORR, GRIDS, src_box=torch.zeros(2, 3)), ValueError, "src_box: expected shape"),
    (lambda: smk.pseudo_labels(CORR, GRIDS, sampling="nearest"), ValueError, "sampling: expected one of 'gather'"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[f"{i} {m[:24]}" for i, (_, _, m) in enumerate(BAD)])
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
