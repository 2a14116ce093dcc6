"""`python -m benchmarks [OP …]`: the same as `mlperf-fast bench`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
