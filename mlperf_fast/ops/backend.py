"""Which implementation of an op runs.

An op is a name and a table of backends, best first, each with the condition under which it applies. For a call the
backend is, in this order: the `backend=` argument, `with use_backend(...)`, the run's default, the first of the table
that is installed and applies to the tensor's device and dtype. Naming one that can't run is a UserError, and nothing
else runs in its place.

    cpp      native CPU code (csrc/*.cpp), CPU tensors
    cuda     native GPU code (csrc/*.cu), CUDA tensors; CPU tensors instead when MLPERF_FAST_EMULATE was set before
             start (see _cuda: for tests)
    triton   kernels/, CUDA tensors; CPU tensors too when TRITON_INTERPRET=1 was set before start (slow: for tests)
    varlen_attn, flash_attn  attention's alone: torch's own kernels for it and the package of that name, CUDA tensors
    ref      plain PyTorch, any device: the truth that the others are tested against
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

import torch

from mlperf_fast import _cuda
from mlperf_fast.errors import UserError

LIBRARY = torch.library.Library("mlperf_fast", "DEF")
LIBRARIES = {  # backends that are another library's: its module, and how to get it
    "varlen_attn": ("torch.nn.attention.varlen", "this torch is older than 2.10, the first that has it"),
    "flash_attn": ("flash_attn", "it isn't installed; get it with `pip install flash-attn --no-build-isolation`"),
}
BACKENDS = ("cpp", "cuda", "triton", *LIBRARIES, "ref")
INTERPRETED = (
    os.environ.get("TRITON_INTERPRET") == "1"
)  # Triton reads it when a kernel is defined, so later is too late
TRITON_DEVICES = ("cuda", "cpu") if INTERPRETED else ("cuda",)
CUDA_DEVICES = ("cpu",) if _cuda.EMULATED else ("cuda",)


@dataclass(frozen=True)
class Applies:
    """The condition of one line of a backend table: device types and dtypes (None: any), and what it asks of a call.

    `asks(x, **call)` says why a call can't be taken, else None; the op hands `call` to resolve. Such a line is never
    the table's own choice, which is one for all calls: it runs where it is named.
    """

    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    asks: Callable[..., str | None] | None = None

    def fits(self, device: str, dtype: torch.dtype) -> bool:
        return (self.devices is None or device in self.devices) and (self.dtypes is None or dtype in self.dtypes)


@dataclass(frozen=True)
class Op:
    """An op's name and its backend table, best first."""

    name: str
    table: dict[str, Applies]

    def __post_init__(self) -> None:
        OPS[self.name] = self


OPS: dict[str, Op] = {}  # filled as mlperf_fast.ops is imported; choices() walks it
IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {}  # torch's name of an op -> what runs, for who looks inside
_default: str | None = None
_used: dict[str | None, str] = {}  # what `with use_backend` holds now; the key None stands for every op
_own: dict[tuple[str, str, torch.dtype], str] = {}  # (op, device type, dtype) -> the table's first that fits


def resolve(op: Op, x: torch.Tensor, backend: str | None = None, **call: Any) -> str:
    """The name of the backend that runs `op` on `x`, about a microsecond. UserError when it can't."""
    device = x.device.type
    name = backend or _wanted(op, device, x.dtype)
    applies = op.table.get(name)
    if applies is None or not applies.fits(device, x.dtype):
        raise UserError(_refusal(op, name, device, x.dtype))
    why = applies.asks(x, **call) if applies.asks else None
    if why:
        raise UserError(f"{op.name}: backend {name} can't take this call: {why}")
    return name


def chosen(op: str, device_type: str, dtype: torch.dtype = torch.float32) -> str:
    """The backend that `op` would run with on this device type and dtype, when a call names none."""
    return _wanted(OPS[op], device_type, dtype)


def choices(device_type: str | None = None) -> dict[str, str]:
    """Op -> backend for the run's log. Without a device type: CUDA where there is one, else the CPU."""
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    return {name: chosen(name, device_type) for name in sorted(OPS)}


def reasons() -> dict[str, str | None]:
    """Backend -> None where it can run on this machine, else why not and how to get it."""
    return {name: _absence(name) for name in BACKENDS}


def set_default_backend(name: str | None) -> None:
    """The run's default for every op that has this backend; the others keep their own choice. None: no default."""
    global _default
    _default = None if name is None else _present(name)


@contextmanager
def use_backend(name: str, op: str | None = None) -> Iterator[None]:
    """Within the block, in all threads: `name` for one op, or for every op that has this backend."""
    if op is not None and op not in OPS:
        raise UserError(f"use_backend: no op is called {op!r}{_nearest(op, list(OPS))}")
    if op is not None and _present(name) not in OPS[op].table:
        raise UserError(f"use_backend: {op} has no backend {name!r}; it has {', '.join(OPS[op].table)}")
    before = _used.get(op)
    _used[op] = _present(name)
    try:
        yield
    finally:
        if before is None:
            del _used[op]
        else:
            _used[op] = before


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers an op with torch and returns what to call.

    Library.define and impl cost 4 us a call; the custom_op decorator costs 68 us. `fake` gives the result's shape
    and dtype without data: with it torch.compile and graph capture can trace the op.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mlperf_fast::{name}", fake, lib=LIBRARY)
    IMPLEMENTATIONS[f"mlperf_fast::{name}"] = implementation
    return getattr(torch.ops.mlperf_fast, name).default


def traced() -> bool:
    """Whether somebody watches the ops of this thread: torch.compile, a profiler, a fake tensor's mode, a checker.

    An op that leaves torch's dispatcher out because it boxes lists slowly goes through it then.
    """
    if torch.compiler.is_compiling():  # which can't trace the other questions
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch.autograd._profiler_enabled()


def shortcut(op: Callable[..., Any], implementation: Callable[..., Any]) -> Callable[..., Any]:
    """`op`, past the dispatcher when nobody watches: 6 us a call, five times that where Python's own data has left
    the caches, as between two large products. An op with a gradient needs an autograd.Function around it then.
    """

    def call(*arguments: Any) -> Any:
        return op(*arguments) if traced() else implementation(*arguments)

    return call


def once_only(op: str) -> None:
    """What a backward pass of native code starts with: there is no second derivative to be had from it."""
    if torch.is_grad_enabled():
        raise UserError(f"{op} is differentiable once; with create_graph=True use backend='ref' (plain PyTorch)")


def _wanted(op: Op, device: str, dtype: torch.dtype) -> str:
    if op.name in _used:
        return _used[op.name]
    for name in (_used.get(None), _default):
        if name in op.table:
            return name
    own = _own.get((op.name, device, dtype))
    if own is None:
        own = next(n for n, a in op.table.items() if a.asks is None and a.fits(device, dtype) and _installed(n))
        _own[op.name, device, dtype] = own
    return own


def _installed(name: str) -> bool:
    if name == "cuda":
        return _cuda.absence is None
    module = "triton" if name == "triton" else LIBRARIES.get(name, ("torch",))[0]
    return find_spec(module) is not None


def _absence(name: str) -> str | None:
    if name == "cuda" and _cuda.absence:
        return _cuda.absence
    if not _installed(name):
        return LIBRARIES.get(name, ("", "triton is not installed; get it with `pip install 'mlperf_fast[triton]'`"))[1]
    if name == "cuda" and not (_cuda.EMULATED or torch.cuda.is_available()):
        return "no CUDA device; `make emulate` runs the tests of its kernels on the CPU"
    if name == "triton" and not (INTERPRETED or torch.cuda.is_available()):
        return "no CUDA device; to run its kernels on the CPU, slowly, set TRITON_INTERPRET=1 before start"
    if name in LIBRARIES and not torch.cuda.is_available():
        return "no CUDA device"
    return None


def _present(name: str) -> str:
    if name not in BACKENDS:
        raise UserError(f"no backend is called {name!r}{_nearest(name, BACKENDS)}")
    absence = _absence(name)
    if absence:
        raise UserError(f"backend {name} can't be used: {absence}")
    return name


def _refusal(op: Op, name: str, device: str, dtype: torch.dtype) -> str:
    if name not in BACKENDS:
        return f"{op.name}: no backend is called {name!r}{_nearest(name, BACKENDS)}"
    absence = _absence(name)
    if absence:
        return f"{op.name}: backend {name} can't be used: {absence}"
    if name not in op.table:
        return f"{op.name} has no backend {name!r}; it has {', '.join(op.table)}"
    takes = op.table[name]
    if takes.devices is not None and device not in takes.devices:
        return f"{op.name}: backend {name} takes tensors on {' or '.join(takes.devices)}, found {device}"
    dtypes = " or ".join(str(d).removeprefix("torch.") for d in takes.dtypes or ())
    return (
        f"{op.name}: backend {name} takes {dtypes}, found {str(dtype).removeprefix('torch.')}; "
        "backend='ref' (plain PyTorch) takes any"
    )


def _nearest(name: str, names: Any) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(names))}"
