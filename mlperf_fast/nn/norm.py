"""The parameters of layer and batch normalisation, and the fused ops over them."""

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from mlperf_fast.ops.batch_norm import batch_norm
from mlperf_fast.ops.layer_norm import layer_norm


class LayerNorm(nn.Module):
    """norm(residual + dropout(x + bias)); see ops/layer_norm.py. Parameters start as 1 and 0."""

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, device=device))
        self.bias = nn.Parameter(torch.zeros(width, device=device))

    def forward(self, x: Tensor, **fused) -> Tensor:
        """x [..., width] -> the same shape; `fused` are layer_norm's bias, residual, p, state and site."""
        return layer_norm(x, self.weight, self.bias, **fused)


class BatchNorm(nn.Module):
    """act(norm(x) + residual) over N, H and W; see ops/batch_norm.py. Parameters and statistics start as 1 and 0.

    The running statistics take `momentum` of the new value at each step; eval() takes them in place of the batch's.
    `group`: the processes that share their statistics, by default none.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        device: torch.device | str | None = None,
        group: torch_dist.ProcessGroup | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        self.group, self.momentum = group, momentum
        self.weight = nn.Parameter(torch.ones(channels, device=device))
        self.bias = nn.Parameter(torch.zeros(channels, device=device))
        self.register_buffer("running_mean", torch.zeros(channels, device=device))
        self.register_buffer("running_var", torch.ones(channels, device=device))

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """x and residual [N, C, H, W], channels last -> the same shape."""
        return batch_norm(
            x, self.weight, self.bias, self.running_mean, self.running_var, residual=residual, relu=relu,
            training=self.training, momentum=self.momentum, group=self.group,
        )  # fmt: skip
