"""`check` on folders and packages: every fault is named, the official verdict is kept, and nothing is changed."""

import contextlib
import io
import json
import logging
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import warnings

import closed_logs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.package_checker import package_checker
from mlperf_logging.rcp_checker import rcp_checker

from mlperf_fast.errors import UserError
from mlperf_fast.submission import check, convergence, score
from mlperf_fast.suite import BENCHMARKS


def official(root, scratch):
    """True, False, or None for a traceback: the official package checker on a copy. It lacks dlrm's run count."""
    copy = shutil.copytree(root, scratch, symlinks=True)
    handlers = logging.getLogger().handlers[:]
    patch = pytest.MonkeyPatch()
    patch.setitem(rcp_checker.submission_runs["training"], "dlrm", 5)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            systems = package_checker.check_systems(str(copy), "training", "2.0.0")
            options = {"quiet": False, "werror": False, "rcp_bypass": False}
            results = package_checker.check_training_result_files(
                str(copy), "training", "2.0.0", **options, rcp_bert_train_samples=False, seed_checker_bypass=False
            )
            return systems and results
    except Exception:
        return None
    finally:
        patch.undo()
        logging.disable(logging.NOTSET)
        logging.getLogger().handlers[:] = handlers
        mlp_compliance.enqueued_configs.clear()
        shutil.rmtree(copy)


def snapshot(root):
    """Names, sizes and times of everything below."""
    found = {}
    for folder, _, files in os.walk(root):
        for name in [".", *files]:
            status = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (status.st_size, status.st_mtime_ns)
    return found


def findings(root):
    return [finding for report in check.check([str(root)]) for finding in report.findings]


def errors(root):
    return sorted({finding.rule for finding in findings(root) if finding.severity == "error"})


@pytest.fixture
def package(tmp_path):
    return closed_logs.package(tmp_path / "ajax", ("resnet",))


@pytest.fixture
def folder(package):
    return package / "results/petrel/resnet"


def test_a_good_package_passes_here_and_officially(tmp_path, quick_official, capsys):
    root = closed_logs.package(tmp_path / "ajax", ("resnet", "dlrm"))
    shutil.rmtree(root / "results/petrel/dlrm")
    closed_logs.folder(root / "results/petrel/dlrm", "dlrm", batch=65536, epochs=(2.0,))
    before = snapshot(root)
    assert check.main([str(root)]) == 0
    out = capsys.readouterr().out
    assert "0 error(s)" in out
    assert "warning:" not in out
    assert "4 checked: 4 pass, 0 fail" in out
    assert snapshot(root) == before
    assert official(root, tmp_path / "copy") is True


def test_real_folders_have_the_official_verdict(samples, tmp_path, quick_official):
    """All eight as one package. The two that fail log no seed, which today's checker refuses and v2.0's let pass."""
    reports = {os.path.basename(r.path): r for r in check.check([str(samples.parent)]) if r.kind == "benchmark"}
    assert {name: report.passes for name, report in reports.items()} == {
        bench.log_name: bench.name not in ("dlrm", "minigo") for bench in BENCHMARKS.values()
    }
    for name in ("dlrm", "minigo"):
        assert [f.rule for f in reports[name].findings if f.severity == "error"] == ["seeds/missing"]
    for name in ("dlrm", "minigo", "ssd", "resnet"):  # the others take the official checker half a minute
        (folder,) = samples.glob(f"*/{name}")
        one = tmp_path / name
        shutil.copytree(folder, one / "results" / folder.parent.name / name)
        shutil.copytree(samples.parent / "systems", one / "systems")
        assert official(one, tmp_path / "copy") is reports[name].passes


# --- planted faults: what is done to a good package, the rule that says so, and a part of what it says ---------------


def change_log(number, old, new):
    def plant(root):
        path = root / f"results/petrel/resnet/result_{number}.txt"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return plant


def change_all_logs(old, new):
    return lambda root: [change_log(i, old, new)(root) for i in range(5)]


def describe(**fields):
    return lambda root: closed_logs.description(root / "systems/petrel.json", **fields)


def write(name, content=""):
    def plant(root):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return plant


def again(**options):
    def plant(root):
        shutil.rmtree(root / "results/petrel/resnet")
        closed_logs.folder(root / "results/petrel/resnet", **options)

    return plant


def remove(name):
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def move(old, new):
    return lambda root: (root / old).rename(root / new)


def link(name, target):
    return lambda root: (root / name).symlink_to(target)


RESULTS = "results/petrel/resnet"
ERRORS = [
    # runs
    (remove(f"{RESULTS}/result_4.txt"), "runs/count", "4 logs; resnet demands exactly 5"),
    (again(runs=6), "runs/count", "6 logs; resnet demands exactly 5"),
    (again(failed=2), "runs/failed", "2 of 5 runs failed, where 1 may: result_3.txt, result_4.txt"),
    (lambda root: [path.unlink() for path in (root / RESULTS).iterdir()], "runs/benchmark", "no log names a benchmark"),
    (
        lambda root: shutil.copyfile(root / RESULTS / "result_0.txt", root / RESULTS / "result_1.txt"),
        "runs/copied",
        "those of result_0.txt: one run, filed twice",
    ),
    (change_log(1, '"closed"', '"open"'), "runs/mixed", 'submission_division is "closed" in 4 logs, but "open" in res'),
    (
        change_log(1, '"global_batch_size", "value": 4096', '"global_batch_size", "value": 1024'),
        "runs/mixed-batch",
        "global_batch_size is 4096 in 4 logs, but 1024 in result_1.txt",
    ),
    # seeds
    (change_log(3, '"seed", "value": 1003', '"seed", "value": 1001'), "seeds/repeated", "as in result_1.txt"),
    (change_log(3, '"seed", "value": 1003', '"seed", "value": "x"'), "seeds/value", "expected a whole number"),
    (change_log(3, '"key": "seed"', '"key": "sead"'), "seeds/missing", "1 of 5 logs have no seed: result_3.txt"),
    (change_all_logs('"key": "seed"', '"key": "sead"'), "seeds/missing", "legal at v2.0's deadline"),
    (change_log(3, '"run_stop"', '"run_stop'), "seeds/unread", "a faulty record hides"),
    # convergence
    (
        again(epochs=(34,)),
        "rcp/too-fast",
        "mean 34.00 epochs at batch 4096; at the deadline of v2.0: fails: RCP Interp",
    ),
    (again(epochs=(200,), batch=100_000), "rcp/missing", "needs a new RCP at batch 100000"),
    (change_all_logs('"global_batch_size"', '"batch_size"'), "rcp/untested", "no global_batch_size"),
    # one log, and no excuse for it as for a run that failed
    (change_log(2, '"value": "2xPetrel"', '"value": "TBD"'), "sanity/placeholder", '"TBD", which names nobody'),
    (change_log(2, '"value": "2xPetrel"', '"value": "demo: two cores"'), "sanity/closed-demo", "which says demo"),
    (change_log(2, '"cache_clear", "value": true', '"cache_clear", "value": false'), "sanity/cache-clear", "false"),
    (lambda root: folder_for_a_log(root), "file", "this is a folder"),
    # system description
    (describe(division="Closed"), "system/division", 'only "closed", so written'),
    (describe(division="open"), "package/division", 'division is "closed" in the logs, "open" in petrel.json'),
    (describe(cooling=None), "system/fields", "1 of 33 fields are missing: cooling"),
    (describe(number_of_nodes="two"), "system/count", 'number_of_nodes is "two"; expected a whole number'),
    (describe(hw_notes=3), "system/text", "hw_notes is 3; expected a text"),
    (write("systems/petrel.json", "{"), "system/file", "can't be read as JSON"),
    (write("systems/petrel.json", "[]"), "system/file", "expected an object"),
    (write("systems/petrel.json", b"\xff"), "system/file", "can't be read as JSON"),
    (write("systems/petrel.json", "[" * 100_000), "system/file", "nested too deeply"),
    (write("systems/petrel.json", " " * 2**21), "system/file", "larger than 1,048,576 bytes"),
    # tree
    (remove("systems"), "package/tree", "the package has no folder systems"),
    (remove("results"), "package/tree", "the package has no folder results"),
    (remove("systems/petrel.json"), "package/no-description", "systems/petrel.json"),
    (move(RESULTS, "results/petrel/retinanet"), "package/benchmark", "RetinaNet's is called ssd"),
    (move(RESULTS, "results/petrel/ssd"), "package/benchmark", "the logs in it are of resnet"),
    (lambda root: (root / "results/merlin").mkdir(), "package/tree", "no benchmark's folder with logs in it"),
    (write("benchmarks/resnet/my notes.txt"), "package/name", "has a space in it"),
    (write("benchmarks/.hidden/x"), "package/name", "begins with a dot"),
    (link("benchmarks/gone", "nowhere"), "package/link", "leads nowhere"),
    (link("benchmarks/out", "/etc"), "package/link", "a link out of the package"),
    (
        lambda root: os.truncate(root / "benchmarks/resnet/implementations/code/train.py", 51 << 20),
        "package/size",
        "51",
    ),
]


def folder_for_a_log(root):
    (root / RESULTS / "result_2.txt").unlink()
    (root / RESULTS / "result_2.txt").mkdir()


@pytest.mark.parametrize(("plant", "rule", "message"), ERRORS)
def test_a_planted_error_fails_the_package(package, tmp_path, quick_official, plant, rule, message):
    plant(package)
    before = snapshot(package)
    found = [f for f in findings(package) if f.rule == rule and f.severity == "error" and message in f.message]
    assert found, findings(package)
    assert found[0].file.startswith(str(package))
    assert snapshot(package) == before


@pytest.mark.parametrize("plant", [plant for plant, *_ in ERRORS])
def test_what_the_official_checker_refuses_fails(package, tmp_path, quick_official, plant):
    plant(package)
    if official(package, tmp_path / "copy") is not True:
        assert errors(package)


WARNINGS = [
    (again(failed=1), "runs/failed", "1 of 5 runs failed, as 1 may"),
    (move(f"{RESULTS}/result_4.txt", f"{RESULTS}/result_9.txt"), "runs/names", "result_0.txt to result_4.txt"),
    (change_log(2, '"Ajax"', '"ajax"'), "runs/mixed", 'submission_org is "Ajax" in 4 logs, but "ajax" in result_2.txt'),
    (
        change_log(2, '"lars_opt_base_learning_rate", "value": 10.5', '"lars_opt_base_learning_rate", "value": 9.5'),
        "runs/mixed-settings",
        'lars_opt_base_learning_rate is "10.5" in 4 logs, but "9.5" in result_2.txt',
    ),
    (write(f"{RESULTS}/scaling.json", '{"scaling_factor": 1.1}'), "runs/scaling", "multiplies the score"),
    (
        write(f"{RESULTS}/package_checker_params", "rcp-bypass"),
        "runs/bypass",
        "switch tests of the official checker off",
    ),
    (write(f"{RESULTS}/notes"), "runs/other-files", '1 files that are no logs: "notes"'),
    (describe(cooling="TBD"), "system/placeholder", 'cooling is "TBD"'),
    (describe(framework=""), "system/empty", "framework is empty"),
    (describe(status="soon"), "system/status", 'status is "soon"'),
    (describe(status="cloud"), "package/status", 'status is "onprem" in the logs, "cloud" in petrel.json'),
    (describe(submitter="Blue"), "package/submitter", 'submitter is "Ajax" in the logs, "Blue"'),
    (describe(system_name="osprey"), "system/name", "checkers go by the file"),
    (
        lambda root: closed_logs.description(root / "systems/osprey.json"),
        "package/no-results",
        "a system without results",
    ),
    (write("systems/notes.txt"), "package/tree", "its name must end in .json"),
    (write("results/petrel/notes/x"), "package/benchmark", "passed over"),
    (remove("benchmarks"), "package/code", "no code for"),
    (remove("benchmarks/resnet/implementations/petrel"), "package/code", "no README for this system"),
    (remove("benchmarks/resnet/implementations/code"), "package/code", "no folder with an implementation"),
    (link("benchmarks/resnet/within", "implementations"), None, ""),
]


@pytest.mark.parametrize(("plant", "rule", "message"), WARNINGS)
def test_a_planted_oddity_is_a_warning(package, tmp_path, quick_official, plant, rule, message):
    plant(package)
    assert errors(package) == []
    warned = [f for f in findings(package) if f.severity == "warning"]
    assert [f for f in warned if f.rule == rule and message in f.message] or (rule is None and not warned), warned
    assert official(package, tmp_path / "copy") is True


def test_errors_of_a_run_that_may_fail_are_marked_so(package, folder, capsys):
    again(failed=1)(package)
    assert check.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"result_4\.txt:\d+ compliance/eval_accuracy run that may fail: no evaluation passes", out)
    assert "1 in runs that may fail, 1 warning(s)" in out
    log = check.check([str(folder / "result_4.txt")])
    assert not log[0].passes, "by itself the log fails"


def test_a_system_folder_and_a_benchmark_folder(package, folder):
    for path in (package / "results", package / "results/petrel", folder):
        reports = check.check([str(path)])
        assert [report.kind for report in reports] == ["system description", "benchmark"]
        assert all(report.passes for report in reports)
    (one,) = check.check([str(package / "systems/petrel.json")])
    assert (one.kind, one.passes) == ("system description", True)


def test_folders_outside_of_a_package(tmp_path, write_log, capsys):
    """As a run leaves it. These logs are written so fast that two could have the same milliseconds."""
    for i in range(5):
        path = write_log(tmp_path / f"result_{i}.txt")
        later = re.sub(
            r'"time_ms": (\d+)', lambda match, i=i: f'"time_ms": {int(match[1]) + 10**6 * i}', path.read_text()
        )
        path.write_text(later)
    assert check.main([str(tmp_path)]) == 0
    assert "passes ruleset 2.0.0 as open dlrm, 5 logs, 0 error(s), 0 warning(s)" in capsys.readouterr().out


def test_more_than_one_aborted_run_fails_in_open_too(tmp_path, write_log):
    for i in range(5):
        write_log(tmp_path / f"result_{i}.txt", status="aborted" if i < 2 else "success")
    assert "runs/failed" in errors(tmp_path)


def test_the_commands_need_no_torch(package):
    """On a laptop that has the logs, and no torch to import."""
    code = (
        "import sys; sys.modules['torch'] = None; from mlperf_fast import cli;"
        "sys.exit(any(cli.main([*command, sys.argv[1]]) for command in (['check'], ['rcp'], ['score', '--csv'])))"
    )
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "passes ruleset 2.0.0 as closed resnet" in done.stdout


# --- hostile files and folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "No such file"),
        (lambda path: path.mkdir(), "this is a folder"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: (path.touch(), os.truncate(path, 60 << 20)), "larger than 50 MiB"),
    ],
)
def test_a_log_that_is_none_has_one_clear_error(package, folder, plant, message):
    path = folder / "result_2.txt"
    path.unlink()
    plant(path)
    found = [f for r in check.check([str(folder)]) for f in r.findings if f.severity == "error"]
    assert [(f.rule, f.file) for f in found] == [("file", str(path))]
    assert message in found[0].message
    assert check.check([str(path)])[0].passes is False


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read(package, folder):
    folder.chmod(0)
    try:
        assert "package/unreadable" in errors(package)
        assert errors(folder) == ["package/unreadable"]
    finally:
        folder.chmod(0o755)


def test_loops_of_links_end(package):
    (package / "results/petrel/loop").symlink_to(package)
    (package / "systems/loop.json").symlink_to(package / "systems/loop.json")
    (package / "benchmarks/loop").symlink_to(package / "benchmarks")
    assert set(errors(package)) == {"package/link", "system/file"}


def test_a_folder_without_logs(tmp_path):
    (report,) = check.check([str(tmp_path)])
    assert (report.kind, report.passes) == ("folder", False)
    assert [f.rule for f in report.findings] == ["package/no-logs"]


def test_wrong_usage(tmp_path):
    with pytest.raises(UserError, match="absent: no such file"):
        check.main([str(tmp_path / "absent")])


# --- any folder: the official verdict or a stricter one ---------------------------------------------------------------

# The same examples in every run.
FUZZ = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    derandomize=True,
    max_examples=25,
)
SPOIL = st.sampled_from(
    [
        b'"key"',
        b'"value"',
        b'"metadata"',
        b'"time_ms"',
        b'"closed"',
        b'"run_stop"',
        b'"seed"',
        b"{",
        b"}",
        b"\n",
        b"1",
        b"null",
    ]
)


@FUZZ
@given(data=st.data())
def test_any_folder_is_judged_as_officially(tmp_path, quick_official, data):
    """Counts, failures, seeds and epochs around what the rules allow.

    Stricter in one thing only: the deadline's bound on the mean, 34.55 epochs, is above today's of 34.31.
    """
    draw, epochs = data.draw, []
    root = tmp_path / "fuzz"
    shutil.rmtree(root, ignore_errors=True)
    closed_logs.description(root / "systems/petrel.json")
    for i in range(draw(st.sampled_from([4, 5, 5, 5, 5, 6]))):
        epochs.append(draw(st.sampled_from([34, 35, 35, 36])))
        status = draw(st.sampled_from(["success"] * 6 + ["aborted"]))
        closed_logs.write(
            root / f"results/petrel/resnet/result_{i}.txt",
            batch=draw(st.sampled_from([3264] * 20 + [4096])),
            epochs=epochs[-1],
            seed=draw(st.integers(0, 60)),
            status=status,
            start_ms=10**12 + i,
        )
        if status != "success":
            epochs[-1] = math.inf
    theirs, ours = official(root, tmp_path / "copy"), errors(root)
    if theirs is not True:
        assert ours
    elif statistics.mean(sorted(epochs)[1:-1]) < 34.55:
        assert ours == ["rcp/too-fast"]
    else:
        assert ours == []


@FUZZ
@given(data=st.data())
def test_spoilt_logs_in_a_folder(tmp_path, quick_official, data):
    root = tmp_path / "spoilt"
    shutil.rmtree(root, ignore_errors=True)
    closed_logs.package(root, ("resnet",))
    for _ in range(data.draw(st.integers(1, 3))):
        path = root / f"results/petrel/resnet/result_{data.draw(st.integers(0, 4))}.txt"
        content = path.read_bytes()
        old, new = data.draw(SPOIL), data.draw(SPOIL | st.binary(max_size=4))
        places = [match.start() for match in re.finditer(re.escape(old), content)]
        if places:
            at = data.draw(st.sampled_from(places))
            path.write_bytes(content[:at] + new + content[at + len(old) :])
    found = findings(root)
    assert not any(finding.rule == "log/unjudged" for finding in found)
    for command in (check.main, convergence.main, score.main):  # each prints, and ends with a verdict
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert command([str(root)]) in (0, 1)
        assert all(c.isprintable() or c == "\n" for c in said.getvalue())
    with contextlib.redirect_stdout(io.StringIO()) as said:
        check.main([str(root)], as_json=True)
    assert json.loads(said.getvalue())["passes"] == (not any(finding.severity == "error" for finding in found))
    if official(root, tmp_path / "copy") is not True:
        assert any(finding.severity == "error" for finding in found)
