"""All figures of DLRM and its ops in one run: a table of what is demanded and what was measured, and its rows.

    python -m benchmarks.figures --fbgemm-python VENV/bin/python --dlrm-repo DIR

Takes up to eight minutes; for committed results the machine must be quiet. Writes dlrm_ops.{md,json,csv} to the
machine's folder under results/. Where several forms of a competitor were measured, the fastest counts.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import (
    bench_dot_interaction,
    bench_embedding_bag,
    bench_memory,
    bench_overhead,
    bench_roc_auc,
    bench_sgd,
    ceilings,
    command,
    machine,
    report,
    steps,
)
from .bench_embedding_bag import Case as Bags
from .measure import Row

EMBEDDING = [
    *(Bags("sgd", batch, tables=tables) for tables in ("equal", "criteo") for batch in (2048, 32768)),
    Bags("sgd", 2048, hot=10),
    *(Bags("adagrad", batch) for batch in (2048, 32768)),
]
# FBGEMM's CPU kernels run on one thread however many it is given, so the ratio at equal cores is measured too.
ONE_THREAD = [Bags("sgd", 2048), Bags("sgd", 2048, hot=10), Bags("adagrad", 2048)]
TORCH_BAGS = ("torch stacked", "torch 26 bags")
PLAIN = ("plain sparse", "plain dense")


@dataclass(frozen=True)
class Figure:
    """`required`: the least ratio to the fastest of `peers`, None: only reported. `at_most`: milliseconds."""

    row: Row
    peers: tuple[str, ...]
    required: float | None = None
    at_most: float | None = None

    def fastest(self) -> str | None:
        ran = [name for name in self.peers if self.row.timing(name)]
        return min(ran, key=lambda name: self.row.timing(name).ms) if ran else None  # type: ignore[union-attr]

    def line(self, limits: dict[str, float]) -> list[str]:
        """figure, required, measured, ours ms, peer ms, cores that each kept busy, share of the machine's limit"""
        ours, peer = self.row.timing(self.row.ours), self.fastest()
        share = report.percent(self.row, self.row.ours, limits)
        limit = f"{share:.0f} % of {self.row.ceiling}" if share else ""
        name = f"{self.row.op}: {self.row.shape}, {self.row.dtype}, {self.row.threads} threads"
        if self.at_most is not None and ours:
            return [
                name,
                f"< {self.at_most:g} ms",
                f"{ours.ms:.4g} ms",
                f"{ours.ms:.4g}",
                "",
                f"{ours.cores:.1f}",
                limit,
            ]
        required = f"≥ {self.required:g}×" if self.required else "reported"
        peers = peer or " or ".join(self.peers)
        ratio = self.row.ratio(peer) if peer else None
        times = (f"{ours.ms:.4g}" if ours else "", f"{self.row.timing(peer).ms:.4g}" if peer else "")  # type: ignore[union-attr]
        busy = [timing.cores for timing in (ours, self.row.timing(peer) if peer else None) if timing]
        cores = " / ".join(f"{one:.1f}" for one in busy)
        return [f"{name}, against {peers}", required, f"{ratio:.2f}×" if ratio else "not run", *times, cores, limit]


def figures(row: Row) -> Iterator[Figure]:
    """What is demanded of a row, or reported from it."""
    if row.op.endswith("bwd+SGD"):
        yield Figure(row, TORCH_BAGS, 3.5)
        yield Figure(row, ("fbgemm",), 2.5)
    elif row.op.endswith("Adagrad"):
        yield Figure(row, ("fbgemm",), 10)
    elif row.op.startswith("embedding_bag"):
        yield Figure(row, TORCH_BAGS)
    elif row.op.startswith("dot_interaction"):
        is_demanded = row.dtype == "fp32"
        yield Figure(row, ("eager gather",), 6 if is_demanded else None)
        yield Figure(row, ("eager select",))
    elif row.op == "sgd":
        yield Figure(row, ("torch fused",), 1 if "BERT" in row.shape else 2.5)
    elif row.op == "DLRM step":
        for name in PLAIN:
            yield Figure(row, (name,), 2 if row.dtype == "fp32" else None)
        yield Figure(row, ("facebookresearch",))
        if "compile" in row.results:
            yield Figure(row, ("compile",))
    elif row.op == "roc_auc":
        yield Figure(row, ("sklearn",))
    elif row.op == "call overhead":
        yield Figure(row, (), at_most=0.005 if row.shape.startswith("raw") else None)
    elif row.op.startswith("import"):
        yield Figure(row, (), at_most=200)
    else:  # the memory rows: what the default costs
        yield Figure(row, ("default",))


def measure(chosen: argparse.Namespace) -> Iterator[Row]:
    yield from bench_overhead.measure(chosen)
    yield from bench_dot_interaction.measure(chosen, None if chosen.quick else bench_dot_interaction.CASES[:3])
    yield from bench_sgd.measure(chosen)
    yield from bench_roc_auc.measure(chosen, None if chosen.quick else bench_roc_auc.CASES[1:2])
    yield from bench_embedding_bag.measure(chosen, None if chosen.quick else EMBEDDING)
    if not chosen.quick and chosen.threads > 1:
        yield from one_thread(chosen)
    yield from steps.measure(chosen)
    yield from bench_memory.measure(chosen)


def one_thread(chosen: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(1)
    try:
        yield from bench_embedding_bag.measure(argparse.Namespace(**{**vars(chosen), "threads": 1}), ONE_THREAD)
    finally:
        torch.set_num_threads(chosen.threads)


def markdown(rows: Sequence[Row], header: dict[str, str], limits: dict[str, float]) -> str:
    table = [["figure", "required", "measured", "ours ms", "peer ms", "cores", "limit"]]
    for row in rows:
        for figure in figures(row):
            if figure.peers or figure.at_most is not None:
                table.append(figure.line(limits))
    table.insert(1, ["---"] * len(table[0]))
    lines = ["# DLRM and its ops: figures", "", *(f"- {item}: {value}" for item, value in header.items())]
    lines += [f"- limit, measured: {report.limit_text(name, limits)}" for name in limits]
    lines += ["", *("| " + " | ".join(line) + " |" for line in table), ""]
    lines += ["Ratio: the competitor's median wall time over ours, interleaved in one run. Protocol: measure.py.", ""]
    lines += [
        "Cores: CPU time over wall time, ours / the competitor. Where even ours stays well below the threads, another"
    ]
    lines += [
        "process may have held a core, and the row should be measured again. Limits are those of all threads.",
        "",
    ]
    return "\n".join([*lines, *(f"- {note}" for note in report.notes(rows)), ""])


def arguments() -> argparse.ArgumentParser:
    options = command.parser(__doc__)
    command.add_fbgemm(options)
    command.add_dlrm_repo(options)
    command.add_compile(options)
    options.set_defaults(bf16=False, whole=False, seconds=5)
    return options


def main() -> int:
    chosen = arguments().parse_args()
    command.settle(chosen)
    header, before, started, rows = machine.header(), machine.usage(), time.perf_counter(), []
    limits = ceilings.measure(quick=chosen.quick)
    for row in measure(chosen):
        rows.append(row)
        seconds = time.perf_counter() - started
        print(f"{seconds:4.0f} s  measured {row.op} {row.shape} {row.dtype}", file=sys.stderr, flush=True)
    limits = ceilings.again(limits, rows, quick=chosen.quick)
    header["others during the run"] = machine.others(before)
    header["took"] = f"{time.perf_counter() - started:.0f} s"
    text = markdown(rows, header, limits)
    print(text)
    folder: Path | None = command.results_folder(chosen)
    if folder:
        report.write(folder, "dlrm_ops", rows, header, limits)
        (folder / "dlrm_ops.md").write_text(text)
        print(f"written: {folder / 'dlrm_ops'}.md, .json and .csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
