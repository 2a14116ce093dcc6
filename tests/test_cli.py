"""The command line as a user meets it: help, tables, JSON, messages, exit codes."""

import json
import subprocess
import sys

import pytest

from mlperf_fast import __version__, cli
from mlperf_fast.suite import BENCHMARKS
from mlperf_fast.workloads.dlrm.presets import PRESETS


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


COMMANDS = (
    "list", "env", "prepare", "run", "campaign", "check", "rcp",
    "rcp record", "score", "package", "report", "bench", "profile", "gtp", "analyze",
)  # fmt: skip


def test_help_names_every_command_and_shows_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in text or f"\n    {command}\n" in text
    assert "mlperf-fast run dlrm --set optimizer.lr=1.0" in text


def test_list_shows_all_eight_and_what_trains(capsys):
    code, out, _ = call(capsys, "list", "--json")
    rows = {row["benchmark"]: row for row in json.loads(out)}
    assert code == 0
    assert list(rows) == list(BENCHMARKS)
    assert rows["dlrm"]["state"] == f"trains: {', '.join(PRESETS)}"
    assert rows["dlrm"]["target"] == "auc ≥ 0.8025"
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert all(name in out for name in BENCHMARKS)


def test_env_says_what_is_there_and_why_not(capsys):
    code, out, _ = call(capsys, "env", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["mlperf_fast"]["version"] == __version__
    assert found["backends"]["cpp"] == "ready"
    for package in found["packages"].values():
        assert package[0].isdigit() or package.startswith("absent: ")
    code, text, _ = call(capsys, "env")
    assert code == 0
    for items in found.values():
        assert all(item in text for item in items)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "dlmr"], "did you mean 'dlrm'?"),
        (["run", "unet3d"], "unet3d can't be trained by this version yet"),
        (["run", "dlrm", "--preset", "dmo"], "did you mean 'demo'?"),
        (["run", "dlrm", "--set", "batchsize=1"], "did you mean 'batch_size'?"),
        (["run", "dlrm", "--preset", "closed"], "mlperf-fast prepare dlrm"),
        (["run", "dlrm", "--set", "data.generated=none", "--set", "data.path=/nowhere"], "mlperf-fast prepare dlrm"),
        (["run", "dlrm", "--resume", "/nowhere"], "holds no run to resume"),
        (["run", "dlrm", "--resume", "/nowhere", "--set", "seed=1"], "leave --set and --out out"),
        (["prepare", "dlrm", "--preset", "closed"], "--raw DIR"),
        (["prepare", "dlrm", "--verify", "--out", "/nowhere"], "/nowhere"),
        (["run", "dlrm", "--set", "cuda_graph=yes"], "expected one of auto, on, off"),
        (
            ["run", "dlrm", "--set", "cuda_graph=on", "--set", "device=cpu"],
            "cuda_graph=on, but no step can be captured",
        ),
        (["profile", "dlmr"], "did you mean 'dlrm'?"),
        (["profile", "unet3d"], "unet3d can't be trained by this version yet"),
        (["profile", "dlrm", "--steps", "9:3"], "expected FIRST:LAST, two steps counted from 1, such as 11:20"),
        (["profile", "dlrm", "--preset", "closed"], "mlperf-fast prepare dlrm"),
        (["campaign", "dlmr", "--runs", "5", "--out", "x"], "did you mean 'dlrm'?"),
        (["campaign", "dlrm", "--runs", "some", "--out", "x"], "expected a number, or official"),
        (["campaign", "dlrm", "--runs", "0", "--out", "x"], "expected a number, or official"),
        (["campaign", "dlrm", "--runs", "5", "--out", "x", "--nproc", "0"], "--nproc is 0"),
        (["campaign", "dlrm", "--runs", "5", "--out", "x", "--set", "seed=1"], "draws its own"),
        (["campaign", "dlrm", "--runs", "5", "--out", "x", "--preset", "dmo"], "did you mean 'demo'?"),
        (["campaign", "dlrm", "--runs", "5", "--out", "/dev/null/x"], "can't write to the campaign's folder"),
        (["check", "/nowhere/result_0.txt"], "/nowhere/result_0.txt"),
        (["rcp"], "or one benchmark with --table"),
        (["rcp", "record", "dlmr", "-o", "x"], "did you mean 'dlrm'?"),
        (["rcp", "record", "dlrm", "-o", "x", "--runs", "ten"], "expected a number"),
        (["rcp", "./record"], "record: no such folder"),
        (["rcp", "--table", "retina"], "expected one of resnet"),
        (["rcp", "--table", "minigo"], "minigo has no reference convergence points in v2.0"),
        (["rcp", "--table", "resnet", "--rcps", "/nowhere"], "/nowhere: can't be read"),
        (["package", "/nowhere", "--submitter", "A", "--division", "open", "--out", "x"], "/nowhere: no such folder"),
        (["score", "/nowhere"], "/nowhere: no such folder"),
        (["report", "/nowhere"], "/nowhere: no such file"),
        (["report", "."], "no result_*.txt in this folder"),
        (["report", ".", "-o", "/nowhere/report.html"], "its folder doesn't exist"),
        (["report", ".", "-o", "."], "is a folder; name the file"),
        (["score", ".", "--compare"], "--compare takes two folders"),
        (["gtp", "--readouts", "0"], "--readouts is 0; expected 1 to 1,000,000"),
        (["gtp", "--size", "4"], "expected 5 to 19"),
        (["gtp", "--komi", "nan"], "komi"),
        (["gtp", "--resign", "101"], "expected 0 to 100 per cent"),
        (["gtp", "--checkpoint", "/nowhere.pt"], "there is no network /nowhere.pt"),
        (["analyze", "/nowhere.sgf"], "/nowhere.sgf: can't be read"),
    ],
)
def test_a_mistake_gets_one_message_and_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


def test_no_closed_claims(capsys, tmp_path):
    for settings, message in (
        (["division=closed"], "a demo is never a closed result"),
        (["division=closed", "is_demo=false", "seed=1"], "draws its seed"),
        (["division=closed", "is_demo=false", "target=0.5"], "fixes target at 0.8025"),
        (["division=closed", "is_demo=false"], "fixes data.generated at None"),
    ):
        sets = [part for setting in settings for part in ("--set", setting)]
        code, _, err = call(capsys, "run", "dlrm", "--out", str(tmp_path / "run"), *sets)
        assert code == 2
        assert message in err


@pytest.mark.parametrize("start", [["-m", "mlperf_fast"], ["-m", "torch.distributed.run", "-m", "mlperf_fast"]])
def test_python_m_and_torchrun_are_the_same_command(start):
    command = [sys.executable, *start, "run", "dlrm", "--print-config", "--set", "seed=5"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "optimizer.lr" in answer.stdout
    assert "seed " in answer.stdout
