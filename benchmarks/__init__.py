"""Measures ops and steps against their competitors and the machine's limits. Measures, never asserts.

Installed as `mlperf_fast.benchmarks`. In a checkout `python -m benchmarks.NAME` works too: imports within are relative.
"""

import os

# As the package's commands do, and so for every competitor, those in other processes too: threads that wait soon sleep.
# OpenMP reads its environment once, when torch loads it, so this comes before any module here imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
