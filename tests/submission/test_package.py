"""`package`: real runs and logs of other code become a tree that both checkers accept; what can't be filed is refused
before anything is written."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import closed_logs
import pytest
import small_dlrm
import tomllib
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlperf_fast import __version__, cli, config
from mlperf_fast.errors import UserError
from mlperf_fast.submission import implementation, machine, package, score
from mlperf_fast.submission.description import COUNTS, FIELDS
from mlperf_fast.submission.logs import read_logs
from mlperf_fast.workloads.dlrm.presets import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder as a campaign leaves it: five small runs of the demo, each in a second."""
    folder = tmp_path_factory.mktemp("made")
    return small_dlrm.campaign(folder / "campaign", small_dlrm.write(folder / "small"))


@pytest.fixture
def runs(made, tmp_path):
    return shutil.copytree(made, tmp_path / "in/runs")


@pytest.fixture
def logs(tmp_path):
    """Logs of other code, in the closed division."""
    return closed_logs.folder(tmp_path / "in/logs")


@pytest.fixture
def code(tmp_path):
    folder = tmp_path / "in/trainer"
    (folder / "src").mkdir(parents=True)
    (folder / "README.md").write_text("./run.sh\n")
    (folder / "src/train.py").write_text("train()\n")
    (folder / "run.sh").write_text("python src/train.py\n")
    (folder / "run.sh").chmod(0o755)
    return folder


ANSWERS = {field: "2" if field in COUNTS else "as built" for field, wanted in FIELDS.items() if wanted}
for given_by_option in ("submitter", "division", "status", "system_name"):
    del ANSWERS[given_by_option]


@pytest.fixture
def answers(tmp_path):
    """A file with all answers that the rules want."""
    path = tmp_path / "in/system.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f'{field} = "{value}"\n' for field, value in ANSWERS.items()))
    return path


def call(capsys, out, *arguments, division="open", system="petrel", submitter="Ajax"):
    """(exit code, stdout, stderr) of the command."""
    capsys.readouterr()
    name = ["--system-name", system] if system else []
    command = ["package", *map(str, arguments), "--submitter", submitter, "--division", division, *name]
    code = cli.main([*command, "--out", str(out)])
    return code, *capsys.readouterr()


def make(out, *paths, division="open", system="petrel", submitter="Ajax", sets=(), **others):
    """Only makes the package; its folder, and what was said. UserError as the command's exit code 2."""
    options = package.Options(
        submitter=submitter, division=division, out=Path(out), system_name=system, settings=sets, **others
    )
    root, said = package.make([str(path) for path in paths], options)
    return Path(root), said


def snapshot(root):
    return {path: path.lstat().st_mtime_ns for path in Path(root).rglob("*")}


def names(root):
    return {path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file()}


# --- what is made ---------------------------------------------------------------------------------------------------


def test_runs_of_this_package_become_a_package_that_both_checkers_accept(runs, tmp_path, capsys):
    before = snapshot(runs)
    code, out, err = call(capsys, tmp_path / "out", runs)
    assert (code, err) == (0, "")
    assert "dlrm: passes ruleset 2.0.0 as open dlrm, 5 logs, 0 error(s), 0 warning(s)" in out
    assert "passes ruleset 2.0.0 as package, 0 error(s), 0 warning(s)" in out
    assert out.endswith("Ajax: found no errors\n\n" + f"{tmp_path}/out/Ajax: passes both\n")
    assert snapshot(runs) == before
    root = tmp_path / "out/Ajax"
    results = {f"results/petrel/dlrm/result_{run}.txt" for run in range(5)}
    assert {name for name in names(root) if name.startswith(("results", "systems"))} == {
        *results,
        "systems/petrel.json",
    }
    for run in range(5):
        assert (root / f"results/petrel/dlrm/result_{run}.txt").read_bytes() == (
            runs / f"result_{run}.txt"
        ).read_bytes()


def test_the_description_says_what_the_runs_recorded_and_nothing_else(runs, tmp_path):
    root, _ = make(tmp_path / "out", runs, sets=("cooling=air", "host_memory_capacity=2 TB"))
    described = json.loads((root / "systems/petrel.json").read_text())
    recorded = json.loads((runs / "runs/0/config.json").read_text())["machine"]
    assert list(described) == list(FIELDS)
    own = {"submitter": "Ajax", "division": "open", "status": "research", "system_name": "petrel", "cooling": "air"}
    for field, value in described.items():
        if field not in (*own, "framework", "other_software_stack", "host_memory_capacity"):
            assert value == recorded.get(field, ""), field
    assert own.items() <= described.items()
    assert described["host_memory_capacity"] == "2 TB", "an answer comes before the machine"
    assert described["framework"].endswith(f"with mlperf_fast {__version__}")
    assert described["other_software_stack"]["python"] == ".".join(map(str, sys.version_info[:3]))
    facts = machine.facts(tmp_path)
    assert recorded["host_processor_core_count"] == facts["host_processor_core_count"]


def test_the_implementation_is_this_source_and_its_commands_give_the_same_configuration(runs, tmp_path):
    root, _ = make(tmp_path / "out", runs)
    implementations = root / "benchmarks/dlrm/implementations"
    own = names(implementations / "mlperf_fast")
    for name in ("setup.py", "csrc/bindings.cpp", "kernels/sgd.py", "mlperf_fast/loop/train.py"):
        assert (implementations / "mlperf_fast" / name).read_bytes() == (ROOT / name).read_bytes()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    wanted = re.compile(r"(csrc|kernels|mlperf_fast)/.*\.(py|cpp|cu|cuh|h)")
    assert {name for name in tracked if wanted.fullmatch(name) and (ROOT / name).exists()} <= own
    assert not [name for name in own if name.endswith((".so", ".pyc"))]

    system = implementations / "petrel"
    assert names(system) == {
        "README.md", "setup.sh", "init_datasets.sh", "run_and_time.sh", "config.json", "petrel_mlperf_fast.json",
    }  # fmt: skip
    saved = json.loads((system / "config.json").read_text())
    assert saved == json.loads((runs / "runs/0/config.json").read_text())
    # The script, with a mlperf-fast that only says what it was called with.
    shim = tmp_path / "bin/mlperf-fast"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import json,sys; print(json.dumps(sys.argv[1:]))" "$@"\n')
    shim.chmod(0o755)
    environment = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    said = subprocess.run([system / "run_and_time.sh", "a"], env=environment, capture_output=True, check=True).stdout
    words = json.loads(said)
    assert words[:4] == ["run", "dlrm", "--preset", "demo"]
    assert words[-2:] == ["--out", "a"]
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    again, _ = config.from_preset(PRESETS["demo"], "demo", sets)
    assert json.loads(json.dumps(config.to_json(again))) == saved["config"]


@pytest.mark.parametrize(
    ("processes", "nodes", "start"),
    [
        (1, "1", "mlperf-fast run dlrm"),
        (8, "1", "torchrun --nproc-per-node 8 -m mlperf_fast run dlrm"),
        (16, "2", 'torchrun --nproc-per-node 8 --nnodes 2 --rdzv-backend c10d --rdzv-endpoint "${HEAD:?'),
    ],
)
def test_command_line_of_several_processes(made, processes, nodes, start):
    saved = json.loads((made / "runs/0/config.json").read_text())
    saved |= {"processes": processes, "machine": {"number_of_nodes": nodes}}
    assert implementation._run(saved).startswith(start)


def test_logs_of_other_code_with_their_code(logs, code, answers, tmp_path, capsys):
    (code / ".git").mkdir()
    (code / ".git/HEAD").write_text("ref\n")
    before = snapshot(tmp_path / "in")
    done, out, err = call(capsys, tmp_path / "out", logs, "--system", answers, "--code", code, division="closed")
    assert (done, err) == (0, "")
    assert "passes ruleset 2.0.0 as closed resnet, 5 logs, 0 error(s), 0 warning(s)" in out
    assert "left out: .git:" in out
    assert snapshot(tmp_path / "in") == before, "the official checker writes scaling.json: into a copy"
    implementations = tmp_path / "out/Ajax/benchmarks/resnet/implementations"
    assert names(implementations) == {"trainer/README.md", "trainer/run.sh", "trainer/src/train.py", "petrel/README.md"}
    assert os.access(implementations / "trainer/run.sh", os.X_OK)
    assert "(../trainer/README.md)" in (implementations / "petrel/README.md").read_text()
    described = json.loads((tmp_path / "out/Ajax/systems/petrel.json").read_text())
    assert ANSWERS.items() <= described.items()
    assert described["status"] == "onprem", "as the logs say"
    assert described["cooling"] == ""


def test_several_benchmarks_at_once_and_retinanets_name(code, answers, tmp_path):
    closed_logs.folder(tmp_path / "in/all/a", "resnet")
    closed_logs.folder(tmp_path / "in/all/b", "retinanet", batch=256, epochs=(5,))
    root, _ = make(tmp_path / "out", tmp_path / "in/all", system_file=answers, code=code, division="closed")
    assert sorted(os.listdir(root / "results/petrel")) == ["resnet", "ssd"]


def test_real_logs_as_one_package(samples, code, tmp_path):
    """One of the round's own results, packaged anew: the logs are the same, and so is their description."""
    given = json.loads((samples.parent / "systems/dgxa100_ngc22.04_pytorch.json").read_text())
    answers = [f"{field}={value}" for field, value in given.items() if value and isinstance(value, str)]
    answers += ["other_software_stack=CUDA 11.6"]
    source = samples / "dgxa100_ngc22.04_pytorch/ssd"
    options = {"division": "closed", "system": None, "submitter": "NVIDIA", "sets": answers}
    root, _ = make(tmp_path / "out", source, code=code, **options)
    filed = root / "results/dgxa100_ngc22.04_pytorch/ssd"
    assert [path.read_bytes() for path in sorted(filed.iterdir())] == [
        path.read_bytes() for path in sorted(source.iterdir())
    ]
    described = json.loads((root / "systems/dgxa100_ngc22.04_pytorch.json").read_text())
    assert described == given | {"other_software_stack": "CUDA 11.6"}


def test_of_more_runs_the_median_window_is_filed_and_numbered_from_0(code, answers, tmp_path):
    source = closed_logs.folder(tmp_path / "in/logs", runs=8, minutes=(30, 29, 41, 28, 27, 26, 25, 24))
    root, said = make(tmp_path / "out", source, system_file=answers, code=code, division="closed")
    assert "the median window of 8 runs" in said
    window = score.median_window(read_logs([str(source / f"result_{i}.txt") for i in range(8)]), 5, 1)
    filed = root / "results/petrel/resnet"
    assert sorted(os.listdir(filed)) == [f"result_{i}.txt" for i in range(5)]
    assert [(filed / f"result_{i}.txt").read_bytes() for i in range(5)] == [Path(w.path).read_bytes() for w in window]
    ((all_runs,),) = score.scores([str(source)])
    ((as_filed,),) = score.scores([str(filed)])
    assert as_filed.minutes == all_runs.minutes


def test_a_package_with_faults_is_made_and_both_checkers_say_so(logs, code, answers, tmp_path, capsys):
    (logs / "result_4.txt").unlink()
    done, out, _ = call(capsys, tmp_path / "out", logs, "--system", answers, "--code", code, division="closed")
    assert done == 1
    assert "runs/count 4 logs; resnet demands exactly 5" in out
    assert "found 4, expected 5" in out
    assert "FOUND ERRORS" in out
    assert out.endswith("is not fit for submission\n")


def test_a_run_that_crashed_is_filed_as_one_that_failed(runs, tmp_path, capsys):
    path = runs / "result_0.txt"
    whole = path.read_text()
    path.write_text(whole[: whole.index(":::MLLOG", whole.index('"run_start"'))])
    (runs / "runs/0/config.json").unlink()
    done, out, _ = call(capsys, tmp_path / "out", runs)
    assert done == 0
    assert "1 of 5 runs failed, as 1 may, counting as the slowest: result_0.txt" in out
    assert (tmp_path / "out/Ajax/results/petrel/dlrm/result_0.txt").read_text() == path.read_text()


def test_the_other_official_tools_take_it_too(runs, tmp_path):
    root, _ = make(tmp_path / "out", runs)

    def official(tool, *arguments):
        command = [sys.executable, "-m", f"mlperf_logging.{tool}", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return done.stdout + done.stderr

    assert "ALL CHECKS PASSED" in official("repo_checker", root.parent, "training", "2.0.0")
    official("result_summarizer", root, "training", "2.0.0", "--csv", tmp_path / "summary.csv")
    (row,) = csv.DictReader((tmp_path / "summary.csv").read_text().splitlines())
    ((ours,),) = score.scores([str(root)])
    assert float(row["dlrm"]) == pytest.approx(ours.minutes, rel=1e-9)
    expected = {"division": "open", "submitter": "Ajax", "system": "petrel", "accelerators_count": "0"}
    assert {key: row[key] for key in expected} == expected


def test_without_room_for_the_copy_there_is_no_verdict(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    done, out, _ = call(capsys, tmp_path / "out", runs)
    assert done == 1
    assert "the official checker wasn't asked" in out


def test_where_the_official_checker_stops_that_is_no_pass(logs, code, answers, tmp_path, capsys):
    path = logs / "result_1.txt"
    path.write_text(path.read_text().replace('"global_batch_size", "value": 4096', '"global_batch_size", "value": 16'))
    done, out, _ = call(capsys, tmp_path / "out", logs, "--system", answers, "--code", code, division="closed")
    assert done == 1
    assert "the official checker stopped with KeyError" in out
    assert "FOUND ERRORS" in out


def test_it_needs_no_torch(runs, tmp_path):
    code = "import sys; sys.modules['torch'] = None; from mlperf_fast import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [runs, "--submitter", "Ajax", "--division", "open", "--system-name", "petrel", "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, "package", *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- answers that are missing ---------------------------------------------------------------------------------------


def test_missing_answers_stop_it_with_a_file_to_fill_in(logs, code, tmp_path, capsys):
    arguments = (logs, "--code", code)
    done, out, err = call(capsys, tmp_path / "out", *arguments, division="closed", system=None)
    assert (done, out) == (2, "")
    assert not (tmp_path / "out").exists()
    first = err.splitlines()[0]
    assert all(field in first for field in (*ANSWERS, "system_name"))
    assert "--this-machine" in err
    template = err[err.index("\n\n") :]
    empty = tomllib.loads(template)
    assert empty.keys() == {*ANSWERS, "system_name"}
    assert {field for field in FIELDS if f"# {field} = " in template} == {
        f for f, wanted in FIELDS.items() if not wanted
    }
    path = tmp_path / "system.toml"
    path.write_text(template)
    assert call(capsys, tmp_path / "out", *arguments, "--system", path, division="closed", system=None)[0] == 2
    path.write_text(
        re.sub(r'^(\w+) = ""', lambda match: f'{match[1]} = "{ANSWERS.get(match[1], "petrel")}"', template, flags=re.M)
    )
    root, _ = make(tmp_path / "out", logs, code=code, division="closed", system=None, system_file=path)
    assert (root / "systems/petrel.json").is_file()


def test_this_machine_answers_for_logs_that_were_made_here(logs, code, tmp_path):
    facts = machine.facts(tmp_path)
    sets = [f"{field}={value}" for field, value in ANSWERS.items() if field not in facts]
    root, _ = make(tmp_path / "out", logs, code=code, division="closed", sets=sets, this_machine=True)
    described = json.loads((root / "systems/petrel.json").read_text())
    assert all(described[field] == facts[field] for field in facts)


def test_unknown_may_be_filed_in_open_if_that_is_said(runs, tmp_path):
    for path in runs.glob("runs/*/config.json"):
        saved = json.loads(path.read_text())
        del saved["machine"]["host_storage_type"]
        path.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"lacks an answer that the rules want: host_storage_type\."):
        make(tmp_path / "out", runs)
    root, said = make(tmp_path / "out", runs, allow_unknown=True)
    assert "1 by nobody (unknown)" in said
    assert json.loads((root / "systems/petrel.json").read_text())["host_storage_type"] == "unknown"


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
