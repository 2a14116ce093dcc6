"""Every CUDA C++ kernel, compiled for the three GPU generations, keeps its budget and says what it costs."""

import re

import budgets
import nvcc
import pytest

needs_nvcc = pytest.mark.skipif(nvcc.NVCC is None, reason="no nvcc in CUDA_HOME, on PATH or in /usr/local/cuda")
SOURCES = pytest.mark.parametrize("source", nvcc.SOURCES, ids=lambda source: source.stem)
SLOWEST = 60  # seconds of processor time a file, that of a machine beside others included


@needs_nvcc
@SOURCES
def test_keeps_its_budget(source):
    compiled = nvcc.compiled(source)
    assert {row.architecture for row in compiled.rows} == set(budgets.ARCHITECTURES)
    assert compiled.seconds < SLOWEST, "nvcc takes too long for one file: split it"
    budgets.check(*compiled.rows)


@needs_nvcc
def test_the_table_has_no_other_kernels():
    compiled = {(row.kernel, row.case) for source in nvcc.SOURCES for row in nvcc.compiled(source).rows}
    listed = {(row.kernel, row.case) for row in budgets.read().values() if row.compiler.startswith("nvcc")}
    assert listed <= compiled, f"not compiled any more: {listed - compiled}; `make ptxas UPDATE=1`"


@SOURCES
def test_every_kernel_says_what_it_costs(source):
    """In the comment right above it."""
    lines = source.read_text().splitlines()
    kernels = [i for i, line in enumerate(lines) if "__global__" in line]
    assert kernels
    for i in kernels:
        above = i
        while above and re.match(r"(//|template <)", lines[above - 1]):
            above -= 1
        comment = " ".join(lines[above:i])
        assert re.search(r"\bbytes\b", comment), f"{source.name}:{i + 1} doesn't say how many bytes its kernel moves"
        assert re.search(r"\bflops\b", comment), f"{source.name}:{i + 1} doesn't say how many flops its kernel does"


ROW = budgets.Row("f_kernel<4>", "f.cu", 90, "nvcc 13.0.88", 30, 0, 0, 512)


def changed(**values):
    return budgets.Row(**{**vars(ROW), **values})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(registers=33), "takes 33 registers a thread, budget 30, allowed 32"),
        (changed(stack=8, spilled=8), "spills 8 bytes a thread, budget 0"),
        (changed(stack=8), "takes 8 bytes of stack a thread, budget 0"),
        (changed(shared=516), "takes 516 bytes of shared memory a block, budget 512"),
        (changed(compiler="nvcc 12.8.1", stack=8, spilled=8), "spills 8 bytes a thread, budget 0"),
    ],
)
def test_growth_fails_with_the_line_to_change(row, message):
    text = budgets.complaint(row, ROW)
    assert message in text
    assert text.endswith(f"change in budgets.csv\n-{ROW.line()}\n+{row.line()}")


@pytest.mark.parametrize(
    "row", [ROW, changed(registers=32), changed(registers=20, shared=0), changed(compiler="nvcc 12.8.1", registers=99)]
)
def test_within_the_allowance(row):
    assert budgets.complaint(row, ROW) is None


def test_a_new_kernel_needs_a_line():
    assert budgets.complaint(ROW, None).endswith(f"budgets.csv needs the line\n{ROW.line()}")
    assert ROW.line() == "f_kernel<4>,f.cu,90,nvcc 13.0.88,30,0,0,512"


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("(anonymous namespace)::sgd_kernel(TensorTable<2>, float const*)", "sgd_kernel"),
        ("void (anonymous namespace)::f<float, 4>((anonymous namespace)::Shape<(A)1>, bool)", "f<float, 4>"),
        ("void f<(lambda)(int)>(int)", "f<(lambda)(int)>"),
    ],
)
def test_kernels_are_named_as_in_the_source(name, short):
    assert nvcc._short(name) == short
