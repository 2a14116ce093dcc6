"""Every Triton kernel, compiled for the three GPU generations on a machine that needn't have one.

Registers that don't fit spill to memory and cost the speed that a kernel is written for; a block that asks for more
shared memory than there is doesn't launch.
"""

import inspect
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules

import pytest

from mlperf_fast.ops.backend import INTERPRETED

if INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1 turns the compiler off", allow_module_level=True)
if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import budgets
from ptxas import MAX_SHARED, row_of
from triton.runtime.jit import JITFunction
from triton_cases import CASES

from mlperf_fast import kernels


@pytest.mark.parametrize("architecture", budgets.ARCHITECTURES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__.strip('_')}-{case[1]}")
def test_keeps_its_budget(case, architecture):
    row = row_of(*case, architecture)
    assert row.shared <= MAX_SHARED[architecture], row
    budgets.check(row)


def test_the_table_has_no_other_kernels():
    compiled = {(kernel.__name__.strip("_"), name) for kernel, name, _ in CASES}
    listed = {(row.kernel, row.case) for row in budgets.read().values() if row.compiler.startswith("triton")}
    assert listed <= compiled, f"not compiled any more: {listed - compiled}; `make ptxas UPDATE=1`"


MODULES = [name for _, name, _ in iter_modules(kernels.__path__) if name != "dropout"]  # which others' kernels call


@pytest.mark.parametrize("module", MODULES)
def test_every_kernel_is_compiled_above_and_says_what_it_costs(module):
    members = vars(import_module(f"{kernels.__name__}.{module}"))
    found = [f for name, f in members.items() if isinstance(f, JITFunction) and name.endswith("_kernel")]
    compiled = {kernel for kernel, _, _ in CASES}
    assert found
    for kernel in found:
        assert kernel in compiled, f"{kernel.__name__} has no case"
        text = inspect.getdoc(kernel.fn) or ""
        assert "bytes" in text, f"{kernel.__name__} doesn't say how many bytes it moves"
        assert "flops" in text, f"{kernel.__name__} doesn't say how many flops it does"
