"""Runs commands one after another within a time budget and keeps what they said, whatever becomes of them.

Standard library only: it must work before anything of ours is built.
"""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

TAIL = 2000  # characters of a command's output that the report keeps; all of it is in the log
SHOWN = 20  # failures and findings named in the report


@dataclass
class Done:
    """How a command ended. `code` is None where it was stopped at its limit or could not be started."""

    code: int | None
    seconds: float
    output: str

    @property
    def verdict(self) -> str:
        if self.code is None:
            return "stopped" if self.seconds else f"failed: {self.output}"
        return f"failed ({self.code})" if self.code else "ok"


@dataclass
class Stage:
    """One line of the report. `facts` is what the stage found, for the JSON; `notes` lines for the Markdown."""

    name: str
    verdict: str
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tail: str = ""

    @property
    def is_fine(self) -> bool:
        return self.verdict == "ok" or self.verdict.startswith("skipped")


class Report:
    """The stages so far, as `gpu.json` and `gpu.md` in a folder: whole after each stage, so that a kill loses none."""

    def __init__(self, folder: Path, machine: Mapping[str, str], budget: float) -> None:
        self.folder, self.machine, self.budget = folder, dict(machine), budget
        self.stages: list[Stage] = []
        self.started = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "gpu.log"
        self.log.write_text("")

    @property
    def left(self) -> float:
        """Seconds of the budget that remain."""
        return self.budget - (time.monotonic() - self.started)

    def add(self, stage: Stage) -> Stage:
        self.stages.append(stage)
        content = {"machine": self.machine, "budget_seconds": self.budget, "stages": [asdict(s) for s in self.stages]}
        replace(self.folder / "gpu.json", json.dumps(content, indent=1))
        replace(self.folder / "gpu.md", self.markdown())
        print(f"{stage.name}: {stage.verdict}, {stage.seconds:.0f} s ({max(0.0, self.left):.0f} s left)", flush=True)
        return stage

    def call(self, command: Sequence[str | Path], most: float, environment: Mapping[str, str] | None = None) -> Done:
        """Runs a command for at most `most` seconds and not past the budget. It and its children end with the limit."""
        limit, started = min(most, self.left), time.monotonic()
        words = [str(word) for word in command]
        with open(self.log, "ab") as log:
            log.write(f"\n$ {' '.join(words)}\n".encode())
            log.flush()
            begin = log.tell()
            try:
                process = subprocess.Popen(
                    words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                    env={**os.environ, **(environment or {})}, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return Done(None, 0.0, f"{words[0]}: {error.strerror}")
            code: int | None
            try:
                code = process.wait(max(limit, 1.0))
            except subprocess.TimeoutExpired:
                code = None
            except BaseException:
                stop(process)
                raise
            stop(process)
        with open(self.log, "rb") as log:
            log.seek(begin)
            output = log.read().decode(errors="replace")
        return Done(code, time.monotonic() - started, output)

    def markdown(self) -> str:
        lines = ["# What a GPU says", "", *(f"- {item}: {value}" for item, value in self.machine.items()), ""]
        lines += ["| stage | verdict | seconds |", "| --- | --- | --- |"]
        lines += [f"| {stage.name} | {stage.verdict} | {stage.seconds:.0f} |" for stage in self.stages]
        for stage in self.stages:
            if stage.notes or (stage.tail and not stage.is_fine):
                lines += ["", f"## {stage.name}", "", *stage.notes]
            if stage.tail and not stage.is_fine:
                lines += ["", "```", stage.tail.strip(), "```"]
        return "\n".join(lines) + "\n"


def stop(process: subprocess.Popen) -> None:
    """Ends the process group: first asked to, so that a test run still writes its results, then killed."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def replace(path: Path, text: str) -> None:
    """The whole file or the one before, never half of it."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def from_call(name: str, done: Done, **facts: Any) -> Stage:
    return Stage(name, done.verdict, done.seconds, facts, tail=done.output[-TAIL:])


def read_junit(path: Path) -> tuple[dict[str, int], list[str], list[str]]:
    """From pytest's JUnit file: counts, "test: message" for each failure, and "reason (times)" for what was skipped."""
    counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
    failures: list[str] = []
    skipped: dict[str, int] = {}
    for case in ElementTree.parse(path).iter("testcase"):
        kinds = {child.tag: child for child in case}
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        wrong = kinds.get("failure", kinds.get("error"))
        absent = re.search(r"No module named '(?!mlperf_fast)(\w+)", wrong.text or "") if "error" in kinds else None
        if absent:
            counts["skipped"] += 1
            reason = f"{absent[1]} is not installed, and a test file needs it"
            skipped[reason] = skipped.get(reason, 0) + 1
        elif wrong is not None:
            counts["failed"] += 1
            message = (wrong.get("message") or "").strip()
            failures.append(f"{name}: {message.splitlines()[0] if message else 'no message'}")
        elif "skipped" in kinds:
            counts["skipped"] += 1
            reason = kinds["skipped"].get("message") or "no reason"
            skipped[reason] = skipped.get(reason, 0) + 1
        else:
            counts["passed"] += 1
    return counts, failures, [f"{reason} ({times})" for reason, times in sorted(skipped.items(), key=lambda x: -x[1])]
