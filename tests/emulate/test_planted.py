"""The emulator finds planted mistakes, at their line, and has nothing to say of the same kernels without them."""

import re
import subprocess
from pathlib import Path

import pytest
from emulated import KINDS, build_program, environment

HERE = Path(__file__).parent / "planted"

# name -> the build that must find it, and what it says. What the scheduler finds, every build does.
RACE, SANITIZE = "race", "sanitize"
UNPLACED = {"misaligned_vector", "tile_misaligned", "tile_in_branch", "too_many_threads", "no_blocks"}
UNWRITTEN = "reads shared memory that nobody has written in this block"
PLANTED = {
    "barrier_missing": (RACE, r"shared memory that thread \d+ has \w+, and no barrier orders the two"),
    "barrier_missing_before_reuse": (RACE, r"shared memory that thread \d+ has \w+, and no barrier orders the two"),
    "barrier_missing_in_warp": (RACE, r"shared memory that thread \d+ has \w+, and no barrier orders the two"),
    "barrier_in_branch": (SANITIZE, r"waits at __syncthreads.* but thread \(\d+,0,0\) has ended"),
    "barrier_in_both_branches": (SANITIZE, r"comes to __syncthreads.* but thread \(\d+,0,0\) waits at __syncthreads"),
    "barrier_after_return": (SANITIZE, r"waits at __syncthreads.* but thread \(70,0,0\) has ended"),
    "read_outside_tensor": (SANITIZE, r"heap-buffer-overflow.*\nREAD of size 4"),
    "write_outside_shared": (SANITIZE, r"global-buffer-overflow.*\nWRITE of size 4"),
    "index_outside_shared": (SANITIZE, r"index 64 out of bounds for type .float \[64\]"),
    "write_outside_dynamic_shared": (SANITIZE, r"heap-buffer-overflow.*\nWRITE of size 4"),
    "read_of_unwritten_shared": (RACE, UNWRITTEN),
    "read_of_unwritten_dynamic_shared": (RACE, UNWRITTEN),
    "index_overflow": (SANITIZE, r"signed integer overflow: 40000000 \* 128 cannot be represented in type .int."),
    "misaligned_vector": (SANITIZE, "misaligned address .* which requires 16 byte alignment"),
    "shuffle_mask_without_caller": (
        SANITIZE,
        r"lane \d calls __shfl_xor_sync, but its mask 0x0000ff00 doesn't name it",
    ),
    "shuffle_in_branch": (SANITIZE, r"waits at __shfl_sync\(0xffffffff\).* but thread .* waits at __syncwarp"),
    "shuffle_from_absent_lane": (
        SANITIZE,
        r"__shfl_down_sync reads lane 8, which doesn't take part \(mask 0x000000ff\)",
    ),
    "ballot_with_two_masks": (SANITIZE, r"waits at __ballot_sync\(0xffffffff\).* but .* waits at __ballot_sync"),
    "tile_misaligned": (SANITIZE, "ldmatrix of a row that doesn't begin at a multiple of 16 bytes"),
    "tile_in_branch": (SANITIZE, r"mma reads lane \d+, which doesn't take part"),
    "blocks_write_one_place": (RACE, r"thread 0 of another block has \w+, and no fence and atomic order the two"),
    "last_block_without_fence": (RACE, "thread 0 of another block has written, and no fence and atomic order the two"),
    "atomic_and_plain": (RACE, r"reads global memory that thread \d+ has atomically updated"),
    "too_many_threads": (SANITIZE, "launch of empty_kernel: invalid configuration, 1025 threads a block"),
    "no_blocks": (SANITIZE, r"launch of empty_kernel: invalid configuration, a grid of \(0,1,1\) blocks"),
}


def run(kind: str, name: str, form: str, seed: int = 0) -> subprocess.CompletedProcess:
    program = build_program(kind, HERE)
    variables = {**environment(kind), "MLPERF_FAST_EMULATE_SEED": str(seed)}
    return subprocess.run([program, name, form], env=variables, capture_output=True, text=True, check=False)


def places() -> dict[str, str]:
    """name -> "file:line" of the comment "here: name"."""
    return {
        match[1]: f"{file.name}:{number}"
        for file in HERE.glob("*.cu")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if (match := re.search(r"// here: (\w+)", line))
    }


@pytest.mark.parametrize("name", PLANTED)
def test_the_mistake_is_found_where_it_is(name):
    kind, message = PLANTED[name]
    for seed in range(3 if kind == RACE else 1):  # whatever the order of threads
        answer = run(kind, name, "bug", seed)
        assert answer.returncode == 1, (seed, answer)
        assert re.search(message, answer.stderr), answer.stderr
        if name in places():
            assert re.search(rf"{places()[name]}\b", answer.stderr), answer.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kernels_without_it_pass(kind):
    for name in PLANTED:
        answer = run(kind, name, "correct")
        assert answer.returncode == 0, (name, answer.stderr)
        assert answer.stderr == ""


def test_every_planted_mistake_is_looked_for():
    assert set(PLANTED) == set(re.findall(r"PLANTED\((\w+)\),", (HERE / "main.cu").read_text()))
    assert set(places()) == set(PLANTED) - UNPLACED


def test_the_order_of_threads_comes_from_the_seed():
    first, again, other = (run("race", "barrier_missing", "bug", seed).stderr for seed in (1, 1, 2))
    assert first == again != other
