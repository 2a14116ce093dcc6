"""DLRM's pairwise dot interaction: out = [dense, strict lower triangle of F F^T] with F = [dense; sparse].

B samples, T sparse features (tables), D the features' length.
"""

import torch
from torch import Tensor

from mlperf_fast import _C, _cuda
from mlperf_fast.errors import UserError
from mlperf_fast.ops.backend import CUDA_DEVICES, TRITON_DEVICES, Applies, Op, define, once_only, resolve, shortcut
from mlperf_fast.ops.checks import FLOATS, check, check_rank, native

# 1. The truth ---------------------------------------------------------------------------------------------------


def dot_interaction_ref(dense: Tensor, sparse: Tensor) -> Tensor:
    """Plain PyTorch; its gradient is autograd's."""
    features = torch.cat([dense.unsqueeze(1), sparse], dim=1)
    gram = torch.bmm(features, features.transpose(1, 2))
    i, j = torch.tril_indices(features.shape[1], features.shape[1], offset=-1, device=dense.device)
    return torch.cat([dense, gram[:, i, j]], dim=1)


# 2. Who can do it, best first, and when ---------------------------------------------------------------------------

DOT_INTERACTION = Op(
    "dot_interaction",
    {
        "cpp": Applies(("cpu",), (torch.float32, torch.bfloat16)),
        "triton": Applies(TRITON_DEVICES, FLOATS),
        "cuda": Applies(CUDA_DEVICES, FLOATS),
        "ref": Applies(),
    },
)


def _forward(dense: Tensor, sparse: Tensor, backend: str) -> Tensor:
    dense, sparse = dense.contiguous(), sparse.contiguous()
    out = _fake_forward(dense, sparse, backend)
    arguments = (*map(Tensor.data_ptr, (dense, sparse, out)), *sparse.shape)
    if backend == "cpp":
        _C.dot_interaction_fwd(*arguments, dense.dtype is torch.bfloat16)
    elif backend == "cuda":
        native(_cuda.call, _cuda.dot_interaction_fwd, dense, *arguments, FLOATS.index(dense.dtype))
    else:
        from mlperf_fast.kernels.dot_interaction import dot_interaction_fwd

        dot_interaction_fwd(dense, sparse, out)
    return out


def _backward(dense: Tensor, sparse: Tensor, dout: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    dense, sparse, dout = dense.contiguous(), sparse.contiguous(), dout.contiguous()
    ddense, dsparse = _fake_backward(dense, sparse, dout, backend)
    arguments = (*map(Tensor.data_ptr, (dense, sparse, dout, ddense, dsparse)), *sparse.shape)
    if backend == "cpp":
        _C.dot_interaction_bwd(*arguments, dense.dtype is torch.bfloat16)
    elif backend == "cuda":
        native(_cuda.call, _cuda.dot_interaction_bwd, dense, *arguments, FLOATS.index(dense.dtype))
    else:
        from mlperf_fast.kernels.dot_interaction import dot_interaction_bwd

        dot_interaction_bwd(dense, sparse, dout, ddense, dsparse)
    return ddense, dsparse


# 3. Registration: shapes without data, and the gradient ------------------------------------------------------------


def _fake_forward(dense: Tensor, sparse: Tensor, backend: str) -> Tensor:
    B, T, D = sparse.shape
    return dense.new_empty(B, D + T * (T + 1) // 2)


def _fake_backward(dense: Tensor, sparse: Tensor, dout: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return dense.new_empty(dense.shape), sparse.new_empty(sparse.shape)


_op = define("dot_interaction(Tensor dense, Tensor sparse, str backend) -> Tensor", _forward, _fake_forward)
_op_bwd = define(
    "dot_interaction_bwd(Tensor dense, Tensor sparse, Tensor dout, str backend) -> (Tensor, Tensor)",
    _backward,
    _fake_backward,
)
_dot_interaction, _dot_interaction_bwd = shortcut(_op, _forward), shortcut(_op_bwd, _backward)


class DotInteraction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dense: Tensor, sparse: Tensor, backend: str) -> Tensor:
        ctx.save_for_backward(dense, sparse)
        ctx.backend = backend
        return _dot_interaction(dense, sparse, backend)

    @staticmethod
    def backward(ctx, dout: Tensor) -> tuple[Tensor, Tensor, None]:
        once_only("dot_interaction")
        ddense, dsparse = _dot_interaction_bwd(*ctx.saved_tensors, dout, ctx.backend)
        return ddense, dsparse, None


# 4. The public function ---------------------------------------------------------------------------------------------


def dot_interaction(dense: Tensor, sparse: Tensor, *, backend: str | None = None) -> Tensor:
    """Concatenates `dense` with the dot products of all pairs of feature vectors.

    dense   [B, D]      float32 or bfloat16; float16 on cuda and triton; any float on ref
    sparse  [B, T, D]   same dtype and device, T >= 1
    returns [B, D + T (T + 1) / 2]: dense, then the pairs (1,0), (2,0), (2,1), (3,0) ... where 0 is the dense vector
            and i the sparse vector i - 1. Products are summed in float32.

    Differentiable once in both. Tensors that aren't contiguous are copied first.
    Raises UserError for wrong shapes, dtypes or devices, and for a backend that can't run here.
    Source: facebookresearch/dlrm, `interact_features` with `arch_interaction_op="dot"`, without self-interaction.
    """
    check_rank("dot_interaction", "dense", dense, "B D")
    check_rank("dot_interaction", "sparse", sparse, "B T D")
    B, T, D = dense.shape[0], sparse.shape[1], dense.shape[1]
    check("dot_interaction", "sparse", sparse, (B, T, D), (dense.dtype,), dense)
    if T < 1 or D < 1:
        raise UserError(f"dot_interaction: sparse has shape {list(sparse.shape)}, expected [B, T >= 1, D >= 1]")
    name = resolve(DOT_INTERACTION, dense, backend)
    if name == "ref":
        return dot_interaction_ref(dense, sparse)
    return DotInteraction.apply(dense, sparse, name)
