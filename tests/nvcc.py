"""Compiles the CUDA C++ kernels as the package's build does, and reads what ptxas says they take of a GPU."""

import importlib.util
import json
import os
import re
import resource
import subprocess
from pathlib import Path
from typing import NamedTuple

from budgets import ARCHITECTURES, Row

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "ptxas"
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))


def build_script():
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETUP = build_script()
NVCC: str | None = SETUP.find_nvcc()


class Compiled(NamedTuple):
    rows: list[Row]
    seconds: float  # of processor time, for all architectures


def compiled(source: Path) -> Compiled:
    """One call of nvcc; what it says is kept in build/ptxas until a source, a header or nvcc changes."""
    version = _version()
    kept = BUILD / f"{source.stem}.json"
    inputs = [source, *(ROOT / "csrc").glob("*.*h"), *(ROOT / "csrc/common").iterdir(), ROOT / "setup.py"]
    if kept.exists() and kept.stat().st_mtime > max(file.stat().st_mtime for file in inputs):
        report = json.loads(kept.read_text())
        if report["version"] == version:
            return Compiled(_rows(source, version, report["text"]), report["seconds"])
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    command = [NVCC, *SETUP.NVCC_FLAGS, *targets, "-Xptxas=-v", "-fatbin", "-o", os.devnull, source]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0, run.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    BUILD.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"version": version, "seconds": seconds, "text": run.stderr}))
    return Compiled(_rows(source, version, run.stderr), seconds)


def _version() -> str:
    text = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def _rows(source: Path, version: str, report: str) -> list[Row]:
    """From `ptxas -v`: an entry function, its stack and spills, then its registers and static shared memory."""
    names, found = [], []
    for entry in report.split("Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for 'sm_(\d+)\w?'", entry).groups()
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry
        ).groups()
        registers = re.search(r"Used (\d+) registers", entry)[1]
        shared = re.search(r"(\d+) bytes smem", entry)
        names.append(name)
        found.append(
            (
                int(architecture),
                int(registers),
                int(stack),
                max(int(stores), int(loads)),
                int(shared[1]) if shared else 0,
            )
        )
    readable = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [
        Row(_short(name), source.name, architecture, f"nvcc {version}", registers, stack, spilled, shared)
        for name, (architecture, registers, stack, spilled, shared) in zip(readable.splitlines(), found, strict=True)
    ]


def _short(name: str) -> str:
    """`f_kernel<float, 4>` of `void (anonymous namespace)::f_kernel<float, 4>(float const*)`."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name
