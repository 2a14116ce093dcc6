"""Self-attention of sequences of any lengths, one behind the other: dropout(softmax(q k^T / sqrt(D))) v in each.

T tokens of b sequences, H heads of D. Forward keeps its result and each row's log-sum-exp; backward computes the
probabilities again from these, and what dropout kept from a counter (ops/dropout.py): nothing of the size of the scores
is stored.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mlperf_fast import _C
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import LIBRARIES, TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import FLOATS, address, check, check_rank, native
from mlperf_fast.ops.dropout import check_dropout, dropout_ref

# 1. The truth ---------------------------------------------------------------------------------------------------


def attention_ref(
    qkv: Tensor, cu_seqlens: Tensor, scale: float, threshold: int = 0, state: Tensor | None = None, site: int = 0
) -> Tensor:
    """Plain PyTorch, sequence by sequence; its gradient is autograd's. 16-bit tensors are computed in float32."""
    T, _, H, _ = qkv.shape
    wide = torch.promote_types(qkv.dtype, torch.float32)
    bounds = cu_seqlens.tolist()
    lengths = [last - first for first, last in pairwise(bounds)]
    *sequences, rest = qkv.to(wide).split([*lengths, T - bounds[-1]])
    outs = []
    for first, L, tokens in zip(bounds, lengths, sequences, strict=False):
        q, k, v = tokens.permute(1, 2, 0, 3)  # [H, L, D] each
        p = torch.softmax(q @ k.transpose(1, 2) * scale, dim=-1).transpose(0, 1)
        p = dropout_ref(p.reshape(L * H, L), threshold, state, site, first_row=first * H).view(L, H, L)
        outs.append((p.transpose(0, 1) @ v).transpose(0, 1))
    outs.append(rest[:, 0].masked_fill(rest.new_ones((), dtype=torch.bool), 0))
    return torch.cat(outs).to(qkv.dtype)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------


def _library_asks(qkv: Tensor, dropout: bool) -> str | None:
    if dropout:
        return (
            "p isn't 0, and a library drops by its own generator, not by the counter that is the same on all backends"
        )
    if qkv.shape[-1] % 8 or qkv.shape[-1] > 256:
        return f"its heads have {qkv.shape[-1]}; libraries take multiples of 8 up to 256"
    major, minor = torch.cuda.get_device_capability(qkv.device)
    return None if major >= 8 else f"the device is of compute capability {major}.{minor}; libraries take 8.0 and newer"


# The libraries' kernels are behind Triton's, untested against them on a GPU: they can't take BERT's training, which
# drops, and one choice for training and evaluation is what a run's log can tell.
ATTENTION = Op(
    "attention",
    {
        "cpp": Applies(("cpu",), FLOATS),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "varlen_attn": Applies(("cuda",), FLOATS[1:], _library_asks),
        "flash_attn": Applies(("cuda",), FLOATS[1:], _library_asks),
        "ref": Applies(),
    },
)


def _by_library(qkv: Tensor, cu_seqlens: Tensor, longest: int, scale: float, name: str) -> Tensor:
    """By another library's op and gradient. What these leave unwritten, tokens of no sequence, becomes 0 here."""
    T, _, _, D = qkv.shape
    real = (torch.arange(T, device=qkv.device) < cu_seqlens[-1])[:, None, None]
    qkv = torch.where(real.unsqueeze(-1), qkv, 0)
    if 0 in (T, longest, cu_seqlens.shape[0] - 1):
        return qkv[:, 0]
    if name == "flash_attn":
        from flash_attn import flash_attn_varlen_qkvpacked_func

        out = flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, longest, softmax_scale=scale)
    else:
        from torch.nn.attention.varlen import varlen_attn

        given: dict[str, Any] = {} if scale == 1 / math.sqrt(D) else {"scale": scale}  # which torch 2.10 doesn't know
        q, k, v = qkv.unbind(1)
        out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, **given)
    return torch.where(real, out, 0)


def _forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    scale: float,
    threshold: int,
    state: Tensor | None,
    site: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """qkv [T, 3, H, D] -> out [T, H, D], lse [T, H] float32."""
    qkv, cu_seqlens = qkv.contiguous(), cu_seqlens.contiguous()
    out, lse = _fake_forward(qkv, cu_seqlens, longest, scale, threshold, state, site, backend)
    tensors = (qkv, cu_seqlens, out, lse)
    if backend == "cpp":
        sizes = (qkv.shape[0], *qkv.shape[2:], cu_seqlens.shape[0] - 1, longest)
        dropout = (address(state), site, threshold)
        native(_C.attention_fwd, *map(address, tensors), *sizes, scale, *dropout, FLOATS.index(qkv.dtype))
    else:
        from mlperf_fast.kernels.attention import attention_fwd

        attention_fwd(*tensors, longest, scale, state, site, threshold)
    return out, lse


def _backward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    longest: int,
    scale: float,
    threshold: int,
    state: Tensor | None,
    site: int,
    backend: str,
) -> Tensor:
    """dqkv [T, 3, H, D]."""
    qkv, cu_seqlens, dout = qkv.contiguous(), cu_seqlens.contiguous(), dout.contiguous()
    dqkv = torch.empty_like(qkv)
    tensors = (qkv, cu_seqlens, out, lse, dout, dqkv)
    if backend == "cpp":
        sizes = (qkv.shape[0], *qkv.shape[2:], cu_seqlens.shape[0] - 1, longest)
        dropout = (address(state), site, threshold)
        native(_C.attention_bwd, *map(address, tensors), *sizes, scale, *dropout, FLOATS.index(qkv.dtype))
    else:
        from mlperf_fast.kernels.attention import attention_bwd

        attention_bwd(*tensors, longest, scale, state, site, threshold)
    return dqkv


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_forward(qkv, cu_seqlens, longest, scale, threshold, state, site, backend):
    T, _, H, D = qkv.shape
    return qkv.new_empty(T, H, D), qkv.new_empty(T, H, dtype=torch.float32)


def _fake_backward(qkv, cu_seqlens, out, lse, dout, longest, scale, threshold, state, site, backend):
    return qkv.new_empty(qkv.shape)


_op = define(
    "attention(Tensor qkv, Tensor cu_seqlens, int longest, float scale, int threshold, Tensor? state, int site, "
    "str backend) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
)
_op_bwd = define(
    "attention_bwd(Tensor qkv, Tensor cu_seqlens, Tensor out, Tensor lse, Tensor dout, int longest, float scale, "
    "int threshold, Tensor? state, int site, str backend) -> Tensor",
    _backward,
    _fake_backward,
)
_attention, _attention_bwd = shortcut(_op, _forward), shortcut(_op_bwd, _backward)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cu_seqlens, longest, scale, threshold, state, site, backend):
        out, lse = _attention(qkv, cu_seqlens, longest, scale, threshold, state, site, backend)
        ctx.save_for_backward(qkv, cu_seqlens, out, lse, state)
        ctx.arguments = longest, scale, threshold, site, backend
        return out

    @staticmethod
    def backward(ctx, dout):
        once_only("attention")
        qkv, cu_seqlens, out, lse, state = ctx.saved_tensors
        longest, scale, threshold, site, backend = ctx.arguments
        dqkv = _attention_bwd(qkv, cu_seqlens, out, lse, dout, longest, scale, threshold, state, site, backend)
        return dqkv, *[None] * 7


# 4. The public function ---------------------------------------------------------------------------------------------


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    *,
    p: float = 0.0,
    state: Tensor | None = None,
    site: int = 0,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """out = dropout(softmax(scale q k^T)) v, each token's query with the keys of its own sequence.

    qkv         [T, 3, heads, D]  queries, keys and values of T tokens, as one product makes them: float32, bfloat16 or
                                  float16; any float on ref. Its dtype is the result's; the arithmetic is float32
    cu_seqlens  [b + 1] int32     sequence i has the tokens cu_seqlens[i] .. cu_seqlens[i + 1]: 0 first, then never less
                                  than before, at most T. Tokens of no sequence, behind the last: output and gradient 0
    longest     no sequence has more tokens; on the host, so that no launch waits for the device
    p           what share of the probabilities is dropped, 0 <= p < 1, rounded to 1 / 65,536; the rest is scaled by
                1 / (1 - p). 0 in evaluation
    state       [2] int64         seed and step, from ops.dropout.dropout_state; needed where p > 0
    site        which of the model's dropouts this is: each takes a number of its own
    scale       of the scores; by default 1 / sqrt(D)
    returns     [T, heads, D]

    Backends varlen_attn and flash_attn, a library's each, take p = 0, 16-bit tensors, and D a multiple of 8 up to 256,
    and run where they are named: dropout of their own would not be that of the others.
    Differentiable once in qkv. Dropout's matrix has a row for each token and head, token * heads + head, and a column
    for each place in the token's sequence; its choice is the same on every backend.
    Raises UserError for wrong shapes, dtypes or devices, and for a backend that can't run here; cpp also for wrong
    contents of cu_seqlens, naming the sequence. Kernels on a GPU can't ask: they cut what lies outside of qkv, and
    leave out what is beyond `longest`.
    Source: BERT's BertSelfAttention; kept for backward as in FlashAttention (Dao et al., 2022).
    """
    op = "attention"
    check_rank(op, "qkv", qkv, "T 3 heads D")
    _, three, H, D = qkv.shape
    if three != 3 or H < 1 or D < 1:
        raise UserError(f"{op}: qkv has shape {list(qkv.shape)}, expected [T, 3, heads >= 1, D >= 1]")
    check_rank(op, "cu_seqlens", cu_seqlens, "b+1")
    check(op, "cu_seqlens", cu_seqlens, (max(1, cu_seqlens.shape[0]),), (torch.int32,), qkv)
    if not isinstance(longest, int) or longest < 0:
        raise UserError(f"{op}: longest is {longest!r}, expected a whole number of 0 or more")
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    threshold = check_dropout(op, p, state, site, qkv)
    name = resolve(ATTENTION, qkv, backend, dropout=threshold > 0)
    if name == "ref":
        return attention_ref(qkv, cu_seqlens, scale, threshold, state, site)
    if name in LIBRARIES:
        return _by_library(qkv, cu_seqlens, longest, scale, name)
    return Attention.apply(qkv, cu_seqlens, longest, scale, threshold, state, site, name)
