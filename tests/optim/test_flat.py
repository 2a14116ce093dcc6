"""Flat storage: places, shares, and a model that doesn't notice."""

import io

import pytest
import torch
from numerics import wide

from mlperf_fast.errors import UserError
from mlperf_fast.optim.flat import BLOCK, Flat, flatten_

SHAPES = [(3, 5), (BLOCK,), (0, 4), (BLOCK + 1,), (), (7, 400)]


def tensors(dtype=torch.float32):
    return {f"t{i}": wide(i, *shape, dtype=dtype) for i, shape in enumerate(SHAPES)}


@pytest.mark.parametrize("shares", [1, 2, 3, 8, 20])
def test_shares_are_equal_and_cut_whole_blocks(shares):
    flat = Flat(tensors(), shares)
    assert flat.elements == shares * flat.share
    assert flat.share % BLOCK == 0
    assert [start % BLOCK for start in flat.starts] == [0] * len(SHAPES)
    buffer = flat.zeros(torch.float32, torch.device("cpu"))
    for view, x in zip(flat.views(buffer), tensors().values(), strict=True):
        view.copy_(x)
    found = {name: [] for name in flat.names}
    for number in range(shares):
        share = buffer[number * flat.share : (number + 1) * flat.share]
        covered = torch.zeros_like(share)
        for i, part, begin, size in flat.pieces(number, [1] * len(SHAPES)):
            assert part == 0
            assert size > 0
            assert begin % BLOCK == 0
            covered[begin : begin + size] += 1
            found[flat.names[i]].append(share[begin : begin + size])
        assert covered.max() <= 1
        assert not share[covered == 0].any(), "between tensors there are zeros"
    for name, x in tensors().items():
        assert torch.equal(torch.cat([*found[name], x.new_zeros(0)]), x.flatten()), "in order, nothing missing"


def test_parts_of_a_tensor_are_cut_before_shares_are():
    flat = Flat({"bias": torch.ones(4), "qkv": torch.ones(3 * BLOCK // 2, 2)}, shares=2)  # places 1024 .. 4096
    assert flat.pieces(0, [1, 3]) == [(0, 0, 0, 4), (1, 0, BLOCK, BLOCK)]
    assert flat.pieces(1, [1, 3]) == [(1, 1, 0, BLOCK), (1, 2, BLOCK, BLOCK)]
    assert flat.pieces(0, [2, 2]) == [(0, 0, 0, 2), (0, 1, 2, 2), (1, 0, BLOCK, BLOCK)]
    assert flat.pieces(1, [2, 2]) == [(1, 0, 0, BLOCK // 2), (1, 1, BLOCK // 2, 3 * BLOCK // 2)]


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 5), torch.nn.Linear(5, 6)
        self.tied = self.second.weight


def test_a_model_is_what_it_was():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(4, 6)
    before, named = {k: v.clone() for k, v in net.state_dict().items()}, dict(net.named_parameters())
    expected = net.second(net.first(x))
    flat, buffer = flatten_(named)
    assert dict(net.named_parameters()).keys() == named.keys()
    assert all(p is named[name] for name, p in net.named_parameters()), "the same objects"
    assert net.tied is net.second.weight
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    out = net.second(net.first(x))
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        buffer.mul_(2)
    assert torch.equal(net.first.weight, 2 * before["first.weight"])
    net.load_state_dict(before)
    first = flat.views(buffer)[flat.names.index("first.weight")]
    assert torch.equal(first, before["first.weight"]), "loading writes into the buffer"

    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    assert file.tell() < 4 * flat.elements + 10_000, "the buffer is saved once"
    file.seek(0)
    assert all(torch.equal(v, before[k]) for k, v in torch.load(file, weights_only=True).items())


def test_what_can_not_be_flat():
    with pytest.raises(UserError, match=r"'x' must be contiguous to be flat, found strides \[1, 3\]"):
        Flat({"x": torch.ones(2, 3).t().t().mT})
    with pytest.raises(UserError, match="one dtype and one device"):
        flatten_({"a": torch.ones(2), "b": torch.ones(2).half()})
