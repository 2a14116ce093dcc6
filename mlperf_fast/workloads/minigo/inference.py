"""The network as the search asks it: batch norms folded into the convolutions, both heads in one matrix product.

    judge = Inference(net)
    policies, values = judge(planes)       # uint8 [n, 13, N, N] -> float32 [n, N N + 1] and [n], on the CPU
    later = judge.submit(planes)           # on a GPU the host goes on meanwhile
    policies, values = later()
    judge.load(other)                      # new weights into the same memory

On a GPU the network runs as CUDA graphs of a few batch sizes, into which a batch is padded, and planes travel as bytes.
Work, of a position at 19 lines with width 64 and 6 blocks: 0.325 GFLOP, all but 1 % in the 3x3 convolutions, of which
ops/conv3x3.py needs half on a CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlperf_fast.loop.graph import CudaGraphs
from mlperf_fast.nn.norm import BatchNorm
from mlperf_fast.ops.conv3x3 import conv3x3
from mlperf_fast.workloads.minigo.board import PLANES
from mlperf_fast.workloads.minigo.model import DualNet, tower

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LEAST_GRAPH = 64  # rows of the smallest graph; each other has twice as many as the one before

Answer = tuple[Tensor, Tensor]


class Folded(NamedTuple):
    """What `forward` computes with: convolutions [out, in, k, k] with biases, and the heads' two matrices.

    The 1x1 convolutions of both heads are one of 3 channels; `heads` takes its output, [N N 3] as it lies in memory, to
    the logits and the value's hidden layer.
    """

    convs: list[tuple[Tensor, Tensor]]
    heads: tuple[Tensor, Tensor]
    value: tuple[Tensor, Tensor]

    def tensors(self) -> list[Tensor]:
        return [tensor for pair in (*self.convs, self.heads, self.value) for tensor in pair]


@torch.no_grad()
def fold(net: DualNet, dtype: torch.dtype = torch.float32) -> Folded:
    """The network in evaluation, with the running statistics in the weights."""
    convs = [folded(net.stem, net.stem_norm), *(folded(*pair) for pair in tower(net))]
    both = [folded(net.policy_conv, net.policy_norm), folded(net.value_conv, net.value_norm)]
    convs.append((torch.cat([weight for weight, _ in both]), torch.cat([bias for _, bias in both])))
    points, moves, hidden = net.size**2, net.size**2 + 1, net.width
    heads = torch.zeros(moves + hidden, points, 3, device=net.policy.weight.device)
    heads[:moves, :, :2] = net.policy.weight.view(moves, 2, points).transpose(1, 2)
    heads[moves:, :, 2] = net.value_hidden.weight
    biases = torch.cat([net.policy.bias, net.value_hidden.bias])
    last = torch.channels_last
    return Folded(
        [(w.to(dtype).contiguous(memory_format=last), b.to(dtype)) for w, b in convs],
        (heads.flatten(1).to(dtype), biases.to(dtype)),
        (net.value.weight.to(dtype, copy=True), net.value.bias.to(dtype, copy=True)),
    )


def folded(conv: nn.Conv2d, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    scale = norm.weight * torch.rsqrt(norm.running_var + 1e-5)
    return conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale


def forward(net: Folded, planes: Tensor) -> Answer:
    """planes [b, 13, N, N] uint8 -> probabilities [b, N N + 1] and values [b], float32."""
    dtype, moves = net.value[0].dtype, planes.shape[-1] ** 2 + 1
    x = planes.to(dtype, memory_format=torch.channels_last)
    x = conv3x3(x, *net.convs[0], relu=True)
    for i in range(1, len(net.convs) - 1, 2):
        h = conv3x3(x, *net.convs[i], relu=True)
        x = conv3x3(h, *net.convs[i + 1], residual=x, relu=True)
    x = F.conv2d(x, *net.convs[-1]).relu_()
    both = F.linear(x.permute(0, 2, 3, 1).flatten(1), *net.heads)
    policies = both[:, :moves].float().softmax(1)
    return policies, torch.tanh(F.linear(both[:, moves:].relu(), *net.value)[:, 0].float())


class Inference:
    """A network's answers. precision: fp32, bf16 or fp16; `most`: rows of the largest graph, more go in pieces."""

    def __init__(self, net: DualNet, precision: str = "fp32", most: int = 4096) -> None:
        self.size = net.size
        self.weights = fold(net, DTYPES[precision])
        self.device = self.weights.value[0].device
        self._graphs = None if self.device.type == "cpu" else GraphedForward(self.weights, self.size, most)

    def load(self, net: DualNet) -> None:
        """Takes the weights of a network of the same shape; graphs that were captured go on with them."""
        new = fold(net, self.weights.value[0].dtype).tensors()
        for own, tensor in zip(self.weights.tensors(), new, strict=True):
            own.copy_(tensor)

    def __call__(self, planes: Tensor) -> Answer:
        return self.submit(planes)()

    @torch.no_grad()
    def submit(self, planes: Tensor) -> Callable[[], Answer]:
        """Begins to answer; what is returned waits for the answer. One at a time: wait before the next but one."""
        if self._graphs:
            return self._graphs(planes)
        answer = forward(self.weights, planes)
        return lambda: answer


class GraphedForward:
    """`forward` in CUDA graphs of LEAST_GRAPH, twice, four times … `most` rows, captured when they are first needed."""

    def __init__(self, weights: Folded, size: int, most: int) -> None:
        device = weights.value[0].device
        self.weights, self.device = weights, device
        self.graphs = CudaGraphs(device)
        self.planes = torch.zeros(max(most, LEAST_GRAPH), PLANES, size, size, dtype=torch.uint8, device=device)
        self.captured: dict[int, tuple[Callable[[], None], Answer]] = {}

    def __call__(self, planes: Tensor) -> Callable[[], Answer]:
        count, moves, pinned = len(planes), planes.shape[-1] ** 2 + 1, self.device.type == "cuda"
        answer = torch.empty(count, moves, pin_memory=pinned), torch.empty(count, pin_memory=pinned)
        planes = planes.pin_memory() if pinned else planes
        for first in range(0, count, len(self.planes)):
            part = planes[first : first + len(self.planes)]
            rows = min(max(LEAST_GRAPH, 1 << (len(part) - 1).bit_length()), len(self.planes))
            self.planes[: len(part)].copy_(part, non_blocking=True)
            replay, (policies, values) = self.captured.get(rows) or self._capture(rows)
            replay()
            answer[0][first : first + len(part)].copy_(policies[: len(part)], non_blocking=True)
            answer[1][first : first + len(part)].copy_(values[: len(part)], non_blocking=True)
        return partial(self._wait, torch.cuda.current_stream().record_event() if pinned else None, answer)

    def _capture(self, rows: int) -> tuple[Callable[[], None], Answer]:
        moves = self.planes.shape[-1] ** 2 + 1
        answer = torch.empty(rows, moves, device=self.device), torch.empty(rows, device=self.device)

        def run() -> None:
            for own, found in zip(answer, forward(self.weights, self.planes[:rows]), strict=True):
                own.copy_(found)

        self.graphs.warm_up(run)
        self.captured[rows] = self.graphs.capture(run), answer
        return self.captured[rows]

    @staticmethod
    def _wait(event: Any, answer: Answer) -> Answer:
        if event is not None:
            event.synchronize()
        return answer
