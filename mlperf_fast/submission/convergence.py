"""`mlperf-fast rcp`: how a benchmark's runs stand against the reference convergence points (rcp.py).

Both methods are computed, and a submission passes if both let it pass: v2.0 was judged by the one of its deadline,
and whoever checks a package now runs the other.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from mlperf_fast.errors import UserError
from mlperf_fast.submission import folders, rcp
from mlperf_fast.submission.logs import Log, common_benchmark, read_logs
from mlperf_fast.submission.records import shown
from mlperf_fast.submission.tables import figure, printable, table
from mlperf_fast.suite import BENCHMARKS, RULESET, Benchmark

SAID = {rcp.DEADLINE: "at the deadline of v2.0", rcp.TODAY: "today's mlperf-logging"}
STRIP = 36  # characters of the drawing beside a table


@dataclass(frozen=True, slots=True)
class Convergence:
    """One benchmark's runs against the reference.

    epochs: of each run, in the benchmark's unit, None for a run that didn't converge. untested: why there is no
    verdict; `passes` then says whether that is in order. points and verdicts are by method.
    """

    folder: str
    benchmark: Benchmark | None
    division: str | None
    batch: float | None = None
    epochs: tuple[float | None, ...] = ()
    untested: str | None = None
    passes: bool = False
    points: dict[str, list[rcp.Point]] = field(default_factory=dict)
    verdicts: dict[str, rcp.Verdict] = field(default_factory=dict)
    difference: rcp.Difference | None = None  # where the points ask for a test with two sides


def against_reference(
    folder: str,
    logs: Sequence[Log],
    custom: str | os.PathLike[str] | None = None,
    *,
    bert_train_samples: bool = False,
) -> Convergence:
    """Tests the runs of one benchmark against the package's points, or those of a file, whatever the division then.

    bert_train_samples: bert's epoch_num holds epochs, train_samples what was trained until convergence. UserError for a
    file that can't be used.
    """
    benchmark = common_benchmark(logs)
    division = next((log.division for log in logs if log.division), None)
    if benchmark is None:
        return Convergence(folder, None, division, untested="the logs name no benchmark of v2.0")
    if custom is None and benchmark.name == "minigo":
        return Convergence(folder, benchmark, division, untested="v2.0 has no points for minigo", passes=True)
    if custom is None and division != "closed":
        said = f"division {printable(division)}" if division else "no division"
        why = f"{said}: only closed is tested against the reference"
        return Convergence(folder, benchmark, division, untested=why, passes=division == "open")
    batches = sorted({log.batch for log in logs if log.batch is not None})
    if len(batches) != 1 or batches[0] <= 0:
        what = f"several batch sizes ({', '.join(f'{b:g}' for b in batches)})" if batches else "no global_batch_size"
        return Convergence(folder, benchmark, division, untested=f"the logs hold {what}: nothing to compare with")
    references = rcp.table_from_file(custom, benchmark) if custom else rcp.table(benchmark)
    in_train_samples = bert_train_samples and benchmark.name == "bert"
    epochs = tuple(
        None if log.outcome != "success" else log.train_samples if in_train_samples else log.converged_at
        for log in logs
    )
    points = {method: rcp.points(references, benchmark, method) for method in rcp.METHODS}
    verdicts = {method: rcp.judge(epochs, batches[0], points[method], benchmark, method) for method in rcp.METHODS}
    own = next((one for one in references if one.two_sided and one.batch == batches[0]), None)
    difference = rcp.difference(epochs, own.epochs) if own else None
    passes = all(verdict.passes for verdict in verdicts.values()) and (difference is None or difference.passes)
    return Convergence(folder, benchmark, division, batches[0], epochs, None, passes, points, verdicts, difference)


# --- the command ----------------------------------------------------------------------------------------------------


def main(
    paths: Sequence[str],
    workload: str | None = None,
    custom: str | os.PathLike[str] | None = None,
    as_json: bool = False,
    bert_train_samples: bool = False,
) -> int:
    """Prints the verdicts on the benchmarks at the paths, or the table of a workload's points.

    Exit code: 0 if all pass (or needn't be tested), else 1. UserError for wrong usage.
    """
    if (workload is None) == (not paths):
        raise UserError("name folders of result logs, or one benchmark with --table")
    if workload is not None:
        print(_table_text(_named(workload), custom, as_json))
        return 0
    found = [folder for path in paths for folder in folders.find_all(path)]
    logs = {log.path: log for log in read_logs([path for folder in found for path in folder.logs])}
    tested = [
        against_reference(
            folder.path, [logs[path] for path in folder.logs], custom, bert_train_samples=bert_train_samples
        )
        for folder in found
    ]
    if as_json:
        print(json.dumps({"ruleset": RULESET, "convergence": [_plain(one) for one in tested]}, indent=1))
    else:
        print("\n\n".join(text(one) for one in tested))
    return 0 if all(one.passes for one in tested) else 1


def _named(workload: str) -> Benchmark:
    for benchmark in BENCHMARKS.values():
        if workload in (benchmark.name, benchmark.log_name):
            return benchmark
    raise UserError(f"benchmark is {workload!r}; expected one of {', '.join(BENCHMARKS)}")


def _plain(one: Convergence) -> dict[str, object]:
    benchmark = one.benchmark.log_name if one.benchmark else None
    return {
        **asdict(one),
        "benchmark": benchmark,
        "points": {m: [asdict(p) for p in ps] for m, ps in one.points.items()},
    }


def text(one: Convergence) -> str:
    """One benchmark's verdict for a person: the runs, the reference curve with them in it, and what follows."""
    name = one.benchmark.log_name if one.benchmark else "?"
    head = f"{printable(one.folder)}: {printable(one.division or '?')} {name}"
    if one.benchmark is None or one.batch is None:
        return f"{head}: {'not tested' if one.passes else 'FAILS'}: {one.untested}"
    verdict = one.verdicts[rcp.DEADLINE]
    epochs = " ".join("none" if e is None else f"{e:,.0f}" if e == int(e) else f"{e:g}" for e in one.epochs)
    lines = [
        f"{head}, batch {one.batch:,g}: {'passes' if one.passes else 'FAILS'}",
        f"{unit(one.benchmark)} of each run: {epochs}",
        f"mean without {_dropped(one.benchmark)}: {amount(verdict.mean, one.benchmark)}",
        "",
        _curve(one.benchmark, one.points, (one.batch, verdict.mean) if verdict.mean is not None else None),
        "",
    ]
    lines += [f"{SAID[method]}: {sentence(one.verdicts[method], one.benchmark)}" for method in rcp.METHODS]
    if one.difference:
        lines.append(f"two-sided, all runs: {two_sided(one.difference, one.benchmark)}")
    if one.verdicts[rcp.TODAY].factor > 1 and one.verdicts[rcp.TODAY].passes:
        lines.append(
            f"today's checkers would multiply the score by {one.verdicts[rcp.TODAY].factor:.4f}, a rule of later rounds"
        )
    return "\n".join(lines)


def unit(benchmark: Benchmark) -> str:
    """What a benchmark's convergence is counted in."""
    return "samples" if benchmark.name == "bert" else "epochs"


def amount(value: float | None, benchmark: Benchmark) -> str:
    """So many of them, with the digits that matter."""
    return figure(value, {"bert": 0, "dlrm": 3}.get(benchmark.name, 2))


def _dropped(benchmark: Benchmark) -> str:
    return "the 4 smallest and largest" if benchmark.dropped == 4 else "the smallest and the largest"


def sentence(verdict: rcp.Verdict, benchmark: Benchmark) -> str:
    """A verdict in words: what was asked for, and what follows."""
    point = verdict.point
    if point is None:
        return f"fails: {verdict.said}"
    where = point.name if point.runs is None else f"at batch {point.batch:g}"
    asked = f"at least {amount(point.least, benchmark)}; the reference has {amount(point.mean, benchmark)} {where}"
    if verdict.missing is not None:
        return f"fails: needs a new RCP at batch {verdict.missing:g} ({asked})"
    return f"{'passes' if verdict.passes else 'fails'}: {verdict.said} ({asked})"


def two_sided(found: rcp.Difference, benchmark: Benchmark) -> str:
    """The two-sided test in words."""
    if found.passes:
        said = "passes: neither faster nor slower"
    else:
        faster = found.mean is not None and found.mean < found.reference
        said = f"fails: {'faster' if faster else 'slower'} than the reference"
    mean = amount(found.mean, benchmark) if found.mean is not None else "a run that didn't converge"
    trained = found.reference - (benchmark.name == "dlrm")  # whose epoch_num is 1 + the part of the epoch
    return (
        f"{said} (p = {found.p:.3g}, at least {rcp.ALPHA} is asked; mean {mean}, the reference "
        f"{amount(found.reference, benchmark)}; a shift by {amount(found.resolution, benchmark)}, "
        f"{found.resolution / trained:.0%} of the training, would be found in four of five cases)"
    )


def _curve(
    benchmark: Benchmark, points: dict[str, list[rcp.Point]], submission: tuple[float, float] | None = None
) -> str:
    """The reference by batch size, with the submission in its place: figures of both methods, and a drawing."""
    then, now = points[rcp.DEADLINE], points[rcp.TODAY]
    values = [v for p in then for v in (p.least, p.mean)] + ([submission[1]] if submission else [])
    low, high = min(values), max(v for v in values if v < rcp.NEVER / 100)
    scale = (STRIP - 1) / ((high - low) or 1)

    def strip(marks: Sequence[tuple[float, str]]) -> str:
        cells = [" "] * STRIP
        for value, mark in marks:
            cells[min(STRIP - 1, round((value - low) * scale))] = mark
        return "".join(cells).rstrip()

    rows = []
    for point, today in zip(then, now, strict=True):
        drawn = strip([(point.least, "["), (point.mean, "o")])
        rows.append((point.batch, _row(point, today, benchmark, drawn)))
    if submission:
        drawn = strip([(submission[1], "#")])
        cells = (f"> {submission[0]:,g}", "", amount(submission[1], benchmark), "", "", "", "", drawn)
        rows.append((submission[0] + 0.5, cells))
    rows.sort(key=lambda row: row[0])
    columns = (
        "batch",
        "runs",
        "mean",
        "least",
        "used",
        "least today",
        "used",
        "[ least  o mean" + "  # submission" * bool(submission),
    )
    return table(columns, [cells for _, cells in rows], left=0, text_last=True)


def _row(point: rcp.Point, today: rcp.Point, benchmark: Benchmark, drawn: str) -> tuple[str, ...]:
    return (
        f"{point.batch:,g}", str(point.runs), amount(point.mean, benchmark), amount(point.least, benchmark),
        "yes" if point.kept else "no", amount(today.least, benchmark), "yes" if today.kept else "no", drawn,
    )  # fmt: skip


def _table_text(benchmark: Benchmark, custom: str | os.PathLike[str] | None, as_json: bool) -> str:
    references = rcp.table_from_file(custom, benchmark) if custom else rcp.table(benchmark)
    points = {method: rcp.points(references, benchmark, method) for method in rcp.METHODS}
    if as_json:
        return json.dumps(
            {
                "ruleset": RULESET,
                "benchmark": benchmark.log_name,
                "references": [asdict(reference) for reference in references],
                "points": {method: [asdict(point) for point in found] for method, found in points.items()},
            },
            indent=1,
        )
    few = [reference for reference in references if len(reference.epochs) < 2 * benchmark.runs]
    lines = [
        f"{benchmark.log_name}: {unit(benchmark)} that the reference needed, mean without {_dropped(benchmark)};",
        f"least: the smallest mean of a submission's {benchmark.runs} runs that passes at that batch size",
        "",
        _curve(benchmark, points),
    ]
    lines += [
        f"{shown(reference.name)} has {len(reference.epochs)} runs; the rules want {2 * benchmark.runs}"
        for reference in few
    ]
    return "\n".join(lines)
