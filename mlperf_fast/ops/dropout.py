"""Dropout without masks in memory: what is kept follows from a counter, on every backend the same, bit for bit.

Ops that drop take `p`, a `state` and a `site`. Element (row, col) of their matrix is kept when its 16 random bits are
at least `threshold(p)`; they come from Philox 4x32 with 7 rounds, keyed by the state's seed and counting column group,
row, step and site. csrc/common/dropout.h and kernels/dropout.py hold the same generator in C++ and in Triton.
"""

import torch
from torch import Tensor

from mlperf_fast.errors import UserError
from mlperf_fast.ops.checks import check, check_contiguous, check_number

ROUNDS = 7  # the fewest of Philox 4x32 that pass BigCrush
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def dropout_state(seed: int, device: torch.device | str) -> Tensor:
    """[2] int64 on `device`: the seed, and the step, 0. One for a process's model, with a seed for each rank.

    The step is advanced on the device, `state[1].add_(1)`, once before each forward pass: a captured graph then draws
    anew in every replay. Between a forward and its backward it must stay; autograd refuses the backward if it didn't.
    """
    return torch.tensor([seed, 0], dtype=torch.int64, device=device)


def threshold(p: float) -> int:
    """Of 65,536: so many of an element's 16 random bits' values drop it. p is rounded to that; 0 drops nothing."""
    return min(65535, round(p * 65536))


def keep_scale(threshold: int) -> float:
    """What a kept element is multiplied by, so that the mean stays: 1 / (1 - p)."""
    return 65536 / (65536 - threshold)


def check_dropout(op: str, p: float, state: Tensor | None, site: int, like: Tensor) -> int:
    """The arguments of an op that drops; returns the threshold."""
    check_number(op, "p", p, below=1)
    if state is None:
        if threshold(p) > 0:
            raise UserError(f"{op}: p is {p}, but there is no state; make one with dropout_state(seed, device)")
        return 0
    check(op, "state", state, (2,), (torch.int64,), like)
    check_contiguous(op, "state", state)
    if not 0 <= site <= WORD:
        raise UserError(f"{op}: site is {site}, expected a number of 0 to {WORD}")
    return threshold(p)


def random_bits(state: Tensor, site: int, rows: int, cols: int, first_row: int = 0) -> Tensor:
    """[rows, cols] int64 of 0 to 65,535 in plain PyTorch: the truth that C++ and Triton are tested against."""
    groups = torch.arange((cols + 7) // 8, device=state.device).expand(rows, -1)
    row = torch.arange(first_row, first_row + rows, device=state.device).unsqueeze(1).expand_as(groups)
    words = philox(state[0], groups, row, (state[1] & WORD).expand_as(groups), torch.full_like(groups, site))
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    return torch.stack(halves, dim=-1).flatten(1)[:, :cols]


def philox(seed: Tensor, *counter: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Four words from a counter of four, each an int64 tensor of 0 to 2^32 - 1; seed one int64.

    A product wraps modulo 2^64, whatever the sign: its halves are those of the unsigned one.
    """
    x0, x1, x2, x3 = counter
    low, high = seed & WORD, seed >> 32 & WORD
    for _ in range(rounds):
        first, second = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        x0, x2 = (second >> 32 & WORD) ^ x1 ^ low, (first >> 32 & WORD) ^ x3 ^ high
        x1, x3 = second & WORD, first & WORD
        low, high = (low + KEY_STEPS[0]) & WORD, (high + KEY_STEPS[1]) & WORD
    return x0, x1, x2, x3


def dropout_ref(x: Tensor, threshold: int, state: Tensor | None, site: int, first_row: int = 0) -> Tensor:
    """x with what is dropped at 0, and the rest scaled; the first of its two dimensions is that of rows."""
    if threshold == 0 or state is None:
        return x
    rows, cols = x.shape
    return torch.where(random_bits(state, site, rows, cols, first_row) >= threshold, x * keep_scale(threshold), 0)
