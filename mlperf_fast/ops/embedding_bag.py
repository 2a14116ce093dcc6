"""Embedding bags of T tables in one call, sum pooling, and their sparse updates fused with the backward pass.

B samples, T tables, D the rows' length. All tables lie in one buffer `weight` [rows, D]; table t owns the rows
row_offsets[t] .. row_offsets[t + 1]. Ids count from the table's own first row. Bag (b, t) is number b * T + t.
No gradient tensor of a table ever exists: the pooled output is a leaf of the graph, and its gradient `dout` goes
straight into an update.
"""

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops import bags
from mlperf_fast.ops.backend import CUDA_DEVICES, TRITON_DEVICES, Applies, Op, define, resolve, shortcut
from mlperf_fast.ops.checks import address, check, check_contiguous, check_scalar, native

# 1. The truth ---------------------------------------------------------------------------------------------------


def embedding_bag_ref(weight: Tensor, row_offsets: Tensor, ids: Tensor, bag_offsets: Tensor | None = None) -> Tensor:
    """Plain PyTorch, as the two below; any float dtype."""
    rows, _ = _occurrences(row_offsets, ids, bag_offsets)
    starts = torch.arange(rows.numel() + 1, device=ids.device) if bag_offsets is None else bag_offsets
    pooled = F.embedding_bag(rows, weight, starts, mode="sum", include_last_offset=True)
    return pooled.view(-1, row_offsets.numel() - 1, weight.shape[1])


def embedding_bag_sgd_ref_(weight, row_offsets, ids, dout, lr, bag_offsets=None, grad_scale=None, found_inf=None):
    """What nn.EmbeddingBag's sparse gradient and optim.SGD do together: each occurrence of a row adds its share."""
    rows, bags = _occurrences(row_offsets, ids, bag_offsets)
    grad = _scaled(dout.reshape(-1, dout.shape[2])[bags], grad_scale, found_inf)
    weight.index_add_(0, rows, (lr * grad).to(weight.dtype), alpha=-1)


def embedding_bag_rowwise_adagrad_ref_(
    weight, state, row_offsets, ids, dout, lr, eps=1e-8, bag_offsets=None, grad_scale=None, found_inf=None
):
    """Exact row-wise Adagrad: a row's occurrences are summed first, then it takes one step."""
    rows, bags = _occurrences(row_offsets, ids, bag_offsets)
    distinct, place = torch.unique(rows, return_inverse=True)
    grad = dout.new_zeros(distinct.numel(), dout.shape[2]).index_add_(0, place, dout.reshape(-1, dout.shape[2])[bags])
    grad = _scaled(grad, grad_scale, found_inf)
    state.index_add_(0, distinct, grad.square().mean(1).to(state.dtype))
    step = lr / (state[distinct].sqrt() + eps).unsqueeze(1) * grad
    weight.index_add_(0, distinct, step.to(weight.dtype), alpha=-1)


def _occurrences(row_offsets: Tensor, ids: Tensor, bag_offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each id in turn its row of `weight` and its bag's number; UserError for an id outside its table."""
    ids, T = ids.reshape(-1).long(), row_offsets.numel() - 1
    if bag_offsets is None:
        bags = torch.arange(ids.numel(), device=ids.device)
    else:
        lengths = bag_offsets.diff()
        if int(bag_offsets[0]) != 0 or int(bag_offsets[-1]) != ids.numel() or bool((lengths < 0).any()):
            raise UserError(f"embedding_bag: bag_offsets must rise from 0 to the number of ids, {ids.numel()}")
        bags = torch.arange(lengths.numel(), device=ids.device).repeat_interleave(lengths)
    first, last = row_offsets[bags % T], row_offsets[bags % T + 1]
    bad = ((ids < 0) | (ids >= last - first)).nonzero()
    if bad.numel():
        n = int(bad[0])
        raise UserError(_bad_id(row_offsets, int(bags[n]), int(ids[n])))
    return first + ids, bags


def _scaled(grad: Tensor, grad_scale: Tensor | None, found_inf: Tensor | None) -> Tensor:
    if grad_scale is not None:
        grad = grad * grad_scale
    return grad if found_inf is None else torch.where(found_inf != 0, 0, grad)


def _bad_id(row_offsets: Tensor, bag: int, found: int) -> str:
    sample, table = divmod(bag, row_offsets.numel() - 1)
    rows = int(row_offsets[table + 1] - row_offsets[table])
    return f"embedding_bag: table {table}, sample {sample}: id {found} is outside [0, {rows})"


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

EMBEDDING_BAG = Op(
    "embedding_bag",
    {
        "cpp": Applies(("cpu",), (torch.float32,)),
        "triton": Applies(TRITON_DEVICES, (torch.float32,)),
        "cuda": Applies(CUDA_DEVICES, (torch.float32,)),
        "ref": Applies(),
    },
)


def _forward(weight, row_offsets, ids, bag_offsets, errors, backend):
    out, ids = _fake_forward(weight, row_offsets, ids, bag_offsets, errors, backend), ids.contiguous()
    if backend == "cpp":
        bags.check_offsets(weight, row_offsets, ids, bag_offsets)
        addresses = bags.addresses(row_offsets, ids, bag_offsets)
        native(_C.embedding_bag_fwd, weight.data_ptr(), *addresses, out.data_ptr(), *out.shape)
        return out
    record = weight.new_zeros(3, dtype=torch.int64) if errors is None else errors
    _on_gpu(backend).embedding_bag_fwd(weight, row_offsets, ids, bag_offsets, out, record)
    if errors is None:
        raise_if_bad_ids(record, row_offsets)
    return out


def _update(
    weight, state, row_offsets, ids, bag_offsets, dout, lr, eps, grad_scale, found_inf, errors, deterministic, backend
):
    """Both updates: row-wise Adagrad where there is a `state`, else SGD."""
    ids, dout = ids.contiguous(), dout.contiguous()
    torch.autograd.graph.increment_version(weight if state is None else (weight, state))
    if backend == "cpp":
        bags.check_offsets(weight, row_offsets, ids, bag_offsets)
        addresses = bags.addresses(row_offsets, ids, bag_offsets)
        scalars = (address(grad_scale), address(found_inf))
        if state is None:
            rest: tuple = (*addresses, dout.data_ptr(), lr.data_ptr(), *scalars)
            function = _C.embedding_bag_bwd_sgd
        else:
            function = _C.embedding_bag_bwd_rowwise_adagrad
            rest = (state.data_ptr(), *addresses, dout.data_ptr(), lr.data_ptr(), eps, *scalars)
        native(function, weight.data_ptr(), *rest, *dout.shape)
        return
    gpu, occurrences, rows = _on_gpu(backend), (row_offsets, ids, bag_offsets), weight.shape[0]
    record = weight.new_zeros(3, dtype=torch.int64) if errors is None else errors
    if state is None and not deterministic:
        gpu.embedding_bag_bwd_sgd(weight, *occurrences, dout, lr, grad_scale, found_inf, record)
    else:
        keys = ids.new_empty(ids.numel(), dtype=torch.int32 if rows < 2**31 else torch.int64)
        bag_of = None if bag_offsets is None else ids.new_empty(ids.numel(), dtype=torch.int32)
        gpu.embedding_bag_keys(*occurrences, keys, bag_of, rows, record)
        keys, order = torch.sort(keys, stable=True)  # stable: a row's occurrences stay in the order of the samples
        rest = (keys, order, bag_of, dout, lr, eps, grad_scale, found_inf, record)
        gpu.embedding_bag_bwd_sorted(weight, state, *rest)
    if errors is None:
        raise_if_bad_ids(record, row_offsets)


def _on_gpu(backend: str) -> ModuleType:
    """The launchers of cuda and triton: the same functions with the same arguments."""
    if backend == "cuda":
        return bags
    from mlperf_fast.kernels import embedding_bag

    return embedding_bag


# 3. Registration: shapes without data. No gradient: `weight` never has one ---------------------------------------


def _fake_forward(weight, row_offsets, ids, bag_offsets, errors, backend):
    T = row_offsets.shape[0] - 1
    B = ids.shape[0] if bag_offsets is None else (bag_offsets.shape[0] - 1) // T
    return weight.new_empty(B, T, weight.shape[1])


_op = define(
    "embedding_bag(Tensor weight, Tensor row_offsets, Tensor ids, Tensor? bag_offsets, Tensor(a!)? errors, str backend)"
    " -> Tensor",
    _forward,
    _fake_forward,
)
_op_update = define(
    "embedding_bag_update_(Tensor(a!) weight, Tensor(b!)? state, Tensor row_offsets, Tensor ids, Tensor? bag_offsets, "
    "Tensor dout, Tensor lr, float eps, Tensor? grad_scale, Tensor? found_inf, Tensor(c!)? errors, bool deterministic, "
    "str backend) -> ()",
    _update,
    lambda *arguments: None,
)
_embedding_bag, _embedding_bag_update = shortcut(_op, _forward), shortcut(_op_update, _update)


# 4. The public functions --------------------------------------------------------------------------------------------


def embedding_bag(
    weight: Tensor,
    row_offsets: Tensor,
    ids: Tensor,
    bag_offsets: Tensor | None = None,
    *,
    errors: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The sum of each bag's rows, for all tables in one call. Forward only.

    weight       [rows, D] float32 (any float on ref), contiguous, requires_grad=False
    row_offsets  [T + 1] int64, from 0 to rows
    ids          one-hot: [B, T] int32 or int64. Multi-hot: [N], with
    bag_offsets  [B T + 1] int64, from 0 to N: bag n holds ids[bag_offsets[n] : bag_offsets[n + 1]]; it may be empty
    errors       [3] int64 zeros on cuda and triton, to be read later by raise_if_bad_ids: then nothing waits for the
                 device. Without it, and on the other backends always, a bad id is raised at once
    returns      [B, T, D] float32; an empty bag is 0

    Raises UserError for wrong arguments and for an id outside its table, naming table, sample and id.
    Source: nn.EmbeddingBag(mode="sum") of each table; facebookresearch/dlrm, `apply_emb`.
    """
    bags.check_bags("embedding_bag", weight, row_offsets, ids, bag_offsets, errors)
    name = resolve(EMBEDDING_BAG, weight, backend)
    if name == "ref":
        return embedding_bag_ref(weight, row_offsets, ids, bag_offsets)
    return _embedding_bag(weight, row_offsets, ids, bag_offsets, errors, name)


def embedding_bag_sgd_(
    weight: Tensor,
    row_offsets: Tensor,
    ids: Tensor,
    dout: Tensor,
    lr: Tensor,
    *,
    bag_offsets: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    errors: Tensor | None = None,
    deterministic: bool = False,
    backend: str | None = None,
) -> None:
    """weight[row] -= lr * grad_scale * (sum of dout[b, t] over the row's occurrences), in place.

    dout           [B, T, D], the gradient of embedding_bag's output; the other shapes as there
    lr             one float32 on weight's device, as are
    grad_scale     the factor that undoes loss scaling (1 when absent), and
    found_inf      other than 0: nothing is updated
    errors         as in embedding_bag; when it already holds a bad id, nothing is updated
    deterministic  the same bits in every run, by sorting on cuda and triton; cpp is so anyway

    Raises UserError as embedding_bag does: before anything is written, but on triton's fast path after it; there bad
    ids are left out.
    Source: torch.optim.SGD on the sparse gradient of nn.EmbeddingBag.
    """
    op = "embedding_bag_sgd_"
    shape = bags.check_bags(op, weight, row_offsets, ids, bag_offsets, errors)
    name = _check_update(op, weight, shape, dout, lr, grad_scale, found_inf, deterministic, backend)
    if name == "ref":
        embedding_bag_sgd_ref_(weight, row_offsets, ids, dout, lr, bag_offsets, grad_scale, found_inf)
        return
    arguments = (row_offsets, ids, bag_offsets, dout, lr, 0.0, grad_scale, found_inf, errors, deterministic, name)
    _embedding_bag_update(weight, None, *arguments)


def embedding_bag_rowwise_adagrad_(
    weight: Tensor,
    state: Tensor,
    row_offsets: Tensor,
    ids: Tensor,
    dout: Tensor,
    lr: Tensor,
    *,
    eps: float = 1e-8,
    bag_offsets: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    errors: Tensor | None = None,
    deterministic: bool = False,
    backend: str | None = None,
) -> None:
    """g = grad_scale * (sum of dout[b, t] over the row's occurrences), then in place, for each row that occurs:
    state[row] += mean(g^2), weight[row] -= lr / (sqrt(state[row]) + eps) * g.

    state [rows] float32; the rest as in embedding_bag_sgd_. Every backend gives the same bits in every run.
    Source: FBGEMM's EXACT_ROWWISE_ADAGRAD.
    """
    op = "embedding_bag_rowwise_adagrad_"
    shape = bags.check_bags(op, weight, row_offsets, ids, bag_offsets, errors)
    check(op, "state", state, weight.shape[:1], (weight.dtype,), weight)
    check_contiguous(op, "state", state)
    name = _check_update(op, weight, shape, dout, lr, grad_scale, found_inf, deterministic, backend)
    if name == "ref":
        embedding_bag_rowwise_adagrad_ref_(
            weight, state, row_offsets, ids, dout, lr, eps, bag_offsets, grad_scale, found_inf
        )
        return
    arguments = (row_offsets, ids, bag_offsets, dout, lr, eps, grad_scale, found_inf, errors, deterministic, name)
    _embedding_bag_update(weight, state, *arguments)


def raise_if_bad_ids(errors: Tensor, row_offsets: Tensor) -> None:
    """Waits for the device; UserError if a call that was given `errors` met a bad id, or bags out of order."""
    kind, bag, found = errors.tolist()
    if kind == 1:
        raise UserError(_bad_id(row_offsets, bag, found))
    if kind == 2:
        raise UserError(f"embedding_bag: bag_offsets must rise from 0 to the number of ids; bag {bag} ends at {found}")


def _check_update(op, weight, shape, dout, lr, grad_scale, found_inf, deterministic, backend) -> str:
    """The arguments that only the updates have; returns the backend's name."""
    check(op, "dout", dout, shape, (weight.dtype,), weight)
    check_scalar(op, "lr", lr, weight)
    check_scalar(op, "grad_scale", grad_scale, weight, optional=True)
    check_scalar(op, "found_inf", found_inf, weight, optional=True)
    name = resolve(EMBEDDING_BAG, weight, backend)
    if deterministic and name == "ref" and weight.is_cuda:
        raise UserError(f"{op}: backend ref isn't deterministic on CUDA; use triton or cuda, or deterministic=False")
    return name
