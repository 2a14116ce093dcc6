"""Runs facebookresearch/dlrm's own model and training step for steps.py, from a checkout, in a process of its own.

    git clone https://github.com/facebookresearch/dlrm DIR
    python -m benchmarks.steps --dlrm-repo DIR

Its `DLRM_Net` is built with its own arguments and trained as its main loop does on a CPU: forward, loss, the loss read
back to the host each step, backward, torch.optim.SGD over all parameters, its learning-rate scheduler. Modules that
it imports but that this step never calls (tensorboard, tqdm, mlperf_logging, sklearn) are replaced when they aren't
installed.
"""

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import torch

from .draw import draw_ids
from .peer import advise_huge_pages, serve, tune_malloc

UNUSED = ("torch.utils.tensorboard", "tqdm", "mlperf_logging", "sklearn", "sklearn.metrics")


def prepare(case):
    torch.set_num_threads(case["threads"])
    repository = Path(case["repository"])
    sys.path.insert(0, str(repository))
    for module in UNUSED:
        if module.startswith("torch.") or importlib.util.find_spec(module.partition(".")[0]) is None:
            sys.modules[module] = replacement(module)
    import dlrm_s_pytorch as reference

    vectors, dim = len(case["rows"]) + 1, case["dim"]
    bottom = np.array([13, *case["bottom"]])
    top = np.array([dim + vectors * (vectors - 1) // 2, *case["top"]])
    model = reference.DLRM_Net(
        m_spa=dim, ln_emb=np.array(case["rows"]), ln_bot=bottom, ln_top=top, arch_interaction_op="dot",
        arch_interaction_itself=False, sigmoid_bot=-1, sigmoid_top=len(top) - 2, sync_dense_params=True,
        loss_threshold=0.0, ndevices=-1, loss_function="bce",
    )  # fmt: skip
    for table in model.emb_l:
        weight = torch.empty_like(table.weight.data)  # pages become huge at the first touch
        advise_huge_pages(weight.data_ptr(), weight.nbytes)
        table.weight.data = weight.copy_(table.weight.data)
    optimizer = torch.optim.SGD(model.parameters(), lr=case["lr"])
    scheduler = reference.LRPolicyScheduler(optimizer, 0, 0, 0)
    inputs = [draw_batch(case, seed) for seed in range(case["sets"])]

    def step(number):
        dense, offsets, ids, labels = inputs[number % len(inputs)]
        loss = model.loss_fn(model(dense, offsets, ids), labels)
        loss.detach().cpu().numpy()  # its loop reads the loss each step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()

    return step, f"dlrm_s_pytorch.py of {commit(repository)} with torch {torch.__version__}"


def replacement(name):
    """A module that can be imported and whose every name can be called, to no effect."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__path__ = []
    for used in ("SummaryWriter", "tqdm", "mllog"):
        setattr(module, used, MagicMock())
    return module


def draw_batch(case, seed):
    """In its form: dense [B, 13], offsets and ids [26, B] int64, labels [B, 1]."""
    batch, tables = case["batch"], len(case["rows"])
    draw = np.random.default_rng(seed)
    dense = torch.from_numpy(draw.random((batch, 13), dtype=np.float32))
    ids = torch.from_numpy(draw_ids(case["rows"], batch, 1, case["spread"], seed)[:, :, 0].T.astype(np.int64).copy())
    labels = torch.from_numpy((draw.random((batch, 1)) < 0.033).astype(np.float32))
    return dense, torch.arange(batch).repeat(tables, 1), ids, labels


def commit(repository):
    answer = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "an exported checkout"


if __name__ == "__main__":
    tune_malloc()
    serve(prepare)
