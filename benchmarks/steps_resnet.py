"""Whole ResNet-50 training steps, forward to update, on batches that lie ready in memory, channels last.

    python -m benchmarks.steps_resnet
    python -m benchmarks.steps_resnet --memory     also: the most memory that each had, in a process of its own

ours           workloads.resnet: TrainStep, LARS; on a GPU captured as a graph
torchvision    its resnet50 in channels-last memory, label smoothing 0.1, SGD with momentum
transformers   Hugging Face's ResNetForImageClassification with v1.5's strides, in the same way
torch compile  torch.compile of `torchvision`, or of `transformers` where that isn't there
torch has no LARS: the peers' optimizer is its fused SGD, which costs less.
"""

import argparse
import contextlib
import importlib.util
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from mlperf_fast.loop.dist import Ranks
from mlperf_fast.loop.step import TrainStep
from mlperf_fast.optim.lars import LARS
from mlperf_fast.workloads.resnet import model as resnet
from mlperf_fast.workloads.resnet import workload
from mlperf_fast.workloads.resnet.augment import Form
from mlperf_fast.workloads.resnet.data import Batch, synthetic

from . import command, options, peak
from .competitors import compiled, library, library_absence
from .hugging_face import classes
from .measure import Candidate, Local, Row, compare

SETS = 2  # batches that rotate
PEERS = ("torchvision", "transformers")
SMOOTHING = 0.1


@dataclass(frozen=True)
class Case:
    batch: int
    size: int  # height and width of an image
    width: int = 64
    layers: tuple[int, ...] = (3, 4, 6, 3)
    classes: int = 1000
    precision: str = "fp32"

    def shape(self) -> str:
        return f"{self.batch}×{self.size}×{self.size}×3, width {self.width}, {sum(self.layers)} blocks"


CASES = [Case(16, 224), Case(64, 48, 8, (2, 2, 2, 2), 10)]
QUICK_CASES = [Case(2, 32, 8, (1, 1, 1, 1), 10)]


def flops(case: Case) -> int:
    """Of the convolutions and the last layer: forward once, backward twice, but for the images' gradient."""
    net = resnet.ResNet(case.width, case.layers, case.classes, device="meta")
    total, hooks = 0, []

    def count(module: torch.nn.Module, given: tuple, out: torch.Tensor) -> None:
        nonlocal total
        inputs = module.weight[0].numel()
        total += 2 * inputs * out.numel() * (2 if module is net.conv1 else 3)

    for module in net.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            hooks.append(module.register_forward_hook(count))
    net.eval()
    with torch.no_grad():
        net(torch.empty(case.batch, case.size, case.size, 3, device="meta"))
    return total


def measure(chosen: Namespace, only: Sequence[Case] | None = None) -> Iterator[Row]:
    for case in only or (QUICK_CASES if chosen.quick else CASES):
        candidates: dict[str, Candidate | str] = {"ours": Local(step_of(case, "ours", chosen.device))}
        for name in PEERS:
            candidates[name] = library(name, chosen.device, lambda n=name, c=case: step_of(c, n, chosen.device))
        there = next((name for name in PEERS if not isinstance(candidates[name], str)), None)
        candidates["torch compile"] = (
            compiled(chosen, lambda n=there, c=case: theirs(c, n, chosen.device, compiled=True))
            if there
            else candidates[PEERS[0]]
        )
        results = compare(candidates, command.effort(chosen))
        yield Row("ResNet step", case.shape(), case.precision, chosen.threads, 0, flops(case), "gemm", results, "ours")


def step_of(case: Case, name: str, device: torch.device) -> Callable[[int], object]:
    return ours(case, device) if name == "ours" else theirs(case, name, device)


def batches(case: Case, device: torch.device) -> list[Batch]:
    form = Form(size=case.size)
    drawn = [synthetic(case.classes, form, case.batch, seed) for seed in range(SETS)]
    return [Batch(*(tensor.to(device) for tensor in batch)) for batch in drawn]


def ours(case: Case, device: torch.device) -> Callable[[int], object]:
    net = resnet.ResNet(case.width, case.layers, case.classes, label_smoothing=SMOOTHING, device=device)
    resnet.initialise(net, 0)
    lars = LARS(net.named_parameters(), lambda step: 0.1, device, weight_decay=5e-5, unadapted=workload.unadapted)
    step = TrainStep(workload.loss, net, lars, Ranks(0, 1, device), case.precision)
    drawn = batches(case, device)
    return lambda number: step(drawn[number % SETS])


def theirs(case: Case, name: str, device: torch.device, *, compiled: bool = False) -> Callable[[int], object]:
    net = {"torchvision": torchvision, "transformers": hugging_face}[name](case)
    net = net.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-5, fused=True)
    drawn = [(images.permute(0, 3, 1, 2), labels) for images, labels in batches(case, device)]
    forward = torch.compile(net) if compiled else net

    def step(number: int) -> None:
        images, labels = drawn[number % SETS]
        optimizer.zero_grad()
        logits = forward(images)
        logits = getattr(logits, "logits", logits)
        F.cross_entropy(logits, labels, label_smoothing=SMOOTHING).backward()
        optimizer.step()

    return step


def torchvision(case: Case) -> torch.nn.Module:
    """Its ResNet of the case's sizes: planes of 64 become `width` by its own classes' arguments."""
    declare_operators()
    from torchvision.models.resnet import Bottleneck, ResNet

    class Narrow(ResNet):
        def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
            if planes == 64:  # after the stem, which its constructor makes 64 wide
                self.inplanes = case.width
            return super()._make_layer(block, planes * case.width // 64, blocks, stride, dilate)

    net = Narrow(Bottleneck, list(case.layers), num_classes=case.classes)
    net.conv1 = torch.nn.Conv2d(3, case.width, 7, 2, 3, bias=False)
    net.bn1 = torch.nn.BatchNorm2d(case.width)
    net.fc = torch.nn.Linear(32 * case.width, case.classes)
    return net


def declare_operators() -> None:
    """Lets torchvision's models be imported beside a torch for which its compiled library wasn't made: it describes
    the shapes of operators that only that library declares, so they are declared here, without code."""
    global _declared
    spec = importlib.util.find_spec("torchvision")
    if _declared is not None or spec is None or not spec.submodule_search_locations:
        return
    source = (Path(spec.submodule_search_locations[0]) / "_meta_registrations.py").read_text()
    _declared = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(set(re.findall(r'register_meta\("(\w+)"\)|register_fake\("torchvision::(\w+)"\)', source))):
        with contextlib.suppress(RuntimeError):  # it was declared
            _declared.define(f"{''.join(name)}(Tensor a) -> Tensor")


_declared: torch.library.Library | None = None


def hugging_face(case: Case) -> torch.nn.Module:
    declare_operators()  # it imports torchvision too, where that is there
    ResNetConfig, ResNetForImageClassification = classes({
        "ResNetConfig": "resnet.configuration_resnet",
        "ResNetForImageClassification": "resnet.modeling_resnet",
    })  # fmt: skip
    config = ResNetConfig(
        embedding_size=case.width, hidden_sizes=[4 * case.width << n for n in range(len(case.layers))],
        depths=list(case.layers), layer_type="bottleneck", downsample_in_bottleneck=False, num_labels=case.classes,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def run(chosen: Namespace) -> int:
    command.settle(chosen)
    code = command.measure_all(chosen, [("steps_resnet", measure)])
    if chosen.memory:
        names = [name for name in PEERS if library_absence(name, chosen.device) is None]
        print(peak.memory_table(__spec__.name, chosen.quick, ("ours", *names)))
    return code


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_to(parser)
    parser.add_argument("--memory", action="store_true", help="also the peak memory of each, in new processes")
    return parser


if __name__ == "__main__":
    sys.exit(command.guarded(run, arguments().parse_args()))
