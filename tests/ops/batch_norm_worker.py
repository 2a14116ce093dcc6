"""What each process of test_batch_norm.py's group does, started by torchrun: its part of a batch, forward and backward.

python -m torch.distributed.run --nproc-per-node N batch_norm_worker.py FOLDER
"""

import sys
from pathlib import Path

import torch
import torch.distributed as torch_dist

from mlperf_fast.loop import dist
from mlperf_fast.ops import batch_norm

C = 24


def draw(images: int) -> tuple[torch.Tensor, ...]:
    """x, residual, dy, weight, bias, running mean and variance; each image has a mean of its own."""
    generator = torch.Generator().manual_seed(0)
    x, residual, dy = (
        torch.randn(images, C, 5, 3, generator=generator).to(memory_format=torch.channels_last) for _ in range(3)
    )
    x += torch.arange(images).view(-1, 1, 1, 1)
    return x, residual, dy, *(torch.rand(C, generator=generator) + 0.5 for _ in range(4))


def both_ways(x, residual, dy, weight, bias, mean, variance, **options) -> list[torch.Tensor]:
    """y; gradients of x, residual, weight and bias; the running statistics afterwards."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, residual, weight, bias)]
    y = batch_norm(leaves[0], *leaves[2:], mean, variance, residual=leaves[1], relu=True, **options)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy), mean, variance]


if __name__ == "__main__":
    ranks = dist.start("cpu")
    x, residual, dy, *parameters = draw(3 * ranks.world)
    own = slice(3 * ranks.rank, 3 * ranks.rank + 3)
    found = both_ways(x[own], residual[own], dy[own], *parameters, group=torch_dist.group.WORLD, backend="cpp")
    torch.save(found, Path(sys.argv[1]) / f"rank-{ranks.rank}.pt")
    dist.stop()
