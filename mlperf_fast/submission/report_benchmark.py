"""The report's part on one benchmark of one system: key figures, verdicts, pictures, findings, every run in figures."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from mlperf_fast.submission import convergence, rcp, report_figures, report_game
from mlperf_fast.submission.advice import advice
from mlperf_fast.submission.check import MOST_SHOWN
from mlperf_fast.submission.logs import Log
from mlperf_fast.submission.records import Finding
from mlperf_fast.submission.report_figures import Band, Run, epoch_unit, number
from mlperf_fast.submission.report_html import Html, badge, counted, element, pictured, table
from mlperf_fast.submission.report_results import Result
from mlperf_fast.submission.score import samples
from mlperf_fast.submission.tables import figure
from mlperf_fast.suite import Benchmark

NOT_LOGGED = "not logged"
_SEVERITIES = {"error": ("bad", "error"), "dropped": ("warn", "in a run that may fail"), "warning": ("warn", "warning")}
_STATES = {"counted": "in the mean", "dropped": "left out of the mean", "failed": "failed"}
_MOST_SPOKEN = 50  # runs that a picture's description names; the table has all


def section(one: Result, anchor: str) -> Html:
    """All of it. anchor: the id of its heading."""
    runs = report_figures.runs(one.logs, one.counted)
    heading = element("h3", f"{one.system} ", badge(one.passes), id=anchor)
    return element(
        "section",
        heading,
        element("p", f"{_facts(one)}; ", element("code", one.folder.path), class_="quiet"),
        element("dl", *_key_figures(one), class_="tiles"),
        element("ul", *_verdicts(one), class_="verdicts"),
        *(_pictures(one, one.benchmark, runs, anchor) if one.benchmark else ()),
        *findings(one.verdict.findings, one.folder.path),
        element("details", element("summary", f"All {counted(len(runs), 'run')} in figures"), _run_table(one, runs)),
        aria_labelledby=anchor,
    )


def said(logs: Sequence[Log], field: str) -> list[str]:
    """What the logs say in a text field, each once."""
    return list(dict.fromkeys(value for log in logs if (value := getattr(log, field))))


def _facts(one: Result) -> str:
    sizes = sorted({log.batch for log in one.logs if log.batch is not None})
    batch = " and ".join(f"{size:,g}" for size in sizes[:4]) or NOT_LOGGED
    platforms = said(one.logs, "platform")[:2]
    accelerators = [counted(one.score.accelerators, "accelerator")] if one.score.accelerators else []
    division = f"division {one.score.division}" if one.score.division else "no division"
    return ", ".join([division, *platforms, *accelerators, f"global batch size {batch}"])


def _key_figures(one: Result) -> Iterator[Html]:
    s, bench = one.score, one.benchmark
    waits = [log.phases.data_wait for log in one.logs if log.phases.data_wait is not None]
    span = "-" if s.fastest is None else f"{_minutes(s.fastest)}–{_minutes(s.slowest)}"
    for label, value in (
        ("Score, minutes", figure(s.minutes, 3)),
        ("Fastest to slowest", span),
        ("Spread", "-" if s.spread is None else f"{s.spread:.2%}"),
        ("Samples to target" if bench and bench.name == "bert" else "Epochs to target",
         convergence.amount(s.epochs, bench) if bench else "-"),
        ("Samples/s", speed(s.samples_per_second)),
        ("Per accelerator", speed(s.samples_per_second_per_accelerator)),
        ("Waiting for data", f"{sum(waits) / len(waits):.1%}" if waits else NOT_LOGGED),
    ):  # fmt: skip
        yield element("div", element("dt", label), element("dd", "–" if value == "-" else value))


def _minutes(value: float | None) -> str:
    return figure(value, 3 if value is not None and value < 10 else 2 if value is not None and value < 100 else 1)


def speed(value: float | None) -> str:
    """Samples/s with the digits that matter."""
    return figure(value, 0 if value and value >= 100 else 2)


# --- verdicts -------------------------------------------------------------------------------------------------------


def _verdicts(one: Result) -> Iterator[Html]:
    """Of check, of rcp by both methods, and of score."""
    counts = {severity: sum(f.severity == severity for f in one.verdict.findings) for severity in _SEVERITIES}
    found = [counted(counts["error"], "error"), counted(counts["warning"], "warning")]
    found += [f"{counts['dropped']:,} in runs that may fail"] if counts["dropped"] else []
    yield _verdict("Check", badge(one.verdict.passes), ", ".join(found))
    tested = one.convergence
    if tested.untested:
        mark = element("span", "not tested", class_="badge none") if tested.passes else badge(False)
        yield _verdict("Convergence", mark, tested.untested)
    elif tested.benchmark:
        for method in rcp.METHODS:
            verdict = tested.verdicts[method]
            mean = convergence.amount(verdict.mean, tested.benchmark)
            had = "" if verdict.mean is None else f"mean {mean} {convergence.unit(tested.benchmark)}; "
            text = f"{convergence.SAID[method]}: {had}{convergence.sentence(verdict, tested.benchmark)}"
            yield _verdict("Convergence", badge(verdict.passes), text)
    scored = f"{figure(one.score.minutes, 3)} minutes, the mean of {counted(len(one.counted), 'run')}"
    yield _verdict("Score", badge(one.score.valid), "; ".join(one.score.notes) or scored)


def _verdict(what: str, mark: Html, text: str) -> Html:
    return element("li", element("span", mark), element("p", element("strong", what), ": ", text))


def findings(found: Sequence[Finding], folder: str) -> Iterator[Html]:
    """By rule, errors first: what and where, whose rule it is, what to do."""
    order = list(_SEVERITIES)
    groups: dict[tuple[int, str], list[Finding]] = defaultdict(list)
    for finding in found:
        groups[order.index(finding.severity), finding.rule].append(finding)
    if groups:
        yield element("h4", "Findings")
    for (severity, rule), same in sorted(groups.items()):
        look, word = _SEVERITIES[order[severity]]
        times = f" ({len(same):,})" if len(same) > 1 else ""
        mark = element("span", word, class_=f"badge {look}")
        items = [element("li", element("code", _place(f, folder)), " ", f.message) for f in same[:MOST_SHOWN]]
        if len(same) > MOST_SHOWN:
            items.append(element("li", f"and {len(same) - MOST_SHOWN:,} more: mlperf-fast check --json has all"))
        sources = "; ".join(sorted({finding.source for finding in same}))
        yield element(
            "details",
            element("summary", mark, " ", element("code", rule), f"{times}: {advice(rule)}"),
            element("ul", *items),
            element("p", f"Rule: {sources}", class_="quiet"),
            open=order[severity] == "error",
        )


def _place(finding: Finding, folder: str) -> str:
    """The file as seen from the folder, and the line."""
    name = os.path.relpath(finding.file or folder, folder)
    name = os.path.basename(os.path.abspath(folder)) if name == "." else name
    return name if finding.line is None else f"{name}:{finding.line}"


# --- pictures -------------------------------------------------------------------------------------------------------


def _pictures(one: Result, bench: Benchmark, runs: Sequence[Run], anchor: str) -> Iterator[Html]:
    curves = list(_curves(one, bench, runs, anchor))
    yield element("h4", "Convergence")
    if curves:
        yield element("div", *curves, class_="pictures")
    else:
        yield element("p", "The logs hold no evaluation that can be drawn.")
    dots = list(_dots(one, bench, runs, anchor))
    if dots:
        yield element("h4", "Time to train, and what makes it")
        yield element("div", *dots, class_="pictures narrow")
    scale, unit = report_figures.time_unit(runs)
    spoken = _spoken(runs, [_parts(run.log, scale) for run in runs])
    drawn = report_figures.phases(f"{anchor}-phases", f"Where the time of each run goes, in {unit}. {spoken}", runs)
    if drawn:
        yield element("h4", "Where the time goes")
        caption = "Initialization, off the clock, stands left of run_start."
        beside = element("div", _means(runs, scale, unit), _wait(runs, anchor), class_="beside")
        picture = pictured(f"{unit[0].upper()}{unit[1:]} of each run", caption, drawn)
        yield element("div", picture, beside, class_="pictures")
    yield from report_game.pictures(runs, anchor)


def _wait(runs: Sequence[Run], anchor: str) -> Html | None:
    """The runs' waits for data, if any log tells."""
    waits = [None if run.log.phases.data_wait is None else 100 * run.log.phases.data_wait for run in runs]
    label = f"Waiting for data, % of training time. {_spoken(runs, [number(value) for value in waits])}"
    drawn = report_figures.dots(f"{anchor}-wait", label, runs, waits, "% of training time", None, "")
    return pictured("Waiting for data", "As logged.", drawn) if drawn else None


def _means(runs: Sequence[Run], scale: float, unit: str) -> Html:
    """The parts' means over the runs in the score, or over all if there is none, and their share of the run."""
    counted_runs = [run for run in runs if run.state == "counted"] or runs
    parts = [run.log.phases for run in counted_runs if run.log.phases.rest is not None]
    total = sum((p.first or 0) + (p.evaluation or 0) + (p.rest or 0) for p in parts)
    evaluated = any(p.evaluation is not None for p in parts)
    rows: list[list[str | Html]] = []
    for name, values in (
        ("Initialization", [p.init for p in parts]),
        ("First epoch or block", [p.first for p in parts]),
        ("Evaluation", [p.evaluation for p in parts]),
        ("Training" if evaluated else "Training and evaluation", [p.rest for p in parts]),
    ):
        known = [value for value in values if value is not None]
        mean = figure(scale * sum(known) / len(known), 2) if known else NOT_LOGGED
        share = f"{sum(known) / total:.1%}" if known and total > 0 else "–"
        rows.append([name, mean, "off the clock" if name == "Initialization" else share])
    of = "the runs in the score" if counted_runs is not runs else "all runs"
    return table(f"Mean over {of}", ("Part", unit, "share of the run"), rows, 1)


def _curves(one: Result, bench: Benchmark, runs: Sequence[Run], anchor: str) -> Iterator[Html]:
    """Of each metric the whole curve, and the stretch near the target."""
    verdict = one.convergence.verdicts.get(rcp.DEADLINE)
    band = None
    if verdict and verdict.point and verdict.missing is None:
        band = report_figures.reference_band(verdict.point.least, verdict.point.mean)
    scale, unit = epoch_unit(bench)
    for metric, closed_target in bench.target.items():
        target = closed_target if one.score.division == "closed" else _logged_target(one.logs)
        what = metric if len(bench.target) > 1 else _metric(bench)
        for near in (False, True):
            text = f"{what} over {unit}, {counted(len(runs), 'run')}{', near the target' if near else ''}"
            text += f". Target {target:g}" if target is not None else ". The target isn't logged"
            if band:
                text += f". The reference: least {number(band.least / scale)}, mean {number(band.mean / scale)}"
            if one.score.epochs is not None:
                text += f". Mean of these runs: {number(one.score.epochs / scale)}"
            name = f"{anchor}-{metric}-{'near' if near else 'whole'}"
            drawn = report_figures.convergence(
                name, text, runs, bench, metric, target, band, one.score.epochs, near=near
            )
            if drawn:
                caption = _near_caption(runs) if near else _curve_caption(one, target, band)
                if not near and report_figures.logarithmic(runs, bench, metric):
                    caption += " Logarithmic."
                yield pictured(f"{what}, {'near the target' if near else 'whole run'}", caption, drawn)


def _curve_caption(one: Result, target: float | None, band: Band | None) -> str:
    said = "One line a run." if target is not None else "One line a run. The target isn't logged."
    said += " Shaded: the reference, least to mean." if band else ""
    return f"{said} ▲ mean here." if one.score.epochs is not None else said


def _near_caption(runs: Sequence[Run]) -> str:
    if len(runs) <= report_figures.MANY:
        return "Runs are named where they end."
    return "Named, and hollow: runs that the mean leaves out."


def _metric(bench: Benchmark) -> str:
    name = bench.metric.partition(",")[0]
    return f"{name[0].upper()}{name[1:]}"


def _logged_target(logs: Sequence[Log]) -> float | None:
    """What all logs say that they trained for: in the open division it is the submitter's own."""
    targets = {log.target for log in logs if log.target is not None}
    return targets.pop() if len(targets) == 1 else None


def _dots(one: Result, bench: Benchmark, runs: Sequence[Run], anchor: str) -> Iterator[Html]:
    """Time, and the two factors of it."""
    s, (scale, unit) = one.score, epoch_unit(bench)
    logs = [run.log if run.log.converged else None for run in runs]
    minutes = [log.minutes if log else None for log in logs]
    epochs = [log.converged_at / scale if log and log.converged_at is not None else None for log in logs]
    speeds = [_samples_per_second(log, bench) if log else None for log in logs]
    mean_epochs = None if s.epochs is None else s.epochs / scale
    for name, title, caption, values, of, mean, text in (
        ("minutes", "Time to train", "Hollow: left out of the mean by rule.", minutes, "minutes", s.minutes,
         f"score {figure(s.minutes, 3)}"),
        ("epochs", "Training it took", "Chance and hyperparameters.", epochs, unit, mean_epochs,
         f"mean {number(mean_epochs)}"),
        ("speed", "Throughput", "The system, evaluations included.", speeds, "samples/s", s.samples_per_second,
         f"mean {speed(s.samples_per_second)}"),
    ):  # fmt: skip
        label = f"{title} in {of}. {_spoken(runs, [number(value) for value in values])}"
        drawn = report_figures.dots(f"{anchor}-{name}", label, runs, values, of, mean, text)
        if drawn:
            yield pictured(title, caption, drawn)


def _samples_per_second(log: Log, bench: Benchmark) -> float | None:
    trained = samples(log, bench)
    return trained / (log.minutes * 60) if trained is not None and log.minutes and log.minutes > 0 else None


def _spoken(runs: Sequence[Run], texts: Sequence[str]) -> str:
    """What a picture shows, for who can't see it."""
    pairs = list(zip(runs, texts, strict=True))[:_MOST_SPOKEN]
    more = f"; and {len(runs) - _MOST_SPOKEN} more" if len(runs) > _MOST_SPOKEN else ""
    return "; ".join(f"run {run.name}: {text}" for run, text in pairs) + more


def _parts(log: Log, scale: float) -> str:
    p = log.phases
    named = (("initialization", p.init), ("first epoch or block", p.first), ("evaluation", p.evaluation))
    parts = [
        f"{name} {NOT_LOGGED if value is None else figure(value, 2)}" for name, value in (*named, ("rest", p.rest))
    ]
    return ", ".join(parts)


def _run_table(one: Result, runs: Sequence[Run]) -> Html:
    rows: list[list[str | Html]] = []
    for run in runs:
        log, p = run.log, run.log.phases
        rate = _samples_per_second(log, one.benchmark) if one.benchmark and log.converged else None
        wait = NOT_LOGGED if p.data_wait is None else f"{p.data_wait:.1%}"
        times = [NOT_LOGGED if value is None else number(value) for value in (p.init, p.first, p.evaluation, p.rest)]
        name, state = os.path.basename(log.path), _STATES[run.state]
        rows.append([name, state, figure(log.minutes, 3), number(log.converged_at), speed(rate), wait, *times])
    columns = ("Log", "State", "Minutes", "epoch_num", "Samples/s", "Data wait", "Init", "First", "Evaluation", "Rest")
    caption = (
        f"Runs of {one.name} on {one.system}; init, first epoch or block, evaluation and rest in minutes. epoch_num is "
        "the last evaluation's"
    )
    return table(caption, columns, rows, 2)
