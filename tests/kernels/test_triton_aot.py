"""Every Triton kernel, compiled for the three GPU generations on a machine that needn't have one.

Registers that don't fit spill to memory and cost the speed that a kernel is written for; a block that asks for more
shared memory than there is doesn't launch. Which constants a launch takes comes from the kernels' own tile functions.
"""

import inspect
from importlib.util import find_spec

import pytest
import torch

from mlperf_fast.ops.backend import INTERPRETED

if INTERPRETED:
    pytest.skip("TRITON_INTERPRET=1 turns the compiler off", allow_module_level=True)
if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from mlperf_fast.kernels import dot_interaction, embedding_bag, sgd
from ptxas import ARCHITECTURES, MAX_SHARED, OPTIONS, usage
from triton.runtime.jit import JITFunction

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def sized(n: int) -> str:
    return "i32:16" if n % 16 == 0 else "i32"


def dot_interaction_cases():
    # the smallest tiles, DLRM, the largest tiles with an odd length
    for T, D in ((1, 16), (26, 128), (127, 100)):
        for name, dtype in DTYPES.items():
            names = ("dense_ptr", "sparse_ptr", "dout_ptr", "out_ptr", "ddense_ptr", "dsparse_ptr")
            pointers = dict.fromkeys(names, f"*{name}")
            constants = {"T": sized(T), "D": sized(D), "UPCAST": False, **dot_interaction.tile(T, D, dtype)}
            for kernel in (dot_interaction._dot_interaction_fwd_kernel, dot_interaction._dot_interaction_bwd_kernel):
                yield f"{T}x{D}-{name}", kernel, {**pointers, **constants}


def embedding_bag_cases():
    for D in (128, 1000):
        for kind, bag_offsets in (("one-hot", None), ("multi-hot", "*i64")):
            for rule, state in (("sgd", None), ("adagrad", "*fp32")):
                floats = (
                    "weight_ptr",
                    "out_ptr",
                    "dout_ptr",
                    "partial_ptr",
                    "lr_ptr",
                    "grad_scale_ptr",
                    "found_inf_ptr",
                )
                arguments = {
                    **dict.fromkeys(floats, "*fp32"),
                    "state_ptr": state,
                    "row_offsets_ptr": "*i64",
                    "ids_ptr": "*i32",
                    "bag_offsets_ptr": bag_offsets,
                    "errors_ptr": "*i64",
                    "keys_ptr": "*i32",
                    "order_ptr": "*i64",
                    "bag_of_ptr": bag_offsets and "*i32",
                    "eps": "fp32",
                    "D": sized(D),
                    **dict.fromkeys(("bags", "T", "N", "rows"), "i32"),
                }
                for kernel in (embedding_bag._embedding_bag_sorted_kernel, embedding_bag._embedding_bag_join_kernel):
                    yield f"{D}-{kind}-{rule}", kernel, {**arguments, **embedding_bag.run_tile(D)}
            for kernel in (embedding_bag._embedding_bag_fwd_kernel, embedding_bag._embedding_bag_bwd_sgd_kernel):
                yield f"{D}-{kind}", kernel, {**arguments, **embedding_bag.bag_tile(D)}
            keys_tile = {"BAGS": embedding_bag.KEYS_BAGS, **embedding_bag.OPTIONS}
            yield f"{D}-{kind}", embedding_bag._embedding_bag_keys_kernel, {**arguments, **keys_tile}


def sgd_cases():
    for aligned in (True, False):
        pointers = {"addresses_ptr": "*i64", "sizes_ptr": "*i64", "chunks_ptr": "*i64"}
        pointers |= dict.fromkeys(("lr_ptr", "grad_scale_ptr", "found_inf_ptr"), "*fp32")
        yield f"aligned={aligned}", sgd._sgd_kernel, {**pointers, "count": "i32", "ALIGNED": aligned, **sgd.tile()}


CASES = [
    pytest.param(kernel, arguments, id=f"{kernel.__name__.strip('_')}-{name}")
    for cases in (dot_interaction_cases, embedding_bag_cases, sgd_cases)
    for name, kernel, arguments in cases()
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "arguments"), CASES)
def test_compiles_without_spills(kernel, arguments, architecture):
    takes = {*kernel.arg_names, *OPTIONS}
    found = usage(kernel, {n: v for n, v in arguments.items() if n in takes}, architecture)
    assert found.spilled == 0, found
    assert found.shared <= MAX_SHARED[architecture], found


@pytest.mark.parametrize("module", [dot_interaction, embedding_bag, sgd])
def test_every_kernel_is_compiled_above_and_says_what_it_costs(module):
    kernels = [f for name, f in vars(module).items() if isinstance(f, JITFunction) and name.endswith("_kernel")]
    compiled = {p.values[0] for p in CASES}
    assert kernels
    for kernel in kernels:
        assert kernel in compiled, f"{kernel.__name__} has no case"
        text = inspect.getdoc(kernel.fn) or ""
        assert "bytes" in text, f"{kernel.__name__} doesn't say how many bytes it moves"
        assert "flops" in text, f"{kernel.__name__} doesn't say how many flops it does"
