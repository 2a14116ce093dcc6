"""Before torch loads its OpenMP runtime: threads wait asleep, as under the `mlperf-fast` command."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
