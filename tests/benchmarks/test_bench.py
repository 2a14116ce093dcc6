"""Each benchmark runs on tiny shapes and reports what it measured; the figures themselves are nobody's to assert."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlperf_fast.benchmarks import bench_dot_interaction, bench_embedding_bag, measure, peer, shapes

ROOT = Path(__file__).parents[2]
OURS = {"memory": "tuned"}  # the column that ratios refer to, where it isn't "ours"
FEWEST_ROWS = {"embedding_bag": 3, "dot_interaction": 2, "sgd": 1, "roc_auc": 1, "overhead": 10, "memory": 2}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def results(folder: Path, stem: str) -> tuple[list[dict], list[dict]]:
    """The JSON's rows and the CSV's lines."""
    with open(folder / f"{stem}.csv", newline="") as lines:
        return json.loads((folder / f"{stem}.json").read_text())["rows"], list(csv.DictReader(lines))


def check(rows: list[dict], lines: list[dict], printed: str, ours: str) -> None:
    """Ratios in the JSON, in the CSV and on the terminal are those of the medians."""
    for row in rows:
        timings = {name: found for name, found in row["results"].items() if not isinstance(found, str)}
        peers = {name: found for name, found in timings.items() if name != ours}
        assert set(row["ratios"]) == set(peers)
        table = printed[printed.index("\n" + row["op"] + "  ") :].splitlines()
        shown = next(line for line in table if line.startswith(row["shape"]) and row["dtype"] in line)
        for name, found in timings.items():
            low, high = found["wall"][1:]
            assert 0 < low <= found["wall"][0] <= high
            ratio = found["wall"][0] / timings[ours]["wall"][0]
            line = next(x for x in lines if [x["op"], x["shape"], x["dtype"], x["competitor"]]
                        == [row["op"], row["shape"], row["dtype"], name])  # fmt: skip
            assert float(line["ratio"]) == pytest.approx(ratio, rel=1e-4)
            if name in peers:
                assert row["ratios"][name] == pytest.approx(ratio)
                assert f"{ratio:.2f}" in shown.split()


@pytest.mark.parametrize("op", FEWEST_ROWS)
def test_quick_run_reports_the_ratio_of_its_medians(op, tmp_path):
    done = run(f"bench_{op}", "--quick", "--threads", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows, lines = results(tmp_path, op)
    assert len(rows) >= FEWEST_ROWS[op]
    assert {row["threads"] for row in rows} == {1}
    check(rows, lines, done.stdout, OURS.get(op, "ours"))


def test_whole_step(tmp_path):
    done = run("steps", "--quick", "--threads", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows, lines = results(tmp_path, "steps")
    assert set(rows[0]["ratios"]) == {"plain sparse", "plain dense"}
    assert rows[0]["results"]["facebookresearch"].startswith("not run: `git clone")  # how to get it
    check(rows, lines, done.stdout, "ours")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bench_sgd", ["--threads", "0"], "expected a whole number of 1 or more, found '0'"),
        ("bench_embedding_bag", ["--fbgemm-python", "/nowhere/python"], "there is no such file: /nowhere/python"),
        ("steps", ["--dlrm-repo", "/nowhere"], "/nowhere is no checkout of facebookresearch/dlrm"),
        ("figures", ["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_exit_with_2_and_say_what_is_wrong(name, arguments, message):
    done = run(name, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


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
    row = measure.Row("op", "shape", "fp32", 1, bytes=1_000_000, flops=0, ceiling="triad", results=found)
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
