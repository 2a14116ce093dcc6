"""`mlperf-fast rcp record`: reference convergence points of our own, from runs on plain PyTorch (backend=ref).

The file is in the format of the official points, so the official checker takes it too (--custom_rcps). What it doesn't
know, it passes over: which preset, versions, seeds and target made the point, and that the test against it has two
sides: kernels that compute what the reference computes converge neither faster nor slower.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlperf_fast.errors import UserError
from mlperf_fast.submission import convergence
from mlperf_fast.submission.campaign import Plan, carry_out, replace
from mlperf_fast.submission.folders import benchmark_folder
from mlperf_fast.submission.logs import Log, read_logs
from mlperf_fast.submission.records import read_records, shown

SETTINGS = ("backend=ref", "drop_caches=off")  # no time is taken from these runs


def record(plan: Plan, file: Path, folder: Path) -> int:
    """Does the runs of the plan in `folder`, writes `file`, and shows the point. Exit code: 1 if a run failed.

    UserError for runs that aren't of one benchmark, batch size and setting on the reference's ops.
    """
    if file.exists():
        raise UserError(f"{file} exists: choose another file, or remove it to record anew")
    file.parent.mkdir(parents=True, exist_ok=True)
    ended = carry_out(plan, folder, all_must_converge=True)
    if len(ended) < plan.runs or any(one.how != "converged" for one in ended):
        print(f"{file} isn't written: a reference must converge in every run (their logs are in {folder})")
        return 1
    replace(file, content(plan, read_logs(benchmark_folder(str(folder)).logs)))
    return convergence.main([], plan.workload, file)


def content(plan: Plan, logs: Sequence[Log]) -> dict[str, Any]:
    """What the file holds. UserError where the logs don't agree, or a run wasn't computed by the reference's ops."""
    for log in logs:
        backends = value(log, "op_backends")
        native = sorted(op for op, name in backends.items() if name != "ref") if isinstance(backends, dict) else ["?"]
        if native:
            raise UserError(f"{log.path}: {', '.join(native)} ran on other backends than ref: this is no reference")
    for name in ("benchmark", "batch", "settings", "platform"):
        found = {getattr(log, name) for log in logs}
        if len(found) != 1 or found == {None}:
            raise UserError(
                f"the runs differ in {name}, so they are no one reference: {shown(sorted(map(str, found)))}"
            )
    first, benchmark = logs[0], plan.benchmark
    batch = int(first.batch or 0)
    keys = [key for keys in benchmark.closed_keys.values() for key in keys if key != "global_batch_size"]
    return {
        f"{benchmark.log_name}_{plan.preset}_ref_{batch}": {
            "Benchmark": benchmark.log_name,
            "Creator": f"mlperf_fast {plan.versions['mlperf_fast']}, backend ref",
            "When": time.strftime("%Y-%m-%d", time.gmtime((first.started or 0) / 1000)),
            "Platform": first.platform,
            "BS": batch,
            "Hyperparams": {key: value(first, key) for key in keys if value(first, key) is not None},
            "Epochs to converge": [log.converged_at for log in logs],
            "Two-sided": True,
            "Preset": plan.preset,
            "Settings": [setting for setting in plan.sets if setting not in SETTINGS],
            "Target": plan.config["target"],
            "Versions": plan.versions,
            "Seeds": [log.seeds[0].value for log in logs],
        }
    }


def value(log: Log, key: str) -> Any:
    """The value of the first record of a key, None without one."""
    return next((record.value for record in read_records(log.path)[0] if record.key == key), None)
