"""The optimizers as the training step uses them: against torch's, with masters, resumed, captured."""

import io

import pytest
import torch
from multi_tensor import compare_lists, copies
from numerics import wide

from mlperf_fast.errors import UserError
from mlperf_fast.loop.capture_safety import capture_safe
from mlperf_fast.optim.adam import Adam
from mlperf_fast.optim.ema import EMA
from mlperf_fast.optim.lamb import LAMB
from mlperf_fast.optim.lars import LARS
from mlperf_fast.optim.sgd import SGD
from mlperf_fast.optim.together import Together

CPU = torch.device("cpu")
SHAPES = {"a.weight": (40, 3), "a.bias": (40,), "b.weight": (7, 11), "b.bias": (7,)}
ADAM = {"betas": (0.8, 0.99), "eps": 1e-6}
NESTEROV, DAMPENING = {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.1}
CASES = {
    "Adam": (Adam, ADAM, torch.optim.Adam, ADAM),
    "AdamW": (Adam, {**ADAM, "decoupled": True}, torch.optim.AdamW, ADAM),
    "LAMB": (LAMB, {}, None, {}),
    "SGD": (SGD, {}, torch.optim.SGD, {}),
    "SGD with Nesterov's momentum": (SGD, NESTEROV, torch.optim.SGD, NESTEROV),
    "SGD with dampening": (SGD, DAMPENING, torch.optim.SGD, DAMPENING),
    "LARS": (LARS, {"eta": 0.02}, None, None),  # not in torch: test_lars_leaves_out_what_resnets_rules_leave_out
}
ALL = pytest.mark.parametrize("case", CASES)
TORCHS = pytest.mark.parametrize("case", [case for case, (_, _, kind, _) in CASES.items() if kind])


def schedule(step):
    return 0.1 / step


def is_bias(name):
    return "bias" in name


def parameters(dtype=torch.float32):
    """By name, as model.named_parameters() gives them."""
    return {
        name: torch.nn.Parameter(wide(seed, *shape, dtype=dtype)) for seed, (name, shape) in enumerate(SHAPES.items())
    }


def make(case, params, **more):
    kind, options, *_ = CASES[case]
    return kind(params.items(), schedule, CPU, **options, **more)


def train(optimizer, params, steps, overflows=(), missing=()):
    """Steps with made-up gradients, the same for a step's number; those of `overflows` hold an infinity."""
    found_inf = torch.zeros(())
    for step in steps:
        for i, (name, parameter) in enumerate(params.items()):
            grad = wide(1000 * step + i, *parameter.shape, decades=2, dtype=parameter.dtype)
            parameter.grad = None if name in missing else grad
        found_inf.fill_(step in overflows)
        if step in overflows:
            params["a.weight"].grad[3, 1] = torch.inf
        optimizer.begin(step)
        optimizer.apply(found_inf)


def train_torch(case, dtype, steps, overflows, weight_decay):
    """The same with torch's optimizer, which has no step at an overflow."""
    _, _, kind, options = CASES[case]
    params = {name: torch.nn.Parameter(p.detach().to(dtype)) for name, p in parameters().items()}
    groups = [
        {"params": [p for name, p in params.items() if is_bias(name) == biases], "weight_decay": decay}
        for biases, decay in ((False, weight_decay), (True, 0.0))
    ]
    optimizer = kind(groups, lr=0.0, foreach=False, **options)
    for step in (step for step in steps if step not in overflows):
        for i, p in enumerate(params.values()):
            p.grad = wide(1000 * step + i, *p.shape, decades=2).to(dtype)
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
    return [p.detach() for p in params.values()]


@pytest.mark.parametrize("lr_inside", [False, True])
@pytest.mark.parametrize("rule", ["reference", "NVIDIA"])
def test_lars_leaves_out_what_resnets_rules_leave_out(rule, lr_inside):
    """Biases have no trust ratio; NVIDIA's rule decays the last layer's (here b's) all the same."""
    undecayed = {"reference": None, "NVIDIA": lambda name: name == "a.bias"}[rule]
    decays = {"a.weight": 0.1, "a.bias": 0.0, "b.weight": 0.1, "b.bias": 0.1 if rule == "NVIDIA" else 0.0}
    params = parameters()
    options = {"eta": 0.02, "weight_decay": 0.1, "unadapted": is_bias, "undecayed": undecayed, "lr_inside": lr_inside}
    train(LARS(params.items(), schedule, CPU, **options), params, range(1, 61), overflows=[1, 2, 30])
    results = []
    for dtype in (torch.float32, torch.float64):
        expected = {name: p.detach().to(dtype) for name, p in parameters().items()}
        buffers = {name: torch.zeros_like(w) for name, w in expected.items()}
        for step in set(range(1, 61)) - {1, 2, 30}:
            for i, (name, w) in enumerate(expected.items()):
                g = wide(1000 * step + i, *w.shape, decades=2).to(dtype)
                r = 1.0 if is_bias(name) else 0.02 * w.norm() / (g.norm() + decays[name] * w.norm())
                change = r * (g + decays[name] * w)
                buffers[name] = 0.9 * buffers[name] + (schedule(step) * change if lr_inside else change)
                w -= buffers[name] if lr_inside else schedule(step) * buffers[name]
        results.append(list(expected.values()))
    compare_lists("LARS", "cpp", [p.detach() for p in params.values()], *results)


def same(tensors, others):
    return all(torch.equal(x, y) for x, y in zip(tensors, others, strict=True))


@TORCHS
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_follows_torchs_optimizer(case, weight_decay):
    params, steps, overflows = parameters(), range(1, 61), (1, 2, 30)
    optimizer = make(case, params, weight_decay=weight_decay, undecayed=is_bias)
    train(optimizer, params, steps, overflows)
    assert float(optimizer.step) == (57 if optimizer.groups[0].state else 0)  # plain SGD has no use for it
    plain, truth = (
        train_torch(case, dtype, steps, overflows, weight_decay) for dtype in (torch.float32, torch.float64)
    )
    compare_lists(case, "cpp", [p.detach() for p in params.values()], plain, truth)


@ALL
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_are_the_rounded_masters(case, dtype):
    """Float32 parameters with the same start and the same gradients are what the masters must be."""
    params = parameters(dtype)
    wholes = {name: torch.nn.Parameter(p.detach().float()) for name, p in params.items()}
    optimizer, whole = make(case, params, weight_decay=0.1), make(case, wholes, weight_decay=0.1)
    for step in range(1, 20):
        train(optimizer, params, [step])
        whole.begin(step)
        for name, p in wholes.items():
            p.grad = params[name].grad.float()
        whole.apply(torch.zeros(()))
    assert same(optimizer.state_dict()["masters"].values(), [p.detach() for p in wholes.values()])
    assert same(params.values(), [p.to(dtype) for p in wholes.values()])


def test_dtypes_may_be_mixed_and_frozen_parameters_stay():
    params = parameters() | {"half": torch.nn.Parameter(torch.ones(5, dtype=torch.float16))}
    frozen = params["a.bias"].requires_grad_(False)
    before = copies(params.values(), CPU)
    optimizer = make("Adam", params)
    train(optimizer, params, [1, 2])
    assert [name for (name, p), x in zip(params.items(), before, strict=True) if torch.equal(p, x)] == ["a.bias"]
    assert list(optimizer.state_dict()["masters"]) == ["half"]
    assert len(optimizer.gradients()) == 4
    assert all(gradient is not frozen.grad for gradient in optimizer.gradients())


@ALL
def test_parameters_without_a_gradient_stay_with_their_state(case):
    params, others = parameters(), {name: p for name, p in parameters().items() if name != "b.weight"}
    optimizer, other = make(case, params, weight_decay=0.1), make(case, others, weight_decay=0.1)
    start = params["b.weight"].clone()
    for step in (1, 2, 3):
        train(optimizer, params, [step], missing=["b.weight"])
        for name, p in others.items():
            p.grad = params[name].grad
        other.begin(step)
        other.apply(torch.zeros(()))
    assert torch.equal(params["b.weight"], start)
    assert same([p for name, p in params.items() if name != "b.weight"], others.values())
    for kind, tensors in optimizer.state_dict().items():
        assert kind == "step" or not tensors["b.weight"].any()


@ALL
def test_an_overflow_changes_nothing(case):
    params = parameters(torch.float16)
    optimizer = make(case, params, weight_decay=0.1)
    train(optimizer, params, [1, 2])
    before = copies(params.values(), CPU), resumable(optimizer)
    train(optimizer, params, [3], overflows=[3])
    assert same(params.values(), before[0])
    assert_same_state(optimizer.state_dict(), before[1])


def resumable(optimizer):
    """The state as it comes back from a checkpoint."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same_state(state, other):
    assert list(state) == list(other)
    for name, value in state.items():
        if isinstance(value, dict):
            assert_same_state(value, other[name])
        else:
            assert torch.equal(value, other[name]), name


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumes_exactly(case, dtype):
    params, others = parameters(dtype), parameters(dtype)
    optimizer = make(case, params, weight_decay=0.1)
    train(optimizer, params, range(1, 8), overflows=[4])
    state, weights = resumable(optimizer), copies(params.values(), CPU)
    train(optimizer, params, range(8, 15), overflows=[9])
    other = make(case, others, weight_decay=0.1)
    for p, x in zip(others.values(), weights, strict=True):
        p.data.copy_(x)
    other.load_state_dict(state)
    train(other, others, range(8, 15), overflows=[9])
    assert same(params.values(), others.values())
    assert_same_state(optimizer.state_dict(), other.state_dict())


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_update_can_be_captured(case, dtype):
    params = parameters(dtype)
    optimizer = make(case, params, weight_decay=0.1)
    train(optimizer, params, [1])
    with capture_safe():
        optimizer.apply(torch.zeros(()))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_in_channels_last_order(case, dtype):
    """As model.to(memory_format=torch.channels_last) leaves it, its gradient by autograd."""
    results = []
    for order in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(3, 8, 3).to(dtype).to(memory_format=order)
        optimizer = make(case, dict(model.named_parameters()), weight_decay=0.1)
        for step in range(1, 4):
            model.zero_grad()
            model(wide(step, 2, 3, 6, 6, decades=1, dtype=dtype).to(memory_format=order)).square().mean().backward()
            optimizer.begin(step)
            optimizer.apply(torch.zeros(()))
        assert model.weight.is_contiguous(memory_format=order)
        results.append(model.weight.detach().float())
    torch.testing.assert_close(*results, rtol=2e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-3)


def test_a_checkpoint_of_something_else_is_refused():
    params = parameters()
    state = make("Adam", params).state_dict()
    with pytest.raises(UserError, match="SGD's state: only the checkpoint holds 'exp_avgs'; resume with the model and"):
        make("SGD", params).load_state_dict(state)
    fewer = {name: p for name, p in params.items() if name != "b.bias"}
    with pytest.raises(UserError, match=r"Adam's state: exp_avgs: the checkpoint doesn't hold 'b\.bias'"):
        make("Adam", params).load_state_dict(make("Adam", fewer).state_dict())
    other = params | {"b.bias": torch.nn.Parameter(torch.ones(9))}
    with pytest.raises(UserError, match=r"exp_avgs: 'b\.bias' has shape \[9\] in the checkpoint, expected \[7\]"):
        make("Adam", params).load_state_dict(make("Adam", other).state_dict())


def test_parameters_may_come_without_names():
    params, others = parameters(), parameters()
    optimizer, other = Adam(params.values(), schedule, CPU), Adam(others.items(), schedule, CPU)
    train(optimizer, params, range(1, 5))
    train(other, others, range(1, 5))
    assert same(params.values(), others.values())
    assert list(optimizer.state_dict()["exp_avgs"]) == ["0", "1", "2", "3"]


def test_averages_follow_the_weights():
    params = parameters()
    start = copies(params.values(), CPU)
    optimizer = Together(
        weights=SGD(params.items(), schedule, CPU), average=EMA(params.items(), lambda step: 1 - 1 / (1 + step), CPU)
    )
    expected = [x.detach() for x in start]
    for step in (1, 2, 3):
        train(optimizer, params, [step], overflows=[2])
        if step != 2:
            weights = [p.detach() for p in params.values()]
            expected = [x * (1 - 1 / (1 + step)) + w / (1 + step) for x, w in zip(expected, weights, strict=True)]
    averages = optimizer.parts["average"].state_dict()
    assert list(averages) == list(params)
    for name, x in zip(averages, expected, strict=True):
        torch.testing.assert_close(averages[name], x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_averages_take_the_weights_place_for_a_while(dtype):
    params = parameters(dtype)
    optimizer, average = SGD(params.items(), schedule, CPU, momentum=0.9), EMA(params.items(), lambda step: 0.5, CPU)
    train(Together(weights=optimizer, average=average), params, [1, 2, 3])
    weights = copies(params.values(), CPU)
    with average.in_place():
        assert same(params.values(), [x.to(dtype) for x in average.state_dict().values()])
        assert not same(params.values(), weights)
    assert same(params.values(), weights)


def test_the_weights_come_back_after_an_error_too():
    params = parameters()
    average = EMA(params.items(), lambda step: 0.5, CPU)
    params["a.bias"].data.add_(1)
    weights = copies(params.values(), CPU)
    with pytest.raises(ZeroDivisionError), average.in_place():
        raise ZeroDivisionError
    assert same(params.values(), weights)


def test_several_optimizers_are_one():
    """Weights and biases with schedules of their own, as Mask R-CNN has them; resumed together."""

    def make_both(params):
        biases = {name: p for name, p in params.items() if is_bias(name)}
        weights = {name: p for name, p in params.items() if not is_bias(name)}
        return Together(
            weights=SGD(weights.items(), schedule, CPU, momentum=0.9, weight_decay=0.1),
            biases=SGD(biases.items(), lambda step: 2 * schedule(step), CPU, momentum=0.9),
            average=EMA(params.items(), lambda step: 0.9, CPU),
        )  # fmt: skip

    params, others = parameters(), parameters()
    both, other = make_both(params), make_both(others)
    train(both, params, range(1, 6))
    assert float(both.parts["biases"].lr) == 2 * float(both.parts["weights"].lr)
    assert [id(g) for g in both.gradients()] == [
        id(params[n].grad) for n in ("a.weight", "b.weight", "a.bias", "b.bias")
    ]
    for p, x in zip(others.values(), params.values(), strict=True):
        p.data.copy_(x)
    other.load_state_dict(resumable(both))
    train(both, params, range(6, 9))
    train(other, others, range(6, 9))
    assert same(params.values(), others.values())
    assert_same_state(both.state_dict(), other.state_dict())
