"""Every workload's step could be held by a CUDA graph, as far as a CPU can tell; and what could not is found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from steps import PRECISIONS, WORKLOADS, make_step, small_config

from mlperf_fast.loop.capture_safety import CaptureUnsafe, capture_safe
from mlperf_fast.ops.backend import CUDA_DEVICES, TRITON_DEVICES, define, use_backend

X = torch.arange(6.0).view(2, 3)
META = torch.empty(2, 3, device="meta")  # stands for a second device
LENGTHS = torch.tensor([1, 2])


class Hooked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, dout):
        return dout * (2 if dout.sum() > 0 else 1)


# What a step may not do, as people write it.
VIOLATIONS = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X.sum()),
    "int": lambda: int(LENGTHS[0]),
    "bool": lambda: bool(X.sum() > 0),
    "if": lambda: 1 if X.sum() > 0 else 0,
    "isnan": lambda: torch.isnan(X).any().item(),
    "print": lambda: f"{X.sum()}",
    "tolist": lambda: LENGTHS.tolist(),
    "numpy": lambda: X.numpy(),
    "asarray": lambda: np.asarray(X),
    "cpu": lambda: X.cpu(),
    "to cpu": lambda: X.to("cpu"),
    "to device=cpu": lambda: X.to(device="cpu"),
    "cuda": lambda: X.cuda(),
    "pin_memory": lambda: X.pin_memory(),
    "equal": lambda: torch.equal(X, X),
    "allclose": lambda: torch.allclose(X, X),
    "nonzero": lambda: X.nonzero(),
    "where": lambda: torch.where(X > 1),
    "argwhere": lambda: torch.argwhere(X),
    "masked_select": lambda: torch.masked_select(X, X > 1),
    "mask": lambda: X[X > 1],
    "mask in a row": lambda: X[:, X[0] > 1],
    "byte mask": lambda: X[(X > 1).to(torch.uint8)],
    "mask assigned": lambda: X.clone().__setitem__(X > 1, X[0, :1] * 2),
    "index_put_ with a mask": lambda: X.clone().index_put_((X > 1,), X.sum()),
    "unique": lambda: LENGTHS.unique(),
    "unique_consecutive": lambda: torch.unique_consecutive(LENGTHS),
    "bincount": lambda: torch.bincount(LENGTHS),
    "repeat_interleave": lambda: X.repeat_interleave(LENGTHS, 0),
    "torch.tensor": lambda: torch.tensor([1.0, 2.0]),
    "as_tensor": lambda: torch.as_tensor([1.0, 2.0]),
    "from_numpy": lambda: torch.from_numpy(np.ones(2)),
    "new_tensor": lambda: X.new_tensor([1.0]),
    "list as an index": lambda: X[:, [2, 0]],
    "array as an index": lambda: X[np.array([1, 0])],
    "tensor as a number": lambda: X[LENGTHS[0] : LENGTHS[1]],
    "copy from another device": lambda: META.copy_(X),
    "to another device": lambda: X.to(META.device),
    "in the backward pass": lambda: Hooked.apply(X.clone().requires_grad_()).sum().backward(),
}
SAFE = {
    "a number assigned": lambda: X.clone().__setitem__((slice(None), 0), 1.0),
    "a number assigned by mask": lambda: X.clone().__setitem__(X > 1, 0.0),
    "where with three arguments": lambda: torch.where(X > 1, X, 0.0),
    "masked_fill": lambda: X.masked_fill(X > 1, 0.0),
    "a tensor of indices": lambda: X[:, LENGTHS],
    "indices assigned": lambda: X.clone().index_put_((LENGTHS - 1,), X),
    "repeat_interleave with its length": lambda: X.repeat_interleave(LENGTHS, 0, output_size=3),
    "full": lambda: torch.full((2,), 3.0).fill_(2.0),
    "dtype": lambda: X.to(torch.bfloat16).to(X.device),
    "shapes": lambda: X.new_zeros(len(X), X.shape[1]).copy_(X),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_what_a_graph_can_not_hold_is_refused(name):
    with pytest.raises(CaptureUnsafe) as refused, capture_safe():
        VIOLATIONS[name]()
    assert re.search(r"\S+ (makes|gives|copies|allocates) .*, at .*\.py:\d+$", str(refused.value))
    assert "test_capture_safety.py" in str(refused.value), "the line that called it"


@pytest.mark.parametrize("name", SAFE)
def test_what_a_graph_can_hold_passes(name):
    with capture_safe():
        SAFE[name]()


def test_it_ends_with_the_block_also_after_a_refusal():
    with pytest.raises(CaptureUnsafe), capture_safe():
        X.sum().item()
    assert X.sum().item() == 15


def tolist_inside(x, backend):
    return x * x.tolist()[0][1]


planted = define("planted(Tensor x, str backend) -> Tensor", tolist_inside, lambda x, backend: torch.empty_like(x))


def test_it_looks_inside_our_ops_but_not_into_host_code():
    assert torch.equal(planted(X, "triton"), X)
    with pytest.raises(CaptureUnsafe, match=r"Tensor\.tolist makes the host wait"), capture_safe():
        planted(X, "triton")
    with capture_safe():
        planted(X, "cpp")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_step_is_capture_safe(name, precision, tmp_path):
    step, batch = make_step(name, small_config(name, tmp_path, f"precision={precision}"))
    step.warm_up(batch)
    with capture_safe():
        step(batch)
        step(batch)
    assert step.count == 2
    step.read_loss()


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_step_is_capture_safe_over_two_processes(name, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(f"""
from pathlib import Path
from steps import PRECISIONS, make_step, small_config
from mlperf_fast.loop import dist
from mlperf_fast.loop.capture_safety import capture_safe
ranks = dist.start("cpu")
for precision in PRECISIONS:
    cfg = small_config({name!r}, Path({str(tmp_path)!r}) / f"rank{{ranks.rank}}", f"precision={{precision}}")
    step, batch = make_step({name!r}, cfg, ranks)
    step.warm_up(batch)
    with capture_safe():
        step(batch)
    assert step.read_loss()[1] == 1
dist.stop()
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("deterministic", ["true", "false"])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_step_is_capture_safe_with_device_kernels(name, backend, deterministic, tmp_path):
    """On CPU tensors, in Triton's interpreter or in the emulator: what Python does around the kernels is the same."""
    if "cpu" not in {"triton": TRITON_DEVICES, "cuda": CUDA_DEVICES}[backend]:
        pytest.skip({"triton": "needs TRITON_INTERPRET=1 before start", "cuda": "runs in `make emulate`"}[backend])
    step, batch = make_step(name, small_config(name, tmp_path, "batch_size=8", f"deterministic={deterministic}"))
    with use_backend(backend):
        step.warm_up(batch)
        with capture_safe():
            step(batch)
    step.read_loss()


def test_the_line_of_a_fault_in_a_step_is_named(tmp_path):
    step, batch = make_step("dlrm", small_config("dlrm", tmp_path))
    honest = step.loss
    step.loss = lambda model, b: honest(model, b) * (1 if float(b.labels.sum()) >= 0 else 0)
    with pytest.raises(CaptureUnsafe, match=r"test_capture_safety\.py"), capture_safe():
        step(batch)
