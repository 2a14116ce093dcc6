"""ResNet-50's configuration and its presets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from mlperf_fast.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    path: str  # folder that `prepare` made; ~ is the home directory
    generated: Literal["digits"] | None = None  # what `prepare` makes; None: images that you bring
    benchmark: bool = False  # whether it must be ImageNet, by its counts
    reader: Literal["workers", "dali", "synthetic"] = "workers"
    threads: int | None = None  # of each process that decode; None: its share of the cores
    cache_mb: int = 0  # of each process: decoded images that `workers` keeps for later epochs
    dtype: Literal["uint8", "float16", "float32"] = "float32"  # of images on their way; uint8 is normalised in the step


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the network sees of an image; see augment.py. Sizes are in pixels."""

    size: int = 224
    resize: int = 256  # the shorter side, in evaluation
    area: tuple[float, ...] = (0.05, 1.0)  # least and greatest share that a random crop has
    flip: float = 0.5  # probability
    antialias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    width: int = 64
    layers: tuple[int, ...] = (3, 4, 6, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """See optim/schedules.py `warmup_then_poly`: from `lr` down to 1e-4 with power 2.

    rules  reference: the learning rate is inside the momentum, and no bias decays. nvidia (LARS only): momentum is
           corrected for the learning rate's change, and the linear layer's bias decays
    """

    kind: Literal["lars", "sgd"] = "lars"
    lr: float
    warmup: int  # epochs
    epochs: int  # after which the learning rate is at its end, counted from the run's start
    momentum: float = 0.9
    weight_decay: float = 5e-5
    rules: Literal["reference", "nvidia"] = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig(RunConfig):
    data: Data
    image: Image = Image()
    model: Model = Model()
    optimizer: Optimizer
    label_smoothing: float = 0.1
    norm_ranks: int = 1  # processes, of neighbouring ranks, that share a batch norm's statistics
    eval_batch_size: int
    eval_every: int = 4  # epochs
    eval_offset: int = 2  # epochs before the first one after which an evaluation comes: 2 is after 3, 7, 11 …


def demo() -> ResNetConfig:
    """5,000 handwritten digits, packed as the benchmark's images are, and a narrow network of four times two blocks.

    The target is reached after epoch 10 with seeds 1 to 5, at 0.976, 0.971, 0.972, 0.969, 0.965; after epoch 6 they are
    at 0.902, 0.908, 0.935, 0.920, 0.928.
    """
    return ResNetConfig(
        is_demo=True,
        batch_size=64,
        eval_batch_size=100,
        target=0.94,
        max_epochs=14,
        log_every=63,
        threads=1,  # a second one gains a tenth, and costs much where another process wants the core
        data=Data(path="~/.cache/mlperf_fast/resnet/digits", generated="digits", cache_mb=64),
        image=Image(size=48, resize=54, area=(0.25, 1.0), flip=0.0),  # the mirror image of a digit is none
        model=Model(width=8, layers=(2, 2, 2, 2)),
        optimizer=Optimizer(lr=5.0, warmup=2, epochs=14),
        eval_offset=1,
    )


def demo_cifar() -> ResNetConfig:
    """A few small photographs of your own, in folders by class.

    With 2,000 of CIFAR-10's for training and 1,000 for evaluation the target is reached after epoch 22, 22, 18, 18, 18
    with seeds 1 to 5; epoch 30 gives 0.425, 0.421, 0.441, 0.422, 0.447.
    """
    return replace(
        demo(),
        target=0.40,
        max_epochs=30,
        data=Data(path="~/.cache/mlperf_fast/resnet/cifar10", cache_mb=64),
        image=Image(size=32, resize=32, area=(0.25, 1.0)),
        optimizer=Optimizer(lr=5.0, warmup=2, epochs=30),
    )


# Reference convergence points of LARS: batch -> base rate, warm-up epochs, momentum, weight decay, epochs of the
# schedule, evaluation offset and most epochs: the offset whose evaluation comes when most of the point's runs had
# reached the target, and one evaluation more. Source: mlperf-logging, rcp_checker/training_2.0.0/rcps_resnet.json.
POINTS = {
    1632: (7.4, 2, 0.9, 5e-5, 35, 2, 39),
    3264: (10.5, 2, 0.9, 5e-5, 37, 2, 39),
    4096: (10.0, 5, 0.9, 2e-4, 42, 3, 44),
    8192: (17.0, 5, 0.9, 2e-4, 44, 1, 46),
    13056: (12.8, 9, 0.9, 2.5e-5, 48, 1, 50),
    32768: (21.2, 16, 0.94, 2.5e-5, 58, 3, 60),
}


def closed(batch_size: int = 3264) -> ResNetConfig:
    """The benchmark, with the hyperparameters of its reference convergence point at `batch_size`."""
    lr, warmup, momentum, weight_decay, epochs, offset, most = POINTS[batch_size]
    return ResNetConfig(
        division="closed",
        batch_size=batch_size,
        eval_batch_size=2048,
        target=0.759,
        max_epochs=most,
        log_every=100,
        data=Data(path="data/imagenet", benchmark=True),
        optimizer=Optimizer(lr=lr, warmup=warmup, epochs=epochs, momentum=momentum, weight_decay=weight_decay),
        eval_offset=offset,
    )


def dgxa100_1x8() -> ResNetConfig:
    """One node of eight A100: NVIDIA's v2.0 values, 408 images a GPU. Its last evaluation is after epoch 35."""
    return replace(
        closed(),
        device="cuda",
        precision="fp16",
        eval_batch_size=3264,
        max_epochs=37,
        data=Data(path="data/imagenet", benchmark=True, reader="dali", dtype="float16"),
        optimizer=Optimizer(lr=10.5, warmup=2, epochs=37, rules="nvidia"),
    )


def a30_1x2() -> ResNetConfig:
    """Two A30: NVIDIA's v2.0 values, 204 images a GPU; the best published recipe for one GPU, too."""
    return replace(
        dgxa100_1x8(),
        batch_size=408,
        eval_batch_size=408,
        log_every=400,
        optimizer=Optimizer(lr=3.0, warmup=2, epochs=37, rules="nvidia"),
    )


PRESETS: dict[str, Callable[[], ResNetConfig]] = {
    "demo": demo,
    "demo_cifar": demo_cifar,
    "closed": closed,
    **{f"closed_{batch_size}": partial(closed, batch_size) for batch_size in POINTS if batch_size != 3264},
    "dgxa100_1x8": dgxa100_1x8,
    "a30_1x2": a30_1x2,
}
