"""30 steps of ours and of plain models, with the same weights and batches: the losses stay together.

Rounding grows in a network of batch norms, hence so few steps, large images and two stages: the plain model in float32
is 3e-4 away from itself in float64 then, by chance more or less. APART is three times that, and each mistake that LARS
is known for must be further off.
"""

import pytest
import torch
from plain_resnet import PlainLARS, PlainResNet, PlainSGD

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

import small_resnet

from mlperf_fast.config import from_preset
from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.optim.schedules import warmup_then_poly
from mlperf_fast.workloads.resnet import workload
from mlperf_fast.workloads.resnet.presets import PRESETS

ALONE = Ranks(0, 1, torch.device("cpu"))
EPOCHS, STEPS = 15, 2  # an epoch
APART = 1e-3
LR = {"lars": 8.0, "sgd": 0.05}
DECAY = {"lars": 2e-3, "sgd": 1e-2}  # more than the benchmark's, so that forgetting it shows
# Of the plain model in float64 with what rules, as PlainLARS and PlainSGD name them.
RULES = {"reference": {}, "nvidia": {"correct": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_resnet.write(tmp_path_factory.mktemp("resnet") / "data")


def config(folder, kind, rules):
    more = (f"max_epochs={EPOCHS}", f"optimizer.epochs={EPOCHS}", f"optimizer.kind={kind}", f"optimizer.lr={LR[kind]}",
            f"optimizer.rules={rules}", f"optimizer.weight_decay={DECAY[kind]}", "batch_size=37", "image.size=48",
            "image.resize=52", "model.layers=1,1")  # fmt: skip
    sets = [part for part in small_resnet.settings(folder, *more) if part != "--set"]
    return from_preset(PRESETS["demo"], "demo", sets)[0]


def batches_of(cfg):
    with workload.train_batches(cfg, ALONE, 7, 0) as source:
        return list(source)


def ours(cfg, batches):
    net = workload.model(cfg, ALONE, 7)
    step, losses = TrainStep(workload.loss, net, workload.optimizer(cfg, net), ALONE, "fp32"), []
    for batch in batches:
        step(batch)
        losses.append(step.read_loss()[0])
    return losses


def plain(cfg, batches, dtype, make):
    m = cfg.model
    net = PlainResNet(m.width, m.layers, len(small_resnet.CLASSES))
    net.load_state_dict(workload.model(cfg, ALONE, 7).state_dict(), strict=False)
    net.to(dtype)
    optimizer, losses = make(net), []
    for number, batch in enumerate(batches, 1):
        loss = net.loss(batch.images.to(dtype), batch.labels, cfg.label_smoothing)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step(warmup_then_poly(number, base=cfg.optimizer.lr, warmup=STEPS, total=EPOCHS * STEPS))
    return losses


def apart(one, other):
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("rules", RULES)
def test_losses_follow_plain_lars(folder, rules):
    cfg = config(folder, "lars", rules)
    batches = batches_of(cfg)
    assert len(batches) == EPOCHS * STEPS

    def curve(dtype=torch.float64, **changes):
        options = {"decay": DECAY["lars"], **RULES[rules], **changes}
        return plain(cfg, batches, dtype, lambda net: PlainLARS(net, **options))

    exact = curve()
    assert exact[-1] < exact[0] - 0.3, "it learns"
    assert apart(ours(cfg, batches), exact) < APART
    assert apart(curve(torch.float32), exact) < APART
    for wrong in ({"correct": rules == "reference"}, {"decay": 0.0}, {"momentum": 0.89}, {"eta": 0.00101}):
        assert apart(curve(**wrong), exact) > 2 * APART, wrong


def test_losses_follow_plain_sgd(folder):
    cfg = config(folder, "sgd", "reference")
    batches = batches_of(cfg)

    def curve(dtype=torch.float64, **changes):
        options = {"decay": DECAY["sgd"], **changes}
        return plain(cfg, batches, dtype, lambda net: PlainSGD(net, **options))

    exact = curve()
    assert exact[-1] < exact[0] - 0.3, "it learns"
    assert apart(ours(cfg, batches), exact) < APART
    assert apart(curve(torch.float32), exact) < APART
    for wrong in ({"decay": DECAY["sgd"] / 2}, {"momentum": 0.89}):
        assert apart(curve(**wrong), exact) > 2 * APART, wrong
