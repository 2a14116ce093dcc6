"""Compiles a Triton kernel for a GPU that needn't be there, and reads what it takes of one."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

ARCHITECTURES = (80, 90, 100)  # A100, H100, B200
OPTIONS = ("num_warps", "maxnreg", "enable_fp_fusion")
MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes a block


@dataclass(frozen=True)
class Usage:
    """What one program of a compiled kernel takes."""

    registers: int  # a thread
    spilled: int  # bytes of stack a thread; Triton keeps no local arrays, so all of it is spilled registers
    shared: int  # bytes a block


def usage(kernel, arguments: dict, architecture: int) -> Usage:
    """`arguments`, by name: a type such as "*fp32" or "i32" (":16" behind it: divisible by 16; pointers are), or
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
    return Usage(registers, stack, compiled.metadata.shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        run = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", run.stdout)
    assert found, run.stdout
    return int(found[1]), int(found[2])
