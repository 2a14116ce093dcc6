"""Compiles a Triton kernel for a GPU that needn't be there, and reads what it takes of one."""

import re
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import triton
from budgets import Row
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

OPTIONS = ("num_warps", "maxnreg", "enable_fp_fusion")
MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block


def row_of(kernel, case: str, arguments: dict, architecture: int) -> Row:
    """Compiles one case. `arguments` may name more than the kernel takes.

    Triton keeps no local arrays: all of its stack is spilled registers.
    """
    takes = {*kernel.arg_names, *OPTIONS}
    registers, stack, shared = usage(kernel, {n: v for n, v in arguments.items() if n in takes}, architecture)
    compiler = f"triton {triton.__version__}"
    return Row(kernel.__name__.strip("_"), case, architecture, compiler, registers, stack, stack, shared)


def usage(kernel, arguments: dict, architecture: int) -> tuple[int, int, int]:
    """Registers and bytes of stack a thread, bytes of shared memory a block.

    `arguments`, by name: a type such as "*fp32" or "i32" (":16" behind it: divisible by 16; pointers are), or
    a value, which is compiled in (None: an argument that is absent). Options stand among them, as in a launch.
    """
    arguments = dict(arguments)
    options = {name: arguments.pop(name) for name in OPTIONS if name in arguments}
    signature = {n: v.removesuffix(":16") if isinstance(v, str) else "constexpr" for n, v in arguments.items()}
    constants = {n: v for n, v in arguments.items() if not isinstance(v, str)}
    divisible = {
        (kernel.arg_names.index(n),): [["tt.divisibility", 16]]
        for n, v in arguments.items()
        if isinstance(v, str) and (v.startswith("*") or v.endswith(":16"))
    }
    source = ASTSource(kernel, {n: signature[n] for n in kernel.arg_names}, constants, divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    registers, stack = _resources(compiled.asm["cubin"])
    return registers, stack, compiled.metadata.shared


def _resources(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        run = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", run.stdout)
    assert found, run.stdout
    return int(found[1]), int(found[2])
