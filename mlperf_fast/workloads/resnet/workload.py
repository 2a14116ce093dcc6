"""ResNet-50 as the loop sees it."""

import math
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor

from mlperf_fast import suite
from mlperf_fast.config import flatten
from mlperf_fast.data import jpeg
from mlperf_fast.data.dali import import_dali
from mlperf_fast.errors import UserError
from mlperf_fast.loop.dist import Ranks, sum_over_ranks
from mlperf_fast.ops.softmax_cross_entropy import raise_if_bad_labels
from mlperf_fast.optim.lars import LARS
from mlperf_fast.optim.optimizer import Optimizer
from mlperf_fast.optim.schedules import warmup_then_poly
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.workloads.base import Progress, Workload
from mlperf_fast.workloads.resnet import data, dataset
from mlperf_fast.workloads.resnet import model as resnet
from mlperf_fast.workloads.resnet import verify as verifying
from mlperf_fast.workloads.resnet.augment import Form
from mlperf_fast.workloads.resnet.dataset import Meta
from mlperf_fast.workloads.resnet.digits import make_digits
from mlperf_fast.workloads.resnet.prepare import prepare
from mlperf_fast.workloads.resnet.presets import PRESETS, ResNetConfig

# What the rules fix: the least learning rate, the power of its decay, LARS' epsilon and trust coefficient.
END_LR, POWER, EPS, ETA = 1e-4, 2, 0.0, 0.001
CLASSES = 1000
POSITIVE = (
    "batch_size", "eval_batch_size", "max_epochs", "eval_every", "norm_ranks", "optimizer.epochs", "model.width",
    "image.size", "image.resize", "data.threads",
)  # fmt: skip
SHARES = ("optimizer.momentum", "label_smoothing", "image.flip")


def folder(cfg: ResNetConfig) -> Path:
    return Path(cfg.data.path).expanduser()


def read_meta(cfg: ResNetConfig) -> Meta:
    """The data set's sizes; UserError where it isn't ImageNet and the preset demands that."""
    meta = dataset.read_meta(folder(cfg))
    bench = suite.BENCHMARKS["resnet"]
    found, wanted = (meta.train_samples, meta.eval_samples), (bench.train_samples, bench.eval_samples)
    if cfg.data.benchmark and (found != wanted or meta.classes != CLASSES):
        raise UserError(
            f"{folder(cfg)}: this preset needs ImageNet, {wanted[0]:,} training and {wanted[1]:,} evaluation images of "
            f"{CLASSES:,} classes, but this data set has {found[0]:,} and {found[1]:,} of {meta.classes:,}. Prepare "
            "the whole of it, or choose another preset"
        )
    return meta


def ensure_data(cfg: ResNetConfig, say: Callable[[str], None]) -> None:
    """Makes a demo's digits where they aren't there yet; other images must be there, and what reads them too."""
    require_sizes(cfg)
    if cfg.data.generated:
        make_digits(folder(cfg), progress=say)
    meta = read_meta(cfg)
    if cfg.data.reader == "workers":
        jpeg.pillow()
    elif cfg.data.reader == "dali":
        import_dali()
    require_room(cfg, meta)


def require_sizes(cfg: ResNetConfig) -> None:
    """UserError for numbers that make no run, and for those that make no closed one."""
    values = flatten(cfg)
    for key in POSITIVE:
        if values[key] is not None and values[key] < 1:
            raise UserError(f"{key} is {values[key]}, expected a whole number of 1 or more")
    for key in SHARES:
        if not 0 <= values[key] <= 1:
            raise UserError(f"{key} is {values[key]}, expected a number of 0 to 1")
    image, o, first = cfg.image, cfg.optimizer, cfg.eval_offset + 1
    if not cfg.model.layers or min(cfg.model.layers) < 1:
        raise UserError(f"model.layers is {list(cfg.model.layers)}, expected 1 or more for each stage, such as 3,4,6,3")
    if image.resize < image.size:
        raise UserError(f"image.resize is {image.resize}, less than image.size, {image.size}: no crop fits")
    if len(image.area) != 2 or not 0 < image.area[0] <= image.area[1] <= 1:
        raise UserError(f"image.area is {list(image.area)}, expected two shares, the least first, such as 0.05,1")
    if not 0 <= o.warmup < o.epochs:
        raise UserError(f"optimizer.warmup is {o.warmup}, expected 0 or more, and less than the {o.epochs} epochs")
    if not 0 <= cfg.eval_offset < cfg.eval_every:
        raise UserError(f"eval_offset is {cfg.eval_offset}, expected 0 to {cfg.eval_every - 1}, below eval_every")
    if first > cfg.max_epochs:
        raise UserError(
            f"no evaluation comes within max_epochs, {cfg.max_epochs}: the first is after epoch {first}; "
            "set eval_offset=0, or train longer"
        )
    if o.kind == "sgd" and o.rules != "reference":
        raise UserError("optimizer.rules=nvidia is for LARS: leave it at reference for optimizer.kind=sgd")
    if cfg.data.cache_mb and cfg.data.reader == "dali":
        raise UserError("data.cache_mb is for data.reader=workers: set it to 0 for dali")
    if cfg.data.dtype == "float16" and cfg.precision == "fp32":
        raise UserError("data.dtype=float16 is for precision=fp16 or bf16: set data.dtype to float32 or uint8")
    if cfg.division == "closed":
        require_rules(cfg)


def require_rules(cfg: ResNetConfig) -> None:
    """UserError for hyperparameters with which the compliance check or a review would refuse the log."""
    o = cfg.optimizer
    if o.weight_decay <= 0 or not math.log2(o.weight_decay / 1e-4).is_integer():
        raise UserError(f"the closed division wants optimizer.weight_decay to be 1e-4 times a power of 2, not "
                        f"{o.weight_decay:g}")  # fmt: skip
    if cfg.batch_size < 32768 and o.momentum != 0.9:
        raise UserError(f"the closed division wants optimizer.momentum=0.9 below batch 32,768, not {o.momentum:g}")
    if o.kind == "sgd" and not (o.lr / 0.001).is_integer():
        raise UserError(f"the closed division wants SGD's optimizer.lr to be a multiple of 0.001, not {o.lr:g}")
    if cfg.label_smoothing not in (0, 0.1):
        raise UserError(f"the closed division allows label_smoothing 0 and 0.1, not {cfg.label_smoothing:g}")


def require_room(cfg: ResNetConfig, meta: Meta) -> None:
    """UserError where a run is longer than its data or a batch larger: an epoch would show images twice."""
    if cfg.batch_size > meta.train_samples:
        raise UserError(f"batch_size is {cfg.batch_size:,}, but the data set has {meta.train_samples:,} images")


def prepare_data(cfg: ResNetConfig, raw: Path | None, out: Path | None, say: Callable[[str], None]) -> None:
    """`mlperf-fast prepare resnet`: packs or adopts the images of the folder `raw`, or makes the preset's digits."""
    target = out or folder(cfg)
    if raw is not None:
        classes = CLASSES if cfg.data.benchmark else None
        prepare(raw, target, classes=classes, workers=os.cpu_count() or 1, progress=say)
    elif cfg.data.generated:
        make_digits(target, progress=say)
    else:
        raise UserError("this preset's data is images that you bring: name their folder with --raw DIR")


def verify_data(cfg: ResNetConfig, out: Path | None, say: Callable[[str], None]) -> None:
    """`mlperf-fast prepare resnet --verify`: reads the data set whole and compares it with its meta.json."""
    verifying.verify(out or folder(cfg), say, os.cpu_count() or 1)


def steps_per_epoch(cfg: ResNetConfig) -> int:
    return data.steps_per_epoch(read_meta(cfg).train_samples, cfg.batch_size)


def progress(cfg: ResNetConfig) -> Progress:
    """An evaluation after every fourth epoch, from epoch `eval_offset` + 1 on; the run ends with the last of them."""
    meta, steps = read_meta(cfg), steps_per_epoch(cfg)
    first = cfg.eval_offset + 1
    last = first + (cfg.max_epochs - first) // cfg.eval_every * cfg.eval_every
    return Progress(
        eval_every=cfg.eval_every * steps,
        first_eval=first * steps,
        max_steps=last * steps,
        train_samples=meta.train_samples,
        eval_samples=meta.eval_samples,
        epoch_num=lambda step: step // steps if step % steps == 0 else step / steps,
        numbered=True,
    )


def form(cfg: ResNetConfig) -> Form:
    image = cfg.image
    return Form(size=image.size, resize=image.resize, area=(image.area[0], image.area[1]), flip=image.flip,
                antialias=image.antialias, dtype=cfg.data.dtype)  # fmt: skip


def model(cfg: ResNetConfig, ranks: Ranks, seed: int) -> resnet.ResNet:
    for key, size in (("batch_size", cfg.batch_size), ("eval_batch_size", cfg.eval_batch_size)):
        if size % ranks.world:
            raise UserError(f"{key} is {size}, expected a multiple of the {ranks.world} processes")
    if ranks.device.type == "cuda":
        # All batches have one shape: the fastest algorithm of each convolution is found once, in the warm-up.
        torch.backends.cudnn.benchmark = not cfg.deterministic
        torch.backends.cudnn.deterministic = cfg.deterministic
    m, side = cfg.model, -(-cfg.image.size // (2 << len(cfg.model.layers)))  # of the last stage
    if cfg.batch_size // ranks.world * cfg.norm_ranks * side**2 < 2:
        raise UserError(f"batch_size {cfg.batch_size} over {ranks.world} processes and image.size {cfg.image.size} "
                        "leave batch norm one value a channel: take a larger one of them")  # fmt: skip
    net = resnet.ResNet(
        m.width, m.layers, read_meta(cfg).classes, label_smoothing=cfg.label_smoothing, device=ranks.device,
        group=norm_group(cfg, ranks),
    )  # fmt: skip
    resnet.initialise(net, seed)
    return net


def norm_group(cfg: ResNetConfig, ranks: Ranks) -> torch_dist.ProcessGroup | None:
    """The processes with which this one shares batch norm's statistics; None: it has its own."""
    share = cfg.norm_ranks
    if ranks.world % share:
        raise UserError(f"norm_ranks is {share}, expected a divisor of the {ranks.world} processes")
    if share == 1:
        return None
    # Each process must take part in making every group.
    groups = [torch_dist.new_group(list(range(i, i + share))) for i in range(0, ranks.world, share)]
    return groups[ranks.rank // share]


def loss(net: resnet.ResNet, batch: data.Batch) -> Tensor:
    return net.loss(batch.images, batch.labels)


def optimizer(cfg: ResNetConfig, net: resnet.ResNet) -> Optimizer:
    """LARS without trust ratio and decay for norms and biases; or SGD, whose reference adds the decay to the loss as
    decay * w^2 over all but norms: twice as much in the gradient."""
    o, steps = cfg.optimizer, steps_per_epoch(cfg)
    total = o.epochs * steps
    schedule = partial(warmup_then_poly, base=o.lr, warmup=o.warmup * steps, total=total, end=END_LR, power=POWER)
    parameters, device = net.named_parameters(), net.label_errors.device
    if o.kind == "sgd":
        return SGD(parameters, schedule, device, momentum=o.momentum, weight_decay=2 * o.weight_decay,
                   undecayed=resnet.of_norm, lr_inside=True)  # fmt: skip
    nvidia = o.rules == "nvidia"
    return LARS(
        parameters, schedule, device, momentum=o.momentum, eta=ETA, eps=EPS, weight_decay=o.weight_decay,
        unadapted=unadapted, undecayed=resnet.of_norm if nvidia else unadapted, lr_inside=not nvidia,
    )  # fmt: skip


def unadapted(name: str) -> bool:
    return resnet.of_norm(name) or name.endswith("bias")


def synthetic(cfg: ResNetConfig, ranks: Ranks) -> data.Batch:
    """A made-up batch with the shapes of a real one."""
    made = data.synthetic(read_meta(cfg).classes, form(cfg), cfg.batch_size // ranks.world, ranks.rank)
    return data.Batch(*(tensor.to(ranks.device) for tensor in made))


def train_batches(
    cfg: ResNetConfig, ranks: Ranks, seed: int, first: int
) -> AbstractContextManager[Iterable[data.Batch]]:
    d = cfg.data
    return data.train_batches(
        folder(cfg), read_meta(cfg), form(cfg), reader=d.reader, batch_size=cfg.batch_size, seed=seed,
        steps=progress(cfg).max_steps, start_step=first, rank=ranks.rank, world=ranks.world, threads=d.threads,
        cache_mb=d.cache_mb, device=ranks.device,
    )  # fmt: skip


@torch.inference_mode()
def evaluate(cfg: ResNetConfig, ranks: Ranks, net: resnet.ResNet) -> float:
    """Share of the evaluation set's images whose largest logit is the right one; the same on every rank."""
    average_statistics(ranks, net)
    counts = torch.zeros(2, dtype=torch.int64, device=ranks.device)  # right ones, all
    with data.eval_batches(
        folder(cfg), read_meta(cfg), form(cfg), reader=cfg.data.reader, batch_size=cfg.eval_batch_size, rank=ranks.rank,
        world=ranks.world, threads=cfg.data.threads, device=ranks.device,
    ) as batches:  # fmt: skip
        for batch, valid in batches:
            counts[0] += net.correct(batch.images, batch.labels)[:valid].sum()
            counts[1] += valid
    right, count = sum_over_ranks(ranks, counts).tolist()
    return right / count


def average_statistics(ranks: Ranks, net: resnet.ResNet) -> None:
    """Each process has running statistics of its own images: before an evaluation all get the mean, as NVIDIA's."""
    if ranks.world > 1:
        buffers = resnet.running_statistics(net)
        mean = sum_over_ranks(ranks, torch.cat(buffers)) / ranks.world
        torch._foreach_copy_(buffers, mean.split([len(buffer) for buffer in buffers]))


def hyperparameters(cfg: ResNetConfig, ranks: Ranks) -> dict[str, Any]:
    """The closed division's keys for the optimizer. Decay steps are counted as the epochs are, from the run's start."""
    o = cfg.optimizer
    values: dict[str, float] = {
        "opt_base_learning_rate": o.lr,
        "opt_end_learning_rate": END_LR,
        "opt_learning_rate_decay_poly_power": POWER,
        "opt_learning_rate_decay_steps": o.epochs * steps_per_epoch(cfg),
        "opt_momentum": o.momentum,
        "opt_weight_decay": o.weight_decay,
    }
    found: dict[str, Any] = {"opt_name": o.kind, "model_bn_span": cfg.batch_size // ranks.world * cfg.norm_ranks}
    found |= {f"{o.kind}_{key}": value for key, value in values.items()}
    if o.kind == "lars":
        return found | {"lars_epsilon": EPS, "lars_opt_learning_rate_warmup_epochs": o.warmup}
    return found | {"opt_learning_rate_warmup_epochs": o.warmup}


def check(net: resnet.ResNet) -> None:
    raise_if_bad_labels(net.label_errors, net.fc.out_features)


WORKLOAD = Workload(
    name="resnet",
    presets=PRESETS,
    fixed_in_closed=("target", "data.generated", "data.benchmark", "image", "model", "eval_every"),
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
    evaluates_apart=True,
)
