"""`mlperf-fast profile`: a trace of the real loop, its summary, and no log."""

import gzip
import json

import pytest
import small_dlrm
import torch

from mlperf_fast import cli
from mlperf_fast.profiling import ranges

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> list[str]:
    return small_dlrm.settings(small_dlrm.write(tmp_path_factory.mktemp("data") / "dlrm"))


def trace(out) -> list[dict]:
    with gzip.open(out / "trace-rank-0.json.gz", "rt") as file:
        return json.load(file)["traceEvents"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize(("first", "last"), [(1, 1), (2, 3), (13, 17)])
def test_a_trace_holds_exactly_the_steps_asked_for(settings, tmp_path, capsys, device, first, last):
    """Steps 13 to 17 have an evaluation between them, after step 15."""
    out, steps = tmp_path / "p", last - first + 1
    more = ["--set", "precision=fp16", "--set", f"device={device}", "--set", "cuda_graph=off"]
    arguments = ["--steps", f"{first}:{last}", "--out", str(out), *settings, *more]
    assert cli.main(["profile", "dlrm", *arguments]) == 0
    names = [event["name"] for event in trace(out) if event.get("cat") == "user_annotation"]
    for name in ("step", "forward", "backward", "gradient exchange", "unscale", "optimizer"):
        assert names.count(name) == steps, name
    assert names.count("data wait") == steps
    assert names.count("evaluate") == (first == 13)
    assert {event["name"] for event in trace(out) if event.get("cat") == "cpu_op"} >= {"mlperf_fast::embedding_bag"}
    found = json.loads((out / "summary.json").read_text())
    assert sum(value["share"] for value in found["lines"].values()) == pytest.approx(1)
    assert all(value["share"] >= 0 for value in found["lines"].values())
    assert found["lines"]["compute"]["share"] > 0.1
    assert found["lines"]["optimizer"]["share"] > 0
    assert (found["evaluations_ms"] > 0) == (first == 13)
    assert (found["first"], found["last"], found["workload"]) == (first, last, "dlrm")
    assert found["config"]["precision"] == "fp16"
    assert found["follows"] == ("device" if device == "cuda" else "host")
    text = capsys.readouterr().out
    assert "where the time goes" in text
    assert "perfetto" in text
    assert sorted(path.name for path in out.iterdir()) == [".lock", "summary.json", "trace-rank-0.json.gz"]
    assert ranges.named("step") is ranges._OFF, "off again"


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_a_captured_step_shows_its_kernels(settings, tmp_path, device):
    out = tmp_path / "p"
    assert cli.main(["profile", "dlrm", "--steps", "5:8", "--out", str(out), *settings, "--set", "device=cuda"]) == 0
    names = [event["name"] for event in trace(out) if event.get("cat") == "user_annotation"]
    assert names.count("graph replay") == 4
    found = json.loads((out / "summary.json").read_text())
    assert found["step_mode"] == "captured"
    assert found["kernels_per_step"] > 20
    assert not found["optimizer_apart"]


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
def test_marks_for_nsight_are_made_on_a_gpu(settings, tmp_path, device):
    arguments = ["--tool", "range", "--steps", "2:3", "--out", str(tmp_path / "p"), *settings, "--set", "device=cuda"]
    assert cli.main(["profile", "dlrm", *arguments]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "20:11"], "expected FIRST:LAST"),
        (["--steps", "1:100000"], "this run has only 252 steps"),
        (["--tool", "ncu", "--range", "forwards"], "no range is called 'forwards'; did you mean 'forward'?"),
        (["--tool", "range"], "no CUDA device; use --tool torch"),
        (["--preset", "dmo"], "did you mean 'demo'?"),
        (["--set", "stepps=1"], "there is no 'stepps'"),
        (["--steps", "10:60", "--set", "target=0.5"], "the run reached its target at step 15"),
    ],
)
def test_a_mistake_gets_one_message(settings, tmp_path, capsys, arguments, message):
    code = cli.main(["profile", "dlrm", "--out", str(tmp_path / "p"), *settings, *arguments])
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert ranges.named("step") is ranges._OFF


def test_a_folder_with_a_run_is_left_alone(settings, tmp_path, capsys):
    (tmp_path / "result_0.txt").write_text("a run's log")
    assert cli.main(["profile", "dlrm", "--out", str(tmp_path), *settings]) == 2
    assert "a profile wants a folder of its own" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["result_0.txt"]
