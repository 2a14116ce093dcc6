"""What BERT begins with, in one pass: y = dropout(LN(word[ids] + position[positions] + segment[segments])).

T tokens, without padding, of H elements; tables of V words, P positions and S segments. What is kept by dropout follows
from a counter (ops/dropout.py), its rows are the tokens. Backward computes the sum again from the tables: no tensor of
[T, H] is stored.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import FLOATS, address, check, check_contiguous, check_number, check_rank, native
from mlperf_fast.ops.dropout import check_dropout, dropout_ref

KINDS = ("word", "position", "segment")

# 1. The truth ---------------------------------------------------------------------------------------------------


def embedding_layer_norm_ref(
    ids: Tensor,
    positions: Tensor,
    segments: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    gamma: Tensor,
    beta: Tensor,
    threshold: int = 0,
    state: Tensor | None = None,
    site: int = 0,
    eps: float = 1e-12,
) -> Tensor:
    """Plain PyTorch; its gradient is autograd's. 16-bit rows are normalised in float32: 1e-12 is 0 in float16."""
    for number, (found, table) in enumerate(((ids, word), (positions, position), (segments, segment))):
        bad = ((found < 0) | (found >= table.shape[0])).nonzero()
        if bad.numel():
            raise UserError(_bad_token(number, int(bad[0]), int(found[bad[0]]), table.shape[0]))
    h = F.embedding(ids, word) + F.embedding(positions, position) + F.embedding(segments, segment)
    wide = torch.promote_types(h.dtype, torch.float32)
    y = F.layer_norm(h.to(wide), h.shape[-1:], gamma.to(wide), beta.to(wide), eps).to(h.dtype)
    return dropout_ref(y, threshold, state, site)


def _bad_token(kind: int, token: int, found: int, rows: int) -> str:
    return f"embedding_layer_norm: token {token}: {KINDS[kind]} {found} is outside [0, {rows})"


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

EMBEDDING_LAYER_NORM = Op(
    "embedding_layer_norm",
    {
        "cpp": Applies(("cpu",), FLOATS),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "ref": Applies(),
    },
)


def _forward(
    numbers: Sequence[Tensor],
    tables: Sequence[Tensor],
    gamma: Tensor,
    beta: Tensor,
    threshold: int,
    state: Tensor | None,
    site: int,
    eps: float,
    errors: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """ids, positions, segments [T]; word, position, segment -> y [T, H], each token's mean and 1 / deviation."""
    y, mean, rstd = _fake_forward(numbers, tables, gamma, beta, threshold, state, site, eps, errors, backend)
    inputs = (*_contiguous(numbers), *_contiguous(tables), gamma.float().contiguous(), beta.float().contiguous())
    if backend == "cpp":
        sizes = (*_sizes(numbers, tables), eps, address(state), site, threshold, FLOATS.index(y.dtype))
        native(_C.embedding_layer_norm_fwd, *map(address, (*inputs, y, mean, rstd)), *sizes)
    else:
        from mlperf_fast.kernels.embedding_layer_norm import embedding_layer_norm_fwd

        record = mean.new_zeros(3, dtype=torch.int64) if errors is None else errors
        embedding_layer_norm_fwd(*inputs, y, mean, rstd, eps, state, site, threshold, record)
        if errors is None:
            raise_if_bad_tokens(record, *tables)
    return y, mean, rstd


def _backward(
    numbers: Sequence[Tensor],
    tables: Sequence[Tensor],
    gamma: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dy: Tensor,
    threshold: int,
    state: Tensor | None,
    site: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The gradient of the three rows' sum [T, H], and dgamma, dbeta as the rows of [2, H], all float32."""
    dsum, sums = _fake_backward(numbers, tables, gamma, mean, rstd, dy, threshold, state, site, backend)
    inputs = (*_contiguous(numbers), *_contiguous(tables), gamma.float().contiguous(), mean, rstd, dy.contiguous())
    if backend == "cpp":
        sizes = (*_sizes(numbers, tables), address(state), site, threshold, FLOATS.index(dy.dtype))
        native(_C.embedding_layer_norm_bwd, *map(address, (*inputs, dsum, sums)), *sizes)
    else:
        from mlperf_fast.kernels.embedding_layer_norm import embedding_layer_norm_bwd

        embedding_layer_norm_bwd(*inputs, dsum, sums, state, site, threshold)
    return dsum, sums


def _table_gradients(
    dsum: Tensor, numbers: Sequence[Tensor], rows: Sequence[int], needed: Sequence[bool], backend: str
) -> list[Tensor]:
    """Dense [rows, H] float32 for each table: row r is the sum of dsum over its tokens. Empty where it isn't needed."""
    if backend == "cpp":
        dtables = _fake_table_gradients(dsum, numbers, rows, needed, backend)
        addresses = [address(table) if wanted else 0 for table, wanted in zip(dtables, needed, strict=True)]
        inputs = (*_contiguous(numbers), dsum.contiguous())
        sizes = (dsum.shape[0], *rows, dsum.shape[1])
        native(_C.embedding_layer_norm_tables, *map(address, inputs), *addresses, *sizes)
        return dtables
    return [
        _sorted_sum(dsum, found, count) if wanted else dsum.new_empty(0, dsum.shape[1])
        for found, count, wanted in zip(numbers, rows, needed, strict=True)
    ]


def _sorted_sum(dsum: Tensor, numbers: Tensor, rows: int) -> Tensor:
    """torch's own sorts on a GPU: no atomics, the same bits in every run. What is outside goes into a row too many."""
    inside = (numbers >= 0) & (numbers < rows)
    return torch.ops.aten.embedding_dense_backward(dsum, torch.where(inside, numbers, rows), rows + 1, -1, False)[:rows]


def _contiguous(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def _sizes(numbers: Sequence[Tensor], tables: Sequence[Tensor]) -> tuple[int, ...]:
    """T, V, P, S, H."""
    return numbers[0].shape[0], *(table.shape[0] for table in tables), tables[0].shape[1]


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_forward(numbers, tables, gamma, beta, threshold, state, site, eps, errors, backend):
    y = tables[0].new_empty(numbers[0].shape[0], tables[0].shape[1])
    mean = y.new_empty(y.shape[0], dtype=torch.float32)
    return y, mean, torch.empty_like(mean)


def _fake_table_gradients(dsum, numbers, rows, needed, backend):
    return [dsum.new_empty(n if wanted else 0, dsum.shape[1]) for n, wanted in zip(rows, needed, strict=True)]


def _fake_backward(numbers, tables, gamma, mean, rstd, dy, threshold, state, site, backend):
    return mean.new_empty(dy.shape), mean.new_empty(2, dy.shape[1])


_op = define(
    "embedding_layer_norm(Tensor[] numbers, Tensor[] tables, Tensor gamma, Tensor beta, int threshold, Tensor? state, "
    "int site, float eps, Tensor(a!)? errors, str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_op_bwd = define(
    "embedding_layer_norm_bwd(Tensor[] numbers, Tensor[] tables, Tensor gamma, Tensor mean, Tensor rstd, Tensor dy, "
    "int threshold, Tensor? state, int site, str backend) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_op_tables = define(
    "embedding_layer_norm_tables(Tensor dsum, Tensor[] numbers, int[] rows, bool[] needed, str backend) -> Tensor[]",
    _table_gradients,
    _fake_table_gradients,
)
_embedding_layer_norm = shortcut(_op, _forward)
_embedding_layer_norm_bwd = shortcut(_op_bwd, _backward)
_embedding_layer_norm_tables = shortcut(_op_tables, _table_gradients)


class EmbeddingLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        ids,
        positions,
        segments,
        word,
        position,
        segment,
        gamma,
        beta,
        threshold,
        state,
        site,
        eps,
        errors,
        backend,
    ):
        numbers, tables = (ids, positions, segments), (word, position, segment)
        arguments = (threshold, state, site, eps, errors, backend)
        y, mean, rstd = _embedding_layer_norm(numbers, tables, gamma, beta, *arguments)
        ctx.save_for_backward(*numbers, *tables, gamma, beta, mean, rstd, state)
        ctx.arguments = threshold, site, backend
        return y

    @staticmethod
    def backward(ctx, dy):
        once_only("embedding_layer_norm")
        *saved, gamma, beta, mean, rstd, state = ctx.saved_tensors
        numbers, tables = saved[:3], saved[3:]
        threshold, site, backend = ctx.arguments
        dsum, (dgamma, dbeta) = _embedding_layer_norm_bwd(
            numbers, tables, gamma, mean, rstd, dy, threshold, state, site, backend
        )
        needed = ctx.needs_input_grad[3:6]
        found = _embedding_layer_norm_tables(dsum, numbers, [t.shape[0] for t in tables], needed, backend)
        dtables = [d.to(t.dtype) if wanted else None for d, t, wanted in zip(found, tables, needed, strict=True)]
        return *[None] * 3, *dtables, dgamma.to(gamma.dtype), dbeta.to(beta.dtype), *[None] * 6


# 4. The public functions --------------------------------------------------------------------------------------------


def embedding_layer_norm(
    ids: Tensor,
    positions: Tensor,
    segments: Tensor,
    word: Tensor,
    position: Tensor,
    segment: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    p: float = 0.0,
    state: Tensor | None = None,
    site: int = 0,
    eps: float = 1e-12,
    errors: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """y = dropout(LN(word[ids] + position[positions] + segment[segments])): dropout after the norm, not before it.

    ids, positions, segments  [T] int32: each token's row of the tables
    word      [V, H]     float32, bfloat16 or float16, any float on ref; their dtype is the result's, the arithmetic is
    position  [P, H]     float32
    segment   [S, H]
    gamma     [H]        the tables' dtype or float32, as is
    beta      [H]
    p         what share of the normalised elements is dropped, 0 <= p < 1, rounded to 1 / 65,536; the rest is scaled
              by 1 / (1 - p). 0 in evaluation
    state     [2] int64  seed and step, from ops.dropout.dropout_state; needed where p > 0
    site      which of the model's dropouts this is: each takes a number of its own
    eps       added to the variance
    errors    [3] int64 zeros on triton, to be read later by raise_if_bad_tokens: then nothing waits for the device, and
              a row outside its table counts as zeros. Without it, and on the other backends always, the call raises
    returns   [T, H]

    Differentiable once in tables, gamma and beta. The tables' gradients are dense, summed in float32 and without
    atomics: the same bits in every run.
    Raises UserError for wrong arguments and for a number outside its table, on cpp and ref before anything is written.
    Source: BERT's reference, modeling.py `embedding_postprocessor`; NVIDIA's BertEmbeddings.
    """
    op = "embedding_layer_norm"
    check_rank(op, "ids", ids, "T")
    for name, numbers in (("ids", ids), ("positions", positions), ("segments", segments)):
        check(op, name, numbers, ids.shape, (torch.int32,), word)
    check_rank(op, "word", word, "V H")
    for name, table in (("position", position), ("segment", segment)):
        check_rank(op, name, table, f"{name[0].upper()} H")
        check(op, name, table, (table.shape[0], word.shape[1]), (word.dtype,), word)
    for name, parameter in (("gamma", gamma), ("beta", beta)):
        check(op, name, parameter, word.shape[1:], (word.dtype, torch.float32), word)
    check_number(op, "eps", eps)
    if errors is not None:
        check(op, "errors", errors, (3,), (torch.int64,), word)
        check_contiguous(op, "errors", errors)
    threshold = check_dropout(op, p, state, site, word)
    name = resolve(EMBEDDING_LAYER_NORM, word, backend)
    tensors = (ids, positions, segments, word, position, segment, gamma, beta)
    if name == "ref":
        return embedding_layer_norm_ref(*tensors, threshold, state, site, eps)
    return EmbeddingLayerNorm.apply(*tensors, threshold, state, site, eps, errors, name)


def raise_if_bad_tokens(errors: Tensor, word: Tensor, position: Tensor, segment: Tensor) -> None:
    """Waits for the device; UserError if a call that was given `errors` met a number outside its table."""
    kind, token, found = errors.tolist()
    if kind:
        rows = (word, position, segment)[kind - 1].shape[0]
        raise UserError(_bad_token(kind - 1, token, found, rows))
