"""`mlperf-fast campaign`: the runs of one result, one after the other, such that a kill at any moment loses none.

DIR/result_I.txt      the complete log of run I; it is there exactly if the run has ended, however it did
DIR/campaign.json     how the campaign was started, and how each run ended
DIR/runs/I/           the run's own folder: config.json, summary.json, output.txt, and the log until the run ends
DIR/.lock             held by the campaign and its run

A log moves up by one rename when its run has ended, so a campaign that starts again sees what is done. A run that a
kill or Ctrl-C cuts short has failed if its clock had started (run_start is in its log): the rules know no reason to
leave such a run out, and whoever could would choose among results. Before run_start nothing was timed or trained; that
run begins anew.
"""

import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlperf_fast import __version__, config
from mlperf_fast.config import RunConfig
from mlperf_fast.errors import UserError
from mlperf_fast.submission import score
from mlperf_fast.submission.folders import benchmark_folder
from mlperf_fast.submission.launch import Run, stop
from mlperf_fast.submission.logs import read_log, read_logs
from mlperf_fast.submission.progress import Progress
from mlperf_fast.submission.records import read_records
from mlperf_fast.submission.tables import figure, table
from mlperf_fast.suite import BENCHMARKS, Benchmark

POLL = 0.2  # seconds between looks at the run
PATIENCE = 15.0  # seconds for which the run of a killed campaign may still hold the lock


@dataclass(frozen=True, slots=True)
class Plan:
    """What a campaign does. config: the resolved configuration, dotted key -> value. versions: of what computes."""

    workload: str
    preset: str
    sets: tuple[str, ...]
    nproc: int
    runs: int
    config: dict[str, Any]
    versions: dict[str, str]

    @property
    def benchmark(self) -> Benchmark:
        return BENCHMARKS[self.workload]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended. how: converged, missed (its target), invalid (its log fails the compliance check), crashed or
    interrupted; all but the first count as failed. code: the process's exit code, negative for a signal, None where
    the campaign was killed with it. minutes: time to train. seconds: of the whole process, initialisation included."""

    run: int
    how: str
    code: int | None
    seconds: float | None
    minutes: float | None
    epochs: float | None
    quality: float | None
    seed: int | None
    cache_clear: bool | None


def plan(
    workload: str, preset: str, function: Callable[[], RunConfig], sets: Sequence[str], nproc: int, runs: str
) -> Plan:
    """A plan with everything checked that can be before the first run. runs: a number, or "official".

    Caches are dropped where that is allowed, unless `sets` say otherwise. UserError for a wrong argument.
    """
    if not any(setting.partition("=")[0].strip() == "drop_caches" for setting in sets):
        sets = [*sets, "drop_caches=auto"]
    cfg, _ = config.from_preset(function, preset, sets)
    if cfg.seed is not None:
        raise UserError(f"seed is {cfg.seed}, but each run of a campaign draws its own from the system: leave it unset")
    if runs != "official" and not re.fullmatch("[1-9][0-9]{0,3}", runs):
        raise UserError(f"--runs is {runs!r}; expected a number, or official: as many as the rules demand")
    if nproc < 1:
        raise UserError(f"--nproc is {nproc}; expected the number of processes on this machine, 1 or more")
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        raise UserError("a campaign starts its processes itself: run it without torchrun, with --nproc N")
    versions = {
        "mlperf_fast": __version__,
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
    }
    count = BENCHMARKS[workload].runs if runs == "official" else int(runs)
    plain = json.loads(json.dumps(config.flatten(cfg)))  # as campaign.json gives it back
    return Plan(workload, preset, tuple(sets), nproc, count, plain, versions)


# --- the runs -------------------------------------------------------------------------------------------------------


def carry_out(plan: Plan, out: Path, *, all_must_converge: bool = False) -> list[Ended]:
    """Does the runs of the plan that `out` doesn't hold yet; all that ended, in order.

    Ends before the plan's number when no score can come any more, or with all_must_converge when a run failed.
    UserError for a folder that holds something else, or is in use; and for a run that writes no log, since that is no
    result, but a mistake in the configuration or the installation. KeyboardInterrupt stops the run first.
    """
    with locked(out) as lock:
        begin(plan, out)
        ended = recover(plan, out)
        save(plan, out, ended)
        progress = Progress(plan.runs)
        progress.resumed(ended, out)
        try:
            while len(ended) < plan.runs:
                why = reason_to_stop(plan, ended, all_must_converge)
                if why:
                    progress.say(why)
                    break
                try:
                    new = one_run(plan, out, len(ended), lock, progress, [e.seconds for e in ended if e.seconds])
                except KeyboardInterrupt:
                    ended = recover(plan, out, ended)
                    save(plan, out, ended)
                    raise
                ended.append(new)
                save(plan, out, ended)
                progress.ended(new)
        finally:
            progress.close()
        return ended


def one_run(plan: Plan, out: Path, number: int, lock: int, progress: Progress, earlier: Sequence[float]) -> Ended:
    """Starts run `number`, shows how it goes, and books it."""
    folder = out / "runs" / str(number)
    sets = [part for setting in plan.sets for part in ("--set", setting)]
    arguments = ["run", plan.workload, "--preset", plan.preset, "--out", str(folder), *sets]
    progress.started(number, earlier)
    started = time.monotonic()
    run = Run(arguments, plan.nproc, folder, lock)
    try:
        while run.code(within=POLL) is None:
            progress.look(folder / "result_0.txt")
    finally:
        stop(run)
    progress.look(folder / "result_0.txt")
    if not (folder / "result_0.txt").exists():
        output = (folder / "output.txt").read_text(errors="replace").strip()
        said = next((line for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
        raise UserError(f"run {number + 1} wrote no log, so it is none that counts: {said} ({folder / 'output.txt'})")
    return book(out, number, run.code(), time.monotonic() - started)


def book(out: Path, number: int, code: int | None, seconds: float | None, *, interrupted: bool = False) -> Ended:
    """Moves the log of a run that has ended to its place in `out`, last of all: killed before that, it is redone."""
    folder = out / "runs" / str(number)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    summary, place = folder / "summary.json", out / f"result_{number}.txt"
    if summary.exists():
        try:
            replace(summary, json.loads(summary.read_text()) | {"result": str(place)})
        except ValueError:  # the kill came while it was written; the log has all of it
            summary.unlink()
    os.rename(folder / "result_0.txt", place)
    flush(out)
    return described(out, number, code, seconds, interrupted)


def described(out: Path, number: int, code: int | None, seconds: float | None, interrupted: bool) -> Ended:
    """How the run with this log ended, by what the log says."""
    log = read_log(out / f"result_{number}.txt")
    if log.converged:
        how = "converged"
    elif log.outcome == "success":
        how = "invalid"
    elif log.outcome == "aborted" and (out / "runs" / str(number) / "summary.json").exists():
        how = "missed"
    else:
        how = "interrupted" if interrupted else "crashed"
    quality = log.curve[-1][1] if log.curve else None
    return Ended(
        run=number, how=how, code=code, seconds=seconds, minutes=log.minutes, epochs=log.converged_at,
        quality=quality if isinstance(quality, (int, float)) else None,
        seed=log.seeds[0].value if log.seeds else None, cache_clear=caches_dropped(out / f"result_{number}.txt"),
    )  # fmt: skip


def caches_dropped(log: Path) -> bool | None:
    values = [record.value for record in read_records(log)[0] if record.key == "cache_clear"]
    return values[-1] is True if values else None


def reason_to_stop(plan: Plan, ended: Sequence[Ended], all_must_converge: bool) -> str | None:
    """Why further runs would be of no use: none of them could make a score valid."""
    failed = [one.how != "converged" for one in ended]
    if all_must_converge:
        return f"run {failed.index(True) + 1} failed, where all must converge: it stops here" if any(failed) else None
    demanded, may_fail = plan.benchmark.runs, plan.benchmark.dropped
    if plan.runs < demanded or score_possible([*failed, *[False] * (plan.runs - len(failed))], demanded, may_fail):
        return None
    may = f"where {may_fail} of {demanded} may"
    return f"{sum(failed)} runs failed, {may}: no score can come of {plan.runs} runs, so it stops here"


def score_possible(failed: Sequence[bool], demanded: int, may_fail: int) -> bool:
    """Whether the window of runs with the median score has one: see `score.median_window`."""
    windows = [failed[first : first + demanded] for first in range(len(failed) - demanded + 1)]
    return sum(sum(window) <= may_fail for window in windows) > len(windows) // 2


# --- what is there already ------------------------------------------------------------------------------------------


def begin(plan: Plan, out: Path) -> None:
    """Refuses a folder that holds anything but this campaign, begun earlier, or none of whose runs has begun."""
    logs = [entry.name for entry in os.scandir(out) if re.fullmatch(r"result_.*\.txt", entry.name)]
    saved = read_plan(out)
    if saved is None:
        if logs or (out / "runs").exists():
            raise UserError(f"{out} holds runs that are no campaign's (no campaign.json): choose another --out")
        return
    if not logs and not clock_started(out / "runs" / "0" / "result_0.txt"):
        return  # nothing is lost by another configuration
    different = list(differences(saved, plan))
    if different:
        raise UserError(f"{out} holds a campaign that was started otherwise; its runs and new ones would be no one "
                        f"result. Choose another --out, or start as before. There and now:\n  "
                        + "\n  ".join(different))  # fmt: skip


def differences(saved: dict[str, Any], plan: Plan) -> Iterator[str]:
    """What differs between campaign.json and a plan, but for the number of runs, which may grow."""
    now = json.loads(json.dumps(asdict(plan)))
    for name in ("workload", "preset", "nproc"):
        if saved.get(name) != now[name]:
            yield f"{name}: {saved.get(name)}, {now[name]}"
    for group in ("config", "versions"):
        there = saved.get(group, {})
        for key in sorted({*there, *now[group]}):
            if there.get(key) != now[group].get(key):
                yield f"{key}: {json.dumps(there.get(key))}, {json.dumps(now[group].get(key))}"


def recover(plan: Plan, out: Path, known: Sequence[Ended] = ()) -> list[Ended]:
    """The runs that have ended. One that a kill cut short is booked as such, or removed if its clock never started."""
    saved = {one["run"]: one for one in (read_plan(out) or {}).get("ended", ())} | {e.run: asdict(e) for e in known}
    ended: list[Ended] = []
    while (out / f"result_{len(ended)}.txt").exists():
        number = len(ended)
        one = saved.get(number)
        ended.append(Ended(**one) if one else described(out, number, None, None, interrupted=True))
    others = [os.path.basename(log) for log in benchmark_folder(str(out)).logs[len(ended) :]]
    if others or any(number >= len(ended) for number in saved):
        found = ", ".join(others) or "campaign.json"
        raise UserError(f"{out}: result_{len(ended)}.txt is missing, though later runs have ended ({found}): bring it "
                        "back; a result holds all of its runs")  # fmt: skip
    if len(ended) > plan.runs:
        raise UserError(f"{out} has {len(ended)} runs, more than --runs {plan.runs}: all that were started count")
    folder = out / "runs" / str(len(ended))
    if clock_started(folder / "result_0.txt"):
        ended.append(book(out, len(ended), None, None, interrupted=True))
    elif folder.exists():
        shutil.rmtree(folder)
    return ended


def clock_started(log: Path) -> bool:
    return log.exists() and any(record.key == "run_start" for record in read_records(log)[0])


def read_plan(out: Path) -> dict[str, Any] | None:
    """What campaign.json holds; None without one. UserError for one that this version can't read."""
    path = out / "campaign.json"
    try:
        saved = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    if not isinstance(saved, dict) or saved.get("format") != 1:
        raise UserError(f"{path} is of another version of mlperf_fast: choose another --out")
    return saved


def save(plan: Plan, out: Path, ended: Sequence[Ended]) -> None:
    replace(out / "campaign.json", {"format": 1, **asdict(plan), "ended": [asdict(one) for one in ended]})


def replace(path: Path, content: Any) -> None:
    """Writes JSON that takes the file's place only when it is complete and on the disk."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    flush(path.parent)


def flush(folder: Path) -> None:
    """Brings a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Holds `out`, made if missing, for one campaign. The run inherits the lock: it is free when both have ended."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise UserError(f"can't write to the campaign's folder {out}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise UserError(f"another campaign is at work in {out}, or a run that one left: wait for it, or "
                                    "choose another --out") from None  # fmt: skip
            time.sleep(0.1)
        yield handle
    finally:
        os.close(handle)


# --- the command ----------------------------------------------------------------------------------------------------


def main(plan: Plan, out: Path) -> int:
    """Carries the plan out and shows the result. Exit code: 0 with a score that could be submitted, else 1."""
    ended = carry_out(plan, out)
    if not ended:
        return 1
    folder = benchmark_folder(str(out))
    result = score.score(folder, read_logs(folder.logs))
    print(text(ended, out))
    print(f"\n{score.text([result])}")
    return 0 if result.valid else 1


def text(ended: Sequence[Ended], out: Path) -> str:
    """A line for each run."""
    rows = [
        (
            f"result_{one.run}.txt", one.how, figure(one.minutes, 3), figure(one.epochs, 3), figure(one.quality, 4),
            "-" if one.seed is None else str(one.seed), {True: "dropped", False: "kept", None: "-"}[one.cache_clear],
        )
        for one in ended
    ]  # fmt: skip
    return "\n" + table(("run", "ended", "minutes", "epochs", "quality", "seed", "caches"), rows, left=2)
