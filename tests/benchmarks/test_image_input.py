"""The readers alone, by --quick: every form ends in a line with its figures."""

import pytest
import torch

pytest.importorskip("PIL", reason="needs Pillow: pip install 'mlperf_fast[resnet]'")

from mlperf_fast.benchmarks import image_input

from mlperf_fast.data.dali import import_dali
from mlperf_fast.errors import UserError


def test_it_measures_the_readers(capsys):
    threads = torch.get_num_threads()
    try:
        assert image_input.main(["--quick"]) == 0
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    forms = ["DataLoader + Pillow", "workers, processes", "workers", "workers, kept pixels", "workers, antialias"]
    try:
        import_dali()
        forms += ["dali", "dali, antialias", "dali, plain"]
    except UserError:
        assert "left out: the reader `dali` needs NVIDIA DALI" in said
    lines = [line for line in said.splitlines() if line[:20].strip() in forms]
    assert [line[:20].strip() for line in lines] == forms
    for line in lines:
        rate, _, cpu, _ = (float(word) for word in line[20:].split())
        assert rate > 0 < cpu
