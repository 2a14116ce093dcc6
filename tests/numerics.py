"""How results are compared, on which backends, and with which inputs: the one helper of all op tests.

The rule (docs/numerics.md): against the reference in float64, a backend's error may be at most twice the error of
plain PyTorch in the same dtype, plus one smallest step of the dtype at the result's scale.
"""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from mlperf_fast import _C, _cuda
from mlperf_fast.ops.backend import INTERPRETED, LIBRARIES, OPS

EMULATED = _cuda.EMULATED
GPU = torch.cuda.is_available()
NO_TRITON = pytest.mark.skipif(not (INTERPRETED or GPU), reason="triton: no GPU, and TRITON_INTERPRET=1 is not set")
_why = _cuda.absence if GPU else "no GPU, and MLPERF_FAST_EMULATE is not set (`make emulate` sets it)"
NO_CUDA = pytest.mark.skipif(not EMULATED and (not GPU or _cuda.absence is not None), reason=f"cuda: {_why}")

# The same examples in every run; few in Triton's interpreter, where a program takes a millisecond, and in the emulator.
EXAMPLES = settings(
    deadline=None,
    derandomize=True,
    max_examples=8 if INTERPRETED or EMULATED else 30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def backends(op: str) -> list:
    """Parameters for the fixture `backend`: cpp once for each instruction set that runs here, cuda, triton."""
    levels = [pytest.param(f"cpp-{level}") for level in _C.supported_levels()]
    others = [pytest.param("cuda", marks=NO_CUDA), pytest.param("triton", marks=NO_TRITON)]
    return levels + [other for other in others if other.values[0] in OPS[op].table]


def cases(op: str) -> list:
    """Parameters (backend, dtype) for all that the op's table lists."""
    return [
        pytest.param(*p.values, dtype, marks=p.marks)
        for p in backends(op)
        for dtype in OPS[op].table[p.values[0].partition("-")[0]].dtypes or ()
    ]


def device(backend: str) -> str:
    """Where a test's tensors must lie: on the CPU wherever the backend can."""
    on_gpu = {"cuda": not EMULATED, "triton": not INTERPRETED, **dict.fromkeys(LIBRARIES, True)}
    return "cuda" if on_gpu.get(backend) else "cpu"


def slow(backend: str) -> bool:
    """Whether the backend's kernels are interpreted or emulated: milliseconds for each block of threads."""
    return {"cuda": EMULATED, "triton": INTERPRETED}.get(backend, False)


@contextmanager
def threads(n: int):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def wide(seed: int, *shape: int, dtype: torch.dtype = torch.float32, decades: int = 3) -> Tensor:
    """Both signs, magnitudes spread over `decades` powers of ten around 1, one value in eight zero."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** ((torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5) * decades)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * size
    return (x * (torch.rand(shape, generator=generator) > 0.125)).to(dtype)


LAYOUTS = ("contiguous", "strided", "unaligned")


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "strided":  # every second element of the last dimension
        return torch.stack([x, torch.full_like(x, -1)], dim=-1).flatten(-2)[..., ::2]
    if layout == "unaligned":  # one element past where the allocator's alignment would put it
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    return x.contiguous()


def compare(
    what: str, backend: str, got: Tensor, plain: Tensor, truth: Tensor, scale: Tensor | None = None, steps: int = 1
) -> None:
    """Asserts the rule at the head of this file for each element.

    got    the backend's result          plain  plain PyTorch's, in the same dtype
    truth  the reference in float64      scale  each element's scale, by default the largest value of its row (the
           first dimension). A sum whose terms may cancel passes the sum of their absolute values: no order of
           summation can promise more
    steps  the dtype's smallest steps beyond plain PyTorch's error: more than one for what was rounded several times on
           its way, where plain PyTorch may be exact by luck, on a few elements, and a backend needn't be
    """
    assert got.shape == plain.shape == truth.shape, f"{what}: shapes {got.shape}, {plain.shape}, {truth.shape}"
    assert got.dtype == plain.dtype, f"{what}: {got.dtype}, expected {plain.dtype}"
    if got.numel() == 0:
        return
    limits = torch.finfo(plain.dtype)
    got, plain, truth = (x.detach().cpu().double() for x in (got, plain, truth))
    if scale is None:
        scale = truth.abs().reshape(truth.shape[0], -1).amax(1).reshape(-1, *[1] * (truth.dim() - 1))
    scale = scale.detach().cpu().double().expand(truth.shape).clamp_min(limits.smallest_normal)
    error, plain_error = (got - truth).abs(), (plain - truth).abs()
    allowed = scale * (2 * (plain_error / scale).max() + steps * limits.eps)
    wrong = ~(error <= allowed)  # so that NaN is wrong
    if not wrong.any():
        return
    flat = int(torch.where(wrong, (error / allowed).nan_to_num(torch.inf), 0).argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), truth.shape))
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {truth.numel()} elements are too far from the reference\n"
        f"  backend {backend}, dtype {limits.dtype}, shape {list(truth.shape)}, worst at {list(index)}:\n"
        f"  found {got[index]:.9g}, expected {truth[index]:.17g} (plain PyTorch: {plain[index]:.9g})\n"
        f"  error {error[index]:.3g}, allowed {allowed[index]:.3g}"
    )
