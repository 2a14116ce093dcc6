"""Closed logs made for tests: whole packages of them, which the official checkers accept."""

import json
from pathlib import Path

from mlperf_fast import suite
from mlperf_fast.submission.description import COUNTS, FIELDS
from mlperf_fast.submission.records import TOKEN

HYPERPARAMETERS = {
    "resnet": {
        "opt_name": "lars", "lars_opt_base_learning_rate": 10.5, "lars_opt_end_learning_rate": 1e-4,
        "lars_opt_learning_rate_decay_poly_power": 2, "lars_opt_learning_rate_decay_steps": 14000, "lars_epsilon": 0,
        "lars_opt_learning_rate_warmup_epochs": 2, "lars_opt_momentum": 0.9, "lars_opt_weight_decay": 5e-5,
    },
    "retinanet": {
        "opt_name": "adam", "opt_base_learning_rate": 1e-4, "opt_weight_decay": 0,
        "opt_learning_rate_warmup_epochs": 1, "opt_learning_rate_warmup_factor": 1e-3,
    },
    "bert": {
        "opt_base_learning_rate": 4e-4, "opt_epsilon": 1e-6, "opt_learning_rate_training_steps": 8000,
        "opt_learning_rate_warmup_steps": 0, "num_warmup_steps": 0, "start_warmup_step": 0, "opt_lamb_beta_1": 0.9,
        "opt_lamb_beta_2": 0.999, "opt_lamb_weight_decay_rate": 0.01,
    },
    "dlrm": {
        "opt_base_learning_rate": 24.0, "opt_learning_rate_warmup_steps": 2750, "lr_decay_start_steps": 49315,
        "sgd_opt_base_learning_rate": 24.0, "sgd_opt_learning_rate_decay_poly_power": 2,
        "sgd_opt_learning_rate_decay_steps": 27772,
    },
    "unet3d": {
        "opt_name": "sgd", "opt_base_learning_rate": 1.5, "opt_momentum": 0.9, "opt_weight_decay": 0.0,
        "opt_learning_rate_warmup_epochs": 1000, "opt_learning_rate_decay_boundary_epochs": [],
        "opt_learning_rate_decay_factor": 1.0, "oversampling": 0.4, "training_input_shape": [128, 128, 128],
        "validation_input_shape": [128, 128, 128], "validation_overlap": 0.5,
    },
    "minigo": {
        "train_batch_size": 4096, "lr_boundaries": [128, 10000, 20000], "lr_rates": [0.016, 0.16, 0.016, 0.0016],
        "min_selfplay_games_per_generation": 8192, "actual_selfplay_games_per_generation": 8192,
    },
}  # fmt: skip
START = {
    "resnet": (4, 4),
    "retinanet": (1, 1),
    "bert": (150_000, 150_000),
    "dlrm": (1.05, 0.05),
    "unet3d": (1000, 20),
    "minigo": (1, 1),
}


def write(path, benchmark="resnet", *, batch=4096, epochs=40, minutes=30.0, seed=7, status="success", start_ms=10**12):
    """Writes one log of a run that takes so many epochs and minutes; returns its path."""
    bench = suite.BENCHMARKS[benchmark]
    lines = []

    def log(key, value=None, after=0.0, **metadata):
        metadata = {"file": "train.py", "lineno": 1 + sum(map(ord, key)), **metadata}
        record = {"namespace": "", "time_ms": start_ms + round(after * 60e3), "event_type": "POINT_IN_TIME"}
        lines.append(TOKEN + json.dumps({**record, "key": key, "value": value, "metadata": metadata}))

    for key, value in (
        ("submission_benchmark", bench.log_name), ("submission_org", "Ajax"), ("submission_division", "closed"),
        ("submission_status", "onprem"), ("submission_platform", "2xPetrel"), ("cache_clear", True),
        ("init_start", None), ("seed", seed), ("global_batch_size", batch), ("gradient_accumulation_steps", 1),
        *HYPERPARAMETERS[benchmark].items(),
    ):  # fmt: skip
        log(key, value, -1)
    for name in bench.weight_names():
        log("weights_initialization", None, -1, tensor=name)
    log("init_stop")
    log("run_start")
    log("train_samples", bench.train_samples or 1_000_000)
    log("eval_samples", bench.eval_samples)
    log("block_start", None, first_epoch_num=1, epoch_count=epochs)
    epoch, interval = START[benchmark]
    (metric,) = bench.target.values()
    while epoch < epochs - interval / 2:
        log("eval_accuracy", 0.5 * metric, minutes * epoch / epochs, epoch_num=round(epoch, 9))
        epoch += interval
    log("eval_accuracy", metric + 1e-3 if status == "success" else 0.9 * metric, minutes, epoch_num=epochs)
    log("block_stop", None, minutes, first_epoch_num=1)
    log("run_stop", None, minutes, status=status)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def folder(path, benchmark="resnet", *, runs=None, epochs=(40,), minutes=(30.0,), failed=0, **others):
    """Writes a benchmark's folder; epochs and minutes are taken in turn, and the last `failed` runs don't converge."""
    runs = suite.BENCHMARKS[benchmark].runs if runs is None else runs
    for i in range(runs):
        write(
            Path(path) / f"result_{i}.txt",
            benchmark,
            epochs=epochs[i % len(epochs)],
            minutes=minutes[i % len(minutes)],
            seed=1000 + i,
            status="aborted" if i >= runs - failed else "success",
            start_ms=10**12 + i * 10**8,
            **others,
        )
    return Path(path)


GAME = {
    "black": "mlperf_fast", "white": "100 random games a move", "score": 3.5, "moves": 6,
    "board": [".XO..", ".XO..", "XXOO.", ".X.O.", ".XXO."], "win_rates": [0.5, None, 0.625, None, 0.875, None],
}  # fmt: skip


def add_game(path, **fields):
    """Adds the event of a game, as Minigo logs it at the end of a run; returns the path."""
    last = json.loads(Path(path).read_text().splitlines()[-1].removeprefix(TOKEN))
    record = {**last, "key": "final_game", "value": {**GAME, **fields}, "metadata": {"file": "loop.py", "lineno": 1}}
    with open(path, "a") as file:
        file.write(f"{TOKEN}{json.dumps(record)}\n")
    return path


def description(path, **fields):
    """Writes a system description; fields given as None are left out."""
    values = {name: "some" if wanted else "" for name, wanted in FIELDS.items()}
    values |= dict.fromkeys(COUNTS, "2") | {"submitter": "Ajax", "division": "closed", "status": "onprem"}
    values |= {"system_name": Path(path).stem, **fields}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return Path(path)


def package(root, benchmarks=("resnet", "retinanet"), **others):
    """Writes a whole package of one system, `petrel`; returns its folder."""
    description(Path(root) / "systems/petrel.json")
    for benchmark in benchmarks:
        log_name = suite.BENCHMARKS[benchmark].log_name
        folder(Path(root) / "results/petrel" / log_name, benchmark, **others)
        for name in ("code/train.py", "code/README.md", "petrel/README.md"):
            file = Path(root) / "benchmarks" / log_name / "implementations" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("as in the reference\n")
    return Path(root)
