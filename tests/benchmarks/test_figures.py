"""The tables of figures: what is demanded of which row, and that the verdict follows from the medians."""

import json

import pytest
import torch
from mlperf_fast.benchmarks import (
    bench_adam,
    bench_batch_norm,
    bench_lamb,
    bench_lars,
    bench_sgd_momentum,
    demands,
    figures,
    figures_bert,
    figures_optimizers,
    figures_resnet,
    steps_resnet,
)
from mlperf_fast.benchmarks.measure import Row, Timing

from mlperf_fast.ops.adam import adam_
from mlperf_fast.ops.grad_norm import grad_norm
from mlperf_fast.ops.lamb import lamb_
from mlperf_fast.ops.lars import lars_
from mlperf_fast.ops.sgd_momentum import sgd_momentum_

SMALL, LARGE = "2,000 small tensors, 4.1 M", "206 tensors of BERT-base, 110 M"


def timing(ms: float) -> Timing:
    return Timing((ms, 0.9 * ms, 1.1 * ms), (2 * ms, ms, 3 * ms), 10, 1)


def row(op: str, shape: str, **ms: float | str) -> Row:
    results = {name.replace("_", " "): one if isinstance(one, str) else timing(one) for name, one in ms.items()}
    return Row(op, shape, "fp32", 2, 80_000_000, 1, "triad", results, "cpp")


@pytest.mark.parametrize(
    ("measured", "limits", "expected"),
    [
        (row("lamb", LARGE, cpp=10.0, eager=40.0, foreach=39.0), {"triad": 9.0}, [("≥ 3.8×", "3.90×", "yes"),
                                                                                ("≥ 80 % of triad", "89 %", "yes")]),
        (row("lamb", SMALL, cpp=10.0, eager=300.0, foreach=139.0), {"triad": 9.0}, [("≥ 14×", "13.90×", "no")]),
        (row("adam", LARGE, cpp=10.0, torch_fused=9.9), {"triad": 20.0}, [("≥ 1×", "0.99×", "no"),
                                                                         ("≥ 80 % of triad", "40 %", "no")]),
        (row("sgd_momentum", SMALL, cpp=1.0, torch_fused="not run: x"), {}, [("≥ 3.5×", "not run", "")]),
    ],
)  # fmt: skip
def test_a_demand_is_met_or_not_by_the_medians(measured, limits, expected):
    lines = [demand.line(limits) for demand in figures_optimizers.demands(measured)]
    assert [tuple(line[1:4]) for line in lines] == expected
    assert {len(line) for line in lines} == {len(demands.TITLES)}


@pytest.mark.parametrize(
    ("op", "shape", "expected"),
    [
        ("attention fwd+bwd", "16×up to 512, 12×64, dropout 0.1", ["≥ 3.2×", "≥ 1.7×"]),
        ("attention fwd+bwd", "8×512, 12×64, dropout 0", ["≥ 1×", "reported"]),
        ("layer_norm fwd+bwd", "8192×1024, dropout 0.1", ["≥ 6×", "≥ 10×"]),
        ("softmax_cross_entropy fwd+bwd", "608×30522", ["≥ 4.2×", "reported"]),
        ("bias_gelu fwd+bwd", "8192×4096", ["≥ 1.9×"]),
        ("BERT step", "BERT-base: 8 sequences", ["≥ 1.8×", "≥ 1.2×", "reported"]),
        ("embedding_layer_norm fwd+bwd", "8192×1024", ["reported"]),
    ],
)
def test_what_is_demanded_of_bert(op, shape, expected):
    assert [demand.line({})[1] for demand in figures_bert.demands(row(op, shape, cpp=1.0))] == expected


@pytest.mark.parametrize(
    ("op", "shape", "expected"),
    [
        ("batch_norm fwd+bwd", "32×56×56×256, add + ReLU", ["≥ 1.65×", "≥ 6×"]),
        ("batch_norm fwd+bwd", "32×112×112×64, ReLU", ["reported", "reported"]),
        ("ResNet step", "16×224×224×3, width 64, 16 blocks", ["≥ 1.1×", "≥ 1×"]),
        ("data", "batches of 64", ["≥ 1.5×"]),
        ("data, first epoch", "batches of 64", ["reported"]),
    ],
)
def test_what_is_demanded_of_resnet(op, shape, expected):
    assert [demand.line({})[1] for demand in figures_resnet.demands(row(op, shape, cpp=1.0))] == expected
    cases = [*bench_batch_norm.CASES, *steps_resnet.CASES]
    assert not op.startswith(("batch_norm", "ResNet")) or shape in [case.shape() for case in cases]


@pytest.mark.parametrize("op", ["attention", "layer_norm", "softmax_cross_entropy", "bias_gelu"])
def test_the_cases_that_are_demanded_are_measured(op):
    bench = {module.__name__.rsplit("bench_")[1]: module for module in figures_bert.OPS}[op]
    rows = [row(f"{op} fwd+bwd", case.shape(), cpp=1.0) for case in figures_bert.in_fp32(bench)]
    assert any("≥" in demand.line({})[1] for one in rows for demand in figures_bert.demands(one))


def test_the_table_is_written_beside_its_rows(tmp_path):
    stem = "optimizers"
    chosen = figures.arguments().parse_args([stem, "--quick", "--out", str(tmp_path)])
    assert figures.run(chosen) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}.{kind}" for kind in ("md", "json", "csv", "svg")}
    found, text = json.loads((tmp_path / f"{stem}.json").read_text()), (tmp_path / f"{stem}.md").read_text()
    assert {one["op"] for one in found["rows"]} == set(figures_optimizers.REQUIRED)
    for one in found["rows"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {one['op']}: {one['shape']}"))
        best = min(one["ratios"][name] for name in figures_optimizers.REQUIRED[one["op"]][0])
        assert f"| {best:.2f}× |" in line


def update_five_times(update, sizes=((7, 5), (64,), (3,))) -> list[torch.Tensor]:
    """The parameters after five steps of `update(params, grads, m, v, step)`, always from the same start."""
    draw = torch.Generator().manual_seed(0)
    params, grads = ([torch.randn(size, generator=draw) for size in sizes] for _ in range(2))
    m, v = ([torch.zeros(size) for size in sizes] for _ in range(2))
    for number in range(1, 6):
        update(params, grads, m, v, torch.tensor(float(number)))
    return params


LR = torch.tensor(1e-3)
OURS = {
    "lamb": lambda p, g, m, v, step: lamb_(p, g, m, v, LR, step, grad_norm=grad_norm(g)),
    "adam": lambda p, g, m, v, step: adam_(p, g, m, v, LR, step, weight_decay=0.01, decoupled=True),
    "lars": lambda p, g, m, v, step: lars_(p, g, m, torch.tensor(bench_lars.LR), weight_decay=bench_lars.DECAY),
    "sgd_momentum": lambda p, g, m, v, step: sgd_momentum_(p, g, m, LR, step, weight_decay=1e-4),
}


@pytest.mark.parametrize(
    ("op", "theirs"),
    [
        ("lamb", bench_lamb.eager_update),
        ("lamb", bench_lamb.foreach_update),
        ("adam", bench_adam.foreach_update),
        ("lars", lambda p, g, m, v, step: bench_lars.eager_update(p, g, m)),
        ("lars", lambda p, g, m, v, step: bench_lars.foreach_update(p, g, m)),
        ("sgd_momentum", lambda p, g, m, v, step: bench_sgd_momentum.foreach_update(p, g, m)),
    ],
)
def test_competitors_written_here_compute_the_same(op, theirs):
    for mine, other in zip(update_five_times(OURS[op]), update_five_times(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
