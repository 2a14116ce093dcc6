"""ResNet's model: the reference's sizes, names and initialisation; loss, gradients and statistics of plain PyTorch."""

import math
import sys
from pathlib import Path

import pytest
import torch
from plain_resnet import PlainResNet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlperf_fast import tensor_names
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import use_backend
from mlperf_fast.workloads.resnet import augment
from mlperf_fast.workloads.resnet.model import ResNet, initialise, of_norm, running_statistics, tensors
from mlperf_fast.workloads.resnet.presets import closed
from mlperf_fast.workloads.resnet.workload import unadapted

ROOT = Path(__file__).parents[2]
SMALL, CLASSES, SMOOTHING = (4, (2, 1, 2, 1)), 7, 0.1
FULL = (64, (3, 4, 6, 3))


def make_net(sizes=SMALL, classes=CLASSES, seed=1) -> ResNet:
    """With norms other than 1 and 0, or their mistakes wouldn't show."""
    net = ResNet(*sizes, classes, label_smoothing=SMOOTHING)
    initialise(net, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*net.parameters(), *running_statistics(net)]:
            if tensor.dim() == 1:
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
        net.fc.weight.mul_(10)
    return net


def twin_of(net: ResNet, sizes=SMALL, classes=CLASSES) -> PlainResNet:
    """In float64, with the same weights and statistics, loaded by torchvision's names."""
    twin = PlainResNet(*sizes, classes).double()
    found = twin.load_state_dict(net.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    return twin


def make_batch(b=6, size=64, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(b, size, size, 3, generator=generator)
    return images, torch.randint(classes, (b,), generator=generator)


def found_by(net, images, labels) -> dict[str, torch.Tensor]:
    """Loss, gradients and running statistics after one step's passes, float64."""
    loss = net.loss(images, labels)
    loss.backward()
    found = {"loss": loss.detach()} | {f"d {name}": p.grad for name, p in net.named_parameters()}
    found |= {name: buffer for name, buffer in net.named_buffers() if "running" in name}
    return {name: tensor.double() for name, tensor in found.items()}


def error(found, truth) -> float:
    """The largest difference over the tensor's largest value."""
    return float((found - truth).abs().max() / truth.abs().max().clamp_min(1e-30))


def test_the_full_size_has_the_reference_s_tensors_and_parameters():
    m = closed().model
    net = ResNet(m.width, m.layers, 1000, device="meta")
    found = tensors(net)
    assert list(found) == tensor_names.resnet()
    assert {id(p) for p in found.values()} == {id(p) for p in net.parameters()}
    assert sum(p.numel() for p in found.values()) == 25_557_032
    assert found["conv0_weight"].shape == (64, 3, 7, 7)
    assert found["stage2_unit1_conv2_weight"].shape == (128, 128, 3, 3)
    assert found["stage4_unit1_conv1sc_weight"].shape == (2048, 1024, 1, 1)
    assert found["stage3_unit6_bn3_gamma"].shape == (1024,)
    assert found["fc1_weight"].shape == (1000, 2048)


def test_the_state_dict_has_torchvision_s_names_and_shapes():
    net = ResNet(*FULL, 1000, device="meta")
    with torch.device("meta"):
        plain = PlainResNet(*FULL, 1000)
    shapes = {name: tensor.shape for name, tensor in net.state_dict().items()}
    theirs = {name: tensor.shape for name, tensor in plain.state_dict().items() if "num_batches" not in name}
    assert shapes == theirs
    assert len(shapes) == 161 + 2 * 53
    assert {"layer3.5.bn2.running_var", "layer1.0.downsample.0.weight", "layer4.0.downsample.1.bias"} <= set(shapes)


def test_strides_are_where_v1_5_has_them():
    net = ResNet(*FULL, 1000, device="meta")
    strided = {name for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)}
    assert strided == {"conv1"} | {f"layer{i}.0.{part}" for i in (2, 3, 4) for part in ("conv2", "downsample.0")}


def test_logits_are_hugging_face_s(monkeypatch):
    """An independent network of the same structure, its stride where v1.5 has it."""
    pytest.importorskip("transformers", reason="needs transformers: pip install transformers")
    # It looks for a package `kernels`, and would find this checkout's.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).resolve() != ROOT])
    from transformers.models.resnet.configuration_resnet import ResNetConfig
    from transformers.models.resnet.modeling_resnet import ResNetForImageClassification

    width, layers = SMALL
    config = ResNetConfig(
        embedding_size=width, hidden_sizes=[4 * width << i for i in range(4)], depths=list(layers), num_labels=CLASSES,
        layer_type="bottleneck", downsample_in_bottleneck=False,
    )  # fmt: skip
    theirs, net = ResNetForImageClassification(config), make_net()
    state = {}
    for name, tensor in net.state_dict().items():
        for ours, other in (
            ("conv1.", "layer.0.convolution."), ("bn1.", "layer.0.normalization."), ("conv2.", "layer.1.convolution."),
            ("bn2.", "layer.1.normalization."), ("conv3.", "layer.2.convolution."), ("bn3.", "layer.2.normalization."),
            ("downsample.0.", "shortcut.convolution."), ("downsample.1.", "shortcut.normalization."),
        ):  # fmt: skip
            if name.startswith("layer"):
                name = name.replace(ours, other)
        for i in range(4):
            name = name.replace(f"layer{i + 1}.", f"resnet.encoder.stages.{i}.layers.")
        name = name.replace("conv1.", "resnet.embedder.embedder.convolution.").replace("fc.", "classifier.1.")
        state[name.replace("bn1.", "resnet.embedder.embedder.normalization.")] = tensor
    found = theirs.load_state_dict(state, strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    images, _ = make_batch()
    with torch.no_grad():
        expected = theirs.eval()(images.permute(0, 3, 1, 2)).logits
        assert error(net.eval()(images), expected) < 1e-5


@pytest.mark.parametrize(
    ("sizes", "b", "size"), [(SMALL, 6, 64), pytest.param(FULL, 4, 32, marks=pytest.mark.slow)], ids=["small", "full"]
)
def test_loss_gradients_and_statistics_are_the_plain_model_s(sizes, b, size):
    """Of the references in float64: nothing but rounding may differ."""
    net = make_net(sizes)
    twin = twin_of(net, sizes)
    images, labels = make_batch(b, size)
    truth = found_by(twin, images.double(), labels)
    with use_backend("ref"):
        found = found_by(net.double(), images.double(), labels)
    assert found.keys() == truth.keys()
    apart = {name: error(found[name], truth[name]) for name in truth}
    assert apart.pop("loss") < 1e-6, "1 / batch is a float32"
    assert max(apart.values()) < 1e-6, max(apart, key=apart.get)


def test_native_kernels_are_as_exact_as_plain_pytorch():
    """Over all tensors, with three networks: rounding may turn a ReLU in one of them, and then its gradients differ."""
    ratios = []
    for seed in (0, 3, 4):
        net, (images, labels) = make_net(seed=seed), make_batch(16, seed=seed)
        truth = found_by(twin_of(net), images.double(), labels)
        plain = found_by(twin_of(net).float(), images, labels)
        with use_backend("cpp"):
            found = found_by(net, images, labels)
        errors, theirs = ([error(one[name], truth[name]) for name in truth] for one in (found, plain))
        ratios.append(sum(errors) / sum(theirs))
    assert sorted(ratios)[1] < 2, ratios


def test_evaluation_takes_running_statistics_and_counts_what_the_plain_model_predicts():
    net = make_net()
    twin = twin_of(net).eval()
    images, labels = make_batch(20)
    with torch.no_grad():
        logits = twin(images.double().permute(0, 3, 1, 2))
        net.eval()
        before = [buffer.clone() for buffer in running_statistics(net)]
        assert error(net(images), logits) < 1e-5
        labels[:12] = logits.argmax(1)[:12]
        assert net.correct(images, labels).tolist() == (logits.argmax(1) == labels).tolist()
    assert all(torch.equal(a, b) for a, b in zip(before, running_statistics(net), strict=True))


def test_uint8_images_are_normalised_as_the_readers_do_it():
    net = make_net().eval()
    images = torch.randint(256, (3, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(net(images), net(augment.normalised(images, augment.Form())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_weights_and_loss_stay_float32(dtype):
    net = make_net()
    images, labels = make_batch(8)
    exact = float(net.loss(images, labels).detach())
    for sent in (images, images.to(torch.float16)):
        with torch.autocast("cpu", dtype=dtype):
            loss = net.loss(sent, labels)
        loss.backward()
        assert loss.dtype is torch.float32
        assert abs(float(loss.detach()) - exact) < 0.1
    assert all(p.grad.dtype is torch.float32 for p in net.parameters())


class Formats(TorchDispatchMode):
    """Notes each op that takes or gives a 4-D tensor whose memory isn't channels last."""

    def __init__(self):
        super().__init__()
        self.odd, self.seen = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns):
            for side, values in (("takes", args), ("gives", out)):
                for x in tree_leaves(values):
                    if isinstance(x, torch.Tensor) and x.dim() == 4:
                        self.seen += 1
                        if not x.is_contiguous(memory_format=torch.channels_last):
                            self.odd.append(f"{func} {side} {list(x.shape)} with strides {list(x.stride())}")
        return out


@pytest.mark.parametrize("kind", ["float32", "uint8", "bf16"])
def test_activations_gradients_and_weights_stay_channels_last(kind):
    net = make_net()
    images, labels = make_batch(4)
    if kind == "uint8":
        images = (images * 50 + 128).clamp(0, 255).to(torch.uint8)
    with Formats() as formats:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
            loss = net.loss(images, labels)
        loss.backward()
    assert formats.seen > 100
    assert formats.odd == []
    for p in net.parameters():
        assert p.grad.stride() == p.stride() or p.dim() < 4 or p.shape[2:] == (1, 1)


def test_a_change_of_format_is_noticed():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with Formats() as formats:
        x + 1
    assert formats.odd == []
    with Formats() as formats:
        x.contiguous()
        x.detach().requires_grad_().mean((2, 3)).sum().backward()
    assert {line.split()[0] for line in formats.odd} >= {"aten.clone.default", "aten.div.Scalar"}


def test_initial_values():
    net = ResNet(*FULL, 1000)
    initialise(net, 3)
    for name, parameter in tensors(net).items():
        p = parameter.detach()
        if p.dim() == 4:
            std = math.sqrt(2 / p[0].numel())
            assert float(p.abs().max()) <= 2 * std / 0.8796
            assert abs(float(p.std()) / std - 1) < 6 / math.sqrt(p.numel()), name
            assert abs(float(p.mean())) < 5 * std / math.sqrt(p.numel()), name
        elif name == "fc1_weight":
            assert abs(float(p.std()) / 0.01 - 1) < 0.01
        else:
            assert (p == (1 if name.endswith("gamma") else 0)).all(), name
    for name, buffer in net.state_dict().items():
        if "running" in name:
            assert (buffer == (0 if name.endswith("mean") else 1)).all()
    again, other = (ResNet(*SMALL, 10) for _ in range(2))
    initialise(again, 3)
    initialise(other, 3)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), other.parameters(), strict=True))
    initialise(other, 4)
    assert not torch.equal(again.conv1.weight, other.conv1.weight)


def test_what_lars_leaves_out_is_norms_and_the_bias():
    net = ResNet(*FULL, 1000, device="meta")
    names = {id(p): name for name, p in net.named_parameters()}
    for theirs, p in tensors(net).items():
        name = names[id(p)]
        assert of_norm(name) == theirs.endswith(("gamma", "beta")), name
        assert unadapted(name) == (not theirs.endswith("weight")), name


def test_a_bad_label_is_named():
    net = make_net()
    images, labels = make_batch(4)
    labels[2] = CLASSES
    with pytest.raises(UserError, match=rf"row 2: label {CLASSES} is outside \[0, {CLASSES}\)"):
        net.loss(images, labels)
