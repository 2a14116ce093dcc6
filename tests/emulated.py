"""Builds the CUDA kernels for the host (csrc/emulate) and runs the ops' tests with them.

    python tests/emulated.py sanitize    AddressSanitizer: reads and writes outside of tensors and of shared memory;
                                         UndefinedBehaviorSanitizer: overflow, misaligned access, bad shifts
    python tests/emulated.py race        accesses that no barrier orders, reads of unwritten shared memory

Arguments behind the kind go to pytest too, behind `tests/ops tests/loop -k cuda` (which a later -k replaces). Only
sanitize runs what tests the ops' registration with torch rather than their kernels: that is slow, and always the same.
Needs g++ only. What is built lies in build/emulate and is built again when a source or any header is newer.
"""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
CSRC, BUILD = ROOT / "csrc", ROOT / "build" / "emulate"
EMULATOR = [CSRC / "emulate/runtime.cpp", CSRC / "emulate/races.cpp"]

COMMON = ["-std=c++17", "-g", "-fPIC", "-Wall", "-Wextra", f"-I{CSRC}"]
# nvcc knows no type-based aliasing either: a pack of four floats may be read through a pointer to one.
KERNEL = ["-O1", "-fno-omit-frame-pointer", "-fno-strict-aliasing", "-x", "c++"]
# `#pragma unroll` is nvcc's; the other warning is one that sanitizers are known to set off.
KERNEL += ["-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
# Each kind's instrumentation, of kernels only. "race" takes ThreadSanitizer's calls without its library: races.cpp.
KINDS = {
    # object-size would say less of what AddressSanitizer finds.
    "sanitize": ["-fsanitize=address,undefined", "-fno-sanitize=vptr,object-size", "-fno-sanitize-recover=all"],
    "race": ["-fsanitize=thread"],
    "ucontext": [],  # none, and the other way to switch stacks (see fiber.h): for the emulator's own tests
}


def build_module(kind: str) -> Path:
    """The module `_cuda` with every csrc/*.cu, to be named in MLPERF_FAST_EMULATE."""
    module = BUILD / kind / "native.so"
    _build(kind, [CSRC / "bindings_cuda.cpp", *EMULATOR, *sorted(CSRC.glob("*.cu"))], module, ["-shared"])
    return module


def build_program(kind: str, folder: Path) -> Path:
    """A program from a folder's .cu files."""
    program = BUILD / kind / folder.name
    _build(kind, [*EMULATOR, *sorted(folder.glob("*.cu"))], program, [])
    return program


def environment(kind: str, module: Path | None = None) -> dict[str, str]:
    """Variables for a process that loads what was built."""
    variables = dict(os.environ)
    if module:
        variables["MLPERF_FAST_EMULATE"] = str(module)
    if kind == "sanitize":
        # Python keeps what it allocated until the end. libstdc++ comes first too, for torch's exceptions.
        variables["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
        if module:
            libraries = ("libasan.so", "libstdc++.so.6")
            variables["LD_PRELOAD"] = " ".join(_output("g++", f"-print-file-name={library}") for library in libraries)
        variables["UBSAN_OPTIONS"] = "print_stacktrace=1"
    return variables


def main() -> int:
    kind, *arguments = sys.argv[1:] or [""]
    if kind not in KINDS:
        print(f"usage: python tests/emulated.py {'|'.join(KINDS)} [pytest arguments]", file=sys.stderr)
        return 2
    module = build_module(kind)
    # Only Python's own output is captured: a sanitizer's report is the last that its process writes.
    chosen = "cuda" if kind == "sanitize" else "cuda and not contract and not compiles"
    command = [sys.executable, "-m", "pytest", "--capture=sys", "tests/ops", "tests/loop", "-k", chosen, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(kind, module), check=False).returncode


def _build(kind: str, sources: Sequence[Path], target: Path, link: list[str]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: _compile(kind, source), sources))
    if _older(target, objects):
        libraries = [] if kind == "race" else KINDS[kind]
        partial = target.with_suffix(f".{os.getpid()}")  # another process may be running the old one
        _run("g++", *link, "-o", partial, *objects, *libraries)
        partial.rename(target)


def _compile(kind: str, source: Path) -> Path:
    """Only kernels are instrumented, so the other objects serve every kind."""
    kernel, host, flags = source.suffix == ".cu", "host", []
    if kind == "ucontext" and source in EMULATOR:
        host, flags = "host-ucontext", ["-DEMULATE_UCONTEXT"]
    object_file = BUILD / (kind if kernel else host) / f"{source.parent.name}-{source.stem}.o"
    headers = [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), *source.parent.glob("*.h"), Path(__file__)]
    if _older(object_file, [source, *headers]):
        object_file.parent.mkdir(parents=True, exist_ok=True)
        flags += [*KERNEL, *KINDS[kind]] if kernel else ["-O2", *_python_headers()]
        partial = object_file.with_suffix(f".{os.getpid()}.o")  # several processes may build at once
        _run(*_compiler(), *COMMON, *flags, "-c", source, "-o", partial)
        if kernel:
            _move_shared(partial)
        partial.rename(object_file)
    return object_file


def _move_shared(object_file: Path) -> None:
    """__shared__ variables are static ones of functions: into a section of its own, where the emulator finds them."""
    names = re.findall(r"^\w+ [bB] (.*)", _output("nm", "--demangle", str(object_file)), re.MULTILINE)
    for name in names:
        if ")::" not in name.replace("(anonymous namespace)::", ""):
            object_file.unlink()
            raise SystemExit(f"{name}: a .cu file can't have static variables other than __shared__ ones")
    _run("objcopy", "--rename-section", ".bss=emulated_shared,alloc,load,data", object_file)


def _python_headers() -> list[str]:
    import pybind11

    return [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]


def _compiler() -> list[str]:
    return os.environ.get("CXX", "g++").split()


def _older(target: Path, sources: Sequence[Path]) -> bool:
    return not target.exists() or any(source.stat().st_mtime > target.stat().st_mtime for source in sources)


def _run(*command: object) -> None:
    subprocess.run([str(part) for part in command], check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
