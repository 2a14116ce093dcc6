"""ResNet v1.5 with bottlenecks, channels last from the images to the pooled features.

    x = act(norm(conv 7x7 / 2)), max pool 3x3 / 2                   [b, 64, H/4, W/4]
    of each stage, the first with stride 1, the others with 2 in their first block:
      h = act(norm(conv 1x1))                                      m channels: 64, 128, 256, 512
      h = act(norm(conv 3x3 / stride))                             m           the stride here is what v1.5 means
      x = act(norm(conv 1x1) + shortcut)                           4 m         shortcut: x, or norm(conv 1x1 / stride)
    logits = mean over H and W, linear                             [b, classes]

`norm` is batch norm, fused with what follows it. Source: mlcommons/training, image classification, resnet_model.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor, nn

from mlperf_fast.nn.norm import BatchNorm
from mlperf_fast.ops.softmax_cross_entropy import softmax_cross_entropy
from mlperf_fast.workloads.resnet.augment import MEAN, STD

EXPANSION = 4  # channels of a block's output over those within
# The standard deviation of a standard normal distribution that is cut at two of its own.
CUT_STD = 0.87962566


class ResNet(nn.Module):
    """`width`: channels of the stem, 64 in ResNet-50; `layers`: blocks of the four stages, (3, 4, 6, 3) there.

    Names of weights and running statistics are torchvision's, so its checkpoints' tensors fit by name; theirs count
    batches too (`num_batches_tracked`), ours don't. `group`: the processes that share batch norm's statistics.
    """

    label_errors: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: int,
        layers: Sequence[int],
        classes: int,
        *,
        label_smoothing: float = 0.0,
        device: torch.device | str | None = None,
        group: torch_dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.conv1 = conv(3, width, 7, 2, device)
        self.bn1 = BatchNorm(width, device, group)
        channels = width
        for number, blocks in enumerate(layers):
            mid, first_stride = width << number, 1 if number == 0 else 2
            stage = nn.Sequential()
            for i in range(blocks):
                stage.append(Bottleneck(channels, mid, first_stride if i == 0 else 1, i == 0, device, group))
                channels = EXPANSION * mid
            self.add_module(f"layer{number + 1}", stage)
        self.stages = len(layers)
        self.fc = nn.Linear(channels, classes, device=device)
        # On the device: data sent in a step couldn't be captured. Real under device="meta" too.
        place = torch.device("cpu") if self.fc.weight.is_meta else self.fc.weight.device
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values, device=place).view(3, 1, 1), persistent=False)
        # Where device kernels record the first bad label.
        self.register_buffer("label_errors", torch.zeros(3, dtype=torch.int64, device=place), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images [b, H, W, 3], normalised, or uint8 as decoded -> logits [b, classes], float32 at least."""
        x = images.permute(0, 3, 1, 2)  # a view, whose order in memory is channels last
        if images.dtype is torch.uint8:
            x = (x - self.mean) / self.std
        x = F.max_pool2d(self.bn1(self.conv1(x), relu=True), 3, 2, 1)
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        # Of a mean over two dimensions autograd makes a gradient that isn't channels last.
        logits = self.fc(x.permute(0, 2, 3, 1).flatten(1, 2).mean(1))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the batch, 0-dim: with smoothing e the target is 1 - e and e / classes everywhere."""
        logits = self(images)
        scale = torch.full((), 1 / len(labels), device=logits.device)
        losses, _ = softmax_cross_entropy(
            logits, labels, scale, label_smoothing=self.label_smoothing, errors=self.label_errors
        )
        return losses.sum()

    def correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images' first largest logit is the label's: bool [b]."""
        return softmax_cross_entropy(self(images), labels, errors=self.label_errors)[1]


class Bottleneck(nn.Module):
    """`channels` in, EXPANSION * `mid` out. `projection`: the shortcut is a convolution, not the input itself."""

    def __init__(
        self,
        channels: int,
        mid: int,
        stride: int,
        projection: bool,
        device: torch.device | str | None,
        group: torch_dist.ProcessGroup | None,
    ) -> None:
        super().__init__()
        out = EXPANSION * mid
        self.conv1, self.bn1 = conv(channels, mid, 1, 1, device), BatchNorm(mid, device, group)
        self.conv2, self.bn2 = conv(mid, mid, 3, stride, device), BatchNorm(mid, device, group)
        self.conv3, self.bn3 = conv(mid, out, 1, 1, device), BatchNorm(out, device, group)
        self.downsample = None
        if projection:
            self.downsample = nn.Sequential(conv(channels, out, 1, stride, device), BatchNorm(out, device, group))

    def forward(self, x: Tensor) -> Tensor:
        """x [b, channels, H, W] -> [b, EXPANSION * mid, H / stride, W / stride], rounded up."""
        shortcut = x if self.downsample is None else self.downsample(x)
        h = self.bn1(self.conv1(x), relu=True)
        h = self.bn2(self.conv2(h), relu=True)
        return self.bn3(self.conv3(h), residual=shortcut, relu=True)


def conv(into: int, out: int, size: int, stride: int, device: torch.device | str | None) -> nn.Conv2d:
    """Padded on all sides, as NVIDIA's. The reference's "same" pads only behind where a 3x3 has stride 2."""
    layer = nn.Conv2d(into, out, size, stride, size // 2, bias=False, device=device)
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer


# The reference's names of what a block has, in its order, and ours.
PARTS = {
    "conv1": "conv1", "bn1": "bn1", "conv2": "conv2", "bn2": "bn2", "conv3": "conv3", "bn3": "bn3",
    "conv1sc": "downsample.0", "bnsc": "downsample.1",
}  # fmt: skip
KINDS = {"conv": {"weight": "weight"}, "bn": {"gamma": "weight", "beta": "bias"}}


def tensors(net: ResNet) -> dict[str, Tensor]:
    """The reference's name -> the parameter, in the reference's order: 161 for ResNet-50."""
    own = dict(net.named_parameters())
    names = {
        "conv0_weight": "conv1.weight", "bn0_gamma": "bn1.weight", "bn0_beta": "bn1.bias",
        "fc1_weight": "fc.weight", "fc1_bias": "fc.bias",
    }  # fmt: skip
    for stage in range(1, net.stages + 1):
        for block, _ in enumerate(net.get_submodule(f"layer{stage}").children()):
            for theirs, ours in PARTS.items():
                for kind, name in KINDS[theirs.rstrip("123sc")].items():
                    names[f"stage{stage}_unit{block + 1}_{theirs}_{kind}"] = f"layer{stage}.{block}.{ours}.{name}"
    return {theirs: own[ours] for theirs, ours in names.items() if ours in own}


def of_norm(name: str) -> bool:
    """Whether a parameter is a batch norm's gamma or beta."""
    return ".bn" in f".{name}" or ".downsample.1." in name


@torch.no_grad()
def initialise(net: ResNet, seed: int) -> None:
    """The reference's: convolutions He normal over their inputs, cut at two deviations of what is drawn (NVIDIA cuts
    nothing); the linear layer normal with deviation 0.01, its bias 0; every gamma 1 and beta 0.

    Drawn on the CPU, so the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0 if of_norm(name) and name.endswith("weight") else 0.0)
            continue
        drawn = torch.empty(parameter.shape)
        if parameter.dim() == 4:
            std = math.sqrt(2 / parameter[0].numel()) / CUT_STD
            nn.init.trunc_normal_(drawn, 0, std, -2 * std, 2 * std, generator=generator)
        else:
            drawn.normal_(0, 0.01, generator=generator)
        parameter.copy_(drawn)
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.zero_()
            module.running_var.fill_(1.0)


def running_statistics(net: ResNet) -> list[Tensor]:
    """Running mean and variance of every batch norm, [C] each."""
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    return [buffer for module in norms for buffer in (module.running_mean, module.running_var)]
