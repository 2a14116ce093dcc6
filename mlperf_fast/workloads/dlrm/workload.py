"""DLRM as the loop sees it."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks, gather_rows
from mlperf_fast.ops.roc_auc import roc_auc
from mlperf_fast.optim.schedules import warmup_hold_poly
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.workloads.base import Progress, Workload
from mlperf_fast.workloads.dlrm import data
from mlperf_fast.workloads.dlrm.model import DENSE_FEATURES, DLRM, initialise, shard_tables
from mlperf_fast.workloads.dlrm.prepare import prepare
from mlperf_fast.workloads.dlrm.presets import PRESETS, DLRMConfig
from mlperf_fast.workloads.dlrm.verify import verify


def folder(cfg: DLRMConfig) -> Path:
    return Path(cfg.data.path).expanduser()


def read_meta(cfg: DLRMConfig) -> data.Meta:
    """The data set's sizes; UserError where they aren't those that the preset demands."""
    meta = data.read_meta(folder(cfg))
    if cfg.data.table_rows is not None and tuple(meta.table_rows) != cfg.data.table_rows:
        wrong = [t for t, rows in enumerate(cfg.data.table_rows) if rows != meta.table_rows[t]]
        raise UserError(
            f"{folder(cfg)}: this preset needs the tables of Criteo 1TB, but table {wrong[0]} has "
            f"{meta.table_rows[wrong[0]]:,} rows instead of {cfg.data.table_rows[wrong[0]]:,} "
            f"({len(wrong)} tables differ). Prepare the full 24 days, or choose another preset"
        )
    return meta


def ensure_data(cfg: DLRMConfig, say: Callable[[str], None]) -> None:
    """Makes a demo's data set where it isn't there yet; real data must be there."""
    if cfg.data.generated and not (folder(cfg) / "meta.json").is_file():
        make_generated(cfg, folder(cfg), say)
    read_meta(cfg)


def make_generated(cfg: DLRMConfig, out: Path, say: Callable[[str], None]) -> None:
    from mlperf_fast.workloads.dlrm import flights, generate

    say(f"making the {cfg.data.generated} data set in {out}")
    {"demo": generate.make_demo, "flights": flights.make_flights}[cfg.data.generated or ""](out, progress=say)


def prepare_data(cfg: DLRMConfig, raw: Path | None, out: Path | None, say: Callable[[str], None]) -> None:
    """`mlperf-fast prepare dlrm`: converts Criteo's day_N.gz in `raw`, or makes the preset's own demo data."""
    target = out or folder(cfg)
    if raw is not None:
        prepare(raw, target, progress=say)
    elif cfg.data.generated:
        make_generated(cfg, target, say)
    else:
        raise UserError("this preset's data is Criteo 1TB: name the folder of day_0.gz … day_23.gz with --raw DIR")


def verify_data(cfg: DLRMConfig, out: Path | None, say: Callable[[str], None]) -> None:
    """`mlperf-fast prepare dlrm --verify`: reads the whole data set and compares it with its meta.json."""
    meta = verify(out or folder(cfg))
    say(f"{out or folder(cfg)}: {meta.train_samples:,} training and {meta.test_samples:,} test samples are as prepared")


def progress(cfg: DLRMConfig) -> Progress:
    """Steps per epoch and the evaluation interval: each 1/20 epoch, rounded down to whole steps."""
    meta = read_meta(cfg)
    steps_per_epoch = -(-meta.train_samples // cfg.batch_size)
    return Progress(
        eval_every=max(1, meta.train_samples // (cfg.evals_per_epoch * cfg.batch_size)),
        max_steps=cfg.max_epochs * steps_per_epoch,
        train_samples=meta.train_samples,
        eval_samples=meta.test_samples,
        epoch_num=lambda step: epoch_num(step, steps_per_epoch, cfg.batch_size, meta.train_samples),
    )


def epoch_num(step: int, steps_per_epoch: int, batch_size: int, train_samples: int) -> float:
    """1 + the epochs trained: 1.05, 1.10 … in the first one, as the reference convergence points count."""
    epochs, steps = divmod(step, steps_per_epoch)
    return 1 + epochs + steps * batch_size / train_samples


def model(cfg: DLRMConfig, ranks: Ranks, seed: int) -> DLRM:
    if cfg.batch_size % ranks.world or cfg.eval_batch_size % ranks.world:
        raise UserError(f"batch_size {cfg.batch_size} and eval_batch_size {cfg.eval_batch_size} must be multiples of "
                        f"the {ranks.world} processes")  # fmt: skip
    net = DLRM(read_meta(cfg).table_rows, cfg.model.dim, cfg.model.bottom, cfg.model.top, ranks)
    initialise(net, seed)
    return net


def loss(net: DLRM, batch: data.Batch) -> Tensor:
    """Mean binary cross-entropy from the logit; `weight` leaves the padding of the last short batch out."""
    return F.binary_cross_entropy_with_logits(net(batch.dense, batch.ids), batch.labels, batch.weight)


def optimizer(cfg: DLRMConfig, net: DLRM) -> SGD:
    o = cfg.optimizer
    schedule = partial(warmup_hold_poly, base=o.lr, warmup=o.warmup, decay_start=o.decay_start,
                       decay_steps=o.decay_steps, floor=o.lr_floor)  # fmt: skip
    return SGD(net.parameters(), schedule, net.ranks.device, [net.emb_l], cfg.deterministic)


def synthetic(cfg: DLRMConfig, ranks: Ranks) -> data.Batch:
    """A made-up batch with the shapes of a real one."""
    rows = read_meta(cfg).table_rows
    own = shard_tables(rows, ranks.world)[ranks.rank]
    local = cfg.batch_size // ranks.world
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(rows[table], (cfg.batch_size,), generator=generator) for table in own]
    batch = data.Batch(
        dense=torch.rand(local, DENSE_FEATURES, generator=generator),
        ids=torch.stack(columns, dim=1).int(),
        labels=torch.randint(2, (local,), generator=generator).float(),
        weight=torch.ones(local),
    )
    return data.Batch(*(tensor.to(ranks.device) for tensor in batch))


def train_batches(cfg: DLRMConfig, ranks: Ranks, seed: int, first: int) -> AbstractContextManager[Iterable[data.Batch]]:
    meta = read_meta(cfg)
    tables = shard_tables(meta.table_rows, ranks.world)[ranks.rank]
    return data.train_batches(
        folder(cfg), meta, batch_size=cfg.batch_size, seed=seed, start_step=first, epochs=cfg.max_epochs,
        rank=ranks.rank, world=ranks.world, tables=tables, device=ranks.device,
    )  # fmt: skip


@torch.inference_mode()
def evaluate(cfg: DLRMConfig, ranks: Ranks, net: DLRM) -> float:
    """ROC AUC over every test sample, exact, from float32 scores; the same on every rank."""
    meta = read_meta(cfg)
    scores, labels = [], []
    with data.test_batches(
        folder(cfg), meta, batch_size=cfg.eval_batch_size, rank=ranks.rank, world=ranks.world,
        tables=net.emb_l.tables, device=ranks.device,
    ) as batches:  # fmt: skip
        for batch, valid in batches:
            scores.append(torch.sigmoid(net(batch.dense, batch.ids))[:valid])
            labels.append(batch.labels[:valid].to(torch.uint8))
    all_scores, all_labels = (torch.cat(gather_rows(ranks, torch.cat(parts))) for parts in (scores, labels))
    return roc_auc(all_scores, all_labels)


def hyperparameters(cfg: DLRMConfig, ranks: Ranks) -> dict[str, Any]:
    """The closed division's keys; both names of the base learning rate are demanded."""
    return {
        "opt_base_learning_rate": cfg.optimizer.lr,
        "sgd_opt_base_learning_rate": cfg.optimizer.lr,
        "sgd_opt_learning_rate_decay_poly_power": 2,
        "sgd_opt_learning_rate_decay_steps": cfg.optimizer.decay_steps,
        "opt_learning_rate_warmup_steps": cfg.optimizer.warmup,
        "lr_decay_start_steps": cfg.optimizer.decay_start,
    }


def check(net: DLRM) -> None:
    net.emb_l.raise_if_bad_ids()


WORKLOAD = Workload(
    name="dlrm",
    presets=PRESETS,
    fixed_in_closed=("target", "max_epochs", "model", "data.table_rows", "data.generated", "evals_per_epoch"),
    prepare=prepare_data,
    verify=verify_data,
    ensure_data=ensure_data,
    progress=progress,
    model=model,
    loss=loss,
    optimizer=optimizer,
    synthetic=synthetic,
    train_batches=train_batches,
    evaluate=evaluate,
    hyperparameters=hyperparameters,
    check=check,
)
