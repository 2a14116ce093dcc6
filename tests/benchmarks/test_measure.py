"""The timing protocol, competitors in other processes, and the machine's limits."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mlperf_fast.benchmarks import (
    bench_dot_interaction,
    bench_embedding_bag,
    ceilings,
    machine,
    measure,
    peer,
    shapes,
)

ROOT = Path(__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_peer_that_fails_becomes_a_text_in_the_table(tmp_path):
    script = tmp_path / "bad.py"
    script.write_text("import sys; sys.exit('no such library')")
    with pytest.raises(peer.PeerError, match="ended with status 1"):
        peer.Peer([sys.executable, str(script)]).prepare(threads=1)
    serving = "from mlperf_fast.benchmarks.peer import serve; serve(lambda case: 1 / 0)"
    child = peer.Peer([sys.executable, "-c", serving])
    with pytest.raises(peer.PeerError, match="ZeroDivisionError"):
        child.prepare(threads=1)
    child.close()
    assert child.process.returncode == 0


def test_a_peer_needs_nothing_of_this_package(tmp_path):
    """In an interpreter without site-packages it answers, with the error of the first import that fails."""
    module = ROOT / "benchmarks" / "peer_fbgemm.py"
    program = [sys.executable, "-I", "-S", *peer.command("", module.stem)[1:]]
    answer = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "No module named 'numpy'" in answer.stderr  # its own first import: those within the folder worked
    assert f'"{module}"' in answer.stderr


def test_a_peer_times_itself_and_keeps_print_out_of_the_answers():
    body = "lambda number: (print('noise'), time.sleep(0.01))"
    serving = "import time; from mlperf_fast.benchmarks.peer import serve; "
    child = peer.Peer([sys.executable, "-c", serving + f"serve(lambda case: ({body}, 'version ' + case['name']))"])
    assert child.prepare(name="7") == "version 7"
    wall, cpu = child.sample(0, 3)
    assert wall >= 0.03 > cpu
    child.close()


def test_peers_interleave_and_rotate_inputs():
    seen = {"ours": [], "peer": []}
    candidates = {name: measure.Local(calls.append) for name, calls in seen.items()}
    found = measure.compare({**candidates, "absent": "not run: pip install it"}, measure.QUICK)
    assert found["absent"] == "not run: pip install it"
    row = measure.Row("op", "shape", "fp32", 1, bytes=1_000_000, flops=0, ceiling="triad", results=found, ours="ours")
    assert row.ratio("peer") == found["peer"].ms / found["ours"].ms
    assert row.ratio("absent") is None
    assert row.rate("ours") == pytest.approx(1e6 / (found["ours"].ms * 1e-3) / 1e9)
    for calls in seen.values():  # each call gets the next input
        assert {0, 1, 2} <= set(calls)


def test_rotation_exceeds_twice_the_cache():
    assert measure.rotation(10 << 20, cache=32 << 20) == 7
    assert measure.rotation(300 << 20, cache=32 << 20) == 1  # one set is enough
    assert measure.rotation(1 << 10, cache=32 << 20) == 32
    assert measure.rotation(600 << 20, cache=600 << 20) == 1  # memory allows no second one


def test_bytes_and_flops_follow_the_headers():
    case = bench_embedding_bag.Case("sgd", batch=2, rows=52, dim=4)
    ids = np.zeros((2, 26, 1), np.int32)  # 52 ids, 26 distinct rows
    assert bench_embedding_bag.work(case, case.table_rows(), ids) == (
        4 * 4 * (52 + 52) + 4 * 52 + 4 * 4 * (2 * 26 + 52) + 4 * 52,
        4 * 52 + 4 * (52 + 2 * 26),
    )
    work = bench_dot_interaction.work(bench_dot_interaction.Case(3, dim=8))
    assert work == (
        4 * 3 * (3 * 27 * 8 + 2 * (8 + 351)),
        6 * 3 * 351 * 8,
    )


def test_criteo_sizes_fill_what_they_may():
    rows = shapes.criteo_rows(1_000_000)
    assert (len(rows), sum(rows), max(rows), min(rows)) == (26, 999_997, 109_854, 3)
    assert sum(shapes.demo_rows()) == 24_252


def test_a_sample_begins_and_ends_with_a_wait_for_the_device(monkeypatch):
    events = []
    monkeypatch.setattr(measure, "synchronize", lambda: events.append("wait"))
    measure.Local(events.append).sample(5, 2)
    assert events == ["wait", 5, 6, "wait"]


def test_a_competitor_that_breaks_half_way_leaves_the_others_alone():
    def breaks_at_20(number):
        if number > 20:
            raise RuntimeError("out of memory\nand more")

    candidates = {"ours": measure.Local(lambda number: None), "bad": measure.Local(breaks_at_20)}
    found = measure.compare(candidates, measure.QUICK)
    assert found["bad"] == "failed: RuntimeError: out of memory"
    assert found["ours"].samples >= measure.QUICK.fewest_rounds


def test_limits_of_both_kinds_of_device():
    """A GPU's limits are computed by the same functions, here on the CPU's tensors."""
    assert set(ceilings.measure(CPU, quick=True)) == {"triad", "gather", "gemm", "bf16-gemm"}
    assert ceilings.stream(CPU) == "triad"
    assert ceilings.stream(CUDA) == "copy"
    assert set(ceilings.NAMES["cuda"]) == {"copy", "gather", "gemm", "tf32-gemm", "bf16-gemm"}
    for name in ceilings.NAMES["cuda"]:
        assert ceilings._MEASURES[name](CPU, True) > 0
        assert ceilings.UNITS[name] in ("GB/s", "GFLOP/s")
    assert torch.get_float32_matmul_precision() == "highest", "tf32 is for the one limit alone"


def test_a_gpus_limit_is_the_median_of_long_tries(monkeypatch):
    clock, calls = iter(range(1_000_000)), []
    monkeypatch.setattr(ceilings.time, "perf_counter", lambda: next(clock) * 0.001)  # each try takes 1 ms
    rate = ceilings._giga_per_second(1_000_000, CUDA, lambda: calls.append(1), tries=3)
    assert len(calls) == 2 + 3 * 10  # once to set up, once to see how long, then 10 ms a try by that
    assert rate == pytest.approx(10 * 1e6 / 1e-3 / 1e9)


def test_a_gpu_names_the_machine_and_sizes_the_rotation(monkeypatch):
    """What is read of a device's properties, on one that is made up."""
    card = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=85 * 10**9,
        L2_cache_size=50 << 20,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card.name)
    assert machine.name(CUDA) == "nvidia-h100-80gb-hbm3"
    assert machine.cache_bytes(CUDA) == 50 << 20
    header = machine.header(CUDA)
    assert (header["device"], header["GPU"], header["compute capability"]) == ("cuda", card.name, "9.0")
    assert "GPU" not in machine.header(CPU)
    assert machine.name(CPU) != machine.name(CUDA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_whole_command_on_a_gpu(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mlperf_fast", "bench", "--quick", "--device", "cuda", "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for op in ("sgd", "dot_interaction", "embedding_bag"):
        found = json.loads((tmp_path / f"{op}.json").read_text())
        assert found["machine"] == machine.name(CUDA)
        assert set(found["ceilings"]) <= set(ceilings.NAMES["cuda"])
        for row in found["rows"]:
            assert row["ours"] in ("cuda", "triton")
            assert isinstance(row["results"][row["ours"]], dict)
            assert isinstance(row["results"]["ref"], dict)
            assert row["results"]["cpp"].startswith("not run: ")
