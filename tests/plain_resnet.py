"""ResNet v1.5 as anyone would write it: NCHW, plain PyTorch, torchvision's names; and LARS, tensor by tensor. The twins
of mlperf_fast's in tests and benchmarks; nothing of them is shared with the package."""

import torch
import torch.nn.functional as F
from torch import nn


class PlainResNet(nn.Module):
    def __init__(self, width, layers, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        into = width
        for i, blocks in enumerate(layers):
            mid = width * 2**i
            stage = []
            for block in range(blocks):
                stage.append(PlainBottleneck(into, mid, 2 if i > 0 and block == 0 else 1))
                into = 4 * mid
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.fc = nn.Linear(into, classes)
        self.stages = len(layers)

    def forward(self, x):
        """x [b, 3, H, W] -> logits [b, classes]"""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def loss(self, images, labels, smoothing=0.1):
        """images [b, H, W, 3]"""
        return F.cross_entropy(self(images.permute(0, 3, 1, 2).contiguous()), labels, label_smoothing=smoothing)


class PlainBottleneck(nn.Module):
    def __init__(self, into, mid, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, mid, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv2, self.bn2 = nn.Conv2d(mid, mid, 3, stride, 1, bias=False), nn.BatchNorm2d(mid)
        self.conv3, self.bn3 = nn.Conv2d(mid, 4 * mid, 1, bias=False), nn.BatchNorm2d(4 * mid)
        self.downsample = None
        if stride != 1 or into != 4 * mid:
            self.downsample = nn.Sequential(nn.Conv2d(into, 4 * mid, 1, stride, bias=False), nn.BatchNorm2d(4 * mid))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + shortcut)


class PlainLARS:
    """The reference's: lr and trust ratio inside the velocity. `correct`: momentum times lr(t) / lr(t - 1), NVIDIA's;
    it also decays the linear layer's bias."""

    def __init__(self, model, momentum=0.9, decay=5e-5, eta=0.001, correct=False):
        self.parameters, self.rule = dict(model.named_parameters()), (momentum, decay, eta)
        self.correct, self.last = correct, None
        self.velocity = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, lr):
        momentum, decay, eta = self.rule
        if self.correct and self.last is not None:
            momentum *= lr / self.last
        self.last = lr
        for name, p in self.parameters.items():
            g, ratio = p.grad, 1.0
            if p.dim() > 1:
                weight, gradient = float(p.norm()), float(g.norm())
                if weight > 0 and gradient > 0:
                    ratio = eta * weight / (gradient + decay * weight)
            if p.dim() > 1 or (self.correct and name == "fc.bias"):
                g = g + decay * p
            self.velocity[name].mul_(momentum).sub_(g, alpha=lr * ratio)
            p.add_(self.velocity[name])
            p.grad = None


class PlainSGD:
    """Keras's, with the reference's l2 loss, decay * w^2 over all but batch norms."""

    def __init__(self, model, momentum=0.9, decay=5e-5):
        self.model, self.rule = model, (momentum, decay)
        norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        self.decayed = [p for p in model.parameters() if id(p) not in norms]
        self.velocity = [torch.zeros_like(p) for p in model.parameters()]

    @torch.no_grad()
    def step(self, lr):
        momentum, decay = self.rule
        with torch.enable_grad():
            sum(decay * p.square().sum() for p in self.decayed).backward()
        for p, v in zip(self.model.parameters(), self.velocity, strict=True):
            v.mul_(momentum).sub_(lr * p.grad)
            p.add_(v)
            p.grad = None
