"""The online softmax state that the matching kernels share: `empty_state`, `absorb`, `merge`, `finish`.

**State.** For one cell of the kept side, over the entries c_r of the reduced side seen so far::

    best   largest raw c_r, -inf when nothing was seen     index  lowest r that reaches it
    total  sum of e_r,  e_r = exp((c_r - best) / temperature)
    drift  sum of e_r * log2(e_r)                          (what the entropy needs)
    x, y   sum of e_r * X_r, sum of e_r * Y_r              (X_r, Y_r: whole numbers, see `cell_xy`)

**Merge.** Two states are moved to the larger `best` and added. With f = exp((best - best') / temperature)
every e_r becomes f * e_r: total, x and y are multiplied by f; and because log2(f * e_r) = log2(f) +
log2(e_r), drift becomes f * (drift + total * log2(f)). A single entry is the state best = c, total = 1,
drift = 0, x = X_r, y = Y_r. This one rule serves three times: a tile of slots takes in the next entries
(`absorb`: no thread talks to another), the slots of a tile become one state per kept cell (`merge`), and so
do the states of the programs that shared a cell (`merge_partials_kernel`). The order of every sum follows
from shapes alone, so results repeat to the last bit.

**Edges.** Only differences of raw entries are exponentiated, so a common offset costs no digits. An entry
of -inf has e = 0, and drift takes e * max(log2(e), -10^4), so that 0 * -inf never arises. A NaN fails every
comparison: it never becomes `best` or `index`, but it makes e and so total NaN, which `finish` hands on.
For +inf the difference inf - inf does the same.
"""

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOWEST_LOG2 = tl.constexpr(-1.0e4)
NO_INDEX = tl.constexpr(2147483647)
STATE_FLOATS = tl.constexpr(5)


@triton.jit
def cell_xy(cell, width, height, ACC: tl.constexpr):
    """Column and row of `cell`, whole numbers from the grid's centre: 2 col - (W - 1) and 2 row - (H - 1)."""
    row = cell // width
    return (2 * (cell - row * width) - (width - 1)).to(ACC), (2 * row - (height - 1)).to(ACC)


@triton.jit
def cell_stride(step: tl.constexpr, width, ACC: tl.constexpr):
    """What `next_xy` needs to go `step` cells on: changes of x and y, the last x, the x of a line feed."""
    rows = step // width
    return (2 * (step - rows * width)).to(ACC), (2 * rows).to(ACC), (width - 1).to(ACC), (2 * width).to(ACC)


@triton.jit
def next_xy(x, y, stride):
    """The whole numbers of `cell_xy`, some cells further on: no division in the loop."""
    dx, dy, last, line = stride
    x += dx
    wrapped = x > last
    return tl.where(wrapped, x - line, x), y + tl.where(wrapped, dy + 2.0, dy)


@triton.jit
def origin(best):
    """`best` where it is subtracted: 0 where nothing was seen, because -inf - (-inf) is NaN."""
    return tl.where(best == float("-inf"), 0.0, best)


@triton.jit
def log2_factor(best, new_best, scale):
    """log2 of the factor that moves a state to `new_best`; 0 for an empty state, whose sums are 0 or NaN."""
    return tl.maximum(tl.where(best == float("-inf"), 0.0, (best - new_best) * scale), LOWEST_LOG2)


@triton.jit
def empty_state(M: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr):
    """A tile [M, N] of states that have seen nothing."""
    zero = tl.zeros([M, N], ACC)  # [M, N]
    return tl.full([M, N], float("-inf"), ACC), zero, zero, zero, zero, tl.zeros([M, N], tl.int32)


@triton.jit
def absorb(
    state, pointer, cell, cell_end, kept_ok, x, y, stride_cell, xy_stride, scale,
    STEP: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Take in UNROLL tiles of entries, STEP cells of the reduced side apart.

    state: tiles [M, N]; pointer [M, N]: the first tile; cell, x, y: [M, 1] or [1, N] along the reduced
    side; kept_ok: the same along the kept side. All tiles are loaded before any is used, and the state
    moves to its new best once for all of them. Returns what the next step starts from.
    """
    best, total, drift, sum_x, sum_y, index = state
    ACC: tl.constexpr = best.dtype
    tiles = ()
    top = best  # [M, N]
    for _ in tl.static_range(UNROLL):
        c = tl.load(pointer, mask=(cell < cell_end) & kept_ok, other=float("-inf")).to(ACC)  # [M, N]
        better = c > top  # never for NaN, and not for a tie: the lowest cell stays
        top = tl.where(better, c, top)
        index = tl.where(better, cell, index)
        tiles += (c,)
        pointer += tl.full([], STEP, tl.int64) * stride_cell
        cell += STEP
    log2_f = log2_factor(best, top, scale)  # [M, N]
    f = tl.exp2(log2_f)
    drift = f * (drift + total * log2_f)
    total *= f
    sum_x *= f
    sum_y *= f
    zero = origin(top)
    for u in tl.static_range(UNROLL):
        log2_e = (tiles[u] - zero) * scale  # [M, N]
        e = tl.exp2(log2_e)
        total += e
        drift += e * tl.maximum(log2_e, LOWEST_LOG2)
        sum_x += e * x
        sum_y += e * y
        x, y = next_xy(x, y, xy_stride)
    return (top, total, drift, sum_x, sum_y, index), pointer, cell, x, y


@triton.jit
def merge(state, scale, AXIS: tl.constexpr):
    """Merge the states of a tile along AXIS into one."""
    best, total, drift, x, y, index = state
    top = tl.max(best, AXIS)
    index = tl.min(tl.where(best == tl.expand_dims(top, AXIS), index, NO_INDEX), AXIS)
    log2_f = log2_factor(best, tl.expand_dims(top, AXIS), scale)
    f = tl.exp2(log2_f)
    drift = tl.sum(f * (drift + total * log2_f), AXIS)
    return top, tl.sum(f * total, AXIS), drift, tl.sum(f * x, AXIS), tl.sum(f * y, AXIS), index


@triton.jit
def divide(a, b):
    """a / b, correctly rounded (a plain float32 division is approximate on the GPU)."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    return a / b


@triton.jit
def finish(
    state, coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr, cell, ok, width, height, temperature
):  # fmt: skip
    """Turn states [N] into results, stored at `cell` [N] (int64, with the batch's offset) where `ok`."""
    best, total, drift, sum_x, sum_y, index = state
    ACC: tl.constexpr = best.dtype
    nothing = total == 0  # every entry -inf; False for NaN
    total = tl.where(nothing, 1.0, total)
    log_total = tl.log(total)
    score = tl.where(nothing, 0.0, divide(tl.full(best.shape, 1.0, ACC), total))
    entropy = log_total - divide(drift, total) * LN2
    x_scale = tl.maximum(width - 1, 1).to(ACC)
    y_scale = tl.maximum(height - 1, 1).to(ACC)
    tl.store(coords_ptr + 2 * cell, divide(sum_x, total * x_scale), ok)
    tl.store(coords_ptr + 2 * cell + 1, divide(sum_y, total * y_scale), ok)
    tl.store(score_ptr + cell, score, ok)
    tl.store(entropy_ptr + cell, entropy, ok)
    tl.store(logsumexp_ptr + cell, divide(best, tl.full(best.shape, temperature, ACC)) + log_total, ok)
    tl.store(index_ptr + cell, index.to(tl.int64), ok)


@triton.jit
def store_partial(state, floats_ptr, index_ptr, part, kept, cell, ok):
    """Store states [N] of the kept cells `cell` as part `part` (int64) of [parts, 5, kept], [parts, kept]."""
    best, total, drift, sum_x, sum_y, index = state
    pointer = floats_ptr + part * STATE_FLOATS * kept + cell
    floats = (best, total, drift, sum_x, sum_y)
    for i in tl.static_range(5):
        tl.store(pointer, floats[i], ok)
        pointer += kept
    tl.store(index_ptr + part * kept + cell, index, ok)


@triton.jit
def load_partial(floats_ptr, index_ptr, part, kept, cell, ok):
    """What `store_partial` stored, [parts, N]; an empty state where not `ok`."""
    pointer = floats_ptr + part * STATE_FLOATS * kept + cell
    state = (tl.load(pointer, ok, other=float("-inf")),)
    for _ in tl.static_range(4):
        pointer += kept
        state += (tl.load(pointer, ok, other=0.0),)
    state += (tl.load(index_ptr + part * kept + cell, ok, other=0),)
    return state


@triton.jit
def merge_two(a, b, scale):
    """Merge states of the same shape; the cells of `a` come before those of `b`."""
    top = tl.where(b[0] > a[0], b[0], a[0])
    index = tl.where(b[0] > a[0], b[5], a[5])
    log2_a = log2_factor(a[0], top, scale)
    log2_b = log2_factor(b[0], top, scale)
    f = tl.exp2(log2_a)
    g = tl.exp2(log2_b)
    drift = f * (a[2] + a[1] * log2_a) + g * (b[2] + b[1] * log2_b)
    return top, f * a[1] + g * b[1], drift, f * a[3] + g * b[3], f * a[4] + g * b[4], index


@triton.jit(do_not_specialize=["parts", "width", "height"])
def merge_partials_kernel(
    partial_ptr, partial_index_ptr,  # partial states [B, parts, 5, kept] and [B, parts, kept]
    coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,  # results [B, kept(, 2)]
    parts, kept, width, height,
    temperature, scale,
    ACC: tl.constexpr, BLOCK_PARTS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Second stage. One program: the parts of BLOCK_K kept cells of one batch entry, in a fixed order."""
    blocks = tl.cdiv(kept, BLOCK_K)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    cell = (tl.program_id(0) % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
    scale = tl.full([], scale, ACC)
    state = empty_state(BLOCK_PARTS, BLOCK_K, ACC)
    for first in range(0, parts, BLOCK_PARTS):
        part = first + tl.arange(0, BLOCK_PARTS)[:, None]  # [BLOCK_PARTS, 1]
        ok = (part < parts) & (cell < kept)[None, :]  # [BLOCK_PARTS, BLOCK_K]
        more = load_partial(partial_ptr, partial_index_ptr, batch * parts + part, kept, cell[None, :], ok)
        state = merge_two(state, more, scale)
    finish(
        merge(state, scale, 0), coords_ptr, score_ptr, entropy_ptr, logsumexp_ptr, index_ptr,
        batch * kept + cell, cell < kept, width, height, temperature,
    )  # fmt: skip
