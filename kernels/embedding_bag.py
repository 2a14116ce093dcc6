"""Table-batched embedding bags in Triton: the forward pass, and the backward pass fused with the update of the rows.

With N ids of i bytes in B samples of T tables, rows of D float32, and U distinct rows, must move:
forward 4 D (N + B T) + i N bytes; an update 4 D (2 U + B T) + i N bytes (row-wise Adagrad 8 U more). The flops are
D N forward, D (N + 2 U) for SGD and D (N + 4 U) for Adagrad: all of them wait for memory. The sorted updates also
read and write N keys and N positions a few times while torch sorts them.

Ids are checked on the way, without a host: a bad one is left out, and the first that is seen goes into
errors = [kind, bag, value], kind 1 for a bad id, 2 for a bag outside 0 .. N. Nothing is read or written out of bounds.
"""

import triton
import triton.language as tl
from torch import Tensor

WINDOW = 32  # sorted occurrences that one program sums; runs longer than that are joined in a second pass
KEYS_BAGS = 128  # one a thread


@triton.jit
def _record(errors_ptr, bad, kind, bag, value):
    """Keeps one bad element, the first of this block, unless another block came first."""
    first = tl.min(tl.where(bad, bag, 0x7FFFFFFF))
    if first < 0x7FFFFFFF:  # noqa: SIM102 (Triton evaluates both sides of an `and`)
        if tl.atomic_cas(errors_ptr, tl.cast(0, tl.int64), tl.cast(kind, tl.int64)) == 0:
            tl.store(errors_ptr + 1, first.to(tl.int64))
            tl.store(errors_ptr + 2, tl.max(tl.where(bad & (bag == first), value, -(1 << 62))))


@triton.jit
def _bags(bag_offsets_ptr, errors_ptr, bags, N, BAGS: tl.constexpr):
    """This program's bags: number, first occurrence, and length (0 past the last bag and for a bad one)."""
    bag = tl.program_id(0) * BAGS + tl.arange(0, BAGS)
    if bag_offsets_ptr is None:
        start = bag.to(tl.int64)
        length = (bag < bags).to(tl.int32)
    else:
        start = tl.load(bag_offsets_ptr + bag, mask=bag < bags, other=0)
        end = tl.load(bag_offsets_ptr + bag + 1, mask=bag < bags, other=0)
        good = (start >= 0) & (start <= end) & (end <= N)
        good &= ((bag != 0) | (start == 0)) & ((bag != bags - 1) | (end == N))
        _record(errors_ptr, ~good, 2, bag, end)
        length = tl.where(good, end - start, 0).to(tl.int32)
    return bag, start, length


@triton.jit
def _rows(row_offsets_ptr, ids_ptr, errors_ptr, bag, n, active, T, rows):
    """The rows of occurrences n of these bags, and which of them may be touched."""
    t = bag % T
    first = tl.load(row_offsets_ptr + t, mask=active, other=0)
    last = tl.load(row_offsets_ptr + t + 1, mask=active, other=0)
    found = tl.load(ids_ptr + n, mask=active, other=0).to(tl.int64)
    good = (found >= 0) & (found < last - first) & (first >= 0) & (last <= rows)
    _record(errors_ptr, active & ~good, 1, bag, found)
    return first + found, active & good


@triton.jit
def _skipped(found_inf_ptr, errors_ptr):
    skip = tl.load(errors_ptr) != 0
    if found_inf_ptr is not None:
        skip |= tl.load(found_inf_ptr) != 0
    return skip


@triton.jit
def _scale(grad_scale_ptr):
    scale = 1.0
    if grad_scale_ptr is not None:
        scale = tl.load(grad_scale_ptr)
    return scale


@triton.jit
def _embedding_bag_fwd_kernel(
    weight_ptr,
    row_offsets_ptr,
    ids_ptr,
    bag_offsets_ptr,
    out_ptr,
    errors_ptr,
    bags,
    T,
    D,
    N,
    rows,
    BAGS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BAGS bags a program. Moves 4 D (N + B T) + i N bytes, D N flops."""
    bag, start, length = _bags(bag_offsets_ptr, errors_ptr, bags, N, BAGS)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BAGS, BLOCK_D], tl.float32)
    for k in range(tl.max(length)):
        row, good = _rows(row_offsets_ptr, ids_ptr, errors_ptr, bag, start + k, k < length, T, rows)
        mask = good[:, None] & (cols < D)[None, :]
        total += tl.load(weight_ptr + row[:, None] * D + cols[None, :], mask=mask, other=0.0)
    tl.store(
        out_ptr + bag.to(tl.int64)[:, None] * D + cols[None, :], total, mask=(bag < bags)[:, None] & (cols < D)[None, :]
    )


@triton.jit
def _embedding_bag_bwd_sgd_kernel(
    weight_ptr,
    row_offsets_ptr,
    ids_ptr,
    bag_offsets_ptr,
    dout_ptr,
    lr_ptr,
    grad_scale_ptr,
    found_inf_ptr,
    errors_ptr,
    bags,
    T,
    D,
    N,
    rows,
    BAGS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The fast update: an atomic add per element of each occurrence, in no fixed order.

    Moves 4 D (2 U + B T) + i N bytes when repeated rows stay in L2, D (N + B T) flops.
    """
    bag, start, length = _bags(bag_offsets_ptr, errors_ptr, bags, N, BAGS)
    if _skipped(found_inf_ptr, errors_ptr):
        length = tl.zeros_like(length)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    mask = (length > 0)[:, None] & (cols < D)[None, :]
    step = tl.load(dout_ptr + bag.to(tl.int64)[:, None] * D + cols[None, :], mask=mask, other=0.0)
    step *= -tl.load(lr_ptr) * _scale(grad_scale_ptr)
    for k in range(tl.max(length)):
        row, good = _rows(row_offsets_ptr, ids_ptr, errors_ptr, bag, start + k, k < length, T, rows)
        tl.atomic_add(weight_ptr + row[:, None] * D + cols[None, :], step, mask=mask & good[:, None], sem="relaxed")


@triton.jit
def _embedding_bag_keys_kernel(
    row_offsets_ptr,
    ids_ptr,
    bag_offsets_ptr,
    keys_ptr,
    bag_of_ptr,
    errors_ptr,
    bags,
    T,
    N,
    rows,
    BAGS: tl.constexpr,
):
    """What the sorted updates sort: the row of each occurrence (`rows` for a bad one), and its bag where multi-hot.

    Moves (i + 4) N bytes, with 4 N more where multi-hot; no flops.
    """
    bag, start, length = _bags(bag_offsets_ptr, errors_ptr, bags, N, BAGS)
    for k in range(tl.max(length)):
        row, good = _rows(row_offsets_ptr, ids_ptr, errors_ptr, bag, start + k, k < length, T, rows)
        tl.store(keys_ptr + start + k, tl.where(good, row, rows).to(keys_ptr.dtype.element_ty), mask=k < length)
        if bag_of_ptr is not None:
            tl.store(bag_of_ptr + start + k, bag, mask=k < length)


@triton.jit
def _update_row(weight_ptr, state_ptr, lr_ptr, grad_scale_ptr, row, total, cols, D, eps):
    """One step of one row from the sum of its gradients: row-wise Adagrad where there is a state, else SGD."""
    g = _scale(grad_scale_ptr) * total
    rate = tl.load(lr_ptr)
    if state_ptr is not None:
        state = tl.load(state_ptr + row) + tl.sum(g * g) / D
        tl.store(state_ptr + row, state)
        rate /= tl.sqrt(state) + eps
    ptrs = weight_ptr + row.to(tl.int64) * D + cols
    tl.store(ptrs, tl.load(ptrs, mask=cols < D, other=0.0) - rate * g, mask=cols < D)


@triton.jit
def _embedding_bag_sorted_kernel(
    weight_ptr,
    state_ptr,
    keys_ptr,
    order_ptr,
    bag_of_ptr,
    dout_ptr,
    partial_ptr,
    lr_ptr,
    grad_scale_ptr,
    found_inf_ptr,
    errors_ptr,
    D,
    N,
    rows,
    eps,
    WINDOW: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sums the runs of equal rows in one window of the sorted occurrences, in order, and updates those that lie in it.

    A run that crosses the window's end or start leaves its part in partial[2 w] (it began before) or partial[2 w + 1].
    Moves 4 D (N + 2 U + 2 N / WINDOW) + 20 N bytes, D (N + 2 U) flops.
    """
    w = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)
    begin = w * WINDOW
    end = tl.minimum(begin + WINDOW, N)
    if _skipped(found_inf_ptr, errors_ptr):
        end = begin
    row = tl.load(keys_ptr + begin)
    began_here = tl.load(keys_ptr + begin - 1, mask=begin > 0, other=-1) != row
    total = tl.zeros([BLOCK_D], tl.float32)
    for n in range(begin, end):
        bag = tl.load(order_ptr + n)
        if bag_of_ptr is not None:
            bag = tl.load(bag_of_ptr + bag)
        total += tl.load(dout_ptr + bag.to(tl.int64) * D + cols, mask=cols < D, other=0.0)
        following = tl.load(keys_ptr + n + 1, mask=n + 1 < N, other=-1)
        if (following != row) | (n + 1 == end):
            if began_here & (following != row):
                if row < rows:
                    _update_row(weight_ptr, state_ptr, lr_ptr, grad_scale_ptr, row, total, cols, D, eps)
            else:
                tl.store(partial_ptr + (2 * w + began_here.to(tl.int64)) * D + cols, total, mask=cols < D)
            total = tl.zeros([BLOCK_D], tl.float32)
            began_here = following != row
        row = following


@triton.jit
def _embedding_bag_join_kernel(
    weight_ptr,
    state_ptr,
    keys_ptr,
    partial_ptr,
    lr_ptr,
    grad_scale_ptr,
    found_inf_ptr,
    errors_ptr,
    D,
    N,
    rows,
    eps,
    WINDOW: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Joins the run that begins in window w and goes on, part by part in order, and updates its row.

    Moves at most 8 D N / WINDOW bytes of parts and 8 D bytes a row; D flops a part.
    """
    w = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)
    begin = w * WINDOW
    end = begin + WINDOW
    if (end < N) & (not _skipped(found_inf_ptr, errors_ptr)):
        row = tl.load(keys_ptr + end - 1)
        before = tl.load(keys_ptr + begin - 1, mask=begin > 0, other=-1)
        if (tl.load(keys_ptr + end) == row) & (before != row) & (row < rows):
            total = tl.load(partial_ptr + (2 * w + 1) * D + cols, mask=cols < D, other=0.0)
            v = w + 1
            while tl.load(keys_ptr + v * WINDOW, mask=v * WINDOW < N, other=-1) == row:
                total += tl.load(partial_ptr + 2 * v * D + cols, mask=cols < D, other=0.0)
                v += 1
            _update_row(weight_ptr, state_ptr, lr_ptr, grad_scale_ptr, row, total, cols, D, eps)


# Left to itself, ptxas keeps a kernel at 32 or 48 registers for one more block a multiprocessor, and spills for it.
OPTIONS = {"maxnreg": 128, "enable_fp_fusion": True}


def bag_tile(D: int) -> dict[str, int]:
    """Compile-time sizes of the kernels that take BAGS bags a program: four elements a thread."""
    BLOCK_D = min(triton.next_power_of_2(D), 512)
    return {"BAGS": 512 // BLOCK_D, "BLOCK_D": BLOCK_D, "num_warps": 4, **OPTIONS}


def run_tile(D: int) -> dict[str, int]:
    """Compile-time sizes of the sorted kernels, which hold a whole row: two elements a thread, up to 8 warps."""
    BLOCK_D = triton.next_power_of_2(D)
    return {"WINDOW": WINDOW, "BLOCK_D": BLOCK_D, "num_warps": min(8, max(1, BLOCK_D // 64)), **OPTIONS}


def embedding_bag_fwd(
    weight: Tensor, row_offsets: Tensor, ids: Tensor, bag_offsets: Tensor | None, out: Tensor, errors: Tensor
) -> None:
    """weight [rows, D], ids [B, T] or [N] with bag_offsets [B T + 1] -> out [B, T, D]; errors [3] int64."""
    B, T, D = out.shape
    tile = bag_tile(D)
    grid = (triton.cdiv(B * T, tile["BAGS"]), triton.cdiv(D, tile["BLOCK_D"]))
    if B > 0:
        _embedding_bag_fwd_kernel[grid](
            weight, row_offsets, ids, bag_offsets, out, errors, B * T, T, D, ids.numel(), weight.shape[0], **tile
        )


def embedding_bag_bwd_sgd(weight, row_offsets, ids, bag_offsets, dout, lr, grad_scale, found_inf, errors):
    """Atomic additions of dout [B, T, D]; lr, grad_scale, found_inf one float32 each (the last two may be None)."""
    B, T, D = dout.shape
    tile = bag_tile(D)
    grid = (triton.cdiv(B * T, tile["BAGS"]), triton.cdiv(D, tile["BLOCK_D"]))
    sizes = (B * T, T, D, ids.numel(), weight.shape[0])
    if B > 0:
        _embedding_bag_bwd_sgd_kernel[grid](
            weight, row_offsets, ids, bag_offsets, dout, lr, grad_scale, found_inf, errors, *sizes, **tile
        )


def embedding_bag_keys(row_offsets, ids, bag_offsets, keys, bag_of, rows, errors):
    """The row of each occurrence -> keys [N] int32 or int64, and its bag -> bag_of [N] int32 (one-hot: None)."""
    N, T = ids.numel(), row_offsets.numel() - 1
    bags = N if bag_offsets is None else bag_offsets.numel() - 1
    if bags > 0:
        _embedding_bag_keys_kernel[(triton.cdiv(bags, KEYS_BAGS),)](
            row_offsets, ids, bag_offsets, keys, bag_of, errors, bags, T, N, rows, BAGS=KEYS_BAGS, **OPTIONS
        )


def embedding_bag_bwd_sorted(weight, state, keys, order, bag_of, dout, lr, eps, grad_scale, found_inf, errors):
    """SGD (state None) or row-wise Adagrad (state [rows]) from the sorted keys.

    order [N] int64 is where each key stood before the sort, bag_of [N] or None is embedding_bag_keys', as it is.
    """
    N, (rows, D) = keys.numel(), weight.shape
    windows = (triton.cdiv(N, WINDOW),)
    partial = weight.new_empty(2 * windows[0] * D)
    scalars, sizes, tile = (lr, grad_scale, found_inf, errors), (D, N, rows, eps), run_tile(D)
    if N > 0:
        _embedding_bag_sorted_kernel[windows](
            weight, state, keys, order, bag_of, dout, partial, *scalars, *sizes, **tile
        )
        _embedding_bag_join_kernel[windows](weight, state, keys, partial, *scalars, *sizes, **tile)
