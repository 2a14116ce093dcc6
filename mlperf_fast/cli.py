"""The command line. One function a subcommand; heavy imports are inside, so that `--help` and `check` need no torch.

Exit codes: 0 fine, 1 findings (a log with faults, a run that missed its target), 2 something the user can mend.
"""

import argparse
import json
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from mlperf_fast import __version__
from mlperf_fast.errors import UserError
from mlperf_fast.suite import BENCHMARKS, DIVISIONS, STATUSES

EXAMPLES = """examples:
  mlperf-fast list                                  what can be trained, and to which target
  mlperf-fast run dlrm                              train the demo on this machine
  mlperf-fast run dlrm --set optimizer.lr=1.0       change a value of the preset
  mlperf-fast prepare dlrm --raw days --out data    convert Criteo's day_N.gz
  mlperf-fast campaign dlrm --runs 5 --out dlrm     all the runs that a result needs, resumable after a kill
  mlperf-fast check runs/dlrm/result_0.txt          is this log valid? also for a folder or a whole package
  mlperf-fast rcp results/dgxa100                   do these runs converge as the reference does?
  mlperf-fast score results/dgxa100                 what these runs are worth, in minutes
  mlperf-fast package runs/a --submitter Ajax --division open --system-name petrel --out package
  mlperf-fast report results/dgxa100                all of it as one page, with pictures
  mlperf-fast profile dlrm --steps 11:20            where does the time of a step go?
  mlperf-fast bench sgd                             how fast is it, against what and which limit?
  mlperf-fast gtp --size 9                          play Go against it, in any program that speaks GTP
  mlperf-fast analyze game.sgf                      which moves of a game of Go were mistakes?
  torchrun --nproc-per-node 8 -m mlperf_fast run dlrm --preset dgxa100_1x8
"""


PROFILE = """It trains as `run` does, on the same data, to step B, and writes no result log.

  torch   trace-rank-N.json.gz for https://ui.perfetto.dev, and summary.json: compute, optimizer, communication, data
          wait, idle, the longest ops and kernels. The summary is shown too
  nsys    Nsight Systems: the timeline of host and GPU, with ranges named as in the code. Needs a GPU
  ncu     Nsight Compute: each kernel's counters; few steps, and a --range, keep it short. Needs a GPU
  range   only marks the steps (NVTX, cudaProfilerStart and Stop), for a profiler that you start around this command

ranges: data wait, step, graph replay, forward, backward, gradient exchange, unscale, optimizer, evaluate
nsys and ncu show the command line that they run. Where one isn't installed, the line is shown, not run, and the exit
code is 2. docs/profiling.md leads from "slow" to a kernel.
"""

REPORT = """Exit codes: 0 everything passes, 1 something doesn't (the file says what), 2 wrong usage.
The file is whole in itself: no script, nothing loaded. Needs matplotlib: pip install 'mlperf_fast[report]'
"""


CAMPAIGN = """Each run is a fresh process with a seed that it draws from the system. Before each, the page cache is
dropped where that is allowed (Linux, as root), and the log says truly whether it was: --set drop_caches=on to insist,
or off.

  DIR/result_I.txt    the logs of the runs that have ended, for check, rcp, score
  DIR/campaign.json   how the campaign was started, and how each run ended
  DIR/runs/I/         the run's own files: config.json, summary.json, output.txt

The same command again goes on where a kill or Ctrl-C stopped it. A run that was cut short counts as failed if its
clock had started. More runs than the rules demand are allowed, and --runs may grow: all count, by the rule of the
median window. When so many failed that no score can come any more, the campaign stops.

Exit codes: 0 a score that could be submitted, 1 none (too few runs, or too few converged), 2 a mistake,
130 interrupted.
"""

PACKAGE = """The system description has 33 fields. Runs of this package have recorded what their machine tells; for
other logs --this-machine says that they were made here. The rest is yours to say. Where the rules want an answer
that nobody gave, the command stops and shows the file to fill in.

Exit codes: 0 our check and the official package checker pass, 1 one of them doesn't, 2 nothing was written, and why.
"""

RECORD = """The runs are a campaign in FILE's place with the ending .runs, so that a recording that was stopped goes on.
All of them must converge. Then

  mlperf-fast campaign dlrm --runs 10 --out native
  mlperf-fast rcp native --rcps FILE

tests runs with native kernels against them: not faster by the rule of v2.0, and neither faster nor slower by a
two-sided test.

Exit codes: 0 recorded, 1 a run failed, 2 a mistake, 130 interrupted.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    # By default OpenMP's waiting threads spin for milliseconds, which takes the core from whatever else wants it: with
    # one other busy process DLRM's demo step took 536 ms instead of 4. After 10,000 turns, some microseconds, they
    # sleep: 24 ms then, and as fast as ever on a quiet machine. Read when torch loads libgomp: to be set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:2] == ["rcp", "record"]:  # a folder of this name: ./record
        arguments = ["rcp record", *arguments[2:]]
    options = parser().parse_args(arguments)
    try:
        return options.function(options)
    except UserError as error:
        print(f"mlperf-fast {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mlperf-fast {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mlperf-fast list | head`
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="mlperf-fast",
        description="Trains the MLPerf Training v2.0 benchmarks and turns the runs into a submission.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"mlperf_fast {__version__}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = add(commands, "list", list_benchmarks, "the eight benchmarks, their targets, and what can be trained")
    command.add_argument("--json", action="store_true", help="machine-readable")

    command = add(commands, "env", show_environment, "what is installed and what is not, for a bug report")
    command.add_argument("--json", action="store_true", help="machine-readable")

    command = add(commands, "prepare", prepare, "make or convert a benchmark's data set, and verify it")
    command.add_argument("benchmark")
    command.add_argument("--preset", default="demo", help="whose data set; default: demo")
    command.add_argument("--raw", type=Path, help="folder of the raw data (dlrm: Criteo's day_0.gz, day_1.gz …)")
    command.add_argument("--out", type=Path, help="folder to write; default: where the preset looks for it")
    command.add_argument("--verify", action="store_true", help="only verify by content what is there")

    command = add(commands, "run", run, "train a benchmark until its target, and write the official result log")
    add_what_to_train(command)
    command.add_argument("--print-config", action="store_true", help="show each value and its origin; train nothing")
    command.add_argument("--out", type=Path, help="the run's folder; default: runs/BENCHMARK-PRESET-TIME")
    command.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with the run in DIR from its last checkpoint"
    )

    add_campaign(commands)

    command = add(commands, "check", check, "judge a log, a folder of runs or a whole package by the rules of v2.0")
    command.epilog = "Exit codes: 0 everything passes, 1 something doesn't, 2 no such path. Nothing is ever written."
    command.add_argument("paths", nargs="+", metavar="PATH", help="log, system description, or folder at any level")
    command.add_argument("--json", action="store_true", help="machine-readable")
    add_bert_train_samples(command)

    add_rcp(commands)

    command = add(commands, "score", score, "the scores of result logs in minutes, with epochs and speed apart")
    command.epilog = "Exit codes: 0 all have a score to submit, 1 some have none, 2 wrong usage."
    command.add_argument("paths", nargs="+", metavar="DIR", help="folder of a benchmark, a system or a whole package")
    command.add_argument("--compare", action="store_true", help="two folders side by side, benchmark by benchmark")
    form = command.add_mutually_exclusive_group()
    form.add_argument(
        "--csv", dest="form", action="store_const", const="csv", default="table", help="all digits, as CSV"
    )
    form.add_argument("--json", dest="form", action="store_const", const="json", help="machine-readable")

    add_package(commands)

    command = add(commands, "report", report, "one HTML file of runs: verdicts, scores, curves, where the time goes")
    command.epilog = REPORT
    command.add_argument("paths", nargs="+", metavar="DIR", help="folder of a benchmark, a system or a whole package")
    command.add_argument("-o", "--out", default="report.html", metavar="FILE", help="to write; default: report.html")
    command.add_argument("--rcps", type=Path, metavar="FILE", help="points to take instead of the official ones, JSON")
    add_bert_train_samples(command)

    add_profile(commands)

    from mlperf_fast.workloads.minigo import commands as go

    go.add_gtp(add(commands, "gtp", go.gtp, "play Go against a network or other engines, by the Go Text Protocol"))
    go.add_analyze(add(commands, "analyze", go.analyze, "judge a game of Go, an SGF file, move by move"))

    from mlperf_fast.benchmarks import options as benchmark_options

    command = add(commands, "bench", bench, "measure ops against their competitors and the machine's limits")
    benchmark_options.add_ops(command)
    return root


def add(commands, name, function, text) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    command.set_defaults(function=function)
    return command


def add_campaign(commands) -> None:
    command = add(commands, "campaign", campaign, "the runs of one result, one after the other; a kill loses none")
    command.epilog, command.formatter_class = CAMPAIGN, argparse.RawDescriptionHelpFormatter
    add_what_to_train(command)
    command.add_argument("--runs", required=True, metavar="N", help="how many; official: as many as the rules demand")
    command.add_argument("--nproc", type=int, default=1, metavar="N", help="processes a run, by torchrun; default: 1")
    command.add_argument("--out", type=Path, required=True, help="the campaign's folder: result_0.txt, result_1.txt …")


def add_rcp(commands) -> None:
    command = add(commands, "rcp", rcp, "hold runs against the reference convergence points")
    command.epilog = (
        "`mlperf-fast rcp record BENCHMARK` makes points of your own, for --rcps; it has its own --help. "
        "Exit codes: 0 all pass or needn't be tested, 1 some don't, 2 wrong usage."
    )
    command.add_argument("paths", nargs="*", metavar="DIR", help="folder of a benchmark, a system or a whole package")
    command.add_argument("--table", metavar="BENCHMARK", help="show a benchmark's reference points instead")
    command.add_argument("--rcps", type=Path, metavar="FILE", help="points to take instead of the official ones, JSON")
    command.add_argument("--json", action="store_true", help="machine-readable")
    add_bert_train_samples(command)

    command = add(commands, "rcp record", rcp_record, "points of your own, from runs on plain PyTorch (backend=ref)")
    command.epilog, command.formatter_class = RECORD, argparse.RawDescriptionHelpFormatter
    add_what_to_train(command)
    command.add_argument("--runs", default=None, metavar="N", help="how many; default: twice a submission's")
    command.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the file of points, new; JSON")


def add_profile(commands) -> None:
    command = add(
        commands, "profile", profile, "where the time of a training step goes, with torch's profiler or Nsight"
    )
    command.epilog, command.formatter_class = PROFILE, argparse.RawDescriptionHelpFormatter
    add_what_to_train(command)
    command.add_argument("--steps", default="11:20", metavar="A:B", help="watch steps A to B, from 1; default: 11:20")
    command.add_argument("--tool", choices=("torch", "nsys", "ncu", "range"), default="torch", help="default: torch")
    command.add_argument("--range", default="step", metavar="NAME", help="ncu: kernels of this range; default: step")
    command.add_argument("--out", type=Path, help="folder to write; default: profiles/BENCHMARK-PRESET-TIME")


def add_what_to_train(command) -> None:
    command.add_argument("benchmark")
    command.add_argument("--preset", default="demo", help="demo (default), closed, or a system such as dgxa100_1x8")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="change a value")


def add_package(commands) -> None:
    command = add(commands, "package", package, "make a submission's tree of runs, describe the system, check it all")
    command.epilog, command.formatter_class = PACKAGE, argparse.RawDescriptionHelpFormatter
    command.add_argument("paths", nargs="+", metavar="DIR", help="folder with result logs: a campaign's, or any code's")
    command.add_argument("--submitter", required=True, metavar="NAME", help="the organization; also its folder's name")
    command.add_argument("--division", required=True, choices=DIVISIONS, help="what the logs say too")
    command.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make; never written over")
    command.add_argument("--system-name", metavar="NAME", help="of the description and of the system's folders")
    command.add_argument("--status", choices=STATUSES, help="default: as the logs say")
    command.add_argument("--system", type=Path, metavar="FILE.toml", help='answers on the system, FIELD = "VALUE"')
    command.add_argument(
        "--set-system", action="append", default=[], metavar="FIELD=VALUE", help="an answer; before file and machine"
    )
    command.add_argument(
        "--code", type=Path, metavar="DIR", help="the code that made the logs, if it isn't this package"
    )
    command.add_argument("--this-machine", action="store_true", help="the logs were made here: describe this machine")
    command.add_argument("--allow-unknown", action="store_true", help="open only: file what nobody says as unknown")
    add_bert_train_samples(command)


def add_bert_train_samples(command) -> None:
    text = "bert's epoch_num holds epochs: take samples from train_samples"
    command.add_argument("--bert-train-samples", action="store_true", help=text)


def list_benchmarks(options) -> int:
    from mlperf_fast.workloads import has_trainer, preset_names

    rows: list[dict[str, Any]] = [
        {
            "benchmark": name,
            "area": bench.area,
            "model": bench.model,
            "dataset": bench.dataset,
            "target": ", ".join(f"{metric} {sign(bench)} {value}" for metric, value in bench.target.items()),
            "runs": bench.runs,
            "state": f"trains: {', '.join(preset_names(name))}" if has_trainer(name) else "not yet",
        }
        for name, bench in BENCHMARKS.items()
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("benchmark", "model", "dataset", "target", "runs", "state"):
        table.add_column(column, overflow="fold")
    for row in rows:
        # Of model and dataset only what identifies them: the whole text is in --json.
        cells = {**row, **{key: row[key].partition(" (")[0].partition(":")[0] for key in ("model", "dataset")}}
        table.add_row(*(str(cells[str(column.header)]) for column in table.columns))
    Console().print(table)
    return 0


def sign(bench) -> str:
    return "≥" if bench.higher_is_better else "≤"


def show_environment(options) -> int:
    from mlperf_fast import system

    found = system.environment()
    print(json.dumps(found, indent=1) if options.json else system.text(found))
    return 0


def prepare(options) -> int:
    w, preset = find_preset(options)
    cfg = preset()
    if options.verify:
        w.verify(cfg, options.out, say)
    else:
        w.prepare(cfg, options.raw, options.out, say)
    return 0


def run(options) -> int:
    from mlperf_fast import config

    if options.resume:
        return resume(options)
    w, preset = find_preset(options)
    cfg, origins = config.from_preset(preset, options.preset, options.sets)
    if options.print_config:
        print(config.describe(cfg, origins))
        return 0
    from mlperf_fast.loop.run import run as run_once

    default = Path("runs") / f"{w.name}-{options.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    outcome = run_once(w, cfg, origins, options.preset, options.out or default, resume=False, say=say)
    return 0 if outcome.reached else 1


def profile(options) -> int:
    from mlperf_fast import config
    from mlperf_fast.config import nearest
    from mlperf_fast.profiling import commands
    from mlperf_fast.profiling.ranges import RANGES
    from mlperf_fast.profiling.window import parse_steps

    w, preset = find_preset(options)
    cfg, _ = config.from_preset(preset, options.preset, options.sets)
    steps = parse_steps(options.steps)
    if options.range not in RANGES:
        raise UserError(f"--range: no range is called {options.range!r}{nearest(options.range, RANGES)}")
    out = options.out or Path("profiles") / f"{w.name}-{options.preset}-{datetime.now():%Y%m%d-%H%M%S}"
    if options.tool in ("torch", "range"):
        from mlperf_fast.loop.profile import profile as profile_run

        profile_run(w, cfg, options.preset, steps, options.tool, out, say)
        return 0
    from mlperf_fast.loop.dist import from_environment

    rank, _, _ = from_environment()
    same = ["--preset", options.preset, "--steps", options.steps]
    same += [part for setting in options.sets for part in ("--set", setting)]
    profiled = [sys.executable, "-m", "mlperf_fast", "profile", w.name, *same, "--tool", "range", "--out", str(out)]
    report = out / f"rank-{rank}"
    line = commands.nsys(profiled, report) if options.tool == "nsys" else commands.ncu(profiled, report, options.range)
    commands.execute(line, out, say)
    return 0


def resume(options) -> int:
    """`run BENCHMARK --resume DIR`: the configuration is the one saved in DIR, so nothing may be set anew."""
    from mlperf_fast import config
    from mlperf_fast.loop.run import run as run_once
    from mlperf_fast.workloads import find

    if options.sets or options.out:
        raise UserError("--resume goes on with the saved configuration in its own folder: leave --set and --out out")
    try:
        saved = json.loads((options.resume / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{options.resume} holds no run to resume: config.json: {error}") from None
    if saved["workload"] != options.benchmark:
        raise UserError(f"{options.resume} is a run of {saved['workload']}, not of {options.benchmark}")
    w = find(options.benchmark)
    cfg = config.from_json(type(w.presets[saved["preset"]]()), saved["config"])
    outcome = run_once(w, cfg, saved["origins"], saved["preset"], options.resume, resume=True, say=say)
    return 0 if outcome.reached else 1


def campaign(options) -> int:
    from mlperf_fast.submission import campaign as campaigns

    plan = campaigns.plan(
        options.benchmark, options.preset, find_function(options), options.sets, options.nproc, options.runs
    )
    return campaigns.main(plan, options.out)


def check(options) -> int:
    from mlperf_fast.submission import check as checker

    return checker.main(options.paths, options.json, options.bert_train_samples)


def rcp(options) -> int:
    from mlperf_fast.submission import convergence

    return convergence.main(options.paths, options.table, options.rcps, options.json, options.bert_train_samples)


def rcp_record(options) -> int:
    from mlperf_fast.submission import campaign as campaigns
    from mlperf_fast.submission import recording

    function = find_function(options)
    runs = options.runs or str(2 * BENCHMARKS[options.benchmark].runs)
    sets = [*options.sets, *recording.SETTINGS]
    plan = campaigns.plan(options.benchmark, options.preset, function, sets, 1, runs)
    return recording.record(plan, options.out, options.out.with_suffix(".runs"))


def score(options) -> int:
    from mlperf_fast.submission import score as scorer

    return scorer.main(options.paths, options.form, options.compare)


def package(options) -> int:
    from mlperf_fast.submission import package as packager

    return packager.main(
        options.paths,
        packager.Options(
            submitter=options.submitter,
            division=options.division,
            out=options.out,
            status=options.status,
            system_name=options.system_name,
            system_file=options.system,
            settings=options.set_system,
            code=options.code,
            this_machine=options.this_machine,
            allow_unknown=options.allow_unknown,
            bert_train_samples=options.bert_train_samples,
        ),
    )


def report(options) -> int:
    from mlperf_fast.submission import report as reporter

    return reporter.main(options.paths, options.out, options.rcps, options.bert_train_samples)


def bench(options) -> int:
    from mlperf_fast.benchmarks import command

    return command.bench(options)


def find_preset(options):
    """The workload and the preset function that the options name; UserError with the nearest name."""
    from mlperf_fast.workloads import find

    function = find_function(options)
    return find(options.benchmark), function


def find_function(options):
    """The preset function that the options name, without torch; UserError with the nearest name."""
    from mlperf_fast.config import nearest
    from mlperf_fast.workloads import presets, require

    require(options.benchmark)
    known = presets(options.benchmark)
    if options.preset not in known:
        raise UserError(f"{options.benchmark} has no preset {options.preset!r}{nearest(options.preset, known)}")
    return known[options.preset]


def say(text: str) -> None:
    print(text, flush=True)
