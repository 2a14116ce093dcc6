from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics import EXAMPLES, LAYOUTS, backends, compare, device, lay_out, threads, wide
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.ops import (
    embedding_bag,
    embedding_bag_rowwise_adagrad_,
    embedding_bag_sgd_,
    raise_if_bad_ids,
)

OP = "embedding_bag"
ALL = [*backends(OP), pytest.param("ref")]


@dataclass(frozen=True)
class Case:
    weight: Tensor
    row_offsets: Tensor
    ids: Tensor
    bag_offsets: Tensor | None
    dout: Tensor
    state: Tensor
    lr: Tensor
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def to(self, where: torch.dtype | str) -> "Case":
        """On a device, or with tables and gradients in a dtype (lr and its like are float32 always).

        What an update writes is a copy; the rest keeps its memory, and so its layout, where nothing changes.
        """
        changed = {}
        for name, x in vars(self).items():
            if x is not None and (name in ("weight", "dout", "state") or not isinstance(where, torch.dtype)):
                changed[name] = x.to(where, copy=name in ("weight", "state"))
        return replace(self, **changed)

    def abs(self) -> "Case":
        """Makes an update add up the sizes of all its terms: the scale of its rounding errors."""
        return replace(self, weight=self.weight.abs(), dout=-self.dout.abs())


def make_case(
    B=6, rows=(5, 1, 40), D=8, multi_hot=False, ids_dtype=torch.int32, seed=0, layout="contiguous", longest=4
):
    T, generator = len(rows), torch.Generator().manual_seed(seed)
    sizes = torch.tensor(rows)
    lengths = torch.randint(0, longest + 1, (B * T,), generator=generator) if multi_hot else torch.ones(B * T).long()
    table = torch.arange(B * T).repeat_interleave(lengths) % T
    ids = (torch.rand(len(table), generator=generator, dtype=torch.float64) * sizes[table]).to(ids_dtype)
    total = int(sizes.sum())
    return Case(
        weight=lay_out(wide(seed, total, D), "unaligned" if layout == "unaligned" else "contiguous"),
        row_offsets=torch.cat([torch.zeros(1).long(), sizes.cumsum(0)]),
        ids=lay_out(ids if multi_hot else ids.view(B, T), layout),
        bag_offsets=torch.cat([torch.zeros(1).long(), lengths.cumsum(0)]) if multi_hot else None,
        dout=lay_out(wide(seed + 1, B, T, D), layout),
        state=torch.rand(total, generator=generator),
        lr=torch.tensor(0.3),
    )


def forward(c: Case, backend: str, **options) -> Tensor:
    return embedding_bag(c.weight, c.row_offsets, c.ids, c.bag_offsets, backend=backend, **options)


def update(c: Case, backend: str, rule: str, **options) -> tuple[Tensor, ...]:
    """Applies the rule in place and returns what it changes."""
    arguments = (c.row_offsets, c.ids, c.dout, c.lr)
    scalars = {"bag_offsets": c.bag_offsets, "grad_scale": c.grad_scale, "found_inf": c.found_inf}
    if rule == "sgd":
        embedding_bag_sgd_(c.weight, *arguments, **scalars, backend=backend, **options)
        return (c.weight,)
    embedding_bag_rowwise_adagrad_(c.weight, c.state, *arguments, **scalars, backend=backend, **options)
    return c.weight, c.state


def check_forward(backend, c):
    got, plain, truth, scale = (
        forward(c.to(device(backend)), backend),
        forward(c, "ref"),
        forward(c.to(torch.float64), "ref"),
        forward(c.abs().to(torch.float64), "ref"),
    )
    compare("embedding_bag", backend, got, plain, truth, scale)
    if c.bag_offsets is None:
        assert torch.equal(got.cpu(), plain), "a one-hot bag is a copy"


def check_update(backend, c, rule, deterministic):
    got = update(c.to(device(backend)), backend, rule, deterministic=deterministic)
    plain = update(c.to("cpu"), "ref", rule)
    truth = update(c.to(torch.float64), "ref", rule)
    # Adagrad divides by a root that would cancel in the sum of absolute terms, so its scale is the row's.
    scale = update(c.abs().to(torch.float64), "ref", rule) if rule == "sgd" else (None, None)
    for name, *values in zip(("weight", "state"), got, plain, truth, scale, strict=False):
        compare(f"{rule} {name}", backend, *values)


RULES = pytest.mark.parametrize(("rule", "deterministic"), [("sgd", False), ("sgd", True), ("adagrad", False)])
DRAWN = given(
    B=st.integers(0, 9),
    rows=st.lists(st.sampled_from([1, 2, 7, 300]), min_size=1, max_size=5),
    D=st.integers(1, 40),
    multi_hot=st.booleans(),
    ids_dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 999),
    layout=st.sampled_from(LAYOUTS),
)


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@DRAWN
def test_forward_matches_reference(backend, **drawn):
    check_forward(backend, make_case(**drawn))


@RULES
@pytest.mark.parametrize("backend", backends(OP), indirect=True)
@EXAMPLES
@DRAWN
def test_update_matches_reference(backend, rule, deterministic, **drawn):
    check_update(backend, make_case(**drawn), rule, deterministic)


CHOSEN = {
    "dlrm": {"B": 40, "rows": (2000, 3, 17, 4), "D": 128},
    "rows longer than a block": {"B": 5, "rows": (9, 9), "D": 600, "multi_hot": True},
    "one row for all": {"B": 200, "rows": (1,), "D": 64},
    "parts of parts of runs": {"B": 400, "rows": (2, 1, 3), "D": 16},
    "runs over many windows": {"B": 70, "rows": (2, 3), "D": 16, "multi_hot": True},
    "long bags": {"B": 3, "rows": (50, 50), "D": 16, "multi_hot": True, "longest": 60},
    "all bags empty": {"B": 3, "rows": (5, 5), "D": 16, "multi_hot": True, "longest": 0},
}


@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_chosen_shapes(backend, name):
    c = make_case(**CHOSEN[name])
    check_forward(backend, c)
    for rule, deterministic in (("sgd", False), ("sgd", True), ("adagrad", False)):
        check_update(backend, c, rule, deterministic)


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reference_is_what_separate_tables_do_in_pytorch(multi_hot, dtype):
    c = make_case(B=50, rows=(3, 400, 11), D=12, multi_hot=multi_hot).to(dtype)
    B, T, D = c.dout.shape
    bags = torch.arange(B * T + 1) if c.bag_offsets is None else c.bag_offsets
    offsets, flat, expected_out, tables = c.row_offsets.tolist(), c.ids.flatten().long(), [], []
    for t in range(T):
        table = torch.nn.EmbeddingBag(offsets[t + 1] - offsets[t], D, mode="sum", sparse=True, dtype=dtype)
        table.weight.data.copy_(c.weight[offsets[t] : offsets[t + 1]])
        own = [flat[bags[b * T + t] : bags[b * T + t + 1]] for b in range(B)]
        starts = torch.tensor([0, *map(len, own[:-1])]).cumsum(0)
        out = table(torch.cat(own), starts)
        out.backward(c.dout[:, t])
        torch.optim.SGD(table.parameters(), lr=float(c.lr)).step()
        expected_out.append(out)
        tables.append(table.weight.detach())
    exact = {"rtol": 1e-13, "atol": 1e-13} if dtype is torch.float64 else {"rtol": 1e-6, "atol": 1e-5}
    torch.testing.assert_close(forward(c, "ref"), torch.stack(expected_out, dim=1), **exact)
    (weight,) = update(c, "ref", "sgd")
    torch.testing.assert_close(weight, torch.cat(tables), **exact)


def test_reference_adagrad_by_hand():
    c = make_case(B=1, rows=(2,), D=2).to(torch.float64)
    c = replace(c, ids=torch.tensor([1, 1]), bag_offsets=torch.tensor([0, 2]), grad_scale=torch.tensor(0.5))
    before, state, (g0, g1) = c.weight.clone(), c.state.clone(), c.dout[0, 0].tolist()
    update(c, "ref", "adagrad")
    expected = state[1] + (g0**2 + g1**2) / 2  # twice the row, half the gradient: g is dout itself
    assert c.state.tolist() == pytest.approx([float(state[0]), float(expected)])
    step = 0.3 / (expected.sqrt() + 1e-8) * torch.tensor([g0, g1])
    torch.testing.assert_close(c.weight, before - torch.stack([torch.zeros(2), step]), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reference_takes_low_precision(dtype):
    low = make_case(multi_hot=True).to(dtype)
    truth = update(low.to(torch.float64), "ref", "adagrad")
    for got, expected in zip(update(low, "ref", "adagrad"), truth, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=0.05, atol=0.05)


@RULES
@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_found_inf_skips_and_grad_scale_scales(backend, rule, deterministic):
    c = make_case(multi_hot=True).to(device(backend))
    options = {"deterministic": deterministic}
    lr, scale, one = c.lr, torch.full((1,), 0.125, device=c.lr.device), torch.ones(1, device=c.lr.device)
    before = c.to(device(backend))
    poisoned = replace(c, dout=c.dout * torch.inf, grad_scale=scale, found_inf=one)
    for got, expected in zip(update(poisoned, backend, rule, **options), (before.weight, before.state), strict=False):
        assert torch.equal(got, expected)
    scaled = replace(c.to(device(backend)), dout=c.dout * 8, grad_scale=scale, found_inf=0 * one)
    for got, expected in zip(
        update(scaled, backend, rule, **options), update(c, backend, rule, **options), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert lr == 0.3


@RULES
@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_same_bits_in_every_run(backend, rule, deterministic, multi_hot):
    if backend in ("cuda", "triton") and not deterministic and rule == "sgd":
        pytest.skip("the fast SGD adds in no fixed order")
    c = make_case(B=36, rows=(2, 50), D=5, multi_hot=multi_hot, longest=2).to(device(backend))
    first = update(c.to(device(backend)), backend, rule, deterministic=deterministic)
    for run in range(30):
        with threads((1, 2, 5)[run % 3]):
            again = update(c.to(device(backend)), backend, rule, deterministic=deterministic)
            assert all(map(torch.equal, again, first)), f"run {run}"


BAD_ID = r"embedding_bag: table 1, sample 2: id {} is outside \[0, 4\)"


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31), 2**40])
@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_bad_id_has_one_message_and_touches_nothing_else(backend, multi_hot, bad):
    c = make_case(B=4, rows=(3, 4), D=6, ids_dtype=torch.int64 if bad > 2**31 else torch.int32)
    guarded = torch.full((3 + 7 + 3, 6), 5.0)
    guarded[3:10] = c.weight
    c = (
        replace(c, weight=guarded[3:10]).to(device(backend))
        if device(backend) != "cpu"
        else replace(c, weight=guarded[3:10])
    )
    c.ids[2, 1] = bad
    if multi_hot:
        c = replace(c, ids=c.ids.flatten(), bag_offsets=torch.arange(9, device=c.ids.device))
    before, state = c.weight.clone(), c.state.clone()
    with pytest.raises(UserError, match=BAD_ID.format(bad)):
        forward(c, backend)
    for rule, deterministic in (("sgd", False), ("sgd", True), ("adagrad", False)):
        with pytest.raises(UserError, match=BAD_ID.format(bad)):
            update(c, backend, rule, deterministic=deterministic)
        if backend != "triton" or deterministic or rule == "adagrad":
            assert torch.equal(c.weight, before)
            assert torch.equal(c.state, state)
        c.weight.copy_(before)
    assert (guarded[:3] == 5).all()
    assert (guarded[10:] == 5).all()


@pytest.mark.parametrize("backend", [p for p in ALL if p.values[0] in ("cuda", "triton")], indirect=True)
def test_bad_id_is_kept_for_later_where_nothing_may_wait(backend):
    c = make_case(B=4, rows=(3, 4), D=6).to(device(backend))
    errors = c.ids.new_zeros(3, dtype=torch.int64)
    expected = forward(c, backend, errors=errors)
    raise_if_bad_ids(errors, c.row_offsets)
    c.ids[2, 1], before = 9, c.weight.clone()
    out = forward(c, backend, errors=errors)
    expected[2, 1] = 0
    assert torch.equal(out, expected)
    update(c, backend, "sgd", errors=errors)
    assert torch.equal(c.weight, before), "an update after a bad id"
    with pytest.raises(UserError, match=BAD_ID.format(9)):
        raise_if_bad_ids(errors, c.row_offsets)


@pytest.mark.parametrize(
    "offsets", [[0, 3, 2, 4, 6], [1, 2, 3, 4, 6], [0, 2, 3, 4, 5], [0, 2, 3, 4, 7], [0, -1, 3, 4, 6]]
)
@pytest.mark.parametrize("backend", ALL, indirect=True)
def test_bags_out_of_order(backend, offsets):
    c = make_case(B=2, rows=(3, 4), D=6)
    c = replace(c, ids=torch.zeros(6, dtype=torch.int32), bag_offsets=torch.tensor(offsets)).to(device(backend))
    before = c.weight.clone()
    with pytest.raises(UserError, match=r"embedding_bag: bag_offsets"):
        forward(c, backend)
    with pytest.raises(UserError, match=r"embedding_bag: bag_offsets"):
        update(c, backend, "sgd", deterministic=True)
    assert torch.equal(c.weight, before)


def test_row_offsets_beyond_the_weight():
    c = make_case(B=2, rows=(3, 4), D=6)
    with pytest.raises(UserError, match=r"row_offsets must rise from 0 to weight's 7 rows, found \[0, 3, 8\]"):
        forward(replace(c, row_offsets=torch.tensor([0, 3, 8])), "cpp")


@pytest.mark.parametrize("backend", [p for p in ALL if p.values[0] in ("cuda", "triton")], indirect=True)
def test_a_table_beyond_the_weight_has_no_rows_where_nothing_may_wait(backend):
    c = make_case(B=2, rows=(3, 4), D=6)
    c = replace(c, ids=torch.zeros_like(c.ids), row_offsets=torch.tensor([0, 3, 8])).to(device(backend))
    errors, before = c.ids.new_zeros(3, dtype=torch.int64), c.weight.clone()
    out = forward(c, backend, errors=errors)
    assert torch.equal(out[:, 0], before[:1].expand(2, -1))
    assert (out[:, 1] == 0).all()
    assert errors[0] == 1
    update(c, backend, "sgd", errors=errors)
    assert torch.equal(c.weight, before), "an update after a bad id"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(7, 6, requires_grad=True)}, "requires_grad=True.*embedding_bag_sgd_"),
        ({"weight": torch.ones(7)}, r"weight has shape \[7\], expected \[rows, D\]"),
        ({"weight": torch.ones(6, 7).T}, "weight must be contiguous"),
        ({"weight": torch.ones(7, 6).double(), "dout": torch.ones(2, 2, 6).double()}, "takes float32, found float64"),
        ({"row_offsets": torch.tensor([0, 3, 7], dtype=torch.int32)}, "row_offsets is int32, expected int64"),
        ({"row_offsets": torch.tensor([0])}, "0 tables of row length 6"),
        ({"ids": torch.zeros(2, 2)}, "ids is float32, expected int32 or int64"),
        ({"ids": torch.zeros(2, 3).int()}, r"ids has shape \[2, 3\], expected \[2, 2\]"),
        ({"ids": torch.zeros(4).int()}, r"ids \(one-hot: without bag_offsets\) has shape \[4\], expected \[B, T\]"),
        ({"ids": torch.zeros(4).int(), "bag_offsets": torch.arange(4)}, r"bag_offsets has shape \[4\], expected \[3\]"),
        ({"dout": torch.ones(2, 2, 5)}, r"dout has shape \[2, 2, 5\], expected \[2, 2, 6\]"),
        ({"dout": torch.ones(2, 2, 6, device="meta")}, "dout is on meta, expected cpu"),
        ({"lr": 0.1}, "lr is a float, expected a float32 tensor with one element"),
        ({"lr": torch.ones(2)}, r"lr has shape \[2\]"),
        ({"grad_scale": torch.ones(1).double()}, "grad_scale has .*float64"),
        ({"found_inf": torch.ones(1, device="meta")}, "found_inf is on meta, expected cpu"),
        ({"state": torch.ones(6)}, r"state has shape \[6\], expected \[7\]"),
    ],
)
def test_wrong_arguments(change, message):
    c = replace(make_case(B=2, rows=(3, 4), D=6), **change)
    rule = "adagrad" if "state" in change else "sgd"
    with pytest.raises(UserError, match=rf"embedding_bag(_\w+)?: .*{message}"):
        update(c, "cpp", rule)


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_torch_op_contract(backend, multi_hot):
    c = make_case(multi_hot=multi_hot).to(device(backend))
    errors = c.ids.new_zeros(3, dtype=torch.int64)
    ops = torch.ops.mlperf_fast
    torch.library.opcheck(ops.embedding_bag, (c.weight, c.row_offsets, c.ids, c.bag_offsets, errors, backend))
    for state in (None, c.state):
        arguments = (c.weight, state, c.row_offsets, c.ids, c.bag_offsets, c.dout, c.lr, 1e-8, None, None, errors)
        torch.library.opcheck(ops.embedding_bag_update_, (*arguments, True, backend))
    versions = c.weight._version, c.state._version
    update(c, backend, "adagrad")
    assert c.weight._version > versions[0], "autograd must see that the weight has changed"
    assert c.state._version > versions[1], "autograd must see that the state has changed"


@pytest.mark.parametrize("backend", backends(OP), indirect=True)
def test_compiles_without_graph_break(backend):
    c, expected = make_case().to(device(backend)), make_case().to(device(backend))

    def step(c):
        out = forward(c, backend)
        update(c, backend, "sgd", deterministic=True)
        return out * 2

    out = torch.compile(step, fullgraph=True, backend="aot_eager")(c)
    assert torch.equal(out, step(expected))
    assert torch.equal(c.weight, expected.weight)
