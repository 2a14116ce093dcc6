"""BERT as the loop sees it."""

import json
import os
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlperf_fast import suite
from mlperf_fast.config import flatten
from mlperf_fast.errors import UserError
from mlperf_fast.loop import dist
from mlperf_fast.loop.dist import Ranks, sum_over_ranks
from mlperf_fast.ops.embedding_layer_norm import raise_if_bad_tokens
from mlperf_fast.ops.softmax_cross_entropy import raise_if_bad_labels
from mlperf_fast.optim.lamb import LAMB, excluded_by_reference
from mlperf_fast.optim.optimizer import Optimizer
from mlperf_fast.optim.schedules import warmup_poly
from mlperf_fast.optim.sharded import ShardedLAMB
from mlperf_fast.workloads.base import Progress, Workload
from mlperf_fast.workloads.bert import checkpoint, data
from mlperf_fast.workloads.bert import model as bert
from mlperf_fast.workloads.bert import verify as verifying
from mlperf_fast.workloads.bert.corpus import demo_corpus
from mlperf_fast.workloads.bert.prepare import INITIAL, prepare
from mlperf_fast.workloads.bert.presets import PRESETS, BERTConfig
from mlperf_fast.workloads.bert.pretraining import Settings
from mlperf_fast.workloads.bert.sequences import Sequences, starts_of
from mlperf_fast.workloads.bert.verify import Meta

SIZES = (
    "batch_size", "eval_batch_size", "eval_every_samples", "phase1_steps", "optimizer.total", "model.hidden",
    "model.layers", "model.heads", "model.intermediate", "data.token_multiple", "data.masked_multiple",
)  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INITIAL_ACCURACY = 0.34085  # of the benchmark's checkpoint on its evaluation set; mlcommons/training, bert, README.md
# Phase 1's learning rate decays to 0 only after so many times its steps: it is broken off, as the benchmark's was.
PHASE1_SEED, PHASE1_TOTAL = 1_000_003, 8


def folder(cfg: BERTConfig) -> Path:
    return Path(cfg.data.path).expanduser()


def read_meta(cfg: BERTConfig) -> Meta:
    """The data set's sizes; UserError where it isn't the benchmark's and the preset demands that."""
    meta = verifying.read_meta(folder(cfg))
    for key, what in (("benchmark_vocabulary", "vocabulary"), ("benchmark_eval_text", "evaluation text")):
        if cfg.data.benchmark and not meta.settings.get(key):
            raise UserError(
                f"{folder(cfg)}: this preset needs the benchmark's {what}, but this data set has another. Prepare the "
                "benchmark's text, or choose another preset"
            )
    return meta


def ensure_data(cfg: BERTConfig, say: Callable[[str], None]) -> None:
    """Makes a demo's text and first weights where they aren't there yet; real ones must be there."""
    require_sizes(cfg)
    if cfg.data.generated:
        demo_corpus(cfg.data.generated, folder(cfg), progress=say)
    meta = read_meta(cfg)
    initial = initial_file(cfg, folder(cfg))
    if initial and not initial.is_file():
        if cfg.phase1_steps is None:
            raise UserError(
                f"{initial} is missing: the benchmark starts from its own checkpoint. Put model.ckpt-28252.* into the "
                "raw folder, and run `mlperf-fast prepare bert` again; or start from random weights by "
                "--set phase1_steps=0"
            )
        make_phase1(cfg, meta, initial, say)


def require_sizes(cfg: BERTConfig) -> None:
    values = flatten(cfg)
    for key in SIZES:
        least = 0 if key == "phase1_steps" else 1
        if values[key] is not None and values[key] < least:
            raise UserError(f"{key} is {values[key]}, expected a whole number of {least} or more")


def initial_file(cfg: BERTConfig, data_folder: Path) -> Path | None:
    """Where the first weights lie; None: they are random. A demo's file is named by what made it."""
    if cfg.phase1_steps == 0:
        return None
    if cfg.phase1_steps is None:
        return data_folder / INITIAL / "benchmark.safetensors"
    model_code = zlib.crc32(json.dumps(asdict(cfg.model)).encode())
    return data_folder / INITIAL / f"phase1-{cfg.phase1_steps}-{model_code:08x}.safetensors"


def make_phase1(cfg: BERTConfig, meta: Meta, path: Path, say: Callable[[str], None]) -> None:
    """First weights as the benchmark has them: trained for a while, by another schedule, before the clock starts.

    On this process alone, from a seed that no run has. Of the run's settings only data and
    model count: whoever runs first makes the weights for all.
    """
    say(f"training the weights that every run starts from: {cfg.phase1_steps} steps")
    first, total = PRESETS["demo"](), PHASE1_TOTAL * (cfg.phase1_steps or 0)
    first = replace(
        first, data=cfg.data, model=cfg.model, phase1_steps=0, optimizer=replace(first.optimizer, total=total)
    )
    alone = Ranks(0, 1, torch.device("cpu"))
    net = model(first, alone, PHASE1_SEED)
    lamb, no_inf = optimizer(first, net), torch.zeros(())
    with train_batches(first, alone, PHASE1_SEED, 0) as batches:
        for step, batch in zip(range(1, (cfg.phase1_steps or 0) + 1), batches, strict=False):
            lamb.begin(step)
            loss(net, batch).backward()
            lamb.apply(no_inf)
            net.zero_grad()
    check(net)
    path.parent.mkdir(exist_ok=True)
    accuracy = measure(first, alone, net)
    checkpoint.save(path, bert.tensors(net), f"phase 1, {cfg.phase1_steps} steps, accuracy {accuracy:.4f}")
    say(f"{path}: masked-LM accuracy {accuracy:.4f}")


def prepare_data(cfg: BERTConfig, raw: Path | None, out: Path | None, say: Callable[[str], None]) -> None:
    """`mlperf-fast prepare bert`: text, examples and checkpoint of the folder `raw`, or the preset's own demo text."""
    target, d = out or folder(cfg), cfg.data
    if raw is None:
        if not d.generated:
            raise UserError("this preset's data is text that you bring: name its folder with --raw DIR")
        demo_corpus(d.generated, target, progress=say)
        return
    source = checkpoint.find(raw)
    if source is None or not (target / verifying.META_FILE).is_file():
        settings = Settings(max_seq_length=d.longest, max_predictions=d.most_masked, dupe_factor=d.dupe_factor)
        prepare(
            raw, target, vocabulary=d.vocabulary, settings=settings, test_articles=d.test_articles,
            eval_sequences=d.eval_sequences, workers=os.cpu_count() or 1, progress=say,
        )  # fmt: skip
    if source:
        (target / INITIAL).mkdir(exist_ok=True)
        wanted = shapes(cfg, verifying.read_meta(target))
        own = checkpoint.convert(source, target / INITIAL / "benchmark.safetensors", wanted, say)
        if cfg.data.benchmark and not own:
            say(f"{source.name} isn't the benchmark's file: `mlperf-fast prepare bert --verify` measures its accuracy")
    elif cfg.phase1_steps is None:
        say(f"{raw} holds no checkpoint; a run from the benchmark's needs model.ckpt-28252.*: put it there, and repeat")


def shapes(cfg: BERTConfig, meta: Meta) -> checkpoint.Shapes:
    m = cfg.model
    return checkpoint.shapes(m.hidden, m.layers, m.intermediate, meta.words, meta.longest)


def verify_data(cfg: BERTConfig, out: Path | None, say: Callable[[str], None]) -> None:
    """`mlperf-fast prepare bert --verify`: reads the data set whole, compares it with its meta.json, and measures the
    accuracy of the first weights, which the benchmark knows."""
    target = out or folder(cfg)
    verifying.verify(target, say)
    cfg = replace(cfg, data=replace(cfg.data, path=str(target)))
    initial = initial_file(cfg, target)
    if not initial or not initial.is_file():
        return
    ranks = dist.start(cfg.device)
    try:
        accuracy = measure(cfg, ranks, model(cfg, ranks, 0))
    finally:
        dist.stop()
    say(f"{initial}: masked-LM accuracy {accuracy:.5f}")
    if cfg.data.benchmark and abs(accuracy - INITIAL_ACCURACY) > 1e-3:
        raise UserError(f"{initial}: masked-LM accuracy {accuracy:.5f}, but the benchmark's has {INITIAL_ACCURACY}")


def measure(cfg: BERTConfig, ranks: Ranks, net: bert.BERT) -> float:
    net.eval()
    return evaluate(cfg, ranks, net)


def progress(cfg: BERTConfig) -> Progress:
    """An evaluation at the first step with k times the interval's samples, k = 1, 2 ...; it need not be whole steps."""
    interval = cfg.eval_every_samples or suite.bert_evaluation_samples(cfg.batch_size)
    return Progress(
        eval_every=Fraction(interval, cfg.batch_size),
        max_steps=cfg.optimizer.total,
        train_samples=None,
        eval_samples=read_meta(cfg).eval_samples,
        epoch_num=lambda step: step * cfg.batch_size,
    )


def model(cfg: BERTConfig, ranks: Ranks, seed: int) -> bert.BERT:
    """With a 16-bit precision the weights are of it too; LAMB keeps float32 ones."""
    meta, m = read_meta(cfg), cfg.model
    net = bert.BERT(
        meta.words, m.hidden, m.layers, m.heads, m.intermediate, meta.longest,
        dropout=m.dropout, seed=seed + ranks.rank, device=ranks.device,
    )  # fmt: skip
    initial = initial_file(cfg, folder(cfg))
    if initial:
        bert.load_weights(net, checkpoint.load(initial, shapes(cfg, meta)))
    else:
        bert.initialise(net, seed, m.initial_std)
    return net.to(DTYPES[cfg.precision])


def loss(net: bert.BERT, batch: data.Batch) -> Tensor:
    return net(batch)


def optimizer(cfg: BERTConfig, net: bert.BERT) -> Optimizer:
    o = cfg.optimizer
    schedule = partial(warmup_poly, base=o.lr, warmup=o.warmup, start_warmup=o.start_warmup, total=o.total)
    lamb = ShardedLAMB if o.sharded else LAMB
    return lamb(
        net.named_parameters(), schedule, net.dropout_state.device, betas=(o.beta1, o.beta2), eps=o.eps,
        weight_decay=o.weight_decay, excluded=excluded_by_reference, parts=bert.parts,
    )  # fmt: skip


def synthetic(cfg: BERTConfig, ranks: Ranks) -> data.Batch:
    """Made-up sequences of half the greatest length on average, 15 % of each masked."""
    meta = read_meta(cfg)
    rng = np.random.default_rng(ranks.rank)
    lengths = rng.integers(5, meta.longest + 1, cfg.batch_size // ranks.world)
    masked = np.clip(np.rint(0.15 * lengths).astype(np.int64), 1, meta.most_masked)
    made = Sequences(
        tokens=rng.integers(meta.words, size=lengths.sum()).astype(np.int16),
        starts=starts_of(lengths),
        first=(lengths // 2).astype(np.int16),
        positions=np.concatenate([np.arange(1, n + 1) for n in masked]).astype(np.int16),
        labels=rng.integers(meta.words, size=masked.sum()).astype(np.int16),
        mask_starts=starts_of(masked),
        random_next=rng.integers(2, size=len(lengths)).astype(np.int8),
    )
    batch = data.packed(made, cfg.data.token_multiple, cfg.data.masked_multiple, ranks.device)
    return data.Batch(*(tensor.to(ranks.device) for tensor in batch))


def train_batches(cfg: BERTConfig, ranks: Ranks, seed: int, first: int) -> AbstractContextManager[Iterable[data.Batch]]:
    return data.train_batches(
        folder(cfg), read_meta(cfg), batch_size=cfg.batch_size, seed=seed, steps=cfg.optimizer.total, start_step=first,
        rank=ranks.rank, world=ranks.world, token_multiple=cfg.data.token_multiple,
        masked_multiple=cfg.data.masked_multiple, device=ranks.device,
    )  # fmt: skip


@torch.inference_mode()
def evaluate(cfg: BERTConfig, ranks: Ranks, net: bert.BERT) -> float:
    """Share of all masked tokens of the evaluation set that are predicted right; the same on every rank."""
    correct = torch.zeros(2, dtype=torch.float64, device=ranks.device)
    with data.eval_batches(
        folder(cfg), read_meta(cfg), batch_size=cfg.eval_batch_size, rank=ranks.rank, world=ranks.world,
        device=ranks.device,
    ) as batches:  # fmt: skip
        for batch in batches:
            correct += torch.stack([net.correct(batch).double(), batch.masked_count[0].double()])
    right, count = sum_over_ranks(ranks, correct).tolist()
    return right / count


def hyperparameters(cfg: BERTConfig, ranks: Ranks) -> dict[str, Any]:
    """The closed division's keys; the number of warm-up steps is demanded under two names."""
    o = cfg.optimizer
    return {
        "opt_base_learning_rate": o.lr,
        "opt_epsilon": o.eps,
        "opt_learning_rate_training_steps": o.total,
        "opt_learning_rate_warmup_steps": o.warmup,
        "num_warmup_steps": o.warmup,
        "start_warmup_step": o.start_warmup,
        "opt_lamb_beta_1": o.beta1,
        "opt_lamb_beta_2": o.beta2,
        "opt_lamb_weight_decay_rate": o.weight_decay,
        "opt_lamb_learning_rate_decay_poly_power": 1.0,
    }


def check(net: bert.BERT) -> None:
    raise_if_bad_tokens(net.id_errors, net.word_embeddings, net.position_embeddings, net.segment_embeddings)
    raise_if_bad_labels(net.label_errors, len(net.word_bias))


WORKLOAD = Workload(
    name="bert",
    presets=PRESETS,
    fixed_in_closed=("target", "data.generated", "data.benchmark", "model", "optimizer.eps", "eval_every_samples",
                     "phase1_steps"),
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
)  # fmt: skip
