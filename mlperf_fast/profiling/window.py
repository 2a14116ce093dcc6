"""The few steps that a profiler watches, and the two ways of watching them from within."""

from pathlib import Path
from typing import Protocol

import torch

from mlperf_fast.errors import UserError
from mlperf_fast.profiling import ranges


class Tool(Protocol):
    """What a window starts and stops. `prepare` comes a step earlier: the first one watched is then like the others."""

    def prepare(self) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...


class Window:
    """Steps `first` to `last` of a run, counted from 1, with the waits and evaluations between them."""

    def __init__(self, first: int, last: int, tool: Tool) -> None:
        self.first, self.last, self.tool = first, last, tool
        self.started = self.complete = False

    def after(self, step: int) -> bool:
        """To be called before the first step (0) and after each; True when the last one was watched."""
        if step == max(self.first - 2, 0):
            self.tool.prepare()
        if step == self.first - 1:
            self.tool.start()
            self.started = True
        if step == self.last:
            self.tool.stop()
            self.complete = True
        return self.complete

    def close(self) -> None:
        """Ends what a run that broke off left open."""
        if self.started and not self.complete:
            self.tool.stop()


def parse_steps(text: str) -> tuple[int, int]:
    """ "11:20" -> (11, 20); UserError for anything but two counts in order."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"--steps {text}: expected FIRST:LAST, two steps counted from 1, such as 11:20")
    return int(first), int(last)


class TorchTrace:
    """torch's own profiler: every op on the host and every kernel on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.profiler = torch.profiler._KinetoProfile(activities=activities)

    def prepare(self) -> None:
        self.profiler.prepare_trace()

    def start(self) -> None:
        _wait(self.device)
        ranges.show("torch")
        self.profiler.start_trace()

    def stop(self) -> None:
        _wait(self.device)
        self.profiler.stop_trace()
        ranges.show(None)

    def export(self, path: Path) -> None:
        """Writes what was seen as a Chrome trace, compressed where the name ends with .gz."""
        self.profiler.export_chrome_trace(str(path))


class CudaRange:
    """NVTX ranges, and cudaProfilerStart and Stop, for Nsight around this process."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise UserError("Nsight profiles what runs on a GPU, but this run has no CUDA device; use --tool torch")
        self.device = device

    def prepare(self) -> None:
        pass

    def start(self) -> None:
        _wait(self.device)
        torch.cuda.profiler.start()
        ranges.show("nvtx")

    def stop(self) -> None:
        _wait(self.device)
        ranges.show(None)
        torch.cuda.profiler.stop()


def _wait(device: torch.device) -> None:
    """What was launched before belongs to the steps before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
