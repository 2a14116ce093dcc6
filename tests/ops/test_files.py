"""One name everywhere: an op's file in ops/ has its neighbours in csrc/, kernels/, tests/ and benchmarks/."""

from pathlib import Path

import pytest

from mlperf_fast.ops.backend import OPS

ROOT = Path(__file__).parents[2]
NOT_OPS = {"__init__", "backend", "bags", "checks", "dropout", "lists", "updates"}
NAMES = sorted(path.stem for path in (ROOT / "mlperf_fast" / "ops").glob("*.py") if path.stem not in NOT_OPS)
# What an op doesn't have, and why.
ABSENT = {
    ("cuda", "attention"): "Triton's tiles go through tensor cores as they do, and libraries have their own",
    ("cuda", "roc_auc"): "as for triton",
    ("cuda", "batch_norm"): "as for layer_norm: passes over memory, which Triton's tiles read as fast",
    ("cuda", "bias_gelu"): "as for layer_norm",
    ("cuda", "conv3x3"): "cuDNN's, on tensor cores, for which memory is the limit",
    ("cuda", "layer_norm"): "Triton reads each row once, which is all there is to gain",
    ("cuda", "embedding_layer_norm"): "as for layer_norm",
    ("cuda", "softmax_cross_entropy"): "as for layer_norm: each logit comes from memory once",
    ("cuda", "mlp"): "cuBLAS's products, and one pass that Triton does",
    ("triton", "grad_norm"): "one reduction over tensors of several dtypes: CUDA C++'s",
    ("triton", "conv3x3"): "as for cuda",
    ("triton", "adam"): "its GPU kernel is CUDA C++",
    ("triton", "ema"): "its GPU kernel is CUDA C++",
    ("triton", "lamb"): "its GPU kernel is CUDA C++",
    ("triton", "lars"): "its GPU kernel is CUDA C++",
    ("triton", "sgd_momentum"): "its GPU kernel is CUDA C++",
    ("triton", "roc_auc"): "scores are gathered on the host, once an evaluation; the sort would be torch's anyway",
}
FILES = {
    "cpp": ("csrc/{}.h", "csrc/{}.cpp"),
    "cuda": ("csrc/{}.cu",),
    "triton": ("kernels/{}.py",),
    "test": ("tests/ops/test_{}.py",),
    "benchmark": ("benchmarks/bench_{}.py",),
}


def test_every_op_file_is_an_op():
    assert sorted(OPS) == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FILES)
def test_neighbours(name, kind):
    if (kind, name) in ABSENT:
        for pattern in FILES[kind]:
            assert not (ROOT / pattern.format(name)).exists(), f"{pattern.format(name)} exists: take it out of ABSENT"
        assert kind not in OPS[name].table
        return
    for pattern in FILES[kind]:
        assert (ROOT / pattern.format(name)).exists(), f"{pattern.format(name)} is missing"
    if kind not in ("test", "benchmark"):
        assert kind in OPS[name].table, f"the table of {name} lacks {kind}"


@pytest.mark.parametrize("name", NAMES)
def test_parts_come_in_one_order(name):
    text = (ROOT / "mlperf_fast" / "ops" / f"{name}.py").read_text()
    heads = ["# 1. The truth", "# 2. Who can do it", "# 3. ", "# 4. The public function"]
    places = [text.find(f"\n{head}") for head in heads]
    assert -1 not in places
    assert places == sorted(places)
    assert list(OPS[name].table)[-1] == "ref", "the table's last line is the reference"


def test_an_op_that_leaves_the_dispatcher_out_comes_back_when_watched():
    """Asking torch.compiler alone would hide the op from fake tensors, from checkers and from what records a step."""
    for path in (ROOT / "mlperf_fast" / "ops").glob("*.py"):
        asks = "is_compiling" in path.read_text()
        assert asks == (path.stem == "backend"), f"{path.name}: ask backend.traced() instead"


def test_every_kernel_file_has_an_op():
    assert {path.stem for path in (ROOT / "kernels").glob("*.py")} - {"__init__", "dropout"} <= set(NAMES)
    # A second file of CUDA C++ adds to the op's name: embedding_bag_sorted.cu.
    for path in (ROOT / "csrc").glob("*.cu"):
        assert any(path.stem == name or path.stem.startswith(f"{name}_") for name in NAMES), path.name
