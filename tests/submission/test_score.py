"""`score` gives the official scores to the last digit, and tells time apart from epochs and speed."""

import csv
import io
import json
import math
import shutil

import closed_logs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlperf_logging.result_summarizer import result_summarizer
from result_logs import without

from mlperf_fast.errors import UserError
from mlperf_fast.submission import score
from mlperf_fast.submission.folders import benchmark_folder
from mlperf_fast.submission.logs import Log, read_logs
from mlperf_fast.suite import BENCHMARKS

PUBLISHED = {
    "resnet": "28.685", "unet3d": "23.819", "ssd": "84.397", "maskrcnn": "43.713",
    "rnnt": "30.806", "bert": "18.442", "dlrm": "1.697", "minigo": "273.140",
}  # fmt: skip


def the_score(path):
    ((one,),) = score.scores([str(path)])
    return one


def test_the_published_scores_of_a_real_machine(samples, capsys):
    assert score.main([str(samples.parent)]) == 0
    out = capsys.readouterr().out.splitlines()
    printed = {line.split()[1]: line.split()[5] for line in out[2 : out.index("")]}
    assert printed == PUBLISHED


def test_scores_are_the_summarizers_to_the_last_bit(samples, tmp_path, quick_official):
    root = shutil.copytree(samples, tmp_path / "results", copy_function=shutil.copyfile)
    ((*ours,),) = score.scores([str(root)])
    assert {one.benchmark for one in ours} == set(PUBLISHED)
    for one in ours:
        official, _, _ = result_summarizer._compute_strong_score_standalone(
            one.benchmark, one.system, False, one.folder, "training", "2.0.0"
        )
        assert one.minutes == official


@given(
    times=st.lists(st.floats(0.01, 1e5), max_size=45),
    failed=st.integers(0, 6),
    dropped=st.sampled_from([1, 4]),
)
def test_olympic_mean_is_the_summarizers(times, failed, dropped):
    official = None
    if failed <= dropped:
        official = result_summarizer._compute_olympic_average(list(times), failed, dropped)
    assert score.olympic_minutes(times, failed, dropped) == official


def test_olympic_mean_by_hand():
    assert score.olympic_minutes([9, 1, 5, 3, 4], 0, 1) == 4
    assert score.olympic_minutes([9, 1, 5, 3], 1, 1) == pytest.approx(17 / 3)  # the failed run is the slowest
    assert score.olympic_minutes([9, 1, 5], 2, 1) is None
    assert score.olympic_minutes(range(36), 4, 4) == pytest.approx(19.5)  # 4 to 35: the four failed are the slow ones


@pytest.mark.parametrize(
    ("benchmark", "batch", "epochs", "trained"),
    [
        ("resnet", 4096, 40, 40 * 1_281_167),
        ("retinanet", 256, 4, 4 * 1_170_301),
        ("unet3d", 80, 1600, 1600 * 168),
        ("bert", 448, 2_700_000, 2_700_000),
        ("dlrm", 65536, 1.9, 0.9 * 4_195_197_692),
    ],
)
def test_time_is_samples_over_speed(tmp_path, benchmark, batch, epochs, trained):
    system = tmp_path / "results/petrel"
    closed_logs.folder(system / "x", benchmark, batch=batch, epochs=(epochs,), minutes=(20.0,))
    one = the_score(system)
    assert (one.minutes, one.valid, one.failed) == (20, True, 0)
    assert one.epochs == pytest.approx(epochs)
    assert one.samples_per_second == pytest.approx(trained / 1200)
    assert one.accelerators is None
    closed_logs.description(tmp_path / "systems/petrel.json", number_of_nodes="3", accelerators_per_node="4")
    one = the_score(system)
    assert one.accelerators == 12
    assert one.samples_per_second_per_accelerator == pytest.approx(trained / 1200 / 12)


def test_failures_count_as_slowest_up_to_the_allowance(tmp_path):
    minutes = (10, 20, 30, 40, 1)
    one = the_score(closed_logs.folder(tmp_path / "a", minutes=minutes, failed=1))
    assert (one.minutes, one.failed, one.valid) == (30, 1, True)  # 20, 30, 40
    assert (one.fastest, one.slowest) == (10, 40)
    one = the_score(closed_logs.folder(tmp_path / "b", minutes=minutes, failed=2))
    assert (one.minutes, one.failed, one.valid, one.epochs) == (None, 2, False, None)
    assert "2 runs failed, where 1 may" in one.notes[0]
    one = the_score(closed_logs.folder(tmp_path / "c", "unet3d", batch=80, epochs=(1600,), failed=4))
    assert one.valid
    one = the_score(closed_logs.folder(tmp_path / "d", "unet3d", batch=80, epochs=(1600,), failed=5))
    assert not one.valid


def test_a_log_that_fails_the_compliance_check_is_a_failed_run(tmp_path):
    folder = closed_logs.folder(tmp_path, minutes=(10, 20, 30, 40, 50))
    first = folder / "result_0.txt"
    first.write_bytes(b"\n".join(without("cache_clear")(first.read_bytes().splitlines())))
    one = the_score(folder)
    assert (one.minutes, one.failed) == (40, 1)


def test_a_run_that_says_aborted_failed_in_open_too(tmp_path, write_log):
    for i in range(5):
        write_log(tmp_path / f"result_{i}.txt", "dlrm", "aborted" if i < 2 else "success")
    assert the_score(tmp_path).minutes is None


def test_fewer_runs_are_no_score_to_submit(tmp_path):
    one = the_score(closed_logs.folder(tmp_path, runs=4, minutes=(10, 20, 30, 40)))
    assert (one.minutes, one.valid) == (25, False)
    assert "4 runs where exactly 5 are demanded" in one.notes[0]
    assert score.main([str(tmp_path)]) == 1


def made(number, minutes):
    """A converged log, or one that isn't, that started as the number-th."""
    base = {"path": f"r{number}", "findings": (), "benchmark": "resnet", "division": "closed", "started": number * 1e6}
    if minutes is None:
        return Log(**base)
    return Log(**base, complies=True, outcome="success", stopped=number * 1e6 + minutes * 60e3, converged_at=40)


def test_of_more_runs_the_median_window_counts():
    #          windows of five:      11          10           9           8     (each without its fastest and slowest)
    logs = [made(i, minutes) for i, minutes in enumerate([13, 12, 11, 10, 9, 8, 7, 6])]
    window = score.median_window(list(reversed(logs)), 5, 1)
    assert [log.path for log in window] == ["r1", "r2", "r3", "r4", "r5"]  # the slower of the two in the middle
    spoilt = [*logs[:3], made(3, None), made(4, None), *logs[5:]]  # every window holds both: none has a score
    assert score.median_window(spoilt, 5, 1)[0].path
    assert the_score_of(spoilt).minutes is None
    one = the_score_of(logs)
    assert (one.runs, one.minutes, one.valid) == (8, 10, True)
    assert "the median score counts: that of r1 r2 r3 r4 r5" in one.notes[0]


def the_score_of(logs):
    from mlperf_fast.submission.folders import Folder

    return score.score(Folder("folder", tuple(log.path for log in logs), "system", None), logs)


def test_scaling_is_said_and_not_applied(tmp_path):
    closed_logs.folder(tmp_path)
    (tmp_path / "scaling.json").write_text('{"scaling_factor": 1.5}')
    one = the_score(tmp_path)
    assert (one.minutes, one.scaling_factor) == (30, 1.5)
    assert "the score would be 45.000" in one.notes[0]
    for junk in ("", "[]", '{"scaling_factor": "x"}', '{"scaling_factor": NaN}', "[" * 5000):
        (tmp_path / "scaling.json").write_text(junk)
        assert the_score(tmp_path).scaling_factor is None


def test_mixed_and_nameless_logs_have_no_score(tmp_path):
    closed_logs.folder(tmp_path / "a", runs=5)
    closed_logs.write(tmp_path / "a/result_4.txt", "retinanet", batch=256, epochs=4)
    assert the_score(tmp_path / "a").minutes is None
    (tmp_path / "b").mkdir()
    (tmp_path / "b/result_0.txt").write_text("nothing\n")
    one = the_score(tmp_path / "b")
    assert (one.minutes, one.benchmark) == (None, None)
    assert "no benchmark of v2.0" in one.notes[0]


def test_logs_are_the_same_read_in_one_process_or_several(samples):
    paths = [str(path) for path in sorted(samples.glob("*/*/result_*.txt"))][:40]
    assert read_logs(paths, 1) == read_logs(paths, 2)


# --- the command ----------------------------------------------------------------------------------------------------


def test_csv_and_json_hold_all_digits(tmp_path, capsys):
    closed_logs.folder(tmp_path / "results/petrel/resnet", minutes=(10, 20, 20, 21, 30))
    closed_logs.description(tmp_path / "systems/petrel.json")
    assert score.main([str(tmp_path)], "json") == 0
    (row,) = json.loads(capsys.readouterr().out)["scores"]
    assert row["minutes"] == pytest.approx(61 / 3)
    assert score.main([str(tmp_path)], "csv") == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert float(line["minutes"]) == row["minutes"]
    assert (line["benchmark"], line["system"], line["accelerators"]) == ("resnet", "petrel", "4")


def test_two_systems_side_by_side(tmp_path, capsys):
    left = closed_logs.folder(tmp_path / "a/resnet", minutes=(30.0,), epochs=(40,))
    closed_logs.folder(tmp_path / "a/ssd", "retinanet", batch=256, epochs=(4,))
    closed_logs.folder(tmp_path / "b/resnet", minutes=(45.0,), epochs=(48,))
    assert score.main([str(tmp_path / "a"), str(tmp_path / "b")], compare=True) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["resnet", "minutes", "30.000", "45.000", "1.500"] in lines
    assert ["resnet", "epochs", "40.00", "48.00", "1.200"] in lines
    speed = next(line for line in lines if line[:2] == ["resnet", "samples/s"])
    assert speed[-1] == "0.800"  # time is epochs over speed: 1.2 / 0.8
    assert not any(line[:1] == ["ssd"] for line in lines)
    assert score.main([str(left), str(tmp_path / "b")], "json", compare=True) == 0
    (row,) = json.loads(capsys.readouterr().out)["scores"]
    assert row["minutes_ratio"] == 1.5


@pytest.mark.parametrize(
    ("paths", "compare", "message"),
    [
        (["absent"], False, "absent: no such folder"),
        (["empty"], False, "no result_"),
        (["file"], False, "a file; name its folder"),
        (["logs"], True, "--compare takes two folders, found 1"),
        (["logs", "other"], True, "no benchmark in common"),
        (["two", "logs"], True, "one resnet on each side"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, paths, compare, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    closed_logs.folder(tmp_path / "logs", runs=1)
    closed_logs.folder(tmp_path / "other", "retinanet", batch=256, epochs=(4,), runs=1)
    for name in ("x", "y"):
        closed_logs.folder(tmp_path / "two" / name, runs=1)
    with pytest.raises(UserError, match=message):
        score.main(paths, compare=compare)


def test_a_loop_of_links_ends(tmp_path):
    closed_logs.folder(tmp_path / "results/petrel/resnet", runs=1)
    (tmp_path / "results/loop").symlink_to(tmp_path)
    (tmp_path / "results/self").symlink_to(tmp_path / "results/self")
    ((one,),) = score.scores([str(tmp_path)])
    assert one.runs == 1


def test_logs_are_in_the_order_of_their_numbers(tmp_path):
    for i in (10, 2, 0, 1):
        closed_logs.write(tmp_path / f"result_{i}.txt")
    names = [path.rsplit("_", 1)[1] for path in benchmark_folder(str(tmp_path)).logs]
    assert names == ["0.txt", "1.txt", "2.txt", "10.txt"]


def test_every_benchmark_has_a_published_score():
    assert set(PUBLISHED) == {bench.log_name for bench in BENCHMARKS.values()}
    assert all(math.isfinite(float(value)) for value in PUBLISHED.values())
