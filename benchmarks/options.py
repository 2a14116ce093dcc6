"""The options of `mlperf-fast bench` and of every benchmark's own command. Imports no torch: `--help` needs none."""

import argparse
from pathlib import Path

FOLDER = Path(__file__).parent
EXAMPLES = """
what is measured:
{ops}

examples:
  mlperf-fast bench                                everything: half an hour, for figures that you will keep
  mlperf-fast bench sgd dot_interaction            two of them
  mlperf-fast bench --quick                        tiny shapes, seconds: does it run?
  mlperf-fast bench embedding_bag --threads 1      every competitor on one thread
  mlperf-fast bench sgd --device cuda --out here   on the GPU; results in ./here
  python -m benchmarks.compare before here         what became faster, what slower, what is noise

Each backend of an op and each competitor that is installed is measured in the same run, in turns; what is absent is
named at the end with how to get it. Writes OP.json, OP.csv and the picture roofline.svg (OP.svg for a single op).
Exit codes: 0 measured, 1 a benchmark, a backend or a competitor failed, 2 a bad option.
"""


def op_names() -> list[str]:
    """What can be measured: the files bench_OP.py beside this one."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def add_ops(parser: argparse.ArgumentParser) -> None:
    """`mlperf-fast bench [OP …]`: the names, and a help that says what each is."""
    parser.add_argument("ops", nargs="*", metavar="OP", help="what to measure; default: all")
    add_to(parser)
    add_fbgemm(parser)
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="data: a data set that `mlperf-fast prepare resnet` made"
    )
    parser.add_argument("--whole", action="store_true", help="roc_auc: all 89 million scores of DLRM's test set too")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES.format(ops="\n".join(f"  {name:<16} {first_line(name)}" for name in op_names()))


def first_line(op: str) -> str:
    """Of the benchmark's docstring, without the op's name."""
    with open(FOLDER / f"bench_{op}.py", encoding="utf-8") as lines:
        return lines.readline().strip('" \n').removeprefix(f"{op}: ").rstrip(".")


def add_to(parser: argparse.ArgumentParser) -> None:
    """What every benchmark takes."""
    parser.add_argument("--quick", action="store_true", help="tiny shapes, seconds; writes nothing without --out")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--threads", type=positive, metavar="N", help="of every competitor; default: torch's choice")
    parser.add_argument("--seconds", type=positive, metavar="N", help="for each row, all competitors; default: 6")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it compiles for a minute")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: benchmarks/results/MACHINE, or ./results/MACHINE if installed"
    )


def add_fbgemm(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fbgemm-python", type=existing, metavar="PYTHON", help="of a venv with FBGEMM, where it isn't installed here"
    )


def add_dlrm_repo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dlrm-repo", type=dlrm_checkout, metavar="DIR", help="a checkout of facebookresearch/dlrm")


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
