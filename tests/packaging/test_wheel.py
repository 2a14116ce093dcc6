"""sdist → wheel → import in an empty folder, built in isolation: no torch in the build environment."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else_at_top_level(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"mlperf_fast", next(name for name in top if name.endswith(".dist-info"))}
    assert "mlperf_fast/kernels/__init__.py" in names
    assert "mlperf_fast/benchmarks/bench_sgd.py" in names
    assert not any(name.startswith("mlperf_fast/benchmarks/results") for name in names)
    assert any(name.startswith("mlperf_fast/_C/generic.") for name in names)
    assert not any("tests" in name or name.endswith((".cpp", ".h")) for name in names)


@pytest.mark.slow
def test_the_sdist_holds_what_a_build_needs(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    for path in ("setup.py", "pyproject.toml", "csrc/bindings.cpp", "csrc/memory.h", "kernels/__init__.py", "LICENSE"):
        assert path in names


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(built, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(next(built.glob("*.whl")))], check=True)
    code = (
        "import importlib.util, mlperf_fast, mlperf_fast.kernels, mlperf_fast._C as c, torch;"
        f"assert mlperf_fast.__file__.startswith({str(site)!r}), mlperf_fast.__file__;"
        "assert importlib.util.find_spec('kernels') is importlib.util.find_spec('benchmarks') is None;"
        "from mlperf_fast.ops import dot_interaction;"
        "print(dot_interaction(torch.ones(2, 4), torch.ones(2, 3, 4)).sum().item())"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) == 2 * (4 + 6 * 4)


def test_the_folder_kernels_refuses_to_be_a_top_level_package():
    answer = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode != 0
    assert "these kernels belong to mlperf_fast" in answer.stderr


@pytest.mark.parametrize(("value", "message"), [("1", "no CUDA C++ sources"), ("yes", "expected auto, 1 or 0")])
def test_the_cuda_switch_never_pretends(value, message):
    answer = subprocess.run(
        [sys.executable, "setup.py", "build_ext"], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "MLPERF_FAST_CUDA": value}, check=False,
    )  # fmt: skip
    assert answer.returncode != 0
    assert message in answer.stderr + answer.stdout


def test_one_level_of_the_native_code_loads_where_a_better_one_is_missing():
    """Every instruction set that was built and that runs here answers for itself."""
    code = (
        "from mlperf_fast import _C;"
        "assert _C.level == _C.supported_levels()[0];"
        "assert all(callable(_C.load(level).embedding_bag_fwd) for level in _C.supported_levels());"
        "assert 'generic' in _C.supported_levels()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
