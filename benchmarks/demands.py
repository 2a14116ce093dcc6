"""One demand on a measured row, and its line in the table of figures."""

from collections.abc import Mapping
from dataclasses import dataclass

from . import report
from .measure import Row

TITLES = ("figure", "required", "measured", "met", "ours ms", "peer ms", "cores", "limit")
NOT_RUN = "not run"


@dataclass(frozen=True)
class Demand:
    """`ratio`: the least to the fastest of `peers`. `at_most`: milliseconds. `percent`: the least of the row's limit.
    With none of them the row is only reported."""

    row: Row
    peers: tuple[str, ...] = ()
    ratio: float | None = None
    at_most: float | None = None
    percent: float | None = None

    def fastest(self) -> str | None:
        """Of the peers that ran."""
        ran = [name for name in self.peers if self.row.timing(name)]
        return min(ran, key=lambda name: self.row.timing(name).ms) if ran else None  # type: ignore[union-attr]

    def values(self, limits: Mapping[str, float]) -> tuple[str, str, bool | None]:
        """What is required, what was measured, and whether that meets it (None: reported, or not run)."""
        ours, peer = self.row.timing(self.row.ours), self.fastest()
        if self.at_most is not None:
            measured, met = (f"{ours.ms:.4g} ms", ours.ms < self.at_most) if ours else (NOT_RUN, None)
            return f"< {self.at_most:g} ms", measured, met
        if self.percent is not None:
            share = report.percent(self.row, self.row.ours, limits)
            required = f"≥ {self.percent:g} % of {self.row.ceiling}"
            return required, f"{share:.0f} %" if share else NOT_RUN, share >= self.percent if share else None
        ratio = self.row.ratio(peer) if peer else None
        measured = f"{ratio:.2f}×" if ratio else NOT_RUN
        if self.ratio is None:
            return "reported", measured, None
        return f"≥ {self.ratio:g}×", measured, ratio >= self.ratio if ratio else None

    def line(self, limits: Mapping[str, float]) -> list[str]:
        """The cells of TITLES."""
        row, peer = self.row, self.fastest()
        name = f"{row.op}: {row.shape}, {row.dtype}, {row.threads_text}"
        if self.peers:
            name += f", against {peer or ' or '.join(self.peers)}"
        required, measured, met = self.values(limits)
        timings = [timing for timing in (row.timing(row.ours), row.timing(peer) if peer else None) if timing]
        times = [f"{timing.ms:.4g}" for timing in timings] + [""] * (2 - len(timings))
        share = report.percent(row, row.ours, limits)
        limit = f"{share:.0f} % of {row.ceiling}" if share else ""
        cores = " / ".join(f"{timing.cores:.1f}" for timing in timings)
        return [name, required, measured, {None: "", True: "yes", False: "no"}[met], *times, cores, limit]
