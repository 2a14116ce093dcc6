"""Runs the official compliance check of ruleset 2.0.0 on records, and says its findings by rule, line and reason.

The rules are mlperf-logging's own (training_2.0.0/*.yaml, evaluated by its ComplianceChecker); nothing of them is
written again here. What is put around them: the checker's queue of rule files is a global that an exception leaves
dirty, and it builds names of rule files from values of the log, which it then opens and executes; its messages keep
only the last faulty line of a key; and it ends in a traceback where a value has an unexpected type.
"""

import os
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import CodeType
from typing import Any, ClassVar

from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.compliance_checker.mlp_parser.ruleset_200 import LogLine

from mlperf_fast.submission.records import Finding, Record, shown
from mlperf_fast.suite import BENCHMARKS, RULESET

_CONFIGS = f"training_{RULESET}"
_FOLDER = os.path.dirname(os.path.abspath(mlp_compliance.__file__))
_LOCK = threading.Lock()  # the checker keeps its queue in a global

# The checks on order, in words: what is wrong with a record of that key.
_ORDER = {
    "not s['init_stopped']": "stands behind init_stop",
    "not s['run_started']": "stands behind run_start",
    "s['init_started']": "has no init_start before it",
    "( s['init_stopped'] == True )": "has no init_stop before it",
    "s['run_started']": "has no run_start before it",
    "ll.timestamp - s['first_init_start'] < (s['compile_time_mins']*60*1e3)": "is later than the division allows",
}


def compliance(records: Sequence[Record]) -> list[Finding]:
    """The official findings on the records of one file, those of a failed log as errors, mere warnings as such.

    The log passes the official check exactly if none is an error (and `read_records` found no faulty record). An
    exception within the checker, which its command line ends with, becomes the finding `compliance/stopped`.
    """
    # The checker uses full_string in its messages alone, and there we want the line, to find it again.
    lines = [
        LogLine(f"line {r.line}:", r.time_ms, r.key, {"value": r.value, "metadata": r.metadata}, r.line)
        for r in records
    ]
    checker = _Checker()
    with _isolated() as queue:
        queue.append(f"{_CONFIGS}/common.yaml")
        while queue:
            checker.run(lines, queue.pop(0))
    by_line = {record.line: record for record in records}
    return [finding for said in checker.said() for finding in _explain(*said, records, by_line)]


class _KnownConfigs(list[str]):
    """The queue of rule files: takes those of our ruleset, each once, and no path that a log's value leads to."""

    def __init__(self) -> None:
        super().__init__()
        self._open = {f"{_CONFIGS}/{name}" for name in os.listdir(os.path.join(_FOLDER, _CONFIGS))}

    def append(self, config: str) -> None:
        if config in self._open:
            self._open.remove(config)
            super().append(config)


class _RuleFiles:
    """In the place of the checker's `yaml`: reads each rule file once (parsing is nine tenths of a check)."""

    BaseLoader = mlp_compliance.yaml.BaseLoader
    _read = staticmethod(mlp_compliance.yaml.load)
    _parsed: ClassVar[dict[str, Any]] = {}

    @classmethod
    def load(cls, file: Any, Loader: Any) -> Any:
        if file.name not in cls._parsed:
            cls._parsed[file.name] = cls._read(file, Loader=Loader)
        return cls._parsed[file.name]


def parse_rules_once() -> None:
    """From now on the official checker of this process does, however it is called; its verdicts are the same."""
    mlp_compliance.yaml = _RuleFiles


@cache
def _compiled(code: str, mode: str) -> CodeType:
    return compile(code, "<rule>", mode)


@contextmanager
def _isolated() -> Iterator[_KnownConfigs]:
    """The checker's module with our queue, our rule files, each rule compiled once (compiling is half of a check), and
    without the state in its messages (it prints all of it into each: time with the square of a log's length, and we
    don't read it). All is put back at the end."""
    ours = {
        "enqueued_configs": _KnownConfigs(),
        "yaml": _RuleFiles,
        "preety_dict": lambda _: "",
        "eval": lambda code, *scopes: eval(_compiled(code, "eval"), *scopes),
        "exec": lambda code, *scopes: exec(_compiled(code, "exec"), *scopes),
    }
    with _LOCK:
        kept = {name: getattr(mlp_compliance, name) for name in ours if hasattr(mlp_compliance, name)}
        try:
            for name, value in ours.items():
                setattr(mlp_compliance, name, value)
            yield mlp_compliance.enqueued_configs
        finally:
            for name in ours:
                if name in kept:
                    setattr(mlp_compliance, name, kept[name])
                else:
                    delattr(mlp_compliance, name)  # a built-in function again


class _Checker(mlp_compliance.ComplianceChecker):
    """The official checker; it keeps every message, with the rule file it came from."""

    def __init__(self) -> None:
        super().__init__("training", RULESET, quiet=False, werror=False)
        self.config = ""
        self.stopped: list[tuple[str, str | None, str, str]] = []

    def run(self, lines: list[LogLine], config: str) -> None:
        self.config = config
        try:
            self.configured_checks(lines, os.path.join(_FOLDER, config))
        except Exception as error:  # its own rules raise on values of unexpected types
            self.stopped.append((config, "stopped", f"{type(error).__name__}: {error}", "error"))

    def put_message(self, msg: str, key: str | None = None) -> None:
        if key:  # by key, because a later rule file can withdraw what was said of its keys
            self.overwritable.setdefault(key, []).append((self.config, msg))
        else:
            self.not_overwritable.append((self.config, msg))

    def put_warning(self, msg: str, key: str) -> None:
        self.warnings[key] = (self.config, msg)

    def said(self) -> list[tuple[str, str | None, str, str]]:
        """(rule file, key or None, message, severity) of everything that stands at the end."""
        keyed = [(config, key, msg, "error") for key, said in self.overwritable.items() for config, msg in said]
        free = [(config, None, msg, "error") for config, msg in self.not_overwritable]
        warned = [(config, key, msg, "warning") for key, (config, msg) in self.warnings.items()]
        return keyed + free + warned + self.stopped


def _explain(
    config: str, key: str | None, said: str, severity: str, records: Sequence[Record], by_line: dict[int, Record]
) -> Iterator[Finding]:
    def finding(rule: str | None, line: int | None, message: str) -> Finding:
        return Finding(f"compliance/{rule}", line, message, f"mlperf-logging {config}", severity)

    if key == "stopped":
        message = f"the official checker can't judge the log and stops with {said}; look for a value of a wrong type"
        yield finding(key, None, message)
    elif match := re.match(r"CHECK for '.*' failed in line (\d+):", said):
        line = int(match[1])
        test = said.partition("\nfailed test: ")[2].partition("\ncurrent context")[0].strip()
        yield finding(key, line, _failed(key, test, by_line[line]))
    elif match := re.search(r"triggered by line ?:\nline (\d+):", said):
        line = int(match[1])
        yield finding(key, line, f"{key} is {shown(by_line[line].value)}: the check can't be computed for such a value")
    elif match := re.match(r"Required (\w+) occurrence of '.*' but found (\d+)", said):
        lines = [r.line for r in records if r.key == key]
        wanted = "exactly one" if match[1] == "EXACTLY_ONE" else "at least one"
        values = {shown(r.value, 20) for r in records if r.key == key}
        differing = f", with different values ({', '.join(sorted(values)[:4])})" if len(values) > 1 else ""
        message = f"expected {wanted} record of {key}, found {match[2]}{differing}"
        yield finding(key, lines[1] if len(lines) > 1 else None, message)
    elif match := re.match(r"Required AT_LEAST_ONE occurrence of (.*)", said):
        names = sorted(re.findall(r"'(\w+)'", match[1]))
        yield finding(names[0], None, f"expected at least one record of {' or '.join(names)}, found none")
    elif match := re.match(r"Failed checks for (\w+) : (.*)", said, re.DOTALL):
        last = [r for r in records if r.key == match[1]][-1]
        message = f"no evaluation passes the test {match[2].strip()}; the last is {shown(last.value)}"
        yield finding(match[1], last.line, message)
    elif "initialized_tensors" in said:
        yield finding("weights_initialization", *_tensors(records))
    else:
        yield finding(key or "other", None, shown(said, 300))


def _failed(key: str | None, test: str, record: Record) -> str:
    if match := re.fullmatch(r"'(\w+)' in v\['(metadata|value)'\]", test):
        return f"{key} has no {match[1]!r} in its {match[2]}"
    if test in _ORDER:
        return f"{key} {_ORDER[test]}"
    return f"{key} is {shown(record.value)}; the checker wants {test}"


def _tensors(records: Sequence[Record]) -> tuple[int | None, str]:
    """(line of the first record that is too many, what is missing and what is too many)."""
    log_name = next((r.value for r in records if r.key == "submission_benchmark"), None)
    wanted = Counter(name for b in BENCHMARKS.values() if b.log_name == log_name for name in b.weight_names())
    logged: Counter[str] = Counter()
    line = None
    for record in records:
        if record.key == "weights_initialization":
            tensor = record.metadata.get("tensor")
            name = tensor if isinstance(tensor, str) else shown(tensor)
            logged[name] += 1
            if line is None and logged[name] > wanted[name]:
                line = record.line
    parts = []
    for label, names in (("missing", wanted - logged), ("too many", logged - wanted)):
        if names:
            some = ", ".join(shown(name) for name in sorted(names)[:4])
            parts.append(f"{names.total()} {label} ({some}{', ...' if len(names) > 4 else ''})")
    return line, f"one record for each of {wanted.total()} tensors is expected: {'; '.join(parts)}"
