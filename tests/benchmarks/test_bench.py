"""Each benchmark runs on tiny shapes and reports what it measured; the figures themselves are nobody's to assert."""

import csv
import json
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from mlperf_fast.benchmarks import command, competitors, options, peer_memory

from mlperf_fast import cli, suite, system
from mlperf_fast.workloads import has_trainer

ROOT = Path(__file__).parents[2]
ALONE = ("data", "go", "memory", "minigo", "overhead")  # they compare no backends of an op


def exit_code(module: str, arguments: list[str], monkeypatch) -> int:
    """Of `python -m mlperf_fast.MODULE …`, in this process."""
    monkeypatch.setattr(sys, "argv", ["python", *arguments])
    monkeypatch.delitem(sys.modules, f"mlperf_fast.{module}", raising=False)  # runpy warns where it was imported
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"mlperf_fast.{module}", run_name="__main__")
    return ended.value.code


def results(folder: Path, stem: str) -> tuple[dict, list[dict]]:
    """The JSON and the CSV's lines."""
    with open(folder / f"{stem}.csv", newline="", encoding="utf-8") as lines:
        return json.loads((folder / f"{stem}.json").read_text(encoding="utf-8")), list(csv.DictReader(lines))


def check(found: dict, lines: list[dict], printed: str) -> None:
    """Ratios, rates and percentages in the JSON, in the CSV and on the terminal are those of the medians."""
    for row in found["rows"]:
        timings = {name: one for name, one in row["results"].items() if not isinstance(one, str)}
        assert set(row["ratios"]) == set(timings) - {row["ours"]}
        title = f"{row['op']}: {row['shape']}, {row['dtype']}" if len(row["results"]) > 1 else row["op"]
        shown = printed[printed.index(f"\n{title}") :]
        for name, one in timings.items():
            assert 0 < one["wall"][1] <= one["wall"][0] <= one["wall"][2]
            line = next(x for x in lines if [x["op"], x["shape"], x["dtype"], x["competitor"]]
                        == [row["op"], row["shape"], row["dtype"], name])  # fmt: skip
            ratio = one["wall"][0] / timings[row["ours"]]["wall"][0]
            assert float(line["ratio"]) == pytest.approx(ratio, rel=1e-4)
            assert row["ratios"].get(name, 1) == pytest.approx(ratio)
            cells = next(x for x in shown.splitlines() if x.strip().startswith((name, row["shape"]))).split()
            assert len(row["results"]) == 1 or f"{ratio:.2f}" in cells
            work = row["flops"] if row["ceiling"].endswith("gemm") else row["bytes"]
            if work:
                rate = work / (one["wall"][0] * 1e-3) / 1e9
                assert row["rates"][name] == pytest.approx(rate)
                limit = found["ceilings"][row["ceiling"]]["value"]
                assert row["percent_of_limit"][name] == pytest.approx(100 * rate / limit)
                assert float(line["percent_of_limit"]) == pytest.approx(100 * rate / limit, rel=1e-4)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """One run of all ops on tiny shapes: where it wrote, and what it printed."""
    folder = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--device", "cpu", "--threads", "1", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.parametrize("op", options.op_names())
def test_quick_run_reports_what_follows_from_its_medians(op, quick):
    folder, done = quick
    found, lines = results(folder, op)
    assert found["rows"]
    assert found["machine"].endswith(("avx512", "avx2", "generic"))
    assert {row["threads"] for row in found["rows"]} == {1}
    check(found, lines, done.stdout)


@pytest.mark.parametrize("op", [op for op in options.op_names() if op not in ALONE])
def test_every_backend_present_is_measured_and_the_absent_say_why(op, quick):
    folder, done = quick
    for row in results(folder, op)[0]["rows"]:
        measured = {name for name, one in row["results"].items() if not isinstance(one, str)}
        assert {"cpp", "ref"} <= measured
        assert row["ours"] == "cpp"
        for name in {"cuda", "triton"} & set(row["results"]):
            assert row["results"][name].startswith("not run: ")
    for name in competitors.LIBRARIES:
        found = [line for line in done.stdout.splitlines() if line.startswith(f"{name}: ")]
        assert len(found) <= 1, "each absent one once"
        is_here = not system.package(*system.PACKAGES[name]).startswith("absent")
        assert is_here or found[0].startswith(f"{name}: not run: "), name


def test_the_picture_shows_every_backend_of_every_case(quick):
    folder, _ = quick
    picture = ElementTree.parse(folder / "roofline.svg").getroot()
    ids = {element.get("id") for element in picture.iter()}
    texts = ["".join(element.itertext()) for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    expected = [
        (row["shape"], row["dtype"], name)
        for op in options.op_names()
        for row in results(folder, op)[0]["rows"]
        for name, one in row["results"].items()
        if row["flops"] and row["bytes"] and not isinstance(one, str) and name in ("cpp", "ref")
    ]
    assert len(expected) >= 12
    for number in range(1, len(expected) + 1):
        assert {f"point-{number}", f"label-{number}"} <= ids
    assert f"point-{len(expected) + 1}" not in ids
    for shape, dtype, name in expected:
        assert any(f"{shape}, {dtype} · {name}: " in text for text in texts), (shape, dtype, name)


def test_a_single_op_by_the_command(tmp_path, capsys):
    assert cli.main(["bench", "dot_interaction", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {f"dot_interaction.{kind}" for kind in ("json", "csv", "svg")}
    check(*results(tmp_path, "dot_interaction"), printed)


def test_the_blocks_of_the_allocators_benchmark_run():
    for block in (peer_memory.layer_norm, peer_memory.dlrm_step):
        block(quick=True)(0)


def test_whole_step(tmp_path, monkeypatch, capsys):
    assert exit_code("benchmarks.steps", ["--quick", "--device", "cpu", "--out", str(tmp_path)], monkeypatch) == 0
    found, lines = results(tmp_path, "steps")
    assert set(found["rows"][0]["ratios"]) == {"plain sparse", "plain dense"}
    assert found["rows"][0]["results"]["facebookresearch"].startswith("not run: `git clone")  # how to get it
    check(found, lines, capsys.readouterr().out)


def test_whole_step_of_bert(tmp_path, monkeypatch, capsys):
    arguments = ["--quick", "--device", "cpu", "--memory", "--out", str(tmp_path)]
    assert exit_code("benchmarks.steps_bert", arguments, monkeypatch) == 0
    found, lines = results(tmp_path, "steps_bert")
    assert set(found["rows"][0]["ratios"]) >= {"transformers padded", "transformers cropped"}
    printed = capsys.readouterr().out
    assert "| peak memory, GiB | ours |" in printed
    check(found, lines, printed)


def test_whole_step_of_resnet(tmp_path, monkeypatch, capsys):
    arguments = ["--quick", "--device", "cpu", "--memory", "--out", str(tmp_path)]
    assert exit_code("benchmarks.steps_resnet", arguments, monkeypatch) == 0
    found, lines = results(tmp_path, "steps_resnet")
    assert "transformers" in found["rows"][0]["ratios"]
    printed = capsys.readouterr().out
    assert "| peak memory, GiB | ours |" in printed
    check(found, lines, printed)


def test_the_flops_of_a_resnet_step():
    """Three times the 4.089 GMAC of an image's forward pass, but for the gradient of the images; the same networks."""
    from mlperf_fast.benchmarks import steps_resnet

    stem = 2 * 3 * 49 * 64 * 112 * 112
    assert steps_resnet.flops(steps_resnet.Case(1, 224)) == pytest.approx(3 * 2 * 4.089e9 - stem, rel=1e-3)
    for case, parameters in zip(steps_resnet.CASES, (25_557_032, 224_882), strict=True):
        assert sum(p.numel() for p in steps_resnet.hugging_face(case).parameters()) == parameters


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("__main__", ["bench", "embeding_bag"], "did you mean 'embedding_bag'?"),
        ("benchmarks.bench_sgd", ["--threads", "0"], "expected a whole number of 1 or more, found '0'"),
        ("benchmarks.__main__", ["--fbgemm-python", "/nowhere/python"], "there is no such file: /nowhere/python"),
        ("benchmarks.steps", ["--dlrm-repo", "/nowhere"], "/nowhere is no checkout of facebookresearch/dlrm"),
        ("benchmarks.figures", ["--fast"], "unrecognized arguments: --fast"),
        ("benchmarks.figures", ["dlrm"], "no set of figures is called 'dlrm'; did you mean 'dlrm_ops'?"),
    ],
)
def test_bad_arguments_exit_with_2_and_say_what_is_wrong(module, arguments, message, monkeypatch, capsys):
    assert exit_code(module, arguments, monkeypatch) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="says what happens where there is no GPU")
def test_a_gpu_that_is_not_there_is_an_error(capsys):
    assert cli.main(["bench", "sgd", "--quick", "--device", "cuda"]) == 2
    assert "--device cuda: there is none" in capsys.readouterr().err


def test_one_benchmark_that_fails_does_not_end_the_others(monkeypatch, tmp_path, capsys):
    from mlperf_fast.benchmarks import bench_roc_auc, bench_sgd

    def broken(chosen):
        raise MemoryError("too large")
        yield

    monkeypatch.setattr(bench_roc_auc, "measure", broken)
    monkeypatch.setattr(bench_sgd, "ours", lambda grads, name: lambda number: [][number])
    assert cli.main(["bench", "roc_auc", "sgd", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "bench: roc_auc: failed: MemoryError: too large" in err
    assert "cpp: failed: IndexError" in err
    assert not (tmp_path / "roc_auc.json").exists()
    assert results(tmp_path, "sgd")[0]["rows"][0]["results"]["torch foreach"]["wall"]


def test_it_works_without_rich_matplotlib_and_mlperf_logging(tmp_path):
    """As on a bare machine: what needs them says so, and everything else is written."""
    code = (
        "import sys; sys.modules.update({name: None for name in ('rich', 'matplotlib', 'mlperf_logging')});"
        "from mlperf_fast import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    arguments = ["bench", "dot_interaction", "--quick", "--device", "cpu", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dot_interaction.svg not drawn, the rest is complete: matplotlib is not installed" in done.stdout
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".csv"}
    check(*results(tmp_path, "dot_interaction"), done.stdout)


def test_where_results_go(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert command.results_root() == Path("benchmarks/results")
    monkeypatch.setattr(options, "FOLDER", tmp_path / "site-packages" / "mlperf_fast" / "benchmarks")
    assert command.results_root() == Path("results")


def test_the_apex_of_pypi_is_not_nvidias(monkeypatch):
    monkeypatch.setattr(system.importlib.metadata, "version", lambda name: "0.9.10.dev0")
    monkeypatch.setattr(system.importlib.util, "find_spec", lambda name: None)
    found = system.package(*system.PACKAGES["apex"])
    assert found.startswith("absent: an `apex` 0.9.10.dev0 is installed, but not NVIDIA's")
    assert "https://github.com/NVIDIA/apex" in found


def test_every_workload_has_its_step_measured_in_each_precision(tmp_path, monkeypatch):
    arguments = ["--quick", "--device", "cpu", "--out", str(tmp_path)]
    assert exit_code("benchmarks.workload_steps", arguments, monkeypatch) == 0
    rows = results(tmp_path, "workload_steps")[0]["rows"]
    landed = [name for name in suite.BENCHMARKS if has_trainer(name)]
    assert [row["op"] for row in rows] == [f"{name} step" for name in landed]
    for row in rows:
        timings = {name for name, found in row["results"].items() if not isinstance(found, str)}
        assert timings == {"fp32", "bf16", "fp16"}


def test_a_preset_that_no_workload_has_is_refused(monkeypatch, capsys):
    assert exit_code("benchmarks.workload_steps", ["--preset", "huge"], monkeypatch) == 2
    assert "no workload has a preset 'huge'" in capsys.readouterr().err
