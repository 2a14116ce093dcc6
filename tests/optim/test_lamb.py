"""LAMB as the references have it: which tensors it decays and adapts, clipping, fused tensors."""

import math

import pytest
import torch
from multi_tensor import compare_lists
from numerics import wide

from mlperf_fast.errors import UserError
from mlperf_fast.optim.lamb import LAMB, excluded_by_reference

CPU = torch.device("cpu")
SHAPES = {
    "bert.embeddings.word_embeddings.weight": (50, 8),
    "bert.encoder.layer.0.attention.self.query.weight": (8, 8),
    "bert.encoder.layer.0.attention.self.query.bias": (8,),
    "bert.encoder.layer.0.output.LayerNorm.weight": (8,),
    "cls.predictions.bias": (50,),
}


def parameters(dtype=torch.float32):
    return {
        name: torch.nn.Parameter(wide(seed, *shape, dtype=dtype)) for seed, (name, shape) in enumerate(SHAPES.items())
    }


def gradients(step, params):
    return [wide(100 * step + i, *p.shape, decades=2) for i, p in enumerate(params.values())]


def train(optimizer, params, steps, overflows=()):
    found_inf = torch.zeros(())
    for step in steps:
        for p, g in zip(params.values(), gradients(step, params), strict=True):
            p.grad = g.to(p.dtype)
        found_inf.fill_(step in overflows)
        if step in overflows:
            next(iter(params.values())).grad.view(-1)[3] = torch.nan
        optimizer.begin(step)
        optimizer.apply(found_inf)


def train_by_formula(params, kinds, steps, *, betas, eps, max_grad_norm):
    """The formula as the BERT reference gives it, in the dtype of params; kinds: (weight decay, adapted)."""
    m, v = ({name: torch.zeros_like(p) for name, p in params.items()} for _ in range(2))
    for t, step in enumerate(steps, 1):
        grads = [g.to(p.dtype) for g, p in zip(gradients(step, params), params.values(), strict=True)]
        norm = torch.cat([g.flatten() for g in grads]).norm()
        for (name, p), g in zip(params.items(), grads, strict=True):
            g = g * (max_grad_norm / norm) if norm > max_grad_norm else g
            m[name] = betas[0] * m[name] + (1 - betas[0]) * g
            v[name] = betas[1] * v[name] + (1 - betas[1]) * g * g
            u = m[name] / (1 - betas[0] ** t) / ((v[name] / (1 - betas[1] ** t)).sqrt() + eps)
            weight_decay, adapted = kinds[name]
            u = u + weight_decay * p
            p -= schedule(step) * (p.norm() / u.norm() if adapted else 1) * u


def schedule(step):
    return 0.02 / step


def test_names_that_the_reference_excludes():
    assert [name for name in SHAPES if excluded_by_reference(name)] == list(SHAPES)[2:]
    assert excluded_by_reference("bert/encoder/layer_0/output/LayerNorm/gamma")
    assert excluded_by_reference("encoder.layer_norm.weight")
    assert excluded_by_reference("cls/seq_relationship/output_bias")
    assert not excluded_by_reference("cls.seq_relationship.weight")
    assert not excluded_by_reference("bert/embeddings/token_type_embeddings")


WHOLE, NEITHER = (0.01, True), (0.0, False)
CASES = {
    "BERT": ({"excluded": excluded_by_reference}, [WHOLE, WHOLE, NEITHER, NEITHER, NEITHER]),
    "BERT without decay": (
        {"excluded": excluded_by_reference, "weight_decay": 0.0},
        [(0.0, True), (0.0, True), NEITHER, NEITHER, NEITHER],
    ),
    "RNN-T": ({"weight_decay": 1e-3, "eps": 1e-9}, [(1e-3, True)] * 5),
    "apex, one group": ({"adaptation": "apex"}, [WHOLE] * 5),
    "apex without decay": ({"adaptation": "apex", "weight_decay": 0.0}, [NEITHER] * 5),
    "apex, excluded": (
        {"adaptation": "apex", "excluded": excluded_by_reference},
        [WHOLE, WHOLE, NEITHER, NEITHER, NEITHER],
    ),
    "nvlamb": (
        {"adaptation": "nvlamb", "excluded": excluded_by_reference},
        [WHOLE, WHOLE, (0.0, True), (0.0, True), (0.0, True)],
    ),
    "not clipped": ({"max_grad_norm": math.inf}, [WHOLE] * 5),
}


@pytest.mark.parametrize("case", CASES)
def test_follows_the_formula(case):
    rules, kinds = CASES[case]
    numbers = {"betas": (0.9, 0.999), "eps": rules.get("eps", 1e-6), "max_grad_norm": rules.get("max_grad_norm", 1.0)}
    params, overflows = parameters(), (2, 30)
    optimizer = LAMB(params.items(), schedule, CPU, **rules)
    train(optimizer, params, range(1, 101), overflows)
    assert float(optimizer.step) == 98
    results = []
    for dtype in (torch.float32, torch.float64):
        expected = {name: p.detach().to(dtype, copy=True) for name, p in parameters().items()}
        steps = [step for step in range(1, 101) if step not in overflows]
        train_by_formula(expected, dict(zip(SHAPES, kinds, strict=True)), steps, **numbers)
        results.append(list(expected.values()))
    compare_lists(case, "cpp", [p.detach() for p in params.values()], *results)


def test_the_norm_is_kept_for_the_log():
    params = parameters()
    optimizer = LAMB(params.items(), schedule, CPU)
    train(optimizer, params, [1])
    expected = torch.cat([g.flatten() for g in gradients(1, params)]).double().norm()
    torch.testing.assert_close(optimizer.grad_norm, expected, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_tensor_is_updated_as_its_parts_are(dtype):
    """Query, key and value weights of very different norms, in one tensor and in three. Not clipped: bit for bit."""
    sizes, steps = torch.tensor([1.0, 30.0, 0.01]).repeat_interleave(8)[:, None], range(1, 8)
    fused = {"qkv": torch.nn.Parameter((wide(1, 24, 8) * sizes).to(dtype)), "out": torch.nn.Parameter(wide(2, 8, 8))}
    apart = {f"qkv{i}": torch.nn.Parameter(x.detach().clone()) for i, x in enumerate(fused["qkv"].chunk(3))}
    apart["out"] = torch.nn.Parameter(fused["out"].detach().clone())
    whole = {name: torch.nn.Parameter(p.detach().clone()) for name, p in fused.items()}

    optimizers = [
        LAMB(fused.items(), schedule, CPU, max_grad_norm=math.inf, parts=lambda name: 3 if name == "qkv" else 1),
        LAMB(apart.items(), schedule, CPU, max_grad_norm=math.inf),
        LAMB(whole.items(), schedule, CPU, max_grad_norm=math.inf),
    ]
    for step in steps:
        grads = [g.to(dtype if i == 0 else torch.float32) for i, g in enumerate(gradients(step, fused))]
        for params in (fused, whole):
            params["qkv"].grad, params["out"].grad = grads[0].clone(), grads[1].clone()
        for i, g in enumerate(grads[0].chunk(3)):
            apart[f"qkv{i}"].grad = g.clone()
        apart["out"].grad = grads[1].clone()
        for optimizer in optimizers:
            optimizer.begin(step)
            optimizer.apply(torch.zeros(()))
    assert torch.equal(fused["qkv"], torch.cat([apart[f"qkv{i}"] for i in range(3)]))
    assert torch.equal(fused["out"], apart["out"])
    assert not torch.equal(fused["qkv"], whole["qkv"]), "one norm for all three is another update"


def test_without_any_gradient_nothing_happens():
    params = parameters()
    LAMB(params.items(), schedule, CPU).apply(torch.zeros(()))
    assert all(torch.equal(p, q) for p, q in zip(params.values(), parameters().values(), strict=True))


def test_wrong_settings():
    with pytest.raises(UserError, match="adaptation is 'nvlam', expected one of reference, apex, nvlamb"):
        LAMB(parameters().items(), schedule, CPU, adaptation="nvlam")
    with pytest.raises(UserError, match=r"'qkv' of shape \[7, 2\] can't be 3 tensors of equal size"):
        LAMB({"qkv": torch.nn.Parameter(torch.ones(7, 2))}.items(), schedule, CPU, parts=lambda name: 3)
