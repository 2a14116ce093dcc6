"""The most memory that training steps had, each competitor in a process of its own.

A module that can be asked has CASES and QUICK_CASES, whose cases have a `shape()`, and `step_of(case, name, device)`,
which gives the step to call with a batch's number.
"""

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module

import torch


def memory_table(module: str, quick: bool, names: Sequence[str]) -> str:
    """Of the module called `module`: a line a case, a column for each competitor."""
    asked = import_module(module)
    lines = ["| peak memory, GiB | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for case in asked.QUICK_CASES if quick else asked.CASES:
        number = [*asked.CASES, *asked.QUICK_CASES].index(case)
        peaks = [f"{peak(module, number, name):.2f}" for name in names]
        lines.append(f"| {case.shape()} | " + " | ".join(peaks) + " |")
    return "\n".join(lines)


def peak(module: str, case: int, name: str, steps: int = 3) -> float:
    """GiB: the most that a process had resident which took a few steps, less what imports and a tiny step took."""
    arguments = [sys.executable, "-m", f"{__package__}.peak", module, str(case), name, str(steps)]
    answer = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return float(answer.stdout) / 2**20


def resident() -> int:
    """KiB: the most that this process had in memory so far."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main(module: str, number: str, name: str, steps: str) -> None:
    asked, cpu = import_module(module), torch.device("cpu")
    asked.step_of(asked.QUICK_CASES[0], name, cpu)(0)
    before = resident()
    step = asked.step_of([*asked.CASES, *asked.QUICK_CASES][int(number)], name, cpu)
    for n in range(int(steps)):
        step(n)
    print(resident() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
