"""The cross-entropy of one kept cell over its reduced cells, shared by the contrastive losses from a correlation and
from features.

State of a cell: `best`, the largest raw entry, and `total`, the sum of exp((c - origin) / temperature), where the
origin is `best`, but 0 where that is infinite: then +inf among the entries makes the total +inf and not NaN, as
torch.logsumexp has it, and entries that are all -inf make it 0, whose logarithm is -inf.
"""

import triton
import triton.language as tl

from .online_softmax import divide

LOG2E = tl.constexpr(1.4426950408889634)
LOSS_FLOATS = tl.constexpr(4)  # of a partial state: best, total, goal's sum of weight times entry, of weight


@triton.jit
def loss_origin(best):
    return tl.where(tl.abs(best) == float("inf"), 0.0, best)


@triton.jit
def loss_factor(best, new_best, scale):
    """What moves a total to the origin of `new_best`; 1 for an empty state, whose total is 0 or NaN."""
    moved = tl.exp2((loss_origin(best) - loss_origin(new_best)) * scale)
    return tl.where((best == float("-inf")) | (best == new_best), 1.0, moved)


@triton.jit
def absorb_columns(best, total, c, scale, AXIS: tl.constexpr):
    """Take a tile of entries, with the reduced cells along AXIS, into the states of its kept cells."""
    top = tl.max(c, AXIS)  # NaN is passed over
    top = tl.where(top > best, top, best)
    mass = tl.exp2((c - tl.expand_dims(loss_origin(top), AXIS)) * scale)
    return top, total * loss_factor(best, top, scale) + tl.sum(mass, AXIS)


@triton.jit
def merge_losses(best, total, scale, AXIS: tl.constexpr):
    """Merge states along AXIS into one."""
    top = tl.max(best, AXIS)
    return top, tl.sum(total * loss_factor(best, tl.expand_dims(top, AXIS), scale), AXIS)


@triton.jit
def load_labels(labels_ptr, mask_ptr, at, ok, reduced):
    """Labels [N] inside the range of cells, which of the kept cells count, and whose label names no cell."""
    label = tl.load(labels_ptr + at, mask=ok, other=-1)
    keep = label >= 0
    if mask_ptr is not None:
        keep = keep & (tl.load(mask_ptr + at, mask=ok, other=0) != 0)
    inside = tl.minimum(tl.maximum(label, 0), reduced - 1).to(tl.int32)
    return inside, keep, label >= reduced


@triton.jit
def goal_weight(dx, dy, rx, ry, sigma_scale, ACC: tl.constexpr):
    """Weight of the cell dx, dy from a label, as yet not normalised: a Gaussian inside the window, 0 outside."""
    square = (dx * dx + dy * dy).to(ACC)
    beyond = tl.maximum(tl.abs(dx) - rx, tl.abs(dy) - ry)  # one comparison: the and of two makes LLVM take a stack
    return tl.where(beyond <= 0, tl.exp2(-square * tl.full([], sigma_scale, ACC)), 0.0)


@triton.jit
def finish_loss(
    best, total, goal, label_beyond, keep, loss_ptr, logsumexp_ptr, weight_ptr, at, ok, temperature
):  # fmt: skip
    """Store loss and log-sum-exp [N], given the raw score `goal` that the goal asks for."""
    ACC: tl.constexpr = best.dtype
    temperature = tl.full(best.shape, temperature, ACC)
    log_total = tl.log(total)
    # Not logsumexp - goal: their common size would cost digits. A goal of -inf is a label on an excluded entry, which
    # costs infinitely much, also where nothing is left; a NaN in the column stays.
    loss = tl.where(total == 0, float("inf"), log_total + divide(loss_origin(best) - goal, temperature))
    loss = tl.where(label_beyond, float("nan"), loss)
    if weight_ptr is not None:
        loss *= tl.load(weight_ptr + at, mask=ok, other=0.0)
    tl.store(loss_ptr + at, tl.where(keep, loss, 0.0), ok)
    logsumexp = divide(loss_origin(best), temperature) + log_total
    tl.store(logsumexp_ptr + at, tl.where(keep, logsumexp, 0.0), ok)


@triton.jit
def load_slope(
    labels_ptr, mask_ptr, weight_ptr, logsumexp_ptr, count_ptr, grad_ptr, grad_b, grad_k,
    batch, cell, kept, reduced, temperature, ACC: tl.constexpr,
):  # fmt: skip
    """For the kept cells `cell` [N]: label, whether it counts, log-sum-exp (0 for -inf), and the factor of p - goal.

    count_ptr is None unless the loss is a mean.
    """
    ok = cell < kept
    at = batch * kept + cell
    label, keep, beyond = load_labels(labels_ptr, mask_ptr, at, ok, reduced)
    logsumexp = tl.load(logsumexp_ptr + at, mask=ok, other=0.0)
    logsumexp = tl.where(logsumexp == float("-inf"), 0.0, logsumexp)
    factor = tl.load(grad_ptr + batch * grad_b + cell.to(tl.int64) * grad_k, mask=ok, other=0.0).to(ACC)
    if count_ptr is not None:
        count = tl.maximum(tl.load(count_ptr), 1).to(ACC)
        factor = divide(factor, tl.zeros(cell.shape, ACC) + count)
    if weight_ptr is not None:
        factor *= tl.load(weight_ptr + at, mask=ok, other=0.0)
    factor = divide(factor, tl.full(cell.shape, temperature, ACC))
    return label, keep, logsumexp, tl.where(beyond, float("nan"), factor)


@triton.jit
def probability(c, logsumexp, temperature):
    """Of the entries c, a tile, given the log-sum-exps of their columns.

    By the division that made the log-sum-exp: an entry that is nearly all of its column is 1, however large it is, and
    not the exponential of a rounding of its size.
    """
    log_p = divide(c, tl.full(c.shape, temperature, c.dtype)) - logsumexp
    # Products of features may come out larger than in the forward pass; NaN stays.
    return tl.exp2(tl.where(log_p > 0, 0.0, log_p) * LOG2E)


@triton.jit(do_not_specialize=["parts", "width", "height", "rx", "ry"])
def merge_losses_kernel(
    partial_ptr,  # [B, parts, 4, kept]
    corr_ptr,  # [B, reduced, kept] in any strides; None: the goal's sums are in the parts
    labels_ptr, mask_ptr, weight_ptr, loss_ptr, logsumexp_ptr,
    parts, reduced, kept, stride_b, stride_r, stride_k, width, height, rx, ry, sigma_scale, temperature, scale,
    ACC: tl.constexpr, SMOOTH: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Second stage. One program: the parts of BLOCK_K kept cells of one batch entry, in a fixed order."""
    blocks = tl.cdiv(kept, BLOCK_K)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    ok = cell < kept
    scale = tl.full([], scale, ACC)
    best = tl.full([BLOCK_K], float("-inf"), ACC)
    total = tl.zeros([BLOCK_K], ACC)
    weighted = tl.zeros([BLOCK_K], ACC)
    weights = tl.zeros([BLOCK_K], ACC)
    for first in range(0, parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)[:, None]  # [BLOCK_PARTS, 1]
        here = (part < parts) & ok[None, :]  # [BLOCK_PARTS, BLOCK_K]
        pointer = partial_ptr + (batch * parts + part) * LOSS_FLOATS * kept + cell[None, :]
        more_best, more = merge_losses(
            tl.load(pointer, here, other=float("-inf")), tl.load(pointer + kept, here, other=0.0), scale, 0
        )
        top = tl.where(more_best > best, more_best, best)
        total = total * loss_factor(best, top, scale) + more * loss_factor(more_best, top, scale)
        best = top
        if corr_ptr is None:
            weighted += tl.sum(tl.load(pointer + 2 * kept, here, other=0.0), 0)
            weights += tl.sum(tl.load(pointer + 3 * kept, here, other=0.0), 0)
    at = batch * kept + cell
    label, keep, beyond = load_labels(labels_ptr, mask_ptr, at, ok, reduced)
    if corr_ptr is None:
        goal = divide(weighted, weights)
    else:
        goal, _ = gather_goal(
            corr_ptr + batch * stride_b + cell.to(tl.int64) * stride_k, label, keep, stride_r,
            width, height, rx, ry, sigma_scale, ACC, SMOOTH,
        )  # fmt: skip
    finish_loss(best, total, goal, beyond, keep, loss_ptr, logsumexp_ptr, weight_ptr, at, ok, temperature)


@triton.jit
def gather_goal(
    column_ptr, label, keep, stride_r, width, height, rx, ry, sigma_scale, ACC: tl.constexpr, SMOOTH: tl.constexpr
):  # fmt: skip
    """The raw score [N] that the goal asks for: the label's entry; or the mean of what is not excluded under the
    Gaussian round it, -inf where the label itself is excluded. And the sum [N] of the Gaussian's weights."""
    goal = tl.load(column_ptr + label.to(tl.int64) * stride_r, mask=keep, other=0.0).to(ACC)
    weights = tl.full(label.shape, 1.0, ACC)
    if SMOOTH:
        excluded = goal == float("-inf")
        row = label // width
        column = label - row * width
        weighted = tl.zeros(label.shape, ACC)
        weights = tl.zeros(label.shape, ACC)
        for i in range(0, (2 * rx + 1) * (2 * ry + 1)):
            dy = i // (2 * rx + 1) - ry
            dx = i % (2 * rx + 1) - rx
            there = keep & (row + dy >= 0) & (row + dy < height) & (column + dx >= 0) & (column + dx < width)
            cell = tl.where(there, label + dy * width + dx, 0)
            c = tl.load(column_ptr + cell.to(tl.int64) * stride_r, mask=there, other=float("-inf")).to(ACC)
            weight = goal_weight(cell * 0 + dx, cell * 0 + dy, rx, ry, sigma_scale, ACC)
            weight = tl.where(c == float("-inf"), 0.0, weight)
            weighted += tl.where(weight == 0, 0.0, weight * c)  # 0 * inf must not be formed
            weights += weight
        weights = tl.where(weights == 0, 1.0, weights)
        goal = divide(weighted, weights) + tl.where(excluded, float("-inf"), 0.0)
    return goal, weights


@triton.jit(do_not_specialize=["width", "height", "rx", "ry"])
def goal_norms_kernel(
    entries_ptr,  # [B, reduced, kept] in any strides: a correlation, or what is -inf where that is excluded
    labels_ptr, norms_ptr,  # [B, kept]
    reduced, kept, stride_b, stride_r, stride_k, width, height, rx, ry, sigma_scale,
    ACC: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K kept cells of one batch entry: what the weights of their smoothed goals are multiplied by,
    one over their sum."""
    blocks = tl.cdiv(kept, BLOCK_K)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    at = batch * kept + cell
    label, keep, _ = load_labels(labels_ptr, None, at, cell < kept, reduced)
    column_ptr = entries_ptr + batch * stride_b + cell.to(tl.int64) * stride_k
    _, weights = gather_goal(column_ptr, label, keep, stride_r, width, height, rx, ry, sigma_scale, ACC, True)
    tl.store(norms_ptr + at, divide(tl.full(weights.shape, 1.0, ACC), weights), cell < kept)
