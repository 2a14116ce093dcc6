"""`package` refuses what can't be filed before anything is written, and leaves nothing half done."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import closed_logs
import pytest
from filing import call, make, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf_fast import __version__
from mlperf_fast.errors import UserError
from mlperf_fast.submission import implementation, package
from mlperf_fast.submission.description import FIELDS

ROOT = Path(__file__).parents[2]

# --- what is refused ------------------------------------------------------------------------------------------------


def edit_config(number, **changes):
    def plant(runs):
        path = runs / f"runs/{number}/config.json"
        saved = json.loads(path.read_text())
        for dotted, value in changes.items():
            part = saved
            *above, last = dotted.split("__")
            for name in above:
                part = part[name]
            part[last] = value
        path.write_text(json.dumps(saved))

    return plant


def edit_logs(old, new, numbers=range(5)):
    def plant(runs):
        for number in numbers:
            path = runs / f"result_{number}.txt"
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))

    return plant


def as_closed(runs):
    edit_logs('"value": "open"', '"value": "closed"')(runs)


def link(runs):
    (runs / "result_2.txt").rename(runs / "elsewhere.txt")
    (runs / "result_2.txt").symlink_to("elsewhere.txt")


def campaign_of(count, ended):
    return lambda runs: (runs / "campaign.json").write_text(json.dumps({"runs": count, "ended": [{}] * ended}))


@pytest.mark.parametrize(
    ("plant", "options", "message"),
    [
        (None, {"system": "../petrel"}, "it is the name of a folder"),
        (None, {"system": "a/b"}, "it is the name of a folder"),
        (None, {"system": ".petrel"}, "it is the name of a folder"),
        (None, {"system": "petrel..2"}, "it is the name of a folder"),
        (None, {"system": "p" * 101}, "at most 100"),
        (None, {"system": "p" * 5000}, "5,000 characters; 1000 are allowed"),
        (None, {"system": "pet rel"}, "it is the name of a folder"),
        (None, {"system": "petrel\n"}, "expected a text on one line"),
        (None, {"system": "mlperf_fast"}, "both called mlperf_fast"),
        (None, {"submitter": "../Ajax"}, "--submitter is"),
        (None, {"submitter": "A/B"}, "--submitter is"),
        (None, {"submitter": " "}, "--submitter is"),
        (None, {"division": "closed"}, 'says division "open": it can\'t be filed as closed'),
        (None, {"more": ("--allow-unknown",), "division": "closed"}, "--allow-unknown is for the open division"),
        (None, {"more": ("--status", "cloud")}, '--status is cloud, but the logs say "research"'),
        (None, {"more": ("--this-machine",)}, "the runs have recorded their machine"),
        (None, {"more": ("--set-system", "coling=air")}, "did you mean 'cooling'?"),
        (None, {"more": ("--set-system", "cooling")}, "expected FIELD=VALUE"),
        (None, {"more": ("--set-system", "cooling=TBD")}, "a placeholder"),
        (None, {"more": ("--set-system", "number_of_nodes=two")}, "expected a whole number"),
        (None, {"more": ("--set-system", "system_name=osprey")}, '"osprey" by --set-system, "petrel" by --system-name'),
        (None, {"more": ("--system", "/nowhere.toml")}, "/nowhere.toml: can't be read"),
        (None, {"more": ("--code", "/nowhere")}, "--code /nowhere: no such folder"),
        (as_closed, {"division": "closed"}, "is a demo's, which is never a closed result"),
        (
            lambda runs: (as_closed(runs), edit_logs("demo", "real")(runs)),
            {"division": "closed"},
            "its config.json says is_demo",
        ),
        (edit_logs('"value": "dlrm"', '"value": "bert"', (1,)), {}, 'result_1.txt is of "bert"'),
        (edit_logs('"value": "dlrm"', '"value": "none"'), {}, "no log names a benchmark of v2.0"),
        (edit_config(1, config__batch_size=128), {}, "differ in config.batch_size (128, 64)"),
        (edit_config(1, versions__torch="2.0"), {}, "differ in versions.torch"),
        (edit_config(1, machine__host_processor_model_name="other"), {}, "machine.host_processor_model_name"),
        (edit_config(1, versions__mlperf_fast="0.0.1"), {}, f'mlperf_fast "0.0.1", this is {__version__}'),
        (edit_config(1, workload="bert"), {}, 'config.json is of "bert", the logs are of dlrm'),
        (lambda runs: (runs / "runs/1/config.json").write_text("{"), {}, "is no configuration"),
        (lambda runs: (runs / "runs/1/config.json").write_text("{}"), {}, "lacks workload"),
        (lambda runs: (runs / "runs/1/config.json").unlink(), {}, "Logs of other code need that code"),
        (lambda runs: (runs / "result_2.txt").write_bytes(b"\0" * (51 << 20)), {}, "larger than 50 MiB"),
        (link, {}, "result_2.txt is a link"),
        (campaign_of(8, 5), {}, "is a campaign of 8 runs, 5 of which have ended, with 5 logs"),
        (campaign_of(6, 6), {}, "6 of which have ended, with 5 logs"),
        (lambda runs: (runs / "campaign.json").write_text("{}"), {}, "campaign.json can't be read"),
    ],
)
def test_what_cant_be_filed_is_refused_before_anything_is_written(runs, tmp_path, capsys, plant, options, message):
    if plant:
        plant(runs)
    before = snapshot(tmp_path)
    more = options.pop("more", ())
    done, out, err = call(capsys, tmp_path / "out", runs, *more, **options)
    assert (done, out) == (2, "")
    assert message in err
    assert snapshot(tmp_path) == before


def test_two_folders_of_one_benchmark(runs, tmp_path, capsys):
    other = shutil.copytree(runs, tmp_path / "in/again")
    done, _, err = call(capsys, tmp_path / "out", runs, other)
    assert (done, "both hold dlrm: a system has one result a benchmark" in err) == (2, True)
    make(tmp_path / "out", runs, runs)  # the same folder twice is one


def test_two_machines_are_two_systems(runs, tmp_path, capsys):
    other = closed_logs.folder(tmp_path / "in/resnet")
    for path in other.iterdir():
        path.write_text(path.read_text().replace('"closed"', '"open"').replace('"onprem"', '"research"'))
    saved = json.loads((runs / "runs/0/config.json").read_text())
    saved["machine"]["host_memory_capacity"] = "1 GiB"
    (other / "config.json").write_text(json.dumps(saved | {"workload": "resnet"}))
    done, _, err = call(capsys, tmp_path / "out", runs, other)
    assert (done, "package them as two systems" in err) == (2, True)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("in/full", "isn't empty"),
        ("in/file", "is no folder"),
        ("in/link", "is no folder"),
        ("in/runs/out", "lie within one another"),
        ("in/runs", "isn't empty"),
        ("in/file/out", "can't be written"),
    ],
)
def test_places_that_out_may_not_be(runs, tmp_path, capsys, place, message):
    (tmp_path / "in/full").mkdir()
    (tmp_path / "in/full/notes").touch()
    (tmp_path / "in/file").touch()
    (tmp_path / "in/link").symlink_to("nowhere")
    before = snapshot(tmp_path)
    done, _, err = call(capsys, tmp_path / place, runs)
    assert (done, message in err) == (2, True), err
    assert snapshot(tmp_path) == before


def test_out_may_be_an_empty_folder_and_its_parents_are_made(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "new/er"):
        root, _ = make(out, runs)
        assert root.is_dir()


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda code: (code / "README.md").unlink(), "has no README"),
        (lambda code: (code / "data").symlink_to("/etc"), "data is a link"),
        (lambda code: (code / "passwd").symlink_to("/etc/passwd"), "passwd is a link"),
        (lambda code: os.mkfifo(code / "pipe"), "neither a file nor a folder"),
        (lambda code: (code / "my notes").touch(), "names have no spaces"),
        (lambda code: (code / "a\nb").touch(), "names have no spaces"),
        (lambda code: (code / "big").write_bytes(b"\0" * (51 << 20)), "51 MiB, 50 are allowed"),
        (lambda code: code.rename(code.with_name("my code")), "it is the name of a folder"),
        (lambda code: code.rename(code.with_name("petrel")), "both called petrel"),
    ],
)
def test_code_that_a_repository_cant_take(logs, code, answers, tmp_path, capsys, plant, message):
    renamed = plant(code)
    code = renamed if isinstance(renamed, Path) else code
    before = snapshot(tmp_path)
    done, _, err = call(capsys, tmp_path / "out", logs, "--system", answers, "--code", code, division="closed")
    assert (done, message in err) == (2, True), err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "text", ["cooling = ", "cooling = 3", "[cooling]", "number_of_nodes = true", "\x00", "x" * 70_000]
)
def test_files_of_answers_that_are_none(logs, code, tmp_path, capsys, text):
    path = tmp_path / "system.toml"
    path.write_text(text)
    done, _, err = call(capsys, tmp_path / "out", logs, "--system", path, "--code", code, division="closed")
    assert (done, "system.toml" in err, "Traceback" in err) == (2, True, False)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_nothing_is_left_when_writing_ends_early(runs, tmp_path, capsys, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(implementation, "write_runs", fails)
    before = snapshot(tmp_path)
    if error is RuntimeError:
        with pytest.raises(RuntimeError):
            call(capsys, tmp_path / "out", runs)
    else:
        done, _, err = call(capsys, tmp_path / "out", runs)
        assert (done, bool(err)) == (130 if error is KeyboardInterrupt else 2, True)
    assert snapshot(tmp_path) == before


def test_a_kill_leaves_no_half_package_under_its_name(runs, tmp_path):
    code = (
        "import os, signal, sys; from mlperf_fast import cli; from mlperf_fast.submission import implementation;"
        "implementation.write_runs = lambda *_: os.kill(os.getpid(), signal.SIGKILL); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = ["package", runs, "--submitter", "Ajax", "--division", "open", "--system-name", "petrel", "--out"]
    done = subprocess.run([sys.executable, "-c", code, *command, tmp_path / "out"], capture_output=True, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.glob(".out.partial-*")], "the half is there, under another name"


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_config_is_taken_or_refused(made, tmp_path, data):
    """A value somewhere in it is another, or gone."""
    config = json.loads((made / "runs/0/config.json").read_text())
    part, names = config, list(config)
    while True:
        name = data.draw(st.sampled_from(names))
        if not (isinstance(part[name], dict) and part[name] and data.draw(st.booleans())):
            break
        part, names = part[name], list(part[name])
    if data.draw(st.booleans()):
        part[name] = data.draw(JSON)
    else:
        del part[name]
    folder = tmp_path / "runs"
    folder.mkdir(exist_ok=True)
    for run in range(5):
        shutil.copyfile(made / f"result_{run}.txt", folder / f"result_{run}.txt")
    (folder / "config.json").write_text(json.dumps(config))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    try:
        root, _ = make(tmp_path / "out", folder)
    except UserError:
        assert not (tmp_path / "out").exists()
    else:
        assert json.loads((root / "systems/petrel.json").read_text()).keys() == FIELDS.keys()


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_a_name_that_is_taken_is_one_folder(name):
    try:
        taken = package._folder_name(name)
    except UserError:
        return
    assert os.path.normpath(taken) == os.path.basename(taken) == taken
    assert taken.isascii()
    assert not taken.startswith(".")
