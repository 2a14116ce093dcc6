"""What embedding_bag's backends ask of a batch's bags, and the native CUDA functions on tensors.

The launchers take what those of kernels/embedding_bag.py take, so that `ops/embedding_bag.py` calls either.
"""

import torch
from torch import Tensor

from mlperf_fast import _cuda
from mlperf_fast.errors import UserError
from mlperf_fast.ops.checks import INTEGERS, address, check, check_contiguous, check_rank, native


def check_bags(
    op: str,
    weight: Tensor,
    row_offsets: Tensor,
    ids: Tensor,
    bag_offsets: Tensor | None,
    errors: Tensor | None,
) -> tuple[int, int, int]:
    """What the functions of embedding_bag share (see there); returns B, T, D."""
    check_rank(op, "weight", weight, "rows D")
    check_rank(op, "row_offsets", row_offsets, "T+1")
    check_contiguous(op, "weight", weight)
    if weight.requires_grad:
        raise UserError(
            f"{op}: weight has requires_grad=True, but a table never gets a gradient tensor: set it to False, make the "
            "output a leaf, and update with embedding_bag_sgd_ or embedding_bag_rowwise_adagrad_"
        )
    T, D = row_offsets.shape[0] - 1, weight.shape[1]
    if T < 1 or D < 1:
        raise UserError(f"{op}: {T} tables of row length {D}, expected at least one of each")
    check(op, "row_offsets", row_offsets, (T + 1,), (torch.int64,), weight)
    if bag_offsets is None:
        check_rank(op, "ids (one-hot: without bag_offsets)", ids, "B T")
        B = ids.shape[0]
        check(op, "ids", ids, (B, T), INTEGERS, weight)
    else:
        check_rank(op, "ids (multi-hot: with bag_offsets)", ids, "N")
        check_rank(op, "bag_offsets", bag_offsets, "B*T+1")
        B = (bag_offsets.shape[0] - 1) // T
        check(op, "ids", ids, ids.shape, INTEGERS, weight)
        check(op, "bag_offsets", bag_offsets, (B * T + 1,), (torch.int64,), weight)
        check_contiguous(op, "bag_offsets", bag_offsets)
    check_contiguous(op, "row_offsets", row_offsets)
    if errors is not None:
        check(op, "errors", errors, (3,), (torch.int64,), weight)
        check_contiguous(op, "errors", errors)
    return B, T, D


def check_offsets(weight: Tensor, row_offsets: Tensor, ids: Tensor, bag_offsets: Tensor | None) -> None:
    """Native CPU code knows neither buffer's length: the ends are checked here, the order of bag_offsets there."""
    offsets = row_offsets.tolist()
    if offsets[0] != 0 or offsets[-1] != weight.shape[0] or offsets != sorted(offsets):
        raise UserError(
            f"embedding_bag: row_offsets must rise from 0 to weight's {weight.shape[0]} rows, found {offsets}"
        )
    if bag_offsets is not None and (int(bag_offsets[0]), int(bag_offsets[-1])) != (0, ids.numel()):
        raise UserError(f"embedding_bag: bag_offsets must rise from 0 to the number of ids, {ids.numel()}")


def addresses(row_offsets: Tensor, ids: Tensor, bag_offsets: Tensor | None) -> tuple[int, int, bool, int]:
    """What the native functions call row_offsets, ids, ids_64 and bag_offsets (see csrc/embedding_bag.h)."""
    return row_offsets.data_ptr(), ids.data_ptr(), ids.dtype is torch.int64, address(bag_offsets)


def embedding_bag_fwd(
    weight: Tensor, row_offsets: Tensor, ids: Tensor, bag_offsets: Tensor | None, out: Tensor, errors: Tensor
) -> None:
    """weight [rows, D], ids [B, T] or [N] with bag_offsets [B T + 1] -> out [B, T, D]; errors [3] int64."""
    bags = addresses(row_offsets, ids, bag_offsets)
    sizes = (*out.shape, ids.numel(), weight.shape[0])
    _call(_cuda.embedding_bag_fwd, weight, weight.data_ptr(), *bags, out.data_ptr(), *sizes, errors.data_ptr())


def embedding_bag_bwd_sgd(weight, row_offsets, ids, bag_offsets, dout, lr, grad_scale, found_inf, errors):
    """Atomic additions of dout [B, T, D]; lr, grad_scale, found_inf one float32 each (the last two may be None)."""
    bags = addresses(row_offsets, ids, bag_offsets)
    scalars = (lr.data_ptr(), address(grad_scale), address(found_inf))
    sizes = (*dout.shape, ids.numel(), weight.shape[0])
    arguments = (weight.data_ptr(), *bags, dout.data_ptr(), *scalars, *sizes, errors.data_ptr())
    _call(_cuda.embedding_bag_bwd_sgd, weight, *arguments)


def embedding_bag_keys(row_offsets, ids, bag_offsets, keys, bag_of, rows, errors):
    """The row of each occurrence -> keys [N] int32 or int64, and its bag -> bag_of [N] int32 (one-hot: None)."""
    N, T = ids.numel(), row_offsets.numel() - 1
    B = (N if bag_offsets is None else bag_offsets.numel() - 1) // T
    bags = addresses(row_offsets, ids, bag_offsets)
    written = (keys.data_ptr(), keys.dtype is torch.int64, address(bag_of))
    _call(_cuda.embedding_bag_keys, keys, *bags, *written, B, T, N, rows, errors.data_ptr())


def embedding_bag_bwd_sorted(weight, state, keys, order, bag_of, dout, lr, eps, grad_scale, found_inf, errors):
    """SGD (state None) or row-wise Adagrad (state [rows]) from the sorted keys.

    order [N] int64 is where each key stood before the sort, bag_of [N] or None is embedding_bag_keys', as it is.
    """
    N, (rows, D) = keys.numel(), weight.shape
    parts = _cuda.embedding_bag_parts(N)
    work = (order.new_empty(parts), weight.new_empty(parts, D))
    sorted_keys = (keys.data_ptr(), keys.dtype is torch.int64, order.data_ptr(), address(bag_of))
    scalars = (lr.data_ptr(), eps, address(grad_scale), address(found_inf))
    arguments = (weight.data_ptr(), address(state), *sorted_keys, dout.data_ptr(), *map(address, work), *scalars)
    _call(_cuda.embedding_bag_bwd_sorted, weight, *arguments, D, N, rows, errors.data_ptr())


def _call(function, x: Tensor, *arguments) -> None:
    native(_cuda.call, function, x, *arguments)
