"""What every op asks of its arguments before addresses go to native code: one place, one form of message."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mlperf_fast.errors import UserError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)  # their places are csrc/common/stored_as.h's numbers
INTEGERS = (torch.int32, torch.int64)


def check(op: str, name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], like: Tensor) -> None:
    """`x` has this shape, one of these dtypes, and lies on the device of `like`; UserError otherwise."""
    if x.shape != shape:
        raise UserError(f"{op}: {name} has shape {list(x.shape)}, expected {list(shape)}")
    if x.dtype not in dtypes:
        raise UserError(f"{op}: {name} is {_short(x.dtype)}, expected {' or '.join(map(_short, dtypes))}")
    if x.device != like.device:
        raise UserError(f"{op}: {name} is on {x.device}, expected {like.device}")


def check_rank(op: str, name: str, x: Tensor, axes: str) -> None:
    """`x` has as many dimensions as `axes` names, e.g. "B T D"."""
    if x.dim() != len(axes.split()):
        raise UserError(f"{op}: {name} has shape {list(x.shape)}, expected [{', '.join(axes.split())}]")


def check_contiguous(op: str, name: str, x: Tensor) -> None:
    """For what is written in place or too large to copy. Other inputs are copied when they aren't contiguous."""
    if not x.is_contiguous():
        raise UserError(f"{op}: {name} must be contiguous, found strides {list(x.stride())} for shape {list(x.shape)}")


def check_scalar(op: str, name: str, x: Tensor | None, like: Tensor, *, optional: bool = False) -> None:
    """`x` is one float32 on the device of `like`: a tensor, so that a captured step can change its value."""
    if x is None and optional:
        return
    if not isinstance(x, Tensor):
        raise UserError(f"{op}: {name} is a {type(x).__name__}, expected a float32 tensor with one element")
    if x.numel() != 1 or x.dtype is not torch.float32:
        raise UserError(
            f"{op}: {name} has shape {list(x.shape)} and dtype {_short(x.dtype)}, "
            "expected a float32 tensor with one element"
        )
    if x.device != like.device:
        raise UserError(f"{op}: {name} is on {x.device}, expected {like.device}")


def check_number(op: str, name: str, value: float, *, below: float | None = None) -> None:
    """`value` is a number on the host of 0 or more, and less than `below` where there is such a bound."""
    if not isinstance(value, (int, float)) or not 0 <= value < (float("inf") if below is None else below):
        wanted = "0 or more" if below is None else f"0 or more and less than {below:g}"
        raise UserError(f"{op}: {name} is {value!r}, expected a number of {wanted}")


def address(x: Tensor | None) -> int:
    """Where the data lies; 0 stands for an argument that isn't there."""
    return 0 if x is None else x.data_ptr()


def native(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a native function; what it finds wrong in the data becomes a UserError, as everywhere else."""
    try:
        return function(*arguments)
    except (IndexError, ValueError) as error:
        raise UserError(str(error)) from None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
