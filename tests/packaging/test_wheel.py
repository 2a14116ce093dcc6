"""sdist → wheel → import in an empty folder, built in isolation: no torch in the build environment."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel that was built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    # One instruction set, unoptimised: speed isn't asked for here, and each takes a minute and more.
    environment = {**os.environ, "MLPERF_FAST_LEVELS": "generic", "CXXFLAGS": "-O0"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A folder in which the wheel is installed."""
    site = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*install, str(next(built.glob("*.whl")))], check=True)
    return site


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else_at_top_level(built, build_script):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"mlperf_fast", next(name for name in top if name.endswith(".dist-info"))}
    assert "mlperf_fast/kernels/__init__.py" in names
    assert "mlperf_fast/benchmarks/bench_sgd.py" in names
    assert not any(name.startswith("mlperf_fast/benchmarks/results") for name in names)
    assert any(name.startswith("mlperf_fast/_C/generic.") for name in names)
    assert "mlperf_fast/_cuda/__init__.py" in names
    assert any(name.startswith("mlperf_fast/_cuda/native.") for name in names) == (build_script.find_nvcc() is not None)
    assert not any("tests" in name or name.endswith((".cpp", ".cu", ".cuh", ".h")) for name in names)


@pytest.mark.slow
def test_the_sdist_holds_what_a_build_needs(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    sources = {"csrc/bindings.cpp", "csrc/memory.h", "csrc/sgd.cu", "csrc/common/launch.cuh", "kernels/__init__.py"}
    assert {"setup.py", "pyproject.toml", "LICENSE"} | sources <= names


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(installed, tmp_path):
    code = (
        "import importlib.util, mlperf_fast, mlperf_fast.kernels, mlperf_fast._C as c, torch;"
        f"assert mlperf_fast.__file__.startswith({str(installed)!r}), mlperf_fast.__file__;"
        "assert importlib.util.find_spec('kernels') is importlib.util.find_spec('benchmarks') is None;"
        "from mlperf_fast.ops import dot_interaction;"
        "print(dot_interaction(torch.ones(2, 4), torch.ones(2, 3, 4)).sum().item())"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) == 2 * (4 + 6 * 4)


@pytest.mark.slow
def test_benchmarks_run_from_the_wheel(installed, tmp_path):
    """Away from the checkout: `mlperf-fast bench`, whose results go under the current folder, and `compare`."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    where = "from mlperf_fast.benchmarks import command; print(command.__file__, command.results_root())"
    assert run("-c", where).split() == [str(installed / "mlperf_fast" / "benchmarks" / "command.py"), "results"]
    assert "written: found/sgd.json" in run("-m", "mlperf_fast", "bench", "sgd", "memory", "--quick", "--out", "found")
    assert {path.name for path in (tmp_path / "found").iterdir()} >= {"sgd.json", "sgd.csv", "memory.json"}
    assert " 0 slower" in run("-m", "mlperf_fast.benchmarks.compare", "found", "found")


def test_the_folder_kernels_refuses_to_be_a_top_level_package():
    answer = subprocess.run([sys.executable, "-c", "import kernels"], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode != 0
    assert "these kernels belong to mlperf_fast" in answer.stderr


@pytest.fixture
def build_script(monkeypatch):
    """setup.py as a module, in the folder where it finds the sources, without what the environment asks for."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLPERF_FAST_CUDA", raising=False)
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("value", "nvcc", "message"),
    [
        ("yes", "/somewhere/nvcc", "expected auto, 1 or 0"),
        ("1", None, "MLPERF_FAST_CUDA=1, but there is no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda"),
        ("1", "/somewhere/nvcc", "nvcc knows none of sm_80, sm_90, sm_100"),
    ],
)
def test_the_cuda_switch_never_pretends(build_script, monkeypatch, value, nvcc, message):
    monkeypatch.setenv("MLPERF_FAST_CUDA", value)
    monkeypatch.setattr(build_script, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(build_script, "cuda_architectures", lambda nvcc: [])
    with pytest.raises(SystemExit, match=message):
        build_script.cuda_extension()


@pytest.mark.parametrize(
    ("value", "nvcc", "reason"),
    [("auto", None, r"not built \(there is no nvcc"), ("0", "/somewhere/nvcc", r"not built \(MLPERF_FAST_CUDA=0\)")],
)
def test_cuda_can_be_left_out(build_script, monkeypatch, value, nvcc, reason):
    monkeypatch.setenv("MLPERF_FAST_CUDA", value)
    monkeypatch.setattr(build_script, "find_nvcc", lambda: nvcc)
    extension, verdict = build_script.cuda_extension()
    assert extension is None
    assert re.match(reason, verdict)


@pytest.mark.slow
def test_cuda_is_built_where_there_is_nvcc(build_script, installed):
    """The wheel's module loads without a GPU: CUDA's runtime library is linked into it."""
    nvcc = build_script.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
    _, verdict = build_script.cuda_extension()
    assert verdict.startswith(f"built by {nvcc} for sm_")
    module = next((installed / "mlperf_fast" / "_cuda").glob("native.*.so"))
    code = (
        "import importlib.util, sys;"
        "spec = importlib.util.spec_from_file_location('native', sys.argv[1]);"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module); print(module.sgd.__doc__)"
    )
    answer = subprocess.run([sys.executable, "-c", code, module], capture_output=True, text=True, check=False)
    assert "sgd(" in answer.stdout, answer.stderr
    needed = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
    assert "cudart" not in needed
    assert "torch" not in needed


@pytest.mark.parametrize("level", ["avx2", "avx512"])
def test_levels_that_this_processor_does_not_run_compile(build_script, level):
    """`make` leaves them out, a release holds them. Not optimised; without the bindings, which are the same for all."""
    from mlperf_fast import _C

    if level in _C.supported_levels():
        pytest.skip(f"{level} was built")
    flags = [*build_script.CXX_FLAGS, *build_script.X86_LEVELS[level], "-std=c++17", "-O0", "-Icsrc"]
    flags += [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    sources = [
        path for path in (*Path("csrc").glob("*.cpp"), *Path("csrc/go").glob("*.cpp")) if "bind" not in path.name
    ]
    assert len(sources) > 20
    for source in sources:
        answer = subprocess.run(
            ["g++", *flags, "-c", source, "-o", os.devnull], capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr


def test_one_level_of_the_native_code_loads_where_a_better_one_is_missing():
    """Every instruction set that was built and that runs here answers for itself."""
    code = (
        "from mlperf_fast import _C;"
        "assert _C.level == _C.supported_levels()[0];"
        "assert all(callable(_C.load(level).embedding_bag_fwd) for level in _C.supported_levels());"
        "assert 'generic' in _C.supported_levels()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
