"""Minigo's network: a residual tower with two heads, over boards of one size.

    x = act(norm(conv 3x3))                                [b, width, N, N], from 13 planes
    of each block: x = act(norm(conv 3x3(act(norm(conv 3x3(x))))) + x)
    policy: act(norm(conv 1x1)), linear                    2 channels, [b, 2 N N] -> logits [b, N N + 1], pass last
    value:  act(norm(conv 1x1)), linear, act, linear, tanh 1 channel, [b, N N] -> [b, width] -> [b], Black's

`norm` is batch norm, fused with what follows it; in the heads it has neither scale nor shift. Source:
mlcommons/training, minigo, dual_net.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlperf_fast.errors import UserError
from mlperf_fast.nn.norm import BatchNorm
from mlperf_fast.workloads.minigo.board import PLANES

MOMENTUM = 0.05  # of the new value in the running statistics; TensorFlow calls 0.95 the momentum


class DualNet(nn.Module):
    """736,671 trainable parameters at 19 lines, width 64 and 6 blocks."""

    def __init__(self, size: int, width: int = 64, blocks: int = 6, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.size, self.width = size, width
        points = size**2
        self.stem, self.stem_norm = conv(PLANES, width, 3, device), BatchNorm(width, device, momentum=MOMENTUM)
        self.blocks = nn.Sequential(*(Block(width, device) for _ in range(blocks)))
        self.policy_conv, self.policy_norm = conv(width, 2, 1, device), plain_norm(2, device)
        self.policy = nn.Linear(2 * points, points + 1, device=device)
        self.value_conv, self.value_norm = conv(width, 1, 1, device), plain_norm(1, device)
        self.value_hidden = nn.Linear(points, width, device=device)
        self.value = nn.Linear(width, 1, device=device)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """planes [b, 13, size, size], uint8 or float -> logits [b, size * size + 1], values [b]; float32 at least."""
        x = planes.to(self.stem.weight.dtype, memory_format=torch.channels_last)
        x = self.stem_norm(self.stem(x), relu=True)
        x = self.blocks(x)
        policy = self.policy_norm(self.policy_conv(x), relu=True)
        value = self.value_norm(self.value_conv(x), relu=True)
        logits = self.policy(policy.flatten(1))
        value = torch.tanh(self.value(F.relu(self.value_hidden(value.flatten(1)))))[:, 0]
        wide = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(wide), value.to(wide)

    def loss(self, planes: Tensor, pi: Tensor, z: Tensor) -> Tensor:
        """Cross-entropy with the search's shares plus half the squared error of the value; means over the batch, 0-dim.

        pi  float32 [b, size * size + 1]    z  float32 [b], the game's result: 1 where Black won, -1 where White did
        """
        logits, values = self(planes)
        return F.cross_entropy(logits, pi) + 0.5 * F.mse_loss(values, z)


class Block(nn.Module):
    def __init__(self, width: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(width, width, 3, device), BatchNorm(width, device, momentum=MOMENTUM)
        self.conv2, self.norm2 = conv(width, width, 3, device), BatchNorm(width, device, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.norm1(self.conv1(x), relu=True)), residual=x, relu=True)


def conv(into: int, out: int, size: int, device: torch.device | str | None) -> nn.Conv2d:
    layer = nn.Conv2d(into, out, size, padding=size // 2, bias=False, device=device)
    layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer


def plain_norm(channels: int, device: torch.device | str | None) -> BatchNorm:
    """Without scale and shift: 1 and 0, which no optimizer sees."""
    norm = BatchNorm(channels, device, momentum=MOMENTUM)
    norm.weight.requires_grad_(False)
    norm.bias.requires_grad_(False)
    return norm


def tower(net: DualNet) -> Iterator[tuple[nn.Conv2d, BatchNorm]]:
    """The blocks' convolutions and norms, in order."""
    for block in net.blocks:
        assert isinstance(block, Block)
        yield block.conv1, block.norm1
        yield block.conv2, block.norm2


def tensors(net: DualNet) -> dict[str, Tensor]:
    """The reference's name -> the trainable parameter, in the reference's order."""
    convs = [(net.stem, net.stem_norm), *tower(net)]
    convs += [(net.policy_conv, net.policy_norm), (net.value_conv, net.value_norm)]
    found: dict[str, Tensor] = {}
    for i, (layer, norm) in enumerate(convs):
        number = f"_{i}" if i else ""
        found[f"conv2d{number}/kernel"] = layer.weight
        if norm.weight.requires_grad:
            found[f"batch_normalization{number}/gamma"] = norm.weight
            found[f"batch_normalization{number}/beta"] = norm.bias
    for i, linear in enumerate((net.policy, net.value_hidden, net.value)):
        number = f"_{i}" if i else ""
        found[f"dense{number}/kernel"], found[f"dense{number}/bias"] = linear.weight, linear.bias
    return found


def undecayed(name: str) -> bool:
    """By our names: biases and betas. Gammas do decay, as in the reference."""
    return name.endswith("bias")


@torch.no_grad()
def initialise(net: DualNet, seed: int) -> None:
    """TensorFlow's defaults: Glorot uniform kernels, biases and betas 0, gammas 1. Drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            drawn = nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator)
            parameter.copy_(drawn)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.bias.zero_()


# Files -------------------------------------------------------------------------------------------------------------


def save(net: DualNet, path: Path, **notes: int | float | str) -> None:
    """Writes a network, with `notes` on it, that `load` reads; the file is whole at any moment."""
    shape = {"size": net.size, "width": net.width, "blocks": len(net.blocks)}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    partial = path.with_name(f"{path.name}.partial")
    try:
        torch.save({"minigo": shape, "weights": weights, "notes": notes}, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        raise UserError(f"the network {path} can't be written: {error}. Free some space and resume") from error


def load(path: Path, size: int | None = None, device: torch.device | str = "cpu") -> tuple[DualNet, dict[str, Any]]:
    """A network that `save` wrote, and its notes. UserError for other files, and for another board than `size`."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no network {path}") from None
    except Exception as error:  # torch raises a dozen kinds for what isn't its file, or only half of one
        first = str(error).partition("\n")[0]
        raise UserError(f"{path} is no network, or a damaged one ({first})") from None
    shape = state.get("minigo") if isinstance(state, dict) else None
    if not isinstance(shape, dict) or {"size", "width", "blocks"} - shape.keys():
        raise UserError(f"{path} holds no network of Minigo; expected a file of a run's models/ or of `prepare minigo`")
    if size is not None and shape["size"] != size:
        raise UserError(f"{path} plays on {shape['size']} lines; expected {size}")
    net = DualNet(shape["size"], shape["width"], shape["blocks"])
    try:
        net.load_state_dict(state["weights"])
    except (KeyError, RuntimeError, AttributeError) as error:
        raise UserError(f"{path}: its tensors don't fit its shape {shape}: {error}") from None
    return net.to(device).eval(), state["notes"]
