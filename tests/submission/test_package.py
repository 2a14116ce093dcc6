"""`package`: real runs and logs of other code become a tree that both checkers accept; what can't be filed is refused
before anything is written."""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import closed_logs
import pytest
import tomllib
from filing import ANSWERS, call, make, names, snapshot

from mlperf_fast import __version__, config
from mlperf_fast.errors import UserError
from mlperf_fast.submission import implementation, machine, score
from mlperf_fast.submission.description import FIELDS
from mlperf_fast.submission.logs import read_logs
from mlperf_fast.workloads.dlrm.presets import PRESETS

ROOT = Path(__file__).parents[2]


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
