"""Layer normalisation's parameters, and the fused op over them."""

import torch
from torch import Tensor, nn

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
