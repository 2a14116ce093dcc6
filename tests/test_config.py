"""Presets, --set with its types and messages, provenance, and the round trip through config.json."""

import json

import pytest

from mlperf_fast import config
from mlperf_fast.errors import UserError
from mlperf_fast.workloads.dlrm.presets import PRESETS, DLRMConfig, demo


def settle(*sets):
    return config.from_preset(demo, "demo", sets)


def test_values_take_the_type_of_their_field():
    cfg, origins = settle(
        "batch_size=2048", "optimizer.lr=0.5", "precision=bf16", "deterministic=true", "seed=7", "model.top=8,4,1",
        "data.generated=none",
    )  # fmt: skip
    assert (cfg.batch_size, cfg.optimizer.lr, cfg.precision, cfg.deterministic, cfg.seed) == (
        2048,
        0.5,
        "bf16",
        True,
        7,
    )
    assert cfg.model.top == (8, 4, 1)
    assert cfg.data.generated is None
    assert type(cfg.batch_size) is int
    assert type(cfg.optimizer.lr) is float
    assert origins["optimizer.lr"] == "--set"
    assert origins["target"] == "preset demo"
    assert origins["precision"] == "--set"
    assert origins["division"] == "default"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batchsize=2", "did you mean 'batch_size'?"),
        ("optimizer.learning_rate=2", "there is no 'learning_rate'"),
        ("optimizr.lr=2", "did you mean 'optimizer'?"),
        ("batch_size=2.5", "expected a whole number"),
        ("optimizer.lr=fast", "expected a number"),
        ("precision=bf61", "did you mean 'bf16'?"),
        ("deterministic=maybe", "expected true or false"),
        ("optimizer=sgd", "optimizer is a group; set one of optimizer.lr"),
        ("batch_size.x=1", "batch_size has no part called 'x'"),
        ("batch_size", "expected KEY=VALUE"),
        ("model.top=8,x", "expected a whole number"),
    ],
)
def test_a_wrong_setting_gets_one_clear_error(setting, message):
    with pytest.raises(UserError) as caught:
        settle(setting)
    assert message in str(caught.value)
    assert setting.partition("=")[0] in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_config_json(name):
    cfg = PRESETS[name]()
    saved = json.loads(json.dumps(config.to_json(cfg)))
    assert config.from_json(DLRMConfig, saved) == cfg


def test_a_damaged_config_json_is_refused():
    saved = config.to_json(demo())
    with pytest.raises(UserError, match="unknown keys: colour"):
        config.from_json(DLRMConfig, {**saved, "colour": 1})
    del saved["target"]
    with pytest.raises(UserError, match="target"):
        config.from_json(DLRMConfig, saved)


def test_print_config_names_every_value_and_its_origin():
    cfg, origins = settle("seed=3")
    lines = config.describe(cfg, origins).splitlines()
    assert len(lines) == len(config.flatten(cfg))
    assert next(line for line in lines if line.startswith("seed")).split() == ["seed", "3", "--set"]
