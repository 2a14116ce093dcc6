"""Triton kernels, installed as `mlperf_fast.kernels`."""

if __name__ == "kernels":  # the checkout's root is on sys.path; another project owns this name
    raise ImportError("these kernels belong to mlperf_fast: install the package and import mlperf_fast.kernels")
