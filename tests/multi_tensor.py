"""What the tests of multi-tensor ops share.

`call(lists, backend)` stands for the op: it gets its lists by name and does one update in place. `make(params)` stands
for an optimizer: it returns a function that updates `params` each time it is called.
"""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from numerics import compare, device, lay_out, slow, wide
from torch import Tensor

Lists = dict[str, list[Tensor]]

SIZES = st.lists(st.sampled_from([(0,), (1,), (3, 5), (64,), (33, 0), (7, 11, 13), (5000,)]), max_size=9)
MANY_CHUNKS = [(3,), (200_003,), (1,), (65_536,)]


def random(sizes, seed: int, layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    layout = "contiguous" if layout == "strided" else layout  # multi-tensor ops take contiguous tensors only
    return [lay_out(wide(seed + i, *size, dtype=dtype), layout) for i, size in enumerate(sizes)]


def copies(tensors, where) -> list[Tensor]:
    return [x.to(where, copy=True) for x in tensors]


def zeros(tensors) -> list[Tensor]:
    return [torch.zeros_like(x) for x in tensors]


def copied(lists: Lists, where) -> Lists:
    return {name: copies(tensors, where) for name, tensors in lists.items()}


def calling(op: Callable, scalars: dict[str, float | None], **options) -> Callable:
    """`call` for an op whose device scalars are these (None: absent)."""

    def call(lists: Lists, backend: str) -> None:
        given = {name: torch.tensor(x, device=device(backend)) for name, x in scalars.items() if x is not None}
        op(**lists, **given, **options, backend=backend)

    return call


def check_against_reference(op: str, backend: str, call: Callable, lists: Lists) -> None:
    """One update by the backend, by the reference in the same dtypes, and by the reference in float64."""
    where = device(backend)
    plain, truth = copied(lists, "cpu"), copied(lists, torch.float64)
    got = lists if where == "cpu" else copied(lists, where)  # a copy would have another layout
    for some, name in ((got, backend), (plain, "ref"), (truth, "ref")):
        call(some, name)
    for name in lists:
        compare_lists(f"{op} {name}", backend, got[name], plain[name], truth[name])


def compare_lists(what: str, backend: str, got: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> None:
    for i, values in enumerate(zip(got, plain, truth, strict=True)):
        compare(f"{what}[{i}]", backend, *(x.reshape(1, -1) for x in values))


def check_loss_scaling(
    op: str,
    backend: str,
    make: Callable[[list[Tensor]], Callable],
    oracle: Callable[[list[Tensor]], Callable],
    dtype: torch.dtype = torch.float32,
) -> None:
    """A mixed-precision loop: gradients arrive multiplied by a scale that halves at an overflow, which is skipped.

    make(params) -> update(grads, lr=…, step=…, grad_scale=…, found_inf=…), device scalars, on the backend
    oracle(params) -> update(grads, lr), which knows of no scale and is called for finite gradients only: in float32
                      and in float64, something other than the op's own reference
    """
    where, sizes = device(backend), [(40,), (3, 7), (1,)]
    steps = 60 if slow(backend) else 400
    params = random(sizes, seed=0)
    plain, truth, params = copies(params, "cpu"), copies(params, torch.float64), copies(params, where)
    update, plain_update, true_update = make(params), oracle(plain), oracle(truth)
    scalars = {name: torch.zeros(1, device=where) for name in ("lr", "step", "grad_scale", "found_inf")}
    # float16 ends at 65504: a smaller scale, so that only the planted values overflow.
    scale, done, skipped = 2.0**4 if dtype is torch.float16 else 2.0**10, 0, 0
    for step in range(steps):
        scaled = [(wide(1000 + 10 * step + i, *size, decades=2) * scale).to(dtype) for i, size in enumerate(sizes)]
        if step % 50 == 20:
            scaled[1][1, 2] = torch.inf if step % 100 == 20 else torch.nan
        found, rate = any(not g.isfinite().all() for g in scaled), 0.1 / (1 + step)
        for name, value in (("lr", rate), ("step", done + 1), ("grad_scale", 1 / scale), ("found_inf", float(found))):
            scalars[name].fill_(value)
        update(copies(scaled, where), **scalars)
        if found:
            scale, skipped = scale / 2, skipped + 1
            continue
        done += 1
        plain_update([g.float() / scale for g in scaled], rate)
        true_update([g.double() / scale for g in scaled], rate)
    assert skipped == (steps + 29) // 50
    compare_lists(f"{op} params", backend, params, plain, truth)


def torch_optimizer(kind: type[torch.optim.Optimizer], **options) -> Callable:
    """`oracle` for check_loss_scaling."""

    def oracle(params: list[Tensor]) -> Callable:
        parameters = [torch.nn.Parameter(p) for p in params]  # shares the memory
        optimizer = kind(parameters, lr=0.0, foreach=False, **options)

        def update(grads: list[Tensor], lr: float) -> None:
            optimizer.param_groups[0]["lr"] = lr
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad
            optimizer.step()

        return update

    return oracle
