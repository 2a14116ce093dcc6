"""Nsight's command lines, and what happens where it isn't there, or there without a GPU, or fails."""

import os
import sys
from pathlib import Path

import pytest
import torch

from mlperf_fast import cli
from mlperf_fast.errors import UserError
from mlperf_fast.profiling import commands
from mlperf_fast.profiling.window import CudaRange, Window, parse_steps

ARGUMENTS = ["profile", "dlrm", "--steps", "30:32", "--set", "batch_size=256", "--set", "cuda_graph=off"]
PROFILED = [
    sys.executable, "-m", "mlperf_fast", "profile", "dlrm", "--preset", "demo", "--steps", "30:32",
    "--set", "batch_size=256", "--set", "cuda_graph=off", "--tool", "range", "--out", "p",
]  # fmt: skip


@pytest.fixture
def lines(monkeypatch, tmp_path):
    """What would be executed."""
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "execute", lambda command, out, say: found.append(command))
    return found


def test_nsys_traces_the_marked_steps_and_the_nodes_of_graphs(lines):
    assert cli.main([*ARGUMENTS, "--tool", "nsys", "--out", "p"]) == 0
    assert lines == [
        ["nsys", "profile", "-t", "cuda,nvtx,osrt,cudnn,cublas", "--cuda-graph-trace=node",
         "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--force-overwrite=true",
         f"--output={Path('p/rank-0')}", *PROFILED]
    ]  # fmt: skip


def test_ncu_counts_in_one_range_of_the_marked_steps(lines):
    assert cli.main([*ARGUMENTS, "--tool", "ncu", "--range", "optimizer", "--out", "p"]) == 0
    assert lines == [
        ["ncu", "--profile-from-start", "off", "--graph-profiling", "node", "--nvtx", "--nvtx-include", "optimizer/",
         "--set", "full", "--force-overwrite", "--export", str(Path("p/rank-0")), *PROFILED]
    ]  # fmt: skip


def test_each_process_of_a_launcher_writes_its_own_report(lines, monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main([*ARGUMENTS, "--tool", "nsys", "--out", "p"]) == 0
    assert f"--output={Path('p/rank-3')}" in lines[0]


def test_what_is_profiled_parses():
    assert cli.parser().parse_args(PROFILED[3:]).function is cli.profile


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_an_absent_tool_is_told_with_its_command_and_how_to_get_it(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main([*ARGUMENTS, "--tool", tool]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{tool} ")
    assert "--tool range" in out
    assert f"{tool} is not on PATH, so the command above was not run. It is Nsight" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def a_tool(monkeypatch, tmp_path) -> Path:
    """A program called nsys that notes its arguments and ends with the code that it is told."""
    path = tmp_path / "bin" / "nsys"
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\nexit $CODE\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return path


def test_a_tool_that_is_there_is_run(a_tool, monkeypatch, tmp_path):
    monkeypatch.setenv("CODE", "0")
    said = []
    commands.execute(commands.nsys(["python", "a b"], tmp_path / "p" / "rank-0"), tmp_path / "p", said.append)
    assert (tmp_path / "arguments").read_text().splitlines()[-2:] == ["python", "a b"]
    assert (tmp_path / "p").is_dir(), "nsys doesn't make it"
    assert said[0].endswith("python 'a b'"), "can be pasted into a shell"
    monkeypatch.setenv("CODE", "3")
    with pytest.raises(UserError, match="nsys ended with code 3"):
        commands.execute(["nsys"], tmp_path / "p", said.append)


def test_without_a_gpu_no_tool_is_started(a_tool, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device here, so the command above was not run: nsys profiles GPUs"):
        commands.execute(["nsys"], tmp_path / "p", print)
    assert not (tmp_path / "arguments").exists()
    with pytest.raises(UserError, match="use --tool torch"):
        CudaRange(torch.device("cpu"))


class Noted:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda: self.calls.append(name)


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 1, {0: ["prepare", "start"], 1: ["stop"]}),
        (2, 2, {0: ["prepare"], 1: ["start"], 2: ["stop"]}),
        (4, 6, {2: ["prepare"], 3: ["start"], 6: ["stop"]}),
    ],
)
def test_a_window_opens_before_its_first_step_and_closes_after_its_last(first, last, expected):
    tool, found = Noted(), {}
    window = Window(first, last, tool)
    for step in range(last + 1):
        assert window.after(step) == (step == last)
        if tool.calls:
            found[step], tool.calls = tool.calls, []
    assert found == expected


def test_a_window_that_a_run_left_open_is_closed_once():
    for steps, expected in ((1, []), (2, ["stop"]), (3, ["stop"]), (4, [])):
        tool = Noted()
        window = Window(2, 3, tool)
        for step in range(steps):
            window.after(step)
        tool.calls.clear()
        window.close()
        assert tool.calls == expected


def test_steps_are_two_counts_in_order():
    assert parse_steps("3:3") == (3, 3)
    for text in ("", "3", "0:3", "5:3", "-1:3", "a:b", "1:2:3", "1.5:2"):
        with pytest.raises(UserError, match="expected FIRST:LAST"):
            parse_steps(text)
