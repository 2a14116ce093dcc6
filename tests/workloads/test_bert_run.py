"""BERT end to end, as a user runs it: the demo, real text, several processes, a kill, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_bert
import torch
from small_dlrm import losses, records

pytest.importorskip("h5py", reason="needs h5py: pip install 'mlperf_fast[bert]'")

from mlperf_fast import cli
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.submission.check import check_file, passes
from mlperf_fast.workloads.bert import checkpoint, workload
from mlperf_fast.workloads.bert.presets import PRESETS

# Articles of Wikipedia as WikiExtractor writes them, where a checkout has them beside it.
WIKI = Path(__file__).parents[3] / "shared" / "data" / "bert" / "wiki"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mlperf_fast"]

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_bert.write(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run without dropout to its last step."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["run", "bert", "--out", str(out), *small_bert.settings(data, "seed=11", "model.dropout=0")]) == 1
    return out


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_a_run_learns_and_its_log_counts_samples(whole):
    found = summary_of(whole)
    assert [samples for samples, _ in found["curve"]] == [160, 320, 480, 640, 800, 960]
    assert found["quality"] > 0.8 > found["curve"][0][1] + 0.2, "it learns"
    log = records(whole / "result_0.txt")
    values = {record["key"]: record["value"] for record in log}
    assert values["train_samples"] == 960
    assert values["eval_samples"] == sum(small_bert.EVAL)
    assert sum(record["key"] == "weights_initialization" for record in log) == 398
    epochs = [record["metadata"]["epoch_num"] for record in log if record["key"] == "eval_accuracy"]
    assert all(type(samples) is int for samples in epochs)
    assert passes(check_file(whole / "result_0.txt"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(data, tmp_path, precision):
    settings = small_bert.settings(data, "seed=3", "checkpoint_every=7", f"precision={precision}", "optimizer.total=24")
    assert cli.main(["run", "bert", "--out", str(tmp_path / "whole"), *settings]) == 1
    out = tmp_path / "run"
    code = f"""
from mlperf_fast import cli
from mlperf_fast.loop import checkpoint
save = checkpoint.save
def save_and_die(folder, step, *rest):
    save(folder, step, *rest)
    if step.count == 14:
        import os; os._exit(9)
checkpoint.save = save_and_die
cli.main(["run", "bert", "--out", {str(out)!r}, *{settings!r}])
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert cli.main(["run", "bert", "--resume", str(out)]) == 1
    assert losses(out / "result_0.txt") == losses(tmp_path / "whole" / "result_0.txt"), "dropout and all, bit for bit"
    assert summary_of(out)["curve"] == summary_of(tmp_path / "whole")["curve"]


@pytest.mark.parametrize("sharded", ["false", "true"])
def test_two_processes_learn_as_one(data, whole, tmp_path, sharded):
    """Each has half of the sequences. The masked-word loss is a mean over a process's own, so they differ a little."""
    settings = small_bert.settings(data, "seed=11", "model.dropout=0", f"optimizer.sharded={sharded}")
    answer = subprocess.run(
        [*TORCHRUN, "run", "bert", "--out", str(tmp_path / "run"), *settings], capture_output=True, text=True
    )
    assert "did not reach the target" in answer.stdout, answer.stderr
    one, two = losses(whole / "result_0.txt"), losses(tmp_path / "run" / "result_0.txt")
    assert [two[step] for step in one] == pytest.approx([one[step] for step in one], rel=0.03)
    assert passes(check_file(tmp_path / "run" / "result_0.txt"))


def test_evaluation_counts_each_masked_token_once_on_any_number_of_ranks(data):
    sets = [part for part in small_bert.settings(data) if part != "--set"]
    cfg = workload_config(*sets)
    meta = workload.read_meta(cfg)
    expected = sum(len(small_bert.sequences(size, size).labels) for size in small_bert.EVAL)
    for world in (1, 2, 3):
        found = 0
        for rank in range(world):
            options = {"batch_size": 9, "rank": rank, "world": world}
            with workload.data.eval_batches(data, meta, **options) as batches:
                found += sum(int(batch.masked_count) for batch in batches)
        assert found == expected
    net = workload.model(cfg, ALONE, 1).eval()
    by_size = {
        size: workload.evaluate(workload_config(*sets, f"eval_batch_size={size}"), ALONE, net) for size in (1, 9, 40)
    }
    assert len(set(by_size.values())) == 1, "the batch size changes nothing: a mean over tokens, not over batches"


def workload_config(*sets: str, preset: str = "demo"):
    from mlperf_fast.config import from_preset

    return from_preset(PRESETS[preset], preset, sets)[0]


def test_evaluations_come_when_the_rules_say(data):
    progress = workload.progress(workload_config(f"data.path={data}", "data.benchmark=false", preset="closed"))
    due = [step for step in range(1, 2100) if progress.eval_due(step)]
    assert due == [335, 670, 1005, 1340, 1675, 2009]  # the first steps with k times 150,000 samples
    assert progress.epoch_num(335) == 150_080


def test_phase1_makes_the_same_weights_each_time_and_a_run_starts_from_them(data, tmp_path, capsys):
    first = small_bert.settings(data, "phase1_steps=8", "optimizer.total=10", "seed=1")
    (path,) = {workload.initial_file(workload_config(*[s for s in first if s != "--set"]), data)}
    assert cli.main(["run", "bert", "--out", str(tmp_path / "1"), *first]) == 1
    made = path.read_bytes()
    assert "first weights" in capsys.readouterr().out or path.is_file()
    before = path.stat().st_mtime_ns
    assert cli.main(["run", "bert", "--out", str(tmp_path / "2"), *first]) == 1
    assert path.stat().st_mtime_ns == before, "made once"
    assert losses(tmp_path / "1" / "result_0.txt") == losses(tmp_path / "2" / "result_0.txt")
    path.unlink()
    assert cli.main(["run", "bert", "--out", str(tmp_path / "3"), *first]) == 1
    assert path.read_bytes() == made
    path.write_bytes(made[:-5] + b"\0" * 5)
    assert cli.main(["run", "bert", "--out", str(tmp_path / "4"), *first]) == 2


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["data.benchmark=true"], "the benchmark's vocabulary"),
        (["phase1_steps=none"], "the benchmark starts from its own checkpoint"),
        (["batch_size=17"], None),
        (["model.heads=5"], "must be a multiple of the 5 heads"),
        (["model.heads=0"], "model.heads is 0, expected a whole number of 1 or more"),
        (["model.layers=0"], "model.layers is 0"),
        (["optimizer.total=0"], "optimizer.total is 0"),
        (["eval_every_samples=0"], "eval_every_samples is 0"),
        (["phase1_steps=-1"], "phase1_steps is -1, expected a whole number of 0 or more"),
        (["model.dropout=1.5"], "p is 1.5"),
    ],
)
def test_what_a_run_refuses(data, tmp_path, capsys, sets, said):
    code = cli.main(["run", "bert", "--out", str(tmp_path / "run"), *small_bert.settings(data, *sets, "target=0.001")])
    assert code == (0 if said is None else 2)
    if said:
        assert said in capsys.readouterr().err


def test_prepare_converts_a_checkpoint_that_lies_beside_the_data(data, tmp_path, capsys):
    net = workload.model(workload_config(*[s for s in small_bert.settings(data) if s != "--set"]), ALONE, 5)
    raw = tmp_path / "raw"
    raw.mkdir()
    torch.save({"model": {k: v for k, v in net.state_dict().items() if k != "dropout_state"}}, raw / "model.pt")
    cfg = workload_config(*[s for s in small_bert.settings(data, "phase1_steps=none") if s != "--set"])
    workload.prepare_data(cfg, raw, data, print)
    try:
        loaded = checkpoint.load(data / "initial/benchmark.safetensors", workload.shapes(cfg, workload.read_meta(cfg)))
        assert torch.equal(loaded["cls.predictions.bias"], net.state_dict()["cls.predictions.bias"])
        workload.verify_data(cfg, data, print)
        assert "masked-LM accuracy" in capsys.readouterr().out
    finally:
        (data / "initial/benchmark.safetensors").unlink()


@pytest.mark.slow
def test_the_demo_reaches_its_target_with_native_kernels(tmp_path):
    out = tmp_path / "run"
    code = cli.main(["run", "bert", "--out", str(out), "--set", f"data.path={tmp_path / 'data'}"])
    found = summary_of(out)
    assert code == 0, found["curve"]
    used = ("attention", "bias_gelu", "embedding_layer_norm", "lamb", "layer_norm", "softmax_cross_entropy")
    assert {found["backends"][op] for op in used} == {"cpp"}
    assert passes(check_file(out / "result_0.txt"))


@pytest.mark.slow
@pytest.mark.skipif(not WIKI.is_dir(), reason="the folder shared/data beside the checkout is absent")
def test_real_articles_are_prepared_and_learned_from(tmp_path):
    """A vocabulary, sequences and a short training of two megabytes of Wikipedia."""
    data, out = tmp_path / "data", tmp_path / "run"
    assert cli.main(["prepare", "bert", "--preset", "demo_wiki", "--raw", str(WIKI), "--out", str(data)]) == 0
    assert cli.main(["prepare", "bert", "--preset", "demo_wiki", "--verify", "--out", str(data)]) == 0
    sets = [f"data.path={data}", "phase1_steps=0", "optimizer.total=200", "target=0.99", "seed=1", "model.dropout=0"]
    arguments = [part for setting in sets for part in ("--set", setting)]
    assert cli.main(["run", "bert", "--preset", "demo_wiki", "--out", str(out), *arguments]) == 1
    curve = summary_of(out)["curve"]
    with workload.data.eval_batches(data, workload.verifying.read_meta(data), batch_size=512) as batches:
        labels = torch.cat([batch.labels for batch in batches])
    always_the_same_word = float(labels.bincount().max() / len(labels))
    assert curve[-1][1] > max(0.06, 1.3 * always_the_same_word)
    assert curve[-1][1] > curve[0][1]
