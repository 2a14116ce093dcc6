"""Runs FBGEMM's table-batched embeddings on the CPU for bench_embedding_bag.py, in FBGEMM's own environment.

python3 -m venv VENV && VENV/bin/pip install fbgemm-gpu-cpu==1.9.0 'torch==2.14.*' numpy
make bench OP=embedding_bag ARGS='--fbgemm-python VENV/bin/python'
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
    bags = SplitTableBatchedEmbeddingBagsCodegen(
        [(count, dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for count in rows],
        optimizer=OPTIMIZERS[case["update"]],
        learning_rate=case["lr"],
        eps=case["eps"],
    )
    weight = bags.weights_host
    advise_huge_pages(weight.data_ptr(), weight.nbytes)
    weight.data.copy_(torch.empty_like(weight).uniform_(-0.01, 0.01))
    offsets = torch.arange(batch * len(rows) + 1) * hot
    ids = [draw_ids(rows, batch, hot, case["spread"], seed) for seed in range(case["sets"])]
    inputs = [torch.from_numpy(one.transpose(1, 0, 2).astype(np.int64).reshape(-1)) for one in ids]
    douts = [torch.randn(batch, len(rows) * dim) for _ in inputs] if case["update"] != "none" else []

    def call(number):
        i = number % len(inputs)
        if not douts:
            with torch.no_grad():
                return bags(inputs[i], offsets)
        return bags(inputs[i], offsets).backward(douts[i])  # the update is part of its backward

    version = f"fbgemm-gpu-cpu {importlib.metadata.version('fbgemm-gpu-cpu')} with torch {torch.__version__}"
    return call, version


if __name__ == "__main__":
    tune_malloc()
    serve(prepare)
