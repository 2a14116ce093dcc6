"""Convergence against the reference: the installed checker's verdicts to the last bit, and those of v2.0's deadline."""

import io
import json
import logging
import math
import re

import closed_logs
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from mlperf_logging.rcp_checker import rcp_checker

from mlperf_fast.errors import UserError
from mlperf_fast.submission import check, convergence, rcp, score
from mlperf_fast.submission.logs import read_logs
from mlperf_fast.suite import BENCHMARKS

TESTED = [bench for bench in BENCHMARKS.values() if bench.name != "minigo"]
ALL = pytest.mark.parametrize("bench", TESTED, ids=lambda b: b.name)


@pytest.fixture(autouse=True)
def working_official_checker(monkeypatch):
    """It lacks dlrm's run count, and with `set_scaling` off it looks for a file at the root of the file system."""
    monkeypatch.setitem(rcp_checker.submission_runs["training"], "dlrm", 5)
    monkeypatch.setattr(rcp_checker.RCP_Checker, "_reset_results_scaling", lambda *_: None)
    monkeypatch.setattr(logging.getLogger(), "level", logging.CRITICAL)


def official(bench, epochs, batch, table=None):
    """(passes, message, factor) of the installed checker for these epochs; None didn't converge."""
    numbers = [1e9 if e is None else e for e in epochs]
    failed = sum(e is None for e in epochs)
    found = (batch, None if failed > bench.dropped else numbers, bench.log_name)
    patch = pytest.MonkeyPatch()
    patch.setattr(rcp_checker, "get_submission_epochs", lambda *_: found)
    try:
        file = io.StringIO(json.dumps(table)) if table else None
        return rcp_checker.check_directory("nowhere", "training", "2.0.0", False, False, file, rcp_pass="pruned_rcps")
    finally:
        patch.undo()


# --- the points -----------------------------------------------------------------------------------------------------


@ALL
def test_points_are_the_installed_checkers_to_the_last_bit(bench):
    checker = rcp_checker.RCP_Checker("training", "2.0.0", bench.log_name, False)
    found = rcp.points(rcp.table(bench), bench, rcp.TODAY)
    assert [point.name for point in found] == list(checker.rcp_data)
    for point in found:
        theirs = checker.rcp_data[point.name]
        numbers = (point.batch, point.mean, point.deviation, point.least)
        assert numbers == tuple(theirs[name] for name in ("BS", "RCP Mean", "RCP Stdev", "Min Epochs"))
        assert point.kept == (point.name in checker.pruned_rcp_data)


# mlcommons/logging at tag 2.0.0-rc4: batch size, mean, least, whether kept. Three points came after the deadline.
AFTER_DEADLINE = {("bert", 16384), ("maskrcnn", 8), ("resnet", 67840)}
AT_DEADLINE = {
    "resnet": """1632 35.00 34.01 yes; 3264 35.15 34.55 yes; 4096 39.88 38.91 no; 8192 41.88 40.91 no;
        13056 45.50 44.88 no; 32768 56.00 56.00 no; 49152 68.00 67.38 yes; 58880 80.00 79.38 no;
        65536 84.50 83.62 yes""",
    "unet3d": "2 2659.75 2507.44 no; 32 1950.92 1855.80 no; 56 2203.25 2064.09 no; 80 1603.78 1526.83 yes; "
    "84 2236.39 2153.09 yes",
    "ssd": "256 4.00 4.00 yes; 512 5.00 5.00 no; 4096 15.15 14.75 yes",
    "maskrcnn": """48 14.00 14.00 no; 64 14.00 14.00 no; 96 14.06 13.81 yes; 128 14.00 14.00 yes; 256 17.00 17.00 no;
        272 17.12 16.71 yes""",
    "rnnt": """512 41.78 39.70 yes; 1024 44.50 42.59 yes; 1536 48.89 47.70 yes; 2048 56.50 55.55 no;
        3072 65.11 63.90 no; 6144 95.56 93.01 yes""",
    "bert": """256 2549219.56 2405333.68 yes; 448 2621696.00 2523807.95 no; 1536 2776278.22 2726669.97 no;
        3072 2764498.67 2663811.12 yes; 4096 2843989.33 2770371.16 no; 4608 2798080.00 2723753.14 yes;
        6144 3319125.33 3243918.38 yes; 6912 3601920.00 3533003.66 yes; 8192 4186112.00 4136642.22 no;
        8704 4273706.67 4187199.03 no; 12288 4465066.67 4413427.47 yes; 13056 4645333.33 4559391.42 yes""",
    "dlrm": "32768 1.76 1.74 yes; 55296 1.90 1.89 no; 71680 2.00 2.00 yes",
}


@ALL
def test_points_at_the_deadline(bench):
    references = [one for one in rcp.table(bench) if (bench.log_name, one.batch) not in AFTER_DEADLINE]
    found = rcp.points(references, bench, rcp.DEADLINE)
    text = "; ".join(f"{p.batch} {p.mean:.2f} {p.least:.2f} {'yes' if p.kept else 'no'}" for p in found)
    assert text == " ".join(AT_DEADLINE[bench.log_name].split())


@given(mean=st.floats(1, 5000), deviation=st.floats(0, 500), runs=st.integers(3, 80), bench=st.sampled_from(TESTED))
def test_least_mean_is_where_the_t_test_says_five_percent(mean, deviation, runs, bench):
    least = rcp.least_mean(mean, deviation, runs, bench)
    assert least <= mean
    if deviation < 1e-3:
        return

    def p(value):
        sample = (value, deviation, bench.runs - 2)
        return scipy.stats.ttest_ind_from_stats(*sample, mean, deviation, runs, alternative="less").pvalue

    assert least < 1e-3 or p(least + rcp.TOLERANCE) > rcp.ALPHA
    assert least < 1e-3 or p(least - rcp.TOLERANCE) < rcp.ALPHA


def test_no_deviation_no_allowance():
    assert rcp.least_mean(4.0, 0.0, 18, BENCHMARKS["retinanet"]) == 4.0


# --- the test -------------------------------------------------------------------------------------------------------


def around(bench, draw):
    """A batch size among, between or beyond the points, and epochs near what they ask for."""
    found = rcp.points(rcp.table(bench), bench, rcp.TODAY)
    batches = [point.batch for point in found]
    batch = draw(st.sampled_from(batches) | st.integers(1, 2 * batches[-1]))
    near = min(found, key=lambda point: abs(point.batch - batch))
    center = draw(st.sampled_from([near.mean, near.least]))
    one = st.none() | st.floats(0.8 * center, 1.2 * center) | st.just(round(center)) | st.just(center)
    return batch, draw(st.lists(one, min_size=bench.runs, max_size=bench.runs))


@settings(deadline=None, max_examples=150)
@given(bench=st.sampled_from(TESTED), data=st.data())
def test_verdicts_are_the_installed_checkers(bench, data):
    batch, epochs = around(bench, data.draw)
    points = rcp.points(rcp.table(bench), bench, rcp.TODAY)
    ours = rcp.judge(epochs, batch, points, bench, rcp.TODAY)
    passes, said, factor = official(bench, epochs, batch)
    assert (ours.passes, ours.said) == (passes, said)
    if ours.point and ours.missing is None:
        assert ours.factor == factor


@settings(deadline=None, max_examples=100)
@given(
    table=st.dictionaries(
        st.integers(1, 100_000), st.lists(st.integers(1, 60), min_size=3, max_size=12), min_size=1, max_size=6
    ),
    batch=st.integers(1, 120_000),
    epochs=st.lists(st.none() | st.integers(1, 60), min_size=5, max_size=5),
)
def test_verdicts_on_custom_points_are_the_installed_checkers(table, batch, epochs):
    bench = BENCHMARKS["resnet"]
    content = {
        f"at_{size}": {"Benchmark": "resnet", "BS": size, "Hyperparams": {}, "Epochs to converge": values}
        for size, values in table.items()
    }
    references = rcp.references(content, bench)
    ours = rcp.judge(epochs, batch, rcp.points(references, bench, rcp.TODAY), bench, rcp.TODAY)
    assert (ours.passes, ours.said) == official(bench, epochs, batch, content)[:2]


def verdicts(name, batch, epochs):
    bench = BENCHMARKS[name]
    found = {m: rcp.points(rcp.table(bench), bench, m) for m in rcp.METHODS}
    return {m: rcp.judge(epochs, batch, found[m], bench, m) for m in rcp.METHODS}


def test_the_two_methods_differ_where_they_should():
    both = verdicts("resnet", 3264, [34.4] * 5)  # least: 34.55 then, 34.31 now
    assert (both["deadline"].passes, both["today"].passes) == (False, True)
    assert both["today"].factor == pytest.approx(35.1538 / 34.4, rel=1e-4)


def test_where_new_points_are_needed():
    for batch, epochs, missing in ((100_000, 200, 100_000), (1024, 30, 1024), (1024, 36, None)):
        for verdict in verdicts("resnet", batch, [epochs] * 5).values():
            assert verdict.missing == missing
            assert verdict.passes == (missing is None)


def test_runs_that_do_not_converge():
    assert verdicts("resnet", 3264, [None, 36, 36, 36, 36])["deadline"].passes
    verdict = verdicts("resnet", 3264, [None, None, 36, 36, 36])["deadline"]
    assert (verdict.passes, verdict.said) == (False, "Insufficient convergence")
    assert verdicts("unet3d", 80, [None] * 4 + [1700] * 36)["deadline"].passes
    assert not verdicts("resnet", 3264, [36, 36])["deadline"].passes


# --- folders --------------------------------------------------------------------------------------------------------


@ALL
def test_real_logs_have_the_official_verdict(samples, bench):
    (folder,) = samples.glob(f"*/{bench.log_name}")
    paths = sorted(str(path) for path in folder.glob("result_*.txt"))
    one = convergence.against_reference(str(folder), read_logs(paths))
    official = rcp_checker.check_directory(str(folder), "training", "2.0.0", False, False, rcp_pass="pruned_rcps")
    verdict = one.verdicts[rcp.TODAY]
    assert (verdict.passes, verdict.said, verdict.factor) == official
    assert one.passes
    assert one.verdicts[rcp.DEADLINE].passes
    batch, epochs, name = rcp_checker.get_submission_epochs(paths, "2.0.0", False)
    assert (one.batch, name) == (batch, bench.log_name)
    assert [1e9 if e is None else e for e in one.epochs] == epochs


def the_verdict(folder, **options):
    logs = read_logs(sorted(str(path) for path in folder.glob("result_*.txt")))
    return convergence.against_reference(str(folder), logs, **options)


def test_what_is_not_tested(tmp_path, write_log):
    (tmp_path / "open").mkdir()
    for i in range(5):
        write_log(tmp_path / f"open/result_{i}.txt")
    one = the_verdict(tmp_path / "open")
    assert (one.passes, one.verdicts) == (True, {})
    assert "only closed is tested" in one.untested

    folder = closed_logs.folder(tmp_path / "mixed")
    closed_logs.write(folder / "result_4.txt", batch=1024)
    one = the_verdict(folder)
    assert not one.passes
    assert "several batch sizes (1024, 4096)" in one.untested

    folder = closed_logs.folder(tmp_path / "none", runs=1)
    lines = (folder / "result_0.txt").read_text().splitlines()
    (folder / "result_0.txt").write_text("\n".join(line for line in lines if "batch_size" not in line))
    assert "no global_batch_size" in the_verdict(folder).untested

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/result_0.txt").write_text("")
    assert not the_verdict(tmp_path / "empty").passes


def test_bert_logs_that_count_epochs(tmp_path, capsys):
    folder = closed_logs.folder(tmp_path / "bert", "bert", batch=448, epochs=(2_700_000,))
    for path in folder.glob("*.txt"):
        text = path.read_text().replace('"train_samples", "value": 1000000', '"train_samples", "value": 2700000')
        path.write_text(re.sub(r'"epoch_num": [0-9]+', '"epoch_num": 3', text))
    assert convergence.main([str(folder)]) == 1
    assert convergence.main([str(folder)], bert_train_samples=True) == 0
    assert "mean without the smallest and the largest: 2,700,000" in capsys.readouterr().out
    assert check.main([str(folder)]) == 1
    assert check.main([str(folder)], bert_train_samples=True) == 0
    ((one,),) = score.scores([str(folder)])
    assert one.samples_per_second == 2_700_000 / 1800


def points_file(path, **fields):
    record = {"Benchmark": "dlrm", "BS": 1024, "Epochs to converge": [1.5, 1.6, 1.6, 1.7, 1.6, 1.5, 1.6, 1.6], **fields}
    path.write_text(json.dumps({"own": record}))
    return path


def test_custom_points_test_open_runs_too(tmp_path, capsys):
    points = points_file(tmp_path / "points.json")
    for epochs, code in ((1.6, 0), (1.2, 1)):
        folder = closed_logs.folder(tmp_path / str(epochs), "dlrm", batch=1024, epochs=(epochs,))
        for path in folder.glob("*.txt"):
            path.write_text(path.read_text().replace('"closed"', '"open"'))
        assert convergence.main([str(folder)]) == 0  # open: not tested
        assert convergence.main([str(folder)], custom=points) == code
    out = capsys.readouterr().out
    assert "at the deadline of v2.0: fails: RCP found (at least 1.5" in out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read"),
        ("[" * 100_000, "can't be read"),
        ("[]", "no reference convergence points of dlrm"),
        ('{"a": 1}', "must be an object with Benchmark, BS"),
        ({"Benchmark": "bert"}, 'is of "bert", where dlrm is tested'),
        ({"BS": "many"}, 'BS of "own" is "many"'),
        ({"BS": 0}, "expected a batch size"),
        ({"BS": math.nan}, "expected a batch size"),
        ({"Epochs to converge": [1, 2]}, "has 2 runs, of which 2 are dropped"),
        ({"Epochs to converge": [1, None, 3]}, "list of positive numbers"),
        ({"Epochs to converge": [1, -2, 3]}, "list of positive numbers"),
    ],
)
def test_points_that_cannot_be_used(tmp_path, content, message):
    path = tmp_path / "points.json"
    if isinstance(content, str):
        path.write_text(content)
    else:
        points_file(path, **content)
    with pytest.raises(UserError, match=message):
        rcp.table_from_file(path, BENCHMARKS["dlrm"])


def test_two_points_at_one_batch_size():
    content = {name: {"Benchmark": "dlrm", "BS": 8, "Epochs to converge": [1, 2, 3]} for name in "ab"}
    with pytest.raises(UserError, match='"a" and "b" are of the same batch size'):
        rcp.references(content, BENCHMARKS["dlrm"])


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_shows_curve_and_verdicts(tmp_path, capsys):
    folder = closed_logs.folder(tmp_path / "resnet", batch=3264, epochs=(34.4,))
    assert convergence.main([str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"{folder}: closed resnet, batch 3,264: FAILS" in out
    assert "at the deadline of v2.0: fails: RCP found (at least 34.55; the reference has 35.15 at batch 3264)" in out
    assert "today's mlperf-logging: passes: RCP found (at least 34.31" in out
    rows = [line.split() for line in out.splitlines()]
    assert [row[1] for row in rows if row[:1] == [">"]] == ["3,264"]
    assert ["32,768", "10", "56.00", "56.00", "no", "55.44", "yes", "o"] in rows
    folder = closed_logs.folder(tmp_path / "large", batch=100_000, epochs=(200,))
    assert convergence.main([str(folder)]) == 1
    assert "needs a new RCP at batch 100000" in capsys.readouterr().out


def test_the_command_as_json(tmp_path, capsys):
    folder = closed_logs.folder(tmp_path / "resnet", epochs=(41,))
    assert convergence.main([str(folder)], as_json=True) == 0
    (one,) = json.loads(capsys.readouterr().out)["convergence"]
    assert (one["benchmark"], one["batch"], one["passes"]) == ("resnet", 4096, True)
    assert one["verdicts"]["deadline"]["said"] == "RCP Interpolation"
    assert len(one["points"]["today"]) == 10


@ALL
def test_the_table(bench, capsys):
    assert convergence.main([], bench.name) == 0
    out = capsys.readouterr().out
    assert f"{rcp.table(bench)[-1].batch:,}" in out
    assert convergence.main([], bench.log_name, as_json=True) == 0
    table = json.loads(capsys.readouterr().out)
    assert [one["batch"] for one in table["references"]] == [one["batch"] for one in table["points"]["today"]]
