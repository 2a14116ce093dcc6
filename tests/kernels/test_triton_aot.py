"""Every Triton kernel, compiled for the three GPU generations on a machine that needn't have one.

Registers that don't fit spill to memory and cost the speed that a kernel is written for; a block that asks for more
shared memory than there is doesn't launch.
"""

import inspect
from importlib.util import find_spec

import pytest

from mlperf_fast.ops.backend import INTERPRETED

if INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1 turns the compiler off", allow_module_level=True)
if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import budgets
from mlperf_fast.kernels import (
    attention,
    bias_gelu,
    dot_interaction,
    embedding_bag,
    embedding_layer_norm,
    layer_norm,
    mlp,
    sgd,
    softmax_cross_entropy,
)
from ptxas import MAX_SHARED, row_of
from triton.runtime.jit import JITFunction
from triton_cases import CASES

# All three for each would take minutes more, so each is compiled for one, in turns that no kernel falls in step with;
# `make ptxas` does all.
IN_TURNS = [(case, budgets.ARCHITECTURES[(i + i // 3) % 3]) for i, case in enumerate(CASES)]


@pytest.mark.parametrize(
    ("case", "architecture"), IN_TURNS, ids=[f"{case[0].__name__.strip('_')}-{case[1]}-{a}" for case, a in IN_TURNS]
)
def test_keeps_its_budget(case, architecture):
    row = row_of(*case, architecture)
    assert row.shared <= MAX_SHARED[architecture], row
    budgets.check(row)


def test_the_table_has_no_other_kernels():
    compiled = {(kernel.__name__.strip("_"), name) for kernel, name, _ in CASES}
    listed = {(row.kernel, row.case) for row in budgets.read().values() if row.compiler.startswith("triton")}
    assert listed <= compiled, f"not compiled any more: {listed - compiled}; `make ptxas UPDATE=1`"


MODULES = [
    attention,
    bias_gelu,
    dot_interaction,
    embedding_bag,
    embedding_layer_norm,
    layer_norm,
    mlp,
    sgd,
    softmax_cross_entropy,
]


@pytest.mark.parametrize("module", MODULES)
def test_every_kernel_is_compiled_above_and_says_what_it_costs(module):
    kernels = [f for name, f in vars(module).items() if isinstance(f, JITFunction) and name.endswith("_kernel")]
    compiled = {kernel for kernel, _, _ in CASES}
    assert kernels
    for kernel in kernels:
        assert kernel in compiled, f"{kernel.__name__} has no case"
        text = inspect.getdoc(kernel.fn) or ""
        assert "bytes" in text, f"{kernel.__name__} doesn't say how many bytes it moves"
        assert "flops" in text, f"{kernel.__name__} doesn't say how many flops it does"
