"""The eight benchmarks of MLPerf Training v2.0 as data.

Keys are our folder names; `log_name` is what the log and the official checkers call the same benchmark, and this is
the only place that translates (RetinaNet is `ssd` there). Sources, as the `sources` fields and comments name them:

RULES    mlcommons/training_policies, training_rules.adoc at d7d9e424dc51 (2022-05-16, the last before the deadline)
YAML     mlperf-logging, compliance_checker/training_2.0.0/*.yaml
PACKAGE  mlperf-logging, run counts in benchmark_meta.py, runs dropped at each end in package_checker.py
LOGS     the results of the round, mlcommons/training_results_v2.0 at 8437fbb78349
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlperf_fast import tensor_names

RULESET = "2.0.0"
DIVISIONS = ("closed", "open")
STATUSES = ("cloud", "onprem", "preview", "research")
INIT_LIMIT_MINUTES = {"closed": 30, "open": 240}  # YAML common.yaml: submission_division

# What both divisions must log (YAML common.yaml, closed_common.yaml, open_common.yaml). Of the start and stop keys a
# log needs the block pair, or the epoch pair together with the eval pair. Closed Minigo may leave out the block pair
# and the two counts of samples; open Minigo may not.
COMMON_KEYS = (
    *("submission_benchmark", "submission_org", "submission_platform", "submission_division", "submission_status"),
    *("cache_clear", "init_start", "init_stop", "run_start", "run_stop", "eval_accuracy"),
    *("train_samples", "eval_samples"),
)
CLOSED_KEYS = ("gradient_accumulation_steps",)
INTERVAL_KEYS = ("block_start", "block_stop", "epoch_start", "epoch_stop", "eval_start", "eval_stop")

# Where the facts of every benchmark come from; each adds the source of its item counts.
_SOURCES = {
    "target": "RULES, table of closed benchmarks; YAML closed_<log_name>.yaml, eval_accuracy",
    "runs": "RULES, section on results; PACKAGE",
    "dropped": "RULES, section on results; PACKAGE",
    "evaluation": "RULES, table of evaluation frequencies",
    "closed_keys": "YAML, the file under which each group of keys stands",
    "weight_names": "YAML closed_<log_name>.yaml, weights_initialization",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One benchmark. Times and sizes are the closed division's; a demo has its own target and item counts.

    `target` maps each metric to its value; Mask R-CNN's two must be reached in one evaluation. `refused` is a perfect
    score that the checker doesn't believe (`None`: it has no such bound). `dropped` runs leave the score at each end,
    and as many non-converged runs are allowed. `train_samples` is `None` where the rules fix no number. `epoch_num`
    says what the metadata of an evaluation must hold. `closed_keys` maps the YAML file that demands them to the keys.
    """

    name: str
    log_name: str
    area: str
    dataset: str
    model: str
    metric: str
    target: Mapping[str, float]
    higher_is_better: bool = True
    refused: float | None = 1.0
    runs: int
    dropped: int = 1
    evaluation: str
    epoch_num: str = "epoch, from 1"
    train_samples: int | None
    eval_samples: int | None
    closed_keys: Mapping[str, tuple[str, ...]]
    weight_names: Callable[[], list[str]]
    sources: Mapping[str, str]

    def reached(self, quality: float | Mapping[str, float], target: Mapping[str, float] | None = None) -> bool:
        """Whether one evaluation reaches the target (the closed one, or a demo's own), as the checker decides it.

        quality: a number, or for Mask R-CNN a mapping like `target`. NaN never reaches. KeyError for a missing metric.
        """
        wanted = self.target if target is None else target
        for metric, value in wanted.items():
            got = quality[metric] if isinstance(quality, Mapping) else quality
            if self.higher_is_better:
                good = got >= value and (self.refused is None or got < self.refused)
            else:
                good = got <= value and (self.refused is None or got > self.refused)
            if not good:
                return False
        return True

    def required_closed_keys(self, opt_name: str | None = None) -> tuple[str, ...]:
        """The hyperparameter keys of a closed log beyond COMMON_KEYS and CLOSED_KEYS.

        opt_name picks between the optimizers of ResNet ("lars", "sgd"; its YAML file ends in that name); others have
        one set and ignore it.
        """
        files = (f"closed_{self.log_name}.yaml", f"closed_{self.log_name}_{opt_name}.yaml")
        return tuple(key for file, keys in self.closed_keys.items() if file in files for key in keys)


def by_log_name(log_name: str) -> Benchmark:
    """The benchmark that the log calls `log_name`; KeyError for a name that ruleset 2.0.0 doesn't know."""
    for benchmark in BENCHMARKS.values():
        if benchmark.log_name == log_name:
            return benchmark
    known = ", ".join(sorted(benchmark.log_name for benchmark in BENCHMARKS.values()))
    raise KeyError(f"ruleset {RULESET} has no benchmark {log_name!r}; it has {known}")


# --- when to evaluate, where it can be computed (closed division) -------------------------------------------------


def resnet_evaluation_due(epoch: int, offset: int) -> bool:
    """Every fourth epoch; offset 0 to 3 is free. Epochs count from 1."""
    return (epoch - 1) % 4 == offset


def unet3d_evaluation_epochs(batch: int) -> tuple[int, int, int]:
    """(first evaluation, epochs between evaluations, epoch at which the run has failed) for a global batch size."""
    epoch_samples = math.ceil(168 / batch) * batch  # RULES pad the last batch; the reference's README drops it
    return tuple(math.ceil(epochs * 168 / epoch_samples) for epochs in (1000, 20, 10000))  # type: ignore[return-value]


def bert_evaluation_samples(batch: int) -> int:
    """Samples between evaluations for a global batch size; the evaluation at 0 samples is skipped."""
    return math.floor(0.05 * (230.23 * batch + 3_000_000) / 25_000) * 25_000


def dlrm_evaluation_steps(batch: int) -> int:
    """Steps between evaluations for a global batch size: a twentieth of an epoch."""
    return 4_195_197_692 // (20 * batch)


# --- the benchmarks -----------------------------------------------------------------------------------------------

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="resnet",
            log_name="resnet",
            area="vision: image classification",
            dataset="ImageNet-1k (2012)",
            model="ResNet-50 v1.5",
            metric="top-1 accuracy, a fraction",
            target={"top1": 0.759},
            runs=5,
            evaluation="every 4 epochs, any fixed offset 0 to 3 (resnet_evaluation_due)",
            train_samples=1_281_167,
            eval_samples=50_000,
            closed_keys={
                "closed_resnet.yaml": ("global_batch_size", "opt_name"),
                "closed_resnet_lars.yaml": (
                    "lars_opt_base_learning_rate",
                    "lars_opt_end_learning_rate",
                    "lars_opt_learning_rate_decay_poly_power",
                    "lars_opt_learning_rate_decay_steps",
                    "lars_epsilon",
                    "lars_opt_learning_rate_warmup_epochs",
                    "lars_opt_momentum",
                    "lars_opt_weight_decay",
                ),
                "closed_resnet_sgd.yaml": (
                    "sgd_opt_base_learning_rate",
                    "sgd_opt_end_learning_rate",
                    "sgd_opt_learning_rate_decay_poly_power",
                    "sgd_opt_learning_rate_decay_steps",
                    "sgd_opt_weight_decay",
                    "sgd_opt_momentum",
                    "model_bn_span",
                    "opt_learning_rate_warmup_epochs",
                ),
            },
            weight_names=tensor_names.resnet,
            sources=_SOURCES | {"items": "the dataset's own counts; LOGS, all submitters"},
        ),
        Benchmark(
            name="unet3d",
            log_name="unet3d",
            area="vision: medical image segmentation",
            dataset="KiTS19",
            model="3D U-Net",
            metric="mean Dice of kidney and tumour, a fraction",
            target={"mean_dice": 0.908},
            refused=None,
            runs=40,
            dropped=4,
            evaluation="after 1000 epochs of 168 cases, then every 20; failed at 10000 (unet3d_evaluation_epochs)",
            train_samples=168,
            eval_samples=42,
            closed_keys={
                "closed_unet3d.yaml": (
                    *("global_batch_size", "opt_name", "opt_base_learning_rate", "opt_momentum", "opt_weight_decay"),
                    *("opt_learning_rate_warmup_epochs", "opt_learning_rate_decay_boundary_epochs"),
                    *("opt_learning_rate_decay_factor", "oversampling", "training_input_shape"),
                    *("validation_input_shape", "validation_overlap", "seed"),
                ),
            },
            weight_names=tensor_names.unet3d,
            sources=_SOURCES | {"items": "YAML closed_unet3d.yaml"},
        ),
        Benchmark(
            name="retinanet",
            log_name="ssd",
            area="vision: object detection, light-weight",
            dataset="OpenImages, MLPerf subset (264 classes)",
            model="RetinaNet (ResNeXt-50 32x4d, FPN)",
            metric="box mAP, a fraction",
            target={"box_map": 0.340},
            runs=5,
            evaluation="every epoch",
            train_samples=1_170_301,
            eval_samples=24_781,
            closed_keys={
                "closed_ssd.yaml": (
                    *("global_batch_size", "opt_name", "opt_base_learning_rate", "opt_weight_decay"),
                    *("opt_learning_rate_warmup_epochs", "opt_learning_rate_warmup_factor"),
                ),
            },
            weight_names=tensor_names.retinanet,
            sources=_SOURCES | {"items": "LOGS, Google (others log counts of batches under the same keys)"},
        ),
        Benchmark(
            name="maskrcnn",
            log_name="maskrcnn",
            area="vision: object detection, heavy-weight",
            dataset="COCO 2017",
            model="Mask R-CNN (ResNet-50, FPN)",
            metric="box and mask mAP, fractions, in the same evaluation",
            target={"BBOX": 0.377, "SEGM": 0.339},
            runs=5,
            evaluation="every epoch",
            train_samples=117_266,
            eval_samples=5_000,
            closed_keys={
                "closed_maskrcnn.yaml": (  # the batch size first: the check of a rate of 0.02 / K reads it
                    *("global_batch_size", "opt_base_learning_rate", "opt_learning_rate_warmup_steps"),
                    *("opt_learning_rate_warmup_factor", "num_image_candidates", "opt_learning_rate_decay_factor"),
                    *("opt_learning_rate_decay_steps", "min_image_size", "max_image_size"),
                ),
            },
            weight_names=tensor_names.maskrcnn,
            sources=_SOURCES | {"items": "LOGS, Google; images with annotations only"},
        ),
        Benchmark(
            name="rnnt",
            log_name="rnnt",
            area="language: speech recognition",
            dataset="LibriSpeech (train clean-100, clean-360, other-500; eval dev-clean)",
            model="RNN-T",
            metric="word error rate, a fraction",
            target={"wer": 0.058},
            higher_is_better=False,
            refused=0.0,
            runs=10,
            evaluation="every epoch",
            train_samples=None,  # about 278,000: what is left after the length filter, which depends on a free value
            eval_samples=2_703,
            closed_keys={
                "closed_rnnt.yaml": (
                    *("model_weights_initialization_scale", "global_batch_size", "opt_name", "opt_base_learning_rate"),
                    *("opt_lamb_epsilon", "opt_lamb_learning_rate_decay_poly_power"),
                    *("opt_lamb_learning_rate_hold_epochs", "opt_learning_rate_warmup_epochs", "opt_weight_decay"),
                    *("opt_lamb_beta_1", "opt_lamb_beta_2", "opt_gradient_clip_norm"),
                    *("opt_learning_rate_alt_decay_func", "opt_learning_rate_alt_warmup_func"),
                    *("opt_lamb_learning_rate_min", "data_train_max_duration", "data_train_num_buckets"),
                    *("data_speed_perturbaton_min", "data_speed_perturbaton_max"),  # so spelt in the YAML
                    *("data_spec_augment_freq_n", "data_spec_augment_freq_min", "data_spec_augment_freq_max"),
                    *("data_spec_augment_time_n", "data_spec_augment_time_min", "data_spec_augment_time_max"),
                    *("model_eval_ema_factor", "eval_max_prediction_symbols"),
                ),
            },
            weight_names=tensor_names.rnnt,
            sources=_SOURCES | {"items": "YAML closed_rnnt.yaml (evaluation); LOGS (training)"},
        ),
        Benchmark(
            name="bert",
            log_name="bert",
            area="language: natural language processing",
            dataset="Wikipedia 2020-01-01",
            model="BERT-large, from a fixed checkpoint",
            metric="masked-LM accuracy, a fraction",
            target={"mlm_accuracy": 0.720},
            runs=10,
            evaluation="every 0.05 * (230.23 * batch + 3,000,000) samples, floored to 25,000 (bert_evaluation_samples)",
            epoch_num="samples trained, a whole number",
            train_samples=None,  # the log holds the samples that this run trained on
            eval_samples=10_000,
            closed_keys={
                "closed_bert.yaml": (
                    *("global_batch_size", "opt_base_learning_rate", "opt_epsilon", "opt_learning_rate_training_steps"),
                    *("opt_learning_rate_warmup_steps", "num_warmup_steps", "start_warmup_step"),
                    *("opt_lamb_beta_1", "opt_lamb_beta_2", "opt_lamb_weight_decay_rate"),
                ),
            },
            weight_names=tensor_names.bert,
            sources=_SOURCES | {"items": "LOGS, NVIDIA"},
        ),
        Benchmark(
            name="dlrm",
            log_name="dlrm",
            area="commerce: recommendation",
            dataset="Criteo 1TB click logs",
            model="DLRM",
            metric="ROC AUC",
            target={"auc": 0.8025},
            runs=5,
            evaluation="every twentieth of an epoch (dlrm_evaluation_steps); RULES print samples where steps are meant",
            epoch_num="1 + the fraction of the epoch: 1.05, 1.10, ...",
            train_samples=4_195_197_692,
            eval_samples=89_137_319,
            closed_keys={
                "closed_dlrm.yaml": (
                    *("global_batch_size", "opt_base_learning_rate", "opt_learning_rate_warmup_steps"),
                    *("lr_decay_start_steps", "sgd_opt_base_learning_rate"),
                    *("sgd_opt_learning_rate_decay_poly_power", "sgd_opt_learning_rate_decay_steps"),
                ),
            },
            weight_names=tensor_names.dlrm,
            sources=_SOURCES | {"items": "mlcommons/training, the reference's data set; LOGS (evaluation)"},
        ),
        Benchmark(
            name="minigo",
            log_name="minigo",
            area="research: reinforcement learning",
            dataset="self-play of 19x19 Go",
            model="Mini Go (after AlphaGo)",
            metric="win rate against the target checkpoint, a fraction",
            target={"win_rate": 0.5},
            runs=10,
            evaluation="every epoch (one generation: self-play, then training)",
            train_samples=None,
            eval_samples=None,
            closed_keys={
                "closed_minigo.yaml": (  # the games are logged once or more for each generation
                    *("train_batch_size", "lr_boundaries", "lr_rates"),
                    *("actual_selfplay_games_per_generation", "min_selfplay_games_per_generation"),
                ),
            },
            weight_names=tensor_names.minigo,
            sources=_SOURCES | {"items": "none: the games are made during the run"},
        ),
    )
}
