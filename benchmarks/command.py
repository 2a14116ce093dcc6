"""The command line that all benchmarks share: options, threads, ceilings, where results go."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from mlperf_fast import _C  # tunes malloc for every competitor in this process  # noqa: F401

from . import ceilings, machine, report
from .measure import FULL, QUICK, Effort, Row
from .peer import Peer, PeerError
from .peer import command as peer_command

HERE = Path(__file__).parent
FBGEMM = (
    "not run: make a venv, `pip install fbgemm-gpu-cpu==1.9.0 'torch==2.14.*'`, pass --fbgemm-python VENV/bin/python"
)
DLRM_REPO = "not run: `git clone https://github.com/facebookresearch/dlrm`, pass --dlrm-repo DIR"


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="tiny shapes, seconds: to see that it runs")
    options.add_argument("--threads", type=positive, help="threads of every competitor; default: torch's choice")
    options.add_argument("--seconds", type=positive, help="for each row, over all competitors; default: 6")
    options.add_argument(
        "--out", type=Path, help="folder for the JSON and CSV; default: results/MACHINE, none if --quick"
    )
    return options


def add_fbgemm(options: argparse.ArgumentParser) -> None:
    options.add_argument(
        "--fbgemm-python", type=existing, help="python of a venv with fbgemm-gpu-cpu 1.9.0, torch 2.14"
    )


def add_compile(options: argparse.ArgumentParser) -> None:
    options.add_argument("--compile", action="store_true", help="measure torch.compile too (compiles for a minute)")


def add_dlrm_repo(options: argparse.ArgumentParser) -> None:
    options.add_argument("--dlrm-repo", type=dlrm_checkout, help="a checkout of facebookresearch/dlrm")


def main(stem: str, options: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], Iterator[Row]]) -> int:
    """Parses the command line, measures, prints, and writes results; returns the exit code. Bad options exit with 2."""
    chosen = options.parse_args()
    settle(chosen)
    header, before = machine.header(), machine.usage()
    limits = ceilings.measure(quick=chosen.quick)
    rows = []
    for row in measure(chosen):
        rows.append(row)
        print(f"measured {row.op} {row.shape} {row.dtype}", file=sys.stderr, flush=True)
    limits = ceilings.again(limits, rows, quick=chosen.quick)
    header["others during the run"] = machine.others(before)
    print(report.text(rows, header, limits))
    folder = results_folder(chosen)
    if folder:
        report.write(folder, stem, rows, header, limits)
        print(f"written: {folder / stem}.json and .csv")
    return 0


def settle(chosen: argparse.Namespace) -> None:
    """Sets the number of threads, for all the process."""
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.threads = torch.get_num_threads()


def results_folder(chosen: argparse.Namespace) -> Path | None:
    """--out, or the machine's own: in the checkout that this file lies in, else under ./results."""
    return chosen.out or (None if chosen.quick else results_root() / machine.name())


def results_root() -> Path:
    is_checkout = HERE.name == "benchmarks" and (HERE.parent / "pyproject.toml").is_file()
    return HERE / "results" if is_checkout else Path("results")


def effort(chosen: argparse.Namespace) -> Effort:
    if chosen.quick:
        return QUICK
    return Effort(chosen.seconds, FULL.warm_up) if chosen.seconds else FULL


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
            yield f"not run: {error}", None
        else:
            yield child, version
    finally:
        try:
            child.close()
        except subprocess.TimeoutExpired:
            child.process.kill()


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return value


def existing(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no such file: {text}")
    return Path(text)


def dlrm_checkout(text: str) -> Path:
    if not (Path(text) / "dlrm_s_pytorch.py").is_file():
        raise argparse.ArgumentTypeError(
            f"{text} is no checkout of facebookresearch/dlrm: dlrm_s_pytorch.py isn't there"
        )
    return Path(text)
