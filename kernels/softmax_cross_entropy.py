"""Cross-entropy of the softmax in Triton, the gradient in place of the logits: one program a row.

With e bytes a logit, N rows of V must move 2 e N V bytes with the gradient (the row is read once from memory, and from
the caches where it is read again) and e N V without, and do about 20 N V flops (18 N V without a gradient).

Labels are checked on the way, without a host: a bad one counts as ignored, and the first that is seen goes into
errors = [1, row, label].
"""

import triton
import triton.language as tl
from torch import Tensor

LOWEST = tl.constexpr(-3.4028234663852886e38)  # float32's; a largest of -inf would make NaN of exp(-inf - -inf)


@triton.jit
def _softmax_cross_entropy_fwd_kernel(
    logits_ptr, labels_ptr, scale_ptr, losses_ptr, correct_ptr, errors_ptr, ignore_index, label_smoothing, V,
    GRADIENT: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Moves 2 e V bytes a row with the gradient, e V without; about 20 or 18 flops a logit."""
    row = tl.program_id(0).to(tl.int64)  # N * V may pass 2^31
    logits_ptr += row * V
    label = tl.load(labels_ptr + row).to(tl.int64)
    scale = 1.0
    if scale_ptr is not None:
        scale = tl.load(scale_ptr)
    good = (label >= 0) & (label < V)
    if (label != ignore_index) & (~good):  # noqa: SIM102 (Triton evaluates both sides of an `and`)
        if tl.atomic_cas(errors_ptr, tl.cast(0, tl.int64), tl.cast(1, tl.int64)) == 0:
            tl.store(errors_ptr + 1, row)
            tl.store(errors_ptr + 2, label)
    loss = 0.0
    correct = False
    block = tl.arange(0, BLOCK_V)
    if good & (label != ignore_index):
        own = tl.load(logits_ptr + label).to(tl.float32)
        most = LOWEST
        total = 0.0
        plain = 0.0
        before = tl.zeros([BLOCK_V], tl.int32)  # logits that come before the label's in rank
        for start in range(0, V, BLOCK_V):
            cols = start + block
            x = tl.load(logits_ptr + cols, mask=cols < V, other=float("-inf")).to(tl.float32)
            before += ((x > own) | ((x == own) & (cols < label))).to(tl.int32)
            larger = tl.maximum(most, tl.max(x, 0))
            total = total * tl.exp(most - larger) + tl.sum(tl.exp(x - larger), 0)
            plain += tl.sum(tl.where(cols < V, x, 0.0), 0)
            most = larger
        loss = tl.log(total) - (own - most)
        if label_smoothing != 0:
            loss += label_smoothing * (own - plain / V)
        correct = (tl.sum(before, 0) == 0) & (loss == loss)
        loss *= scale
        if GRADIENT:
            everywhere = scale * label_smoothing / V
            for start in range(0, V, BLOCK_V):
                cols = start + block
                x = tl.load(logits_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
                g = tl.exp(x - most) * (scale / total) - everywhere
                g = tl.where(cols == label, g - scale * (1.0 - label_smoothing), g)
                tl.store(logits_ptr + cols, g.to(logits_ptr.dtype.element_ty), mask=cols < V)
    elif GRADIENT:
        for start in range(0, V, BLOCK_V):
            cols = start + block
            tl.store(logits_ptr + cols, tl.zeros([BLOCK_V], logits_ptr.dtype.element_ty), mask=cols < V)
    tl.store(losses_ptr + row, loss)
    tl.store(correct_ptr + row, correct)


@triton.jit
def _softmax_cross_entropy_bwd_kernel(dlogits_ptr, dlosses_ptr, V, BLOCK_V: tl.constexpr):
    """Moves 2 e V bytes a row whose factor isn't 1, and as many flops as it has logits; 4 bytes for the others."""
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(dlosses_ptr + row)
    if factor != 1.0:
        for start in range(0, V, BLOCK_V):
            cols = start + tl.arange(0, BLOCK_V)
            at = dlogits_ptr + row * V + cols
            g = tl.load(at, mask=cols < V, other=0.0).to(tl.float32) * factor
            tl.store(at, g.to(dlogits_ptr.dtype.element_ty), mask=cols < V)


def tile(V: int) -> dict[str, int]:
    """Compile-time sizes: 8 to 16 logits a thread."""
    BLOCK_V = max(128, min(triton.next_power_of_2(V), 4096))
    return {"BLOCK_V": BLOCK_V, "num_warps": max(1, min(8, BLOCK_V // 256)), "enable_fp_fusion": True}


def softmax_cross_entropy_fwd(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    losses: Tensor,
    correct: Tensor,
    errors: Tensor,
    ignore_index: int,
    label_smoothing: float,
    gradient: bool,
) -> None:
    """logits [N, V] contiguous, labels [N], scale one float32 or None -> losses [N] float32, correct [N] bool;
    errors [3] int64. With `gradient`, that is written over the logits."""
    N, V = logits.shape
    if N > 0:
        tensors = (logits, labels, scale, losses, correct, errors)
        _softmax_cross_entropy_fwd_kernel[(N,)](
            *tensors, ignore_index, label_smoothing, V, GRADIENT=gradient, **tile(V)
        )


def softmax_cross_entropy_bwd(dlogits: Tensor, dlosses: Tensor) -> None:
    """dlogits [N, V] *= dlosses [N] float32, row by row, both contiguous."""
    N, V = dlogits.shape
    if N > 0:
        _softmax_cross_entropy_bwd_kernel[(N,)](dlogits, dlosses, V, **tile(V))
