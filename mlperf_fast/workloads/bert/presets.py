"""BERT's configuration and its presets."""

from dataclasses import dataclass, replace

from mlperf_fast.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    path: str  # folder that `prepare` made; ~ is the home directory
    generated: str | None = None  # "generated" or "english": what `prepare` makes; None: text that you bring
    benchmark: bool = False  # whether vocabulary and evaluation text must be the benchmark's
    # How `prepare` makes sequences of text that you bring; the benchmark's values. See pretraining.py.
    vocabulary: int | None = None  # words of one to be trained on the text; None: vocab.txt, beside it
    longest: int = 512  # tokens of a sequence
    most_masked: int = 76  # of them
    dupe_factor: int = 10
    test_articles: int = 10_000
    eval_sequences: int = 10_000
    # T tokens and M masked ones of a batch are rounded up to multiples: few shapes, so few CUDA graphs.
    token_multiple: int = 1
    masked_multiple: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    hidden: int
    layers: int
    heads: int
    intermediate: int
    dropout: float = 0.1
    initial_std: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """LAMB with the reference's exclusions; see optim/schedules.py `warmup_poly`. Steps are of the global batch."""

    lr: float
    total: int  # steps after which the learning rate is 0, and the run ends
    warmup: int = 0
    start_warmup: int = 0  # 0 or negative: where the warm-up's count starts
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    eps: float = 1e-6
    sharded: bool = False  # state and update spread over the processes (ZeRO stage 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BERTConfig(RunConfig):
    data: Data
    model: Model
    optimizer: Optimizer
    eval_every_samples: int | None = None  # None: the rules' formula of the batch size
    eval_batch_size: int  # of each process
    phase1_steps: int | None = None  # steps that make a demo's first weights; None: the benchmark's checkpoint


def demo() -> BERTConfig:
    """Generated text in the benchmark's formats, a model of two layers, and first weights that are made beforehand.

    The target is reached after 7,200, 9,600, 9,600, 9,600, 9,600 samples with seeds 1 to 5: 225 or 300 steps.
    """
    return BERTConfig(
        is_demo=True,
        batch_size=32,
        eval_batch_size=64,
        target=0.60,
        log_every=25,
        data=Data(path="~/.cache/mlperf_fast/bert/generated", generated="generated"),
        model=Model(hidden=128, layers=2, heads=2, intermediate=512, initial_std=0.05),
        optimizer=Optimizer(lr=0.01, total=600),
        eval_every_samples=800,
        phase1_steps=60,
    )


def demo_english() -> BERTConfig:
    """Real English: the documentation of Python. So small a model climbs little on it in minutes."""
    return replace(
        demo(),
        target=0.13,
        data=Data(path="~/.cache/mlperf_fast/bert/english", generated="english"),
        model=replace(demo().model, dropout=0.0),
        optimizer=Optimizer(lr=0.01, total=1000),
        eval_every_samples=2400,
    )


def demo_wiki() -> BERTConfig:
    """A little text of your own in WikiExtractor's layout, with a vocabulary that is made of it."""
    return replace(
        demo_english(),
        target=0.11,
        data=Data(
            path="~/.cache/mlperf_fast/bert/wiki",
            vocabulary=2048,
            longest=128,
            most_masked=20,
            dupe_factor=5,
            test_articles=60,
            eval_sequences=512,
        ),
    )


def closed() -> BERTConfig:
    """The benchmark, with the hyperparameters of its reference convergence point at batch 448."""
    return BERTConfig(
        division="closed",
        batch_size=448,
        eval_batch_size=64,
        target=0.72,
        log_every=100,
        data=Data(path="data/bert", benchmark=True),
        model=Model(hidden=1024, layers=24, heads=16, intermediate=4096),
        optimizer=Optimizer(lr=4e-4, total=8103),
    )


def dgxa100_1x8() -> BERTConfig:
    """One node of eight A100: NVIDIA's v2.0 values, 56 sequences a GPU."""
    return replace(
        closed(),
        device="cuda",
        precision="fp16",
        eval_batch_size=125,
        data=Data(path="data/bert", benchmark=True, token_multiple=2048, masked_multiple=512),
        optimizer=Optimizer(lr=4.25e-4, total=6700, sharded=True),
    )


PRESETS = {
    "demo": demo,
    "demo_english": demo_english,
    "demo_wiki": demo_wiki,
    "closed": closed,
    "dgxa100_1x8": dgxa100_1x8,
}
