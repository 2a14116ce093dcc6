"""What each process of test_sharded.py does, started by torchrun: trains, stops, resumes, and saves what came out.

python -m torch.distributed.run --nproc-per-node N sharded_worker.py FOLDER
"""

import math
import sys
from pathlib import Path

import torch
import torch.distributed as torch_dist

from mlperf_fast.loop import dist
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.optim.ema import EMA
from mlperf_fast.optim.lamb import LAMB, excluded_by_reference
from mlperf_fast.optim.sharded import ShardedLAMB
from mlperf_fast.optim.together import Together

CPU = torch.device("cpu")
# Cut by two and by three shares, in the middle of a block's multiple and at an end; tiny ones and a frozen one.
SHAPES = {
    "word.weight": (90, 101), "LayerNorm.weight": (7,), "dense.weight": (64, 64), "dense.bias": (64,),
    "frozen.weight": (5,), "out.weight": (33, 40), "half.weight": (50, 70), "half.bias": (50,),
}  # fmt: skip
CASES = {
    "BERT": {"excluded": excluded_by_reference},
    "fused": {"excluded": excluded_by_reference, "parts": lambda name: 3 if name == "word.weight" else 1},
    "RNN-T": {"eps": 1e-9, "weight_decay": 1e-3},
    "not clipped": {"max_grad_norm": math.inf, "bias_correction": False},
    "clipped on each rank": {"excluded": excluded_by_reference, "clip_each_rank": True},
}
STEPS, STOP, OVERFLOWS = 12, 7, (3, 9)


def parameters(half: torch.dtype, rank: int = 0) -> dict[str, torch.nn.Parameter]:
    made = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(i)) + rank  # other ranks must get rank 0's
        made[name] = torch.nn.Parameter(x.to(half if "half" in name else torch.float32))
    made["frozen.weight"].requires_grad_(False)
    return made


def gradient(name: str, step: int, rank: int, dtype: torch.dtype) -> torch.Tensor:
    """Multiples of 1/64 up to 1, whose sums over a few ranks are exact in every dtype and order."""
    seed = torch.Generator().manual_seed(1000 * step + 100 * rank + list(SHAPES).index(name))
    return (torch.randint(-64, 65, SHAPES[name], generator=seed) / 64).to(dtype)


def schedule(step: int) -> float:
    return 0.1 / step


def set_gradients(params, step, rank, world) -> None:
    """One process's of `world`; with rank None their mean."""
    for name, p in params.items():
        grads = [gradient(name, step, r, p.dtype) for r in (range(world) if rank is None else [rank])]
        p.grad = sum(grads[1:], grads[0])
        if rank is None:
            p.grad.div_(world)
        if not p.requires_grad or (name == "out.weight" and step == 2):
            p.grad = None
    if step in OVERFLOWS:
        params["dense.weight"].grad[3, 3] = math.inf


def train(optimizer, params, steps, rank, world) -> None:
    for step in steps:
        set_gradients(params, step, rank, world)
        optimizer.begin(step)
        if hasattr(optimizer, "exchange"):
            optimizer.exchange(None)
        optimizer.apply(torch.tensor(float(step in OVERFLOWS)))


def run_case(case: str, half: torch.dtype, ranks: dist.Ranks) -> dict:
    params = parameters(half, ranks.rank)
    optimizer = ShardedLAMB(params.items(), schedule, CPU, **CASES[case])
    train(optimizer, params, range(1, STOP), ranks.rank, ranks.world)
    state = {
        kind: value.clone() if kind == "step" else {name: x.clone() for name, x in value.items()}
        for kind, value in optimizer.state_dict().items()
    }
    weights = {name: p.detach().clone() for name, p in params.items()}
    train(optimizer, params, range(STOP, STEPS), ranks.rank, ranks.world)

    again = parameters(half, ranks.rank)
    resumed = ShardedLAMB(again.items(), schedule, CPU, **CASES[case])
    for name, p in again.items():
        p.data.copy_(weights[name])
    resumed.load_state_dict(state)
    train(resumed, again, range(STOP, STEPS), ranks.rank, ranks.world)
    assert all(torch.equal(p, again[name]) for name, p in params.items()), "resumed exactly"
    return {
        "params": {name: p.detach().clone() for name, p in params.items()},
        "state": optimizer.state_dict(),
        "elements": sum(x.numel() for x in optimizer.state_dict()["exp_avgs"].values()),
    }


def run_step(precision: str, ranks: dist.Ranks, sharded: bool) -> list[float]:
    """The losses of a small model in the training step, its fp16 scale so high that the first steps overflow."""
    torch.manual_seed(ranks.rank)
    net = torch.nn.Sequential(torch.nn.Linear(20, 300), torch.nn.Tanh(), torch.nn.Linear(300, 10))
    for p in net.parameters():  # LAMB doesn't exchange the start
        torch_dist.broadcast(p.data, 0)
    kind = ShardedLAMB if sharded else LAMB
    optimizer = Together(
        weights=kind(net.named_parameters(), lambda step: 0.02, CPU, excluded=excluded_by_reference),
        average=EMA(net.named_parameters(), lambda step: 0.9, CPU),
    )
    step = TrainStep(
        lambda model, batch: model(batch[0]).sub(batch[1]).square().mean(), net, optimizer, ranks, precision
    )
    if step.scaler:
        step.scaler.scale.fill_(2.0**127)
    draw, losses = torch.Generator().manual_seed(50 + ranks.rank), []
    step.warm_up((torch.randn(8, 20), torch.randn(8, 10)))
    for _ in range(15):
        step((torch.randn(8, 20, generator=draw), torch.randn(8, 10, generator=draw)))
        losses.append(step.read_loss()[0])
    return losses


def main() -> None:
    ranks = dist.start("cpu")
    torch.set_num_threads(1)
    found = {
        (case, str(half)): run_case(case, half, ranks)
        for case in CASES
        for half in ((torch.float32, torch.bfloat16, torch.float16) if case == "BERT" else (torch.float32,))
    }
    losses = {
        precision: [run_step(precision, ranks, sharded) for sharded in (False, True)] for precision in ("fp32", "fp16")
    }
    torch.save({"cases": found, "losses": losses}, Path(sys.argv[1]) / f"rank-{ranks.rank}.pt")
    dist.stop()


if __name__ == "__main__":
    main()
