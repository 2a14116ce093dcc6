"""The code of a submission: benchmarks/<benchmark>/implementations/, with the words that the rules want beside it.

Two folders: the code, one for all systems (`mlperf_fast`, or a copy of the folder that was named), and one called as
the system, that says how its runs were made: README.md, the scripts setup.sh, init_datasets.sh and run_and_time.sh,
config.json as the runs resolved it, and <system>_<code>.json on weights and data.
"""

import json
import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlperf_fast.errors import UserError
from mlperf_fast.submission.records import MAX_BYTES
from mlperf_fast.submission.tables import printable
from mlperf_fast.suite import BENCHMARKS, Benchmark

OWN_NAME = "mlperf_fast"
_PACKAGE = Path(__file__).parents[1]
_BUILD_FILES = ("setup.py", "pyproject.toml", "constraints.txt", "MANIFEST.in", "LICENSE", "CHANGELOG.md")
_MOST_FILES = 50_000
_STARTS_FROM_WEIGHTS = ("bert", "maskrcnn", "retinanet")  # training_rules.adoc v2.0: the reference's own


@dataclass(frozen=True, slots=True)
class Code:
    """What is filed: (file, its path within the code's folder). left_out: names that a repository can't take."""

    name: str
    files: tuple[tuple[Path, str], ...]
    left_out: tuple[str, ...] = ()
    lacks_sources: bool = False  # of the C++ kernels: installed from a wheel


def own_code() -> Code:
    """This package's own source, as it runs here; from a checkout with all that a build needs."""
    root = _PACKAGE.parent
    is_checkout = (root / "setup.py").is_file() and (root / "csrc").is_dir()
    files = sorted(_PACKAGE.rglob("*.py"))
    if is_checkout:
        files += sorted(path for path in (root / "csrc").rglob("*") if path.is_file())
        files += sorted([*(root / "kernels").rglob("*.py"), *(root / "benchmarks").glob("*.py")])
        files += [root / name for name in _BUILD_FILES if (root / name).is_file()]
    pairs = tuple((path, path.relative_to(root).as_posix()) for path in files)
    return Code(OWN_NAME, pairs, lacks_sources=not is_checkout)


def other_code(folder: Path) -> Code:
    """The files below a folder. UserError for what a repository can't take, except for names that begin with a dot
    and compiled Python, which stay out."""
    if not folder.is_dir():
        raise UserError(f"--code {printable(folder)}: no such folder; expected the code that made the logs")
    files: list[tuple[Path, str]] = []
    left_out: list[str] = []
    for path in _walk(folder, left_out):
        name = path.relative_to(folder).as_posix()
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            raise UserError(f"--code: {printable(path)} is a link; put the file itself in its place")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"--code: {printable(path)} is neither a file nor a folder; take it away")
        if " " in name or not name.isprintable():
            raise UserError(f"--code: {printable(path)}: a submission's names have no spaces; rename it")
        if status.st_size > MAX_BYTES:
            raise UserError(f"--code: {printable(path)} has {status.st_size / 2**20:.0f} MiB, {MAX_BYTES >> 20} are "
                            "allowed: code is filed, no data or weights")  # fmt: skip
        files.append((path, name))
        if len(files) > _MOST_FILES:
            raise UserError(f"--code {printable(folder)} holds more than {_MOST_FILES:,} files: is this the code?")
    if not any("/" not in name and name.lower().startswith("readme") for _, name in files):
        raise UserError(f"--code {printable(folder)} has no README: the rules want the steps to get the data, to build "
                        "and to run, with the command lines")  # fmt: skip
    return Code(os.path.basename(os.path.abspath(folder)), tuple(files), tuple(left_out))


def _walk(folder: Path, left_out: list[str]) -> Iterator[Path]:
    """Files and links below a folder; links aren't followed."""

    def unreadable(error: OSError) -> None:
        raise UserError(f"--code: {printable(error.filename)} can't be read: {error.strerror}")

    for here, below, files in os.walk(folder, onerror=unreadable):
        links = [name for name in below if os.path.islink(os.path.join(here, name))]
        kept = []
        for name in sorted(below + files):
            if name.startswith(".") or name == "__pycache__" or name.endswith((".pyc", ".pyo")):
                left_out.append(os.path.relpath(os.path.join(here, name), folder))
            elif name in below and name not in links:
                kept.append(name)
            else:
                yield Path(here, name)
        below[:] = kept


def write_code(code: Code, target: Path) -> None:
    """Copies the files; of their modes only the right to execute stays."""
    for source, name in code.files:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path, follow_symlinks=False)
        path.chmod(0o755 if os.lstat(source).st_mode & 0o100 else 0o644)
    if code.name == OWN_NAME and not (target / "README.md").exists():
        (target / "README.md").write_text(_readme_of_code(code))


def files_of_runs(config: Mapping[str, Any], launched: int | None, system: str, code: str) -> dict[str, str]:
    """{name: content} of the system's folder for runs of this package. config: their config.json. launched: how many a
    campaign made; None if none did. KeyError, TypeError, ValueError or AttributeError for a config that no run saved.
    """
    bench = BENCHMARKS[config["workload"]]
    scripts = {
        "setup.sh": _setup(config, code),
        "init_datasets.sh": _datasets(config),
        "run_and_time.sh": [_run(config)],
    }
    return {
        "README.md": _readme_of_runs(config, launched, bench, system, code),
        "config.json": json.dumps(config, indent=1) + "\n",
        f"{system}_{code}.json": json.dumps(_weights_and_data(config, bench), indent=4) + "\n",
        **{name: "\n".join(("#!/usr/bin/env bash", "set -e", *lines)) + "\n" for name, lines in scripts.items()},
    }


def write_runs(files: Mapping[str, str], target: Path) -> None:
    """Writes them; scripts may be executed."""
    target.mkdir(parents=True)
    for name, content in files.items():
        (target / name).write_text(content)
        (target / name).chmod(0o755 if name.endswith(".sh") else 0o644)


def write_pointer(benchmark: str, system: str, code: Code, target: Path) -> None:
    """The system's folder for runs of other code: where the words on it are."""
    (readme,) = [name for _, name in code.files if "/" not in name and name.lower().startswith("readme")][:1]
    target.mkdir(parents=True)
    (target / "README.md").write_text(
        f"# {benchmark} on {system}\n\nThe logs in `results/{system}/{benchmark}` were made by the code in "
        f"[../{code.name}](../{code.name}).\nData, build and command lines: [its README](../{code.name}/{readme}).\n"
        f"The system: `systems/{system}.json`.\n"
    )


# --- how a run was made, from its config.json -----------------------------------------------------------------------


def _run(config: Mapping[str, Any]) -> str:
    """The command line of one run; its folder is the first argument of the script."""
    processes, nodes = config["processes"], int(config["machine"].get("number_of_nodes", 1))
    start = ["mlperf-fast"]
    if processes > 1:
        start = ["torchrun", "--nproc-per-node", str(processes // nodes)]
        start += ["--nnodes", str(nodes), "--rdzv-backend", "c10d"] if nodes > 1 else []
        start += ["-m", "mlperf_fast"]
    words = [*start, "run", config["workload"], "--preset", config["preset"], *_sets(config)]
    endpoint = ' --rdzv-endpoint "${HEAD:?address of the first node}:29500"' if nodes > 1 else ""
    line = shlex.join(words).replace("--rdzv-backend c10d", f"--rdzv-backend c10d{endpoint}")
    return f'{line} --out "${{1:?name the folder of the run}}"'


def _sets(config: Mapping[str, Any]) -> list[str]:
    """What was set on top of the preset."""
    keys = [key for key, origin in config["origins"].items() if origin == "--set"]
    return [word for key in keys for word in ("--set", f"{key}={_as_text(_value(config['config'], key))}")]


def _campaign(config: Mapping[str, Any], launched: int) -> str:
    """The command line of all runs, on one machine."""
    words = ["mlperf-fast", "campaign", config["workload"], "--preset", config["preset"], "--runs", str(launched)]
    words += ["--nproc", str(config["processes"])] if config["processes"] > 1 else []
    return f"{shlex.join([*words, *_sets(config)])} --out FOLDER"


def _value(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def _as_text(value: Any) -> str:
    """As `--set` reads it."""
    if isinstance(value, list):
        return ",".join(map(_as_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _setup(config: Mapping[str, Any], code: str) -> Sequence[str]:
    build = "MLPERF_FAST_CUDA=1 " if "cuda" in config["versions"] else ""
    return (
        f"# Python {config['versions']['python']} and torch {config['versions']['torch']} made the results; g++ >= 10",
        'here=$(cd "$(dirname "$0")" && pwd)',
        f'{build}python3 -m pip install "$here/../{code}"',
    )


def _generated(config: Mapping[str, Any]) -> Any:
    data = config["config"].get("data")
    return data.get("generated") if isinstance(data, dict) else None


def _datasets(config: Mapping[str, Any]) -> Sequence[str]:
    line = f"mlperf-fast prepare {config['workload']} --preset {shlex.quote(config['preset'])}"
    if _generated(config):
        return (f"# made-up data ({_generated(config)}), in the format of the benchmark's", line)
    return (f'{line} --raw "${{1:?folder of the raw data}}" --out "${{2:?folder to write}}"',)


def _weights_and_data(config: Mapping[str, Any], bench: Benchmark) -> dict[str, str]:
    given = bench.name in _STARTS_FROM_WEIGHTS
    return {
        "starting_weights_filename": "the reference's" if given else "none: drawn at random",
        "weight_transformations": "to the names of this package" if given else "none",
        "weight_data_types": "fp32",
        "input_data_types": f"as the dataset has them; computed in {config['config']['precision']}",
        "retraining": "no",
    }


_CODE = """# mlperf_fast {version}

One package that trains the benchmarks of MLPerf Training v2.0. This folder is its source as it made the results.

## Build

`pip install .` here; Python >= 3.10, g++ >= 10, and nvcc for the CUDA kernels. `mlperf-fast env` says what was built.
{lacking}
## What reviewers look for

| what | where |
| --- | --- |
| data: preparation, verification by content | `mlperf-fast prepare --help`; `mlperf_fast/workloads/*/data.py` |
| order in which data is traversed | `mlperf_fast/data/`, `mlperf_fast/workloads/*/data.py` |
| model and initialisation of weights | `mlperf_fast/workloads/*/model.py` |
| loss, hyperparameters, evaluation | `mlperf_fast/workloads/*/workload.py`, `presets.py` |
| optimizers and schedules | `mlperf_fast/optim/` |
| the loop with its clock, and what is logged when | `mlperf_fast/loop/train.py` |
| kernels, each beside its reference in plain PyTorch | `mlperf_fast/ops/`, `csrc/`, `kernels/` |

How the runs of a system were started is in the folder called as the system, beside this one.
"""


def _readme_of_code(code: Code) -> str:
    from mlperf_fast import __version__

    lacking = "\nThe C++ sources (`csrc/`) aren't here: the runs were made by a wheel.\n" if code.lacks_sources else ""
    return _CODE.format(version=__version__, lacking=lacking)


def _readme_of_runs(config: Mapping[str, Any], launched: int | None, bench: Benchmark, system: str, code: str) -> str:
    values, sign = config["config"], "at least" if bench.higher_is_better else "at most"
    data = (
        f"Made up (`{_generated(config)}`) in the true format: no result of the benchmark."
        if _generated(config)
        else f"{bench.dataset}. `init_datasets.sh RAW OUT` converts the raw data and verifies it by content."
    )
    together = (
        f"\n\nAll {launched}, one after the other:\n\n```sh\n{_campaign(config, launched)}\n```" if launched else ""
    )
    evaluation = bench.evaluation.partition(";")[0].partition(" (")[0]
    official = ", ".join(f"{metric} {value}" for metric, value in bench.target.items())
    return f"""# {bench.log_name} on {system}

{bench.model}, preset `{config["preset"]}`. The code: [../{code}](../{code}/README.md).

## Steps

```sh
./setup.sh                     # builds and installs
./init_datasets.sh{"        " if _generated(config) else " RAW OUT"}     # the data
./run_and_time.sh FOLDER       # one run, its log is FOLDER/result_0.txt
```

One run is

```sh
{_run(config)}
```{together}

## Data

{data}

## Quality

{bench.metric}, {sign} {values["target"]} in these runs (closed division: {official}).
Evaluation in the closed division: {evaluation}; in these runs as `config.json` says.

## Hyperparameters

All in [config.json](config.json), with where each value came from; batch size {values["batch_size"]}, computed in
{values["precision"]}. {_seeds(values)}

## System

`systems/{system}.json`. {config["processes"]} process(es), torch {config["versions"]["torch"]}.
"""


def _seeds(values: Mapping[str, Any]) -> str:
    if values.get("seed") is not None:
        return f"The seed was set to {values['seed']}."
    return "Each run drew a seed of its own from the system's source of entropy."
