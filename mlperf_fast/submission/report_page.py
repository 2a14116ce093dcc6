"""The report's page from judged results: first every benchmark's verdict in one table, then each in detail.

Made of report_html.py's elements alone, so that every text is escaped. Equal results give equal bytes.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from itertools import groupby

from mlperf_fast import __version__
from mlperf_fast.submission import convergence, report_benchmark, report_figures
from mlperf_fast.submission.report_benchmark import said, speed
from mlperf_fast.submission.report_html import Html, badge, counted, element, joined, pictured, table
from mlperf_fast.submission.report_results import Everything, Result
from mlperf_fast.submission.report_style import STYLE
from mlperf_fast.submission.report_svg import drawing
from mlperf_fast.submission.tables import figure
from mlperf_fast.suite import RULESET

# Whatever the page shows, a browser loads, runs and sends nothing for it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(everything: Everything) -> str:
    """The whole file."""
    results = list(zip(everything.results, _anchors(everything.results), strict=True))
    title = f"{_names(everything.results)}: MLPerf Training v2.0 runs"
    with drawing():
        body = element(
            "body",
            element("a", "Skip to the verdicts", href="#verdicts", class_="skip"),
            element("header", element("h1", title), *_head(everything.results)),
            element("main", *_verdicts(everything, results), *_systems(everything.results), *_benchmarks(results),
                    *_others(everything)),
            element("footer", *_foot()),
        )  # fmt: skip
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _anchors(results: Sequence[Result]) -> list[str]:
    """The id of each result in the page: benchmark and number, whatever a system is called."""
    seen: dict[str, int] = defaultdict(int)
    anchors = []
    for one in results:
        seen[one.name] += 1
        anchors.append(f"{one.name}-{seen[one.name]}")
    return anchors


# --- the first screen -----------------------------------------------------------------------------------------------


def _names(results: Sequence[Result]) -> str:
    """Whose runs they are, as the logs say; nvidia and NVIDIA are one."""
    spelled = {org.casefold(): org for one in reversed(results) for org in reversed(said(one.logs, "org"))}
    return ", ".join(list(reversed(spelled.values()))[:3]) or "No submitter"


def _head(results: Sequence[Result]) -> Iterator[Html]:
    good, runs = sum(one.passes for one in results), sum(len(one.logs) for one in results)
    platforms = list(dict.fromkeys(platform for one in results for platform in said(one.logs, "platform")))
    text = counted(runs, "run")
    if platforms:
        text += f" on {', '.join(platforms[:3])}" + (f" and {len(platforms) - 3} more" if len(platforms) > 3 else "")
    dates = sorted(day for one in results for log in one.logs if (day := _day(log.started)))
    if dates:
        text += f", {dates[0]}" if dates[0] == dates[-1] else f", {dates[0]} to {dates[-1]}"
    yield element("p", f"{text}.", class_="quiet")
    if len(results) == 1:
        verdict = "The result passes" if good else "The result fails"
    else:
        verdict = f"{'All' if good == len(results) else f'{good} of'} {len(results)} results pass"
    divisions = sorted({one.score.division or "no division" for one in results})
    yield element("p", f"{verdict} ruleset {RULESET} ({' and '.join(divisions)}).", class_="lead")


def _day(milliseconds: float | None) -> str | None:
    # Until 2200: a clock that is off is a finding, no date.
    if milliseconds is None or not 0 < milliseconds < 7.26e12:
        return None
    return f"{datetime.fromtimestamp(milliseconds / 1e3, tz=timezone.utc):%Y-%m-%d}"


def _verdicts(everything: Everything, results: Sequence[tuple[Result, str]]) -> Iterator[Html]:
    rows: list[list[str | Html]] = []
    for one, anchor in results:
        s = one.score
        system = f"{one.system}, {s.division or 'no division'}"
        rows.append(
            [
                joined(element("a", one.name, href=f"#{anchor}"), element("span", system, class_="small")),
                element("span", figure(s.minutes, 3), class_="score"),
                badge(one.passes),
                f"{s.runs} of {s.runs_demanded}" if s.runs_demanded else str(s.runs),
                str(s.failed),
                "–" if s.spread is None else f"{s.spread:.1%}",
                convergence.amount(s.epochs, one.benchmark) if one.benchmark else "–",
                speed(s.samples_per_second),
            ]
        )
    columns = ("Benchmark, system, division", "Minutes", "Verdict", "Runs", "Failed", "Spread", "Epochs", "Samples/s")
    yield element("h2", "Verdicts", id="verdicts", tabindex="-1", class_="first")
    yield table("Minutes: the score, less is better. bert's epochs are samples.", columns, rows, 1, "summary")
    failed = [
        element("li", element("a", f"{one.name}, {one.system}", href=f"#{anchor}"), f": {_why(one)}")
        for one, anchor in results
        if not one.passes
    ]
    if failed:
        yield element("p", "What keeps results from passing:", class_="close")
        yield element("ul", *failed, class_="why")
    wrong = sum(not one.passes for one in everything.others)
    if wrong:
        link = element("a", counted(wrong, "other failure"), href="#package")
        yield element("p", link, ": in the package's tree, its folders or descriptions.")
    titles = list(dict.fromkeys((one.name, one.title) for one, _ in results))
    if len(results) > 1:
        links = [element("li", element("a", title, href=f"#{name}")) for name, title in titles]
        yield element("nav", element("ul", *links), aria_label="Benchmarks")


def _why(one: Result) -> str:
    """What keeps it from passing, the first of it in words."""
    errors = [finding for finding in one.verdict.findings if finding.severity == "error"]
    if errors:
        more = f" (and {counted(len(errors) - 1, 'other error')})" if len(errors) > 1 else ""
        return errors[0].message + more
    if not one.convergence.passes:
        return "convergence: " + (one.convergence.untested or "not within the reference's")
    return "; ".join(one.score.notes) or "no valid score"


# --- systems side by side, benchmarks, the rest ---------------------------------------------------------------------


def _systems(results: Sequence[Result]) -> Iterator[Html]:
    """For each benchmark that several systems have: bars of the score, and of the two factors of a time."""
    begun = False
    for name, same in groupby(results, key=lambda one: one.name):
        group = list(same)
        bench = group[0].benchmark
        if len(group) < 2 or bench is None:
            continue
        if not begun:
            yield element("h2", "Systems side by side", id="systems")
            begun = True
        scale, unit = report_figures.epoch_unit(bench)
        pictures = []
        for title, caption, of, values in (
            ("Score", "Less is better.", "minutes to train", [one.score.minutes for one in group]),
            ("Training it took", "Chance and hyperparameters.", unit,
             [None if one.score.epochs is None else one.score.epochs / scale for one in group]),
            ("Throughput", "More is better.", "samples/s", [one.score.samples_per_second for one in group]),
        ):  # fmt: skip
            rows = [(one.system, value) for one, value in zip(group, values, strict=True)]
            spoken = "; ".join(f"{system}: {report_figures.digits(value)}" for system, value in rows)
            text = f"{title} of {name}, {of}. {spoken}"
            drawn = report_figures.bars(f"side-{name}-{title.partition(' ')[0]}", text, rows, of)
            if drawn:
                pictures.append(pictured(title, caption, drawn))
        if pictures:
            yield element("h3", group[0].title)
            yield element("div", *pictures, class_="pictures narrow")


def _benchmarks(results: Sequence[tuple[Result, str]]) -> Iterator[Html]:
    for name, same in groupby(results, key=lambda pair: pair[0].name):
        group = list(same)
        bench = group[0][0].benchmark
        yield element("h2", group[0][0].title, id=name)
        if bench:
            sign = "at least" if bench.higher_is_better else "at most"
            target = " and ".join(
                f"{f'{metric} ' if len(bench.target) > 1 else ''}{sign} {value:g}"
                for metric, value in bench.target.items()
            )
            data = bench.dataset.partition(" (")[0]
            text = f"{data}. Target of the closed division: {bench.metric}, {target}. A result is {bench.runs} runs."
            yield element("p", text, class_="quiet")
        for one, anchor in group:
            yield report_benchmark.section(one, anchor)


def _others(everything: Everything) -> Iterator[Html]:
    """Packages, folders and descriptions that have findings."""
    found = [one for one in everything.others if one.findings]
    if found:
        yield element("h2", "Package and descriptions", id="package")
    for one in found:
        yield element("h3", f"{one.kind[0].upper()}{one.kind[1:]} ", element("code", one.path), " ", badge(one.passes))
        yield from report_benchmark.findings(one.findings, one.path)


def _foot() -> Iterator[Html]:
    yield element(
        "p",
        "Score: the mean time to train in minutes without the fastest and the slowest run (unet3d: four of each); a "
        "run that failed counts as the slowest. Spread: the standard deviation of the times that converged, over their "
        "mean. Reference: the smallest mean of epochs that passes at this batch size, and the reference's own mean. "
        "First epoch or block: until the first of them ends, or the first evaluation begins.",
    )
    yield element("p", f"Made by mlperf_fast {__version__} from the logs alone.")
