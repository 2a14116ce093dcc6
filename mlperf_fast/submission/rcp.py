"""Reference convergence points (RCP): may a submission converge in so few epochs at its batch size?

The reference was trained many times at some batch sizes. A submission passes if the mean of its epochs to converge is
not significantly below the reference's at its batch size: a one-sided t-test at 5 %, of as many runs as a submission
has. Between two batch sizes the reference is interpolated; above the largest, the submitter must bring points of his
own; below the smallest, it suffices not to be faster than the smallest.

Two methods, which differ in the points' deviation and in which points are kept for the test (`METHODS`):

deadline  as the official checker did at the deadline of v2.0 (mlcommons/logging, tag 2.0.0-rc4, 2022-05-19)
today     as the mlperf-logging package does since 2024, for every ruleset

Points that `rcp record` made ask for more: a test with two sides (`difference`), which no official checker has.

Everything here is computation over plain data; numpy's own mean, deviation and interpolation are used, so that the
last bit is the checker's. The points come from the package's tables, or from a file in their format.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import pairwise
from typing import Any

from mlperf_fast.errors import UserError
from mlperf_fast.submission.records import is_number, shown
from mlperf_fast.suite import RULESET, Benchmark

ALPHA = 0.05  # of the one-sided t-test
TOLERANCE = 1e-4  # epochs: how finely the checker looks for the least mean that passes
NEVER = 1e9  # epochs of a run that didn't converge, for the checker
DEADLINE, TODAY = "deadline", "today"
METHODS = (DEADLINE, TODAY)


@dataclass(frozen=True, slots=True)
class Reference:
    """The reference at one batch size, as a table holds it: epochs to converge of each run, in the benchmark's unit.
    two_sided: a submission at this batch size may not be slower either."""

    name: str
    batch: int
    epochs: tuple[float, ...]
    when: str = ""
    hyperparameters: str = ""
    two_sided: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """What the test compares with. runs: in the reference, None if interpolated. mean and deviation: without the runs
    that an olympic mean drops. least: the smallest mean of a submission that passes. kept: whether the test uses it."""

    name: str
    batch: float
    runs: int | None
    mean: float
    deviation: float
    least: float
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Difference:
    """Two sets of runs, all of each, compared from both sides. p: how likely a difference like theirs is by chance.
    mean, reference: of the epochs, `mean` None if a run didn't converge. resolution: the shift of the mean that four of
    five such comparisons would find."""

    p: float
    mean: float | None
    reference: float
    resolution: float

    @property
    def passes(self) -> bool:
        """Whether the two may be the same."""
        return self.p >= ALPHA


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a submission stands. said: the official checker's words. mean: of the submission's epochs. point: what it was
    compared with. missing: the batch size for which points must be submitted. factor: by which today's package would
    multiply the score (it is no rule of v2.0); never below 1."""

    method: str
    passes: bool
    said: str
    mean: float | None = None
    point: Point | None = None
    missing: float | None = None
    factor: float = 1.0


# --- tables ---------------------------------------------------------------------------------------------------------


def table(benchmark: Benchmark) -> list[Reference]:
    """The installed package's points of v2.0. UserError where there are none (minigo)."""
    name = f"rcps_{benchmark.log_name}.json"
    path = files("mlperf_logging.rcp_checker") / f"training_{RULESET}" / name
    if not path.is_file():
        raise UserError(f"{benchmark.log_name} has no reference convergence points in v2.0, so none are demanded")
    return references(json.loads(path.read_text()), benchmark, name)


def table_from_file(path: str | os.PathLike[str], benchmark: Benchmark) -> list[Reference]:
    """Points in the package's JSON format. UserError if they can't be used for this benchmark."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: can't be read as reference convergence points: {reason}") from None
    return references(content, benchmark, path)


def references(content: Any, benchmark: Benchmark, where: str | os.PathLike[str] = "the table") -> list[Reference]:
    """The points in an object of the package's JSON format, by batch size. UserError if they can't be used."""
    found = []
    for name, record in content.items() if isinstance(content, dict) else ():
        if not isinstance(record, dict) or not {"Benchmark", "BS", "Epochs to converge"} <= record.keys():
            raise UserError(f"{where}: {shown(name)} must be an object with Benchmark, BS and Epochs to converge")
        if record["Benchmark"] != benchmark.log_name:
            raise UserError(
                f"{where}: {shown(name)} is of {shown(record['Benchmark'])}, where {benchmark.log_name} is tested"
            )
        batch, epochs = record["BS"], record["Epochs to converge"]
        if not is_number(batch) or batch != int(batch) or not 0 < batch < NEVER:
            raise UserError(f"{where}: BS of {shown(name)} is {shown(batch)}; expected a batch size")
        if not isinstance(epochs, list) or not all(is_number(e) and 0 < e < NEVER for e in epochs):
            raise UserError(f"{where}: Epochs to converge of {shown(name)} must be a list of positive numbers")
        if len(epochs) <= 2 * benchmark.dropped:
            raise UserError(
                f"{where}: {shown(name)} has {len(epochs)} runs, of which {2 * benchmark.dropped} are dropped; "
                f"a reference has twice the runs of a submission: {2 * benchmark.runs}"
            )
        settings = record.get("Hyperparams")
        when, settings = str(record.get("When", "")), record.get("Hyperparams")
        used = shown(settings, 1000) if settings else ""
        two_sided = record.get("Two-sided") is True
        found.append(Reference(str(name), int(batch), tuple(sorted(epochs)), when, used, two_sided))
    if not found:
        raise UserError(f"{where}: no reference convergence points of {benchmark.log_name}")
    found.sort(key=lambda reference: reference.batch)
    for one, other in pairwise(found):
        if one.batch == other.batch:
            raise UserError(f"{where}: {shown(one.name)} and {shown(other.name)} are of the same batch size")
    return found


# --- points ---------------------------------------------------------------------------------------------------------


def points(given: Iterable[Reference], benchmark: Benchmark, method: str) -> list[Point]:
    """What the test compares with, by batch size; `kept` says which of them it uses."""
    import numpy as np

    found = []
    for reference in sorted(given, key=lambda one: one.batch):
        epochs = sorted(reference.epochs)
        middle = epochs[benchmark.dropped : len(epochs) - benchmark.dropped]
        mean = float(np.mean(middle))
        deviation = float(np.std(middle if method == DEADLINE else epochs))
        least = least_mean(mean, deviation, len(middle), benchmark)
        found.append(Point(reference.name, reference.batch, len(epochs), mean, deviation, least))
    kept = {point.batch for point in _pruned(found, benchmark, method)}
    return [replace(point, kept=point.batch in kept) for point in found]


def least_mean(mean: float, deviation: float, runs: int, benchmark: Benchmark) -> float:
    """The smallest mean of a submission's runs that isn't significantly below the reference's.

    Student's t-test of two samples with the same deviation, of `runs` values and of a submission's (two fewer than its
    runs, for unet3d too). The checker halves an interval until it is shorter than 1e-4 and takes its middle; so does
    this, with the bound that it looks for known beforehand.
    """
    from scipy.special import stdtrit

    if deviation == 0:
        return mean
    submitted = benchmark.runs - 2
    t = float(stdtrit(runs + submitted - 2, 1 - ALPHA))
    bound = mean - t * deviation * math.sqrt(1 / runs + 1 / submitted)
    low, high = 0.0, mean
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        if middle > bound:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def interpolated(batch: float, low: Point, high: Point, benchmark: Benchmark) -> Point:
    """The reference at a batch size between two points, as if from twice the runs of a submission."""
    import numpy as np

    batches = [low.batch, high.batch]
    mean = float(np.interp(batch, batches, [low.mean, high.mean]))
    deviation = float(np.interp(batch, batches, [low.deviation, high.deviation]))
    least = least_mean(mean, deviation, 2 * benchmark.runs, benchmark)
    return Point(f"between {low.batch:g} and {high.batch:g}", batch, None, mean, deviation, least)


def _pruned(found: list[Point], benchmark: Benchmark, method: str) -> list[Point]:
    """Without the points at which the reference took longer than at larger batch sizes, or than its neighbours say."""

    def height(point: Point) -> float:
        return point.least if method == DEADLINE else point.mean

    lowest = min(found, key=height)
    left = [point for point in found if point.batch >= lowest.batch]
    i = 1
    while i < len(left) - 1:
        if height(left[i]) > height(interpolated(left[i].batch, left[i - 1], left[i + 1], benchmark)):
            del left[i]  # those before it aren't looked at again: what is left needn't be convex
        else:
            i += 1
    return left


# --- the test -------------------------------------------------------------------------------------------------------


def judge(
    epochs: Sequence[float | None], batch: float, given: Sequence[Point], benchmark: Benchmark, method: str
) -> Verdict:
    """Tests a submission's epochs to converge (None for a run that didn't) at its batch size."""
    import numpy as np

    failed = sum(one is None for one in epochs)
    if failed > benchmark.dropped:
        return Verdict(method, False, "Insufficient convergence")
    ordered = sorted(NEVER if one is None else one for one in epochs)
    middle = ordered[benchmark.dropped : len(ordered) - benchmark.dropped]
    if not middle:
        return Verdict(method, False, "Too few runs")
    mean = float(np.mean(middle))
    kept = [point for point in given if point.kept]
    lower = [point for point in kept if point.batch < batch]
    higher = [point for point in kept if point.batch > batch]
    point = next((point for point in kept if point.batch == batch), None)
    said, slower = "RCP found", "RCP not found but slower convergence on smaller batch size"
    if point is None and lower and higher:
        point, said = interpolated(batch, lower[-1], higher[0], benchmark), "RCP Interpolation"
    elif point is None and lower:
        return Verdict(method, False, f"Missing RCP, please submit RCP with BS = {batch:g}", mean, lower[-1], batch)
    elif point is None:
        point, said = higher[0], slower
    passes = mean >= point.mean / (point.mean / point.least)  # divided twice, as the checker does
    factor = max(1.0, point.mean / mean) if mean > 0 else 1.0
    if said == slower and not passes:
        return Verdict(method, False, f"Missing RCP, please submit RCP with BS = {batch:g}", mean, point, batch, factor)
    return Verdict(method, passes, said, mean, point, None, factor)


def difference(epochs: Sequence[float | None], reference: Sequence[float]) -> Difference:
    """Do runs (None for one that didn't converge) take as long as the reference's, neither shorter nor longer?

    The test of Mann and Whitney, which takes ranks alone: epochs come in steps of the evaluation interval, are no
    normal distribution, and a run that never converged is the slowest of all. Ties are corrected for.
    """
    import numpy as np
    from scipy.special import stdtrit
    from scipy.stats import mannwhitneyu

    ours = [NEVER if one is None else one for one in epochs]
    same = len({*ours, *reference}) == 1
    p = 1.0 if same else float(mannwhitneyu(ours, reference, alternative="two-sided", method="asymptotic").pvalue)
    mean = None if None in epochs else float(np.mean(ours))
    # Of a two-sided t-test with a power of 80 %; the ranks make use of 0.955 of the runs.
    freedom = len(ours) + len(reference) - 2
    t = float(stdtrit(freedom, 1 - ALPHA / 2) + stdtrit(freedom, 0.8))
    error = float(np.std(reference, ddof=1)) * math.sqrt((1 / len(ours) + 1 / len(reference)) / 0.955)
    return Difference(p, mean, float(np.mean(reference)), t * error)
