"""Whole runs on a small data set: the log, the clock, resume after a kill, two processes, and what goes wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import small_dlrm
import torch
from small_dlrm import losses, records

from mlperf_fast import cli
from mlperf_fast.config import from_preset
from mlperf_fast.errors import UserError
from mlperf_fast.loop import dist
from mlperf_fast.loop.run import describe_machine
from mlperf_fast.loop.run import run as run_once
from mlperf_fast.submission.check import check_file
from mlperf_fast.workloads.dlrm.presets import PRESETS
from mlperf_fast.workloads.dlrm.workload import WORKLOAD

MLPERF_FAST = [sys.executable, "-m", "mlperf_fast"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mlperf_fast"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_dlrm.write(tmp_path_factory.mktemp("data") / "dlrm")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run with seed 11."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["run", "dlrm", "--out", str(out), *small_dlrm.settings(data, "seed=11")]) == 1
    return out


def keys(log: Path) -> list[str]:
    return [record["key"] for record in records(log)]


def test_a_run_that_misses_its_target_says_so_and_its_log_is_valid(whole):
    log = records(whole / "result_0.txt")
    assert log[-1]["key"] == "run_stop"
    assert log[-1]["metadata"]["status"] == "aborted"
    assert check_file(whole / "result_0.txt") == []
    values = {record["key"]: record["value"] for record in log}
    assert values["submission_division"] == "open"
    assert values["submission_platform"].startswith("demo")
    assert values["seed"] == 11
    assert values["train_samples"] == small_dlrm.TRAIN
    assert values["op_backends"]["embedding_bag"] == "cpp"
    assert values["step_mode"] == "eager: no CUDA device"
    assert keys(whole / "result_0.txt").count("eval_accuracy") == 17, "4 an epoch and one at the end"
    epochs = [record["metadata"]["epoch_num"] for record in log if record["key"] == "eval_accuracy"]
    assert epochs[0] == pytest.approx(1 + 15 * 64 / small_dlrm.TRAIN)
    assert epochs[-1] == 5.0
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["reached"] is False
    assert summary["steps"] == 252
    assert summary["quality"] == values["eval_accuracy"] > 0.7, "it learns"


def test_a_run_that_reaches_its_target_stops_there(data, tmp_path, capsys):
    code = cli.main(["run", "dlrm", "--out", str(tmp_path / "run"), *small_dlrm.settings(data, "target=0.6")])
    assert code == 0
    log = records(tmp_path / "run" / "result_0.txt")
    assert log[-1]["metadata"]["status"] == "success"
    qualities = [record["value"] for record in log if record["key"] == "eval_accuracy"]
    assert qualities[-1] >= 0.6
    assert all(quality < 0.6 for quality in qualities[:-1])
    assert "reached the target" in capsys.readouterr().out
    seeds = [record["value"] for record in log if record["key"] == "seed"]
    assert len(seeds) == 1


def test_no_data_is_opened_before_run_start(data, tmp_path):
    """Python's audit hook sees every file opened, mapped files included, and the log's own growth."""
    out = tmp_path / "run"
    code = f"""
import sys
from pathlib import Path
log, early = Path({str(out / "result_0.txt")!r}), []
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".bin"):
        early.append("run_start" not in log.read_text())
sys.addaudithook(hook)
from mlperf_fast import cli
from mlperf_fast.config import from_preset
from mlperf_fast.errors import UserError
from mlperf_fast.loop.run import describe_machine
from mlperf_fast.loop.run import run as run_once
code = cli.main(["run", "dlrm", "--out", {str(out)!r}, *{small_dlrm.settings(data, "target=0.6")!r}])
assert code == 0 and early, (code, early)
assert not any(early), "data was opened before run_start"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_killed_and_resumed_it_trains_as_if_nothing_had_happened(data, tmp_path, precision):
    settings = small_dlrm.settings(data, "seed=11", "checkpoint_every=7", f"precision={precision}")
    assert cli.main(["run", "dlrm", "--out", str(tmp_path / "whole"), *settings]) == 1
    out = tmp_path / "run"
    run = subprocess.Popen([*MLPERF_FAST, "run", "dlrm", "--out", str(out), *settings], stdout=subprocess.DEVNULL)
    latest = out / "checkpoints" / "latest.json"
    deadline = time.monotonic() + 120
    while not (latest.exists() and json.loads(latest.read_text())["step"] >= 70):
        assert run.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert check_file(out / "result_0.txt") != [], "a log without run_stop is not valid"
    assert cli.main(["run", "dlrm", "--resume", str(out)]) == 1
    assert losses(out / "result_0.txt") == losses(tmp_path / "whole" / "result_0.txt"), "every loss, bit for bit"
    assert check_file(out / "result_0.txt") == []
    again = json.loads((out / "summary.json").read_text())
    assert again["curve"] == json.loads((tmp_path / "whole" / "summary.json").read_text())["curve"]


def test_two_processes_give_the_losses_of_one(data, whole, tmp_path):
    out = tmp_path / "run"
    command = [*TORCHRUN, "run", "dlrm", "--out", str(out), *small_dlrm.settings(data, "seed=11")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "did not reach the target" in answer.stdout, answer.stderr
    one, two = losses(whole / "result_0.txt"), losses(out / "result_0.txt")
    assert one.keys() == two.keys()
    assert [two[step] for step in one] == pytest.approx([one[step] for step in one], rel=1e-4)
    assert check_file(out / "result_0.txt") == []
    assert keys(out / "result_0.txt").count("seed") == 1, "one rank writes"
    alone, together = (json.loads((folder / "config.json").read_text()) for folder in (whole, out))
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert together["machine"] == alone["machine"], "one node, the same"
    assert together["machine"]["number_of_nodes"] == "1"
    assert together["machine"]["accelerators_per_node"] == "0"


def test_a_run_on_gpus_records_those_that_it_used(tmp_path, monkeypatch):
    """A node of eight, of which two processes take two: a run on the CPU there has used none."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo A100, 81920 MiB, 1410 MHz, 4, 16, 510.47; done\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    found = {
        device: describe_machine(PRESETS["demo"](), dist.Ranks(0, 4, torch.device(device)), tmp_path)
        for device in ("cuda", "cpu")
    }
    assert {one["number_of_nodes"] for one in found.values()} == {"2"}
    assert found["cuda"]["accelerators_per_node"] == "2"
    assert found["cuda"]["accelerator_model_name"] == "A100"
    assert found["cpu"]["accelerators_per_node"] == "0"
    assert found["cpu"]["accelerator_model_name"] == "none"
    assert "accelerator_host_interconnect" not in found["cpu"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}, 8),
        ({"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1", "SLURM_NNODES": "4"}, 4),
        ({"SLURM_PROCID": "9", "SLURM_NTASKS": "15", "SLURM_LOCALID": "1", "SLURM_NNODES": "4"}, None),
        ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, None),
    ],
)
def test_processes_of_a_node_as_each_launcher_says(monkeypatch, environment, expected):
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "SLURM_NTASKS",
        "SLURM_NNODES",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert dist.processes_per_node() == expected


def test_two_processes_resume_their_shards(data, tmp_path):
    settings = small_dlrm.settings(data, "seed=11", "checkpoint_every=50", "max_epochs=1")
    command = [*TORCHRUN, "run", "dlrm", "--out", str(tmp_path / "run"), *settings]
    subprocess.run(command, capture_output=True, check=False)
    before = losses(tmp_path / "run" / "result_0.txt")
    answer = subprocess.run(
        [*TORCHRUN, "run", "dlrm", "--resume", str(tmp_path / "run")], capture_output=True, text=True
    )
    assert "did not reach the target" in answer.stdout, answer.stderr
    assert losses(tmp_path / "run" / "result_0.txt") == before
    code = cli.main(["run", "dlrm", "--resume", str(tmp_path / "run")])
    assert code == 2, "one process can't take the shards of two"


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path, capsys):
    out = tmp_path / "run"
    code = cli.main(["run", "dlrm", "--out", str(out), *small_dlrm.settings(data, "optimizer.lr=1e30")])
    assert code == 2
    assert "the loss became" in capsys.readouterr().err
    last = records(out / "result_0.txt")[-1]
    assert (last["key"], last["metadata"]["status"]) == ("run_stop", "aborted")


def test_nan_in_the_input_stops_the_run_and_keeps_the_checkpoint(data, tmp_path):
    """The raw format can't hold a NaN, so it is put into the batches on their way."""

    def poisoned(cfg, ranks, seed, first):
        @contextmanager
        def batches():
            with WORKLOAD.train_batches(cfg, ranks, seed, first) as clean:
                yield (b._replace(dense=b.dense * math.nan) if n == 27 else b for n, b in enumerate(clean))

        return batches()

    sets = small_dlrm.settings(data, "checkpoint_every=20")[1::2]
    cfg, origins = from_preset(WORKLOAD.presets["demo"], "demo", sets)
    w, out = replace(WORKLOAD, train_batches=poisoned), tmp_path / "run"
    with pytest.raises(UserError, match="the loss became nan by step 30"):
        run_once(w, cfg, origins, "demo", out, resume=False, say=print)
    assert json.loads((out / "checkpoints" / "latest.json").read_text())["step"] == 20
    assert cli.main(["run", "dlrm", "--resume", str(out)]) == 1, "without the NaN it goes on"


def test_one_folder_holds_one_run(data, whole, tmp_path, capsys):
    before = (whole / "result_0.txt").read_bytes()
    assert cli.main(["run", "dlrm", "--out", str(whole), *small_dlrm.settings(data)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (whole / "result_0.txt").read_bytes() == before
    (tmp_path / "file").write_text("mine")
    assert cli.main(["run", "dlrm", "--out", str(tmp_path / "file"), *small_dlrm.settings(data)]) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_two_runs_at_once_can_not_share_a_folder(data, tmp_path):
    command = [*MLPERF_FAST, "run", "dlrm", "--out", str(tmp_path / "run"), *small_dlrm.settings(data)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(run.communicate()[1], run.returncode) for run in runs]
    assert sorted(code for _, code in ends) == [1, 2]
    message = next(error for error, code in ends if code == 2)
    assert "another run is writing" in message or "holds a run already" in message
    assert check_file(tmp_path / "run" / "result_0.txt") == []


def test_a_full_disk_ends_the_run_with_one_message_and_a_readable_log(data, tmp_path):
    """A limit on file size stands for the full disk: write() fails in the same place."""
    out = tmp_path / "run"
    code = f"""
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from mlperf_fast import cli
from mlperf_fast.config import from_preset
from mlperf_fast.errors import UserError
from mlperf_fast.loop.run import describe_machine
from mlperf_fast.loop.run import run as run_once
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.exit(cli.main(["run", "dlrm", "--out", {str(out)!r}, *{small_dlrm.settings(data)!r}]))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert "result_0.txt" in answer.stderr
    assert records(out / "result_0.txt"), "every line that is there is whole"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 2, "the label must be 0 or 1"),
        (14 + 2, 200, "table 2 has ids 0 to 199"),
        (14 + 25, -1, "table 25 has ids 0 to 35"),
        (5, -3, "integers must be 0 or more"),
    ],
)
def test_a_bad_number_in_the_data_is_named(tmp_path, capsys, column, value, message):
    import numpy as np

    data = small_dlrm.write(tmp_path / "data")
    rows = np.memmap(data / "terabyte_processed_train.bin", dtype="<i4", mode="r+").reshape(-1, 40)
    rows[1234, column] = value
    rows.flush()
    code = cli.main(["run", "dlrm", "--out", str(tmp_path / "run"), *small_dlrm.settings(data)])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert "row 1234" in error
    assert str(value) in error
    assert records(tmp_path / "run" / "result_0.txt")[-1]["metadata"]["status"] == "aborted"


@pytest.mark.parametrize(("cut", "message"), [(80, "whole number of rows"), (160, "samples"), (None, "is empty")])
def test_a_cut_data_file_is_refused_before_anything_starts(tmp_path, capsys, cut, message):
    data = small_dlrm.write(tmp_path / "data")
    path = data / "terabyte_processed_train.bin"
    os.truncate(path, path.stat().st_size - cut if cut else 0)
    assert cli.main(["run", "dlrm", "--out", str(tmp_path / "run"), *small_dlrm.settings(data)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_refused_and_nothing_lost(data, tmp_path, capsys):
    out = tmp_path / "run"
    settings = small_dlrm.settings(data, "checkpoint_every=50", "max_epochs=1")
    assert cli.main(["run", "dlrm", "--out", str(out), *settings]) == 1
    log = (out / "result_0.txt").read_bytes()
    shard = next((out / "checkpoints").glob("step-*/rank-0.pt"))
    shard.write_bytes(shard.read_bytes()[:1000])
    assert cli.main(["run", "dlrm", "--resume", str(out)]) == 2
    assert "rank-0.pt can't be loaded" in capsys.readouterr().err
    kept = (out / "result_0.txt").read_bytes() + (out / "result_0.txt.cut").read_bytes()
    assert set(log.splitlines()) <= set(kept.splitlines())
