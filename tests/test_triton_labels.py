"""Forward-backward check and pseudo labels on Triton: what the shared matrix (op_cases) does not reach."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from semimatch_kernels import library
from semimatch_kernels.schemas import OPS

pytestmark = pytest.mark.skipif(
    library.TRITON_REASON is not None or not library.TRITON_INTERPRET,
    reason=library.TRITON_REASON or "Triton's interpreter is off (TRITON_INTERPRET=1 turns it on)",
)

SOURCE, TARGET = (6, 13), (7, 11)  # 78 and 77 cells: two tiles a side
S, T = 78, 77


def _smooth_matches() -> torch.Tensor:
    """Scores [2,S,T] whose best cells follow the grids, with some noise: matches that mostly lead back."""
    here, there = (
        torch.cartesian_prod(torch.linspace(0, 1, height), torch.linspace(0, 1, width))
        for height, width in (SOURCE, TARGET)
    )
    distance = torch.cdist(here, there)
    return 1 - 2 * distance + 0.08 * torch.randn(2, S, T)


def _lookup() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, T, (2, 2 * T))[:, ::2], torch.rand(2, T) < 0.8


BOX = torch.tensor([[0.5, 1.5, 8.5, 4.5], [1.0, 0.49, 11.51, 5.5]])
CASES = {
    "plain": {},
    "gather": {"forward_backward": True},
    "bilinear": {"forward_backward": True, "sampling": "bilinear"},
    "boxes": {"src_box": BOX, "trg_box": BOX.double().T.contiguous().T},
    "whole boxes": {"src_box": BOX.to(torch.uint8), "trg_box": BOX.bfloat16()},
    "lookup": {"forward_backward": True, "lookup": True, "trg_box": BOX},
    "eps": {"entropy_eps": 1e-3, "lookup": True},
}


def _arguments(
    corr, src_box=None, trg_box=None, forward_backward=False, sampling="gather", entropy_eps=0.0, lookup=False
):
    cell, valid = _lookup() if lookup else (None, None)
    numbers = (0.1, 0.5, sampling, entropy_eps)
    return corr, SOURCE, TARGET, 0.1, 0.3, 1.5, src_box, trg_box, forward_backward, *numbers, cell, valid


def _assert_same(args) -> torch.Tensor:
    """As the reference has it; the mask."""
    ours, theirs = library.ops.pseudo_labels_triton(*args), library.ops.pseudo_labels_reference(*args)
    for a, b in zip(ours, theirs, strict=True):
        exact = {} if a.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(a, b, equal_nan=True, **exact)
    return ours[2]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_pseudo_labels(case, transposed):
    corr = _smooth_matches()
    corr = corr.mT.contiguous().mT if transposed else corr
    mask = _assert_same(_arguments(corr, **CASES[case]))
    assert 0.1 < mask.float().mean() < 0.95


def test_pseudo_labels_beside_what_is_no_number():
    """NaN counts as the best cell of its row and column, for the check too; excluded columns never teach."""
    corr = _smooth_matches()
    corr[0, 40, ::5], corr[0, 7, 4], corr[1, :, 3], corr[1, 2, 5] = torch.nan, torch.nan, -torch.inf, torch.inf
    corr[1, :, 10] = 0.25  # ties
    for sampling in ("gather", "bilinear"):
        mask = _assert_same(_arguments(corr, forward_backward=True, sampling=sampling))
        assert mask.any(1).all() and not mask[0, ::5].any()


@pytest.mark.parametrize("sampling", ["gather", "bilinear"])
def test_forward_backward_mask(sampling):
    """Between unequal grids, of indices in any strides; bounds that are met exactly."""
    corr = _smooth_matches()
    there, back = corr.argmax(1), corr.argmax(2).repeat_interleave(2, 1)[:, ::2]
    for alpha1, alpha2 in ((0.1, 0.5), (0.0, 1.0), (0.0, 0.0), (1.0, 0.25)):
        args = there.T.contiguous().T, back, TARGET, SOURCE, alpha1, alpha2, sampling
        ours = library.ops.forward_backward_mask_triton(*args)
        assert torch.equal(ours, library.ops.forward_backward_mask_reference(*args))
        assert alpha2 != 0.5 or 0.1 < ours.float().mean() < 0.9
    equal = torch.randint(0, S, (2, S)), torch.randint(0, S, (2, S)), SOURCE, SOURCE, 0.25, 2.0, sampling
    assert torch.equal(
        library.ops.forward_backward_mask_triton(*equal), library.ops.forward_backward_mask_reference(*equal)
    )


class _Work(TorchDispatchMode):
    """What PyTorch is asked for outside of kernels, and how many kernels are launched."""

    def __init__(self, monkeypatch):
        super().__init__()
        from triton.runtime.interpreter import InterpretedFunction

        self.kernels, self.calls, self._inside, run = [], set(), False, InterpretedFunction.run

        def counted(kernel, *args, **kwargs):
            self.kernels.append(kernel.fn.__name__)
            self._inside = True
            try:
                return run(kernel, *args, **kwargs)
            finally:
                self._inside = False

        monkeypatch.setattr(InterpretedFunction, "run", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not self._inside:
            self.calls.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_pseudo_labels_are_two_launches(case, monkeypatch):
    """And nothing else that works on the device: memory and views only."""
    from semimatch_kernels.triton import launcher

    assert "triton" in OPS["pseudo_labels"].backends
    args = _arguments(_smooth_matches(), **CASES[case])
    with _Work(monkeypatch) as work:
        launcher("pseudo_labels")(*args)
    assert work.kernels == ["tile_statistics_kernel", "labels_kernel"]
    assert work.calls <= {"empty", "new_empty", "view", "detach"}
