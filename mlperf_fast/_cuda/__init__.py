"""The native CUDA functions: those of `_C` by name and argument order, with a stream behind (see csrc/*.h).

Importing works everywhere; `absence` says why the functions aren't there when they aren't. With MLPERF_FAST_EMULATE set
before start to a module that tests/emulated.py built, the same kernels run on the host, on CPU tensors: for tests.
"""

import importlib.util
import os
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_module_path = os.environ.get("MLPERF_FAST_EMULATE", "")
EMULATED = bool(_module_path)


def _load() -> ModuleType:
    name = "mlperf_fast._cuda.native"
    if not EMULATED:
        return importlib.import_module(name)
    loader = ExtensionFileLoader(name, _module_path)
    spec = importlib.util.spec_from_file_location(name, _module_path, loader=loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


absence: str | None = None
try:
    _native = _load()
    globals().update({name: value for name, value in vars(_native).items() if not name.startswith("_")})
except ImportError as error:
    if EMULATED:
        raise ImportError(f"MLPERF_FAST_EMULATE={_module_path}: {error}; build it with `make emulate`") from error
    absence = (
        f"the CUDA extension isn't built ({error}); build it where nvcc is: MLPERF_FAST_CUDA=1 pip install -e . in a "
        "checkout says what is missing"
    )


def __getattr__(name: str) -> Any:
    """For a name that the build doesn't hold; also tells type checkers that the native functions come at run time."""
    raise AttributeError(absence or f"mlperf_fast._cuda has no {name!r}: the build is older than the sources")


def call(function: Callable[..., Any], x: Tensor, *arguments: Any) -> Any:
    """function(*arguments, stream) on the device of `x`, on the stream that torch uses there now."""
    if EMULATED:
        return function(*arguments, 0)
    with torch.cuda.device(x.device):
        return function(*arguments, torch.cuda.current_stream().cuda_stream)
