"""Each benchmark runs on tiny shapes and reports what it measured; the figures themselves are nobody's to assert."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OURS = {"memory": "tuned"}  # the column that ratios refer to, where it isn't "ours"
FEWEST_ROWS = {"embedding_bag": 3, "dot_interaction": 2, "sgd": 1, "roc_auc": 1, "overhead": 10, "memory": 2}


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


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
    done = run(f"bench_{op}.py", "--quick", "--threads", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows, lines = results(tmp_path, op)
    assert len(rows) >= FEWEST_ROWS[op]
    assert {row["threads"] for row in rows} == {1}
    check(rows, lines, done.stdout, OURS.get(op, "ours"))


def test_whole_step(tmp_path):
    done = run("steps.py", "--quick", "--threads", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows, lines = results(tmp_path, "steps")
    assert set(rows[0]["ratios"]) == {"plain sparse", "plain dense"}
    assert rows[0]["results"]["facebookresearch"].startswith("not run: `git clone")  # how to get it
    check(rows, lines, done.stdout, "ours")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("bench_sgd.py", ["--threads", "0"], "expected a whole number of 1 or more, found '0'"),
        ("bench_embedding_bag.py", ["--fbgemm-python", "/nowhere/python"], "there is no such file: /nowhere/python"),
        ("steps.py", ["--dlrm-repo", "/nowhere"], "/nowhere is no checkout of facebookresearch/dlrm"),
        ("figures.py", ["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_bad_arguments_exit_with_2_and_say_what_is_wrong(script, arguments, message):
    done = run(script, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def modules(monkeypatch):
    """The benchmarks' own modules, which their scripts import by bare name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield __import__
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_peer_that_fails_becomes_a_text_in_the_table(modules, tmp_path):
    peer = modules("peer")
    script = tmp_path / "bad.py"
    script.write_text("import sys; sys.exit('no such library')")
    with pytest.raises(peer.PeerError, match="ended with status 1"):
        peer.Peer([sys.executable, str(script)]).prepare(threads=1)
    serving = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); from peer import serve; serve(lambda case: 1 / 0)"
    child = peer.Peer([sys.executable, "-c", serving])
    with pytest.raises(peer.PeerError, match="ZeroDivisionError"):
        child.prepare(threads=1)
    child.close()
    assert child.process.returncode == 0


def test_a_peer_times_itself_and_keeps_print_out_of_the_answers(modules):
    peer = modules("peer")
    body = "lambda number: (print('noise'), time.sleep(0.01))"
    serving = f"import sys, time; sys.path.insert(0, {str(BENCHMARKS)!r}); from peer import serve; "
    child = peer.Peer([sys.executable, "-c", serving + f"serve(lambda case: ({body}, 'version ' + case['name']))"])
    assert child.prepare(name="7") == "version 7"
    wall, cpu = child.sample(0, 3)
    assert wall >= 0.03 > cpu
    child.close()


def test_peers_interleave_and_rotate_inputs(modules):
    measure = modules("measure")
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


def test_rotation_exceeds_twice_the_cache(modules):
    rotation = modules("measure").rotation
    assert rotation(10 << 20, cache=32 << 20) == 7
    assert rotation(300 << 20, cache=32 << 20) == 1  # one set is enough
    assert rotation(1 << 10, cache=32 << 20) == 32
    assert rotation(600 << 20, cache=600 << 20) == 1  # memory allows no second one


def test_bytes_and_flops_follow_the_headers(modules):
    import numpy as np

    bags = modules("bench_embedding_bag")
    case = bags.Case("sgd", batch=2, rows=52, dim=4)
    ids = np.zeros((2, 26, 1), np.int32)  # 52 ids, 26 distinct rows
    assert bags.work(case, case.table_rows(), ids) == (
        4 * 4 * (52 + 52) + 4 * 52 + 4 * 4 * (2 * 26 + 52) + 4 * 52,
        4 * 52 + 4 * (52 + 2 * 26),
    )
    dots = modules("bench_dot_interaction")
    assert dots.work(dots.Case(3, dim=8)) == (4 * 3 * (3 * 27 * 8 + 2 * (8 + 351)), 6 * 3 * 351 * 8)


def test_criteo_sizes_fill_what_they_may(modules):
    shapes = modules("shapes")
    rows = shapes.criteo_rows(1_000_000)
    assert (len(rows), sum(rows), max(rows), min(rows)) == (26, 999_997, 109_854, 3)
    assert sum(shapes.demo_rows()) == 24_252
