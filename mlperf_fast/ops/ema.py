"""Exponential moving averages of many tensors in one call: a = decay * a + (1 - decay) * w."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mlperf_fast.ops.backend import CUDA_DEVICES, Applies, Op, define, resolve
from mlperf_fast.ops.updates import call_native, check_update, update, write

# 1. The truth ---------------------------------------------------------------------------------------------------


def ema_ref_(averages: Sequence[Tensor], params: Sequence[Tensor], decay: Tensor, found_inf: Tensor | None) -> None:
    """Any float dtype, no host sync."""
    for average, w in zip(averages, params, strict=True):
        write(average, decay * average + (1 - decay) * w.to(average.dtype), found_inf)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

EMA = Op(
    "ema",
    {"cpp": Applies(("cpu",), (torch.float32,)), "cuda": Applies(CUDA_DEVICES, (torch.float32,)), "ref": Applies()},
)


def _ema(averages, params, decay, found_inf, backend):
    call_native("ema_", backend, {"averages": averages, "params": params}, ("params",), decay, found_inf)


# 3. Registration. No gradient: an update is not differentiated ---------------------------------------------------

_ema_op = define(
    "ema_(Tensor(a!)[] averages, Tensor[] params, Tensor decay, Tensor? found_inf, str backend) -> ()",
    _ema,
    lambda *arguments: None,
)


# 4. The public function ---------------------------------------------------------------------------------------------


def ema_(
    averages: Sequence[Tensor],
    params: Sequence[Tensor],
    decay: Tensor,
    *,
    found_inf: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """averages[i] = decay * averages[i] + (1 - decay) * params[i], in place, for all i at once.

    averages   float32 tensors (any float on ref) on one device, contiguous or channels last; none may overlap. Empty
               lists and empty tensors are fine
    params     as many of the same shapes and strides, float32, bfloat16 or float16
    decay      one float32 on their device, as is
    found_inf  other than 0: nothing is written

    Raises UserError for lists of different lengths, shapes, dtypes or devices.
    Source: the RNN-T reference (optimizers.py, apply_ema_with_decay), without bias correction.
    """
    lists = {"averages": averages, "params": params}
    if check_update("ema_", lists, {"decay": decay}, {"found_inf": found_inf}):
        arguments = (averages, params, decay, found_inf)
        update("ema_", lists, resolve(EMA, averages[0], backend), ema_ref_, _ema, _ema_op, arguments)
