"""Runs FBGEMM's table-batched embeddings for bench_embedding_bag.py, in FBGEMM's own environment.

python3 -m venv VENV && VENV/bin/pip install fbgemm-gpu-cpu==1.9.0 'torch==2.14.*' numpy
mlperf-fast bench embedding_bag --fbgemm-python VENV/bin/python
"""

import importlib.metadata

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from .draw import draw_ids
from .peer import advise_huge_pages, serve, tune_malloc

OPTIMIZERS = {
    "none": EmbOptimType.EXACT_SGD,
    "sgd": EmbOptimType.EXACT_SGD,
    "adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}


def prepare(case):
    """The same sizes and the same kind of ids as the parent's; FBGEMM wants them table by table, int64."""
    torch.set_num_threads(case["threads"])
    rows, dim, batch, hot = case["rows"], case["dim"], case["batch"], case["hot"]
    device, is_gpu = case["device"], case["device"] == "cuda"
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if is_gpu else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    bags = SplitTableBatchedEmbeddingBagsCodegen(
        [(count, dim, *place) for count in rows],
        optimizer=OPTIMIZERS[case["update"]],
        learning_rate=case["lr"],
        eps=case["eps"],
    )
    weight = bags.weights_dev if is_gpu else bags.weights_host
    if not is_gpu:
        advise_huge_pages(weight.data_ptr(), weight.nbytes)
    weight.data.copy_(torch.empty_like(weight).uniform_(-0.01, 0.01))
    offsets = torch.arange(batch * len(rows) + 1, device=device) * hot
    ids = [draw_ids(rows, batch, hot, case["spread"], seed) for seed in range(case["sets"])]
    inputs = [torch.from_numpy(one.transpose(1, 0, 2).astype(np.int64).reshape(-1)) for one in ids]
    inputs = [one.to(device) for one in inputs]
    douts = [torch.randn(batch, len(rows) * dim, device=device) for _ in inputs] if case["update"] != "none" else []

    def call(number):
        i = number % len(inputs)
        if not douts:
            with torch.no_grad():
                return bags(inputs[i], offsets)
        return bags(inputs[i], offsets).backward(douts[i])  # the update is part of its backward

    return call, f"{distribution()} with torch {torch.__version__}"


def distribution():
    """Name and version; the GPU build has another name than the CPU build."""
    for name in ("fbgemm-gpu", "fbgemm-gpu-cpu"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "fbgemm_gpu, version unknown"


def synchronize():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


if __name__ == "__main__":
    tune_malloc()
    serve(prepare, synchronize)
