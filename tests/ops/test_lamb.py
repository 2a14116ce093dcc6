import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from multi_tensor import (
    MANY_CHUNKS,
    SIZES,
    check_against_reference,
    check_loss_scaling,
    copied,
    copies,
    random,
    zeros,
)
from numerics import EXAMPLES, LAYOUTS, backends, device, threads

from mlperf_fast.errors import UserError
from mlperf_fast.ops import grad_norm, lamb_, lamb_apply_, lamb_moments_

OP = "lamb"
ALL = [*backends(OP), pytest.param("ref")]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MANY = [*MANY_CHUNKS, (70_000,), (300_000,), (5,)]


def make(sizes, seed=0, layout="contiguous", dtype=torch.float32, copy_dtype=None):
    lists = {
        "params": random(sizes, seed, layout),
        "grads": random(sizes, seed + 100, layout, dtype),
        "exp_avgs": random(sizes, seed + 200, layout),
        "exp_avg_sqs": [x.square() for x in random(sizes, seed + 300, layout)],
    }
    return lists | ({"copies": random(sizes, seed + 400, layout, copy_dtype)} if copy_dtype else {})


def call(lr=0.03, step=7.0, grad_scale=None, found_inf=None, norm=None, rules=None, **options):
    """rules: (weight_decay, adapted) of the tensors in turn."""
    scalars = {"lr": lr, "step": step, "grad_scale": grad_scale, "found_inf": found_inf}

    def run(lists, backend):
        where, n = lists["params"][0].device if lists["params"] else device(backend), len(lists["params"])
        given = {name: torch.tensor(x, device=where) for name, x in scalars.items() if x is not None}
        if norm is not None:
            given["grad_norm"] = torch.tensor(norm, dtype=torch.float64, device=where)
        if rules:
            given["weight_decay"] = [rules[i % len(rules)][0] for i in range(n)]
            given["adapted"] = [rules[i % len(rules)][1] for i in range(n)]
        lamb_(**lists, **given, **options, backend=backend)

    return run


RULES = [(0.01, True), (0.0, False), (0.0, True), (0.1, False)]


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@given(
    sizes=SIZES,
    seed=st.integers(1000, 9999),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    copy_dtype=st.sampled_from([None, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([None, 1.0, 2.0**-10]),
    step=st.sampled_from([1.0, 2.0, 1000.0]),
    norm=st.sampled_from([None, 0.5, 1.0, 300.0]),
    grad_averaging=st.booleans(),
    bias_correction=st.booleans(),
)
def test_matches_reference(
    backend, sizes, seed, layout, dtype, copy_dtype, scale, step, norm, grad_averaging, bias_correction
):
    run = call(step=step, grad_scale=scale, norm=norm, rules=RULES, betas=(0.85, 0.99),
               grad_averaging=grad_averaging, bias_correction=bias_correction)  # fmt: skip
    check_against_reference(OP, backend, run, make(sizes, seed, layout, dtype, copy_dtype))


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("rules", [RULES[:1], RULES], ids=["adapted", "mixed"])
def test_tensors_of_many_chunks(backend, rules):
    check_against_reference(OP, backend, call(norm=200.0, rules=rules), make(MANY, copy_dtype=torch.bfloat16))


@pytest.mark.parametrize("backend", [b for b in backends(OP) if "cpp" in b.values[0]], indirect=True)
def test_a_tensor_too_large_for_the_scratch_memory(backend):
    """Its updates are worked out twice instead of kept: the same values. Scratch ends at 4 Mi elements."""
    lists = make([((4 << 20) + 70_000,), (200_000,), (4 << 20,), (100_000,), (9,)])
    check_against_reference(OP, backend, call(), lists)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_are_the_rounded_params(backend, dtype):
    lists = copied(make([(5000,), (1,), (17,), (70_000,)], copy_dtype=dtype), device(backend))
    call()(lists, backend)
    assert all(torch.equal(c, p.to(dtype)) for c, p in zip(lists["copies"], lists["params"], strict=True))


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("size", [40, 70_000])
def test_the_trust_ratio_is_one_where_a_norm_is_zero(backend, size):
    """A weight of zeros moves by lr · u, as an unadapted one does; no gradient and no decay: nothing moves."""
    lists = copied(make([(size,)] * 3), device(backend))
    for name in ("exp_avgs", "exp_avg_sqs"):
        [x.zero_() for x in lists[name]]
    lists["params"][0].zero_()
    lists["grads"][1].zero_()
    lists["grads"][2].copy_(lists["grads"][0])
    before = copies(lists["params"], "cpu")
    call(lr=0.25, step=1.0, rules=[(0.0, True), (0.0, True), (0.0, False)])(lists, backend)
    after = copies(lists["params"], "cpu")
    torch.testing.assert_close(after[0], after[2] - before[2], rtol=0, atol=1e-4)
    assert after[0].abs().max() > 0.2, "the first step of Adam is lr long"
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_an_adapted_tensor_moves_by_lr_times_its_own_norm(backend):
    lists = copied(make([(300,), (80_000,)]), device(backend))
    before = copies(lists["params"], torch.float64)
    call(lr=0.01, rules=RULES[:1])(lists, backend)
    for old, new in zip(before, copies(lists["params"], torch.float64), strict=True):
        assert float((new - old).norm() / old.norm()) == pytest.approx(0.01, rel=1e-4)


def oracle(rules, max_grad_norm=math.inf, betas=(0.9, 0.999), eps=1e-6, bias_correction=True, grad_averaging=True):
    """The formula of the BERT reference, written from its description, in the dtype of the parameters."""

    def start(params):
        m, v, t = zeros(params), zeros(params), 0

        def update(grads, lr):
            nonlocal t
            t += 1
            norm = torch.cat([g.flatten() for g in grads]).norm()
            for i, p in enumerate(params):
                wd, adapted = rules[i % len(rules)]
                g = grads[i] * min(1.0, max_grad_norm / float(norm))
                m[i] = betas[0] * m[i] + (1 - betas[0] if grad_averaging else 1) * g
                v[i] = betas[1] * v[i] + (1 - betas[1]) * g * g
                c1, c2 = (1 - betas[0] ** t, 1 - betas[1] ** t) if bias_correction else (1, 1)
                u = m[i] / c1 / ((v[i] / c2).sqrt() + eps)
                u = u + wd * p
                ratio = 1.0
                if adapted and p.norm() > 0 and u.norm() > 0:
                    ratio = p.norm() / u.norm()
                p -= lr * ratio * u

        return update

    return start


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize(
    ("rules", "options", "dtype"),
    [
        # BERT's: some decayed and adapted, others neither; clipped
        *((RULES[:2], {"max_grad_norm": 1.0}, dtype) for dtype in DTYPES),
        # RNN-T's: every tensor decayed and adapted
        ([(1e-3, True)], {"max_grad_norm": 1.0, "eps": 1e-9}, torch.float16),
        ([(0.0, True)], {}, torch.float32),
        (RULES, {"max_grad_norm": 0.5, "bias_correction": False, "grad_averaging": False}, torch.float32),
    ],
    ids=["bert", "bert bf16", "bert fp16", "rnnt", "no clip", "no corrections"],
)
def test_hundreds_of_steps_under_loss_scaling(backend, dtype, rules, options):
    def ours(params):
        moments, kinds = (zeros(params), zeros(params)), [rules[i % len(rules)] for i in range(len(params))]
        decays, adapted = [w for w, _ in kinds], [a for _, a in kinds]

        def update(grads, grad_scale, **scalars):
            norm = grad_norm(grads, grad_scale=grad_scale, backend="ref" if backend == "ref" else None)
            lamb_(params, grads, *moments, grad_norm=norm, grad_scale=grad_scale, weight_decay=decays,
                  adapted=adapted, backend=backend, **({"max_grad_norm": math.inf} | options), **scalars)  # fmt: skip

        return update

    check_loss_scaling(OP, backend, ours, oracle(rules, **options), dtype)


@pytest.mark.parametrize("backend", ALL, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_halves_make_the_whole(backend, dtype):
    """Tensors cut at multiples of 1,024 elements, the sums of the parts' squares added up: the same update."""
    lists = copied(make([(5000,), (200_000,), (30,)], dtype=dtype, copy_dtype=torch.float16), device(backend))
    expected, where = copied(lists, device(backend)), device(backend)
    scalars = {"step": torch.tensor(3.0, device=where), "found_inf": torch.zeros((), device=where)}
    lr, norm = torch.tensor(0.1, device=where), torch.tensor(7.0, device=where, dtype=torch.float64)
    numbers = {"betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.3, "bias_correction": True, "backend": backend}
    lamb_(**expected, lr=lr, grad_norm=norm, max_grad_norm=2.0, **scalars, **numbers)

    cuts = [[2048, 2952], [70 * 1024, 200_000 - 70 * 1024], [30]]
    owner = torch.tensor([i for i, sizes in enumerate(cuts) for _ in sizes], device=where)
    parts = {
        name: [part for x, sizes in zip(tensors, cuts, strict=True) for part in x.split(sizes)]
        for name, tensors in lists.items()
    }
    rounded = parts.pop("copies")
    squares = lamb_moments_(**parts, grad_norm=norm, max_grad_norm=2.0, **scalars, **numbers)
    assert squares.dtype is torch.float64
    whole = torch.zeros(3, 2, dtype=torch.float64, device=where).index_add_(0, owner, squares)
    del parts["grads"]
    lamb_apply_(**parts, squares=whole[owner], lr=lr, copies=rounded, **scalars, **numbers)
    for name in lists:
        if backend == "ref":  # its norms are torch's, in float32, and a tensor's parts round differently
            for got, whole in zip(lists[name], expected[name], strict=True):
                torch.testing.assert_close(got, whole, rtol=1e-3, atol=1e-4)
        else:
            assert all(map(torch.equal, lists[name], expected[name])), name


@pytest.mark.parametrize("backend", [b for b in backends(OP) if "cpp" in b.values[0]], indirect=True)
def test_same_bits_whoever_takes_which_chunk(backend):
    sizes = [(100,)] * 50 + [(150_001,), (70_000,), (1000,), (300_000,), (65_536,), (140_000,)]
    lists, results = make(sizes, copy_dtype=torch.float16), []
    for n in (1, 2, 3, 7) * 3:
        with threads(n):
            results.append(copied(lists, "cpu"))
            call(norm=3.0)(results[-1], backend)
    for other in results[1:]:
        for name in lists:
            assert all(map(torch.equal, results[0][name], other[name])), name


def test_no_parts():
    assert lamb_moments_([], [], [], [], torch.ones(())).shape == (0, 2)
    lamb_apply_([], [], [], torch.zeros(0, 2), torch.ones(()), torch.ones(()))


WRONG = [
    ({"grad_norm": torch.ones(())}, "grad_norm is float32, expected float64"),
    ({"grad_norm": torch.ones(2).double()}, r"grad_norm has shape \[2\]"),
    ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0, expected a number of 0 or more, or infinity"),
    ({"max_grad_norm": math.nan}, "max_grad_norm is nan"),
]
WRONG_RULES = [
    ({"betas": (0.9, 1.0)}, r"betas\[1\] is 1.0, expected a number of 0 or more and less than 1"),
    ({"eps": -1e-8}, "eps is -1e-08, expected a number of 0 or more"),
    ({"weight_decay": [0.1, 0.2]}, "2 values of weight_decay, expected one or one for each of 1 params"),
]


def ones(*names):
    return {name: [torch.ones(2)] for name in names} | {"lr": torch.ones(()), "step": torch.ones(())}


@pytest.mark.parametrize(("changes", "message"), [*WRONG, *WRONG_RULES, ({"adapted": []}, "0 values of adapted")])
def test_wrong_arguments(changes, message):
    with pytest.raises(UserError, match=f"lamb_: .*{message}"):
        lamb_(**ones("params", "grads", "exp_avgs", "exp_avg_sqs") | changes)


@pytest.mark.parametrize(
    ("changes", "message"), [*WRONG, *WRONG_RULES, ({"step": 3}, "step is a int"), ({"grads": []}, "0 grads")]
)
def test_wrong_arguments_of_the_first_half(changes, message):
    arguments = ones("params", "grads", "exp_avgs", "exp_avg_sqs") | changes
    del arguments["lr"]
    with pytest.raises(UserError, match=f"lamb_moments_: .*{message}"):
        lamb_moments_(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *WRONG_RULES,
        ({"adapted": []}, "0 values of adapted"),
        ({"lr": 0.1}, "lr is a float"),
        ({"exp_avg_sqs": []}, "0 exp_avg_sqs"),
        ({"squares": torch.ones(2, 2).double()}, r"squares has shape \[2, 2\], expected \[1, 2\]"),
        ({"squares": torch.ones(1, 2)}, "squares is float32, expected float64"),
        ({"squares": torch.ones(1, 4).double()[:, ::2]}, "squares must be contiguous"),
    ],
)
def test_wrong_arguments_of_the_second_half(changes, message):
    arguments = ones("params", "exp_avgs", "exp_avg_sqs") | {"squares": torch.ones(1, 2).double()} | changes
    with pytest.raises(UserError, match=f"lamb_apply_: .*{message}"):
        lamb_apply_(**arguments)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract_of_its_halves(backend):
    lists = copied(make([(4, 5), (1,)], copy_dtype=torch.bfloat16), device(backend))
    where = lists["params"][0].device
    one, norm = torch.ones(1, device=where), torch.ones((), dtype=torch.float64, device=where)
    squares, rules = torch.ones(2, 2, dtype=torch.float64, device=where), ([0.1, 0.0], [True, False])
    numbers, clip = (0.9, 0.999, 1e-6), (1.0, True)
    ops = torch.ops.mlperf_fast
    lists.pop("copies")
    torch.library.opcheck(
        ops.lamb_moments_, (*lists.values(), squares, rules[0], one, norm, one, None, *numbers, *clip, True, backend)
    )
    lists.pop("grads")
    torch.library.opcheck(
        ops.lamb_apply_, (*lists.values(), [], squares, *rules, one, one, None, *numbers, True, backend)
    )


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_its_halves_compile_without_graph_break(backend):
    lists = copied(make([(4, 5), (1,)], copy_dtype=torch.bfloat16), device(backend))
    expected, (lr, step) = copied(lists, device(backend)), torch.ones(2, 1, device=device(backend))

    def halves(lists):
        some = {name: lists[name] for name in ("params", "exp_avgs", "exp_avg_sqs")}
        squares = lamb_moments_(**some, grads=lists["grads"], step=step, backend=backend)
        lamb_apply_(**some, squares=squares, lr=lr, step=step, copies=lists["copies"], backend=backend)

    torch.compile(lambda: halves(lists), fullgraph=True, backend="aot_eager")()
    halves(expected)
    assert all(map(torch.equal, lists["params"] + lists["exp_avgs"], expected["params"] + expected["exp_avgs"]))
