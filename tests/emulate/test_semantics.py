"""What the emulator makes of CUDA's functions is what CUDA's manuals say."""

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated import KINDS, build_program, environment

FOLDER = Path(__file__).parent / "semantics"


@pytest.mark.parametrize("kind", KINDS)
def test_warp_functions_votes_and_atomics(kind):
    answer = subprocess.run(
        [build_program(kind, FOLDER), "warps"], env=environment(kind), capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr


def test_sixteen_bit_numbers_round_as_torchs():
    every_half = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    wide = (
        torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0)).int().view(torch.float32)
    )
    halfway = (every_half[:31743] + every_half[1:31744]) / 2  # between two neighbours: the even one wins
    x = torch.cat([every_half, wide, halfway, -halfway, halfway.nextafter(torch.tensor(0.0))])
    answer = subprocess.run(
        [build_program("ucontext", FOLDER), "conversions"], input=x.numpy().tobytes(), capture_output=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    record = np.dtype([("half", "u2"), ("bfloat16", "u2"), ("from_half", "f4"), ("from_bfloat16", "f4")])
    assert record.itemsize == struct.calcsize("HHff")
    found = np.frombuffer(answer.stdout, record)
    assert len(found) == len(x)
    numbers = ~x.isnan().numpy()
    for name, dtype in (("half", torch.float16), ("bfloat16", torch.bfloat16)):
        expected = x.to(dtype)
        bits = expected.view(torch.int16).numpy().view("u2")
        np.testing.assert_array_equal(found[name][numbers], bits[numbers])
        np.testing.assert_array_equal(found[f"from_{name}"], expected.float().numpy())  # NaN stays NaN
