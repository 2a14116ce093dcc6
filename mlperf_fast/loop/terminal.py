"""What a person sees of a run: a bar on a terminal, plain lines in a pipe, and the summary at the end."""

import sys
from dataclasses import dataclass, field
from typing import Any

from mlperf_fast.suite import BENCHMARKS


@dataclass
class Outcome:
    """How a run ended. Times in seconds; `curve` holds (epoch_num, quality) of each evaluation."""

    benchmark: str
    preset: str
    metric: str
    target: float
    higher_is_better: bool
    reached: bool
    quality: float
    steps: int
    samples: int
    run_seconds: float
    init_seconds: float
    samples_per_second: float
    data_wait_share: float
    backends: dict[str, str]
    step_mode: str  # captured or eager, and why
    result: str  # the log's path
    seed: int
    curve: list[tuple[float, float]] = field(default_factory=list)


class Terminal:
    """Progress of one run on stdout. Says nothing on ranks other than the first."""

    def __init__(self, is_first: bool, max_steps: int) -> None:
        self._quiet = not is_first
        self._max_steps = max_steps
        self._bar: Any = None
        if is_first and sys.stdout.isatty():
            from rich import progress

            columns = (
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("{task.fields[note]}"),
            )
            self._bar = progress.Progress(*columns)
            self._task = self._bar.add_task("training", total=max_steps, note="")
            self._bar.start()

    def say(self, text: str) -> None:
        if not self._quiet:
            self._bar.console.print(text, highlight=False) if self._bar else print(text, flush=True)

    def step(self, step: int, loss: float, learning_rate: float, samples_per_second: float, wait: float) -> None:
        note = f"loss {loss:.4f}  lr {learning_rate:.4g}  {samples_per_second:,.0f} samples/s  data wait {wait:.0%}"
        if self._bar:
            self._bar.update(self._task, completed=step, note=note)
        else:
            self.say(f"step {step}/{self._max_steps}  {note}")

    def note(self, text: str) -> None:
        """What the bar says beside its steps; nothing in a pipe."""
        if self._bar:
            self._bar.update(self._task, note=text)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def summary(outcome: Outcome) -> str:
    """The lines a run ends with: the verdict, the quality curve as bars, and the figures."""
    sign = ("≥" if outcome.higher_is_better else "≤") if outcome.reached else "misses"
    verdict = "reached the target" if outcome.reached else "did not reach the target"
    lines = [
        "",
        f"{outcome.benchmark} {outcome.preset}: {verdict}  "
        f"({outcome.metric} {outcome.quality:.4f} {sign} {outcome.target:.4f})",
        "",
        *curve_lines(outcome),
        "",
        f"  time to train   {outcome.run_seconds:.1f} s (after {outcome.init_seconds:.1f} s of initialisation)",
        f"  trained         {outcome.steps:,} steps, {outcome.samples:,} samples",
        f"  speed           {outcome.samples_per_second:,.0f} samples/s, {outcome.data_wait_share:.0%} spent waiting",
        f"  backends        {', '.join(f'{op}: {name}' for op, name in outcome.backends.items())}",
        f"  step            {outcome.step_mode}",
        f"  result log      {outcome.result}",
    ]
    return "\n".join(lines)


def curve_lines(outcome: Outcome, width: int = 40) -> list[str]:
    """One line an evaluation: epoch, quality and a bar from the worst to the best value; `|` marks the target."""
    if not outcome.curve:
        return ["  no evaluation yet"]
    values = [quality for _, quality in outcome.curve] + [outcome.target]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    mark = round((outcome.target - low) / span * width)
    lines = [f"  {counted(outcome.benchmark):>9}  {outcome.metric}"]
    for epoch, quality in outcome.curve:
        filled = round((quality - low) / span * width)
        cells = ["█" if cell < filled else " " for cell in range(width + 1)]
        if cells[mark] == " ":
            cells[mark] = "|"
        lines.append(f"  {number(epoch):>9}  {quality:.4f}  {''.join(cells).rstrip()}")
    return lines


def counted(benchmark: str) -> str:
    """What the log's epoch_num counts."""
    return "samples" if BENCHMARKS[benchmark].epoch_num.startswith("samples") else "epoch"


def number(epoch_num: float) -> str:
    return f"{epoch_num:,}" if isinstance(epoch_num, int) else f"{epoch_num:.2f}"
