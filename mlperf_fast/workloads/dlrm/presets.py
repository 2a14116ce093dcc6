"""DLRM's configuration and its presets."""

from dataclasses import dataclass, replace

from mlperf_fast.config import RunConfig

# Distinct values of the 26 categorical columns of Criteo 1TB at max-ind-range 40,000,000, in column order.
# Source: the reference's preprocessing; they add up to 187,767,399 rows.
CRITEO_1TB_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208, 11938, 155, 4, 976, 14,
    39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    path: str  # folder in the reference's binary format; ~ is the home directory
    generated: str | None = None  # "demo" or "flights": what `prepare` makes; None: real data that you bring
    table_rows: tuple[int, ...] | None = None  # what the data must have; None: whatever its meta.json says


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    dim: int
    bottom: tuple[int, ...]  # widths after the 13 inputs
    top: tuple[int, ...]  # widths after the interaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """Plain SGD; see optim/schedules.py `warmup_hold_poly`. Steps count from 1."""

    lr: float
    warmup: int
    decay_start: int
    decay_steps: int
    lr_floor: float = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class DLRMConfig(RunConfig):
    data: Data
    model: Model
    optimizer: Optimizer
    evals_per_epoch: int = 20  # the rules: each 1/20 of an epoch
    eval_batch_size: int


def demo() -> DLRMConfig:
    """Generated clicks in the benchmark's own format; seconds on two cores.

    The target is reached at epoch 1.66, 1.56, 1.47, 1.70, 1.70 with seeds 1 to 5; a whole epoch of each gives
    AUC 0.826, 0.830, 0.844, 0.833, 0.838.
    """
    return DLRMConfig(
        is_demo=True,
        batch_size=1024,
        eval_batch_size=8192,
        target=0.8025,
        log_every=64,
        data=Data(path="~/.cache/mlperf_fast/dlrm/demo", generated="demo"),
        model=Model(dim=16, bottom=(64, 32, 16), top=(128, 64, 32, 1)),
        optimizer=Optimizer(lr=3.0, warmup=10, decay_start=166, decay_steps=93),
    )


def demo_flights() -> DLRMConfig:
    """Real flights of 2013, late or not, written in Criteo's layout; needs the extra `flights`.

    The target is reached at epoch 1.80, 1.55, 1.65, 1.55, 1.50 with seeds 1 to 5; a whole epoch of each gives
    AUC 0.770, 0.773, 0.773, 0.772, 0.769.
    """
    return replace(
        demo(),
        batch_size=256,
        target=0.75,
        data=Data(path="~/.cache/mlperf_fast/dlrm/flights", generated="flights"),
        optimizer=Optimizer(lr=1.0, warmup=40, decay_start=680, decay_steps=360),
    )


def closed() -> DLRMConfig:
    """The reference's model and data with the hyperparameters of its reference convergence point at batch 55,296."""
    return DLRMConfig(
        division="closed",
        batch_size=55296,
        eval_batch_size=262_144,
        target=0.8025,
        log_every=1000,
        data=Data(path="data/criteo_1tb", table_rows=CRITEO_1TB_ROWS),
        model=Model(dim=128, bottom=(512, 256, 128), top=(1024, 1024, 512, 256, 1)),
        optimizer=Optimizer(lr=24.0, warmup=2750, decay_start=49315, decay_steps=27772),
    )


def dgxa100_1x8() -> DLRMConfig:
    """One node of eight A100: NVIDIA's v2.0 values (batch 55,296), which are the `closed` ones, on eight GPUs."""
    return replace(closed(), device="cuda", precision="fp16", eval_batch_size=1_769_472)


PRESETS = {"demo": demo, "demo_flights": demo_flights, "closed": closed, "dgxa100_1x8": dgxa100_1x8}
