"""A multilayer perceptron: fully connected layers with ReLU between them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mlperf_fast.ops.mlp import mlp


class MLP(nn.Module):
    """`widths`: of the input, then of each layer's output. ReLU after every layer, the last only with `relu_last`.

    The layers are numbered 0, 2, 4 ..., so that the state_dict is that of an nn.Sequential with ReLUs between them.
    """

    def __init__(self, widths: Sequence[int], device: torch.device | str, *, relu_last: bool = True) -> None:
        super().__init__()
        self.relu_last = relu_last
        self.layers = tuple(nn.Linear(inputs, outputs, device=device) for inputs, outputs in pairwise(widths))
        for number, layer in enumerate(self.layers):
            self.add_module(str(2 * number), layer)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N_0] -> [B, N_last]"""
        weights, biases = [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]
        return mlp(x, weights, biases, relu_last=self.relu_last)
