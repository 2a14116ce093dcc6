"""DLRM's model: the reference's sizes, names, initialisation and schedule; gradients against plain PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.ops.backend import use_backend
from mlperf_fast.optim.schedules import warmup_hold_poly
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.workloads.dlrm.data import Batch
from mlperf_fast.workloads.dlrm.model import DLRM, initialise, shard_tables
from mlperf_fast.workloads.dlrm.presets import CRITEO_1TB_ROWS, closed, demo
from mlperf_fast.workloads.dlrm.workload import epoch_num, loss

ALONE = Ranks(0, 1, torch.device("cpu"))
ROWS = (7, 3, 50, 2)
SMALL = {"dim": 8, "bottom": (16, 8), "top": (12, 6, 1)}


class PlainDLRM(nn.Module):
    """The same network as anyone would write it, with one nn.EmbeddingBag a table: an independent twin."""

    def __init__(self, rows, dim, bottom, top):
        super().__init__()
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(n, dim, mode="sum", sparse=True) for n in rows)
        self.bot_l, width = nn.Sequential(), 13
        for i, out in enumerate(bottom):
            self.bot_l.add_module(str(2 * i), nn.Linear(width, out))
            self.bot_l.add_module(str(2 * i + 1), nn.ReLU())
            width = out
        self.top_l, width = nn.Sequential(), dim + len(rows) * (len(rows) + 1) // 2
        for i, out in enumerate(top):
            self.top_l.add_module(str(2 * i), nn.Linear(width, out))
            if i < len(top) - 1:
                self.top_l.add_module(str(2 * i + 1), nn.ReLU())
            width = out

    def forward(self, dense, ids):
        x = self.bot_l(dense)
        vectors = [x] + [table(ids[:, t].long().unsqueeze(1)) for t, table in enumerate(self.emb_l)]
        products = [(vectors[i] * vectors[j]).sum(1) for i in range(1, len(vectors)) for j in range(i)]
        return self.top_l(torch.cat([x, torch.stack(products, 1)], 1)).squeeze(1)


def make_batch(samples: int, seed: int, rows=ROWS) -> Batch:
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(n, (samples,), generator=g) for n in rows], 1).int()
    dense = torch.rand(samples, 13, generator=g) * 4
    return Batch(dense, ids, torch.randint(2, (samples,), generator=g).float(), torch.ones(samples))


def make_step(net: DLRM, lr: float, precision: str = "fp32") -> TrainStep:
    return TrainStep(loss, net, SGD(net.parameters(), lambda step: lr, ALONE.device, [net.emb_l]), ALONE, precision)


def test_closed_model_has_the_reference_size_and_names_without_allocating_it():
    cfg = closed()
    net = DLRM(CRITEO_1TB_ROWS, cfg.model.dim, cfg.model.bottom, cfg.model.top, ALONE, device="meta")
    sizes = {name: tensor.numel() for name, tensor in net.state_dict().items()}
    tables = {name: size for name, size in sizes.items() if name.startswith("emb_l.")}
    assert sum(tables.values()) == 24_034_227_072
    assert sum(size for name, size in sizes.items() if name.startswith("bot_l.")) == 171_392
    assert sum(size for name, size in sizes.items() if name.startswith("top_l.")) == 2_197_505
    assert list(sizes) == [
        *(f"emb_l.{t}.weight" for t in range(26)),
        *(f"bot_l.{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")),
        *(f"top_l.{i}.{part}" for i in (0, 2, 4, 6, 8) for part in ("weight", "bias")),
    ]
    assert net.state_dict()["top_l.0.weight"].shape == (1024, 479)


@pytest.mark.parametrize("backend", ["cpp", "ref"])
def test_training_equals_the_plain_twin(backend):
    """Twenty SGD steps: the fused path and plain PyTorch give the same losses, gradients, weights."""
    net = DLRM(ROWS, **SMALL, ranks=ALONE)
    initialise(net, seed=1)
    twin = PlainDLRM(ROWS, **SMALL)
    twin.load_state_dict(net.state_dict())  # the same names, so the same file serves both
    step, sgd = make_step(net, 0.3), torch.optim.SGD(twin.parameters(), 0.3)
    with use_backend(backend):
        for number in range(20):
            batch = make_batch(33, number)
            step(batch)
            expected = F.binary_cross_entropy_with_logits(twin(batch.dense, batch.ids), batch.labels)
            sgd.zero_grad()
            expected.backward()
            sgd.step()
            assert step.read_loss()[0] == pytest.approx(expected.item(), rel=2e-5)
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=2e-4, atol=2e-6, msg=name)


def test_gradients_in_double_precision_against_the_twin():
    net, twin = DLRM(ROWS, **SMALL, ranks=ALONE).double(), PlainDLRM(ROWS, **SMALL).double()
    initialise(net, seed=2)
    twin.load_state_dict(net.state_dict())
    batch = make_batch(19, 3)
    batch = Batch(batch.dense.double(), batch.ids, batch.labels.double(), batch.weight.double())
    with use_backend("ref"):
        logits = net(batch.dense, batch.ids)
    F.binary_cross_entropy_with_logits(logits.double(), batch.labels).backward()
    F.binary_cross_entropy_with_logits(twin(batch.dense, batch.ids), batch.labels).backward()
    for (name, mine), (_, theirs) in zip(
        (*net.bot_l.named_parameters(), *net.top_l.named_parameters()),
        (*twin.bot_l.named_parameters(), *twin.top_l.named_parameters()),
        strict=True,
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-8, msg=name)


def test_initialisation_has_the_reference_distributions():
    cfg = demo()
    net = DLRM((4000, 64), cfg.model.dim, cfg.model.bottom, cfg.model.top, ALONE)
    initialise(net, seed=5)
    for rows, view in zip((4000, 64), net.emb_l.views(), strict=True):
        bound = math.sqrt(1 / rows)
        assert view.abs().max() <= bound
        assert view.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.08)
    layer = net.top_l.layers[0]
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (layer.in_features + layer.out_features)), rel=0.1)
    assert layer.bias.std().item() == pytest.approx(math.sqrt(1 / layer.out_features), rel=0.3), "biases are random too"


def test_initialisation_does_not_depend_on_the_sharding():
    whole = DLRM(ROWS, **SMALL, ranks=ALONE)
    initialise(whole, seed=9)
    expected = whole.state_dict()
    found = {}
    for rank in range(3):
        part = DLRM(ROWS, **SMALL, ranks=Ranks(rank, 3, torch.device("cpu")))
        initialise(part, seed=9)
        found |= part.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_tables_are_shared_out_once_each_and_by_size():
    owners = shard_tables(CRITEO_1TB_ROWS, 8)
    assert sorted(table for own in owners for table in own) == list(range(26))
    loads = [sum(CRITEO_1TB_ROWS[t] for t in own) for own in owners]
    assert max(loads) <= max(CRITEO_1TB_ROWS), "no process holds more than the largest table alone"


def test_a_state_dict_of_other_tables_is_refused():
    net = DLRM(ROWS, **SMALL, ranks=ALONE)
    state = DLRM((7, 3, 51, 2), **SMALL, ranks=ALONE).state_dict()
    with pytest.raises(RuntimeError, match=r"emb_l\.2\.weight: expected \(50, 8\), found \(51, 8\)"):
        net.load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # The reference's own scheduler, read off step by step: the hold is the last warm-up value, then base again.
        ({"warmup": 4, "decay_start": 6, "decay_steps": 2}, [0.25, 0.5, 0.75, 0.75, 0.75, 1.0, 0.25, 0.25, 0.25]),
        ({"warmup": 0, "decay_start": 0, "decay_steps": 0}, [1.0, 1.0, 1.0]),
        ({"warmup": 3, "decay_start": 0, "decay_steps": 0}, [1 / 3, 2 / 3, 1.0, 1.0]),
        ({"warmup": 0, "decay_start": 1, "decay_steps": 4}, [1.0, 0.5625, 0.25, 0.0625, 0.0625]),
    ],
)
def test_schedule(settings, expected):
    rates = [warmup_hold_poly(step, base=1.0, floor=1e-7, **settings) for step in range(1, len(expected) + 1)]
    assert rates == pytest.approx(expected)


def test_schedule_of_the_closed_preset_at_its_corners():
    o = closed().optimizer
    rate = lambda t: warmup_hold_poly(  # noqa: E731
        t, base=o.lr, warmup=o.warmup, decay_start=o.decay_start, decay_steps=o.decay_steps, floor=o.lr_floor
    )
    assert rate(1) == pytest.approx(24 / 2750)
    assert rate(2750) == rate(49314) == pytest.approx(24 * 2749 / 2750)
    assert rate(49315) == 24
    assert rate(49315 + 27772 - 1) == pytest.approx(max(1e-7, 24 / 27772**2))
    assert rate(75868) == pytest.approx(24 * ((27772 - (75868 - 49315)) / 27772) ** 2)


def test_epochs_count_from_one_in_twentieths():
    steps = -(-4195197692 // 55296)
    assert epoch_num(3793, steps, 55296, 4195197692) == pytest.approx(1.0499947, abs=1e-6), "as in the round's logs"
    assert epoch_num(steps, steps, 55296, 4195197692) == 2.0


def test_warm_up_changes_nothing():
    net = DLRM(ROWS, **SMALL, ranks=ALONE)
    initialise(net, seed=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(3)
    generator = torch.get_rng_state()
    step = make_step(net, 1.0)
    step.warm_up(make_batch(16, 0))
    assert step.count == 0
    assert float(step.loss_sum) == 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_follows_fp32(precision):
    """Forty steps on one batch: the loss falls as in fp32, within what the format's rounding explains."""
    losses = {}
    for kind in ("fp32", precision):
        net = DLRM(ROWS, **SMALL, ranks=ALONE)
        initialise(net, seed=4)
        step = make_step(net, 0.5, kind)
        for number in range(40):
            step(make_batch(64, number % 4))
        losses[kind], _ = step.read_loss()
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.02)


def test_fp16_overflow_skips_the_update_of_tables_and_mlps_alike():
    net = DLRM(ROWS, **SMALL, ranks=ALONE)
    initialise(net, seed=4)
    step = make_step(net, 0.5, "fp16")
    batch = make_batch(8, 0)
    step(batch)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    scale = float(step.scaler.scale)
    step(batch._replace(weight=torch.full((8,), float("inf"))))
    assert float(step.scaler.scale) == scale / 2
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    step(batch)
    assert any(not torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
