"""`mlperf-fast package`: folders of runs become a submission's tree, described, with its code, and checked.

    OUT/<submitter>/results/<system>/<benchmark>/result_0.txt ...
    OUT/<submitter>/systems/<system>.json
    OUT/<submitter>/benchmarks/<benchmark>/implementations/<code>/ and /<system>/

Everything is read and judged before the first byte is written; then the tree is made beside its place under another
name, and one rename puts it there. What is read is never changed, and what lies at OUT is never written over.
"""

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_fast import __version__
from mlperf_fast.errors import UserError
from mlperf_fast.submission import answers, check, implementation, machine, official_package, score
from mlperf_fast.submission.folders import Folder, find_all
from mlperf_fast.submission.implementation import Code
from mlperf_fast.submission.logs import Log, common_benchmark, read_logs
from mlperf_fast.submission.records import shown
from mlperf_fast.submission.tables import printable
from mlperf_fast.suite import Benchmark

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_LONGEST_NAME = 100
_CONFIG_KEYS = ("workload", "preset", "config", "origins", "versions", "processes", "machine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command line. status: None takes the logs'. system_file: TOML. settings: FIELD=VALUE."""

    submitter: str
    division: str
    out: Path
    status: str | None = None
    system_name: str | None = None
    system_file: Path | None = None
    settings: Sequence[str] = ()
    code: Path | None = None
    this_machine: bool = False
    allow_unknown: bool = False
    bert_train_samples: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's runs as they are filed. launched: how many there were; of more than the rules want, the median
    window is filed. config: the runs' config.json if they are this package's own."""

    folder: str
    benchmark: Benchmark
    logs: tuple[Log, ...]
    launched: int
    config: dict[str, Any] | None


def main(paths: Sequence[str], options: Options) -> int:
    """Makes the package, prints what is in it and both verdicts. Exit code: 0 both pass, 1 not. UserError (2) for
    what can't be packaged; nothing is written then."""
    root, summary = make(paths, options)
    print(summary)
    print("\ncheck")
    ours = check.main([root], bert_train_samples=options.bert_train_samples) == 0
    theirs = official_package.verdict(root, bert_train_samples=options.bert_train_samples)
    print("\nofficial package checker")
    if theirs.said:
        print("\n".join(printable(line) for line in theirs.said.splitlines()))
    print(f"{printable(root)}: {'found no errors' if theirs.passes else 'FOUND ERRORS'}")
    print(f"\n{printable(root)}: {'passes both' if ours and theirs.passes else 'is not fit for submission'}")
    return 0 if ours and theirs.passes else 1


def make(paths: Sequence[str], options: Options) -> tuple[str, str]:
    """Writes the package: (the submitter's folder in `options.out`, what is in it as text). UserError as `main`."""
    if options.allow_unknown and options.division == "closed":
        raise UserError("--allow-unknown is for the open division: a closed system is described")
    top = _folder_name(options.submitter)
    _check_out(options.out, [*paths, *([str(options.code)] if options.code else [])])
    results = _results(paths, options)
    description, sources = _describe(results, options)
    system = _safe_name("the system's name", description["system_name"])
    code = _code(options.code)
    if code.name == system:
        raise UserError(f"system and code are both called {system}, and lie side by side: rename one")
    _write(options.out, top, system, description, results, code)
    root = str(options.out / top)
    return root, _summary(root, system, sources, description, results, code)


# --- names and places -----------------------------------------------------------------------------------------------


def _safe_name(what: str, name: str) -> str:
    """A name for a folder that every file system, git and the official checkers take."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME or ".." in name or name.endswith("."):
        raise UserError(
            f"{what} is {shown(name)}; expected letters, digits and . _ + -, beginning with a letter or digit, "
            f"at most {_LONGEST_NAME}: it is the name of a folder"
        )
    return name


def _folder_name(submitter: str) -> str:
    """A submitter may have spaces and commas, its folder may not."""
    return _safe_name("--submitter", re.sub(r"[ ,]+", "_", submitter.strip()))


def _check_out(out: Path, inputs: Sequence[str]) -> None:
    if os.path.islink(out) or (out.exists() and not out.is_dir()):
        raise UserError(f"--out {printable(out)} is no folder; name one that doesn't exist yet")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {printable(out)} isn't empty; name a new folder: nothing is written over")
    for path in inputs:
        given, place = os.path.realpath(path), os.path.realpath(out)
        if place == given or place.startswith(given + os.sep) or given.startswith(place + os.sep):
            raise UserError(f"--out {printable(out)} and {printable(path)} lie within one another; take a folder apart")


# --- what is filed --------------------------------------------------------------------------------------------------


def _results(paths: Sequence[str], options: Options) -> list[Result]:
    folders = {os.path.realpath(folder.path): folder for path in paths for folder in find_all(path)}
    for folder in folders.values():
        _refuse_unfinished(folder)
        for path in folder.logs:
            if os.path.islink(path):
                raise UserError(f"{printable(path)} is a link; put the log itself in its place")
    logs = {log.path: log for log in read_logs([path for folder in folders.values() for path in folder.logs])}
    found: dict[str, Result] = {}
    for folder in folders.values():
        result = _result(folder, [logs[path] for path in folder.logs], options)
        other = found.setdefault(result.benchmark.log_name, result)
        if other is not result:
            raise UserError(
                f"{printable(other.folder)} and {printable(result.folder)} both hold {result.benchmark.log_name}: a "
                "system has one result a benchmark, so package one of them, or each as a system of its own"
            )
    return list(found.values())


def _refuse_unfinished(folder: Folder) -> None:
    """A campaign is filed with all the runs that it was to have: whoever leaves some out chooses among results."""
    try:
        campaign = json.loads(Path(folder.path, "campaign.json").read_text())
        runs, ended = campaign["runs"], len(campaign["ended"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{printable(folder.path)}/campaign.json can't be read: {shown(str(error))}") from None
    if not len(folder.logs) == ended == runs:
        raise UserError(
            f"{printable(folder.path)} is a campaign of {shown(runs)} runs, {ended} of which have ended, with "
            f"{len(folder.logs)} logs: let it end (the same command goes on), or bring back its logs"
        )


def _result(folder: Folder, logs: Sequence[Log], options: Options) -> Result:
    place = printable(folder.path)
    for log in logs:
        unread = next((finding for finding in log.findings if finding.rule == "file"), None)
        if unread:
            raise UserError(f"{printable(log.path)}: {unread.message}")
    benchmark = common_benchmark(logs)
    if benchmark is None:
        raise UserError(f"{place}: no log names a benchmark of v2.0 (submission_benchmark), so it can't be filed")
    for log in logs:
        if log.benchmark not in (None, benchmark.log_name):
            raise UserError(
                f"{printable(log.path)} is of {shown(log.benchmark)}, the others in its folder of {benchmark.log_name}"
            )
        if log.division not in (None, options.division):
            raise UserError(
                f"{printable(log.path)} says division {shown(log.division)}: it can't be filed as {options.division}, "
                "and a log is never edited; name the logs' division, or run again"
            )
    configs = _configs(folder, logs, benchmark, required=options.code is None)
    config = _common(configs)
    if options.division == "closed":
        _refuse_demo(logs, config)
    filed = logs
    if len(logs) > benchmark.runs:
        filed = score.median_window(logs, benchmark.runs, benchmark.dropped)
    return Result(folder.path, benchmark, tuple(filed), len(logs), config)


def _refuse_demo(logs: Sequence[Log], config: Mapping[str, Any] | None) -> None:
    for log in logs:
        finding = next((finding for finding in log.findings if finding.rule == "sanity/closed-demo"), None)
        if finding or (config and config["config"].get("is_demo")):
            why = finding.message if finding else "its config.json says is_demo"
            raise UserError(f"{printable(log.path)} is a demo's, which is never a closed result: {why}")


# --- the runs' own configurations -----------------------------------------------------------------------------------


def _configs(folder: Folder, logs: Sequence[Log], benchmark: Benchmark, required: bool) -> dict[str, dict[str, Any]]:
    """{file: config.json} of this package's own runs: runs/<i>/config.json for result_<i>.txt, as a campaign has them,
    or one in the folder. Empty for logs of other code, which then must be `--code`'s."""
    found: dict[str, Log] = {}
    missing: dict[str, Log] = {}
    for log in logs:
        match = re.fullmatch(r"result_(\d+)\.txt", os.path.basename(log.path))
        own = os.path.join(folder.path, "runs", match[1] if match else "", "config.json")
        path = own if os.path.isfile(own) else os.path.join(folder.path, "config.json")
        (found if os.path.isfile(path) else missing)[path] = log
    # A run that failed may have done so before it had one.
    without = [path for path, log in missing.items() if log.converged or not found]
    if without and required:
        raise UserError(
            f"{printable(folder.path)}: no config.json of mlperf_fast's runs ({printable(without[0])}). Logs of other "
            "code need that code, to be filed with them: --code DIR"
        )
    configs = {} if without else {path: _read_config(path) for path in found}
    for path, config in configs.items():
        if config["workload"] != benchmark.name:
            raise UserError(f"{printable(path)} is of {shown(config['workload'])}, the logs are of {benchmark.name}")
        version = config["versions"].get("mlperf_fast")
        if version != __version__ and required:
            raise UserError(
                f"{printable(path)}: the run was made by mlperf_fast {shown(version)}, this is {__version__}: install "
                "that version to file its source, or name it by --code DIR"
            )
    return configs


def _read_config(path: str) -> dict[str, Any]:
    try:
        config = json.loads(Path(path).read_text())
        lacking = [key for key in _CONFIG_KEYS if key not in config]
        if lacking:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        versions = {name: config["versions"][name] for name in ("mlperf_fast", "torch", *config["versions"])}
        if not all(isinstance(value, str) for value in versions.values()):
            raise ValueError("versions are texts")
        config["machine"] = answers.checked(config["machine"], "machine")
        implementation.files_of_runs(config, None, "system", "code")  # what can't be told of it shows now
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {printable(str(error))}"
        raise UserError(f"{printable(path)} is no configuration that a run of this version saved: {said}") from None
    return config


def _common(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The one configuration that all runs of a result had; UserError where they differ."""
    first: tuple[str, Mapping[str, Any]] | None = None
    for path, config in configs.items():
        first = first or (path, config)
        for key in ("preset", "config", "versions", "processes", "machine"):
            if config[key] != first[1][key]:
                raise UserError(
                    f"{printable(path)} and {printable(first[0])} differ in {_difference(key, config, first[1])}: runs "
                    "of one result have one configuration, and one machine"
                )
    return dict(first[1]) if first else None


def _difference(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    a, b = one[key], other[key]
    while isinstance(a, dict) and isinstance(b, dict):
        part = next(name for name in [*a, *b] if a.get(name) != b.get(name))
        key, a, b = f"{key}.{part}", a.get(part), b.get(part)
    return f"{printable(key)} ({shown(a)}, {shown(b)})"


# --- system and code ------------------------------------------------------------------------------------------------


def _describe(results: Sequence[Result], options: Options) -> tuple[dict[str, Any], dict[str, str]]:
    configs = {result.folder: result.config for result in results if result.config}
    system = {folder: {key: config[key] for key in ("versions", "machine")} for folder, config in configs.items()}
    for folder, facts in system.items():
        first = next(iter(system))
        for key in facts:
            if facts[key] != system[first][key]:
                difference = _difference(key, facts, system[first])
                raise UserError(
                    f"{printable(folder)} and {printable(first)} differ in {difference}: package them as two systems"
                )
    said = {log.status for result in results for log in result.logs if log.status}
    status = options.status or (said.copy().pop() if len(said) == 1 else None)
    if said - {status}:
        raise UserError(
            f"--status is {options.status or 'not given'}, but the logs say {', '.join(map(shown, sorted(said)))}"
        )
    recorded: dict[str, Any] = next((facts["machine"] for facts in system.values()), {})
    why_none = ""
    if options.this_machine and recorded:
        raise UserError("--this-machine: the runs have recorded their machine (config.json), which is described")
    if options.this_machine:
        recorded = machine.facts(Path(results[0].folder))
    elif not recorded:
        why_none = "The logs don't say which machine made them; if it was this one, --this-machine answers for it"
    return answers.describe(
        recorded,
        next((facts["versions"] for facts in system.values()), {}),
        answers.read_toml(options.system_file) if options.system_file else {},
        answers.read_settings(options.settings),
        {
            "submitter": options.submitter,
            "division": options.division,
            "status": status,
            "system_name": options.system_name,
        },
        why_no_machine=why_none,
        allow_unknown=options.allow_unknown,
    )


def _code(folder: Path | None) -> Code:
    code = implementation.other_code(folder) if folder else implementation.own_code()
    _safe_name("the folder's name of --code", code.name)
    return code


# --- writing --------------------------------------------------------------------------------------------------------


def _write(
    out: Path, top: str, system: str, description: Mapping[str, Any], results: Sequence[Result], code: Code
) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name[:50]}.partial-", dir=out.parent))
        try:
            partial.chmod(0o755)
            _fill(partial / top, system, description, results, code)
            partial.rename(out)  # takes the place of an empty folder, and of nothing else
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    except OSError as error:
        raise UserError(f"--out {printable(out)} can't be written: {error.strerror or error}") from None


def _fill(root: Path, system: str, description: Mapping[str, Any], results: Sequence[Result], code: Code) -> None:
    (root / "systems").mkdir(parents=True)
    (root / "systems" / f"{system}.json").write_text(answers.text(description))
    for result in results:
        name = result.benchmark.log_name
        folder = root / "results" / system / name
        folder.mkdir(parents=True)
        for number, log in enumerate(result.logs):
            shutil.copyfile(log.path, folder / f"result_{number}.txt")
        implementations = root / "benchmarks" / name / "implementations"
        implementation.write_code(code, implementations / code.name)
        if result.config:
            launched = result.launched if os.path.exists(os.path.join(result.folder, "campaign.json")) else None
            files = implementation.files_of_runs(result.config, launched, system, code.name)
            implementation.write_runs(files, implementations / system)
        else:
            implementation.write_pointer(name, system, code, implementations / system)


def _summary(
    root: str, system: str, sources: Mapping[str, str], description: Mapping[str, Any], results: Sequence[Result],
    code: Code,
) -> str:  # fmt: skip
    lines = []
    for result in results:
        name, wanted = result.benchmark.log_name, result.benchmark.runs
        window = f", the median window of {result.launched} runs" if result.launched > wanted else ""
        lines.append(f"results/{system}/{name}: {len(result.logs)} logs of {printable(result.folder)}{window}")
    by = Counter(sources.values())
    words = {"machine": "the machine", "runs": "the runs", "file": "the TOML file", "nobody": "nobody (unknown)"}
    said = ", ".join(f"{count} by {words.get(source, source)}" for source, count in by.items())
    empty = [field for field, value in description.items() if value in ("", {})]
    lines.append(f"systems/{system}.json: {said}; left empty: {', '.join(empty) or 'none'}")
    lines.append(f"benchmarks/*/implementations/{code.name}: {len(code.files)} files")
    if code.left_out:
        more = f" and {len(code.left_out) - 5} more" if len(code.left_out) > 5 else ""
        lines.append(f"  left out: {', '.join(map(printable, code.left_out[:5]))}{more}: a repository can't take them")
    if code.lacks_sources:
        lines.append("  without csrc/: a wheel has no C++ sources; from a checkout they would be filed too")
    return "\n".join([f"{printable(root)}:", *(f"  {line}" for line in lines)])
