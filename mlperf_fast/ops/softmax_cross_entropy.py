"""Cross-entropy of the softmax over V classes in one pass, with the gradient in place of the logits.

N rows of V logits. The forward pass reads each logit from memory once and, where a gradient is wanted, writes
(softmax - target) * scale over it: no tensor of probabilities exists, and backward has hardly anything left to do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import (
    FLOATS,
    INTEGERS,
    address,
    check,
    check_contiguous,
    check_number,
    check_rank,
    check_scalar,
    native,
)

# 1. The truth ---------------------------------------------------------------------------------------------------


def softmax_cross_entropy_ref(
    logits: Tensor, labels: Tensor, scale: Tensor | None = None, ignore_index: int = -1, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch; its gradient is autograd's, and the logits stay. 16-bit logits are widened first."""
    V, labels = logits.shape[1], labels.long()
    bad = ((labels < 0) | (labels >= V)) & (labels != ignore_index)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise UserError(_bad_label(row, int(labels[row]), V))
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(wide, labels, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none")
    right = (logits.argmax(1) == labels) & (labels != ignore_index) & ~losses.isnan()
    return losses if scale is None else losses * scale.detach(), right


def _bad_label(row: int, label: int, V: int) -> str:
    return f"softmax_cross_entropy: row {row}: label {label} is outside [0, {V}) and isn't ignore_index"


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

SOFTMAX_CROSS_ENTROPY = Op(
    "softmax_cross_entropy",
    {
        "cpp": Applies(("cpu",), FLOATS),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "ref": Applies(),
    },
)


def _forward(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    errors: Tensor | None,
    backend: str,
    gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """losses [N] float32 and correct [N] bool; with `gradient`, that goes over the logits."""
    losses, correct = _fake_forward(logits, labels, scale, ignore_index, label_smoothing, errors, backend)
    (N, V), labels = logits.shape, labels.contiguous()
    logits = logits.contiguous()
    if backend == "cpp":
        addresses = (logits.data_ptr(), labels.data_ptr(), labels.dtype is torch.int64, address(scale))
        rest = (ignore_index, label_smoothing, gradient, FLOATS.index(logits.dtype))
        native(_C.softmax_cross_entropy_fwd, *addresses, losses.data_ptr(), correct.data_ptr(), N, V, *rest)
    else:
        from mlperf_fast.kernels.softmax_cross_entropy import softmax_cross_entropy_fwd

        record = labels.new_zeros(3, dtype=torch.int64) if errors is None else errors
        tensors = (logits, labels, scale, losses, correct, record)
        softmax_cross_entropy_fwd(*tensors, ignore_index, label_smoothing, gradient)
        if errors is None:
            raise_if_bad_labels(record, V)
    return losses, correct


def _forward_in_place(logits, labels, scale, ignore_index, label_smoothing, errors, backend) -> tuple[Tensor, Tensor]:
    torch.autograd.graph.increment_version(logits)  # who saved them earlier gets autograd's error
    return _forward(logits, labels, scale, ignore_index, label_smoothing, errors, backend, gradient=True)


def _backward_in_place(dlogits: Tensor, dlosses: Tensor, backend: str) -> None:
    """Multiplies the rows whose dlosses [N] isn't 1, which only the device knows."""
    torch.autograd.graph.increment_version(dlogits)  # a second backward pass would multiply again
    dlosses = dlosses.contiguous()
    if backend == "cpp":
        _C.softmax_cross_entropy_bwd(
            dlogits.data_ptr(), dlosses.data_ptr(), *dlogits.shape, FLOATS.index(dlogits.dtype)
        )
    else:
        from mlperf_fast.kernels.softmax_cross_entropy import softmax_cross_entropy_bwd

        softmax_cross_entropy_bwd(dlogits, dlosses)


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_forward(logits, labels, scale, ignore_index, label_smoothing, errors, backend):
    N = logits.shape[0]
    return logits.new_empty(N, dtype=torch.float32), logits.new_empty(N, dtype=torch.bool)


_ARGUMENTS = (
    "Tensor labels, Tensor? scale, int ignore_index, float label_smoothing, Tensor(b!)? errors, str backend) "
    "-> (Tensor, Tensor)"
)
_op = define(f"softmax_cross_entropy(Tensor logits, {_ARGUMENTS}", _forward, _fake_forward)
_op_in_place = define(f"softmax_cross_entropy_(Tensor(a!) logits, {_ARGUMENTS}", _forward_in_place, _fake_forward)
_op_bwd = define(
    "softmax_cross_entropy_bwd_(Tensor(a!) dlogits, Tensor dlosses, str backend) -> ()",
    _backward_in_place,
    lambda *arguments: None,
)
_softmax_cross_entropy = shortcut(_op, _forward)
_softmax_cross_entropy_ = shortcut(_op_in_place, _forward_in_place)
_softmax_cross_entropy_bwd_ = shortcut(_op_bwd, _backward_in_place)


class SoftmaxCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, scale, ignore_index, label_smoothing, errors, backend):
        losses, correct = _softmax_cross_entropy_(logits, labels, scale, ignore_index, label_smoothing, errors, backend)
        ctx.save_for_backward(logits)  # which is the gradient now
        ctx.mark_non_differentiable(correct)
        ctx.backend = backend
        return losses, correct

    @staticmethod
    def backward(ctx, dlosses, _):
        once_only("softmax_cross_entropy")
        dlogits = ctx.saved_tensors[0].detach()
        _softmax_cross_entropy_bwd_(dlogits, dlosses, ctx.backend)
        return dlogits, *[None] * 6


# 4. The public functions --------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None = None,
    *,
    ignore_index: int = -1,
    label_smoothing: float = 0.0,
    errors: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of each row, scale * cross-entropy of softmax(logits) and its label; and whether the row is right.

    logits           [N, V] float32, bfloat16 or float16, any float on ref; the arithmetic is float32
    labels           [N] int32 or int64
    scale            one float32 on logits' device, e.g. 1 / count; 1 when absent
    ignore_index     the label of rows that don't count: loss 0, gradient 0, not right
    label_smoothing  0 to 1: the target is 1 - label_smoothing of the label and label_smoothing / V of every class
    errors           [3] int64 zeros on triton, to be read later by raise_if_bad_labels: then nothing waits for the
                     device, and a row with a bad label counts as ignored. Without it, and on the other backends
                     always, a bad label is raised at once
    returns          losses [N] float32, NaN where a logit is NaN or +inf or all are -inf; and correct [N] bool: the
                     first largest logit is the label's, and the loss isn't NaN

    Where a gradient is wanted, it TAKES THE PLACE OF THE LOGITS, but on ref: afterwards they hold (softmax - target) *
    scale, and nobody may read them. They must be contiguous and the result of another op, such as a linear layer; an op
    that saved them for its own backward pass gets autograd's error, as does a second backward pass. Without a gradient
    they stay as they are.

    Differentiable once, in the logits. A gradient of 16 bits is rounded when it is written and again where backward
    multiplies a row, because the gradient of its loss isn't 1: with float16 put the loss scale into `scale`.
    Raises UserError for wrong arguments and for a label outside [0, V), on cpp and ref before anything is written.
    Source: torch.nn.functional.cross_entropy; BERT's reference, run_pretraining.py `get_masked_lm_output`.
    """
    op = "softmax_cross_entropy"
    check_rank(op, "logits", logits, "N V")
    N, V = logits.shape
    if V < 1:
        raise UserError(f"{op}: logits has shape {[N, V]}, expected at least one class")
    check(op, "labels", labels, (N,), INTEGERS, logits)
    check_scalar(op, "scale", scale, logits, optional=True)
    check_number(op, "label_smoothing", label_smoothing)
    if label_smoothing > 1:
        raise UserError(f"{op}: label_smoothing is {label_smoothing!r}, expected a number of 0 to 1")
    if errors is not None:
        check(op, "errors", errors, (3,), (torch.int64,), logits)
        check_contiguous(op, "errors", errors)
    name = resolve(SOFTMAX_CROSS_ENTROPY, logits, backend)
    if name == "ref":
        return softmax_cross_entropy_ref(logits, labels, scale, ignore_index, label_smoothing)
    arguments = (logits, labels, scale, ignore_index, float(label_smoothing), errors, name)
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return _softmax_cross_entropy(*arguments)
    check_contiguous(op, "logits", logits)
    base = logits._base  # of a view
    if logits.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        raise UserError(
            f"{op}: logits is a leaf that requires a gradient, or a view of one, and its memory would become the "
            "gradient; give it the result of an op, such as logits.clone()"
        )
    return SoftmaxCrossEntropy.apply(*arguments)


def raise_if_bad_labels(errors: Tensor, classes: int) -> None:
    """Waits for the device; UserError if a call that was given `errors` met a label outside [0, classes)."""
    kind, row, label = errors.tolist()
    if kind:
        raise UserError(_bad_label(row, label, classes))
