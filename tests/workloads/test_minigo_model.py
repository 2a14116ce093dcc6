"""Minigo's network: the reference's shape, its gradients by a plain twin, its folded form, its files."""

import cpu_graphs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numerics import threads
from torch import nn

from mlperf_fast.errors import UserError
from mlperf_fast.optim.schedules import piecewise_constant
from mlperf_fast.workloads.minigo import inference
from mlperf_fast.workloads.minigo.inference import GraphedForward, Inference, fold, forward
from mlperf_fast.workloads.minigo.model import DualNet, initialise, load, save, tensors, undecayed


class Plain(nn.Module):
    """The reference's network in plain PyTorch, NCHW, by dual_net.py."""

    def __init__(self, size, width, blocks):
        super().__init__()

        def conv_norm(into, out, kernel, affine=True):
            norm = nn.BatchNorm2d(out, eps=1e-5, momentum=0.05, affine=affine)
            return nn.Sequential(nn.Conv2d(into, out, kernel, padding=kernel // 2, bias=False), norm)

        self.stem = conv_norm(13, width, 3)
        self.blocks = nn.ModuleList(
            nn.ModuleList([conv_norm(width, width, 3), conv_norm(width, width, 3)]) for _ in range(blocks)
        )
        self.policy_conv, self.value_conv = (conv_norm(width, out, 1, affine=False) for out in (2, 1))
        self.policy, self.hidden = nn.Linear(2 * size**2, size**2 + 1), nn.Linear(size**2, width)
        self.value = nn.Linear(width, 1)

    def forward(self, planes):
        x = F.relu(self.stem(planes))
        for first, second in self.blocks:
            x = F.relu(second(F.relu(first(x))) + x)
        logits = self.policy(F.relu(self.policy_conv(x)).flatten(1))
        value = self.value(F.relu(self.hidden(F.relu(self.value_conv(x)).flatten(1))))
        return logits, torch.tanh(value)[:, 0]

    def loss(self, planes, pi, z):
        logits, values = self(planes)
        l2 = sum((w**2).sum() / 2 for w in self.parameters() if w.dim() > 1 or self.is_gamma(w))
        return -(pi * logits.log_softmax(1)).sum(1).mean() + 0.5 * ((values - z) ** 2).mean() + 1e-4 * l2

    def is_gamma(self, w):
        return any(m.affine and m.weight is w for m in self.modules() if isinstance(m, nn.BatchNorm2d))


def twin(net):
    """The plain network in float64 with the same weights."""
    plain = Plain(net.size, net.width, len(net.blocks)).double()
    with torch.no_grad():
        for theirs, ours in zip(plain.parameters(), tensors(net).values(), strict=True):
            theirs.copy_(ours)
    return plain


def small(seed=1, size=5, width=8, blocks=2):
    net = DualNet(size, width, blocks)
    initialise(net, seed)
    with torch.no_grad():  # betas and biases that do something
        for parameter in net.parameters():
            if parameter.dim() == 1 and parameter.requires_grad:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter))) / 4
                )
    return net


def batch(n=12, size=5, seed=3):
    rng = np.random.default_rng(seed)
    planes = torch.from_numpy(rng.integers(0, 2, (n, 13, size, size)).astype(np.uint8))
    pi = torch.from_numpy(rng.dirichlet(np.ones(size**2 + 1), n).astype(np.float32))
    return planes, pi, torch.from_numpy(rng.choice([-1.0, 1.0], n).astype(np.float32))


def test_the_reference_has_so_many_parameters_of_these_names():
    net = DualNet(19, device="meta")
    named = tensors(net)
    assert sum(tensor.numel() for tensor in named.values()) == 736_671
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 736_671
    # closed_minigo.yaml of the official checker lists them, without global_step here.
    convs = [f"conv2d{f'_{i}' if i else ''}" for i in range(15)]
    assert [name for name in named if name.startswith("conv2d")] == [f"{name}/kernel" for name in convs]
    norms = [name for name in named if name.startswith("batch_norm")]
    assert norms[:2] == ["batch_normalization/gamma", "batch_normalization/beta"]
    assert len(norms) == 2 * 13
    assert list(named)[-6:] == [
        "dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias", "dense_2/kernel", "dense_2/bias",
    ]  # fmt: skip


def test_weights_start_as_tensorflows():
    net = DualNet(9, 16, 3)
    initialise(net, 5)
    stem = net.stem.weight
    limit = (6 / (13 * 9 + 16 * 9)) ** 0.5
    assert stem.abs().max() <= limit
    assert stem.abs().max() > 0.95 * limit
    assert abs(float(stem.detach().mean())) < limit / 20
    assert not net.policy.bias.any()
    assert bool((net.stem_norm.weight == 1).all())
    other = DualNet(9, 16, 3)
    initialise(other, 6)
    assert not torch.equal(other.stem.weight, stem)


@pytest.mark.parametrize("backend", ["cpp", "ref"])
def test_loss_gradients_and_statistics_are_the_plain_twins(backend):
    from mlperf_fast.ops.backend import use_backend

    net, (planes, pi, z) = small(), batch()
    plain = twin(net)
    with use_backend(backend):
        loss = net.train().loss(planes, pi, z)
        loss.backward()
    expected = plain.train().loss(planes.double(), pi.double(), z.double())
    expected.backward()
    decay = [
        1e-4 * float((p.detach().double() ** 2).sum() / 2)
        for n, p in tensors(net).items()
        if not n.endswith(("bias", "beta"))
    ]
    torch.testing.assert_close(float(loss) + sum(decay), float(expected), rtol=0, atol=2e-6)
    for (name, ours), theirs in zip(tensors(net).items(), plain.parameters(), strict=True):
        gradient = ours.grad.double()
        if not name.endswith(("bias", "beta")):  # what the optimizer's weight decay adds
            gradient = gradient + 1e-4 * ours.detach().double()
        torch.testing.assert_close(
            gradient, theirs.grad, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    theirs = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    ours = [net.stem_norm, *(n for b in net.blocks for n in (b.norm1, b.norm2)), net.policy_norm, net.value_norm]
    for own, norm in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.running_mean.double(), norm.running_mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(own.running_var.double(), norm.running_var, rtol=0, atol=1e-6)


def test_decay_is_for_kernels_and_gammas():
    decayed = {name for name, p in DualNet(5, 8, 1).named_parameters() if p.requires_grad and not undecayed(name)}
    assert decayed == {
        "stem.weight", "stem_norm.weight", "blocks.0.conv1.weight", "blocks.0.norm1.weight", "blocks.0.conv2.weight",
        "blocks.0.norm2.weight", "policy_conv.weight", "policy.weight", "value_conv.weight", "value_hidden.weight",
        "value.weight",
    }  # fmt: skip


def test_learning_rates_change_after_their_steps():
    rates = [piecewise_constant(s, rates=(1.0, 2.0, 3.0), boundaries=(2, 5)) for s in range(1, 9)]
    # TensorFlow compares the steps done before: 0, 1, 2 are at most 2.
    assert rates == [1, 1, 1, 2, 2, 2, 3, 3]


def trained(seed=2, **shape):
    """A network whose running statistics are those of data."""
    net = small(seed, **shape)
    for i in range(3):
        net.train().loss(*batch(16, net.size, i))
    return net.eval()


@pytest.mark.parametrize("size", [5, 9])
def test_the_folded_network_answers_as_the_whole_one(size):
    net, planes = trained(size=size), batch(37, size)[0]
    with torch.no_grad():
        logits, values = net(planes)
    policies, folded_values = Inference(net)(planes)
    torch.testing.assert_close(policies, logits.softmax(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(folded_values, values, rtol=0, atol=1e-5)


def test_new_weights_go_into_the_same_memory():
    first, second, planes = trained(2), trained(3), batch(5)[0]
    judge = Inference(first)
    addresses = [tensor.data_ptr() for tensor in judge.weights.tensors()]
    before = [part.clone() for part in judge(planes)]
    judge.load(second)
    assert [tensor.data_ptr() for tensor in judge.weights.tensors()] == addresses
    after, fresh = judge(planes), Inference(second)(planes)
    for was, now, wanted in zip(before, after, fresh, strict=True):
        assert torch.equal(now, wanted)
        assert not torch.equal(was, now)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_are_near(precision):
    net, planes = trained(), batch(9)[0]
    for exact, near in zip(Inference(net)(planes), Inference(net, precision)(planes), strict=True):
        assert near.dtype is torch.float32
        torch.testing.assert_close(near, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("rows", [1, 64, 65, 128, 300])
def test_graphs_of_few_sizes_answer_batches_of_any(monkeypatch, rows):
    """A GPU's way, on the replayer: padded to 64 or 128 rows, longer batches in pieces."""
    monkeypatch.setattr(inference, "CudaGraphs", cpu_graphs.CpuGraphs)
    net, planes = trained(), batch(rows)[0]
    weights = fold(net)
    graphs = GraphedForward(weights, net.size, 128)
    with torch.no_grad():
        wanted = forward(weights, planes)
        for _ in range(2):  # captured, replayed
            later = graphs(planes)
            graphs(batch(70, seed=9)[0])  # another batch meanwhile
            for found, expected in zip(later(), wanted, strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert set(graphs.captured) <= {64, 128}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("fp16", 0.05), ("bf16", 0.1)])
def test_a_gpu_answers_as_the_cpu(precision, atol):
    net, planes = trained(), batch(300)[0]
    wanted = Inference(net)(planes)
    judge = Inference(net.cuda(), precision, most=128)
    for _ in range(3):
        for found, expected in zip(judge(planes), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_answers_dont_depend_on_the_number_of_threads():
    net, planes = trained(), batch(40)[0]
    with threads(1):
        one = Inference(net)(planes)
    with threads(2):
        two = Inference(net)(planes)
    for first, second in zip(one, two, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


# Files -------------------------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_network(tmp_path):
    net, planes = trained(), batch(4)[0]
    save(net, tmp_path / "net.pt", step=12, komi=4.5)
    again, notes = load(tmp_path / "net.pt", 5)
    assert notes == {"step": 12, "komi": 4.5}
    for first, second in zip(Inference(net)(planes), Inference(again)(planes), strict=True):
        assert torch.equal(first, second)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_other_files_are_refused(tmp_path):
    net, path = trained(), tmp_path / "net.pt"
    with pytest.raises(UserError, match="there is no network"):
        load(path)
    save(net, path)
    with pytest.raises(UserError, match="plays on 5 lines; expected 9"):
        load(path, 9)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"garbage" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no network, or a damaged one"):
            load(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(UserError, match="holds no network of Minigo"):
        load(path)
    torch.save({"minigo": {"size": 5, "width": 16, "blocks": 2}, "weights": net.state_dict(), "notes": {}}, path)
    with pytest.raises(UserError, match="don't fit its shape"):
        load(path)


def test_a_pickle_is_never_run(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it ran')",))

    (tmp_path / "net.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="is no network"):
        load(tmp_path / "net.pt")


def test_a_full_disk_leaves_the_old_file(tmp_path):
    net = trained()
    with pytest.raises(UserError, match="can't be written"):
        save(net, tmp_path / "missing" / "net.pt")
