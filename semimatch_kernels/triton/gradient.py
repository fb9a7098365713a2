"""The gradient of one side's matches with respect to the correlation, entry by entry: `load_side`, `slope`.

With p_r = e_r * score, e_r = exp((c_r - best) / temperature) and incoming gradients gx, gy (coords), gs
(score), gh (entropy), gl (logsumexp), the gradient of entry r is::

    p_r / temperature * (gx (X_r - x) + gy (Y_r - y) - gh (log p_r + entropy) + gl - gs score + gs [r =
    index])

with one multiplication by p_r, so that the p - 1 of the best entry is formed in the accumulate dtype.
`best` is read again from the correlation at `index`: c_r - best keeps digits that c_r / temperature -
logsumexp would lose.
"""

import triton
import triton.language as tl

from .online_softmax import LN2, LOWEST_LOG2, origin

SIDE_FLOATS = tl.constexpr(7)

# Arguments of the strides of incoming gradients, in the order of `launch.gradient_strides`. Kernels are not
# specialised on them: that would compile anew for each layout of a vector, and gain nothing.
STRIDES = (
    "coords_b", "coords_k", "coords_xy", "score_b", "score_k",
    "entropy_b", "entropy_k", "logsumexp_b", "logsumexp_k",
)  # fmt: skip


@triton.jit
def load_vector(pointer, offset, ok, ACC: tl.constexpr):
    """An incoming gradient as [N] in ACC; zeros where there is none (`pointer` is None)."""
    if pointer is None:
        vector = tl.zeros(ok.shape, ACC)
    else:
        vector = tl.load(pointer + offset, mask=ok, other=0.0).to(ACC)
    return vector


@triton.jit
def load_side(
    corr_ptr, coords_ptr, score_ptr, entropy_ptr, index_ptr, grads, grad_strides,
    batch, cell, kept, width, height, stride_reduced, stride_kept, temperature, ACC: tl.constexpr,
):  # fmt: skip
    """What `slope` needs of the kept cells `cell` [N], from saved results, incoming gradients and the best
    entry.

    corr_ptr points to this batch's entries. grads: pointers of coords, score, entropy, logsumexp, each may
    be None; grad_strides: (batch, cell, xy) of coords, then (batch, cell) of each other. Returns
    SIDE_FLOATS vectors [N] in ACC, then the index [N].
    """
    ok = cell < kept  # [N]
    index = tl.load(index_ptr + batch * kept + cell, mask=ok, other=0)
    best_ptr = corr_ptr + index * stride_reduced + cell.to(tl.int64) * stride_kept
    best = tl.load(best_ptr, mask=ok, other=float("-inf")).to(ACC)
    score = tl.load(score_ptr + batch * kept + cell, mask=ok, other=0.0)
    return side_of(
        best, score, index, coords_ptr, entropy_ptr, grads, grad_strides, batch, cell, kept, width, height,
        temperature, ACC,
    )  # fmt: skip


@triton.jit
def load_side_of_features(
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr, grads, grad_strides,
    batch, cell, kept, width, height, temperature, ACC: tl.constexpr,
):  # fmt: skip
    """`load_side` where there is no correlation to read: the best entry by logsumexp = best / temperature - log score,
    to a rounding that the products of features have too."""
    ok = cell < kept  # [N]
    index = tl.load(index_ptr + batch * kept + cell, mask=ok, other=0)
    score = tl.load(score_ptr + batch * kept + cell, mask=ok, other=0.0)
    logsumexp = tl.load(logsumexp_ptr + batch * kept + cell, mask=ok, other=float("-inf"))
    best = (logsumexp + tl.log(tl.where(score == 0, 1.0, score))) * tl.full([], temperature, ACC)
    return side_of(
        best, score, index, coords_ptr, entropy_ptr, grads, grad_strides, batch, cell, kept, width, height,
        temperature, ACC,
    )  # fmt: skip


@triton.jit
def snapped(c, side):
    """Entries c [M, N] of the kept cells of `load_side_of_features`, with the best one in place of those that are it to
    a rounding, or above: it was not read, and the rounding of a large score must not reach the exponential."""
    best = side[0]
    UNIT: tl.constexpr = 8.9e-16 if best.dtype == tl.float64 else 4.8e-7  # four units in the last place
    near = best - tl.abs(best) * UNIT
    return tl.where(c > near[:, None], best[:, None], c)


@triton.jit
def side_of(
    best, score, index, coords_ptr, entropy_ptr, grads, grad_strides, batch, cell, kept, width, height, temperature,
    ACC: tl.constexpr,
):  # fmt: skip
    """The vectors of `load_side`, given the best entry, score and index [N] of its cells."""
    coords_grad, score_grad, entropy_grad, logsumexp_grad = grads
    coords_b, coords_k, coords_xy, score_b, score_k = grad_strides[:5]
    entropy_b, entropy_k, logsumexp_b, logsumexp_k = grad_strides[5:]
    ok = cell < kept  # [N]
    cell = cell.to(tl.int64)
    at = batch * kept + cell
    entropy = tl.load(entropy_ptr + at, mask=ok, other=0.0)
    x_scale = tl.maximum(width - 1, 1).to(ACC)
    y_scale = tl.maximum(height - 1, 1).to(ACC)
    x = tl.load(coords_ptr + 2 * at, mask=ok, other=0.0)
    y = tl.load(coords_ptr + 2 * at + 1, mask=ok, other=0.0)
    gx = load_vector(coords_grad, batch * coords_b + cell * coords_k, ok, ACC)
    gy = load_vector(coords_grad, batch * coords_b + cell * coords_k + coords_xy, ok, ACC)
    gs = load_vector(score_grad, batch * score_b + cell * score_k, ok, ACC)
    gh = load_vector(entropy_grad, batch * entropy_b + cell * entropy_k, ok, ACC)
    gl = load_vector(logsumexp_grad, batch * logsumexp_b + cell * logsumexp_k, ok, ACC)
    log_score = tl.log(tl.where(score == 0, 1.0, score))  # [N]; score is 0 where every entry is excluded
    constant = gl - gs * score - gx * x - gy * y - gh * (log_score + entropy)
    weight = score / tl.full([], temperature, ACC)
    return origin(best), weight, constant, gx / x_scale, gy / y_scale, gh * LN2, gs, index.to(tl.int32)


@triton.jit
def store_side(side, floats_ptr, index_ptr, batch, cell, kept):
    """Keep a side for another kernel: floats [B, 7, kept], index [B, kept]."""
    ok = cell < kept  # [N]
    pointer = floats_ptr + batch * SIDE_FLOATS * kept + cell
    for i in tl.static_range(SIDE_FLOATS):
        tl.store(pointer, side[i], mask=ok)
        pointer += kept
    tl.store(index_ptr + batch * kept + cell, side[SIDE_FLOATS], mask=ok)


@triton.jit
def reload_side(floats_ptr, index_ptr, batch, cell, kept):
    """What `store_side` kept, for the cells `cell` [N]."""
    ok = cell < kept
    pointer = floats_ptr + batch * SIDE_FLOATS * kept + cell
    side = ()
    for _ in tl.static_range(SIDE_FLOATS):
        side += (tl.load(pointer, mask=ok, other=0.0),)
        pointer += kept
    side += (tl.load(index_ptr + batch * kept + cell, mask=ok, other=0),)
    return side


@triton.jit
def slope(side, AXIS: tl.constexpr, c, cell, x, y, scale):
    """Gradient [M, N] of entries c [M, N] through one side, whose reduced cells lie along AXIS.

    cell, x, y: those reduced cells and their places, [M, 1] or [1, N].
    """
    best = tl.expand_dims(side[0], AXIS)  # [1, N] or [M, 1], and so the others
    weight = tl.expand_dims(side[1], AXIS)
    constant = tl.expand_dims(side[2], AXIS)
    gx = tl.expand_dims(side[3], AXIS)
    gy = tl.expand_dims(side[4], AXIS)
    gh = tl.expand_dims(side[5], AXIS)
    gs = tl.expand_dims(side[6], AXIS)
    index = tl.expand_dims(side[7], AXIS)
    log2_e = (c - best) * scale  # [M, N]
    inner = constant + gx * x + gy * y - gh * tl.maximum(log2_e, LOWEST_LOG2)  # [M, N]
    inner += tl.where(cell == index, gs, 0.0)
    # An excluded entry: 0, also in a column whose results are NaN or that has no entry left.
    return tl.where(c == float("-inf"), 0.0, tl.exp2(log2_e) * weight * inner)
