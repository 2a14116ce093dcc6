"""What is demanded and what was measured, in one table: DLRM's, BERT's and ResNet's ops and steps, Minigo, optimizers.

    python -m benchmarks.figures dlrm_ops --fbgemm-python VENV/bin/python --dlrm-repo DIR
    python -m benchmarks.figures bert_ops
    python -m benchmarks.figures resnet_ops
    python -m benchmarks.figures minigo
    python -m benchmarks.figures optimizers

Takes up to fifteen minutes; for results to keep the machine must be quiet. Writes SET.{md,json,csv,svg} to the folder
that `mlperf-fast bench` writes to. Where several forms of a competitor were measured, the fastest counts. The demands
are on a CPU.
"""

import argparse
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from types import ModuleType

from mlperf_fast.config import nearest
from mlperf_fast.errors import UserError

from . import (
    ceilings,
    command,
    demands,
    figures_bert,
    figures_dlrm,
    figures_minigo,
    figures_optimizers,
    figures_resnet,
    machine,
    options,
    report,
    roofline,
)
from .measure import Row

SETS: dict[str, ModuleType] = {
    "dlrm_ops": figures_dlrm,
    "bert_ops": figures_bert,
    "resnet_ops": figures_resnet,
    "minigo": figures_minigo,
    "optimizers": figures_optimizers,
}
EXPLANATION = """
Ratio: the competitor's median wall time over ours, interleaved in one run. Protocol: measure.py.

Cores: CPU time over wall time, ours / the competitor. Where even ours stays well below the threads, another
process may have held a core, and the row should be measured again. Limits are those of all threads.
"""


def markdown(chapter: ModuleType, rows: Sequence[Row], header: Mapping[str, str], limits: Mapping[str, float]) -> str:
    lines = [f"# {chapter.TITLE}: figures", "", *(f"- {item}: {value}" for item, value in header.items())]
    lines += [f"- limit, measured: {report.limit_text(name, limits)}" for name in limits]
    table = [demand.line(limits) for row in rows for demand in chapter.demands(row)]
    lines += ["", *("| " + " | ".join(line) + " |" for line in [demands.TITLES, ["---"] * len(demands.TITLES), *table])]
    return "\n".join([*lines, EXPLANATION, *(f"- {note}" for note in report.reasons(rows)), ""])


def measure_set(chosen: Namespace, stem: str, limits: dict[str, float]) -> list[str]:
    """Measures one set, prints and writes it; returns what failed."""
    chapter, started = SETS[stem], time.perf_counter()
    header, before = machine.header(chosen.device), machine.usage()
    rows, error = command.collect(chapter.measure(chosen))
    limits = limits | ceilings.again(limits, rows, chosen.device, quick=chosen.quick)
    header["others during the run"] = machine.others(before)
    header["took"] = f"{time.perf_counter() - started:.0f} s"
    text = markdown(chapter, rows, header, limits)
    print(text)
    folder = command.results_folder(chosen)
    if folder:
        report.write(folder, stem, rows, machine.name(chosen.device), header, limits)
        (folder / f"{stem}.md").write_text(text, encoding="utf-8")
        print(f"written: {folder / stem}.md, .json and .csv")
        print(roofline.write(folder / f"{stem}.svg", rows, header, limits))
    return [*([command.failure(error)] if error else []), *report.failures(rows)]


def run(chosen: Namespace) -> int:
    for name in chosen.sets:
        if name not in SETS:
            raise UserError(f"no set of figures is called {name!r}{nearest(name, SETS)}")
    if chosen.device == "cuda":
        raise UserError("--device cuda: the demands are on a CPU; `mlperf-fast bench` measures a GPU")
    command.settle(chosen)
    limits = ceilings.measure(chosen.device, quick=chosen.quick)
    broken = [line for stem in chosen.sets or SETS for line in measure_set(chosen, stem, limits)]
    for line in broken:
        print(f"figures: {line}", file=sys.stderr)
    return 1 if broken else 0


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; default: all")
    options.add_to(parser)
    options.add_fbgemm(parser)
    options.add_dlrm_repo(parser)
    parser.set_defaults(device="cpu", data=None, bf16=False, whole=False, seconds=5)
    return parser


if __name__ == "__main__":
    sys.exit(command.guarded(run, arguments().parse_args()))
