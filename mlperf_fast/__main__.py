"""`python -m mlperf_fast …` and `torchrun -m mlperf_fast …`: the same as `mlperf-fast …`."""

import sys

from mlperf_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
