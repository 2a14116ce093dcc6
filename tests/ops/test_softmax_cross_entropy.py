import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, cases, compare, device, lay_out, threads, wide

from mlperf_fast.errors import UserError
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.ops import raise_if_bad_labels, softmax_cross_entropy

OP = "softmax_cross_entropy"
ALL = [*backends(OP), pytest.param("ref")]
CPP = [p for p in backends(OP) if p.values[0].startswith("cpp")]
TRITON = [p for p in backends(OP) if p.values[0] == "triton"]
IN_PLACE = "modified by an inplace operation"


def inputs(N, V, dtype, seed=0, labels_dtype=torch.int64):
    """logits, labels of which one in five is -1, dlosses of which one in three is 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, V, (N,), generator=generator)
    labels[torch.rand(N, generator=generator) < 0.2] = -1
    dlosses = torch.where(torch.rand(N, generator=generator) < 0.3, 1.0, wide(seed + 1, N, decades=2))
    return wide(seed, N, V, dtype=dtype, decades=2), labels.to(labels_dtype), dlosses


def both_ways(op, logits, labels, dlosses, layout="contiguous"):
    """losses, correct, dlogits; the op gets the result of another."""
    leaf = logits.detach().requires_grad_()
    losses, correct = op(leaf.clone() if layout == "contiguous" else lay_out(leaf, layout), labels)
    return losses, correct, *torch.autograd.grad(losses, leaf, dlosses.to(losses.dtype))


def scales(logits, labels, dlosses, scale, smoothing):
    """What the terms of losses and dlogits sum up to in size, in float64."""
    factor, own = 1.0 if scale is None else abs(float(scale)), labels.clamp_min(0)[:, None]
    distance = logits.amax(1, keepdim=True) - logits
    p, lse = logits.softmax(1), (-distance).exp().sum(1).log()
    target = torch.full_like(p, smoothing / p.shape[1]).scatter_add_(
        1, own, torch.full_like(own, 1, dtype=p.dtype) * (1 - smoothing)
    )
    losses = factor * (1 + lse + (distance * target).sum(1) + smoothing * logits.abs().mean(1))
    return losses, factor * dlosses.abs()[:, None] * (p + target).amax(1, keepdim=True)


def check(backend, logits, labels, dlosses, scale=None, smoothing=0.0, layout="contiguous"):
    where = device(backend)
    op = functools.partial(softmax_cross_entropy, label_smoothing=smoothing)
    mine = functools.partial(op, scale=None if scale is None else scale.to(where), backend=backend)
    theirs = functools.partial(op, scale=scale, backend="ref")
    got = both_ways(mine, logits.to(where), labels.to(where), dlosses.to(where), layout)
    plain, truth = both_ways(theirs, logits, labels, dlosses), both_ways(theirs, logits.double(), labels, dlosses)
    assert torch.equal(got[1].cpu(), truth[1])
    if logits.numel():
        sizes = scales(logits.double(), labels, dlosses.double(), scale, smoothing)
        compare(f"{OP} losses", backend, got[0], plain[0], truth[0], sizes[0], steps=3)
        compare(f"{OP} dlogits", backend, got[2], plain[2], truth[2], sizes[1], steps=3)
    with torch.no_grad():
        losses, correct = mine(lay_out(logits.to(where), layout), labels.to(where))
    assert torch.equal(losses, got[0])
    assert torch.equal(correct, got[1])


@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
@EXAMPLES
@given(
    N=st.integers(0, 20),
    V=st.integers(1, 200),
    scale=st.sampled_from([None, 1.0, 0.03, -2.5]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    labels_dtype=st.sampled_from([torch.int32, torch.int64]),
    layout=st.sampled_from(["contiguous", "unaligned"]),
    seed=st.integers(0, 999),
)
def test_matches_reference(backend, dtype, N, V, scale, smoothing, labels_dtype, layout, seed):
    scale = None if scale is None else torch.tensor(scale)
    check(backend, *inputs(N, V, dtype, seed, labels_dtype), scale, smoothing, layout)


# ImageNet; a chunk; a chunk and one more; BERT's vocabulary.
@pytest.mark.parametrize(("N", "V"), [(9, 1000), (4, 1024), (4, 1025), (3, 30522)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("backend", "dtype"), cases(OP), indirect=["backend"])
def test_chosen_shapes(backend, dtype, N, V, smoothing):
    check(backend, *inputs(N, V, dtype), torch.tensor([0.25]), smoothing)


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_the_first_largest_logit_counts(backend):
    x = torch.zeros(6, 3000, device=device(backend))
    x[:, 1500] = x[:, 1510] = x[:, 2990] = 3
    labels = torch.tensor([1500, 1510, 2990, 0, -1, 2999], device=x.device)
    _, correct = softmax_cross_entropy(x, labels, backend=backend)
    assert correct.tolist() == [True, False, False, False, False, False]
    _, correct = softmax_cross_entropy(torch.zeros_like(x[:3]), labels[3:] * 0, backend=backend)
    assert correct.all(), "of equal logits the first"


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_not_numbers_and_infinities(backend):
    """NaN, +inf, and nothing but -inf make a row's loss and gradient NaN; -inf beside numbers is a class of p = 0."""
    inf, nan = torch.inf, torch.nan
    x = torch.randn(7, 2100, device=device(backend))
    x[0, 2000], x[1, 3], x[2] = nan, inf, -inf
    x[3, :1500], x[4, 1:] = -inf, -inf
    x[5, 7] = inf  # ignored; plain PyTorch makes NaN of its gradient
    labels = torch.tensor([2000, 3, 0, 1600, 0, -1, 1], device=x.device)
    op = functools.partial(softmax_cross_entropy, backend=backend)
    losses, correct, dlogits = both_ways(op, x, labels, torch.ones(7, device=x.device))
    assert losses.isnan().tolist() == [True] * 3 + [False] * 4
    assert not correct[:4].any()
    assert dlogits[:3].isnan().any(1).all()
    assert losses[5] == 0
    assert (dlogits[5] == 0).all()
    expected = F.cross_entropy(x[3:5].double(), labels[3:5], reduction="none")
    torch.testing.assert_close(losses[3:5].double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dlogits[3, :1500], torch.zeros_like(x[3, :1500]), rtol=0, atol=1e-30)
    torch.testing.assert_close(dlogits[4], torch.zeros_like(x[4]), rtol=0, atol=1e-30)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_gradient_takes_the_place_of_the_logits(backend):
    x, labels, _ = (t.to(device(backend)) for t in inputs(9, 300, torch.float32))
    logits = x.requires_grad_() * 1
    losses, _ = softmax_cross_entropy(logits, labels, backend=backend)
    written = logits.detach().clone()
    losses.sum().backward()
    assert torch.equal(x.grad, written), "multiplied by 1"
    logits = x * 1
    losses, _ = softmax_cross_entropy(logits, labels, backend=backend)
    (found,) = torch.autograd.grad(4 * losses.sum(), x)
    assert torch.equal(found, 4 * written)
    assert torch.equal(logits, 4 * written)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_gradient_the_logits_stay(backend, layout):
    x, labels, _ = inputs(5, 60, torch.float32)
    x, labels = lay_out(x.to(device(backend)), layout), labels.to(device(backend))
    before, version = x.clone(), x._version
    op = functools.partial(softmax_cross_entropy, backend=backend)
    results = [op(x, labels)]
    with torch.no_grad():
        results.append(op(x.detach().requires_grad_(), labels))
    with torch.inference_mode():
        results.append(op(x, labels))
    assert torch.equal(x, before)
    assert x._version == version
    assert all(torch.equal(losses, results[0][0]) for losses, _ in results)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("addmm", [True, False])
def test_logits_of_a_linear_layer(backend, addmm):
    where = device(backend)
    weight, bias, h = wide(1, 50, 16, decades=1), wide(2, 50, decades=1), wide(3, 8, 16, decades=1)
    labels = torch.arange(8) * 6 - 1

    def gradients(name, where):
        leaves = [t.to(where, copy=True).requires_grad_() for t in (weight, bias, h)]
        w, b, x = leaves
        logits = torch.addmm(b, x, w.T) if addmm else F.linear(x.view(2, 4, 16), w, b).view(8, 50)
        losses, _ = softmax_cross_entropy(logits, labels.to(where), torch.tensor(0.1, device=where), backend=name)
        return torch.autograd.grad(losses.sum(), leaves)

    for mine, theirs in zip(gradients(backend, where), gradients("ref", "cpu"), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_who_saved_the_logits_is_told(backend):
    x, labels, _ = (t.to(device(backend)) for t in inputs(4, 10, torch.float32))
    logits = x.requires_grad_() * 1
    other = logits.square().sum()
    losses, _ = softmax_cross_entropy(logits, labels, backend=backend)
    with pytest.raises(RuntimeError, match=IN_PLACE):
        other.backward()
    again, _ = softmax_cross_entropy(logits, labels, backend=backend)
    with pytest.raises(RuntimeError, match=IN_PLACE):
        losses.sum().backward()
    again.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=IN_PLACE):
        again.sum().backward()


def test_a_second_derivative_is_refused():
    x, labels, _ = inputs(4, 10, torch.float32)
    losses, _ = softmax_cross_entropy(x.requires_grad_() * 1, labels, backend="cpp")
    with pytest.raises(UserError, match=f"{OP} is differentiable once; with create_graph=True use backend='ref'"):
        torch.autograd.grad(losses.sum(), x, create_graph=True)


def test_memory_of_a_leaf_is_not_overwritten():
    x, labels, _ = inputs(4, 10, torch.float32)
    x.requires_grad_()
    for logits in (x, x.view(4, 10)):
        with pytest.raises(UserError, match="logits is a leaf that requires a gradient, or a view of one"):
            softmax_cross_entropy(logits, labels, backend="cpp")
    with pytest.raises(UserError, match="logits must be contiguous"):
        softmax_cross_entropy((x * 1)[:, :7], labels.clamp_max(6), backend="cpp")


def test_reference_gradient():
    x, labels, _ = inputs(4, 6, torch.float64)
    scale = torch.tensor(0.5)
    op = lambda x: softmax_cross_entropy(x, labels, scale, label_smoothing=0.2, backend="ref")[0]  # noqa: E731
    assert torch.autograd.gradcheck(op, x.requires_grad_())


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("ignored", [-100, 0, 3])
def test_another_label_to_ignore(backend, ignored):
    x, labels, _ = (t.to(device(backend)) for t in inputs(40, 5, torch.float32))
    labels = torch.where(labels == -1, ignored, labels)
    losses, _ = softmax_cross_entropy(x, labels, ignore_index=ignored, backend=backend)
    expected = F.cross_entropy(x, labels, ignore_index=ignored, reduction="none")
    torch.testing.assert_close(losses, expected)


BAD_LABEL = r"softmax_cross_entropy: row 2: label {} is outside \[0, 7\) and isn't ignore_index"


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("bad", [7, -2, 2**31 - 1])
@pytest.mark.parametrize("labels_dtype", [torch.int32, torch.int64])
def test_bad_label(backend, bad, labels_dtype):
    x = torch.randn(4, 7, device=device(backend), requires_grad=True)
    logits = x * 1
    labels = torch.tensor([1, -1, bad, 6], dtype=labels_dtype, device=x.device)
    with pytest.raises(UserError, match=BAD_LABEL.format(bad)):
        softmax_cross_entropy(logits, labels, backend=backend)
    if backend != "triton":
        assert torch.equal(logits, x), "written before the labels were checked"


@pytest.mark.parametrize("backend", TRITON, indirect=True)
def test_bad_label_is_kept_for_later_where_nothing_may_wait(backend):
    x = torch.randn(4, 7, device=device(backend), requires_grad=True)
    labels, errors = torch.tensor([1, -1, 6, 6], device=x.device), torch.zeros(3, dtype=torch.int64, device=x.device)
    softmax_cross_entropy(x * 1, labels, errors=errors, backend=backend)
    raise_if_bad_labels(errors, 7)
    labels[2] = 9
    losses, correct = softmax_cross_entropy(x * 1, labels, errors=errors, backend=backend)
    losses.sum().backward()
    assert losses[2] == 0
    assert not correct[2]
    assert (x.grad[2] == 0).all()
    with pytest.raises(UserError, match=BAD_LABEL.format(9)):
        raise_if_bad_labels(errors, 7)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_waits_for_nothing(backend):
    x, labels, _ = (t.to(device(backend)) for t in inputs(4, 10, torch.float32))
    scale, errors = torch.ones((), device=x.device), torch.zeros(3, dtype=torch.int64, device=x.device)
    x.requires_grad_()
    with capture_safe():
        losses, _ = softmax_cross_entropy(x * 1, labels, scale, errors=errors, backend=backend)
        losses.sum().backward()


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_autocast_takes_the_logits_as_they_are(backend):
    x, labels, dlosses = (t.to(device(backend)) for t in inputs(4, 10, torch.bfloat16))
    op = functools.partial(softmax_cross_entropy, backend=backend)
    expected = both_ways(op, x, labels, dlosses)
    with torch.autocast(x.device.type, torch.bfloat16):
        found = both_ways(op, x, labels, dlosses)
    assert all(map(torch.equal, found, expected))
    assert found[2].dtype is torch.bfloat16


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_same_bits_in_every_run(backend):
    tensors = [t.to(device(backend)) for t in inputs(40, 1500, torch.float32)]
    op = functools.partial(softmax_cross_entropy, label_smoothing=0.1, backend=backend)
    first = both_ways(op, *tensors)
    for n in (1, 2, 5) if backend == "cpp" else (1,):
        with threads(n):
            for _ in range(10 if backend == "cpp" else 2):
                assert all(map(torch.equal, both_ways(op, *tensors), first)), f"{n} threads"


@pytest.mark.parametrize("backend", backends(OP)[:1] + TRITON, indirect=True)
def test_torch_op_contract_and_no_graph_break(backend):
    x, labels, dlosses = (t.to(device(backend)) for t in inputs(4, 24, torch.float32))
    ops, errors = torch.ops.mlperf_fast, labels.new_zeros(3)
    arguments = (x, labels, torch.ones(1, device=x.device), -1, 0.1, errors, backend)
    torch.library.opcheck(ops.softmax_cross_entropy, arguments)
    torch.library.opcheck(ops.softmax_cross_entropy_, arguments)
    torch.library.opcheck(ops.softmax_cross_entropy_bwd_, (x, dlosses, backend))

    def step(x, labels):
        losses, correct = softmax_cross_entropy(x * 2, labels, label_smoothing=0.1, errors=errors, backend=backend)
        return losses * 3, correct

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, expected = (both_ways(op, x, labels, dlosses) for op in (compiled, step))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.ones(3)}, r"logits has shape \[3\], expected \[N, V\]"),
        ({"logits": torch.ones(3, 0)}, r"logits has shape \[3, 0\], expected at least one class"),
        ({"logits": torch.ones(3, 4).double()}, "cpp takes float32 or bfloat16 or float16, found float64"),
        ({"labels": torch.zeros(2).long()}, r"labels has shape \[2\], expected \[3\]"),
        ({"labels": torch.zeros(3)}, "labels is float32, expected int32 or int64"),
        ({"labels": torch.zeros(3, device="meta").long()}, "labels is on meta, expected cpu"),
        ({"scale": 0.5}, "scale is a float, expected a float32 tensor with one element"),
        ({"scale": torch.ones(2)}, r"scale has shape \[2\]"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1, expected a number of 0 or more"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5, expected a number of 0 to 1"),
        ({"errors": torch.zeros(3)}, "errors is float32, expected int64"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"logits": torch.ones(3, 4), "labels": torch.zeros(3).long()} | change
    with pytest.raises(UserError, match=f"{OP}: .*{message}"):
        softmax_cross_entropy(**arguments, backend="cpp")
