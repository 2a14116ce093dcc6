"""What the commands of all benchmarks do: settle the options, measure, print, write, and say what didn't run."""

import argparse
import os
import subprocess
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch

from mlperf_fast import _C, _cuda, system  # _C tunes malloc for every competitor in this process  # noqa: F401
from mlperf_fast.config import nearest
from mlperf_fast.errors import UserError
from mlperf_fast.ops import backend as ops_backend

from . import ceilings, competitors, machine, options, report, roofline
from .measure import ABSENT, FULL, QUICK, Effort, Row, failure
from .peer import Peer, PeerError
from .peer import command as peer_command

FBGEMM = f"{ABSENT}{system.PACKAGES['fbgemm'][2]}; or in a venv of its own, named by --fbgemm-python VENV/bin/python"
DLRM_REPO = f"{ABSENT}`git clone https://github.com/facebookresearch/dlrm`, pass --dlrm-repo DIR"
Measure = Callable[[Namespace], Iterator[Row]]


def main(*ops: str) -> int:
    """`python -m benchmarks [OP …]`, and with `ops` a single benchmark's own command."""
    parser = argparse.ArgumentParser(prog="mlperf-fast bench", description="Measures ops against their competitors.")
    options.add_ops(parser)
    return guarded(bench, parser.parse_args([*ops, *sys.argv[1:]]))


def guarded(function: Callable[[Namespace], int], chosen: Namespace) -> int:
    """The exit code: of `function`, or 2 with the message of a UserError."""
    try:
        return function(chosen)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def bench(chosen: Namespace) -> int:
    """`mlperf-fast bench [OP …]`."""
    settle(chosen)
    return measure_all(chosen, [(op, module.measure) for op, module in wanted(chosen)])


def wanted(chosen: Namespace) -> list[tuple[str, ModuleType]]:
    """The benchmarks that are named, or all that measure something on this device. UserError with the nearest name."""
    names, known, device = chosen.ops or options.op_names(), options.op_names(), chosen.device.type
    for name in names:
        if name not in known:
            raise UserError(f"no benchmark is called {name!r}{nearest(name, known)}")
    found = [(name, import_module(f".bench_{name}", __package__)) for name in dict.fromkeys(names)]
    elsewhere = [name for name, module in found if device not in module.DEVICES]
    if elsewhere and chosen.ops:
        raise UserError(f"{', '.join(elsewhere)}: measures nothing on {device}; pass --device cpu")
    if elsewhere:
        print(f"left out, for the CPU only: {', '.join(elsewhere)}", file=sys.stderr)
    return [(name, module) for name, module in found if device in module.DEVICES]


def measure_all(chosen: Namespace, benchmarks: Sequence[tuple[str, Measure]]) -> int:
    """Measures, prints and writes one after the other; one that fails doesn't end the others. The exit code, 0 or 1."""
    header, before = machine.header(chosen.device), machine.usage()
    limits = ceilings.measure(chosen.device, quick=chosen.quick)
    print(report.header_text(header, limits))
    folder, every_row, broken = results_folder(chosen), [], []
    for stem, measure in benchmarks:
        rows, error = collect(measure(chosen))
        limits |= ceilings.again(limits, rows, chosen.device, quick=chosen.quick)
        report.show(rows, limits)
        if error:
            broken.append(f"{stem}: {failure(error)}")
        if folder and rows:
            facts = {**header, "others during the run": machine.others(before)}
            report.write(folder, stem, rows, machine.name(chosen.device), facts, limits)
            print(f"written: {folder / stem}.json and .csv")
        every_row += rows
    print("\n".join(report.notes(every_row, competitors.libraries())))
    if folder and every_row:
        stem = benchmarks[0][0] if len(benchmarks) == 1 else "roofline"
        print(roofline.write(folder / f"{stem}.svg", every_row, header, limits))
    if not folder:
        print("nothing written: --quick without --out")
    broken += report.failures(every_row)
    for line in broken:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if broken else 0


def collect(measured: Iterator[Row]) -> tuple[list[Row], Exception | None]:
    """The rows, with a line on stderr for each, and the error that ended them early."""
    rows = []
    try:
        for row in measured:
            rows.append(row)
            print(f"measured {row.op} {row.shape} {row.dtype}", file=sys.stderr, flush=True)
    except UserError:
        raise
    except Exception as error:
        traceback.print_exc()
        return rows, error
    return rows, None


def settle(chosen: Namespace) -> None:
    """Sets the number of threads, for all the process, and turns the device's name into a device."""
    if ops_backend.INTERPRETED or _cuda.EMULATED:
        raise UserError("unset TRITON_INTERPRET and MLPERF_FAST_EMULATE: kernels run on the CPU for tests tell no time")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.threads = torch.get_num_threads()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        why = system.environment()["torch"]["CUDA"].removeprefix("absent: ")
        raise UserError(f"--device cuda: there is none ({why}); leave --device out to measure the CPU")
    chosen.device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def results_folder(chosen: Namespace) -> Path | None:
    """--out, or the machine's own: in the checkout that this file lies in, else under ./results. None: write none."""
    return chosen.out or (None if chosen.quick else results_root() / machine.name(chosen.device))


def results_root() -> Path:
    is_checkout = options.FOLDER.name == "benchmarks" and (options.FOLDER.parent / "pyproject.toml").is_file()
    return Path(os.path.relpath(options.FOLDER / "results")) if is_checkout else Path("results")


def effort(chosen: Namespace) -> Effort:
    if chosen.quick:
        return QUICK
    return Effort(chosen.seconds, FULL.warm_up) if chosen.seconds else FULL


def fbgemm_python(chosen: Namespace) -> Path | str | None:
    """The interpreter that has FBGEMM: the one named, or this one."""
    return chosen.fbgemm_python or (sys.executable if find_spec("fbgemm_gpu") else None)


@contextmanager
def peer(
    python: Path | str | None, module: str, absent: str, environment: Mapping[str, str] | None = None, **case
) -> Iterator[tuple[Peer | str, str | None]]:
    """A prepared competitor in its own process and its version, or the text that says why there is none."""
    if python is None:
        yield absent, None
        return
    child = Peer(peer_command(python, module), environment)
    try:
        try:
            version = child.prepare(threads=torch.get_num_threads(), **case)
        except PeerError as error:
            yield failure(error), None
        else:
            yield child, version
    finally:
        try:
            child.close()
        except subprocess.TimeoutExpired:
            child.process.kill()
