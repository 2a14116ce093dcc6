import pytest

from mlperf_fast import _C


@pytest.fixture
def backend(request, monkeypatch):
    """The name of a backend; for "cpp-avx2" and the like the native functions of that instruction set are put in."""
    name, _, level = request.param.partition("-")
    if level:
        for function, value in vars(_C.load(level)).items():
            if not function.startswith("_"):
                monkeypatch.setattr(_C, function, value)
    return name
