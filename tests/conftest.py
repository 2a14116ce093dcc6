"""Before torch loads its OpenMP runtime: threads wait as under the `mlperf-fast` command."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
