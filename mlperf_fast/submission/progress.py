"""What a person sees of a campaign: a bar over its runs on a terminal, plain lines in a pipe."""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from mlperf_fast.submission.records import TOKEN, is_number

_TOKEN = TOKEN.encode()


class Progress:
    """Run I of N, the run's last evaluation, and the time left as the finished runs let expect it."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._bar: Any = None
        if sys.stdout.isatty():
            from rich import progress

            columns = (
                progress.TextColumn("run {task.fields[run]} of {task.total}"),
                progress.BarColumn(),
                progress.TextColumn("{task.fields[note]}"),
                progress.TimeElapsedColumn(),
            )
            self._bar = progress.Progress(*columns)
            self._task = self._bar.add_task("runs", total=runs, run=1, note="")
            self._bar.start()

    def say(self, text: str) -> None:
        """One line that stays."""
        self._bar.console.print(text, highlight=False, markup=False) if self._bar else print(text, flush=True)

    def resumed(self, ended: Sequence[Any], out: Path) -> None:
        """Says what was there already."""
        if ended:
            self.say(f"{out} holds {len(ended)} of {self._runs} runs:")
        for one in ended:
            self.ended(one)

    def started(self, number: int, earlier: Sequence[float]) -> None:
        """Run `number` begins; `earlier` are the seconds that finished ones took."""
        self._number, self._began, self._note, self._read = number, time.monotonic(), "", 0
        self._each = statistics.fmean(earlier) if earlier else None
        if self._bar:
            self._bar.update(self._task, completed=number, run=number + 1, note=self._left())
        else:
            self.say(f"run {number + 1} of {self._runs} begins  {self._left()}")

    def look(self, log: Path) -> None:
        """Shows what the run's log has got since the last look."""
        for epoch, quality in self._evaluations(log):
            self._note = f"quality {quality:.4f} at epoch {epoch:,.2f}"
            if not self._bar:
                self.say(f"run {self._number + 1} of {self._runs}  {self._note}  {self._left()}")
        if self._bar:
            done = min((time.monotonic() - self._began) / self._each, 0.99) if self._each else 0
            self._bar.update(self._task, completed=self._number + done, note=f"{self._note}  {self._left()}")

    def ended(self, one: Any) -> None:
        figures = [
            f"epoch {one.epochs:,.2f}" if one.epochs else "",
            f"quality {one.quality:.4f}" if one.quality else "",
        ]
        figures += [f"{one.minutes * 60:,.1f} s" if one.minutes is not None else "", f"seed {one.seed}"]
        code = f"{one.how} (exit code {one.code})" if one.how == "crashed" else one.how
        self.say("  ".join([f"run {one.run + 1} of {self._runs} {code}", *filter(None, figures)]))

    def close(self) -> None:
        """Gives the terminal back."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _left(self) -> str:
        if self._each is None:
            return "time left: known after the first run"
        seconds = max(0.0, (self._runs - self._number) * self._each - (time.monotonic() - self._began))
        return f"about {timedelta(seconds=round(seconds))} left"

    def _evaluations(self, log: Path) -> list[tuple[float, float]]:
        """(epoch_num, quality) of whole new lines."""
        try:
            with open(log, "rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        found = []
        for line in whole.splitlines():
            if b'"eval_accuracy"' in line and _TOKEN in line:
                record = json.loads(line.rpartition(_TOKEN)[2])
                values = record["value"].values() if isinstance(record["value"], dict) else [record["value"]]
                epoch: Any = record["metadata"].get("epoch_num")
                quality: Any = next(iter(values), None)
                if is_number(epoch) and is_number(quality):
                    found.append((float(epoch), float(quality)))
        return found
